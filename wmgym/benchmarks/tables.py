"""Tables of cells: means with intervals, paired differences between memories, scores by nearest view, and single next frames."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from wmgym.benchmarks.cells import BASELINES, COVERED, VIEWS, known_rows, mean_of
from wmgym.metrics.statistics import Interval, bootstrap_interval, paired_difference
from wmgym.systems import System

Cells = Mapping[str, Mapping[str, Any]]  # "NAME MODE" -> cell (`cells.evaluate`)
Row = Mapping[str, Any]

METRICS = ("psnr", "ssim", "lpips", "sharpness", "feature_distance")  # columns, where all cells have them
AT_THE_END = ("psnr", "ssim", "lpips")  # also of the terminal frames alone
RATIOS = {"sharpness": ("gradient", "true_gradient")}  # column -> scores whose means over a walk are divided
NEAR = (0, 1.5, 3, 6, 10, math.inf)  # blocks: bounds of the bins of nearest views
SEEN = (0, 0.25, 0.5, 0.75, 0.9, math.inf)  # bounds of the bins of shares that had been seen


@dataclass(frozen=True)
class Group:
    """A group of walks as the tables show it."""

    name: str  # in the names of its cells
    labels: Mapping[str, Any]  # first columns of its rows
    terminal: int | None = None  # how many frames at the end of the leg are also scored alone
    count: str = "loops"  # the column that counts the walks
    length: str = "leg"  # the column of their mean length


def summarise(
    cells: Cells, groups: Sequence[Group], modes: Sequence[str], system: System, dreams: int = 1, known: str | None = None
) -> dict[str, Any]:
    """All tables: each cell, paired differences between memories, gains by nearest view, and the next frame from true history.

    dreams: if more than 1, the mean of that many dreams is a row after each memory. known: also the rows of what could be known
    (`cells.evaluate`).
    """
    titles = {mean_of(mode, n): mean_of(system.title(mode), n) for mode in modes for n in sorted({1, dreams})}
    table, differences, single = [], [], []
    for group in groups:
        here = {mode: cells[f"{group.name} {mode}"]["loops"] for mode in (*titles, *BASELINES, *known_rows(known))}
        metrics = [m for m in METRICS if all(set(RATIOS.get(m, (m,))) <= row["steps"].keys() for rows in here.values() for row in rows)]
        for mode, rows in here.items():
            title = titles.get(mode, mode)
            table.append(_cell(group, title, rows, metrics, has_drift=mode in titles))
            single += [{**group.labels, "mode": title, **found} for found in [_next_frame(rows, metrics)] if found]
        for a, b in system.comparisons:
            if a in here and b in here:
                line = {**group.labels, "difference": f"{a} - {b}"}
                for metric in metrics:
                    line |= columns(metric, paired_difference(leg_means(here[a], metric), leg_means(here[b], metric)))
                differences.append(line)
    tables = {"cells": table, "differences": differences, "views": _by_view(cells, groups, modes, system, VIEWS), "next_frame": single}
    if known is not None:
        tables |= {"covered": [_covered(cells, group) for group in groups], "by_cover": _by_view(cells, groups, modes, system, COVERED)}
    return tables


def row_title(mode: str, system: System) -> str:
    """What a baseline or a memory is called in the tables."""
    return mode if mode in BASELINES else system.title(mode)


def _cell(group: Group, title: str, rows: Sequence[Row], metrics: Sequence[str], *, has_drift: bool) -> dict[str, Any]:
    legs = [row["leg"] for row in rows]
    line: dict[str, Any] = {**group.labels, "mode": title, group.count: len(rows), group.length: float(np.mean(legs))}
    for metric in metrics:
        line |= columns(metric, bootstrap_interval(leg_means(rows, metric)))
    if group.terminal is not None:
        line["terminal_frames"] = group.terminal
        for metric in (m for m in metrics if m in AT_THE_END):
            line |= columns(f"terminal_{metric}", bootstrap_interval(leg_means(rows, metric, group.terminal)))
    if has_drift:
        line |= columns("drift", bootstrap_interval([row["steps"]["drift"][-1] for row in rows]))
    return line


def _covered(cells: Cells, group: Group) -> dict[str, Any]:
    """The share of the views' pixels that had been seen."""
    rows = cells[f"{group.name} {COVERED}"]["loops"]
    shares = bootstrap_interval([float(np.mean(row["covered"])) for row in rows])
    return {**group.labels, group.count: len(rows), **columns("share_seen_before", shares)}


def _by_view(cells: Cells, groups: Sequence[Group], modes: Sequence[str], system: System, by: str) -> list[dict[str, Any]]:
    """What memory gains, by how near each view had been observed (`VIEWS`) or by the share of it that had been (`COVERED`).

    Means over the walks that have such frames.
    """
    values_of, bins, column = ("nearest", NEAR, "blocks_away") if by == VIEWS else ("covered", SEEN, "seen_before")
    lines: list[dict[str, Any]] = []
    pair = system.default_memory, system.reference
    if not set(pair) <= set(modes):
        return lines
    for group in groups:
        views = cells.get(f"{group.name} {by}")
        if views is None:
            continue
        nearest = [np.array(row[values_of]) for row in views["loops"]]
        with_it, without = ([np.array(row["steps"]["psnr"]) for row in cells[f"{group.name} {m}"]["loops"]] for m in pair)
        for low, high in pairwise(bins):
            masks = [(low <= n) & (n < high) for n in nearest]
            if not any(mask.any() for mask in masks):
                continue
            share = float(np.concatenate(masks).mean())
            a, b = ([float(v[mask].mean()) for v, mask in zip(values, masks, strict=True) if mask.any()] for values in (with_it, without))
            words = f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} or more"
            line = {**group.labels, column: words, "share_of_frames": f"{share:.0%}", group.count: len(a)}
            lines.append(line | columns(f"{pair[0]}_minus_{pair[1]}_psnr", paired_difference(a, b)))
    return lines


def _next_frame(rows: Sequence[Row], metrics: Sequence[str]) -> dict[str, Any]:
    """Means over the walks, of the frames at which the view moved; empty if it never did."""
    moves = [(row["next"], np.array(row["next"]["moved"], bool)) for row in rows]
    moves = [(values, mask) for values, mask in moves if mask.any()]
    if not moves:
        return {}
    line: dict[str, Any] = {"frames": int(sum(mask.sum() for _, mask in moves))}
    for metric in metrics:
        line |= columns(metric, bootstrap_interval([_mean(values, metric, mask) for values, mask in moves]))
    return line


def leg_means(rows: Sequence[Row], metric: str, last: int | None = None) -> list[float]:
    """One number per walk: the mean over its leg, or over the leg's last frames."""
    return [_mean(row["steps"], metric, slice(-(last or 0), None)) for row in rows]


def _mean(scores: Mapping[str, Sequence[float]], metric: str, part: slice | np.ndarray) -> float:
    """Mean of a metric over a part of the frames. A ratio is that of the means; NaN where the lower one is 0."""
    if metric in RATIOS:
        above, below = (_mean(scores, name, part) for name in RATIOS[metric])
        return above / below if below else math.nan
    return float(np.asarray(scores[metric])[part].mean())


def curve(rows: Sequence[Row], metric: str, share: float = 0.5) -> np.ndarray:
    """Mean over walks at each step of the leg, up to the last step that at least this share of the walks reaches."""
    values = [row["steps"][metric] for row in rows]
    length = sorted((len(v) for v in values), reverse=True)[math.ceil(share * len(values)) - 1]
    return np.array([np.mean([v[t] for v in values if len(v) > t]) for t in range(length)])


def columns(name: str, interval: Interval) -> dict[str, float]:
    """A mean and the bounds of its interval as three columns: NAME, NAME_low, NAME_high."""
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def score_columns(walks: Sequence[Row], metrics: Sequence[str], clusters: Sequence[Hashable] | None = None) -> dict[str, float]:
    """Means with bootstrap intervals of the metrics that all walks have."""
    line: dict[str, float] = {}
    for metric in metrics:
        if all(metric in walk for walk in walks):
            line |= columns(metric, bootstrap_interval([walk[metric] for walk in walks], clusters=clusters))
    return line


def difference_columns(
    first: Sequence[Row], second: Sequence[Row], metrics: Sequence[str], clusters: Sequence[Hashable] | None = None
) -> dict[str, float]:
    """Paired differences over the same walks, of the metrics that all of them have."""
    line: dict[str, float] = {}
    for metric in metrics:
        if all(metric in walk for walk in (*first, *second)):
            a, b = ([walk[metric] for walk in walks] for walks in (first, second))
            line |= columns(metric, paired_difference(a, b, clusters=clusters))
    return line


# -- markdown ---------------------------------------------------------------------------------------------------------------------------


def markdown(summary: Mapping[str, Any], preface: str, footer: str = "") -> str:
    """The tables of `summarise` as a page. footer: what is known of the weights."""
    lines = [preface, "## The leg, dreamed", "", *markdown_rows(summary["cells"])]
    lines += ["", "## Paired differences over the leg", "", *markdown_rows(summary["differences"])]
    if summary.get("views"):
        lines += ["", "## What memory gains, by how near a view in that direction (within 30 degrees) had been seen", ""]
        lines += markdown_rows(summary["views"])
    if "covered" in summary:
        lines += ["", "## Share of the views' pixels whose surface had been seen", "", *markdown_rows(summary["covered"])]
        lines += ["", "## What memory gains, by the share of the view that had been seen", "", *markdown_rows(summary["by_cover"])]
    lines += ["", "## The next frame from true history, where the view moves", "", *markdown_rows(summary["next_frame"])]
    return "\n".join([*lines, *(["", footer] if footer else [])]) + "\n"


def markdown_rows(rows: Sequence[Row]) -> list[str]:
    """The lines of one table. `x_low` and `x_high` are shown beside `x`, as its interval."""
    if not rows:
        return ["nothing to show"]
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if not name.endswith(("_low", "_high"))]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        lines.append("| " + " | ".join(_entry(row, name) for name in names) + " |")
    return lines


def _entry(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        return "–"
    digits = 3 if name.endswith(("ssim", "lpips", "feature_distance")) else 2
    if f"{name}_low" not in row:
        return f"{value:.1f}" if isinstance(value, float) else str(value)
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{value:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if math.isfinite(low) else "")  # one value has no interval
