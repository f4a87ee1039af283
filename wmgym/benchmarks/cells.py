"""Cells: one memory on one group of walks, dreamed, judged frame by frame, and stored in one file.

    cells/NAME-MODE.json     a cell: NAME is the group's, MODE a memory, the mean of its dreams, or a baseline
    cells/NAME-views.json    how near each view of a leg had been observed
    cells/NAME-covered.json  which share of its pixels (`known.py`)
    cells/NAME-ROW.png       a strip of the group's first leg: the truth, and each memory's dream

All memories dream the same walks with the same noise, so differences between them are paired. There are two baselines: "copy" repeats
the last observed frame, and "ceiling" is the autoencoder's reconstruction of the truth, the best that its latents can show. Besides the
dreamed leg, a cell scores single next frames that are made from true history.

Scores of a frame: PSNR and SSIM, LPIPS where its weights are installed, the gradient energy of the frame and of the truth (their ratio is
the sharpness in tables), and `feature_distance`: 1 - cosine between the autoencoder's latents of the frame and of the truth.

The mean of several dreams with different noise averages their frames before they are judged. It shows how much of the error is sampling
variance: PSNR rises, sharpness falls.

Three more rows say what could be known (`known`): the share of each view that had been seen, the frame that splatting the observed pixels
gives, and every frame of the leg made from true history, in which no error accumulates.

A cell's file appears whole or not at all, so a killed run resumes with the cell that it was making.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from wmgym.benchmarks.known import covered, splat
from wmgym.benchmarks.rollout import Dream, Tick, Walk, dream_legs, next_frames, steps_made
from wmgym.core import World
from wmgym.files import kept, write_png
from wmgym.geometry import wrap_angle
from wmgym.metrics import image

BASELINES = ("copy", "ceiling")
MEASURES = ("psnr", "ssim", "gradient", "true_gradient", "feature_distance")  # in args.json: cells that lack one are refused
MEASURES_0_1 = ("psnr", "ssim")  # of folders whose args.json names none
SPLATTING = "splatting"
COVERED = "covered"  # the mode of the cell that says which share of each view had been observed
VIEWS = "views"  # the mode of the cell that says how near each view of a leg had been observed
COLUMNS = 10  # frames of a strip
_MOVED = 0.02  # blocks or radians: below this the view counts as standing still
_ALIKE = math.radians(30)  # two views that differ by less look the same way

Progress = Callable[[str, int, int], None]  # what is being made, frames done, frames in all
Reconstruct = Callable[[np.ndarray], np.ndarray]  # uint8 frames [N, H, W, 3] through the autoencoder and back
Encode = Callable[[np.ndarray], np.ndarray]  # uint8 frames [N, H, W, 3] -> features [N, d]


# -- scores of one walk -----------------------------------------------------------------------------------------------------------------


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
    encode: Encode | None = None  # for feature_distance, which is left out without it
    block: int | None = None  # true frames are observed after so many dreamed ones
    more: Callable[[np.ndarray, Walk], dict[str, np.ndarray]] = lambda shown, walk: {}  # further scores of a leg's frames, [L] each

    def seeds(self, walks: int, dream: int = 0) -> list[int]:
        """Seeds of the noise of each walk's dream number `dream`."""
        return [self.seed * 1_000_000 + dream * 100_000 + i for i in range(walks)]


def judge(frames: np.ndarray, truth: np.ndarray, settings: Settings) -> dict[str, np.ndarray]:
    """The scores of each frame: metric -> [N]. PSNR of equal frames counts as `metrics.image.BEST_PSNR`."""
    scores = image.judge(frames, truth, ("psnr", "ssim", *(["lpips"] if settings.with_lpips else [])))
    scores |= {"gradient": image.gradient_energy(frames), "true_gradient": image.gradient_energy(truth)}
    if settings.encode is not None:
        scores["feature_distance"] = 1 - image.cosine(settings.encode(frames), settings.encode(truth))
    return scores


def mean_of(mode: str, dreams: int) -> str:
    """The mode of the cell that judges the mean of several dreams; the mode itself for one dream."""
    return mode if dreams == 1 else f"{mode} (mean of {dreams})"


def history_of(mode: str) -> str:
    """The mode of the cell whose leg is made frame by frame from true history."""
    return f"{mode} (true history)"


def ticker(progress: Progress, what: str, total: int) -> Tick:
    """A function that adds up the frames made, and reports them."""
    done = 0

    def tick(frames: int) -> None:
        nonlocal done
        done += frames
        progress(what, min(done, total), total)

    return tick


def world_cell(
    world: World,
    name: str,
    mode: str,
    walks: Sequence[Walk],
    settings: Settings,
    progress: Progress = lambda *_: None,
    dreams: int = 1,
) -> tuple[dict[str, Any], list[Dream]]:
    """Dream and judge all walks of a group with one world. Of several dreams of a walk the frames are averaged; `drift` is their mean."""
    mode = mean_of(mode, dreams)
    tick = ticker(progress, f"{name} {mode}", dreams * (sum(walk.leg for walk in walks) + sum(len(steps_made(walk)) for walk in walks)))
    legs, singles = [], []
    for k in range(dreams):
        seeds = settings.seeds(len(walks), k)
        legs.append(dream_legs(world, walks, seeds, settings.lanes, tick, settings.block))
        singles.append(next_frames(world, walks, seeds, settings.lanes, tick=tick))
    shown = [replace(each[0], frames=_mean_frames([dream.frames for dream in each])) for each in zip(*legs, strict=True)]
    rows = []
    for i, (walk, dream) in enumerate(zip(walks, shown, strict=True)):
        truth, steps = walk.frames[walk.split :], singles[0][i].steps
        drifts = np.mean([drift(each[i], walk) for each in legs], 0)
        scores = judge(dream.frames, truth, settings) | settings.more(dream.frames, walk) | {"drift": drifts}
        one = judge(_mean_frames([each[i].frames for each in singles]), truth[steps], settings)
        rows.append(_row(walk, scores, {**one, "moved": moved(walk)[steps]}))
    return _cell(name, mode, rows), shown


def _mean_frames(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Films uint8 [N, H, W, 3] as their mean, rounded."""
    return frames[0] if len(frames) == 1 else np.mean(frames, 0).round().astype(np.uint8)


def baseline_cell(name: str, mode: str, walks: Sequence[Walk], settings: Settings, reconstruct: Reconstruct) -> dict[str, Any]:
    """The same scores for the baseline "copy" or "ceiling"."""
    if mode == "copy":
        return film_cell(name, mode, walks, settings, [copied(walk, settings.block) for walk in walks])
    return film_cell(name, mode, walks, settings, [reconstruct(walk.frames[walk.split :]) for walk in walks])


def copied(walk: Walk, block: int | None = None) -> np.ndarray:
    """For each frame of the leg, the last one before its block; by default the last observed frame."""
    block = block or walk.leg
    return walk.frames[walk.split - 1 + np.arange(walk.leg) // block * block]


def film_cell(name: str, mode: str, walks: Sequence[Walk], settings: Settings, legs: Sequence[np.ndarray]) -> dict[str, Any]:
    """The same scores for frames uint8 [L, H, W, 3] of each leg that are not dreamed.

    As the single next frame, "copy" shows the true frame before it.
    """
    rows = []
    for walk, shown in zip(walks, legs, strict=True):
        truth, steps = walk.frames[walk.split :], steps_made(walk)
        scores = judge(shown, truth, settings)
        one = {metric: value[steps] for metric, value in scores.items()}
        if mode == "copy":
            one = judge(walk.frames[walk.split - 1 + steps], truth[steps], settings)
        scores |= settings.more(shown, walk)
        rows.append(_row(walk, scores, {**one, "moved": moved(walk)[steps]}))
    return _cell(name, mode, rows)


def history_legs(
    world: World, name: str, mode: str, walks: Sequence[Walk], settings: Settings, progress: Progress = lambda *_: None
) -> list[np.ndarray]:
    """Each frame of the legs, made from the true frames before it."""
    tick = ticker(progress, f"{name} {history_of(mode)}", sum(walk.leg for walk in walks))
    return [made.frames for made in next_frames(world, walks, settings.seeds(len(walks)), settings.lanes, every=1, tick=tick)]


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
    dreams: int = 1,
    known: str | None = None,
) -> dict[str, dict[str, Any]]:
    """The cells by "NAME MODE", for each group of walks, with each memory, both baselines and `VIEWS`.

    groups: name -> a function that returns the walks. It is called only if a cell of the group is missing; finished cells are read.
    dreams: if more than 1, each memory also has a cell for the mean of that many dreams (`mean_of`).
    known: also cells for what could be known: `COVERED`, `SPLATTING`, and this memory's frames from true history (`history_of`). The walks
    must have depth.
    """

    def make(name: str, mode: str, count: int, walks_of: Callable[[], Sequence[Walk]]) -> dict[str, Any]:
        walks = walks_of()
        if mode == VIEWS:
            return _cell(name, mode, [{"nearest": nearest_views(walk).round(3).tolist()} for walk in walks])
        if mode == COVERED:
            return _cell(name, mode, [{"covered": covered(walk).round(4).tolist()} for walk in walks])
        if mode in BASELINES:
            write_strip(strip_file(out, name, "truth"), walks[0].frames[walks[0].split :])
            return baseline_cell(name, mode, walks, settings, reconstruct)
        if known is not None and mode in known_rows(known):
            if mode == SPLATTING:
                legs = [splat(walk) for walk in walks]
            else:
                legs = history_legs(world_of(known), name, known, walks, settings, progress)
            write_strip(strip_file(out, name, mode), legs[0])
            return film_cell(name, mode, walks, settings, legs)
        cell, shown = world_cell(world_of(mode), name, mode, walks, settings, progress, count)
        write_strip(strip_file(out, name, mean_of(mode, count)), shown[0].frames)
        return cell

    more = () if known is None else (*known_rows(known), COVERED)
    cells: dict[str, dict[str, Any]] = {}
    for name, read in groups.items():
        walks_of = cache(read)
        for mode in (*BASELINES, *modes, VIEWS, *more):
            for count in sorted({1, dreams}) if mode in modes else (1,):
                row = mean_of(mode, count)
                cells[f"{name} {row}"] = kept(cell_file(out, name, row), partial(make, name, mode, count, walks_of))
    return cells


def known_rows(known: str | None) -> tuple[str, ...]:
    """The rows of what could be known, for the memory whose frames are made from true history; none without one."""
    return () if known is None else (SPLATTING, history_of(known))


def cell_file(out: Path, name: str, mode: str) -> Path:
    return out / "cells" / f"{name}-{_in_files(mode)}.json"


def strip_file(out: Path, name: str, row: str) -> Path:
    return out / "cells" / f"{name}-{_in_files(row)}.png"


def _in_files(row: str) -> str:
    """ "worldpack (mean of 4)" -> "worldpack-mean-of-4"."""
    return row.replace(" (", "-").replace(" ", "-").rstrip(")")


def write_strip(file: Path, frames: np.ndarray, columns: int = COLUMNS) -> None:
    """Evenly spaced frames of a leg, side by side."""
    write_png(file, np.concatenate(list(frames[strip_steps(len(frames), columns)]), 1))


def strip_steps(leg: int, columns: int = COLUMNS) -> np.ndarray:
    """Which frames of a leg a strip shows."""
    return np.linspace(0, leg - 1, columns).round().astype(int)
