"""Replay (CoME, section 5 and appendix E.1): show a world the first frames of an episode, dream the next ones along its true actions.

    200 frames, observed                     the next 17, dreamed along the true actions
    0 --------------------------> 199        200 --------------> 216

Episodes may be of any setting and walker. Each gives one window, its first frames. A window is judged as a leg of LoopNav is
(`cells.py`): PSNR, SSIM and LPIPS frame by frame, the baselines `copy` and `ceiling`, paired noise, and bootstrap intervals over windows.
As in the paper, the observed frames are never judged.

In a stream (section 4.2, figure 2) the true frames are observed after each block of dreamed ones, and the next block is dreamed.

Memory Cards also has tile recall (appendix D.1), at each step; the paper's is that of the last step:

    recall         share of the 16 tiles whose error is below 2e-5
    turned         how many tiles differ from the last observed frame
    turned_right   how many of those are right. Copying gets none of them, and guessing gets them at the chance level of the deck
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmgym.benchmarks.cells import BASELINES
from wmgym.benchmarks.rollout import Walk
from wmgym.benchmarks.tables import Cells, Group, columns, row_title, summarise
from wmgym.data.episode import episodes_below, load_episode, read_header
from wmgym.metrics.statistics import bootstrap_interval
from wmgym.metrics.tiles import RIGHT, tile_error, tile_recall
from wmgym.systems import System

CONTEXT, STEPS = 200, 17  # frames observed, frames dreamed
PREFACE = """\
# Replay

{context} frames observed, {steps} dreamed along the true actions. Means over the dreamed frames and then over windows, with 95 % bootstrap
intervals over windows, one window per episode. PSNR in dB; `drift` is the distance between the dreamed and the true pose at the end. `copy`
repeats the last observed frame (for the next frame: the one before); `ceiling` is the autoencoder's reconstruction of the truth.
"""


def group(context: int, steps: int, iterations: int = 1) -> Group:
    """The windows of a replay, as the tables show them."""
    name = f"{context}+{steps}" + (f"x{iterations}" if iterations > 1 else "")
    return Group(name, {"replay": name}, count="windows", length="steps")


def find_windows(folder: Path, count: int, frames: int) -> list[Path]:
    """The first `count` episodes of at least `frames` frames in a folder and its subfolders; ValueError if there are fewer."""
    paths = [path for path in episodes_below(folder) if read_header(path).length >= frames][:count]
    if len(paths) < count:
        raise ValueError(f"{folder} holds {len(paths)} episodes of at least {frames} frames, {count} are asked for")
    return paths


def read_windows(paths: Sequence[Path], context: int, steps: int) -> list[Walk]:
    """The first `context + steps` frames of each episode, cut after `context`."""
    windows = []
    for path in paths:
        episode = load_episode(path, 0, context + steps)
        windows.append(Walk(episode.frames, episode.actions, episode.poses, context, episode.meta.seed))
    return windows


def by_iteration(cells: Cells, windows: Group, modes: Sequence[str], system: System, steps: int) -> list[dict[str, Any]]:
    """PSNR of each block of `steps` frames, each dreamed after all true frames before it: a row for each memory and baseline."""
    lines = []
    for mode in (*modes, *BASELINES):
        psnr = np.array([row["steps"]["psnr"] for row in cells[f"{windows.name} {mode}"]["loops"]])
        blocks = psnr.reshape(len(psnr), -1, steps).mean(2)
        line: dict[str, Any] = {"mode": row_title(mode, system), "windows": len(psnr)}
        for number, block in enumerate(blocks.T, 1):
            line |= columns(f"psnr_{number}", bootstrap_interval(block.tolist()))
        lines.append(line)
    return lines


def tile_scores(shown: np.ndarray, window: Walk) -> dict[str, np.ndarray]:
    """Tile recall of each dreamed frame of a Memory Cards window: recall, turned and turned_right, [L] each."""
    made, truth = torch.from_numpy(shown), torch.from_numpy(window.frames[window.split :])
    last = torch.from_numpy(window.frames[window.split - 1]).expand_as(truth)
    margin = max(1, truth.shape[1] // 48)  # the cursor is a ring around a tile, not part of the card
    turned = tile_error(last, truth, margin=margin) > RIGHT
    right = tile_error(made, truth) < RIGHT
    counts = {"turned": turned.sum((1, 2)), "turned_right": (turned & right).sum((1, 2))}
    return {"recall": tile_recall(made, truth).numpy(), **{name: value.numpy() for name, value in counts.items()}}


def tables(cells: Cells, windows: Group, modes: Sequence[str], system: System) -> dict[str, Any]:
    """The tables of `tables.summarise`, and where it was measured, one of tile recall after the last step."""
    found = summarise(cells, [windows], modes, system)
    recall = [
        _recall(row_title(mode, system), cells[f"{windows.name} {mode}"]["loops"])
        for mode in (*modes, *BASELINES)
        if all("recall" in row["steps"] for row in cells[f"{windows.name} {mode}"]["loops"])
    ]
    return found | ({"tile_recall": recall} if recall else {})


def _recall(title: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    last = [{name: row["steps"][name][-1] for name in ("recall", "turned", "turned_right")} for row in rows]
    shares = [row["turned_right"] / row["turned"] for row in last if row["turned"]]
    line: dict[str, Any] = {"mode": title, "windows": len(rows), **columns("recall", bootstrap_interval([row["recall"] for row in last]))}
    line["tiles_turned"] = int(sum(row["turned"] for row in last))
    return line | (columns("recall_turned", bootstrap_interval(shares)) if shares else {})
