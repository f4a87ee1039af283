"""When a walk sees a view again, and how well a dream then knows it: revisit error against the length of the loop.

A view is where one stands and where one looks. A frame revisits when the same view was seen before and left in between; the loop's
length is the number of steps since it was last seen. Any walk will do, in any world that tells poses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wmgym.benchmarks.loopnav import drift, judge
from wmgym.benchmarks.rollout import Dream, Loop

NEAR = 0.25  # metres (blocks) within which one stands at the same place
ALIKE = np.radians(5.0)  # radians within which one looks the same way
BINS = ((2, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 128))  # lengths of loops, in steps


def last_seen(poses: NDArray[np.floating], near: float = NEAR, alike: float = float(ALIKE)) -> NDArray[np.int64]:
    """For each frame of a path [T, 5], the last earlier frame with the same view before it was left; -1 where there is none: [T]."""
    path = np.asarray(poses, np.float64)
    apart = np.linalg.norm(path[:, None, :3] - path[None, :, :3], axis=-1)
    turned = np.abs((path[:, None, 3:] - path[None, :, 3:] + np.pi) % (2 * np.pi) - np.pi).max(-1)
    same = (apart <= near) & (turned <= alike)  # [T, T]
    step = np.arange(len(path))
    left = np.where(~same & (step < step[:, None]), step, -1).max(1)  # the last time that one saw something else
    return np.where(same & (step < left[:, None]), step, -1).max(1)


def walk_row(loop: Loop, dream: Dream) -> dict[str, Any]:
    """One dreamed walk, step by step: error against the truth, drift of the pose, and where it revisits, the loop's length (else 0) and
    how well the dream agrees with what it showed there before."""
    before = last_seen(loop.poses)[loop.split :]
    again = np.flatnonzero(before >= 0)
    shown = np.concatenate([loop.frames[: loop.split], dream.frames])
    steps = {**judge(dream.frames, loop.frames[loop.split :]), "drift": drift(dream, loop)}
    consistent = np.zeros(loop.leg)
    if len(again):
        consistent[again] = judge(dream.frames[again], shown[before[again]])["psnr"]
    lengths = np.where(before >= 0, np.arange(loop.split, len(loop.frames)) - before, 0)
    row = {name: [round(float(v), 4) for v in values] for name, values in {**steps, "consistency": consistent}.items()}
    return {"world": loop.seed, "leg": loop.leg, "steps": {**row, "loop_length": lengths.tolist()}}


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
