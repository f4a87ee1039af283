"""`wmgym bench truth` and `wmgym bench model`: frames per second of a ground truth, milliseconds per dreamed step."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from tqdm import tqdm

from wmgym import checkpoint as checkpoints
from wmgym import systems
from wmgym.benchmarks import speed
from wmgym.cli import as_text, plain
from wmgym.files import as_json, write_atomically
from wmgym.nets.cdit import SIZES
from wmgym.registration import row_of
from wmgym.systems.worldpack import build, preset

ENGINES = {"voxel": "wmgym.envs.minecraft.bench", "prismarine": "wmgym.envs.minecraft.prismarine.bench"}  # time an engine by itself
UPSTREAM = "wmgym.envs.memory_maze.bench"


@dataclass(frozen=True)
class TruthArgs:
    """Frames per second of a ground truth, one env and the batched one. `frames_per_cpu_second` is what one core gives."""

    env_id: str = "Minecraft-v0"
    """Ground truth to time."""
    backend: str = "voxel"
    """Engine of Minecraft-v0."""
    sizes: tuple[int, ...] = (64, 128)
    """Sides of the frames."""
    lanes: tuple[int, ...] = (8,)
    """Lanes of the batched env."""
    seconds: float = 3.0
    """For each number."""
    against: str | None = None
    """"upstream": time Memory Maze side by side with the published package's env, and compare what they show."""
    out: Path | None = None
    """Folder for result.json and table.txt."""

    def __post_init__(self) -> None:
        _check_positive(self, "sizes", "lanes", "seconds")
        if self.against not in (None, "upstream"):
            raise ValueError(f"against must be 'upstream', got {self.against!r}")
        if self.against and "cells" not in row_of(self.env_id).kwargs:
            raise ValueError(f"--against upstream is for MemoryMaze-*-v0, {self.env_id} has no upstream")


def bench_truth(args: TruthArgs) -> dict[str, Any]:
    """One row per size and number of lanes; for Minecraft also what its engine does without Gymnasium."""
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
        world = row_of(args.env_id).kwargs
        report |= import_module(UPSTREAM).against_upstream(world["cells"], world["variant"], args.seconds)
    if is_minecraft:
        report |= {"backend": args.backend}
        if args.backend in ENGINES:
            report["engine"] = import_module(ENGINES[args.backend]).bench(args.seconds)
    return _finish(report, args)


def _made(measure: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
    try:
        return measure(*args, **kwargs)
    except (gym.error.Error, TypeError) as error:
        raise ValueError(f"cannot make the environment {args[0]!r}: {error}") from error


@dataclass(frozen=True)
class ModelArgs:
    """Milliseconds per dreamed step: by mode, lanes and number format, the share of each part, and what caching the context saves."""

    checkpoint: str | None = None
    """Bundled name, path or hub name; by default worldpack-minecraft, or random weights (as fast) where that is not bundled."""
    size: str = "TINY"
    """Size of the network with random weights."""
    modes: tuple[str, ...] | None = None
    """Memories; by default all of the checkpoint's system."""
    lanes: tuple[int, ...] = (1, 8, 32)
    """Dreams in one batch."""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """Number formats."""
    denoise_steps: tuple[int, ...] = (1, 2, 4, 8)
    """For the ratio of caching to recomputing the context."""
    device: str = "auto"
    """cpu, cuda, ..."""
    seconds: float = 1.0
    """For each number; at least three rounds are timed."""
    out: Path | None = None
    """Folder for result.json and table.txt."""

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {self.size!r}")
        _check_positive(self, "lanes", "denoise_steps", "seconds")
        if self.modes == () or not (self.lanes and self.dtypes and self.denoise_steps):
            raise ValueError("modes, lanes, dtypes and denoise_steps must each name at least one")


def bench_model(args: ModelArgs, progress: bool = True) -> dict[str, Any]:
    """The report; ratios within it are of one run."""
    name = args.checkpoint or ("worldpack-minecraft" if "worldpack-minecraft" in checkpoints.bundled() else None)
    with nullcontext() if name else tempfile.TemporaryDirectory() as folder:
        path = name or str(_random_weights(Path(str(folder)), args.size))
        steps, parts, cache = [], [], []
        with tqdm(total=len(args.dtypes) * (len(args.lanes) + 2), disable=not progress, unit="table") as bar:
            for dtype in args.dtypes:
                load = partial(checkpoints.load_world, path, device=args.device, dtype=dtype)
                modes = args.modes or tuple(systems.get(load().provenance.system).memories)
                worlds = {mode: load(memory=mode) for mode in modes}
                for lanes in args.lanes:
                    steps += [{"dtype": dtype, **row} for row in speed.step_times(worlds, lanes, args.seconds)]
                    bar.update()
                mode, world = list(worlds.items())[-1]
                for lanes in (min(args.lanes), max(args.lanes)):
                    parts.append({"dtype": dtype, "world": mode, "lanes": lanes, **speed.shares(world, lanes, args.seconds)})
                bar.update()
                cached = speed.caching(world, min(args.lanes), args.denoise_steps, args.seconds)
                cache += [{"dtype": dtype, "world": mode, **row} for row in cached]
                bar.update()
    report = {
        "weights": name or f"random, size {args.size}",
        "device": str(world.device) if world.device.type == "cpu" else torch.cuda.get_device_name(world.device),
        "threads": torch.get_num_threads(),
        "denoise_steps": world.settings.sampler.denoise_steps,
        "steps": steps,
        "share_of_a_step": parts,
        "context_cached_or_recomputed": cache,
    }
    return _finish(report, args)


def _random_weights(folder: Path, size: str) -> Path:
    config = preset(size)
    torch.manual_seed(0)
    return checkpoints.save(folder / "random.safetensors", build(config), config)[0]


def _check_positive(args: Any, *names: str) -> None:
    for name in names:
        value = getattr(args, name)
        if any(not v > 0 for v in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name} must be positive, got {value}")


def _finish(report: dict[str, Any], args: Any) -> dict[str, Any]:
    if args.out is not None:
        write_atomically(args.out / "args.json", as_json(plain(asdict(args))))
        write_atomically(args.out / "result.json", as_json(plain(report)))
        write_atomically(args.out / "table.txt", (as_text(plain(report)) + "\n").encode())
        report = {**report, "out": str(args.out)}
    return report
