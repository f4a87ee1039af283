"""The pictures of `wmgym eval recon`: every judged frame as a file, and from those what a reader wants to see at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wmgym.data.recon import Task
from wmgym.experiments.plots import pyplot
from wmgym.files import write_atomically

SHOWN = 8  # tasks in a picture


def plain(name: str) -> str:
    """A name that a file may have."""
    return "".join(c if c.isalnum() else "-" for c in name).strip("-")


def keep(out: Path, folder: str, frames: np.ndarray, names: Sequence[str]) -> None:
    """Frames [n, H, W, 3] as `out/images/folder/NAME.png`."""
    for name, frame in zip(names, frames, strict=True):
        done, png = cv2.imencode(".png", np.ascontiguousarray(frame[..., ::-1]))
        assert done
        write_atomically(out / "images" / folder / f"{name}.png", png.tobytes())


def kept(out: Path, folder: str, name: str) -> np.ndarray | None:
    """A frame that was kept, or None."""
    file = out / "images" / folder / f"{name}.png"
    if not file.is_file():
        return None
    image = cv2.imread(str(file))
    return None if image is None else image[..., ::-1]


def plot_paths(planning: Mapping[str, Sequence[Mapping[str, Any]]], file: Path) -> None:
    """Planned and true paths of the first tasks, seen from above; the robot looks up the page. Ranked proposals are left out."""
    plt = pyplot()
    systems = {name: rows for name, rows in planning.items() if " x" not in name}
    driven = next(iter(systems.values()))
    count = min(SHOWN, len(driven))
    columns = math.ceil(count / 2)
    figure, axes = plt.subplots(2, columns, figsize=(3 * columns, 6.4), squeeze=False, layout="constrained")
    for i, ax in enumerate(axes.flat):
        if i >= count:
            ax.axis("off")
            continue
        for name, path in [("driven", driven[i]["truth"]), *((name, rows[i]["path"]) for name, rows in systems.items())]:
            xy = np.array([[0.0, 0.0], *(place[:2] for place in path)])
            style: dict[str, Any] = {"color": "black", "lw": 2.5} if name == "driven" else {"lw": 1.2}
            ax.plot(-xy[:, 1], xy[:, 0], marker=".", ms=4, label=name, **style)
        ax.set_aspect("equal", adjustable="datalim")
        ax.set_title(f"{driven[i]['trajectory']}, frame {driven[i]['time']}", fontsize="small")
        ax.set(xlabel="metres to the right", ylabel="metres ahead")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize="small", loc="outside upper center", ncols=len(systems) + 1)
    _save(figure, file)


def plot_plans(out: Path, tasks: Sequence[Task], systems: Sequence[str]) -> None:
    """Last seen, goal, and the last frame that each world dreamed along its plan: a row per task."""
    names = [f"{task.trajectory}-{task.time}" for task in tasks[:SHOWN]]
    worlds = [system for system in systems if kept(out, f"planning/{plain(system)}/{names[0]}", "end") is not None]
    columns = [("seen", "gt", "seen"), ("goal", "gt", "goal"), *((world, plain(world), "end") for world in worlds)]
    grid = [[kept(out, f"planning/{folder}/{name}", file) for _, folder, file in columns] for name in names]
    _plot_grid(grid, [title for title, _, _ in columns], [f"{t.trajectory}\nframe {t.time}" for t in tasks[:SHOWN]], out / "frames.png")


def plot_far(out: Path, evaluations: Mapping[str, tuple[Task, Sequence[str], Sequence[str]]], seconds: Sequence[int]) -> None:
    """A task's truth and dreams at each time: evaluation -> (task, names of its files, systems)."""
    grid, labels = [], []
    for evaluation, (task, names, systems) in evaluations.items():
        for system in ("gt", *systems):
            grid.append([kept(out, f"{evaluation}/{plain(system)}/{task.trajectory}-{task.time}", name) for name in names])
            labels.append(f"{evaluation}\n{'truth' if system == 'gt' else system}")
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
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot().close(figure)
