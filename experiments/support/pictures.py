"""Plots that several programs draw. Matplotlib is loaded when something is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wmgym.benchmarks.cells import COLUMNS, strip_file
from wmgym.extras import need
from wmgym.systems import System

GREYS = {"copy": "0.6", "ceiling": "0.2"}  # of the baselines


def pyplot() -> Any:
    """`matplotlib.pyplot`, without a window."""
    check_plots()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def check_plots() -> None:
    """ImportError if plots cannot be drawn: for the beginning of a program that draws at its end."""
    need("eval", "plots need")


def save_figure(figure: Any, file: Path, dpi: int = 110) -> Path:
    """Write a figure and close it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=dpi)
    pyplot().close(figure)
    return file


def style_of(mode: str, modes: Sequence[str]) -> dict[str, str]:
    """One colour for each memory; the baselines are grey and dashed."""
    return {"color": GREYS[mode], "ls": "--"} if mode in GREYS else {"color": f"C{modes.index(mode)}", "ls": "-"}


def pair_of(system: System, modes: Sequence[str]) -> Sequence[str]:
    """The memories that a strip compares: all if they are at most two, else the system's default and its reference."""
    pair = [memory for memory in (system.default_memory, system.reference) if memory in modes]
    return modes if len(modes) <= 2 else pair or modes[:2]


def plot_strips(out: Path, names: Sequence[str], memories: Sequence[str]) -> None:
    """`out/strips.png`: for each group of walks the truth, and below it the dream with each of these memories (from `out/cells/`)."""
    plt = pyplot()
    rows = ["truth", *memories]
    figure, axes = plt.subplots(len(names) * len(rows), figsize=(10, 1.12 * len(names) * len(rows)), squeeze=False, layout="constrained")
    for i, name in enumerate(names):
        for j, row in enumerate(rows):
            ax = axes[i * len(rows) + j, 0]
            picture = plt.imread(strip_file(out, name, row))
            ax.imshow(picture, interpolation="nearest", aspect="auto")
            for edge in range(1, COLUMNS):
                ax.axvline(edge * picture.shape[1] / COLUMNS - 0.5, color="white", lw=2)
            ax.set(xticks=[], yticks=[], title=name if j == 0 else "")
            ax.set_ylabel(row, rotation=0, ha="right", va="center")
    save_figure(figure, out / "strips.png")
