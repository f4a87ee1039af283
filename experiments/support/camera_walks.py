"""Walks along commanded camera paths (agents/paths.py) in a setting's ground truth, which several programs dream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from wmgym import settings
from wmgym.agents import paths
from wmgym.agents.collect import CollectArgs, collect
from wmgym.benchmarks import loopmem
from wmgym.benchmarks.loopmem import Tolerance
from wmgym.benchmarks.rollout import Walk
from wmgym.data.episode import list_episodes, load_episode
from wmgym.kinematics import Kinematics


def views_again(walk: Walk, setting: str) -> tuple[np.ndarray, np.ndarray]:
    """`loopmem.revisits` with a setting's kinematics and tolerances."""
    return loopmem.revisits(walk, *_measures(setting))


def returned(walk: Walk, setting: str) -> bool:
    """`loopmem.is_walked` with the same."""
    return loopmem.is_walked(walk, *_measures(setting))


def walks_of_path(
    out: Path, path: str, count: int, setting: str, is_good: Callable[[Walk], bool], seed: int, env_kwargs: str, progress: bool
) -> list[Walk]:
    """Collect in `out/paths/PATH` until enough walks returned where they were commanded to. ValueError if that takes ten times as many."""
    truth = settings.get(setting).truth
    if truth is None:
        raise ValueError(f"setting {setting!r} has no ground truth to walk in")
    folder, steps = out / "paths" / path, count * 64
    while True:
        wanted = CollectArgs(truth, walker=f"path-{path}", steps=steps, out=folder, seed=seed, env_kwargs=env_kwargs)
        report = collect(wanted, progress=progress)
        walks = [loopmem.walk_of(load_episode(file), paths.PATH) for file in list_episodes(folder)]
        good = [walk for walk in walks if is_good(walk)]
        if len(good) >= count:
            return good[:count]
        if len(walks) >= 10 * count:
            raise ValueError(f"only {len(good)} of {len(walks)} walks of path {path!r} returned to the views that were commanded")
        mean = report["steps"] / report["episodes"]
        share = max(len(good) / len(walks), 0.2)
        steps = int(1.1 * mean * count / share) + report["steps"] // 10 + 1


def _measures(setting: str) -> tuple[Kinematics | None, Tolerance]:
    motions = paths.motions_of(setting)
    return None if motions.inertia else settings.get(setting).kinematics, Tolerance(*motions.tolerances)
