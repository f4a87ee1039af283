"""LoopNav (Lian et al. 2025): see a place, walk away, dream the way back, and compare the dream with the truth.

    exploration, observed            the way back, dreamed along the true actions
    A --------------> B [--> C]      ------------------------------------------> A

Courses: "ABA" and "ABCA" at a range in blocks, and "turn", a loop that only turns. Each dream is judged frame by frame (PSNR,
SSIM, LPIPS where its weights are present); a loop's score is the mean over its leg, a cell's the mean over loops with a bootstrap
95 % interval. All modes dream the same loops with the same noise, so differences between them are paired. Two baselines: "copy"
repeats the last frame seen, "ceiling" is the autoencoder's own picture of the truth. Besides the free dream, single next frames
are made from true history, and judged where the view moves.

How this differs from the released scripts, which contradict themselves:

* Terminal frames are the last 21, 31, 61, 101 at the paper's 20 frames/s. Our steps are 0.2 s, so they are a quarter, rounded up.
* The walker stands still for 3 s after its arrival. LoopNav's recorder drops idle ticks, so those frames are not judged here.
* PSNR of equal frames is infinite; it counts as 60 dB (`metrics.image.BEST_PSNR`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wmgym.benchmarks.rollout import Dream, Loop, dream_legs, loop_of, next_frames, steps_made
from wmgym.core import World
from wmgym.data.episode import RETURN, Header, list_episodes, load_episode, read_header
from wmgym.files import write_atomically
from wmgym.metrics import image

TASKS = ("turn", "ABA", "ABCA")
RANGES = (5, 15, 30, 50)  # blocks
BASELINES = ("copy", "ceiling")
VIEWS = "views"  # the cell that tells how near each view of a leg had been seen
TERMINAL = {5: 21, 15: 31, 30: 61, 50: 101}  # frames at the end of the leg, at PAPER_RATE
PAPER_RATE, RATE = 20, 5  # frames per second: LoopNav's, ours
COLUMNS = 10  # frames of a strip
_MOVED = 0.02  # blocks or radians: below it the view stands still
_ALIKE = math.radians(30)

Progress = Callable[[str, int, int], None]  # what is under way, frames done, frames in all


# -- courses and loops ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Course:
    """A task at a range."""

    task: str
    range: int | None  # blocks; None for "turn"

    @property
    def name(self) -> str:
        return self.task if self.range is None else f"{self.task}-{self.range}"

    @property
    def walker(self) -> str:
        """Who walks it, by the name in an episode's metadata."""
        return "turn-loop" if self.task == "turn" else f"loop-{self.name}"

    @property
    def terminal(self) -> int | None:
        """How many frames at the end of the leg are also judged apart."""
        return None if self.range not in TERMINAL else math.ceil(TERMINAL[self.range] * RATE / PAPER_RATE)


def courses(tasks: Sequence[str] = TASKS, ranges: Sequence[int] = RANGES) -> tuple[Course, ...]:
    """Every task at every range; "turn" has none."""
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    for reach in ranges:
        if reach not in RANGES:
            raise ValueError(f"range must be one of {', '.join(map(str, RANGES))}, got {reach}")
    pairs = [(task, reach) for task in tasks for reach in ((None,) if task == "turn" else ranges)]
    return tuple(Course(task, reach) for task, reach in dict.fromkeys(pairs))


def find_loops(folder: Path, wanted: Sequence[Course], count: int) -> dict[Course, list[Path]]:
    """The first `count` whole loops of each course in a folder of episodes and its subfolders; ValueError if there are fewer."""
    by_walker: dict[str, list[Path]] = {}
    for path in episodes_below(folder):
        header = read_header(path)
        if _is_loop(header):
            by_walker.setdefault(header.meta.walker, []).append(path)
    found = {course: by_walker.get(course.walker, [])[:count] for course in wanted}
    for course, paths in found.items():
        if len(paths) < count:
            collect = f"`wmgym collect Minecraft-v0 --walker {course.walker} --seed 100 --out {folder}/{course.walker}`"
            raise ValueError(f"{folder} holds {len(paths)} loops of {course.name}, {count} are asked for; collect more with {collect}")
    return found


def episodes_below(folder: Path) -> list[Path]:
    """The episodes of a folder and of its subfolders; ValueError if there are none."""
    folders = [f for f in (folder, *sorted(p for p in folder.glob("*") if p.is_dir())) if next(f.glob("*.safetensors"), None)]
    return [path for f in folders or [folder] for path in list_episodes(f)]


def _is_loop(header: Header) -> bool:
    return header.meta.outcome == "done" and any(s.name == RETURN and s.first > 0 for s in header.meta.segments)


def read_loops(paths: Iterable[Path]) -> list[Loop]:
    return [loop_of(load_episode(path)) for path in paths]


# -- judging ----------------------------------------------------------------------------------------------------------------------------


def judge(frames: np.ndarray, truth: np.ndarray, with_lpips: bool = False) -> dict[str, np.ndarray]:
    """Metric -> value of each frame."""
    return image.judge(frames, truth, ("psnr", "ssim", *(["lpips"] if with_lpips else [])))


def drift(dream: Dream, loop: Loop) -> np.ndarray:
    """How far the dreamed pose is from the true one, in blocks, at each step: [L]."""
    return np.linalg.norm(dream.poses[:, :3] - loop.poses[loop.split :, :3], axis=-1)


def moved(loop: Loop) -> np.ndarray:
    """Frames of the leg before which one moved or turned: bool [L]."""
    before, after = loop.poses[loop.split - 1 : -1], loop.poses[loop.split :]
    turn = (after[:, 3:] - before[:, 3:] + np.pi) % (2 * np.pi) - np.pi
    return np.linalg.norm(np.concatenate([after[:, :3] - before[:, :3], turn], 1), axis=-1) > _MOVED


def nearest_views(loop: Loop) -> np.ndarray:
    """Blocks (horizontally) from each place of the leg to the nearest from which one had looked that way, within 30 degrees: [L].

    What lies in that direction can be remembered if this is small. 1,000 where nobody had looked that way.
    """
    seen, leg = loop.poses[: loop.split], loop.poses[loop.split :]
    away = np.linalg.norm(leg[:, None, :2] - seen[None, :, :2], axis=-1)
    turn = (leg[:, None, 3] - seen[None, :, 3] + np.pi) % (2 * np.pi) - np.pi
    return np.where(np.abs(turn) < _ALIKE, away, 1000.0).min(1)


# -- cells: a mode on a course ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What decides a cell's numbers besides the world."""

    seed: int = 100  # of the noise
    lanes: int = 32
    with_lpips: bool = False
    more: Callable[[np.ndarray, Loop], dict[str, np.ndarray]] = lambda shown, loop: {}  # further scores of a leg's frames, each [L]


def world_cell(
    world: World, course: Course, mode: str, loops: Sequence[Loop], settings: Settings, progress: Progress = lambda *_: None
) -> tuple[dict[str, Any], list[Dream]]:
    """Dream and judge all loops of a course with one world."""
    seeds = [settings.seed * 1_000_000 + i for i in range(len(loops))]
    total = sum(loop.leg for loop in loops) + sum(len(steps_made(loop)) for loop in loops)
    done = 0

    def tick(n: int) -> None:
        nonlocal done
        done += n
        progress(f"{course.name} {mode}", min(done, total), total)

    dreams = dream_legs(world, loops, seeds, settings.lanes, tick)
    singles = next_frames(world, loops, seeds, settings.lanes, tick=tick)
    rows = []
    for loop, dream, single in zip(loops, dreams, singles, strict=True):
        truth = loop.frames[loop.split :]
        scores = judge(dream.frames, truth, settings.with_lpips) | settings.more(dream.frames, loop) | {"drift": drift(dream, loop)}
        one = judge(single.frames, truth[single.steps], settings.with_lpips)
        rows.append(_row(loop, scores, {**one, "moved": moved(loop)[single.steps]}))
    return _cell(course, mode, rows), dreams


def baseline_cell(
    course: Course, mode: str, loops: Sequence[Loop], settings: Settings, reconstruct: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    """The same numbers for "copy" (the last frame seen) or "ceiling" (`reconstruct`: uint8 frames through the autoencoder and back)."""
    rows = []
    for loop in loops:
        truth, steps = loop.frames[loop.split :], steps_made(loop)
        if mode == "copy":
            shown = np.repeat(loop.frames[loop.split - 1 : loop.split], loop.leg, 0)
            one = judge(loop.frames[loop.split - 1 + steps], truth[steps], settings.with_lpips)
            scores = judge(shown, truth, settings.with_lpips)
        else:
            shown = reconstruct(truth)
            scores = judge(shown, truth, settings.with_lpips)
            one = {name: value[steps] for name, value in scores.items()}
        scores |= settings.more(shown, loop)
        rows.append(_row(loop, scores, {**one, "moved": moved(loop)[steps]}))
    return _cell(course, mode, rows)


def _cell(course: Course, mode: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"course": course.name, "mode": mode, "loops": rows}


def _row(loop: Loop, scores: Mapping[str, np.ndarray], single: Mapping[str, np.ndarray]) -> dict[str, Any]:
    def plain(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {name: [round(float(v), 4) for v in value] for name, value in values.items()}

    return {"world": loop.seed, "explored": loop.split, "leg": loop.leg, "steps": plain(scores), "next": plain(single)}


# -- all cells, kept on the disk --------------------------------------------------------------------------------------------------------


def evaluate(
    wanted: Sequence[Course],
    modes: Sequence[str],
    loops_of: Callable[[Course], Sequence[Loop]],
    world_of: Callable[[str], World],
    reconstruct: Callable[[np.ndarray], np.ndarray],
    out: Path,
    settings: Settings,
    progress: Progress = lambda *_: None,
) -> dict[str, dict[str, Any]]:
    """Name -> cell, for each course and mode, both baselines, and how near such views were seen (`VIEWS`).

    Finished cells lie in `out` and are not made again.
    """
    cells: dict[str, dict[str, Any]] = {}
    for course in wanted:
        loops: Sequence[Loop] | None = None
        for mode in (*BASELINES, *modes):
            file = cell_file(out, course, mode)
            cell = _read_cell(file)
            if cell is None:
                loops = loops or loops_of(course)
                if mode in BASELINES:
                    cell = baseline_cell(course, mode, loops, settings, reconstruct)
                    write_strip(strip_file(out, course, "truth"), loops[0].frames[loops[0].split :])
                else:
                    cell, dreams = world_cell(world_of(mode), course, mode, loops, settings, progress)
                    write_strip(strip_file(out, course, mode), dreams[0].frames)
                write_atomically(file, json.dumps(cell).encode())
            cells[f"{course.name} {mode}"] = cell
        file = cell_file(out, course, VIEWS)
        cell = _read_cell(file)
        if cell is None:
            loops = loops or loops_of(course)
            cell = {"course": course.name, "mode": VIEWS, "loops": [{"nearest": nearest_views(loop).round(3).tolist()} for loop in loops]}
            write_atomically(file, json.dumps(cell).encode())
        cells[f"{course.name} {VIEWS}"] = cell
    return cells


def cell_file(out: Path, course: Course, mode: str) -> Path:
    return out / "cells" / f"{course.name}-{mode}.json"


def strip_file(out: Path, course: Course, row: str) -> Path:
    return out / "cells" / f"{course.name}-{row}.png"


def _read_cell(file: Path) -> dict[str, Any] | None:
    """A finished cell; a damaged file is made again."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def write_strip(file: Path, frames: np.ndarray, columns: int = COLUMNS) -> None:
    """Frames of a leg, evenly spaced, side by side."""
    import cv2

    row = np.concatenate(list(frames[strip_steps(len(frames), columns)]), 1)
    done, png = cv2.imencode(".png", np.ascontiguousarray(row[..., ::-1]))
    assert done
    write_atomically(file, png.tobytes())


def strip_steps(leg: int, columns: int = COLUMNS) -> np.ndarray:
    """Which frames of a leg a strip shows."""
    return np.linspace(0, leg - 1, columns).round().astype(int)
