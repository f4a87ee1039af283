"""`wmgym eval loopmem`: dream along camera paths that come back, with any number of checkpoints and memories, in one table.

Writes one folder: `args.json`, `result.json`, `table.md`, `strips.png` (the truth, and each row's dream of the first walk), and one file
per finished cell in `cells/`. A killed run resumes from those. The paths are walked in the ground truth of the checkpoints' setting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from wmgym import checkpoint, settings, systems
from wmgym.agents import paths as camera
from wmgym.agents.collect import CollectArgs, collect, parse_kwargs
from wmgym.agents.paths import motions_of, path_program
from wmgym.benchmarks import loopmem
from wmgym.benchmarks.cells import strip_file, write_strip
from wmgym.benchmarks.loopmem import CONTROLS, Features, Tolerance
from wmgym.benchmarks.rollout import Walk, dream_legs
from wmgym.data.episode import list_episodes, load_episode
from wmgym.experiments.support.judged import encoded, untrained
from wmgym.experiments.support.pictures import check_plots, plot_strips
from wmgym.experiments.support.report import check_positive, check_seed, show_in, write_result
from wmgym.files import kept, open_run_folder, write_atomically
from wmgym.metrics import clip
from wmgym.progress import Progress
from wmgym.registration import default_checkpoint
from wmgym.world_model import WorldModel

UNTRAINED = "untrained"


@dataclass(frozen=True)
class LoopMemArgs:
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
    options: str = "{}"
    """The system's own keywords as JSON, such as {"memory_positions": "centroid"}; systems that do not know them are run without."""
    denoise_steps: int | None = None
    """Denoising steps per frame; by default the checkpoint's."""
    memory_budget: int | None = None
    """Frames that a memory may keep; by default the checkpoint's."""
    env_kwargs: str = "{}"
    """Keywords for the ground truth, as JSON."""
    seed: int = 100
    """Seed of worlds, walks and noise. Training uses 0 to 99 and evaluation 100 and above, so they never share a world."""
    lanes: int = 16
    """Walks dreamed in one batch."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, ..."""
    dtype: str = "auto"
    """float32 or bfloat16; auto: bfloat16 where the device multiplies it natively, else float32."""
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
    weights = sorted({row.world().provenance.weights for row in rows})
    free = {"paths", "device", "lanes", "out", "worlds"}  # change no finished cell
    open_run_folder(args.out, {**asdict(args), "weights": weights, "dtype": first.dtype_name}, free)
    features: dict[str, Features] = {"": partial(encoded, first), **models}
    motions = motions_of(setting)
    same = Tolerance(*motions.tolerances)
    if args.untrained:
        rows = [*rows, Row(UNTRAINED, rows[0].system, rows[0].memory, cache(partial(_untrained, args, rows[0])))]
    found: dict[str, dict[str, Any]] = {}
    with Progress(disable=not progress, unit="frame") as bar:
        for path in args.paths:
            walks_of = cache(partial(_walks, args, path, setting, same, progress))
            made = {}
            every: list[Row | str] = [*CONTROLS, *rows]
            for row in every:
                name = row if isinstance(row, str) else row.name
                cell = partial(_cell, args, path, row, walks_of, moves, same, features, show_in(bar))
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
        load = partial(_load, args, wanted, name)
        system = systems.get(load(None).provenance.system)
        for memory in dict.fromkeys(map(system.memory_name, memories if memories is not None else system.memories)):
            title = f"{system.name}-{memory}"
            if any(row.name == title for row in rows):
                title = f"{Path(name).stem}-{title}"
            rows.append(Row(title, system.name, memory, cache(partial(load, memory))))
    return rows


def _load(args: LoopMemArgs, system: str | None, name: str, memory: str | None) -> WorldModel:
    own = [f.name for f in fields(systems.get(system).options)] if system else []
    options = {key: value for key, value in parse_kwargs(args.options).items() if key in own}
    return checkpoint.load_world(
        name, system=system, memory=memory, options=options,
        denoise_steps=args.denoise_steps, memory_budget=args.memory_budget, device=args.device, dtype=args.dtype,
    )  # fmt: skip


def _untrained(args: LoopMemArgs, row: Row) -> WorldModel:
    """A row's network with fresh weights."""
    system, name, _ = parse_world(args.worlds[0])
    return untrained(row.world(), name, args.seed, system=system)


def setting_of_all(rows: Sequence[Row]) -> str:
    """The setting that all rows share; ValueError if there are several."""
    names = {row.world().provenance.setting for row in rows}
    if len(names) > 1:
        raise ValueError(f"one table needs checkpoints of one setting, these are of {', '.join(sorted(names))}")
    return names.pop()


def comparisons(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Each system's own comparisons, by the names of rows; and each row against its untrained network."""
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
    walks_of: Callable[[], list[Walk]],
    moves: Any,
    same: Tolerance,
    features: dict[str, Features],
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """The scores of one row on all walks of a path; a strip of the first walk is written beside them."""
    walks = walks_of()
    name = row if isinstance(row, str) else row.name
    if isinstance(row, str):
        legs = [walk.frames[walk.split :] if row == "truth" else _frozen(walk) for walk in walks]
    else:
        total, done = sum(walk.leg for walk in walks), 0

        def tick(frames: int) -> None:
            nonlocal done
            done += frames
            progress(f"{path} {name}", min(done, total), total)

        seeds = [args.seed * 1_000_000 + i for i in range(len(walks))]
        legs = [dream.frames for dream in dream_legs(row.world(), walks, seeds, args.lanes, tick)]
    write_strip(strip_file(args.out, path, name), legs[0])
    scores = []
    for walk, leg in zip(walks, legs, strict=True):
        pairs, there = loopmem.revisits(walk, moves, same)
        scores.append(loopmem.score(np.concatenate([walk.frames[: walk.split], leg]), walk, pairs[there], features))
    return {"path": path, "row": name, "walks": scores}


def _frozen(walk: Walk) -> np.ndarray:
    return np.repeat(walk.frames[walk.split - 1 : walk.split], walk.leg, 0)


def _walks(args: LoopMemArgs, path: str, setting: str, same: Tolerance, progress: bool) -> list[Walk]:
    """Collect until enough walks returned where they were commanded to."""
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
            return good[:wanted]
        if len(walks) >= 10 * wanted:
            raise ValueError(f"only {len(good)} of {len(walks)} walks of path {path!r} returned to the views that were commanded")
        mean = report["steps"] / report["episodes"]
        share = max(len(good) / len(walks), 0.2)
        steps = int(1.1 * mean * wanted / share) + report["steps"] // 10 + 1
