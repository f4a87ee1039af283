"""The protocol, on worlds whose answers are known: one that dreams the truth, and one with noise and memory that is exact in each lane."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from standins import StandInWorld, draw, to_pixels
from tiny import tiny_checkpoint
from torch import Tensor

from wmgym import systems
from wmgym.benchmarks import cells as cell_files
from wmgym.benchmarks import loopnav, tables
from wmgym.benchmarks.cells import BASELINES, VIEWS, Settings
from wmgym.benchmarks.loopnav import PREFACE, Course, loop_of
from wmgym.benchmarks.rollout import Dream, Walk, dream_legs, next_frames
from wmgym.cli import plain
from wmgym.core import Frames, WorldState
from wmgym.data.episode import Episode, Metadata, Segment, save_episode
from wmgym.experiments.loopnav import LoopNavArgs, evaluate
from wmgym.files import as_json
from wmgym.geometry import compose
from wmgym.metrics.image import BEST_PSNR
from wmgym.settings import minecraft

SIZE = 16
COURSE = Course("ABA", 5)
WORLDPACK = systems.get("worldpack")


class Oracle(StandInWorld):
    """Dreams what the truth shows."""

    def step(self, state: WorldState, actions: Tensor) -> tuple[WorldState, Frames]:
        state, shown = super().step(state, actions)
        return state, replace(shown, pixels=to_pixels(draw(shown.poses, SIZE)))


def episode(out: int, back: int, seed: int = 0, wait: int = 3) -> Episode:
    """Walk and turn for `out` steps, undo it for `back`, stand still for `wait`: frames are a plain function of the pose."""
    rng = np.random.default_rng(seed)
    actions = np.concatenate([[0], rng.choice([1, 3, 6], out), rng.choice([2, 4, 7], back), np.zeros(wait, int)])
    pose = torch.tensor([[*rng.uniform(-2, 2, 2), 0, 0.3, 0]], dtype=torch.float32)
    poses = []
    for action in actions:
        pose = compose(pose, minecraft.SETTING.kinematics.motion(torch.tensor([action])))
        poses.append(pose)
    path = torch.cat(poses)
    none = np.zeros(len(actions))
    segments = (Segment("look", 0), Segment("return", out + 1), *([Segment("end", out + 1 + back)] if wait else []))
    meta = Metadata("Fake-v0", seed, "loop-ABA-5", segments=segments)
    frames = to_pixels(draw(path, SIZE)).numpy()
    return Episode(frames, actions, path.numpy(), none.astype(np.float32), none > 0, none > 0, meta)


def loops(count: int = 4) -> list[Walk]:
    return [loop_of(episode(4 + 3 * i, 9 - 2 * i, seed=i)) for i in range(count)]


def same(a: Dream, b: Dream) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("frames", "poses", "retrieved"))


# -- courses and loops --


def test_terminal_frames_are_a_quarter_of_the_papers_rounded_up() -> None:
    assert [course.terminal for course in loopnav.courses(("ABA",))] == [6, 8, 16, 26]
    assert Course("turn", None).terminal is None


def test_courses_are_tasks_times_ranges() -> None:
    names = [course.name for course in loopnav.courses(("turn", "ABCA"), (5, 30))]
    assert names == ["turn", "ABCA-5", "ABCA-30"]
    for tasks, ranges in ((("ABBA",), (5,)), (("ABA",), (7,))):
        with pytest.raises(ValueError, match=r"ABBA|7"):
            loopnav.courses(tasks, ranges)


def test_a_loop_is_cut_where_the_way_back_begins_and_where_it_ends() -> None:
    walk = episode(out=5, back=3, wait=4)
    loop = loop_of(walk)
    assert (loop.split, loop.leg, len(walk)) == (6, 3, 13)
    assert loop_of(episode(out=5, back=3, wait=0)).leg == 3
    with pytest.raises(ValueError, match="is no loop"):
        loop_of(replace(walk, meta=replace(walk.meta, segments=(Segment("explore", 0),))))


def test_loops_are_found_by_walker_in_a_folder_and_below(tmp_path: Path) -> None:
    save_episode(tmp_path / "a.safetensors", episode(4, 3))
    save_episode(tmp_path / "more" / "b.safetensors", episode(4, 5, seed=1))
    failed = episode(4, 3)
    save_episode(tmp_path / "c.safetensors", replace(failed, meta=replace(failed.meta, outcome="aborted: stuck")))
    found = loopnav.find_loops(tmp_path, [COURSE], 2)[COURSE]
    assert [loop.leg for loop in loopnav.read_loops(found)] == [3, 5]
    with pytest.raises(ValueError, match="2 loops of ABA-5, 3 are asked for"):
        loopnav.find_loops(tmp_path, [COURSE], 3)


# -- dreaming --


@pytest.mark.parametrize("chunk", [1, 2])
def test_lanes_and_single_loops_agree(chunk: int) -> None:
    world = StandInWorld(SIZE, chunk)
    walks, seeds = loops(), [10, 11, 12, 13]
    alone = [dream_legs(world, [loop], [seed])[0] for loop, seed in zip(walks, seeds, strict=True)]
    assert [len(dream.frames) for dream in alone] == [loop.leg for loop in walks]
    for lanes in (2, 3, 32):
        assert all(map(same, dream_legs(world, walks, seeds, lanes), alone))
    assert not same(dream_legs(world, walks[:1], [99])[0], alone[0])


def test_lanes_share_a_forward() -> None:
    world = StandInWorld(SIZE)
    dream_legs(world, loops(), [0] * 4)
    assert world.steps == max(loop.leg for loop in loops())


def test_blocks_are_dreamed_from_true_history() -> None:
    """Each block of a stream is the start of a dream whose opening is all that came before it; without noise, frame for frame."""
    world = StandInWorld(SIZE, noise=0)
    walks, block = loops(), 3
    streamed = dream_legs(world, walks, [0] * 4, block=block)
    for walk, dream in zip(walks, streamed, strict=True):
        assert len(dream.frames) == len(dream.poses) == len(dream.retrieved) == walk.leg
        for begin in range(0, walk.leg, block):
            begun = replace(walk, split=walk.split + begin)
            fresh = dream_legs(world, [begun], [0])[0]
            assert np.array_equal(dream.frames[begin : begin + block], fresh.frames[:block])


def test_next_frames_are_made_from_true_history() -> None:
    """Each agrees with a dream that begins right there, for a world whose frame depends on noise and all that was seen."""
    world, walks = StandInWorld(SIZE, noise=0), loops()
    singles = next_frames(world, walks, [0] * 4, every=2)
    for loop, single in zip(walks, singles, strict=True):
        assert single.steps.tolist() == list(range(0, loop.leg, 2))
        for step, frame in zip(single.steps, single.frames, strict=True):
            begun = replace(loop, split=loop.split + int(step))
            assert np.array_equal(dream_legs(world, [begun], [0])[0].frames[0], frame)


# -- judging --


def cells_of(world: StandInWorld) -> dict[str, dict[str, Any]]:
    cells = {"worldpack": cell_files.world_cell(world, COURSE.name, "worldpack", loops(), Settings())[0]}
    for mode in BASELINES:
        cells[mode] = cell_files.baseline_cell(COURSE.name, mode, loops(), Settings(), lambda frames: frames)
    return {f"{COURSE.name} {mode}": cell for mode, cell in cells.items()}


def test_the_truth_scores_best_on_the_whole_leg() -> None:
    cells = cells_of(Oracle(SIZE))
    for mode in ("worldpack", "ceiling"):
        for row in cells[f"ABA-5 {mode}"]["loops"]:
            assert row["steps"]["psnr"] == [BEST_PSNR] * row["leg"]
            assert row["steps"]["ssim"] == pytest.approx([1] * row["leg"])
            assert set(row["next"]["psnr"]) == {BEST_PSNR}
    for row in cells["ABA-5 worldpack"]["loops"]:
        assert row["steps"]["drift"] == pytest.approx([0] * row["leg"], abs=1e-5)
    table = tables.summarise(cells, [COURSE.group], ["worldpack"], WORLDPACK)
    top = next(row for row in table["cells"] if row["mode"] == "worldpack")
    assert (top["psnr"], top["psnr_low"], top["terminal_psnr"], top["loops"], top["terminal_frames"]) == (60, 60, 60, 4, 6)


def test_copying_is_its_closed_form() -> None:
    for loop, row in zip(loops(), cells_of(Oracle(SIZE))["ABA-5 copy"]["loops"], strict=True):
        frames = loop.frames.astype(np.float64)
        held = 10 * np.log10(255**2 / np.square(frames[loop.split :] - frames[loop.split - 1]).mean((1, 2, 3)))
        assert row["steps"]["psnr"] == pytest.approx(np.minimum(held, BEST_PSNR), abs=1e-3)
        with np.errstate(divide="ignore"):
            before = 10 * np.log10(255**2 / np.square(frames[loop.split :] - frames[loop.split - 1 : -1]).mean((1, 2, 3)))
        assert row["next"]["psnr"] == pytest.approx(np.minimum(before, BEST_PSNR)[::4], abs=1e-3)


def test_drift_is_how_far_the_dreamed_path_ends_from_the_true_one() -> None:
    loop = loops()[0]
    poses = loop.poses[loop.split :].copy()
    poses[-1, :2] += [3, 4]
    assert cell_files.drift(Dream(loop.frames, poses, np.zeros((1, 0))), loop)[-1] == pytest.approx(5)


def test_standing_still_is_told_from_moving() -> None:
    loop = loops()[0]
    poses = np.zeros((4, 5), np.float32)
    poses[2:, 3] = 3.1
    poses[3, 3] = -3.1  # a small turn across the cut at pi
    assert cell_files.moved(replace(loop, frames=loop.frames[:4], poses=poses, split=1)).tolist() == [False, True, True]
    poses[3, 3] = 3.1 + 1e-4 - 2 * np.pi
    assert cell_files.moved(replace(loop, frames=loop.frames[:4], poses=poses, split=1)).tolist() == [False, True, False]


def test_the_nearest_view_is_near_and_looks_that_way() -> None:
    loop = loops()[0]
    poses = np.zeros((5, 5), np.float32)
    poses[0, 0], poses[1, 1], poses[1, 3] = 3, 1, 3.1  # seen: 3 blocks ahead looking ahead, 1 block to the left looking back
    poses[3, 3], poses[4, 3] = -3.1, 1.5  # the leg: ahead, back across the cut at pi, to the left
    here = replace(loop, frames=loop.frames[:5], poses=poses, split=2)
    assert cell_files.nearest_views(here).tolist() == [3, 1, 1000]


def test_gains_are_told_by_how_near_a_view_had_been_seen() -> None:
    course = Course("ABA", 5)
    values = {"none": [[10, 10], [10, 10]], "worldpack": [[14, 11], [16, 10]], "copy": [[9, 9], [9, 9]], "ceiling": [[30, 30], [30, 30]]}
    cells: dict[str, Any] = {f"{course.name} {VIEWS}": {"loops": [{"nearest": [1, 20]}, {"nearest": [0, 4]}]}}
    for mode, legs in values.items():
        rows = [{"leg": 2, "steps": {"psnr": leg, "drift": [0, 0]}, "next": {"psnr": leg, "moved": [1, 1]}} for leg in legs]
        cells[f"{course.name} {mode}"] = {"loops": rows}
    found = tables.summarise(cells, [course.group], ["none", "worldpack"], WORLDPACK)["views"]
    gains = {line["blocks_away"]: (line["share_of_frames"], line["loops"], line["worldpack_minus_none_psnr"]) for line in found}
    assert gains == {"0 to 1.5": ("50%", 2, 5.0), "3 to 6": ("25%", 1, 0.0), "10 or more": ("25%", 1, 1.0)}


def test_means_are_over_the_leg_and_then_over_loops() -> None:
    rows = [{"steps": {"psnr": [10, 20]}}, {"steps": {"psnr": [30, 30, 30, 50]}}]
    assert tables.leg_means(rows, "psnr") == [15, 35]
    assert tables.leg_means(rows, "psnr", 1) == [20, 50]
    assert tables.curve(rows, "psnr", share=1).tolist() == [20, 25]
    assert tables.curve(rows, "psnr").tolist() == [20, 25, 30, 50]


# -- sharpness and features --


def bright(frames: np.ndarray) -> np.ndarray:
    """Features of frames: their mean colour, and a constant."""
    return np.concatenate([frames.mean((1, 2)), np.full((len(frames), 1), 100.0)], 1)


def test_sharpness_is_the_ratio_of_mean_gradient_energies() -> None:
    walks, settings = loops(), Settings(encode=bright)

    def faded(frames: np.ndarray) -> np.ndarray:
        return ((frames.astype(int) + 127) // 2).astype(np.uint8)

    cells = {f"ABA-5 {mode}": cell_files.baseline_cell("ABA-5", mode, walks, settings, faded) for mode in BASELINES}
    found = {row["mode"]: row for row in tables.summarise(cells, [COURSE.group], [], WORLDPACK)["cells"]}
    assert found["ceiling"]["sharpness"] == pytest.approx(0.25, rel=0.05), "half the contrast"
    assert 0 < found["ceiling"]["feature_distance"] < found["copy"]["feature_distance"]
    for row, walk in zip(cells["ABA-5 copy"]["loops"], walks, strict=True):
        held, truth = walk.frames[walk.split - 1].astype(float), walk.frames[walk.split :].astype(float)
        energy, true = (sum(np.square(np.diff(x, axis=a)).mean() for a in (-3, -2)) for x in (held, truth))
        assert tables.leg_means([row], "sharpness") == pytest.approx([energy / true], rel=1e-3)
        a, b = bright(walk.frames[walk.split - 1 : walk.split]), bright(walk.frames[walk.split :])
        distance = 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert row["steps"]["feature_distance"] == pytest.approx(distance, abs=1e-4)


def test_equal_frames_are_as_sharp_and_have_the_same_features() -> None:
    cell = cell_files.baseline_cell("ABA-5", "ceiling", loops(), Settings(encode=bright), lambda frames: frames)
    assert tables.leg_means(cell["loops"], "sharpness") == [1] * 4
    assert tables.leg_means(cell["loops"], "feature_distance") == pytest.approx([0] * 4, abs=1e-6)


def test_a_flat_truth_has_no_sharpness_and_older_cells_have_no_column() -> None:
    rows = [{"steps": {"gradient": [3.0], "true_gradient": [0.0]}}]
    assert np.isnan(tables.leg_means(rows, "sharpness")).all()
    cells = cells_of(Oracle(SIZE))
    del cells["ABA-5 copy"]["loops"][0]["steps"]["gradient"]
    table = tables.summarise(cells, [COURSE.group], ["worldpack"], WORLDPACK)
    assert "psnr" in table["cells"][0] and not {"sharpness", "feature_distance"} & table["cells"][0].keys()


# -- the mean of several dreams --


def test_the_mean_of_dreams_is_judged_beside_one(tmp_path: Path) -> None:
    world, walks = StandInWorld(SIZE), loops()
    cells = cell_files.evaluate({"ABA-5": loops}, ["none"], lambda mode: world, lambda frames: frames, tmp_path, Settings(), dreams=3)
    assert cells["ABA-5 none"] == run(tmp_path / "one", {"none": StandInWorld(SIZE)})["ABA-5 none"]
    many = cells["ABA-5 none (mean of 3)"]
    assert (tmp_path / "cells" / "ABA-5-none-mean-of-3.json").is_file() and (tmp_path / "cells" / "ABA-5-none-mean-of-3.png").is_file()
    seeds = [[100_000_000 + k * 100_000 + i for i in range(4)] for k in range(3)]
    dreams = [dream_legs(world, walks, each) for each in seeds]
    for i, (walk, row) in enumerate(zip(walks, many["loops"], strict=True)):
        mean = np.mean([each[i].frames for each in dreams], 0).round().astype(np.uint8)
        error = np.square(mean.astype(float) - walk.frames[walk.split :]).mean((1, 2, 3))
        assert row["steps"]["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
    summary = tables.summarise(cells, [COURSE.group], ["none"], WORLDPACK, dreams=3)
    found = {row["mode"]: row for row in summary["cells"]}
    assert list(found) == ["none", "none (mean of 3)", "copy", "ceiling"]
    assert found["none (mean of 3)"]["psnr"] > found["none"]["psnr"] and "drift" in found["none (mean of 3)"]
    assert [row["mode"] for row in summary["next_frame"]] == list(found)


def test_the_command_judges_the_mean_and_refuses_older_folders(tmp_path: Path) -> None:
    for i in range(2):
        save_episode(tmp_path / "data" / f"{i}.safetensors", episode(4, 3, seed=i))
    args = LoopNavArgs(
        tiny_checkpoint(tmp_path), ("ABA",), (5,), ("none",), loops=2, data=tmp_path / "data", out=tmp_path / "out", device="cpu"
    )
    one = evaluate(args, progress=False)
    assert [row["mode"] for row in one["cells"]] == ["none", "copy", "ceiling"]
    two = evaluate(replace(args, dreams=2), progress=False)
    assert [row["mode"] for row in two["cells"]] == ["none", "none (mean of 2)", "copy", "ceiling"]
    assert two["cells"][0] == one["cells"][0] and {"sharpness", "feature_distance"} <= two["cells"][0].keys()
    assert "none (mean of 2)" in (tmp_path / "out" / "table.md").read_text()
    file = tmp_path / "out" / "args.json"
    older = {key: value for key, value in json.loads(file.read_text()).items() if key not in ("measures", "options", "dreams")}
    file.write_text(json.dumps(older))
    with pytest.raises(ValueError, match=r"was begun with measures=\['psnr', 'ssim'\], not \[.*'feature_distance'\]; use another folder"):
        evaluate(args, progress=False)
    with pytest.raises(ValueError, match="dreams must be positive, got 0"):
        replace(args, dreams=0)


# -- the folder --


def run(out: Path, worlds: dict[str, StandInWorld]) -> dict[str, dict[str, Any]]:
    return cell_files.evaluate({COURSE.name: loops}, list(worlds), worlds.__getitem__, lambda frames: frames, out, Settings())


def test_a_killed_run_keeps_its_cells(tmp_path: Path) -> None:
    first = run(tmp_path, {"none": StandInWorld(SIZE)})
    fresh = StandInWorld(SIZE)
    both = run(tmp_path, {"none": fresh, "worldpack": Oracle(SIZE)})
    assert fresh.steps == 0 and both["ABA-5 none"] == first["ABA-5 none"]
    file = cell_files.cell_file(tmp_path, COURSE.name, "none")
    file.write_text(file.read_text()[:-5])  # cut short
    assert run(tmp_path, {"none": fresh}) == first and fresh.steps > 0
    assert json.loads(file.read_text()) == first["ABA-5 none"]


def test_pairs_are_compared_loop_by_loop(tmp_path: Path) -> None:
    cells = run(tmp_path, {"none": StandInWorld(SIZE), "worldpack": Oracle(SIZE)})
    summary = tables.summarise(cells, [COURSE.group], ["none", "worldpack"], WORLDPACK)
    (line,) = summary["differences"]
    worse = tables.leg_means(cells["ABA-5 none"]["loops"], "psnr")
    assert line["difference"] == "worldpack - none"
    assert line["psnr"] == pytest.approx(60 - np.mean(worse)) and 0 < line["psnr_low"] <= line["psnr"] <= line["psnr_high"]
    text = tables.markdown(summary, PREFACE)
    assert "worldpack - none" in text and "60.00 [60.00, 60.00]" in text
    assert json.loads(as_json(plain({"x": [float("nan")]}))) == {"x": [None]}


def test_strips_show_the_leg(tmp_path: Path) -> None:
    import cv2

    run(tmp_path, {"worldpack": Oracle(SIZE)})
    truth, dream = (cv2.imread(str(cell_files.strip_file(tmp_path, COURSE.name, row)))[..., ::-1] for row in ("truth", "worldpack"))
    loop = loops()[0]
    assert np.array_equal(truth, dream) and truth.shape == (SIZE, 10 * SIZE, 3)
    assert np.array_equal(truth[:, -SIZE:], loop.frames[-1]) and np.array_equal(truth[:, :SIZE], loop.frames[loop.split])
