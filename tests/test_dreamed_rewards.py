"""The reward head learns from dreams what truly was earned there, and nothing else of the model changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_reward import HEAD, arguments, block, bordered

from wmgym.checkpoint import load, read_file
from wmgym.nets.cdit import SIZES
from wmgym.nets.heads import RewardHead
from wmgym.train import dreamed_rewards, run, worldpack
from wmgym.train.dreamed_rewards import EARNING, RewardArgs, draw_rewarded, train
from wmgym.train.loop import draw
from wmgym.train.rehearsal import Stretch
from wmgym.train.reward import DreamedExamples, Pairs, dreamed_pairs


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "TINY", {"width": 32, "depth": 1, "heads": 2})
    monkeypatch.setattr(run, "_writer", lambda out: None)


def test_half_of_the_stretches_hold_a_reward_and_all_lie_within_their_episodes() -> None:
    data = block([[0] * 40, [0] * 20 + [1] + [0] * 19, [1] + [0] * 9 + [1] * 30], [40, 40, 10])  # one never pays, one only after its end
    rows, first = draw_rewarded(data, draw(0, 0, "cpu"), 600, 6)
    assert bool((first >= 1).all()) and bool((first + 6 <= data.lengths[rows]).all())
    assert data.rewards is not None
    paid = (data.rewards[rows[:, None], first[:, None] + torch.arange(6)] != 0).any(1)
    assert bool(paid[-round(EARNING * 600) :].all()) and set(rows[paid].tolist()) == {1}
    assert set(first[rows == 1][-round(EARNING * 600) :].tolist()) == set(range(15, 21))  # wherever in the stretch it lies
    assert set(rows[~paid].tolist()) == {0, 1, 2}
    rows, _ = draw_rewarded(block([[0] * 9], [9]), draw(0, 0, "cpu"), 10, 6)
    assert rows.tolist() == [0] * 10


class Says(RewardHead):
    """Says outcome 1, surest at the largest value, where the new frame's number is positive."""

    def posterior(self, before: torch.Tensor, after: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        sure = after[:, 0, 0, 0].sigmoid()
        return torch.stack([1 - sure, sure], -1)


def test_a_dreamed_event_is_where_the_head_sees_it_near_a_true_one() -> None:
    """Flickers far from it are lessons, others near it are not, and neither is one that the dream does not show."""
    #        time 0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16 17 18 19 20
    truth = [[0.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 7, 0]]
    seen = [-9.0, -9, -9, 2, 4, -9, -9, -9, 3, -9, -9, -9, -9, 5, -9, -9, -9, -9, 6]  # of times 2 to 20
    data = block(truth, [21])
    made = torch.tensor(seen)[None, :, None, None, None].expand(1, 19, 1, 4, 4)
    pairs, events = dreamed_pairs(Says(HEAD), data, [Stretch(torch.tensor([0]), torch.tensor([2]), made)])
    read = list(zip(pairs.before[:, 0, 0, 0].tolist(), pairs.after[:, 0, 0, 0].tolist(), pairs.outcomes.tolist(), strict=True))
    # the event of 5 is shown at 6, that of 12 at 10; 15 flickers; what 19 paid this head does not know
    assert events == 2
    assert read == [(1.0, -9.0, 0), (2.0, 4.0, 1), (-9.0, -9.0, 0), (-9.0, -9.0, 0), (-9.0, 3.0, 1), (-9.0, 5.0, 0), (5.0, -9.0, 0)]


def test_a_head_that_takes_flickers_for_events_unlearns_it(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained world's dreams are noise, in which a head made on true frames sees rewards. A killed run keeps its dreams."""
    folder = bordered(tmp_path / "data", episodes=6)
    few = arguments(folder, tmp_path / "run", steps=120, save_every=120, rehearse_every=120)
    before = Path(worldpack.train(few, progress=False)["checkpoint"])
    args = RewardArgs((folder,), str(before), tmp_path / "head", ("none",), (1,), stretches=64, frames=8, steps=150, batch=64)
    calls: list[Any] = []
    real = dreamed_rewards.rehearsal.dream
    monkeypatch.setattr(dreamed_rewards.rehearsal, "dream", lambda *given: calls.append(given) or real(*given))
    with monkeypatch.context() as patch:
        patch.setattr(dreamed_rewards, "_fit", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(args, progress=False)
    assert len(calls) == 2
    report = train(args, progress=False)
    assert len(calls) == 2  # the dreams were there
    wrong = {when: report[f"{when}_dreamed_said"] - report[f"{when}_dreamed_hits"] for when in ("before", "after")}
    assert wrong["before"] >= 10 and wrong["after"] < wrong["before"] / 3
    assert report["after_reward_precision"] > 0.9 and report["after_reward_recall"] > 0.5  # on true frames: half of what it learns is noise
    assert report["events"] > 30 and 0 < report["events_that_dreams_show"] <= report["events"]
    old, new = read_file(before)[0], read_file(Path(report["checkpoint"]))[0]
    assert {name for name in old if not torch.equal(old[name], new[name])} == {n for n in old if n.startswith("reward_head.pair")}
    with pytest.raises(ValueError, match="was begun with batch=64, not 256; use another folder"):
        train(RewardArgs((folder,), str(before), tmp_path / "head", frames=9), progress=False)


def test_a_checkpoint_without_a_reward_head_is_refused(small: None, tmp_path: Path) -> None:
    folder = bordered(tmp_path / "data", chance=0.0)
    made = worldpack.train(arguments(folder, tmp_path / "run", steps=1, save_every=2), progress=False)["checkpoint"]
    assert load(made).model.reward_head is None
    with pytest.raises(ValueError, match="has no reward head"):
        train(RewardArgs((folder,), made, tmp_path / "head"), progress=False)
    for wrong in ({"frames": 1}, {"stretches": 0}, {"memories": ()}, {"denoise_steps": (0,)}):
        with pytest.raises(ValueError):
            RewardArgs((folder,), made, tmp_path / "head", **wrong)  # type: ignore[arg-type]


def test_the_seed_decides_the_stretches() -> None:
    data = block([[0, 1] * 20], [40])
    one, same, other = (draw_rewarded(data, draw(seed, 0, "cpu"), 20, 4)[1].tolist() for seed in (0, 0, 1))
    assert one == same != other and np.ptp(one) > 0


def test_dreamed_batches_hold_every_outcome_equally_often() -> None:
    outcomes = torch.tensor([0, 1, 0, 0, 0, 2, 0])
    where = torch.arange(7.0)[:, None, None, None].expand(7, 1, 4, 4)
    head = RewardHead(HEAD, ((0.0, False), (1.0, False), (1.0, True), (5.0, True)))
    examples = DreamedExamples(head, Pairs(where, where + 10, torch.zeros(7, dtype=torch.int64), outcomes))
    seen: list[torch.Tensor] = []
    head.loss = lambda *given: seen.extend(given) or torch.zeros(())  # type: ignore[method-assign, assignment]
    examples.loss(draw(0, 0, "cpu"), 3000, noise=0.0)
    before, after, _, which = seen
    assert torch.equal(outcomes[before[:, 0, 0, 0].long()], which) and torch.equal(after, before + 10)
    assert [abs(int((which == k).sum()) - 1000) < 130 for k in range(3)] == [True] * 3 and not (which == 3).any()
    assert not examples.complete
    assert set(before[which == 0][:, 0, 0, 0].tolist()) == {0.0, 2.0, 3.0, 4.0, 6.0}
