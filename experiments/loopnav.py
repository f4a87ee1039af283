"""`wmgym eval loopnav`: the LoopNav table of one checkpoint in its memory modes.

Writes one folder: `args.json`, `result.json`, `table.md`, `curves.png` (error against step), `strips.png` (truth and dreams), and a
file per finished cell in `cells/`, so that a killed run goes on where it was. Loops are walked in the ground truth unless `--data`
gives them. Worlds: seed 100 and above, as collecting has it, so none of those trained on (0 to 99).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from wmgym import systems
from wmgym.agents.collect import CollectArgs, collect, parse_kwargs
from wmgym.benchmarks import loopnav, loopnav_table
from wmgym.benchmarks.loopnav import BASELINES, Course
from wmgym.benchmarks.rollout import loop_of
from wmgym.checkpoint import load_world
from wmgym.data.loopnav import find_trajectories, read_episode, read_rows
from wmgym.experiments.plots import pyplot
from wmgym.files import open_run_folder, write_atomically
from wmgym.metrics.image import lpips_available
from wmgym.nets.autoencoder import to_uint8
from wmgym.systems import System
from wmgym.world_model import WorldModel

STEPS_GUESS = {None: 40, 5: 60, 15: 110, 30: 200, 50: 320}  # of a loop, by range: only how many to ask for first
GREYS = {"copy": "0.6", "ceiling": "0.2"}


@dataclass(frozen=True, kw_only=True)
class DreamArgs:
    """How a checkpoint dreams where it is judged."""

    denoise_steps: int | None = None
    """By default the checkpoint's."""
    pose_source: str | None = None
    """learned or actions; by default the checkpoint's."""
    memory_budget: int | None = None
    """Frames remembered; by default the checkpoint's."""
    device: str = "auto"
    """cpu, cuda, ..."""
    dtype: str = "auto"
    """float32 or bfloat16; auto: float32 on a CPU, bfloat16 on a GPU."""


@dataclass(frozen=True)
class LoopNavArgs(DreamArgs):
    """Walk loops in a ground truth, dream the way back, and compare it with the truth."""

    checkpoint: str = "worldpack-minecraft"
    """Bundled name, path, or hub name."""
    tasks: tuple[str, ...] = loopnav.TASKS
    """Of turn (loops that only turn), ABA, ABCA."""
    ranges: tuple[int, ...] = loopnav.RANGES
    """Of 5, 15, 30, 50 blocks."""
    modes: tuple[str, ...] | None = None
    """Memories, all with the same weights, loops and noise; by default all of the checkpoint's system."""
    loops: int = 30
    """Loops of each task and range."""
    data: Path | None = None
    """Folder of loops already collected (and its subfolders), or of LoopNav's released films and rows; by default loops are walked, and
    kept in OUT/loops."""
    env_id: str = "Minecraft-v0"
    """Ground truth to walk in."""
    env_kwargs: str = "{}"
    """Keywords for it, as JSON."""
    seed: int = 100
    """Of worlds, walks and noise. Training has 0 to 99, evaluation 100 and above: they never share a world."""
    lanes: int = 32
    """Loops dreamed in one batch."""
    out: Path = Path("runs/loopnav")
    """Folder for the results."""

    def __post_init__(self) -> None:
        loopnav.courses(self.tasks, self.ranges)
        if not (self.tasks and self.ranges) or self.modes == ():
            raise ValueError("tasks, ranges and modes must each name at least one")
        for name in ("loops", "lanes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        parse_kwargs(self.env_kwargs)


def evaluate(args: LoopNavArgs, progress: bool = True) -> dict[str, Any]:
    """All cells that are not there yet, then the report (also in `result.json`)."""
    out, wanted = args.out, loopnav.courses(args.tasks, args.ranges)
    world_of = loader(args.checkpoint, args)
    system, modes = modes_of(world_of, args.modes)
    free = {"tasks", "ranges", "modes", "device", "lanes", "out", "checkpoint"}  # change no finished cell
    open_run_folder(out, {**asdict(args), **made_with(world_of(modes[0]))}, free)
    loops_of: Callable[[Course], list[loopnav.Loop]] = lambda course: loopnav.read_loops(_walk(args, course, progress))  # noqa: E731
    if args.data is not None:
        loops_of = _from_data(args.data, args.loops, wanted, world_of(modes[0]).frame_shape[0])
    settings = loopnav.Settings(args.seed, args.lanes, lpips_available())
    through = partial(reconstruct, world_of(modes[0]))
    with tqdm(disable=not progress, unit="frame") as bar:
        cells = loopnav.evaluate(wanted, modes, loops_of, world_of, through, out, settings, show_in(bar))
    summary = loopnav_table.summarise(cells, wanted, modes, system)
    plot_curves(cells, wanted, modes, out / "curves.png")
    plot_strips(wanted, modes, out)
    report = {
        "checkpoint": args.checkpoint,
        "loops": args.loops,
        "worlds": f"{args.env_id}, seeds from {args.seed * 1_000_000}" if args.data is None else str(args.data),
        "lpips": "measured" if settings.with_lpips else "left out: its weights are not here",
        "context": context_lengths(world_of, modes),
        **summary,
        "out": str(out),
    }
    write_atomically(out / "result.json", loopnav_table.report_json(report))
    write_atomically(out / "table.md", loopnav_table.markdown(summary).encode())
    return report


def made_with(world: WorldModel) -> dict[str, str]:
    """What decides a dream besides the arguments: dtype "auto" is another one on another device."""
    return {"weights": world.provenance.weights, "dtype": world.dtype_name}


def loader(checkpoint: str, args: DreamArgs) -> Callable[[str | None], WorldModel]:
    """The checkpoint's world with a memory (None: its own), with the settings that the arguments name; each is loaded once."""
    settings = {field.name: getattr(args, field.name) for field in fields(DreamArgs)}
    return cache(lambda mode: load_world(checkpoint, memory=mode, **settings))


def modes_of(world_of: Callable[[str | None], WorldModel], asked: Sequence[str] | None) -> tuple[System, tuple[str, ...]]:
    """The checkpoint's system, and the memories to compare: those that were asked for, or all that it has."""
    system = systems.get(world_of(None).provenance.system)
    return system, tuple(dict.fromkeys(map(system.memory_name, asked if asked is not None else system.memories)))


def reconstruct(world: WorldModel, frames: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] through the autoencoder and back: the best that this latent space can show."""
    with torch.inference_mode():
        latents = world.encode(torch.from_numpy(frames)[None].to(world.device))
        parts = [to_uint8(world.autoencoder.decode(part)) for part in latents[0].split(256)]
    return torch.cat(parts).cpu().numpy()


def context_lengths(world_of: Callable[[str | None], WorldModel], modes: Sequence[str]) -> list[dict[str, Any]]:
    """What each memory shows the network, in frames, where the system counts it."""
    system = systems.get(world_of(None).provenance.system)
    if system.context_cost is None:
        return []
    return [{"mode": mode, **system.context_cost(world_of(mode))} for mode in modes]


# -- where loops come from --------------------------------------------------------------------------------------------------------------


def _from_data(folder: Path, count: int, wanted: Sequence[Course], size: int) -> Callable[[Course], list[loopnav.Loop]]:
    films = find_trajectories(folder)
    if films:
        return _from_films(films, wanted, count, size)
    found = loopnav.find_loops(folder, wanted, count)
    return lambda course: loopnav.read_loops(found[course])


def _from_films(files: Sequence[Path], wanted: Sequence[Course], count: int, size: int) -> Callable[[Course], list[loopnav.Loop]]:
    """Loops of the released layout. What they were walked for stands in their rows; films are read when their course comes up."""
    by_name: dict[str, list[Path]] = {}
    for path in files:
        info = read_rows(path)[0].get("extra_info") or {}
        by_name.setdefault(f"{info.get('nvtype')}-{info.get('nvrange')}", []).append(path)
    for course in wanted:
        if len(by_name.get(course.name, [])) < count:
            there = ", ".join(f"{len(paths)} of {name}" for name, paths in sorted(by_name.items()))
            raise ValueError(f"{count} films of {course.name} are asked for, there are {there}; see --tasks, --ranges and --loops")

    def loops_of(course: Course) -> list[loopnav.Loop]:
        return [loop_of(read_episode(path, size)) for path in by_name[course.name][:count]]

    return loops_of


def _walk(args: LoopNavArgs, course: Course, progress: bool) -> list[Path]:
    """Collect until there are enough loops; how many steps that takes is known only afterwards."""
    folder = args.out / "loops" / course.walker
    steps, episodes = args.loops * STEPS_GUESS[course.range], 0
    while episodes < args.loops:
        wanted = CollectArgs(args.env_id, walker=course.walker, steps=steps, out=folder, seed=args.seed, env_kwargs=args.env_kwargs)
        report = collect(wanted, progress=progress)
        episodes = report["episodes"]
        steps = math.ceil(1.1 * report["steps"] * args.loops / episodes) + 1
    return loopnav.find_loops(folder, [course], args.loops)[course]


def show_in(bar: tqdm) -> loopnav.Progress:
    def show(what: str, done: int, total: int) -> None:
        if bar.disable:
            return
        if bar.desc != f"{what}: ":
            bar.reset(total)
            bar.set_description(what)
        bar.update(done - bar.n)

    return show


# -- pictures ---------------------------------------------------------------------------------------------------------------------------


def colour_of(mode: str, modes: Sequence[str]) -> str:
    """One colour for each memory, grey for what is no dream."""
    return GREYS.get(mode) or f"C{modes.index(mode)}"


def plot_curves(cells: Mapping[str, Mapping[str, Any]], wanted: Sequence[Course], modes: Sequence[str], file: Path) -> None:
    """PSNR (left) and drift of the pose (right) against the step of the leg: one row per course."""
    plt = pyplot()
    figure, axes = plt.subplots(len(wanted), 2, figsize=(11, 2.6 * len(wanted)), squeeze=False, layout="constrained")
    for (left, right), course in zip(axes, wanted, strict=True):
        for mode in (*modes, *BASELINES):
            rows = cells[f"{course.name} {mode}"]["loops"]
            dashed = {"color": colour_of(mode, modes), "ls": "--" if mode in BASELINES else "-"}
            values = loopnav_table.curve(rows, "psnr")
            left.plot(np.arange(1, len(values) + 1), values, label=mode, **dashed)
            if mode in modes:
                right.plot(np.arange(1, len(values) + 1), loopnav_table.curve(rows, "drift"), label=mode, **dashed)
        left.set(title=f"{course.name}, {len(rows)} loops", ylabel="PSNR, dB", xlabel="step of the way back")
        right.set(title=course.name, ylabel="pose drift, blocks", xlabel="step of the way back")
        right.set_ylim(bottom=0)
        for ax in (left, right):
            ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].legend(fontsize="small", ncols=2)
    save_figure(figure, file)


def plot_strips(wanted: Sequence[Course], modes: Sequence[str], out: Path) -> None:
    """The first loop of each course: truth, and each mode's dream, evenly spaced along the way back."""
    plt = pyplot()
    rows = ["truth", *(modes if len(modes) <= 2 else (modes[-1], modes[0]))]
    figure, axes = plt.subplots(len(wanted) * len(rows), figsize=(10, 1.12 * len(wanted) * len(rows)), squeeze=False, layout="constrained")
    for i, course in enumerate(wanted):
        for j, row in enumerate(rows):
            ax = axes[i * len(rows) + j, 0]
            picture = plt.imread(loopnav.strip_file(out, course, row))
            ax.imshow(picture, interpolation="nearest", aspect="auto")
            for edge in range(1, loopnav.COLUMNS):
                ax.axvline(edge * picture.shape[1] / loopnav.COLUMNS - 0.5, color="white", lw=2)
            ax.set(xticks=[], yticks=[], title=course.name if j == 0 else "")
            ax.set_ylabel(row, rotation=0, ha="right", va="center")
    save_figure(figure, out / "strips.png")


def save_figure(figure: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot().close(figure)
