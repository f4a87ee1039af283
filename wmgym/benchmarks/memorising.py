"""How fast a memory in weights learns: milliseconds per update of the adapters, for several numbers of lanes, beside a training step.

The training step is one of the whole network on the same windows, without adapters. Everything is timed in turns in one run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from wmgym import rng
from wmgym.core import Seen
from wmgym.memory.lora_memory import LoraMemory, LoraState
from wmgym.memory.role import RoleMemory
from wmgym.train.run import random_latents
from wmgym.tree import to
from wmgym.world_model import WorldModel

FRAMES = 50  # that are memorised
UPDATES = 4  # timed together
TRAINING = 0  # in place of a number of lanes


def adapter_memory(world: WorldModel) -> LoraMemory:
    """The world's first memory in weights; ValueError if it has none."""
    for memory in world.settings.memories:
        inner = memory.memory if isinstance(memory, RoleMemory) else memory
        if isinstance(inner, LoraMemory):
            return replace(inner, fitting=replace(inner.fitting, updates=UPDATES))
    raise ValueError(f"memory {world.provenance.memory!r} fits no adapters: choose one that does")


def memorising_times(world: WorldModel, lanes: Sequence[int], rounds: int) -> dict[str, Any]:
    """Medians over `rounds` of the time of an update, for each number of lanes, and of a training step with the windows of one lane."""
    memory, device = adapter_memory(world), world.device
    states = {count: _filled(memory, world, count) for count in lanes}
    one = states.get(1) or _filled(memory, world, 1)
    trained = list(world.net.parameters())
    spent: dict[int, list[float]] = {count: [] for count in (*lanes, TRAINING)}
    for turn in range(rounds + 1):  # the first warms up
        for count, state in states.items():
            seconds = _seconds(lambda state=state: memory.fit(state), device) / UPDATES
            spent[count] += [seconds] if turn else []
        seconds = _seconds(lambda: _training_step(memory, one, trained), device)
        spent[TRAINING] += [seconds] if turn else []
    ms = {key: 1e3 * statistics.median(each) for key, each in spent.items()}
    first = lanes[0]
    rows = [
        {
            "lanes": count,
            "ms_per_update": ms[count],
            "ms_per_update_and_lane": ms[count] / count,
            f"times_faster_per_lane_than_{first}": ms[first] / first / (ms[count] / count),
        }
        for count in lanes
    ]
    how = memory.fitting
    about = {"rank": how.rank, "windows_per_update": how.batch, "frames_per_window": how.chunks * memory.chunk}
    step = {"ms_per_training_step_without_adapters": ms[TRAINING]}
    if 1 in lanes:
        step["update_over_training_step"] = ms[1] / ms[TRAINING]
    return {**about, "updates": rows, **step}


def _filled(memory: LoraMemory, world: WorldModel, lanes: int) -> LoraState:
    """A memory of random frames along random walks, not fitted yet."""
    data = random_latents(world.kinematics, memory.latent_shape, lanes, FRAMES)
    there = torch.ones(lanes, FRAMES, dtype=torch.bool)
    times, motion = torch.arange(FRAMES).expand(lanes, FRAMES), data.frames.egomotion
    seen = Seen(data.latents.to(memory.dtype), data.poses, times, data.actions, motion, there, ~there)
    return memory.write(memory.init(lanes, rng.make_keys(list(range(lanes)), world.device)), to(seen, world.device))


def _training_step(memory: LoraMemory, state: LoraState, parameters: list[torch.nn.Parameter]) -> None:
    """Loss and gradients of all of the network's weights on the windows of one update."""
    window, origin, keys = memory.windows(state).draw(state.keys, memory.fitting.batch, state.origin)
    try:
        with torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
            loss = memory.loss(window, origin, keys, None).mean()
            torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _seconds(function: Any, device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
