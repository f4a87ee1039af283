"""The speed of the ground truth `Minecraft-v0` on one core: frames, env steps, new worlds.

Times are processor time of this thread, so that other programs on the machine hardly affect them. Each figure is a median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from wmgym.envs.minecraft.env import MinecraftEnv
from wmgym.envs.minecraft.vector_env import MinecraftVectorEnv
from wmgym.envs.minecraft.voxel.engine import VoxelBackend
from wmgym.envs.minecraft.voxel.world import generate
from wmgym.settings.minecraft import ACTIONS

SIZES = {"64": (64, 64), "128": (128, 128), "640x360": (360, 640)}  # height and width
LANES = (8, 32)
WORLDS = (0, 1, 2)
ACTION_SHARES = (0.02, 0.4, 0.02, 0.03, 0.03, 0.2, 0.1, 0.1, 0.05, 0.05)  # chance of each action: mostly walking, some turning


def bench(seconds: float = 2.0) -> dict[str, float]:
    """Measure each figure for about `seconds`, after compilation.

    frames_per_second_*: frames along a walk, by frame size.
    env_steps_per_second: single env, task "navigate", 64 x 64.
    vector_steps_per_second_*: steps summed over lanes, by the number of lanes (in a few worlds, without resets).
    new_world_ms: generating a world.
    known_world_ms: resetting an env to a world that is still in the cache.
    """
    result = {}
    views = [view for seed in WORLDS for view in _walk(seed, 20)]
    for name, (height, width) in SIZES.items():
        some = views if height < 300 else views[::6]
        result[f"frames_per_second_{name}"] = _rate(lambda: _draw(some, height, width), len(some), seconds)  # noqa: B023  # called here
    env = MinecraftEnv(horizon=10**9)
    env.reset(seed=WORLDS[0])
    result["env_steps_per_second"] = _rate(lambda: _steps(env, 25), 25, seconds)
    for lanes in LANES:
        vec = MinecraftVectorEnv(lanes, task="free", horizon=10**9)
        vec.reset(seed=[WORLDS[lane % len(WORLDS)] for lane in range(lanes)])
        result[f"vector_steps_per_second_{lanes}"] = _rate(lambda: vec.step(_actions(lanes)), lanes, seconds)  # noqa: B023
    seeds = iter(range(1_000_000, 2_000_000))
    result["new_world_ms"] = 1e3 / _rate(lambda: generate(next(seeds)), 1, seconds)
    result["known_world_ms"] = 1e3 / _rate(lambda: env.reset(seed=WORLDS[0]), 1, seconds)
    return result


_rng = np.random.default_rng(0)


def _actions(count: int) -> np.ndarray:
    return _rng.choice(len(ACTIONS), count, p=ACTION_SHARES)


def _steps(env: MinecraftEnv, count: int) -> None:
    """Random actions; an episode that ends (the goal is reached) is followed by the next."""
    for action in _actions(count):
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset(seed=WORLDS[0])


def _walk(seed: int, count: int) -> list[VoxelBackend]:
    """Engines at places along a walk through a world, ten steps apart."""
    walker = VoxelBackend()
    walker.reset(seed, None)
    views = []
    for _ in range(count):
        for action in _actions(10):
            walker.step(int(action))
        views.append(VoxelBackend())
        views[-1].load(walker.save())
    return views


def _draw(views: Sequence[VoxelBackend], height: int, width: int) -> None:
    for view in views:
        view.render(height, width)


def _rate(run: Callable[[], object], per_run: int, seconds: float) -> float:
    """Items per second, from the median of at least three runs of `per_run` items each."""
    run()  # compiles
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        begin = time.thread_time()
        run()
        times.append(time.thread_time() - begin)
    return per_run / statistics.median(times)
