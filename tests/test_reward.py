"""The reward head: rare outcomes are drawn as often as common ones, its posterior is that of the data, and it learns what a border says."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wmgym.checkpoint import load, load_world, read_file, write_tensors
from wmgym.data.episode import Episode, Metadata, list_episodes, save_episode
from wmgym.data.latents import Latents
from wmgym.metrics.events import count_events
from wmgym.nets.cdit import SIZES
from wmgym.nets.heads import HeadConfig, RewardHead
from wmgym.train import reward, run, worldpack
from wmgym.train.loop import draw
from wmgym.train.worldpack import TrainArgs, train

COLOURS = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220]])


def bordered(folder: Path, episodes: int = 4, length: int = 60, chance: float = 0.1, pays: float = 1.0) -> Path:
    """Episodes of noise in a coloured border, two pixels wide; whenever a step pays, the border changes its colour."""
    rng = np.random.default_rng(7)
    for n in range(episodes):
        frames = rng.integers(90, 130, (length, 16, 16, 3), dtype=np.uint8)
        paid = (rng.random(length) < chance) & (np.arange(length) > 0)
        colours = COLOURS[paid.cumsum() % 3]
        inside = np.zeros((16, 16), bool)
        inside[2:-2, 2:-2] = True
        frames = np.where(inside[..., None], frames, colours[:, None, None]).astype(np.uint8)
        ends = np.zeros(length, bool)
        meta = Metadata(env_id="test", seed=n, walker="random")
        poses, rewards = np.zeros((length, 5), np.float32), (pays * paid).astype(np.float32)
        save_episode(folder / f"{n:03d}.safetensors", Episode(frames, rng.integers(0, 10, length), poses, rewards, ends, ends, meta))
    return folder


def block(rewards: list[list[float]], lengths: list[int], ends: list[list[bool]] | None = None) -> Latents:
    """Latents that say where they stand: 100 * episode + frame."""
    episodes, time = len(rewards), len(rewards[0])
    where = (100.0 * torch.arange(episodes)[:, None] + torch.arange(time))[..., None, None, None].expand(-1, -1, 1, 4, 4)
    finished = torch.tensor(ends) if ends else torch.zeros(episodes, time, dtype=torch.bool)
    actions = torch.zeros(episodes, time, dtype=torch.int64)
    return Latents(where, torch.zeros(episodes, time, 5), actions, torch.tensor(lengths), torch.tensor(rewards), finished)


HEAD = HeadConfig((1, 4, 4), 10, 8)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "TINY", {"width": 32, "depth": 1, "heads": 2})
    monkeypatch.setattr(run, "_writer", lambda out: None)


def arguments(data: Path, out: Path, **changes: Any) -> TrainArgs:
    few = {"steps": 6, "batch": 8, "save_every": 6, "rehearse_every": 2, "pixels": True, "rehearsal": 0.0}
    return TrainArgs((data,), out, **{**few, "modes": "none:1", **changes})


# -- counting ---------------------------------------------------------------------------------------------------------------------------


def test_events_are_hits_only_at_their_step_and_with_their_amount() -> None:
    true = np.array([0, 1, 0, 5, 0, 1, 0, 0.0])
    said = np.array([0, 1, 1, 1, 0, 0, 1, 0.0])
    counts = count_events(said, true)
    assert (counts.hits, counts.said, counts.true) == (1, 4, 3)
    assert counts.precision == 1 / 4 and counts.recall == 1 / 3
    perfect, silent = count_events(true, true), count_events(0 * true, 0 * true)
    assert perfect.precision == perfect.recall == 1
    assert math.isnan(silent.precision) and math.isnan(silent.recall)
    with pytest.raises(ValueError, match=r"\[8\] and \[7\]"):
        count_events(said, true[1:])


# -- drawing and prior ------------------------------------------------------------------------------------------------------------------


def test_a_batch_holds_every_outcome_equally_often_wherever_it_stands() -> None:
    """Neither the frame of reset nor the padding after an episode's end is ever drawn."""
    data = block([[1, 0, 1, 0, 0, 0], [1, 0, 0, 1, 1, 1]], [6, 4])
    examples = reward.Examples(RewardHead(HEAD), data)
    rows, times, which = examples.draw(np.random.default_rng(0), 6000)
    places, counts = torch.stack([which, rows, times], 1).unique(dim=0, return_counts=True)
    expected = {(0, 0, 1): 500, (0, 0, 3): 500, (0, 0, 4): 500, (0, 0, 5): 500, (0, 1, 1): 500, (0, 1, 2): 500}
    expected |= {(1, 0, 2): 1500, (1, 1, 3): 1500}
    assert {tuple(p) for p in places.tolist()} == set(expected)
    for place, count in zip(places.tolist(), counts.tolist(), strict=True):
        assert abs(count - expected[tuple(place)]) < 5 * math.sqrt(expected[tuple(place)])


def test_the_posterior_of_a_head_that_knows_nothing_is_the_share_of_each_outcome() -> None:
    data = block([[0] * 96 + [1, 1, 1, 5]], [100], [[False] * 99 + [True]])
    head = RewardHead(HEAD, ((0.0, False), (1.0, False), (5.0, True)))
    reward.Examples(head, data)
    x = torch.randn(4, 1, 4, 4)
    posterior = head.posterior(x, x, torch.zeros(4, dtype=torch.int64))
    assert torch.allclose(posterior, torch.tensor([95, 3, 1]) / 99, atol=1e-6)
    rewards, ends = head(x, x, torch.zeros(4, dtype=torch.int64))
    assert rewards.tolist() == [0.0] * 4 and ends.tolist() == [False] * 4


@pytest.mark.parametrize(("likelihood", "earned"), [(98.0, 0.0), (100.0, 1.0)])
def test_an_outcome_is_given_where_its_evidence_outweighs_its_rarity(likelihood: float, earned: float) -> None:
    """Bayes' rule: at one in a hundred, the pixels must be 99 times as likely with a reward as without."""
    head = RewardHead(HEAD).requires_grad_(False)
    reward.Examples(head, block([[0] * 100 + [1]], [101]))
    head.pair.exit[-1].bias.copy_(torch.tensor([0.0, math.log(likelihood)]))
    x = torch.zeros(1, 1, 4, 4)
    chance = head.posterior(x, x, torch.zeros(1, dtype=torch.int64))[0, 1]
    assert float(chance) == pytest.approx(likelihood / (likelihood + 99), rel=1e-5)
    assert head(x, x, torch.zeros(1, dtype=torch.int64))[0].item() == earned


def test_the_loss_reads_the_step_that_was_drawn() -> None:
    """With the latents' own numbers as evidence: a head that is shown (t - 1, t) of each place."""
    data = block([[0, 0, 1, 0, 0, 1]], [6])
    examples = reward.Examples(RewardHead(HEAD), data)
    seen: list[torch.Tensor] = []

    def loss(before: torch.Tensor, after: torch.Tensor, actions: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        seen.extend([before[:, 0, 0, 0], after[:, 0, 0, 0], which])
        return torch.zeros(())

    examples.head.loss = loss  # type: ignore[method-assign]
    examples.loss(draw(0, 0, "cpu"), 64, noise=0.0)
    before, after, which = seen
    assert torch.equal(after, before + 1) and set(after[which == 1].tolist()) == {2.0, 5.0}
    assert set(after[which == 0].tolist()) == {1.0, 3.0, 4.0}


def test_outcomes_are_read_from_the_steps_of_episodes(tmp_path: Path) -> None:
    assert reward.outcomes(list_episodes(bordered(tmp_path / "pays"))) == ((0.0, False), (1.0, False))
    assert reward.outcomes(list_episodes(bordered(tmp_path / "never", chance=0.0))) == ()
    folder = bordered(tmp_path / "place", episodes=1)
    path = list_episodes(folder)[0]
    from wmgym.data.episode import load_episode

    episode = load_episode(path)
    varied = np.random.default_rng(0).normal(size=len(episode)).astype(np.float32)  # as of a way gained: no two alike
    save_episode(path, Episode(episode.frames, episode.actions, episode.poses, varied, episode.terminated, episode.truncated, episode.meta))
    assert reward.outcomes([path]) == ()


# -- the whole command ------------------------------------------------------------------------------------------------------------------


def test_training_finds_the_reward_in_the_border(small: None, tmp_path: Path) -> None:
    folder = bordered(tmp_path / "data", episodes=6)
    report = train(arguments(folder, tmp_path / "run", steps=120, save_every=120, rehearse_every=120), progress=False)
    assert report["reward_true"] > 0 and report["reward_precision"] > 0.9 and report["reward_recall"] > 0.9
    assert report["reward_hits"] == round(report["reward_recall"] * report["reward_true"])
    assert report["reward_expected"] == pytest.approx(report["reward_true"], rel=0.5)
    loaded = load(report["checkpoint"])
    assert loaded.config.outcomes == ((0.0, False), (1.0, False)) and loaded.model.reward_head is not None
    assert load_world(report["checkpoint"], device="cpu").reward_head is not None
    assert read_file(tmp_path / "run" / "latents.safetensors")[0]["rewards"].shape == (5, 60)


def test_a_killed_run_with_a_reward_head_continues_as_if_it_had_not_been(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bordered(tmp_path / "data")
    train(arguments(folder, tmp_path / "whole"), progress=False)
    calls = []
    real = worldpack.next_batch

    def once(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(worldpack, "next_batch", once)
        with pytest.raises(KeyboardInterrupt):
            train(arguments(folder, tmp_path / "killed", save_every=2), progress=False)
    train(arguments(folder, tmp_path / "killed", save_every=2), progress=False)
    a, b = (read_file(tmp_path / name / "model.safetensors")[0] for name in ("whole", "killed"))
    assert any(k.startswith("reward_head.pair") for k in a) and float(a["reward_head.log_prior"][1]) < 0
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_data_without_rewards_make_no_head_and_checkpoints_from_before_load(small: None, tmp_path: Path) -> None:
    report = train(arguments(bordered(tmp_path / "data", chance=0.0), tmp_path / "run", steps=1, save_every=2), progress=False)
    assert load(report["checkpoint"]).model.reward_head is None and "reward_true" not in report
    tensors, header = read_file(Path(report["checkpoint"]))
    config = json.loads(header["config"])
    del config["outcomes"]  # as they were written before there was a reward head
    write_tensors(tmp_path / "old.safetensors", tensors, {**header, "config": json.dumps(config)})
    old = load(tmp_path / "old.safetensors")
    assert old.model.reward_head is None and old.config.outcomes == ()


def test_latents_cached_without_rewards_are_named(small: None, tmp_path: Path) -> None:
    args = arguments(bordered(tmp_path / "data"), tmp_path / "run", steps=1, save_every=2)
    train(args, progress=False)
    cache = args.out / "latents.safetensors"
    tensors, _ = read_file(cache)
    write_tensors(cache, {k: v for k, v in tensors.items() if k not in ("rewards", "ends")})
    with pytest.raises(ValueError, match=r"without rewards: delete latents\.safetensors"):
        train(args, progress=False)
