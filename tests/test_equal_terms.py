"""Memories on equal terms: one rule for hiding frames, revisits that no memory's own retrieval chooses, and examples that are counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import arguments, collect
from torch import Tensor

from wmgym.core import ContextFrames
from wmgym.data.latents import Latents
from wmgym.experiments.support.judged import training_in_words
from wmgym.memory.coverage import CoverageConfig
from wmgym.nets.cdit import SIZES
from wmgym.train import rehearsal, run, worldpack
from wmgym.train.loop import draw
from wmgym.train.worldpack import TrainArgs, examples_per_mode, train
from wmgym.train.worldpack_loss import MOST_HIDDEN, hide_newest

ROWS = 6000


def group(times: list[int], there: Tensor | None = None) -> ContextFrames:
    """A group of the frames of these times, the same in all rows."""
    n = len(times)
    valid = torch.ones(ROWS, n, dtype=torch.bool) if there is None else there[:, None].expand(ROWS, n)
    still = torch.zeros(ROWS, n, 5)
    time = torch.tensor(times).expand(ROWS, n)
    return ContextFrames(torch.zeros(ROWS, n, 1, 1, 1), time, still, valid, time, still, still, time, 0)


LAYOUTS = {
    "none": [[49, 48, 47, 46]],
    "packing": [[49], [48, 47], list(range(46, 30, -1))],
    "retrieval": [[49], [30, 3, 12]],
    "worldpack": [[49], [48, 47], list(range(46, 38, -1)), [1, 30, 20, 9, 8, 7, 6, 5]],
}


def shown_times(groups: tuple[ContextFrames, ...]) -> list[frozenset[int]]:
    """The times of the frames that remain, row by row."""
    times, valid = torch.cat([g.times for g in groups], 1).tolist(), torch.cat([g.valid for g in groups], 1).tolist()
    return [frozenset(t for t, there in zip(*row, strict=True) if there) for row in zip(times, valid, strict=True)]


def test_the_newest_frames_are_hidden_alike_in_every_memory() -> None:
    """The same rows lose the same number of frames, whichever groups these are in."""
    hidden = {}
    for mode, layout in LAYOUTS.items():
        groups = tuple(group(times) for times in layout)
        before, after = shown_times(groups)[0], shown_times(hide_newest(groups, torch.Generator().manual_seed(3), 0.6))
        hidden[mode] = [len(before) - len(now) for now in after]
        assert all(now == before - set(sorted(before)[len(now) :]) for now in set(after))  # the newest
    assert hidden["none"] == hidden["packing"] == hidden["retrieval"] == hidden["worldpack"]
    shares = torch.bincount(torch.tensor(hidden["none"])) / ROWS
    torch.testing.assert_close(shares, torch.tensor([0.4, *[0.6 / MOST_HIDDEN] * MOST_HIDDEN]), atol=0.02, rtol=0)


def test_the_oldest_frame_always_remains() -> None:
    there = torch.arange(ROWS) % 2 == 0
    after = shown_times(hide_newest((group([9]), group([8, 7], there)), torch.Generator().manual_seed(0), 1.0))
    assert set(after[::2]) == {frozenset({8, 7}), frozenset({7})} and set(after[1::2]) == {frozenset({9})}
    assert set(shown_times(hide_newest((group([5], torch.zeros(ROWS, dtype=torch.bool)),), torch.Generator(), 1.0))) == {frozenset()}


def test_neutral_revisits_are_views_that_the_past_covers() -> None:
    """One walker turns round and round on the spot, one walks straight ahead for ever: only the first sees anything again."""
    length = 60
    poses = torch.zeros(2, length, 5)
    poses[0, :, 3] = torch.arange(length) * 0.5
    poses[1, :, 0] = 1000.0 * torch.arange(length)
    still = torch.zeros(2, length, dtype=torch.int64)
    data = Latents(torch.zeros(2, length, 1, 1, 1), poses, still, torch.tensor([length, length]))
    rows, first = rehearsal.draw_starts(data, draw(0, 0, "cpu"), 400, 1.0, likeness=CoverageConfig())
    turns = rows == 0
    assert turns.float().mean() > 0.8 and (first[turns] > rehearsal.LONG_PAST).float().mean() > 0.9
    again = rehearsal.draw_starts(data, draw(0, 0, "cpu"), 400, 0.0)
    assert (again[0] == 0).float().mean() == pytest.approx(0.5, abs=0.1)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(SIZES, "TINY", {"width": 32, "depth": 1, "heads": 2})
    monkeypatch.setattr(run, "_writer", lambda out: None)
    return collect(tmp_path / "data", length=20)


def test_examples_per_memory_stand_in_the_result_and_below_tables(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(data, tmp_path / "run", modes="none:1,worldpack:1", hide="newest", revisit_by="coverage", pixels=True)
    seen: dict[str, int] = {}
    real = worldpack.inputs

    def counted(world: Any, batch: Any, *rest: Any) -> Any:
        mode = "worldpack" if world.settings.memories[0].layout.retrieved[0] else "none"
        seen[mode] = seen.get(mode, 0) + len(batch.latents)
        return real(world, batch, *rest)

    monkeypatch.setattr("wmgym.train.worldpack_loss.inputs", counted)
    report = train(args, progress=False)
    assert sum(report["examples"].values()) == args.steps * args.batch
    assert {mode: count for mode, count in report["examples"].items() if count} == seen
    text = training_in_words(report["checkpoint"])
    counts = ", ".join(f"{mode} {count}" for mode, count in report["examples"].items())
    assert "--hide newest --revisit-by coverage" in text and text.endswith(f"per memory: {counts}.")
    assert json.loads((args.out / "result.json").read_text())["examples"] == report["examples"]


def test_equal_shares_give_equal_numbers(tmp_path: Path) -> None:
    args = TrainArgs((tmp_path,), tmp_path, modes="none:1,packing:1,retrieval:1,worldpack:1", steps=4000, batch=2)
    counts = examples_per_mode(args)
    assert list(counts) == ["none", "packing", "retrieval", "worldpack"] and sum(counts.values()) == 8000
    assert all(count == pytest.approx(2000, rel=0.1) for count in counts.values())
    assert examples_per_mode(replace(args, seed=1)) != counts


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"modes": "none:1,all:2"}, "memory must be one of .*'all'"),
        ({"modes": "none"}, "modes must be names with positive shares such as .*, got 'none'"),
        ({"modes": "none:0"}, "got 'none:0'"),
        ({"hide": "all"}, "hide must be one of groups, newest, got 'all'"),
        ({"revisit_by": "pose"}, "revisit_by must be score or coverage, got 'pose'"),
    ],
)
def test_wrong_terms_are_named(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        TrainArgs((tmp_path,), tmp_path, **changes)


def test_the_training_of_0_1_is_the_default(tmp_path: Path) -> None:
    """Its shares favour memories; `hide` spares the memory with one group; revisits are chosen by score."""
    args = TrainArgs((tmp_path,), tmp_path)
    assert (args.modes, args.hide, args.revisit_by) == ("none:2,packing:2,retrieval:3,worldpack:4", "groups", "score")
