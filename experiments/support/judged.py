"""The checkpoint that a program judges: its options, its memories, and what identifies its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from wmgym import systems
from wmgym.benchmarks.cells import MEASURES_0_1
from wmgym.checkpoint import load, load_world, notes_of, resolve
from wmgym.files import json_object
from wmgym.nets.autoencoder import to_uint8
from wmgym.systems import System
from wmgym.world_model import WorldModel

OLDER = {"options": "{}", "measures": MEASURES_0_1}  # what args.json of older folders leaves out
WorldOf = Callable[[str | None], WorldModel]  # memory (None: the checkpoint's own) -> world


@dataclass(frozen=True, kw_only=True)
class DreamArgs:
    """How a checkpoint dreams."""

    system: str | None = None
    """System that runs the weights; by default the checkpoint's."""
    denoise_steps: int | None = None
    """Denoising steps per frame; by default the checkpoint's."""
    pose_source: str | None = None
    """Where dreamed poses come from: learned or actions; by default the checkpoint's."""
    memory_budget: int | None = None
    """Frames that a memory may keep; by default the checkpoint's."""
    options: str = "{}"
    """The system's own keywords as JSON, such as {"retrieval": "coverage"} for worldpack."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, ..."""
    dtype: str = "auto"
    """float32 or bfloat16; auto: bfloat16 where the device multiplies it natively, else float32."""


def loader(checkpoint: str, args: DreamArgs) -> WorldOf:
    """A function from a memory to the checkpoint's world with it, under the given options. Each world is loaded once."""
    keywords = {field.name: getattr(args, field.name) for field in fields(DreamArgs)}
    keywords["options"] = json_object(args.options, "options")
    return cache(lambda memory: load_world(checkpoint, memory=memory, **keywords))


def system_of(world: WorldModel) -> System:
    return systems.get(world.provenance.system)


def modes_of(world_of: WorldOf, asked: Sequence[str] | None) -> tuple[System, tuple[str, ...]]:
    """The checkpoint's system, and the memories to compare: `asked`, or by default all that the system has."""
    system = system_of(world_of(None))
    return system, tuple(dict.fromkeys(map(system.memory_name, asked if asked is not None else system.memories)))


def made_with(world: WorldModel) -> dict[str, str]:
    """What decides a dream besides the arguments: the weights, and the dtype that "auto" chose on this device."""
    return {"weights": world.provenance.weights, "dtype": world.dtype_name}


def training_in_words(checkpoint: str) -> str:
    """How a checkpoint's weights were trained, as far as its notes say; empty for published weights in another format."""
    if systems.loader_of(checkpoint) is not None:
        return ""
    notes = notes_of(resolve(checkpoint))
    seen = ", ".join(f"{mode} {count}" for mode, count in notes.get("examples", {}).items()) or "not recorded"
    command = notes.get("command", "a command that is not recorded")
    return f"Weights `{checkpoint}`: trained by `{command}`. Training examples per memory: {seen}."


def untrained(
    world: WorldModel,
    name: str,
    seed: int,
    *,
    system: str | None = None,
    pose_source: str | None = None,
    memory_budget: int | None = None,
) -> WorldModel:
    """The world of checkpoint `name` with fresh network weights, behind the trained autoencoder, with the memory and sampler of `world`.

    system, memory_budget: with which the checkpoint was loaded; by default its own. pose_source: "actions" for the poses of the kinematics
    alone. Memories are made anew: one that fits adapters must fit those of the fresh network.
    """
    loaded = load(resolve(name), system=system)
    build = system_of(world).build
    assert build is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build(loaded.config)
    fresh.autoencoder.load_state_dict(loaded.model.autoencoder.state_dict())
    fresh.to(world.device, next(world.net.parameters()).dtype).eval()
    config = replace(loaded.config, memory=world.provenance.memory, memory_budget=memory_budget or loaded.config.memory_budget)
    memories = system_of(world).settings(fresh.net, config, world.settings.options).memories
    chosen = {"memories": memories, "sampler": world.settings.sampler}
    return fresh.with_settings(**chosen, **({} if pose_source is None else {"pose_source": pose_source}))


def reconstruct(world: WorldModel, frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [N, H, W, 3] through the autoencoder and back: the best that its latents can show."""
    with torch.inference_mode():
        latents = world.encode(torch.from_numpy(frames)[None].to(world.device))
        images = [world.autoencoder.decode(part) for part in latents[0].split(256)]
    if not all(bool(part.isfinite().all()) for part in images):
        raise FloatingPointError("the autoencoder made frames that are not finite; its weights may be damaged")
    return torch.cat([to_uint8(part) for part in images]).cpu().numpy()


def encoded(world: WorldModel, frames: np.ndarray) -> np.ndarray:
    """Latents of frames uint8 [N, H, W, 3] as vectors [N, d]."""
    with torch.no_grad():
        latents = torch.cat([world.encode(part[None].to(world.device))[0] for part in torch.from_numpy(frames).split(256)])
    return latents.float().flatten(1).cpu().numpy()


def context_lengths(world_of: WorldOf, modes: Sequence[str]) -> list[dict[str, Any]]:
    """What each memory shows the network, in frames; empty for systems that do not count it."""
    system = system_of(world_of(None))
    if system.context_cost is None:
        return []
    return [{"mode": system.title(mode), **system.context_cost(world_of(mode))} for mode in modes]
