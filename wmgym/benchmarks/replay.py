"""Replay (CoME, section 5 and appendix E.1): show a world the first frames of an episode, dream the next ones along its true actions.

    200 frames, observed                     the next 17, dreamed along the true actions
    0 --------------------------> 199        200 --------------> 216

Episodes may be of any world and walker; the windows are their first frames, one window each. A window is judged as a leg of LoopNav is
(loopnav.py): PSNR, SSIM, LPIPS frame by frame, the baselines `copy` and `ceiling`, paired noise, bootstrap intervals over windows. The
frames of the context are never judged, as in the paper.

For Memory Cards there is also tile recall (appendix D.1), at each step, the last one being the paper's:

    recall         share of the 16 tiles whose error is below 2e-5
    turned_right   of the tiles that show something else than in the last frame seen, how many are right (`turned` is how many there
                   are): what copying cannot know, and where a guess is right with the chance of the deck
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmgym.benchmarks.loopnav import BASELINES, Course, episodes_below
from wmgym.benchmarks.loopnav_table import columns, summarise
from wmgym.benchmarks.rollout import Loop
from wmgym.data.episode import load_episode, read_header
from wmgym.metrics.statistics import bootstrap_interval
from wmgym.metrics.tiles import RIGHT, tile_error, tile_recall
from wmgym.systems import System

CONTEXT, STEPS = 200, 17  # frames seen, frames dreamed


def course(context: int, steps: int) -> Course:
    """A replay as LoopNav's machinery knows it."""
    return Course(f"{context}+{steps}", None)


def find_windows(folder: Path, count: int, frames: int) -> list[Path]:
    """The first `count` episodes of at least so many frames in a folder and its subfolders; ValueError if there are fewer."""
    paths = [path for path in episodes_below(folder) if read_header(path).length >= frames][:count]
    if len(paths) < count:
        raise ValueError(f"{folder} holds {len(paths)} episodes of at least {frames} frames, {count} are asked for")
    return paths


def read_windows(paths: Sequence[Path], context: int, steps: int) -> list[Loop]:
    """The first frames of each episode, cut after the context."""
    windows = []
    for path in paths:
        episode = load_episode(path, 0, context + steps)
        windows.append(Loop(episode.frames, episode.actions, episode.poses, context, episode.meta.seed))
    return windows


def tile_scores(shown: np.ndarray, window: Loop) -> dict[str, np.ndarray]:
    """Tile recall of each dreamed frame of a window of Memory Cards: recall, turned and turned_right, [L] each."""
    made, truth = torch.from_numpy(shown), torch.from_numpy(window.frames[window.split :])
    last = torch.from_numpy(window.frames[window.split - 1]).expand_as(truth)
    margin = max(1, truth.shape[1] // 48)  # a ring round a tile is the cursor, not the card
    turned = tile_error(last, truth, margin=margin) > RIGHT
    right = tile_error(made, truth) < RIGHT
    counts = {"turned": turned.sum((1, 2)), "turned_right": (turned & right).sum((1, 2))}
    return {"recall": tile_recall(made, truth).numpy(), **{name: value.numpy() for name, value in counts.items()}}


def tables(cells: Mapping[str, Mapping[str, Any]], wanted: Course, modes: Sequence[str], system: System) -> dict[str, Any]:
    """LoopNav's tables of these windows, and one of tile recall after the last step where it was measured."""
    found = summarise(cells, [wanted], modes, system)
    named = {name: [_renamed(row) for row in rows] for name, rows in found.items()}
    recall = [
        _recall(mode, cells[f"{wanted.name} {mode}"]["loops"])
        for mode in (*modes, *BASELINES)
        if all("recall" in row["steps"] for row in cells[f"{wanted.name} {mode}"]["loops"])
    ]
    return named | ({"tile_recall": recall} if recall else {})


def _renamed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A window is no loop, and no range is walked."""
    return {{"loops": "windows", "task": "replay", "leg": "steps"}.get(name, name): value for name, value in row.items() if name != "range"}


def _recall(mode: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    last = [{name: row["steps"][name][-1] for name in ("recall", "turned", "turned_right")} for row in rows]
    shares = [row["turned_right"] / row["turned"] for row in last if row["turned"]]
    line: dict[str, Any] = {"mode": mode, "windows": len(rows), **columns("recall", bootstrap_interval([row["recall"] for row in last]))}
    line["tiles_turned"] = int(sum(row["turned"] for row in last))
    return line | (columns("recall_turned", bootstrap_interval(shares)) if shares else {})
