"""When a walk sees a view again, and how accurate a dream is there: revisit error against the length of the loop.

A view is a position and a viewing direction. A frame revisits a view that was seen before and left in between. The length of the loop is
the number of steps since the view was last seen. This needs poses, and works for any walk in any setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wmgym.benchmarks.cells import drift
from wmgym.benchmarks.rollout import Dream, Walk
from wmgym.geometry import wrap_angle
from wmgym.metrics.image import judge

NEAR = 0.25  # metres (blocks): positions that are nearer count as the same place
ALIKE = float(np.radians(5.0))  # radians: directions that differ by less count as the same
BINS = ((2, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 128))  # lengths of loops, in steps


def last_seen(poses: NDArray[np.floating], near: float = NEAR, alike: float = ALIKE) -> NDArray[np.int64]:
    """For each frame of a path [T, 5], the newest earlier frame with the same view from before the view was left, or -1: [T]."""
    before, step = _seen_before(poses, near, alike), np.arange(len(poses))
    return np.where(before, step, -1).max(1)


def first_seen(poses: NDArray[np.floating], near: float = NEAR, alike: float = ALIKE) -> NDArray[np.int64]:
    """The oldest such frame, or -1: [T]."""
    before, step = _seen_before(poses, near, alike), np.arange(len(poses))
    return np.where(before.any(1), np.where(before, step, len(poses)).min(1), -1)


def _seen_before(poses: NDArray[np.floating], near: float, alike: float) -> NDArray[np.bool_]:
    """Whether frame t shows the view of frame u again, after the view was left in between: [t, u]."""
    path = np.asarray(poses, np.float64)
    apart = np.linalg.norm(path[:, None, :3] - path[None, :, :3], axis=-1)
    turned = np.abs(wrap_angle(path[:, None, 3:] - path[None, :, 3:])).max(-1)
    same = (apart <= near) & (turned <= alike)
    step = np.arange(len(path))
    left = np.where(~same & (step < step[:, None]), step, -1).max(1)  # the last earlier frame with another view
    return same & (step < left[:, None])


def walk_row(walk: Walk, dream: Dream) -> dict[str, Any]:
    """One dreamed walk, step by step: error against the truth, drift of the pose, length of the loop (0: no revisit), and consistency.

    Consistency is the PSNR between a revisiting frame and what was shown when the view was last seen, observed or dreamed.
    """
    before = last_seen(walk.poses)[walk.split :]
    again = np.flatnonzero(before >= 0)
    shown = np.concatenate([walk.frames[: walk.split], dream.frames])
    steps = {**judge(dream.frames, walk.frames[walk.split :]), "drift": drift(dream, walk)}
    consistent = np.zeros(walk.leg)
    if len(again):
        consistent[again] = judge(dream.frames[again], shown[before[again]])["psnr"]
    lengths = np.where(before >= 0, np.arange(walk.split, len(walk.frames)) - before, 0)
    row = {name: [round(float(v), 4) for v in values] for name, values in {**steps, "consistency": consistent}.items()}
    return {"world": walk.seed, "leg": walk.leg, "steps": {**row, "loop_length": lengths.tolist()}}


def by_length(rows: Sequence[Mapping[str, Any]], metric: str, bins: Sequence[tuple[int, int]] = BINS) -> list[dict[int, float]]:
    """For each bin of loop lengths: walk -> mean of the metric over its revisits of that length. Walks without any are left out."""
    out: list[dict[int, float]] = []
    for low, high in bins:
        found = {}
        for walk, row in enumerate(rows):
            lengths = np.array(row["steps"]["loop_length"])
            chosen = (lengths >= low) & (lengths <= high)
            if chosen.any():
                found[walk] = float(np.array(row["steps"][metric])[chosen].mean())
        out.append(found)
    return out
