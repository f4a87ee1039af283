"""The twin report: loops found by hand, dreams that are the env's own, and the program from end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_checkpoint

import wmgym
from wmgym.benchmarks.revisit import by_length, last_seen, walk_row
from wmgym.benchmarks.rollout import Dream, Walk, dream_legs
from wmgym.cli import main
from wmgym.experiments import twin as report


def path(*places: float, turns: Any = 0.0) -> np.ndarray:
    poses = np.zeros((len(places), 5), np.float32)
    poses[:, 0], poses[:, 3] = places, turns
    return poses


# -- when one revisits ------------------------------------------------------------------------------------------------------------------


def test_a_view_is_seen_again_after_it_was_left() -> None:
    assert last_seen(path(0, 1, 2, 1, 0)).tolist() == [-1, -1, -1, 1, 0]


def test_standing_still_is_no_revisit_and_loops_count_from_the_newest_visit() -> None:
    assert last_seen(path(0, 0, 0, 1, 1, 0, 0, 1, 0)).tolist() == [-1, -1, -1, -1, -1, 2, 2, 4, 6]


def test_another_direction_is_another_view_and_a_full_turn_is_not() -> None:
    turns = np.array([0, math.pi, 2 * math.pi - 1e-3])
    assert last_seen(path(0, 0, 0, turns=turns)).tolist() == [-1, -1, 0]
    assert last_seen(path(0, 5, 0, turns=np.array([0, 0, 1.0]))).tolist() == [-1, -1, -1]
    assert last_seen(path(0, 5, 0.2)).tolist() == [-1, -1, 0]  # near enough


def test_a_walk_out_and_back_has_a_loop_of_each_even_length() -> None:
    out = list(range(6))
    before = last_seen(path(*out, *out[-2::-1]))
    assert (np.arange(11) - before)[before >= 0].tolist() == [2, 4, 6, 8, 10]


def loop(places: list[float], split: int) -> Walk:
    frames = np.stack([np.full((16, 16, 3), 10 * int(place), np.uint8) for place in places])
    return Walk(frames, np.zeros(len(places), np.int64), path(*places), split, seed=7)


def test_error_and_consistency_are_told_apart() -> None:
    """A dream that shows a place as it dreamed it before, 5 grey levels off, is consistent and wrong."""
    walk = loop([0, 1, 2, 3, 2, 1, 0], split=2)  # the places 0 and 1 are observed, 2 and 3 are dreamed first
    shown = walk.frames[2:].copy()
    shown[[0, 2]] += 5  # place 2, both times
    row = walk_row(walk, Dream(shown, walk.poses[2:], np.zeros((5, 0), np.int64)))["steps"]
    assert row["loop_length"] == [0, 0, 2, 4, 6]
    assert row["psnr"][2] == pytest.approx(20 * math.log10(255 / 5), abs=1e-3)
    assert row["consistency"][2] == 60  # equal
    assert row["psnr"][3] == row["consistency"][3] == 60
    assert max(row["drift"]) == 0


def test_revisits_are_averaged_by_walk_and_length() -> None:
    rows = [
        {"steps": {"loop_length": [0, 2, 4, 9], "psnr": [1, 10, 20, 30]}},
        {"steps": {"loop_length": [3, 0, 0, 0], "psnr": [5, 1, 1, 1]}},
    ]
    found = by_length(rows, "psnr", bins=((2, 4), (5, 8), (9, 16)))
    assert found == [{0: 15.0, 1: 5.0}, {}, {0: 30.0}]


# -- the program ------------------------------------------------------------------------------------------------------------------------


def test_what_the_report_dreams_is_what_the_env_shows(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path)
    pair = wmgym.twin("WorldPack-Minecraft-v0", task="free", checkpoint=checkpoint)
    found, key = report.walk(pair, "random", seed=101_000_000, steps=4)
    assert found is not None
    dream: Any = pair[0]
    seen, info = dream.reset(seed=101_000_000)
    np.testing.assert_array_equal(seen, found.frames[found.split - 1])
    (dreamed,) = dream_legs(dream.unwrapped.shell.world, [found], [key])
    for step in range(found.leg):
        seen, *_, info = dream.step(found.actions[found.split + step])
        assert np.abs(seen.astype(int) - dreamed.frames[step]).max() <= 1
        np.testing.assert_allclose(info["pose"], dreamed.poses[step], atol=1e-5)


def test_worlds_that_make_several_frames_a_step_are_told_frame_by_frame(tmp_path: Path) -> None:
    args = report.TwinArgs("WorldPack-Minecraft-v0", checkpoint=tiny_checkpoint(tmp_path, chunk=2), walkers=("random",), walks=1, steps=5)
    stage = report.Stage(args)
    (row,) = stage.cell("random", "none")["walks"]
    assert row["leg"] == 5 and len(row["steps"]["psnr"]) == 5
    assert row["steps"]["drift"][0] < 2


def test_eval_twin_writes_its_report_and_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "twin"
    words = ["eval", "twin", "WorldPack-Minecraft-v0", "--checkpoint", tiny_checkpoint(tmp_path), "--out", str(out), "--steps", "12"]
    words += ["--walks", "2", "--walkers", "turn-loop", "random", "--json"]
    assert main(words) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert {line["memory"] for line in found["steps"]} == {"worldpack", "none"}
    assert {line["walker"] for line in found["steps"]} == {"turn-loop", "random"}
    assert all(line["drift"] >= 0 and 0 < line["psnr"] <= 60 for line in found["steps"])
    assert json.loads((out / "result.json").read_text()) == found
    for name in ("args.json", "table.md", "curves.png", "turn-loop.mp4"):
        assert (out / name).stat().st_size > 100, name
    cell = out / "cells" / "random-none.json"
    held = json.loads(cell.read_text())
    held["walks"][0]["steps"]["psnr"] = [50.0] * 12  # a finished cell is believed, not made again
    cell.write_text(json.dumps(held))
    (out / "cells" / "random-worldpack.json").unlink()
    assert main(words) == 0
    again = json.loads(capsys.readouterr().out)
    for old, new in zip(found["steps"], again["steps"], strict=True):
        tampered = (old["walker"], old["memory"]) == ("random", "none")
        assert (old["psnr"] == new["psnr"]) != tampered
        assert old["drift"] == new["drift"]
    assert main([*words, "--seed", "101"]) == 1
    assert "use another folder" in capsys.readouterr().err
    tiny_checkpoint(tmp_path, seed=1)  # other weights at the same path: cells of the old ones are not theirs
    assert main(words) == 1
    said = capsys.readouterr().err
    assert f"{out} was begun with weights=" in said and "use another folder" in said


def test_a_ground_truth_has_no_twin_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["eval", "twin", "Minecraft-v0", "--out", str(tmp_path)]) == 1
    assert "compares a dream with its truth" in capsys.readouterr().err
