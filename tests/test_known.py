"""What could be known of a view: points are found where they were, seen is what no surface hid, and splatting is exact where it can be."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from standins import StandInWorld
from test_loopnav import COURSE, SIZE, episode, loops
from tiny import tiny_checkpoint

from wmgym.agents.collect import CollectArgs, collect
from wmgym.benchmarks import cells as cell_files
from wmgym.benchmarks import loopnav, tables
from wmgym.benchmarks.cells import COVERED, Settings, history_of
from wmgym.benchmarks.known import covered, splat
from wmgym.benchmarks.rollout import Walk, next_frames
from wmgym.data.depth import DepthCamera, project, unproject
from wmgym.data.episode import list_episodes, save_episode
from wmgym.experiments.loopnav import LoopNavArgs, evaluate
from wmgym.metrics.image import judge
from wmgym.systems.worldpack import SYSTEM as WORLDPACK

CAMERA = DepthCamera(math.radians(75), (0.2, -0.1, 1.5), 0.1)
PLAIN = DepthCamera(math.pi / 2, (0.0, 0.0, 0.0))  # pixel u, v looks at the slope (u, v) in [-1, 1]
SIDE = 32
SLOPES = (2 * np.arange(SIDE) + 1) / SIDE - 1


def walk_of(poses: list[tuple[float, ...]], frames: np.ndarray, depth: np.ndarray, split: int = 1) -> Walk:
    count = len(poses)
    pictures = np.broadcast_to(frames, (count, SIDE, SIDE, 3)).astype(np.uint8)
    depths = np.broadcast_to(depth, (count, SIDE, SIDE)).astype(np.float32)
    return Walk(pictures, np.zeros(count, np.int64), np.array(poses, np.float32), split, 0, depths, PLAIN)


def wall(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, SIDE, SIDE, 3))


def test_points_are_found_where_they_were() -> None:
    rng = np.random.default_rng(0)
    poses = np.concatenate([rng.normal(size=(5, 3)) * 10, rng.uniform(-3, 3, (5, 1)), rng.uniform(-0.5, 0.5, (5, 1))], 1)
    depth = rng.uniform(0.5, 40, (5, 6, 8))
    row, column, z = project(unproject(depth, poses, CAMERA).reshape(5, -1, 3), poses, CAMERA, (6, 8))
    np.testing.assert_allclose(row, np.broadcast_to(np.repeat(np.arange(6), 8), (5, 48)), atol=1e-9)
    np.testing.assert_allclose(column, np.broadcast_to(np.tile(np.arange(8), 6), (5, 48)), atol=1e-9)
    np.testing.assert_allclose(z, depth.reshape(5, -1))
    level, back = np.array([[0.0, 0, 0, 0, 0]]), np.array([[0.0, 0, 0, math.pi, 0]])
    assert (project(unproject(depth[:1], level, PLAIN).reshape(1, -1, 3), back, PLAIN, (6, 8))[2] < 0).all()


def test_the_same_view_is_wholly_known() -> None:
    walk = walk_of([(0, 0, 0, 0, 0)] * 2, wall(), np.full((1, SIDE, SIDE), 5.0))
    assert covered(walk).tolist() == [1.0]
    np.testing.assert_array_equal(splat(walk)[0], walk.frames[0])


@pytest.mark.parametrize(("turn", "share"), [(math.pi, 0.0), (math.pi / 2, 0.0), (0.0, 1.0)])
def test_what_lies_behind_was_not_seen(turn: float, share: float) -> None:
    """A sky: directions alone count."""
    walk = walk_of([(0, 0, 0, 0, 0), (3, 1, 0, turn, 0)], wall(), np.full((1, SIDE, SIDE), np.inf))
    assert covered(walk)[0] == pytest.approx(share, abs=0.04)


def test_a_step_aside_before_a_wall_shows_what_the_slopes_say() -> None:
    """2 m to the left before a wall 4 m away: a quarter of the view (half the distance) is new, at its left edge."""
    walk = walk_of([(0, 0, 0, 0, 0), (0, 2, 0, 0, 0)], wall(), np.full((1, SIDE, SIDE), 4.0))
    assert covered(walk)[0] == pytest.approx(0.75, abs=0.02)
    shift = SIDE // 4
    np.testing.assert_array_equal(splat(walk)[0][:, shift:], walk.frames[0][:, :-shift])
    rows = walk.frames[0].mean(1, keepdims=True).round()
    np.testing.assert_allclose(splat(walk)[0][:, : shift - 1], np.broadcast_to(rows, (SIDE, shift - 1, 3)), atol=1)  # unknown


def test_what_a_nearer_surface_hid_was_not_seen() -> None:
    """The wall at 8 m was behind one at 4 m when the place was observed."""
    near, far = np.full((SIDE, SIDE), 4.0), np.full((SIDE, SIDE), 8.0)
    walk = walk_of([(0, 0, 0, 0, 0)] * 2, wall(), np.stack([near, far]))
    assert covered(walk).tolist() == [0.0]
    walk = walk_of([(0, 0, 0, 0, 0)] * 2, wall(), np.stack([far, near]))
    assert covered(walk).tolist() == [0.0]  # nor was a nearer one, through which one saw the wall


def test_nearer_points_hide_farther_ones_and_leave_no_gaps() -> None:
    """A blue pillar at 2 m before a red wall at 12 m; then the same from 1 m ahead: the pillar is twice as wide, and whole."""
    pillar = np.abs(SLOPES) < 0.25
    frames = np.where(pillar[None, None, :, None], np.array([0, 0, 255]), np.array([255, 0, 0]))
    frames = np.broadcast_to(frames, (1, SIDE, SIDE, 3))
    depth = np.broadcast_to(np.where(pillar, 2.0, 12.0), (1, SIDE, SIDE))
    shown = splat(walk_of([(0, 0, 0, 0, 0), (1, 0, 0, 0, 0)], frames, depth))[0]
    blue = (shown == [0, 0, 255]).all(-1)
    assert blue[:, np.abs(SLOPES) < 0.45].all() and not blue[:, np.abs(SLOPES) > 0.6].any()


def test_the_finest_view_of_a_surface_gives_its_colour() -> None:
    """A wall seen from 8 m in one colour and from 2 m in another."""
    poses = [(0, 0, 0, 0, 0), (6, 0, 0, 0, 0), (6, 0, 0, 0, 0)]
    frames = np.stack([np.full((SIDE, SIDE, 3), c) for c in (10, 200, 0)])
    depth = np.stack([np.full((SIDE, SIDE), d) for d in (8.0, 2.0, 2.0)])
    assert (splat(walk_of(poses, frames, depth, split=2)) == 200).all()


def test_in_the_block_world_a_turn_back_is_known(tmp_path: Path) -> None:
    collect(CollectArgs("Minecraft-v0", "turn-loop", 40, tmp_path, seed=100, depth=True, processes=1), progress=False)
    walk = loopnav.read_loops(list_episodes(tmp_path)[:1], depth=True)[0]
    assert covered(walk).min() > 0.97
    truth = walk.frames[walk.split :]
    copy = np.repeat(walk.frames[walk.split - 1 : walk.split], walk.leg, 0)
    better = judge(splat(walk), truth)["psnr"].mean() - judge(copy, truth)["psnr"].mean()
    assert better > 6
    with pytest.raises(ValueError, match="wmgym collect --depth"):
        covered(replace(walk, depth=None))


# -- rows -------------------------------------------------------------------------------------------------------------------------------


def deep(walk: Walk) -> Walk:
    return replace(walk, depth=np.full(walk.frames.shape[:3], 3.0, np.float32), camera=PLAIN)


def test_the_rows_stand_beside_the_baselines(tmp_path: Path) -> None:
    world, walks = StandInWorld(SIZE), [deep(walk) for walk in loops()]
    cells = cell_files.evaluate(
        {"ABA-5": lambda: walks}, ["none"], lambda mode: world, lambda frames: frames, tmp_path, Settings(), known="none"
    )
    summary = tables.summarise(cells, [COURSE.group], ["none"], WORLDPACK, known="none")
    rows = {row["mode"]: row for row in summary["cells"]}
    assert list(rows) == ["none", "copy", "ceiling", "splatting", "none (true history)"]
    singles = next_frames(world, walks, [100_000_000 + i for i in range(4)], every=1)
    for walk, made, row in zip(walks, singles, cells["ABA-5 none (true history)"]["loops"], strict=True):
        np.testing.assert_allclose(row["steps"]["psnr"], judge(made.frames, walk.frames[walk.split :])["psnr"], atol=1e-3)
    dreamed, from_truth = (cells[f"ABA-5 {mode}"]["loops"] for mode in ("none", history_of("none")))
    assert [row["next"]["psnr"] for row in dreamed] == [row["next"]["psnr"] for row in from_truth]  # of the same noise
    (line,) = summary["covered"]
    shares = [np.mean(covered(walk)) for walk in walks]
    assert line["loops"] == 4 and line["share_seen_before"] == pytest.approx(np.mean(shares), abs=1e-3)
    assert (tmp_path / "cells" / f"ABA-5-{COVERED}.json").is_file() and (tmp_path / "cells" / "ABA-5-none-true-history.png").is_file()
    text = tables.markdown(summary, "", "Weights.")
    assert "Share of the views' pixels" in text and text.endswith("\nWeights.\n")
    assert "covered" not in tables.summarise(cells, [COURSE.group], ["none"], WORLDPACK)


def test_the_command_needs_depth_for_them(tmp_path: Path) -> None:
    for i in range(2):
        plain = episode(4, 3, seed=i)
        save_episode(tmp_path / "plain" / f"{i}.safetensors", plain)
        depth = np.full(plain.frames.shape[:3], 3.0, np.float32)
        save_episode(tmp_path / "deep" / f"{i}.safetensors", replace(plain, meta=replace(plain.meta, depth=PLAIN), depth=depth))
    args = LoopNavArgs(
        tiny_checkpoint(tmp_path), ("ABA",), (5,), ("none",), 2, data=tmp_path / "deep", out=tmp_path / "out", device="cpu", known=True
    )
    report = evaluate(args, progress=False)
    assert [row["mode"] for row in report["cells"]] == ["none", "copy", "ceiling", "splatting", "none (true history)"]
    assert "not recorded" in report["training"] and report["training"] in (tmp_path / "out" / "table.md").read_text()
    with pytest.raises(ValueError, match="has no depth images; record them with `wmgym collect --depth`"):
        evaluate(replace(args, data=tmp_path / "plain", out=tmp_path / "other"), progress=False)
