"""`wmgym eval maze-returns`: returns of walkers in Memory Maze, per size, beside the human scores of the paper.

The oracle knows the maze and goes straight to each target, so its return is an upper bound, not what can be learned. Human scores are
the paper's (Pasukonis et al. 2022, table of sizes: mean over episodes, and the best episode), not measured here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from wmgym.agents.collect import WORLDS_PER_SEED
from wmgym.agents.scripted import find_program, make_walker
from wmgym.experiments.support.report import check_positive, write_tables
from wmgym.metrics.statistics import bootstrap_interval
from wmgym.progress import Progress

PEOPLE = {9: (26.4, 34.8), 11: (44.3, 58.0), 13: (55.5, 74.5), 15: (67.7, 87.7)}  # mean and best


@dataclass(frozen=True)
class ReturnsArgs:
    """Returns of walkers in Memory Maze until upstream's time limit, beside the paper's human scores.

    Prints the table, and writes it to a folder if --out is given. The time grows with sizes, walkers and episodes; larger mazes have longer
    episodes.
    """

    sizes: tuple[int, ...] = (9, 11, 13, 15)
    """Cells along a side of the maze: 9, 11, 13, 15."""
    walkers: tuple[str, ...] = ("oracle", "explorer", "random")
    """Who walks: oracle, explorer, random."""
    episodes: int = 10
    """Mazes per size, one episode each."""
    seed: int = 100
    """Maze k has the seed `SEED * 1_000_000 + k`, as in `wmgym collect`."""
    out: Path | None = None
    """Folder for args.json, result.json and table.txt."""

    def __post_init__(self) -> None:
        for size in self.sizes:
            if size not in PEOPLE:
                raise ValueError(f"sizes must be of {', '.join(map(str, PEOPLE))}, got {size}")
        check_positive(self, "episodes")
        for walker in self.walkers:
            if not find_program(walker, "memory_maze")[1]:
                raise ValueError(f"walker {walker!r} ends by itself and earns nothing; choose oracle, explorer or random")


def evaluate(args: ReturnsArgs, progress: bool = True) -> dict[str, Any]:
    """One row per size and walker: the mean return and its 95 % interval over mazes."""
    rows = []
    with Progress(total=len(args.sizes) * len(args.walkers) * args.episodes, unit="episode", disable=not progress) as bar:
        for size in args.sizes:
            env = gym.make(f"MemoryMaze-{size}x{size}-v0", disable_env_checker=True)
            for walker in args.walkers:
                returns = []
                for k in range(args.episodes):
                    returns.append(episode_return(env, walker, args.seed * WORLDS_PER_SEED + k))
                    bar.update()
                interval = bootstrap_interval(returns)
                mean, best = PEOPLE[size]
                rows.append({
                    "size": f"{size}x{size}", "walker": walker, "return": interval.mean, "low": interval.low, "high": interval.high,
                    "best": max(returns), "people_mean (paper)": mean, "people_best (paper)": best,
                })  # fmt: skip
            env.close()
    report: dict[str, Any] = {"episodes": args.episodes, "returns": rows}
    return write_tables(args.out, args, report)


def episode_return(env: gym.Env, name: str, seed: int) -> float:
    """A walker's return in one episode. Walkers do not look, so nothing is rendered."""
    _, info = env.reset(seed=seed)
    ball, pose, earned = env.unwrapped.ball, info["pose"], 0  # type: ignore[attr-defined]
    walker = make_walker(name, env, np.random.default_rng(seed))
    for _ in range(env.unwrapped.horizon):  # type: ignore[attr-defined]
        earned += ball.step(walker.act(pose))
        pose = ball.pose
    return float(earned)
