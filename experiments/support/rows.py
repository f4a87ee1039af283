"""Rows that several worlds share in one table: each checkpoint with each of its memories, and the controls `truth`, `frozen`, `untrained`.

All rows show the same walks, and dreams share their noise, so differences between rows are paired. A cell is one row on one group of
walks: `cells/GROUP-ROW.json` with the scores of each walk, and `cells/GROUP-ROW.png` with a strip of the first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from wmgym import systems
from wmgym.agents.collect import WORLDS_PER_SEED
from wmgym.benchmarks.cells import Progress, cell_file, copied, strip_file, ticker, write_strip
from wmgym.benchmarks.loopmem import CONTROLS
from wmgym.benchmarks.rollout import Walk, dream_legs
from wmgym.experiments.support.judged import DreamArgs, loader, modes_of, untrained
from wmgym.files import json_object, kept
from wmgym.world_model import WorldModel

UNTRAINED = "untrained"
Score = Callable[[np.ndarray, int], dict[str, Any]]  # the frames of a leg [L, H, W, 3], the number of its walk -> scores
Keep = Callable[[str, int, np.ndarray], None]  # what else to do with a row's leg, before its cell counts as finished
Scores = dict[str, list[dict[str, Any]]]  # row -> the scores of each walk


@dataclass(frozen=True)
class Row:
    """One row of the tables: a checkpoint with one memory."""

    name: str
    system: str
    memory: str
    world: Callable[[], WorldModel]


# -- which rows -------------------------------------------------------------------------------------------------------------------------


def parse_world(text: str) -> tuple[str | None, str, tuple[str, ...] | None]:
    """ "SYSTEM@CHECKPOINT=MEMORY,MEMORY" -> system, checkpoint, memories."""
    head, _, tail = text.partition("@")
    system = head if tail and head in systems.names() else None
    name, found, memories = (tail if system else text).partition("=")
    if not name or (found and not all(memories.split(","))):
        raise ValueError(f"a world is CHECKPOINT or SYSTEM@CHECKPOINT, then perhaps =MEMORY,MEMORY; got {text!r}")
    return system, name, tuple(memories.split(",")) if found else None


def find_rows(worlds: Sequence[str], args: DreamArgs) -> list[Row]:
    """One row per world and memory. Rows of several checkpoints of one system are named after the checkpoint too.

    A system that does not know one of `args.options` is run without it.
    """
    rows: list[Row] = []
    for text in worlds:
        wanted, name, memories = parse_world(text)
        how = replace(args, system=wanted or args.system, options="{}")
        system, modes = modes_of(loader(name, how), memories)
        known = {f.name for f in fields(system.options)}
        own = {key: value for key, value in json_object(args.options, "options").items() if key in known}
        world_of = loader(name, replace(how, options=json.dumps(own)))
        for memory in modes:
            title = f"{system.name}-{memory}"
            if any(row.name == title for row in rows):
                title = f"{Path(name).stem}-{title}"
            rows.append(Row(title, system.name, memory, partial(world_of, memory)))
    return rows


def untrained_row(args: DreamArgs, world: str, row: Row, seed: int) -> Row:
    """The row `untrained`: the network of `row`, which belongs to `world`, with fresh weights."""
    system, name, _ = parse_world(world)
    make = partial(untrained, name=name, seed=seed, system=system or args.system, memory_budget=args.memory_budget)
    return Row(UNTRAINED, row.system, row.memory, cache(lambda: make(row.world())))


def setting_of_all(rows: Sequence[Row]) -> str:
    """The setting that all rows share; ValueError if there are several."""
    names = {row.world().provenance.setting for row in rows}
    if len(names) > 1:
        raise ValueError(f"one table needs checkpoints of one setting, these are of {', '.join(sorted(names))}")
    return names.pop()


def comparisons(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Each system's own comparisons, by the names of rows."""
    found = []
    for a, b in ((a, b) for a in rows for b in rows if a.system == b.system):
        if (a.memory, b.memory) in systems.get(a.system).comparisons and UNTRAINED not in (a.name, b.name):
            found.append((a.name, b.name))
    return found


# -- cells ------------------------------------------------------------------------------------------------------------------------------


def nothing_more(row: str, k: int, leg: np.ndarray) -> None:
    """The `Keep` that does nothing."""


def row_cells(
    out: Path,
    group: str,
    rows: Sequence[Row],
    walks_of: Callable[[], Sequence[Walk]],
    score: Score,
    *,
    seed: int,
    lanes: int,
    progress: Progress,
    keep: Keep = nothing_more,
) -> Scores:
    """Row -> the scores of each walk of a group, for the controls and all rows. Finished cells are read, missing ones are made."""

    def make(row: Row | str, name: str) -> dict[str, Any]:
        walks = walks_of()
        tick = ticker(progress, f"{group} {name}", sum(walk.leg for walk in walks))
        legs = _shown(row, walks, [seed * WORLDS_PER_SEED + i for i in range(len(walks))], lanes, tick)
        write_strip(strip_file(out, group, name), legs[0])
        for k, leg in enumerate(legs):
            keep(name, k, leg)
        return {"path": group, "row": name, "walks": [score(leg, k) for k, leg in enumerate(legs)]}

    named: list[tuple[Row | str, str]] = [*((name, name) for name in CONTROLS), *((row, row.name) for row in rows)]
    return {name: kept(cell_file(out, group, name), partial(make, row, name))["walks"] for row, name in named}


def _shown(row: Row | str, walks: Sequence[Walk], seeds: Sequence[int], lanes: int, tick: Callable[[int], None]) -> list[np.ndarray]:
    """Each walk's leg as a row shows it."""
    if row == "truth":
        return [walk.frames[walk.split :] for walk in walks]
    if row == "frozen":
        return [copied(walk) for walk in walks]
    assert isinstance(row, Row)
    return [dream.frames for dream in dream_legs(row.world(), walks, seeds, lanes, tick)]
