"""How fast ground truths and dreams are.

Wall-clock times are medians after a warm-up. Functions that are compared take turns within one run, so a busy machine slows all of them
alike, and ratios are more reliable than milliseconds. Ground truths also report frames per second of processor time, which other load
on the machine hardly changes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from wmgym import rng
from wmgym.core import Clip, Condition, Context, Query, Seen, World, WorldState
from wmgym.diffusion.flow import levels
from wmgym.diffusion.samplers import SAMPLERS
from wmgym.geometry import wrap_angle
from wmgym.nets.autoencoder import to_uint8
from wmgym.world_model import WorldModel

FORWARD, TURN_LEFT = 1, 6  # actions of Minecraft
OPENING = 64  # frames observed before a dreamed step is timed
LEAST = 3  # rounds that are timed however long they take


def take_turns(functions: Mapping[str, Callable[[], object]], seconds: float, device: torch.device | str = "cpu") -> dict[str, float]:
    """Median seconds of each function. All are called once to warm up, then in turns until `seconds` per function have passed."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    spent: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    begun = time.perf_counter()
    while len(next(iter(spent.values()))) < LEAST or time.perf_counter() - begun < seconds * len(functions):
        for name, function in functions.items():
            wait()
            start = time.perf_counter()
            function()
            wait()
            spent[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in spent.items()}


# -- dreams -----------------------------------------------------------------------------------------------------------------------------


def opened(world: World, lanes: int, frames: int = OPENING) -> WorldState:
    """A state whose lanes have observed noise along a circle, so that memories store and retrieve as much as in a real episode."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (lanes, frames, *world.frame_shape), generator=generator, dtype=torch.uint8)
    angle = torch.arange(frames) * 0.2617994 - torch.pi
    poses = torch.stack([3 * angle.cos(), 3 * angle.sin(), 0 * angle, wrap_angle(angle - torch.pi), 0 * angle], -1)
    clip = Clip(
        pixels.to(world.device),
        torch.full((lanes, frames), TURN_LEFT, device=world.device),
        poses.expand(lanes, -1, -1).contiguous().to(world.device),
        torch.ones(lanes, frames, dtype=torch.bool, device=world.device),
    )
    return world.start(clip, rng.make_keys(list(range(lanes)), world.device))


def forward(world: World, lanes: int) -> torch.Tensor:
    return torch.full((lanes, world.chunk), FORWARD, device=world.device)


def step_times(worlds: Mapping[str, World], lanes: int, seconds: float) -> list[dict[str, Any]]:
    """One row per world: the time of a whole env step of `lanes` lanes, decoding included."""
    states = {name: opened(world, lanes) for name, world in worlds.items()}
    for name, world in worlds.items():
        world.step(states[name], forward(world, lanes))[1].check()
    calls = {name: (lambda w=world, s=states[name]: w.step(s, forward(w, lanes))) for name, world in worlds.items()}
    device = next(iter(worlds.values())).device
    found = take_turns(calls, seconds, device)
    rows = []
    for name, t in found.items():
        frames = lanes * worlds[name].chunk
        times = {"ms_per_step": 1e3 * t, "ms_per_frame": 1e3 * t / frames, "frames_per_second": frames / t}
        rows.append({"world": name, "lanes": lanes, **times})
    return rows


def bound_parts(world: WorldModel, state: WorldState) -> tuple[Condition, tuple[Context, ...]]:
    """The condition and contexts to which a step forward from `state` binds the network."""
    actions = forward(world, len(state.times))
    egomotion = world.kinematics.motion(actions)
    query = world.query(state.poses, egomotion, state.times)
    return Condition(actions, egomotion, query.poses, query.times, state.poses, state.origin), world.read(state.memories, query)


@torch.no_grad()
def shares(world: WorldModel, lanes: int, seconds: float) -> dict[str, float]:
    """Each part's share of the time of a whole step. "rest" is the motion head, the noise and bookkeeping."""
    state, actions = opened(world, lanes), forward(world, lanes)
    world.step(state, actions)[1].check()
    condition, contexts = bound_parts(world, state)
    bound, sampler, memories = world.net.bind(condition, contexts), world.settings.sampler, world.settings.memories
    noise = rng.noise(state.keys, tuple(state.latents.shape[1:]))
    marks = levels(sampler.denoise_steps, sampler.shift)
    query = Query(condition.poses, condition.times)
    there = torch.ones_like(query.times, dtype=torch.bool)
    trace = bound.trace(state.latents, query.poses) if world.settings.trace_needs else None
    seen = Seen(state.latents, query.poses, query.times, actions, condition.egomotion, there, ~there, trace)
    found = take_turns(
        {
            "step": lambda: world.step(state, actions),
            "memory read": lambda: world.read(state.memories, query),
            "context binding": lambda: world.net.bind(condition, contexts),
            "denoising": lambda: SAMPLERS[world.settings.sampler.name](bound, noise, marks),
            "memory write": lambda: [m.write(value, seen) for m, value in zip(memories, state.memories, strict=True)],
            "decode": lambda: to_uint8(world.autoencoder.decode(state.latents)),
        },
        seconds,
        world.device,
    )
    whole = found.pop("step")
    parts = {name: t / whole for name, t in found.items()}
    return {**parts, "rest": max(0.0, 1 - sum(parts.values()))}


@torch.no_grad()
def caching(world: WorldModel, lanes: int, steps: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Times with the context bound once per env step (cached) and once per denoising step (recomputed).

    The context does not depend on the noise level, so both give the same latents.
    """
    state = opened(world, lanes)
    condition, contexts = bound_parts(world, state)
    noise = rng.noise(state.keys, tuple(state.latents.shape[1:]))
    sample = SAMPLERS[world.settings.sampler.name]

    def cached(marks: Sequence[float]) -> torch.Tensor:
        return sample(world.net.bind(condition, contexts), noise, marks)

    def recomputed(marks: Sequence[float]) -> torch.Tensor:
        return sample(lambda x, level: world.net.bind(condition, contexts)(x, level), noise, marks)

    rows = []
    for count in steps:
        marks = levels(count, world.settings.sampler.shift)
        calls = {"cached": partial(cached, marks), "recomputed": partial(recomputed, marks)}
        found = take_turns(calls, seconds, world.device)
        times = {f"{name}_ms": 1e3 * t for name, t in found.items()}
        rows.append({"lanes": lanes, "denoise_steps": count, **times, "ratio": found["recomputed"] / found["cached"]})
    return rows


# -- ground truths ----------------------------------------------------------------------------------------------------------------------


def truth_times(env_id: str, seconds: float, **kwargs: Any) -> dict[str, float]:
    """One env with random actions: frames per second of wall clock and of processor time, and seconds to make a new world."""
    env = gym.make(env_id, disable_env_checker=True, **kwargs)
    env.reset(seed=0)
    env.step(env.action_space.sample())  # the first step compiles
    begun = time.perf_counter()
    resets: list[float] = []
    seeds = np.random.default_rng()  # new seeds in each run: engines may cache a world that they have made
    while len(resets) < LEAST or time.perf_counter() - begun < seconds / 2:
        seed = int(seeds.integers(2**31))
        start = time.perf_counter()
        env.reset(seed=seed)
        resets.append(time.perf_counter() - start)
    env.action_space.seed(0)
    rates = _rates(env, seconds, 1, env.action_space.sample)
    env.close()
    return {"lanes": 1, **rates, "new_world_seconds": statistics.median(resets)}


def vector_truth_times(env_id: str, lanes: int, seconds: float, **kwargs: Any) -> dict[str, float]:
    """The batched env of an id: the same rates, summed over its lanes."""
    env = gym.make_vec(env_id, num_envs=lanes, vectorization_mode="vector_entry_point", **kwargs)
    env.reset(seed=0)
    env.action_space.seed(0)
    rates = _rates(env, seconds, lanes, env.action_space.sample)
    if getattr(env.unwrapped, "in_processes", False):
        del rates["frames_per_cpu_second"]  # this process only waits for the others
    env.close()
    return {"lanes": lanes, **rates}


def _rates(env: Any, seconds: float, lanes: int, sample: Callable[[], Any]) -> dict[str, float]:
    actions = [sample() for _ in range(64)]
    env.step(actions[0])
    steps, begun, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begun < seconds or steps < 10:
        _, _, terminated, truncated, _ = env.step(actions[steps % len(actions)])
        steps += 1
        if lanes == 1 and (terminated or truncated):
            env.reset()
    wall, processor = time.perf_counter() - begun, time.process_time() - processor
    return {"frames_per_second": steps * lanes / wall, "frames_per_cpu_second": steps * lanes / max(processor, np.finfo(float).eps)}
