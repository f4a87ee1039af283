"""`wmgym bench`: frames per second of a ground truth, milliseconds per dreamed step, examples per second of a training,
milliseconds per update of adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from wmgym import checkpoint as checkpoints
from wmgym import systems
from wmgym.benchmarks import speed
from wmgym.benchmarks.memorising import memorising_times
from wmgym.benchmarks.training import training_times
from wmgym.captured import with_graphs
from wmgym.experiments.support.judged import system_of
from wmgym.experiments.support.report import check_positive, write_tables
from wmgym.files import json_object
from wmgym.progress import Progress
from wmgym.registration import SYSTEMS, default_checkpoint, row_of
from wmgym.world_model import WorldModel

SETTING = "minecraft"  # whose weights are timed by default
ENGINES = {"voxel": "wmgym.envs.minecraft.bench", "prismarine": "wmgym.envs.minecraft.prismarine.bench"}  # time an engine alone
UPSTREAM = "wmgym.envs.memory_maze.bench"


@dataclass(frozen=True)
class TruthArgs:
    """Time a ground truth: frames per second of one env and of the batched env. `frames_per_cpu_second` is the rate of one core.

    Prints the report, and writes it to a folder if --out is given. The time is about --seconds for each size and number of lanes, plus
    what the engine takes to start; the first run also compiles.
    """

    env_id: str = "Minecraft-v0"
    """Ground truth to time."""
    backend: str = "voxel"
    """Engine of Minecraft-v0."""
    sizes: tuple[int, ...] = (64, 128)
    """Sides of the frames, in pixels."""
    lanes: tuple[int, ...] = (8,)
    """Lanes of the batched env."""
    seconds: float = 3.0
    """Time for each number."""
    against: str | None = None
    """"upstream": also time the published package's Memory Maze, in turns, and compare what the two show."""
    out: Path | None = None
    """Folder for args.json, result.json and table.txt."""

    def __post_init__(self) -> None:
        check_positive(self, "sizes", "lanes", "seconds")
        if self.against not in (None, "upstream"):
            raise ValueError(f"against must be 'upstream', got {self.against!r}")
        if self.against and "cells" not in row_of(self.env_id).kwargs:
            raise ValueError(f"--against upstream is for MemoryMaze-*-v0, {self.env_id} has no upstream")


def bench_truth(args: TruthArgs) -> dict[str, Any]:
    """One row per size and number of lanes; for Minecraft also the speed of its engine without Gymnasium."""
    is_minecraft = args.env_id.endswith("Minecraft-v0")
    if args.backend != "voxel" and not is_minecraft:
        raise ValueError(f"backend is for Minecraft-v0, got {args.backend!r} for {args.env_id}")
    rows: list[dict[str, Any]] = []
    for size in args.sizes:
        kwargs = {"size": size, "task": "free", **({"backend": args.backend} if is_minecraft else {})}
        rows.append({"size": size, **_made(speed.truth_times, args.env_id, args.seconds, **kwargs)})
        rows += [{"size": size, **_made(speed.vector_truth_times, args.env_id, n, args.seconds, **kwargs)} for n in args.lanes]
    report: dict[str, Any] = {"env_id": args.env_id, "frames": rows}
    if args.against is not None:
        made = row_of(args.env_id).kwargs
        report |= import_module(UPSTREAM).against_upstream(made["cells"], made["variant"], args.seconds)
    if is_minecraft:
        report |= {"backend": args.backend}
        if args.backend in ENGINES:
            report["engine"] = import_module(ENGINES[args.backend]).bench(args.seconds)
    return _finish(args, report)


def _made(measure: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
    try:
        return measure(*args, **kwargs)
    except (gym.error.Error, TypeError) as error:
        raise ValueError(f"cannot make the environment {args[0]!r}: {error}") from error


@dataclass(frozen=True)
class ModelArgs:
    """Time a dreamed step: by memory, lanes and number format, with the share of each part, and what caching the context saves.

    Prints the report, and writes it to a folder if --out is given. The time is about --seconds for each memory, number of lanes and
    number format, and more where three rounds of a slow step take longer.
    """

    checkpoint: str | None = None
    """Bundled name, path or hub name; by default the bundled weights of Minecraft, or random weights, which are as fast, if there are
    none."""
    system: str | None = None
    """System that runs the weights; by default the checkpoint's. With random weights: the system to build."""
    size: str = "TINY"
    """Size of the network with random weights: TINY, S, B, L or XL."""
    modes: tuple[str, ...] | None = None
    """Memories to time; by default all memories of the system."""
    lanes: tuple[int, ...] = (1, 8, 32)
    """Dreams in one batch."""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """Number formats."""
    graphs: bool = False
    """Also time steps as CUDA graphs. Needs an NVIDIA GPU."""
    denoise_steps: tuple[int, ...] = (1, 2, 4, 8)
    """Denoising steps at which caching and recomputing the context are compared."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, ..."""
    seconds: float = 1.0
    """Time for each number; at least three rounds are timed."""
    out: Path | None = None
    """Folder for args.json, result.json and table.txt."""

    def __post_init__(self) -> None:
        check_positive(self, "lanes", "denoise_steps", "seconds")
        if self.modes == () or not (self.lanes and self.dtypes and self.denoise_steps):
            raise ValueError("modes, lanes, dtypes and denoise_steps must each name at least one")


def bench_model(args: ModelArgs, progress: bool = True) -> dict[str, Any]:
    """The report. Ratios within it are of one run."""
    default = default_checkpoint(SETTING)
    name = args.checkpoint or (default if default in checkpoints.bundled() else None)
    with nullcontext() if name else tempfile.TemporaryDirectory() as folder:
        path = name or str(_random_weights(Path(str(folder)), args.system, args.size))
        steps, parts, cache, context = [], [], [], list[dict[str, Any]]()
        with Progress(total=len(args.dtypes) * (len(args.lanes) + 2), disable=not progress, unit="table") as bar:
            for dtype in args.dtypes:
                load = partial(checkpoints.load_world, path, system=args.system, device=args.device, dtype=dtype)
                modes = args.modes or tuple(system_of(load()).memories)
                worlds = {mode: load(memory=mode) for mode in modes}
                graphs = {f"{mode}, graph": with_graphs(world, True) for mode, world in worlds.items()} if args.graphs else {}
                for lanes in args.lanes:
                    steps += [{"dtype": dtype, **row} for row in speed.step_times({**worlds, **graphs}, lanes, args.seconds)]
                    bar.update()
                context = context or [{"world": mode, **row} for mode, row in _context_costs(worlds).items()]
                mode, world = list(worlds.items())[-1]
                for lanes in (min(args.lanes), max(args.lanes)):
                    parts.append({"dtype": dtype, "world": mode, "lanes": lanes, **speed.shares(world, lanes, args.seconds)})
                bar.update()
                cached = speed.caching(world, min(args.lanes), args.denoise_steps, args.seconds)
                cache += [{"dtype": dtype, "world": mode, **row} for row in cached]
                bar.update()
    report = {
        "weights": name or f"random, size {args.size}",
        "device": _device_name(world.device),
        "threads": torch.get_num_threads(),
        "denoise_steps": world.settings.sampler.denoise_steps,
        "steps": steps,
        **({"context": context} if context else {}),
        "share_of_a_step": parts,
        "context_cached_or_recomputed": cache,
    }
    return _finish(args, report)


def _context_costs(worlds: Mapping[str, WorldModel]) -> dict[str, dict[str, Any]]:
    """What each memory stores and shows the network, for systems that count it."""
    cost = system_of(next(iter(worlds.values()))).context_cost
    return {} if cost is None else {mode: cost(world) for mode, world in worlds.items()}


def _random_weights(folder: Path, name: str | None, size: str) -> Path:
    """A checkpoint of a system, by default of the first in the table, with fresh weights."""
    system = systems.get(name or next(iter(SYSTEMS)))
    if system.preset is None or system.build is None:
        raise ValueError(f"system {system.name!r} cannot be built with random weights: give --checkpoint")
    config = system.preset(size, SETTING)
    torch.manual_seed(0)
    return checkpoints.save(folder / "random.safetensors", system.build(config), config)[0]


@dataclass(frozen=True)
class TrainArgs:
    """Time a system's training step: examples per second, and the share of time by phase and by kind of kernel.

    Needs no data: batches are random latents. Also counts the operations of a step, measures a large matrix product, and reports how
    close training comes to it. Prints the report, and writes it to a folder if --out is given. The time is that of about three times
    --steps training steps.
    """

    system: str = next(iter(SYSTEMS))
    """System whose training is timed."""
    size: str = "TINY"
    """Size of the network: TINY, S, B, L or XL."""
    batch: int = 16
    """Examples per step: frames with what was remembered for them, or windows of chunks."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, ..."""
    steps: int = 20
    """Steps that are timed, after a few to warm up."""
    compile: bool = False
    """Compile the network."""
    out: Path | None = None
    """Folder for args.json, result.json and table.txt."""

    def __post_init__(self) -> None:
        check_positive(self, "batch", "steps")


def bench_train(args: TrainArgs) -> dict[str, Any]:
    """The report. Shares within it are of one run."""
    device = torch.device(checkpoints.choose_device(args.device))
    about = {"system": args.system, "size": args.size, "batch": args.batch, "compile": args.compile}
    times = training_times(args.system, args.size, args.batch, device, args.steps, args.compile)
    return _finish(args, {**about, "device": _device_name(device), "threads": torch.get_num_threads(), **times})


@dataclass(frozen=True)
class MemoriseArgs:
    """Time a memory that is fitted while a world runs: milliseconds per update of its adapters, alone and in company.

    Needs a checkpoint and a memory that fits adapters. Prints the report, and writes it to a folder if --out is given.
    """

    checkpoint: str
    """Bundled name, path, or hub name."""
    system: str | None = None
    """System that runs the weights; by default the checkpoint's."""
    memory: str | None = None
    """The memory; by default the checkpoint's, or the system's if --system is given."""
    options: str = "{}"
    """The system's own keywords as JSON, such as {"rank": 12}."""
    lanes: tuple[int, ...] = (1, 8)
    """Numbers of lanes that are fitted together."""
    rounds: int = 5
    """Measurements of each number, after one to warm up."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, ..."""
    dtype: str = "auto"
    """float32 or bfloat16; auto: bfloat16 where the device multiplies it natively, else float32."""
    out: Path | None = None
    """Folder for args.json, result.json and table.txt."""

    def __post_init__(self) -> None:
        check_positive(self, "lanes", "rounds")
        json_object(self.options, "options")


def bench_memorise(args: MemoriseArgs) -> dict[str, Any]:
    """The report. All times are of one run, taken in turns."""
    given = json_object(args.options, "options")
    device, dtype = args.device, args.dtype
    world = checkpoints.load_world(args.checkpoint, system=args.system, memory=args.memory, options=given, device=device, dtype=dtype)
    about = {"checkpoint": args.checkpoint, "memory": world.provenance.memory, "dtype": world.dtype_name}
    times = memorising_times(world, args.lanes, args.rounds)
    return _finish(args, {**about, "device": _device_name(world.device), "threads": torch.get_num_threads(), **times})


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _finish(args: TruthArgs | ModelArgs | TrainArgs | MemoriseArgs, report: dict[str, Any]) -> dict[str, Any]:
    write_tables(args.out, args, report)
    return report if args.out is None else {**report, "out": str(args.out)}
