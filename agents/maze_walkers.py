"""Walkers of Memory Maze. They know the maze (`env.unwrapped.ball`) and find shortest ways in it; `scripted.py` runs them.

    oracle                   goes straight to the target that is asked for, again and again
    explorer                 goes to places at random, and now and then does something else: the policy of the offline dataset
    look-around, turn-loop   a turn on the spot to the left, and all of it back
    loop-ABA-R, loop-ABCA-R  looks around, goes to B (and C) at a range of R metres, and comes back to A and to its heading there
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from wmgym.agents.pathfinding import Region
from wmgym.agents.scripted import LoopConfig, Moves, Walker, WalkFailed
from wmgym.data.episode import RETURN

NOOP, FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(6)
STEER = 0.321  # radians per step of a turn that is held
FULL_TURN = 20  # actions
WAIT = 6  # actions: until the ball has come to rest
PARTS = 8  # a cell of 2 m is planned in parts of 0.25 m
REST = 0.05  # metres or radians per step: slower than this is at rest


@dataclass(frozen=True)
class NoiseConfig:
    """How the explorer errs, and when it has had enough of a walk."""

    noise: float = 0.15  # chance per step that something else begins instead of the walk ...
    longest: int = 4  # ... for up to so many steps
    patience: int = 60  # steps on one walk


class Chart:
    """Shortest ways in one maze, in metres, at a distance from walls that the body can keep."""

    def __init__(self, maze: Any) -> None:
        wall = np.kron(np.pad(maze.layout == 0, 1, constant_values=True), np.ones((PARTS, PARTS), bool))
        near = wall.copy()
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            for sign in (-1, 1):
                near |= np.roll(wall, (sign * dy, sign * dx), (0, 1))
        self._blocked = near.T  # [x, y]; parts whose middle is nearer than about 0.3 m to a wall
        solid = np.repeat(self._blocked[..., None], 4, -1)
        solid[..., 0] = True  # the ground
        self._region = Region(np.ascontiguousarray(solid), (0, 0, 0))
        self._maze = maze
        free = np.argwhere(maze.layout.T == 1)
        self.middles = maze.to_metres(free + 0.5)  # [n, 2]: of all free cells

    def way(self, start: np.ndarray, goal: np.ndarray) -> np.ndarray | None:
        """Corners of a shortest way [n, 2], the goal last; None where none leads there."""
        path = self._region.path(self._part(start), self._part(goal))
        if path is None:
            return None
        points = self._maze.to_metres((np.array(path)[:, :2] + 0.5) / PARTS - 1)
        points[-1] = goal
        return points

    def length(self, start: np.ndarray, goal: np.ndarray) -> float:
        """Metres of a shortest way; infinite where there is none."""
        way = self.way(start, goal)
        return math.inf if way is None else float(np.hypot(*np.diff(way, axis=0).T).sum())

    def is_clear(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Whether one can go straight."""
        steps = max(2, int(np.hypot(*(b - a)) / 0.1))
        parts = np.floor((self._maze.to_grid(np.linspace(a, b, steps)) + 1) * PARTS).astype(int)
        return not self._blocked[parts[:, 0], parts[:, 1]].any()

    def _part(self, spot: np.ndarray) -> tuple[int, int, int]:
        """The nearest part where a body can be."""
        at = np.floor((self._maze.to_grid(np.asarray(spot[:2], np.float64)) + 1) * PARTS).astype(int)
        if self._blocked[at[0], at[1]]:
            free = np.argwhere(~self._blocked)
            at = free[np.abs(free - at).sum(1).argmin()]
        return int(at[0]), int(at[1]), 1


def random_start(maze: Any, rng: np.random.Generator) -> np.ndarray:
    """A pose in the middle of a free cell, looking anywhere."""
    x, y = Chart(maze).middles[rng.integers(int(maze.layout.sum()))]
    return np.array([x, y, 0, rng.uniform(-math.pi, math.pi), 0], np.float32)


# Programs


def oracle(walker: Walker) -> Moves:
    ball = walker.env.unwrapped.ball  # type: ignore[attr-defined]
    chart = Chart(ball.maze)
    walker.begin("explore")
    while True:
        named = ball.named
        yield from _go(walker, chart, ball.maze.targets[named, :2], arrival=0.0, until=lambda named=named: ball.named != named)


def explorer(walker: Walker) -> Moves:
    config, rng = NoiseConfig(), walker.rng
    chart = _chart(walker)
    walker.begin("explore")
    while True:
        goal = chart.middles[rng.integers(len(chart.middles))]
        before = walker.actions
        walk = _go(walker, chart, goal, arrival=0.7, patience=config.patience)
        for action in walk:
            if rng.random() < config.noise:
                yield from [int(rng.integers(6))] * int(rng.integers(1, config.longest + 1))
            else:
                yield action
        if walker.actions == before:
            yield int(rng.integers(6))  # it is there already


def look_around(walker: Walker) -> Moves:
    walker.begin("out")
    turns = FULL_TURN + int(walker.rng.integers(-2, 4))
    yield from _turn_and_back(walker, turns)


def turn_loop(walker: Walker) -> Moves:
    walker.begin("out")
    yield from _turn_and_back(walker, int(walker.rng.integers(FULL_TURN // 2, FULL_TURN + 1)))


def loop(task: str, reach: int) -> Any:
    """Look around, go to B (and C), come back."""
    config = LoopConfig()

    def program(walker: Walker) -> Moves:
        chart, home = _chart(walker), walker.pose.copy()
        walker.begin("look", home)
        yield from [LEFT] * FULL_TURN
        yield from _face(walker, home[3])
        for name in task[1:-1]:
            goal = _loop_goal(walker, chart, reach, config)
            walker.begin(name, np.array([*goal, 0]))
            if not (yield from _go(walker, chart, goal, arrival=0.7)):
                raise WalkFailed(f"did not reach {name}")
        walker.begin(RETURN, home)
        if not (yield from _go(walker, chart, home[:2], arrival=0.3)):
            raise WalkFailed("did not find back")
        yield from _face(walker, home[3])
        walker.begin("end", home)
        yield from [NOOP] * WAIT

    return program


def _loop_goal(walker: Walker, chart: Chart, reach: int, config: LoopConfig) -> np.ndarray:
    away = np.hypot(*(chart.middles - walker.pose[:2]).T)
    choice = chart.middles[(away >= config.nearest * reach) & (away <= reach + 1)]
    choice = [goal for goal in choice if chart.length(walker.pose[:2], goal) <= config.detour * reach]
    if not choice:
        raise WalkFailed(f"no place to walk to at a range of {reach}")
    return choice[int(walker.rng.integers(len(choice)))]


# Moves


def _chart(walker: Walker) -> Chart:
    return Chart(walker.env.unwrapped.ball.maze)  # type: ignore[attr-defined]


def _turn_and_back(walker: Walker, turns: int) -> Moves:
    """As many steps one way as the other undo each other, since turning is a linear thing; first the ball comes to rest."""
    home = walker.pose.copy()
    yield from [LEFT] * turns
    yield from [NOOP] * 2
    walker.begin(RETURN, home)
    yield from [RIGHT] * turns
    yield from [NOOP] * 2


def _face(walker: Walker, yaw: float) -> Moves:
    """Turn on the spot until one looks there, as nearly as whole steps allow."""
    for _ in range(2 * FULL_TURN):
        error = _wrap(yaw - walker.pose[3])
        if abs(error) <= STEER / 2:
            return
        yield LEFT if error > 0 else RIGHT


def _go(
    walker: Walker,
    chart: Chart,
    goal: np.ndarray,
    arrival: float,
    until: Any = lambda: False,
    patience: int = 400,
) -> Generator[int, None, bool]:
    """Walk to a place until one is within `arrival` metres of it, or `until()`; whether it came to that within `patience` steps."""
    slow = 0
    for _ in range(patience):
        here = walker.pose[:2].copy()
        if until() or math.dist(here, goal) < arrival:
            return True
        way = chart.way(here, goal)
        if way is None:
            return False
        ahead = next((point for point in way[::-1] if chart.is_clear(here, point)), way[min(2, len(way) - 1)])
        action = _steer(walker.pose, ahead)
        yield action
        moved = math.dist(here, walker.pose[:2])
        slow = slow + 1 if action not in (LEFT, RIGHT) and moved < REST else 0
        if slow > 2:  # caught on a corner
            walker.stuck += 1
            slow = 0
            yield from [int(walker.rng.choice([LEFT, RIGHT]))] * 3
            yield from [FORWARD] * 2
    return False


def _steer(pose: np.ndarray, spot: np.ndarray) -> int:
    """Turn on the spot if it lies far aside, else roll there, turning on the way."""
    error = _wrap(math.atan2(spot[1] - pose[1], spot[0] - pose[0]) - pose[3])
    if abs(error) > 1.0:
        return LEFT if error > 0 else RIGHT
    if abs(error) > STEER / 2:
        return FORWARD_LEFT if error > 0 else FORWARD_RIGHT
    return FORWARD


def _wrap(angle: float) -> float:
    return (angle + math.pi) % (2 * math.pi) - math.pi
