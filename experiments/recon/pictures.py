"""Pictures: every judged frame as a file, and plots of the first tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wmgym.data.recon import Task
from wmgym.experiments.support.pictures import pyplot, save_figure
from wmgym.files import write_png

SHOWN = 8  # tasks in a picture


def plain(name: str) -> str:
    """A name that is valid for a file."""
    return "".join(c if c.isalnum() else "-" for c in name).strip("-")


def keep(out: Path, folder: str, frames: np.ndarray, names: Sequence[str]) -> None:
    """Frames [n, H, W, 3] as `out/images/folder/NAME.png`."""
    for name, frame in zip(names, frames, strict=True):
        write_png(out / "images" / folder / f"{name}.png", frame)


def kept(out: Path, folder: str, name: str) -> np.ndarray | None:
    """A frame from these files, or None."""
    file = out / "images" / folder / f"{name}.png"
    if not file.is_file():
        return None
    image = cv2.imread(str(file))
    return None if image is None else image[..., ::-1]


def plot_paths(planning: Mapping[str, Sequence[Mapping[str, Any]]], file: Path) -> None:
    """Planned and true paths of the first tasks from above; the robot looks up the page. Ranked proposals are left out."""
    plt = pyplot()
    methods = {name: rows for name, rows in planning.items() if " x" not in name}
    driven = next(iter(methods.values()))
    count = min(SHOWN, len(driven))
    columns = math.ceil(count / 2)
    figure, axes = plt.subplots(2, columns, figsize=(3 * columns, 6.4), squeeze=False, layout="constrained")
    for i, ax in enumerate(axes.flat):
        if i >= count:
            ax.axis("off")
            continue
        for name, path in [("driven", driven[i]["truth"]), *((name, rows[i]["path"]) for name, rows in methods.items())]:
            xy = np.array([[0.0, 0.0], *(place[:2] for place in path)])
            style: dict[str, Any] = {"color": "black", "lw": 2.5} if name == "driven" else {"lw": 1.2}
            ax.plot(-xy[:, 1], xy[:, 0], marker=".", ms=4, label=name, **style)
        ax.set_aspect("equal", adjustable="datalim")
        ax.set_title(f"{driven[i]['trajectory']}, frame {driven[i]['time']}", fontsize="small")
        ax.set(xlabel="metres to the right", ylabel="metres ahead")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize="small", loc="outside upper center", ncols=len(methods) + 1)
    save_figure(figure, file)


def plot_plans(out: Path, tasks: Sequence[Task], methods: Sequence[str]) -> None:
    """The last observed frame, the goal, and the last frame that each world dreamed along its plan: a row per task."""
    names = [f"{task.trajectory}-{task.time}" for task in tasks[:SHOWN]]
    worlds = [method for method in methods if kept(out, f"planning/{plain(method)}/{names[0]}", "end") is not None]
    columns = [("seen", "gt", "seen"), ("goal", "gt", "goal"), *((world, plain(world), "end") for world in worlds)]
    grid = [[kept(out, f"planning/{folder}/{name}", file) for _, folder, file in columns] for name in names]
    _plot_grid(grid, [title for title, _, _ in columns], [f"{t.trajectory}\nframe {t.time}" for t in tasks[:SHOWN]], out / "frames.png")


def plot_far(out: Path, evaluations: Mapping[str, tuple[Task, Sequence[str], Sequence[str]]], seconds: Sequence[int]) -> None:
    """The truth and the dreams of a task at each time. evaluations: name -> (task, names of its files, methods)."""
    grid, labels = [], []
    for evaluation, (task, names, methods) in evaluations.items():
        for method in ("gt", *methods):
            grid.append([kept(out, f"{evaluation}/{plain(method)}/{task.trajectory}-{task.time}", name) for name in names])
            labels.append(f"{evaluation}\n{'truth' if method == 'gt' else method}")
    _plot_grid(grid, [f"{second} s" for second in seconds], labels, out / "far.png")


def _plot_grid(grid: Sequence[Sequence[np.ndarray | None]], titles: Sequence[str], labels: Sequence[str], file: Path) -> None:
    plt = pyplot()
    size = 1.7 * len(titles) + 1, 1.5 * len(grid) + 0.3
    figure, axes = plt.subplots(len(grid), len(titles), figsize=size, squeeze=False, layout="constrained")
    for i, row in enumerate(grid):
        for j, picture in enumerate(row):
            ax = axes[i, j]
            ax.set(xticks=[], yticks=[])
            if picture is not None:
                ax.imshow(picture, interpolation="nearest")
            if i == 0:
                ax.set_title(titles[j].replace(" + ", "\n+ "), fontsize="x-small")
        axes[i, 0].set_ylabel(labels[i], fontsize="x-small", rotation=0, ha="right", va="center")
    save_figure(figure, file)
