"""Speed relative to upstream. Both step through the same episode in turns, in one process, so that other load slows both alike.

Frames and rewards are compared at each step. The report counts how many were equal, since a speed ratio is valid only if all are.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from wmgym.envs.memory_maze.env import MemoryMazeEnv
from wmgym.envs.memory_maze.upstream import Variant, load

BLOCK = 20  # steps of one env before the other's turn
RESETS = 5


def against_upstream(cells: int, variant: str, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Median milliseconds per step and per reset of our env and of upstream's, and their ratios in wall-clock and processor time.

    reset: a new maze in an existing env. make_and_reset: the maze of a given seed, for which upstream needs a new env.
    """
    ours = MemoryMazeEnv(cells, variant, horizon=10**9)
    theirs = upstream_env(cells, ours.kind, seed)
    first, _ = ours.reset(seed=seed)
    equal = [_same(first, theirs.reset().observation)]
    rng = np.random.default_rng(seed)
    spent: dict[str, list[tuple[float, float]]] = {"ours": [], "upstream": []}
    begun = time.perf_counter()
    while time.perf_counter() - begun < 2 * seconds or len(spent["ours"]) < 3:
        actions = [1 if rng.random() < 0.5 else int(rng.integers(6)) for _ in range(BLOCK)]
        seen = [_timed(spent["ours"], lambda: [ours.step(action)[:2] for action in actions])]  # noqa: B023  # called here
        steps = _timed(spent["upstream"], lambda: [theirs.step(action) for action in actions])  # noqa: B023
        if any(step.last() for step in steps):
            break  # upstream resets itself
        equal += [_same(a, step.observation) and reward == step.reward for (a, reward), step in zip(seen[0], steps)]
    resets: dict[str, list[tuple[float, float]]] = {"ours": [], "upstream": [], "upstream make": []}
    for i in range(RESETS):
        _timed(resets["ours"], lambda: ours.reset(seed=seed + 1 + i))  # noqa: B023
        _timed(resets["upstream"], theirs.reset)
        again = _timed(resets["upstream make"], lambda: upstream_env(cells, ours.kind, seed + 1 + i).reset())  # noqa: B023
        equal.append(_same(ours._observe(ours.ball), again.observation))
    return {
        "equal_frames_and_rewards": sum(equal),
        "compared": len(equal),
        "against_upstream": [
            _row("step", spent["ours"], spent["upstream"], BLOCK),
            _row("reset", resets["ours"], resets["upstream"]),
            _row("make_and_reset", resets["ours"], resets["upstream make"]),
        ],
    }


def upstream_env(cells: int, kind: Variant, seed: int) -> Any:
    """The env that the package makes for an id."""
    make = getattr(load("tasks"), f"memory_maze_{cells}x{cells}")
    return make(
        seed=seed, image_only_obs=not kind.extra, global_observables=kind.extra or kind.oracle, show_path=kind.oracle,
        camera_resolution=kind.frame_side, top_camera=kind.top, good_visibility=kind.visible, randomize_colors=kind.six_colours,
        control_freq=kind.control_hz,
    )  # fmt: skip


def _timed(spent: list[tuple[float, float]], call: Callable[[], Any]) -> Any:
    wall, processor = time.perf_counter(), time.process_time()
    result = call()
    spent.append((time.perf_counter() - wall, time.process_time() - processor))
    return result


def _row(what: str, ours: list[tuple[float, float]], theirs: list[tuple[float, float]], each: int = 1) -> dict[str, Any]:
    (wall, processor), (their_wall, their_processor) = ([statistics.median(times) for times in zip(*rows)] for rows in (ours, theirs))
    return {
        "what": what,
        "ms": 1e3 * wall / each,
        "upstream_ms": 1e3 * their_wall / each,
        "ratio": their_wall / wall,
        "cpu_ratio": their_processor / processor,
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return np.array_equal(a, b)
