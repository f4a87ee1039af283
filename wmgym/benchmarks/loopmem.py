"""LoopMem (WorldTrace): dream along a commanded camera path that comes back, and compare what is shown again with what was shown first.

    opening, observed           all else is dreamed
    16 frames ----> A ......... B ......... A    the same view twice: u, when it was first shown, and t, when it comes back

Scores of a dreamed walk, means over its frames:

    pac            perspective-aligned consistency: cosine between features of frames t and u. WorldTrace takes CLIP's; here they are those
                   of an autoencoder, which need no download, and CLIP's where a model is given (`pac_clip`)
    again_psnr     PSNR and SSIM between frames t and u
    psnr, ssim     the same between frame t and the truth
    temp_ssim      SSIM of consecutive frames
    scene_drift    1 - cosine between features of frames that are 4 steps apart
    motion         mean absolute difference of consecutive frames, in grey levels

A film that stands still scores 1 in pac and temp_ssim. So each table has the row `frozen`, and a row whose motion is below half of the
truth's is marked as invalid. The paper's CLIP model and number of walks are not stated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wmgym.benchmarks.revisit import first_seen
from wmgym.benchmarks.rollout import Walk
from wmgym.benchmarks.tables import columns, difference_columns, markdown_rows, score_columns
from wmgym.data.episode import Episode
from wmgym.geometry import walk as walk_along
from wmgym.geometry import wrap_angle
from wmgym.kinematics import Kinematics
from wmgym.metrics.image import cosine, judge
from wmgym.metrics.statistics import bootstrap_interval

OPENING = 16  # frames observed
LAG = 4  # steps between the frames of `scene_drift`
HORIZON = 32  # frames of a training window: 8 chunks of 4
MULTIPLES = (1, 8, 16, 24)  # of the horizon, at which coherence is reported
CONTROLS = ("truth", "frozen")
SAME = 0.95  # share of a path's revisits that the truth must show, or the walk is drawn again
STILL = 0.5  # share of the truth's motion below which a row is invalid

Features = Callable[[np.ndarray], np.ndarray]  # uint8 [N, H, W, 3] -> [N, d]

PREFACE = """\
# LoopMem

{opening} frames observed, all else dreamed along commanded camera paths that the truth walks unobstructed. Means over walks with 95 %
bootstrap intervals. `pac`: cosine of {features} between a view shown again and the same view when it was first shown; `again_psnr`,
`again_ssim`: the same pair of frames; `psnr`, `ssim`: the frame shown again against the truth; `motion`: share of the truth's mean change
from frame to frame. `frozen` repeats the last observed frame, `untrained` is a network with fresh weights, and a row whose motion is below
half of the truth's is marked invalid, since a film that stands still agrees with itself.
"""


@dataclass(frozen=True)
class Tolerance:
    """When two views are the same."""

    near: float  # metres
    alike: float  # radians


def walk_of(episode: Episode, segment: str) -> Walk:
    """An episode from OPENING frames before the segment begins. ValueError if there are not as many."""
    split = next((s.first for s in episode.meta.segments if s.name == segment), None)
    if split is None or split < OPENING:
        raise ValueError(f"the episode of walker {episode.meta.walker!r} has no {OPENING} frames before a segment {segment!r}")
    first = split - OPENING
    return Walk(episode.frames[first:], episode.actions[first:], episode.poses[first:], OPENING, episode.meta.seed)


def commanded(walk: Walk, kinematics: Kinematics) -> np.ndarray:
    """Poses [T, 5] to which the actions lead from the first pose when nothing blocks them."""
    start = torch.from_numpy(walk.poses[:1]).float()
    motion = kinematics.motion(torch.from_numpy(walk.actions[None, 1:]))
    return np.concatenate([walk.poses[:1], walk_along(start, motion)[0].numpy()])


def revisits(walk: Walk, kinematics: Kinematics | None, same: Tolerance) -> tuple[np.ndarray, np.ndarray]:
    """Pairs [n, 2] of a dreamed frame and the first frame with the same view, and whether the truth returned to it [n].

    Views are those that were commanded by `kinematics`. None: those of the truth, for agents with inertia, which turn later than commanded.
    """
    first = first_seen(walk.poses if kinematics is None else commanded(walk, kinematics), same.near, same.alike)
    again = np.flatnonzero((first >= 0) & (np.arange(len(first)) >= walk.split))
    pairs = np.stack([again, first[again]], 1)
    a, b = walk.poses[pairs[:, 0]], walk.poses[pairs[:, 1]]
    near = np.linalg.norm(a[:, :3] - b[:, :3], axis=1) <= same.near
    return pairs, near & (np.abs(wrap_angle(a[:, 3:] - b[:, 3:])).max(1, initial=0) <= same.alike)


def is_walked(walk: Walk, kinematics: Kinematics | None, same: Tolerance) -> bool:
    """Whether the truth returned to the views that were commanded; always with inertia, where views are the truth's."""
    _, there = revisits(walk, kinematics, same)
    return bool(there.mean() >= SAME) if len(there) else True


# -- scores -----------------------------------------------------------------------------------------------------------------------------


def motion(frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference from the previous frame, in grey levels: [N - 1]."""
    return np.abs(frames[1:].astype(np.int16) - frames[:-1]).mean((1, 2, 3))


def motions(leg: np.ndarray, walk: Walk) -> dict[str, float]:
    """Mean motion of a row's leg and of the true one, from the last observed frame on."""
    start = walk.frames[walk.split - 1 : walk.split]
    films = {"motion": leg, "truth_motion": walk.frames[walk.split :]}
    return {name: float(motion(np.concatenate([start, film])).mean()) for name, film in films.items()}


def score(shown: np.ndarray, walk: Walk, pairs: np.ndarray, features: Mapping[str, Features]) -> dict[str, Any]:
    """Scores of a film [T, H, W, 3] of a walk, whose first frames are the opening. features: "" (for `pac`), and "clip" if there is one."""
    described = {name: of(shown) for name, of in features.items()}
    out: dict[str, Any] = {"world": walk.seed, "leg": walk.leg, "revisits": len(pairs)}
    if len(pairs):
        again, first = pairs.T
        for name, values in described.items():
            out["_".join(filter(None, ("pac", name)))] = float(cosine(values[again], values[first]).mean())
        out |= {f"again_{name}": float(value.mean()) for name, value in judge(shown[again], shown[first]).items()}
        out |= {name: float(value.mean()) for name, value in judge(shown[again], walk.frames[again]).items()}
    last = walk.split - 1  # the dream begins with the change from the last observed frame
    described_dream, film = described[""][last:], shown[last:]
    steps = {
        "temp_ssim": judge(film[1:], film[:-1], ("ssim",))["ssim"],
        "scene_drift": 1 - cosine(described_dream[LAG:], described_dream[:-LAG]),
        "motion": motion(film),
        "truth_motion": motion(walk.frames[last:]),
        "error": judge(film[1:], walk.frames[last + 1 :], ("psnr",))["psnr"],
    }
    out |= {name: float(values.mean()) for name, values in steps.items()}
    windows = [slice(k * HORIZON, (k + 1) * HORIZON) for k in range(walk.leg // HORIZON)]
    out["horizons"] = {name: [float(values[window].mean()) for window in windows] for name, values in steps.items()}
    return out


# -- tables -----------------------------------------------------------------------------------------------------------------------------

SCORES = ("pac", "pac_clip", "again_psnr", "again_ssim", "psnr", "ssim", "temp_ssim", "scene_drift")
COMPARED = ("pac", "pac_clip", "again_ssim", "psnr", "temp_ssim")
Rows = Mapping[str, Sequence[Mapping[str, Any]]]  # row -> scores of the same walks


def summarise(paths: Mapping[str, Rows], comparisons: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Path -> row -> scores, as tables: scores, paired differences of `comparisons`, and coherence at multiples of the horizon."""
    table, differences, coherence = [], [], []
    for path, rows in paths.items():
        for name, walks in rows.items():
            line: dict[str, Any] = {"path": path, "row": name, "walks": len(walks), "frames": walks[0]["leg"]}
            table.append(line | score_columns(walks, SCORES) | motion_columns(walks))
            for multiple in MULTIPLES[1:]:
                if all(len(walk["horizons"]["temp_ssim"]) >= multiple for walk in walks):
                    coherence.append({"path": path, "row": name, "horizons": multiple, **_at(walks, multiple)})
        for a, b in comparisons:
            if a in rows and b in rows:
                line = {"path": path, "difference": f"{a} - {b}"}
                differences.append(line | difference_columns(rows[a], rows[b], COMPARED))
    return {"scores": table, "differences": differences, "coherence": coherence}


def motion_columns(walks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Share of the truth's motion, and whether that is enough for the row to be valid."""
    share = float(np.mean([walk["motion"] for walk in walks]) / max(np.mean([walk["truth_motion"] for walk in walks]), 1e-9))
    return {"motion": f"{share:.2f}", "valid": "yes" if share >= STILL else "no: stands still"}


def _at(walks: Sequence[Mapping[str, Any]], multiple: int) -> dict[str, Any]:
    """Means over the last of the first `multiple` horizons."""
    last = [{name: values[multiple - 1] for name, values in walk["horizons"].items()} for walk in walks]
    found: dict[str, Any] = {}
    for name in ("temp_ssim", "scene_drift", "error"):
        found |= columns("psnr" if name == "error" else name, bootstrap_interval([row[name] for row in last]))
    return found | motion_columns(last)


def markdown(summary: Mapping[str, Any], features: str) -> str:
    """The tables as a page. features: the name of what `pac` compares."""
    lines = [PREFACE.format(opening=OPENING, features=features), "## Paths", "", *markdown_rows(summary["scores"])]
    if summary["differences"]:
        lines += ["", "## Paired differences over walks", "", *markdown_rows(summary["differences"])]
    if summary["coherence"]:
        words = f"The last of so many horizons of {HORIZON} frames."
        lines += ["", "## Coherence", "", words, "", *markdown_rows(summary["coherence"])]
    return "\n".join(lines) + "\n"
