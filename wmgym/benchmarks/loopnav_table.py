"""LoopNav's numbers as tables: cells, paired differences between modes, and the next frame from true history."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from wmgym.benchmarks.loopnav import BASELINES, VIEWS, Course
from wmgym.files import as_json
from wmgym.metrics.statistics import Interval, bootstrap_interval, paired_difference
from wmgym.systems import System

Cells = Mapping[str, Mapping[str, Any]]

NEAR = (0, 1.5, 3, 6, 10, math.inf)  # blocks
PREFACE = """\
# LoopNav

Means over loops with 95 % bootstrap intervals over loops. PSNR in dB; `drift` is the distance in blocks between the dreamed and the true
pose at the end of the leg. Terminal frames are the last 21, 31, 61, 101 at the paper's 20 frames/s: 6, 8, 16, 26 of our steps of 0.2 s.
`copy` repeats the last frame seen (for the next frame: the one before), `ceiling` is the autoencoder's own picture of the truth.
"""


def summarise(cells: Cells, wanted: Sequence[Course], modes: Sequence[str], system: System) -> dict[str, Any]:
    """Tables: each cell, paired differences between modes, and the next frame from true history."""
    table, differences, single = [], [], []
    for course in wanted:
        here = {mode: cells[f"{course.name} {mode}"]["loops"] for mode in (*modes, *BASELINES)}
        metrics = [m for m in ("psnr", "ssim", "lpips") if all(m in row["steps"] for rows in here.values() for row in rows)]
        where = {"task": course.task, "range": course.range}
        for mode, rows in here.items():
            line: dict[str, Any] = {**where, "mode": mode, "loops": len(rows), "leg": float(np.mean([row["leg"] for row in rows]))}
            for metric in metrics:
                line |= columns(metric, bootstrap_interval(leg_means(rows, metric)))
            if course.terminal is not None:
                line["terminal_frames"] = course.terminal
                for metric in metrics:
                    line |= columns(f"terminal_{metric}", bootstrap_interval(leg_means(rows, metric, course.terminal)))
            if mode in modes:
                line |= columns("drift", bootstrap_interval([row["steps"]["drift"][-1] for row in rows]))
            table.append(line)
            single += [{**where, "mode": mode, **found} for found in [_next_frame(rows, metrics)] if found]
        for a, b in system.comparisons:
            if a in here and b in here:
                line = {**where, "difference": f"{a} - {b}"}
                for metric in metrics:
                    line |= columns(metric, paired_difference(leg_means(here[a], metric), leg_means(here[b], metric)))
                differences.append(line)
    return {"cells": table, "differences": differences, "views": _by_view(cells, wanted, modes, system), "next_frame": single}


def _by_view(cells: Cells, wanted: Sequence[Course], modes: Sequence[str], system: System) -> list[dict[str, Any]]:
    """What memory gains on frames of the leg by how near such a view had been seen: means over the loops that have such frames."""
    lines: list[dict[str, Any]] = []
    pair = system.default_memory, system.reference
    if not set(pair) <= set(modes):
        return lines
    for course in wanted:
        views = cells.get(f"{course.name} {VIEWS}")
        if views is None:
            continue
        nearest = [np.array(row["nearest"]) for row in views["loops"]]
        with_it, without = ([np.array(row["steps"]["psnr"]) for row in cells[f"{course.name} {m}"]["loops"]] for m in pair)
        for low, high in pairwise(NEAR):
            masks = [(low <= n) & (n < high) for n in nearest]
            if not any(mask.any() for mask in masks):
                continue
            share = float(np.concatenate(masks).mean())
            a, b = ([float(v[mask].mean()) for v, mask in zip(values, masks, strict=True) if mask.any()] for values in (with_it, without))
            words = f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} or more"
            line = {"task": course.task, "range": course.range, "blocks_away": words, "share_of_frames": f"{share:.0%}"}
            lines.append(line | {"loops": len(a)} | columns(f"{pair[0]}_minus_{pair[1]}_psnr", paired_difference(a, b)))
    return lines


def leg_means(rows: Sequence[Mapping[str, Any]], metric: str, last: int | None = None) -> list[float]:
    """One number per loop: the mean over its leg, or over its last frames."""
    return [float(np.mean(row["steps"][metric][-(last or 0) :])) for row in rows]


def _next_frame(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, Any]:
    """Means over loops where the view moved; empty if it never did."""
    moves = [(row["next"], np.array(row["next"]["moved"], bool)) for row in rows]
    moves = [(values, mask) for values, mask in moves if mask.any()]
    if not moves:
        return {}
    line: dict[str, Any] = {"frames": int(sum(mask.sum() for _, mask in moves))}
    for metric in metrics:
        line |= columns(metric, bootstrap_interval([float(np.array(values[metric])[mask].mean()) for values, mask in moves]))
    return line


def columns(name: str, interval: Interval) -> dict[str, float]:
    """A mean and its bounds, as a table's entry."""
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def curve(rows: Sequence[Mapping[str, Any]], metric: str, share: float = 0.5) -> np.ndarray:
    """Mean over loops at each step of the leg, as far as at least this share of the loops goes."""
    values = [row["steps"][metric] for row in rows]
    length = sorted((len(v) for v in values), reverse=True)[math.ceil(share * len(values)) - 1]
    return np.array([np.mean([v[t] for v in values if len(v) > t]) for t in range(length)])


def markdown(summary: Mapping[str, Any], preface: str = PREFACE) -> str:
    """The tables for people."""
    lines = [preface, "## The leg, dreamed", "", *markdown_rows(summary["cells"])]
    lines += ["", "## Paired differences over the leg", "", *markdown_rows(summary["differences"])]
    if summary.get("views"):
        lines += ["", "## What memory gains, by how near a view in that direction (within 30 degrees) had been seen", ""]
        lines += markdown_rows(summary["views"])
    lines += ["", "## The next frame from true history, where the view moves", "", *markdown_rows(summary["next_frame"])]
    return "\n".join(lines) + "\n"


def markdown_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of one table; `x_low` and `x_high` stand beside `x` as its interval."""
    if not rows:
        return ["nothing to show"]
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if not name.endswith(("_low", "_high"))]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        lines.append("| " + " | ".join(_entry(row, name) for name in names) + " |")
    return lines


def _entry(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return "–"
    digits = 3 if name.endswith(("ssim", "lpips")) else 2
    if f"{name}_low" not in row:
        return f"{value:.1f}" if isinstance(value, float) else str(value)
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{value:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if math.isfinite(low) else "")  # one value has no interval


def report_json(summary: Mapping[str, Any]) -> bytes:
    """The summary for machines; NaN (no interval for a single loop) becomes null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return as_json(plain(summary))
