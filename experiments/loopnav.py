"""`wmgym eval loopnav`: the LoopNav table of one checkpoint with each of its memories.

Writes one folder: `args.json`, `result.json`, `table.md`, `curves.png` (error against the step), `strips.png` (truth and dreams), and one
file per finished cell in `cells/`. A killed run resumes from those. By default loops are walked in the ground truth, with seeds that no
training uses: collecting for training has seeds 0 to 99, evaluation has 100 and above.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wmgym.agents.collect import CollectArgs, collect
from wmgym.benchmarks import cells as cell_files
from wmgym.benchmarks import loopnav, tables
from wmgym.benchmarks.cells import BASELINES
from wmgym.benchmarks.loopnav import Course
from wmgym.benchmarks.rollout import Walk
from wmgym.data.loopnav import find_trajectories, read_episode, read_rows
from wmgym.experiments.support.judged import (
    OLDER,
    DreamArgs,
    context_lengths,
    encoded,
    loader,
    made_with,
    modes_of,
    reconstruct,
    training_in_words,
)
from wmgym.experiments.support.pictures import check_plots, pair_of, plot_strips, pyplot, save_figure, style_of
from wmgym.experiments.support.report import check_positive, check_seed, show_in, write_result
from wmgym.files import json_object, open_run_folder, write_atomically
from wmgym.metrics.image import lpips_available
from wmgym.progress import Progress
from wmgym.registration import default_checkpoint

STEPS_GUESS = {None: 40, 5: 60, 15: 110, 30: 200, 50: 320}  # range -> steps of a loop: how many steps to collect at first


@dataclass(frozen=True)
class LoopNavArgs(DreamArgs):
    """Walk loops in a ground truth, dream the way back, and compare it with the truth.

    Needs a checkpoint of Minecraft. Writes a folder with table.md, result.json, curves.png and strips.png. The time grows with tasks,
    ranges, modes, loops and denoising steps; long ranges dream most. A killed run resumes: type the same command again.
    """

    checkpoint: str = default_checkpoint("minecraft")
    """Bundled name, path, or hub name."""
    tasks: tuple[str, ...] = loopnav.TASKS
    """Of turn (loops that only turn), ABA, ABCA."""
    ranges: tuple[int, ...] = loopnav.RANGES
    """Of 5, 15, 30, 50 blocks."""
    modes: tuple[str, ...] | None = None
    """Memories to compare, with the same weights, loops and noise; by default all memories of the checkpoint's system."""
    loops: int = 30
    """Loops of each task and range."""
    dreams: int = 1
    """If more than 1: also a row for the mean of that many dreams of each memory, averaged frame by frame before they are judged."""
    known: bool = False
    """Also rows for what could be known: the share of each view that had been seen and splatting, by true depth, and the default memory's
    frames from true history. Loops are walked with depth; those of --data must have it."""
    data: Path | None = None
    """Folder of collected loops (and its subfolders), or of LoopNav's released films and rows. By default loops are walked, and kept in
    OUT/loops."""
    env_id: str = "Minecraft-v0"
    """Ground truth to walk in."""
    env_kwargs: str = "{}"
    """Keywords for the ground truth, as JSON."""
    seed: int = 100
    """Seed of worlds, walks and noise. Training uses 0 to 99 and evaluation 100 and above, so they never share a world."""
    lanes: int = 32
    """Loops dreamed in one batch."""
    out: Path = Path("runs/loopnav")
    """Folder for the results."""

    def __post_init__(self) -> None:
        loopnav.courses(self.tasks, self.ranges)
        if not (self.tasks and self.ranges) or self.modes == ():
            raise ValueError("tasks, ranges and modes must each name at least one")
        check_positive(self, "loops", "dreams", "lanes")
        check_seed(self.seed)
        json_object(self.env_kwargs, "env_kwargs")


def evaluate(args: LoopNavArgs, progress: bool = True) -> dict[str, Any]:
    """Make the cells that are missing, then the report (also in `result.json`)."""
    check_plots()
    out, wanted = args.out, loopnav.courses(args.tasks, args.ranges)
    world_of = loader(args.checkpoint, args)
    system, modes = modes_of(world_of, args.modes)
    first = world_of(modes[0])
    free = {"tasks", "ranges", "modes", "dreams", "device", "lanes", "out", "checkpoint", "known"}  # change no finished cell
    open_run_folder(out, {**asdict(args), **made_with(first), "measures": cell_files.MEASURES}, free, OLDER)
    read: Callable[[Course], list[Walk]] = lambda course: loopnav.read_loops(_walk(args, course, progress), depth=args.known)  # noqa: E731
    if args.data is not None:
        read = _from_data(args, wanted, first.frame_shape[0])
    known = None if not args.known else system.default_memory if system.default_memory in modes else modes[0]
    settings = cell_files.Settings(args.seed, args.lanes, lpips_available(), partial(encoded, first))
    loops_of = {course.name: partial(read, course) for course in wanted}
    with Progress(disable=not progress, unit="frame") as bar:
        through = partial(reconstruct, first)
        cells = cell_files.evaluate(loops_of, modes, world_of, through, out, settings, show_in(bar), args.dreams, known)
    summary = tables.summarise(cells, [course.group for course in wanted], modes, system, args.dreams, known)
    plot_curves(cells, wanted, modes, out / "curves.png")
    plot_strips(out, [course.name for course in wanted], pair_of(system, modes))
    report = {
        "checkpoint": args.checkpoint,
        "training": training_in_words(args.checkpoint),
        "loops": args.loops,
        "worlds": f"{args.env_id}, seeds from {args.seed * 1_000_000}" if args.data is None else str(args.data),
        "lpips": "measured" if settings.with_lpips else "left out: its weights are not here",
        "context": context_lengths(world_of, modes),
        **summary,
        "out": str(out),
    }
    write_result(out, report)
    preface = loopnav.PREFACE + (loopnav.KNOWN if args.known else "")
    write_atomically(out / "table.md", tables.markdown(summary, preface, report["training"]).encode())
    return report


# -- where loops come from --------------------------------------------------------------------------------------------------------------


def _from_data(args: LoopNavArgs, wanted: Sequence[Course], size: int) -> Callable[[Course], list[Walk]]:
    assert args.data is not None
    films = find_trajectories(args.data)
    if films and args.known:
        raise ValueError(f"{args.data} holds films, which have no depth; leave out --known")
    if films:
        return _from_films(films, wanted, args.loops, size)
    found = loopnav.find_loops(args.data, wanted, args.loops)
    return lambda course: loopnav.read_loops(found[course], depth=args.known)


def _from_films(files: Sequence[Path], wanted: Sequence[Course], count: int, size: int) -> Callable[[Course], list[Walk]]:
    """Loops in the released layout. Their rows name the course; films are read when their course is evaluated."""
    by_name: dict[str, list[Path]] = {}
    for path in files:
        info = read_rows(path)[0].get("extra_info") or {}
        by_name.setdefault(f"{info.get('nvtype')}-{info.get('nvrange')}", []).append(path)
    for course in wanted:
        if len(by_name.get(course.name, [])) < count:
            there = ", ".join(f"{len(paths)} of {name}" for name, paths in sorted(by_name.items()))
            raise ValueError(f"{count} films of {course.name} are asked for, there are {there}; see --tasks, --ranges and --loops")

    def read(course: Course) -> list[Walk]:
        return [loopnav.loop_of(read_episode(path, size)) for path in by_name[course.name][:count]]

    return read


def _walk(args: LoopNavArgs, course: Course, progress: bool) -> list[Path]:
    """Collect until there are enough loops. How many steps they take is known only afterwards."""
    folder = args.out / "loops" / course.walker
    steps, episodes = args.loops * STEPS_GUESS[course.range], 0
    while episodes < args.loops:
        wanted = CollectArgs(args.env_id, course.walker, steps, folder, args.seed, env_kwargs=args.env_kwargs, depth=args.known)
        report = collect(wanted, progress=progress)
        episodes = report["episodes"]
        steps = math.ceil(1.1 * report["steps"] * args.loops / episodes) + 1
    return loopnav.find_loops(folder, [course], args.loops)[course]


# -- pictures ---------------------------------------------------------------------------------------------------------------------------


def plot_curves(cells: Mapping[str, Mapping[str, Any]], wanted: Sequence[Course], modes: Sequence[str], file: Path) -> None:
    """PSNR (left) and drift of the pose (right) against the step of the leg: one row per course."""
    plt = pyplot()
    figure, axes = plt.subplots(len(wanted), 2, figsize=(11, 2.6 * len(wanted)), squeeze=False, layout="constrained")
    for (left, right), course in zip(axes, wanted, strict=True):
        for mode in (*modes, *BASELINES):
            rows = cells[f"{course.name} {mode}"]["loops"]
            values = tables.curve(rows, "psnr")
            left.plot(np.arange(1, len(values) + 1), values, label=mode, **style_of(mode, modes))
            if mode in modes:
                right.plot(np.arange(1, len(values) + 1), tables.curve(rows, "drift"), label=mode, **style_of(mode, modes))
        left.set(title=f"{course.name}, {len(rows)} loops", ylabel="PSNR, dB", xlabel="step of the way back")
        right.set(title=course.name, ylabel="pose drift, blocks", xlabel="step of the way back")
        right.set_ylim(bottom=0)
        for ax in (left, right):
            ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].legend(fontsize="small", ncols=2)
    save_figure(figure, file)
