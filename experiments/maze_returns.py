"""`wmgym eval maze-returns`: what walkers earn in Memory Maze, per size, beside what people earned in the paper.

The oracle knows the maze and goes straight to each target: it says what can be earned, not what can be learned. Scores of people
are the paper's own (Pasukonis et al. 2022, table of sizes; mean over episodes, and the best one), not measured here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from wmgym.agents.collect import WORLDS_PER_SEED
from wmgym.agents.scripted import find_program, make_walker
from wmgym.cli import as_text, plain
from wmgym.files import as_json, write_atomically
from wmgym.metrics.statistics import bootstrap_interval

PEOPLE = {9: (26.4, 34.8), 11: (44.3, 58.0), 13: (55.5, 74.5), 15: (67.7, 87.7)}  # mean and best


@dataclass(frozen=True)
class ReturnsArgs:
    """What walkers earn in Memory Maze until upstream's time limit, beside the paper's human scores."""

    sizes: tuple[int, ...] = (9, 11, 13, 15)
    """Cells a side."""
    walkers: tuple[str, ...] = ("oracle", "explorer", "random")
    """Who walks."""
    episodes: int = 10
    """Mazes per size."""
    seed: int = 100
    """As for `wmgym collect`: maze k has the seed `seed * 1_000_000 + k`."""
    out: Path | None = None
    """Folder for args.json, result.json and table.txt."""

    def __post_init__(self) -> None:
        for size in self.sizes:
            if size not in PEOPLE:
                raise ValueError(f"sizes must be of {', '.join(map(str, PEOPLE))}, got {size}")
        if self.episodes < 1:
            raise ValueError(f"episodes must be positive, got {self.episodes}")
        for walker in self.walkers:
            if not find_program(walker, "memory_maze")[1]:
                raise ValueError(f"walker {walker!r} ends by itself and earns nothing: choose oracle, explorer or random")


def evaluate(args: ReturnsArgs, progress: bool = True) -> dict[str, Any]:
    """One row per size and walker: the mean return and its 95 % interval over mazes."""
    rows = []
    with tqdm(total=len(args.sizes) * len(args.walkers) * args.episodes, unit="episode", disable=not progress) as bar:
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
    if args.out is not None:
        write_atomically(args.out / "args.json", as_json(plain(asdict(args))))
        write_atomically(args.out / "result.json", as_json(plain(report)))
        write_atomically(args.out / "table.txt", (as_text(plain(report)) + "\n").encode())
    return report


def episode_return(env: gym.Env, name: str, seed: int) -> float:
    """What a walker earns in one episode. Nothing is drawn on the way: walkers do not look."""
    _, info = env.reset(seed=seed)
    ball, pose, earned = env.unwrapped.ball, info["pose"], 0  # type: ignore[attr-defined]
    walker = make_walker(name, env, np.random.default_rng(seed))
    for _ in range(env.unwrapped.horizon):  # type: ignore[attr-defined]
        earned += ball.step(walker.act(pose))
        pose = ball.pose
    return float(earned)
