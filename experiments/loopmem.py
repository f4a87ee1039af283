"""`wmgym eval loopmem`: dream along camera paths that come back, with any number of checkpoints and memories, in one table.

Writes one folder: `args.json`, `result.json`, `table.md`, `strips.png` (the truth, and each row's dream of the first walk), and one file
per finished cell in `cells/`. A killed run resumes from those. The paths are walked in the ground truth of the checkpoints' setting.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from wmgym import settings, systems
from wmgym.agents import paths as camera
from wmgym.agents.collect import WORLDS_PER_SEED, CollectArgs, collect, parse_kwargs
from wmgym.agents.paths import motions_of, path_program
from wmgym.benchmarks import loopmem
from wmgym.benchmarks.cells import strip_file, ticker, write_strip
from wmgym.benchmarks.loopmem import CONTROLS, Features, Tolerance
from wmgym.benchmarks.rollout import Walk, dream_legs
from wmgym.data.episode import list_episodes, load_episode
from wmgym.experiments.support.judged import DreamArgs, encoded, loader, modes_of, untrained
from wmgym.experiments.support.pictures import check_plots, plot_strips
from wmgym.experiments.support.report import check_positive, check_seed, show_in, write_result
from wmgym.files import kept, open_run_folder, write_atomically
from wmgym.metrics import clip
from wmgym.progress import Progress
from wmgym.registration import default_checkpoint
from wmgym.world_model import WorldModel

UNTRAINED = "untrained"


@dataclass(frozen=True)
class LoopMemArgs(DreamArgs):
    """Dream along commanded camera paths that return to earlier views, and measure how well what comes back agrees with what was there.

    Needs checkpoints of one setting with a camera. Writes a folder with table.md, result.json and strips.png. The time grows with worlds,
    memories, paths, walks and the lengths of the paths. A killed run resumes: type the same command again.
    """

    worlds: tuple[str, ...] = (default_checkpoint("minecraft"),)
    """Checkpoints, each with the memories to compare: CHECKPOINT or CHECKPOINT=MEMORY,MEMORY; SYSTEM@CHECKPOINT runs it as another system
    that stands on its weights. Without memories: all of the system."""
    paths: tuple[str, ...] = ("aba-2", "aba-8", "ababa-2", "polygon-3-2", "pan-90", "pan-180", "pan-360", "wander-16")
    """Of aba-N, ababa-N, polygon-K-N, pan-D, wander-N and stroll-N: legs of N chunks of 4 steps, K legs, D degrees."""
    walks: int = 20
    """Walks of each path."""
    untrained: bool = True
    """Also a row with the first checkpoint's network and fresh weights."""
    clip: str | None = None
    """Folder of a CLIP model (config.json, model.safetensors), such as ViT-B/32, for `pac_clip`. Nothing is downloaded."""
    options: str = field(default="{}", kw_only=True)
    """The system's own keywords as JSON, such as {"memory_positions": "centroid"}; systems that do not know them are run without."""
    env_kwargs: str = "{}"
    """Keywords for the ground truth, as JSON."""
    seed: int = 100
    """Seed of worlds, walks and noise. Training uses 0 to 99 and evaluation 100 and above, so they never share a world."""
    lanes: int = 16
    """Walks dreamed in one batch."""
    out: Path = Path("runs/loopmem")
    """Folder for the results."""

    def __post_init__(self) -> None:
        if not (self.worlds and self.paths):
            raise ValueError("worlds and paths must each name at least one")
        check_positive(self, "walks", "lanes")
        check_seed(self.seed)
        parse_kwargs(self.env_kwargs)
        parse_kwargs(self.options, "options")


@dataclass(frozen=True)
class Row:
    """One row of the tables: a checkpoint with one memory."""

    name: str
    system: str
    memory: str
    world: Callable[[], WorldModel]


def evaluate(args: LoopMemArgs, progress: bool = True) -> dict[str, Any]:
    """Make the cells that are missing, then the report (also in `result.json`)."""
    check_plots()
    models = {} if args.clip is None else {"clip": clip.load(args.clip, args.device)}
    rows = find_rows(args)
    first = rows[0].world()
    setting = setting_of_all(rows)
    moves = settings.get(setting).kinematics
    assert moves is not None
    for path in args.paths:
        path_program(path, setting)  # unknown names are refused before any work
    weights, judge = sorted({row.world().provenance.weights for row in rows}), first.provenance.autoencoder
    free = {"paths", "device", "lanes", "out", "worlds"}  # change no finished cell
    open_run_folder(args.out, {**asdict(args), "weights": weights, "features": judge, "dtype": first.dtype_name}, free)
    features: dict[str, Features] = {"": partial(encoded, first), **models}
    same = Tolerance(*motions_of(setting).tolerances)
    if args.untrained:
        rows = [*rows, Row(UNTRAINED, rows[0].system, rows[0].memory, cache(partial(_untrained, args, rows[0])))]
    found: dict[str, dict[str, Any]] = {}
    with Progress(disable=not progress, unit="frame") as bar:
        for path in args.paths:
            walks_of = cache(partial(_walks, args, path, setting, same, progress=progress))
            made = {}
            every: list[Row | str] = [*CONTROLS, *rows]
            for row in every:
                name = row if isinstance(row, str) else row.name
                cell = partial(_cell, args, path, row, walks_of, features, show_in(bar))
                made[name] = kept(args.out / "cells" / f"{path}-{name}.json", cell)["walks"]
            found[path] = made
    summary = loopmem.summarise(found, comparisons(rows))
    shown = ["frozen", *(row.name for row in rows)]
    plot_strips(args.out, args.paths, shown)
    what = f"features of the autoencoder of {rows[0].name!r}"
    report = {"worlds": list(args.worlds), "walks": args.walks, "features": what, "clip": args.clip, **summary, "out": str(args.out)}
    write_result(args.out, report)
    write_atomically(args.out / "table.md", loopmem.markdown(summary, what).encode())
    return report


# -- rows -------------------------------------------------------------------------------------------------------------------------------


def parse_world(text: str) -> tuple[str | None, str, tuple[str, ...] | None]:
    """ "SYSTEM@CHECKPOINT=MEMORY,MEMORY" -> system, checkpoint, memories."""
    head, _, tail = text.partition("@")
    system = head if tail and head in systems.names() else None
    name, found, memories = (tail if system else text).partition("=")
    if not name or (found and not all(memories.split(","))):
        raise ValueError(f"a world is CHECKPOINT or SYSTEM@CHECKPOINT, then perhaps =MEMORY,MEMORY; got {text!r}")
    return system, name, tuple(memories.split(",")) if found else None


def find_rows(args: LoopMemArgs) -> list[Row]:
    """One row per world and memory. Rows of several checkpoints of one system are named after the checkpoint too."""
    rows: list[Row] = []
    for text in args.worlds:
        wanted, name, memories = parse_world(text)
        how = replace(args, system=wanted or args.system, options="{}")
        system, modes = modes_of(loader(name, how), memories)
        known = {f.name for f in fields(system.options)}
        own = {key: value for key, value in parse_kwargs(args.options, "options").items() if key in known}
        world_of = loader(name, replace(how, options=json.dumps(own)))
        for memory in modes:
            title = f"{system.name}-{memory}"
            if any(row.name == title for row in rows):
                title = f"{Path(name).stem}-{title}"
            rows.append(Row(title, system.name, memory, partial(world_of, memory)))
    return rows


def _untrained(args: LoopMemArgs, row: Row) -> WorldModel:
    """A row's network with fresh weights."""
    system, name, _ = parse_world(args.worlds[0])
    return untrained(row.world(), name, args.seed, system=system or args.system, memory_budget=args.memory_budget)


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


def _cell(
    args: LoopMemArgs,
    path: str,
    row: Row | str,
    walks_of: Callable[[], list[tuple[Walk, np.ndarray]]],
    features: dict[str, Features],
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """The scores of one row on all walks of a path; a strip of the first walk is written beside them."""
    walks, pairs = zip(*walks_of(), strict=True)
    name = row if isinstance(row, str) else row.name
    if isinstance(row, str):
        legs = [walk.frames[walk.split :] if row == "truth" else _frozen(walk) for walk in walks]
    else:
        tick = ticker(progress, f"{path} {name}", sum(walk.leg for walk in walks))
        seeds = [args.seed * WORLDS_PER_SEED + i for i in range(len(walks))]
        legs = [dream.frames for dream in dream_legs(row.world(), walks, seeds, args.lanes, tick)]
    write_strip(strip_file(args.out, path, name), legs[0])
    films = [np.concatenate([walk.frames[: walk.split], leg]) for walk, leg in zip(walks, legs, strict=True)]
    scores = [loopmem.score(film, walk, again, features) for film, walk, again in zip(films, walks, pairs, strict=True)]
    return {"path": path, "row": name, "walks": scores}


def _frozen(walk: Walk) -> np.ndarray:
    return np.repeat(walk.frames[walk.split - 1 : walk.split], walk.leg, 0)


def _walks(args: LoopMemArgs, path: str, setting: str, same: Tolerance, *, progress: bool) -> list[tuple[Walk, np.ndarray]]:
    """Collect until enough walks returned where they were commanded to. Returns them with the pairs of frames that show a view again."""
    truth, moves = settings.get(setting).truth, settings.get(setting).kinematics
    if truth is None or moves is None:
        raise ValueError(f"setting {setting!r} has no ground truth to walk in")
    folder, walker = args.out / "paths" / path, f"path-{path}"
    steps, wanted = args.walks * 64, args.walks
    while True:
        collecting = CollectArgs(truth, walker=walker, steps=steps, out=folder, seed=args.seed, env_kwargs=args.env_kwargs)
        report = collect(collecting, progress=progress)
        walks = [loopmem.walk_of(load_episode(file), camera.PATH) for file in list_episodes(folder)]
        good = [walk for walk in walks if loopmem.is_walked(walk, moves, same)]
        if len(good) >= wanted:
            found = [(walk, *loopmem.revisits(walk, moves, same)) for walk in good[:wanted]]
            return [(walk, pairs[there]) for walk, pairs, there in found]
        if len(walks) >= 10 * wanted:
            raise ValueError(f"only {len(good)} of {len(walks)} walks of path {path!r} returned to the views that were commanded")
        mean = report["steps"] / report["episodes"]
        share = max(len(good) / len(walks), 0.2)
        steps = int(1.1 * mean * wanted / share) + report["steps"] // 10 + 1
