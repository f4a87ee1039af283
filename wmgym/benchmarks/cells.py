"""Cells: one memory on one group of walks, dreamed, judged frame by frame, and stored in one file.

    cells/NAME-MODE.json     a cell: NAME is the group's, MODE a memory or a baseline
    cells/NAME-views.json    how near each view of a leg had been observed
    cells/NAME-ROW.png       a strip of the group's first leg: the truth, and each memory's dream

All memories dream the same walks with the same noise, so differences between them are paired. There are two baselines: "copy" repeats
the last observed frame, and "ceiling" is the autoencoder's reconstruction of the truth, the best that its latents can show. Besides the
dreamed leg, a cell scores single next frames that are made from true history.

A cell's file appears whole or not at all, so a killed run resumes with the cell that it was making.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from wmgym.benchmarks.rollout import Dream, Walk, dream_legs, next_frames, steps_made
from wmgym.core import World
from wmgym.files import kept, write_png
from wmgym.geometry import wrap_angle
from wmgym.metrics import image

BASELINES = ("copy", "ceiling")
VIEWS = "views"  # the mode of the cell that says how near each view of a leg had been observed
COLUMNS = 10  # frames of a strip
_MOVED = 0.02  # blocks or radians: below this the view counts as standing still
_ALIKE = math.radians(30)  # two views that differ by less look the same way

Progress = Callable[[str, int, int], None]  # what is being made, frames done, frames in all
Reconstruct = Callable[[np.ndarray], np.ndarray]  # uint8 frames [N, H, W, 3] through the autoencoder and back


# -- scores of one walk -----------------------------------------------------------------------------------------------------------------


def judge(frames: np.ndarray, truth: np.ndarray, with_lpips: bool = False) -> dict[str, np.ndarray]:
    """PSNR (equal frames count as `metrics.image.BEST_PSNR`), SSIM and optionally LPIPS of each frame: metric -> [N]."""
    return image.judge(frames, truth, ("psnr", "ssim", *(["lpips"] if with_lpips else [])))


def drift(dream: Dream, walk: Walk) -> np.ndarray:
    """Distance between the dreamed and the true position, in blocks, at each step of the leg: [L]."""
    return np.linalg.norm(dream.poses[:, :3] - walk.poses[walk.split :, :3], axis=-1)


def moved(walk: Walk) -> np.ndarray:
    """Whether the view moved or turned between the previous frame and each frame of the leg: bool [L]."""
    before, after = walk.poses[walk.split - 1 : -1], walk.poses[walk.split :]
    motion = np.concatenate([after[:, :3] - before[:, :3], wrap_angle(after[:, 3:] - before[:, 3:])], 1)
    return np.linalg.norm(motion, axis=-1) > _MOVED


def nearest_views(walk: Walk) -> np.ndarray:
    """Horizontal distance in blocks from each pose of the leg to the nearest observed pose that looked the same way (within 30 degrees).

    Where it is small, a memory can know what the frame shows. 1,000 where no observed pose looked that way. Shape [L].
    """
    seen, leg = walk.poses[: walk.split], walk.poses[walk.split :]
    away = np.linalg.norm(leg[:, None, :2] - seen[None, :, :2], axis=-1)
    turn = wrap_angle(leg[:, None, 3] - seen[None, :, 3])
    return np.where(np.abs(turn) < _ALIKE, away, 1000.0).min(1)


# -- one cell ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What decides a cell's numbers besides the world and the walks."""

    seed: int = 100  # of the noise
    lanes: int = 32
    with_lpips: bool = False
    more: Callable[[np.ndarray, Walk], dict[str, np.ndarray]] = lambda shown, walk: {}  # further scores of a leg's frames, [L] each


def world_cell(
    world: World, name: str, mode: str, walks: Sequence[Walk], settings: Settings, progress: Progress = lambda *_: None
) -> tuple[dict[str, Any], list[Dream]]:
    """Dream and judge all walks of a group with one world."""
    seeds = [settings.seed * 1_000_000 + i for i in range(len(walks))]
    total = sum(walk.leg for walk in walks) + sum(len(steps_made(walk)) for walk in walks)
    done = 0

    def tick(frames: int) -> None:
        nonlocal done
        done += frames
        progress(f"{name} {mode}", min(done, total), total)

    dreams = dream_legs(world, walks, seeds, settings.lanes, tick)
    singles = next_frames(world, walks, seeds, settings.lanes, tick=tick)
    rows = []
    for walk, dream, single in zip(walks, dreams, singles, strict=True):
        truth = walk.frames[walk.split :]
        scores = judge(dream.frames, truth, settings.with_lpips) | settings.more(dream.frames, walk) | {"drift": drift(dream, walk)}
        one = judge(single.frames, truth[single.steps], settings.with_lpips)
        rows.append(_row(walk, scores, {**one, "moved": moved(walk)[single.steps]}))
    return _cell(name, mode, rows), dreams


def baseline_cell(name: str, mode: str, walks: Sequence[Walk], settings: Settings, reconstruct: Reconstruct) -> dict[str, Any]:
    """The same scores for the baseline "copy" or "ceiling"."""
    rows = []
    for walk in walks:
        truth, steps = walk.frames[walk.split :], steps_made(walk)
        if mode == "copy":
            shown = np.repeat(walk.frames[walk.split - 1 : walk.split], walk.leg, 0)
            one = judge(walk.frames[walk.split - 1 + steps], truth[steps], settings.with_lpips)
            scores = judge(shown, truth, settings.with_lpips)
        else:
            shown = reconstruct(truth)
            scores = judge(shown, truth, settings.with_lpips)
            one = {metric: value[steps] for metric, value in scores.items()}
        scores |= settings.more(shown, walk)
        rows.append(_row(walk, scores, {**one, "moved": moved(walk)[steps]}))
    return _cell(name, mode, rows)


def _cell(name: str, mode: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"course": name, "mode": mode, "loops": rows}


def _row(walk: Walk, scores: Mapping[str, np.ndarray], single: Mapping[str, np.ndarray]) -> dict[str, Any]:
    def plain(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {name: [round(float(v), 4) for v in value] for name, value in values.items()}

    return {"world": walk.seed, "explored": walk.split, "leg": walk.leg, "steps": plain(scores), "next": plain(single)}


# -- all cells, stored on disk ----------------------------------------------------------------------------------------------------------


def evaluate(
    groups: Mapping[str, Callable[[], Sequence[Walk]]],
    modes: Sequence[str],
    world_of: Callable[[str], World],
    reconstruct: Reconstruct,
    out: Path,
    settings: Settings,
    progress: Progress = lambda *_: None,
) -> dict[str, dict[str, Any]]:
    """The cells by "NAME MODE", for each group of walks, with each memory, both baselines and `VIEWS`.

    groups: name -> a function that returns the walks. It is called only if a cell of the group is missing; finished cells are read.
    """

    def make(name: str, mode: str, walks_of: Callable[[], Sequence[Walk]]) -> dict[str, Any]:
        walks = walks_of()
        if mode == VIEWS:
            return _cell(name, mode, [{"nearest": nearest_views(walk).round(3).tolist()} for walk in walks])
        if mode in BASELINES:
            write_strip(strip_file(out, name, "truth"), walks[0].frames[walks[0].split :])
            return baseline_cell(name, mode, walks, settings, reconstruct)
        cell, dreams = world_cell(world_of(mode), name, mode, walks, settings, progress)
        write_strip(strip_file(out, name, mode), dreams[0].frames)
        return cell

    cells: dict[str, dict[str, Any]] = {}
    for name, read in groups.items():
        walks_of = cache(read)
        for mode in (*BASELINES, *modes, VIEWS):
            cells[f"{name} {mode}"] = kept(cell_file(out, name, mode), partial(make, name, mode, walks_of))
    return cells


def cell_file(out: Path, name: str, mode: str) -> Path:
    return out / "cells" / f"{name}-{mode}.json"


def strip_file(out: Path, name: str, row: str) -> Path:
    return out / "cells" / f"{name}-{row}.png"


def write_strip(file: Path, frames: np.ndarray, columns: int = COLUMNS) -> None:
    """Evenly spaced frames of a leg, side by side."""
    write_png(file, np.concatenate(list(frames[strip_steps(len(frames), columns)]), 1))


def strip_steps(leg: int, columns: int = COLUMNS) -> np.ndarray:
    """Which frames of a leg a strip shows."""
    return np.linspace(0, leg - 1, columns).round().astype(int)
