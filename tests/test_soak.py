"""Long episodes cost no more than short ones: with full memories neither the process's size nor the time of a step grows.

`make test` walks 500 steps with each system's default memory on tiny weights, `make test-slow` 100,000 with every memory, 20 lanes at once,
and 3,000 on the bundled weights.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
from standins import clip
from tiny import tiny_checkpoint, tiny_deltas, tiny_video

import wmgym
from wmgym import systems
from wmgym.checkpoint import load_world, save
from wmgym.nets.autoencoder import AutoencoderConfig
from wmgym.nets.video_dit import VideoDiTConfig
from wmgym.registration import DREAMS
from wmgym.systems import video
from wmgym.world_model import SamplerConfig

BUDGET = 64  # frames in memory: full soon, as the bundled weights' 512 are after 512
LANES = 20  # of the longest walks
LARGEST_GROWTH = 8e6  # bytes of the process in two thirds of the steps; one frame kept per step would be 51 MB of 100,000 steps
SAMPLES = 60  # of the process's size
OF_OWN_CLASS = {("echo", memory) for memory in ("context-5", "length-2", "spatial", "block_wise")}  # that need a trained delta
CASES = [  # other memories that need a trained delta are of the same classes
    (name, memory)
    for name in systems.names()
    if systems.get(name).build is not None
    for memory, choice in systems.get(name).memories.items()
    if not choice.deltas or (name, memory) in OF_OWN_CLASS
]


def checkpoint_of(system: str, folder: Path) -> str:
    """Tiny weights that a system runs on."""
    if (systems.get(system).base or system) != "video":
        return tiny_checkpoint(folder)
    if system == "echo":  # whose memories need deltas beside the base
        base = tiny_video(folder, depth=1)
        tiny_deltas(base, systems.get(system).memories)
        return str(base)
    coder = AutoencoderConfig(kind="pixels", factor=8, frame_size=16)
    net = VideoDiTConfig(coder.latent_shape, width=32, depth=1, heads=2, chunk=2, window=8, num_actions=10)
    config = replace(video.preset("MICRO", autoencoder=coder), net=net, pose_source="actions", sampler=SamplerConfig("euler", 1))
    torch.manual_seed(0)
    save(folder / "video.safetensors", video.build(config).eval(), config)
    return str(folder / "video.safetensors")


def soak(make: Callable[[], Any], steps: int, *, growth: float, slower: float) -> None:
    """Walk at random after a warm-up in which the memory fills: the process stays as large, and a step takes as long, as before."""
    env, young = make(), make()
    env.action_space.seed(0)
    for each in (env, young):
        each.reset(seed=0)
    steps //= getattr(env, "num_envs", 1)
    for _ in range(max(BUDGET, min(2000, steps // 10))):
        env.step(env.action_space.sample())
    young.load_state(env.save_state())
    sizes, every = [], max(1, steps // SAMPLES)
    for number in range(steps):
        frame, _, terminated, truncated, info = env.step(env.action_space.sample())
        assert not (np.any(terminated) or np.any(truncated))
        if number % every == 0:
            gc.collect()
            sizes.append(psutil.Process().memory_info().rss)
    assert frame.any() and np.isfinite(info["pose"]).all()
    # a process grows and shrinks by tens of MB when archives are rewritten: what it falls back to must stay as low
    third = len(sizes) // 3
    grown = min(sizes[-third:]) - min(sizes[:third])
    assert grown < growth, f"the process grew by {grown / 1e6:.1f} MB in two thirds of {steps} steps"
    now, then = step_times(env, young, max(40, min(2000, steps // 10)))
    assert now < slower * then, f"a step takes {1e3 * now:.2f} ms after {steps} steps, {1e3 * then:.2f} ms before them"


def step_times(old: Any, young: Any, count: int) -> list[float]:
    """Median seconds of a step of each. They take turns, so that other load on the machine slows both alike."""
    spent: list[list[float]] = [[], []]
    for _ in range(count):
        for env, times in zip((old, young), spent, strict=True):
            action, start = env.action_space.sample(), time.thread_time()
            env.step(action)
            times.append(time.thread_time() - start)
    return [statistics.median(times) for times in spent]


def test_every_system_with_weights_of_ours_is_walked() -> None:
    assert {name for name, _ in CASES} >= {"worldpack", "video", "worldtrace", "come", "echo"}


@pytest.mark.parametrize("system", ["worldpack", "worldtrace", "come", "echo"])  # the video network is WorldTrace's
def test_tiny_worlds_for_500_steps(system: str, tmp_path: Path) -> None:
    walk_tiny(system, systems.get(system).default_memory, 500, 1.25, tmp_path, None)


@pytest.mark.slow
@pytest.mark.parametrize(("system", "memory"), CASES)
def test_tiny_worlds_for_100_000_steps(system: str, memory: str, tmp_path: Path) -> None:
    walk_tiny(system, memory, 100_000, 1.1, tmp_path, LANES)


def walk_tiny(system: str, memory: str, steps: int, slower: float, tmp_path: Path, lanes: int | None) -> None:
    path = checkpoint_of(system, tmp_path)
    world = load_world(path, system=system, memory=memory, memory_budget=BUDGET, device="cpu", dtype="float32")

    def make() -> Any:
        return wmgym.make_env(world, "free", num_envs=lanes, setting="minecraft", opening=clip(BUDGET), horizon=10**9)

    soak(make, steps, growth=LARGEST_GROWTH, slower=slower)


@pytest.mark.slow
@pytest.mark.parametrize("id", [row.id for row in DREAMS if row.kwargs["checkpoint"] is not None])
def test_bundled_worlds(id: str) -> None:
    def make() -> Any:
        return gym.make(id, task="free", memory_budget=BUDGET, horizon=10**9, device="cpu", dtype="float32").unwrapped

    soak(make, 3000, growth=4 * LARGEST_GROWTH, slower=1.1)
