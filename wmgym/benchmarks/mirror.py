"""In-domain return (Echo-Memory) and mirror consistency (MIND, `gsc`): a way out, and the same way back, mirrored.

    last observed frame   the way out        the way back
    0                     1  2  ...  n       n + 1 ... 2 n          frame n + k shows the view of frame n - k again

Mirrored frames are compared with each other, which needs no ground truth. A film that stands still is mirrored perfectly, so its motion is
reported beside it (`loopmem.motion_columns`).

    mirror_psnr, mirror_ssim, mirror_lpips   frame n + k against frame n - k, means over k
    psnr, ssim                               the dreamed frames against the truth
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wmgym.benchmarks.loopmem import motion, motion_columns, motions
from wmgym.benchmarks.rollout import Walk
from wmgym.benchmarks.tables import difference_columns, score_columns
from wmgym.data import mind
from wmgym.geometry import wrap_angle
from wmgym.kinematics import Kinematics
from wmgym.metrics.image import judge

SCORES = ("mirror_psnr", "mirror_ssim", "mirror_lpips", "psnr", "ssim")
COMPARED = ("mirror_psnr", "mirror_ssim", "mirror_lpips", "psnr")
Rows = Mapping[str, Sequence[Mapping[str, Any]]]  # row -> scores of the same walks


def mirrored(film: np.ndarray, metrics: Sequence[str] = ("psnr", "ssim")) -> dict[str, float]:
    """Mean scores of the mirrored frames of a film uint8 [2 n + 1, H, W, 3] that begins at the start. ValueError for other lengths."""
    way = len(film) // 2
    if way < 1 or len(film) != 2 * way + 1:
        raise ValueError(f"a way out and back has a start and an even number of further frames, got {len(film)} frames")
    back, out = film[way + 1 :], np.ascontiguousarray(film[:way][::-1])
    return {f"mirror_{name}": float(value.mean()) for name, value in judge(back, out, metrics).items()}


def is_walked(walk: Walk, near: float, alike: float) -> bool:
    """Whether the truth's mirrored views agree within `near` metres and `alike` radians.

    A ball with inertia lags behind its turns, on the way back to the other side: in Memory Maze mirrored views differ by 0.14 radians.
    """
    path = walk.poses[walk.split - 1 :].astype(np.float64)
    way = len(path) // 2
    apart = path[way + 1 :] - path[:way][::-1]
    return bool((np.linalg.norm(apart[:, :3], axis=1) <= near).all() and (np.abs(wrap_angle(apart[:, 3:])) <= alike).all())


def score(leg: np.ndarray, walk: Walk, metrics: Sequence[str] = ("psnr", "ssim")) -> dict[str, Any]:
    """Scores of a row's frames [2 n, H, W, 3] on a walk out and back."""
    film = np.concatenate([walk.frames[walk.split - 1 : walk.split], leg])
    against = {name: float(value.mean()) for name, value in judge(leg, walk.frames[walk.split :]).items()}
    return {"world": walk.seed, "leg": walk.leg, **mirrored(film, metrics), **against, **motions(leg, walk)}


def sample_of(leg: np.ndarray, walk: Walk, kinematics: Kinematics, caption: str) -> mind.Sample:
    """A row's film of a walk as a sample of MIND: the observed frames, and then what the row shows."""
    import torch

    keys = mind.keys_of(kinematics.motion(torch.from_numpy(walk.actions)).numpy())
    return mind.Sample(np.concatenate([walk.frames[: walk.split], leg]), keys, walk.poses.astype(np.float64), walk.split, caption)


def is_out_and_back(sample: mind.Sample) -> bool:
    """Whether a sample has context, and keys after mark_time that are followed by their opposites."""
    return sample.mark_time >= 1 and mind.is_mirrored(sample.keys[sample.mark_time :])


def score_sample(sample: mind.Sample, metrics: Sequence[str] = ("psnr", "ssim")) -> dict[str, Any]:
    """The mirror scores of a recorded sample. ValueError if it does not go out and back (`is_out_and_back`)."""
    if not is_out_and_back(sample):
        raise ValueError("mirror consistency needs a sample with context, and keys after mark_time that are followed by their opposites")
    film = sample.frames[sample.mark_time - 1 :]
    return {"leg": len(film) - 1, **mirrored(film, metrics), "motion": float(motion(film).mean())}


def summarise(paths: Mapping[str, Rows], comparisons: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Path -> row -> scores, as tables: `return`, and the paired differences of `comparisons`."""
    table, differences = [], []
    for path, rows in paths.items():
        for name, walks in rows.items():
            line = {"path": path, "row": name, "walks": len(walks), "frames": walks[0]["leg"]}
            table.append(line | score_columns(walks, SCORES) | motion_columns(walks))
        for a, b in comparisons:
            differences.append({"path": path, "difference": f"{a} - {b}", **difference_columns(rows[a], rows[b], COMPARED)})
    return {"return": table, "return_differences": differences}


def summarise_samples(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Model -> scores of its samples, as a table. Motion is in grey levels per frame, since no truth says how much there should be."""
    rows = []
    for name, scores in samples.items():
        line = {"model": name, "samples": len(scores), "frames": float(np.mean([each["leg"] for each in scores]))}
        rows.append(line | score_columns(scores, (*SCORES[:3], "motion")))
    return rows
