"""Walkers of Memory Maze. They know the maze (`env.unwrapped.ball`) and follow shortest paths; `scripted.py` runs them.

oracle                   goes to the requested target, again and again
explorer                 goes to random places with action noise: the policy of the published offline dataset
look-around, turn-loop   turns to the left on the spot, then all the way back
loop-ABA-R, loop-ABCA-R  looks around, goes to B (and C) at a range of R metres, and returns to A and to its first heading
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
from wmgym.geometry import wrap_angle

NOOP, FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(6)
STEER = 0.321  # radians per step of a held turn
FULL_TURN = 20  # actions
WAIT = 6  # actions until the ball is at rest
PARTS = 8  # planning grid: parts of 0.25 m along a cell of 2 m
REST = 0.05  # metres per step; below it the ball counts as stuck


@dataclass(frozen=True)
class NoiseConfig:
    """Action noise of the explorer, and the limit of one of its walks."""

    noise: float = 0.15  # probability per step that a random action interrupts the walk
    longest: int = 4  # greatest number of steps for which that action repeats
    patience: int = 60  # greatest number of steps of a walk


class MazeMap:
    """Shortest paths in one maze, in metres, with the distance from walls that the body needs."""

    def __init__(self, maze: Any) -> None:
        wall = np.kron(np.pad(maze.layout == 0, 1, constant_values=True), np.ones((PARTS, PARTS), bool))
        near = wall.copy()
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            for sign in (-1, 1):
                near |= np.roll(wall, (sign * dy, sign * dx), (0, 1))
        self._blocked = near.T  # [x, y]: parts whose middle is less than about 0.3 m from a wall
        solid = np.repeat(self._blocked[..., None], 4, -1)
        solid[..., 0] = True  # the ground
        self._region = Region(np.ascontiguousarray(solid), (0, 0, 0))
        self._maze = maze
        free = np.argwhere(maze.layout.T == 1)
        self.middles = maze.to_metres(free + 0.5)  # [n, 2]: middles of all free cells

    def path(self, start: np.ndarray, goal: np.ndarray) -> np.ndarray | None:
        """Points of a shortest path [n, 2], the goal last; None if there is none."""
        path = self._region.path(self._part(start), self._part(goal))
        if path is None:
            return None
        points = self._maze.to_metres((np.array(path)[:, :2] + 0.5) / PARTS - 1)
        points[-1] = goal
        return points

    def length(self, start: np.ndarray, goal: np.ndarray) -> float:
        """Length of a shortest path in metres; infinite if there is none."""
        path = self.path(start, goal)
        return math.inf if path is None else float(np.hypot(*np.diff(path, axis=0).T).sum())

    def is_clear(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Whether the straight line from a to b is free."""
        steps = max(2, int(np.hypot(*(b - a)) / 0.1))
        parts = np.floor((self._maze.to_grid(np.linspace(a, b, steps)) + 1) * PARTS).astype(int)
        return not self._blocked[parts[:, 0], parts[:, 1]].any()

    def _part(self, spot: np.ndarray) -> tuple[int, int, int]:
        """The nearest part that is not blocked."""
        at = np.floor((self._maze.to_grid(np.asarray(spot[:2], np.float64)) + 1) * PARTS).astype(int)
        if self._blocked[at[0], at[1]]:
            free = np.argwhere(~self._blocked)
            at = free[np.abs(free - at).sum(1).argmin()]
        return int(at[0]), int(at[1]), 1


def random_start(maze: Any, rng: np.random.Generator) -> np.ndarray:
    """A pose in the middle of a random free cell, with a random yaw."""
    x, y = MazeMap(maze).middles[rng.integers(int(maze.layout.sum()))]
    return np.array([x, y, 0, rng.uniform(-math.pi, math.pi), 0], np.float32)


# Programs


def oracle(walker: Walker) -> Moves:
    ball = walker.env.unwrapped.ball  # type: ignore[attr-defined]
    maze = MazeMap(ball.maze)
    walker.begin("explore")
    while True:
        named = ball.named
        yield from _go(walker, maze, ball.maze.targets[named, :2], arrival=0.0, until=lambda named=named: ball.named != named)


def explorer(walker: Walker) -> Moves:
    config, rng = NoiseConfig(), walker.rng
    maze = _map_of(walker)
    walker.begin("explore")
    while True:
        goal = maze.middles[rng.integers(len(maze.middles))]
        before = walker.actions
        walk = _go(walker, maze, goal, arrival=0.7, patience=config.patience)
        for action in walk:
            if rng.random() < config.noise:
                yield from [int(rng.integers(6))] * int(rng.integers(1, config.longest + 1))
            else:
                yield action
        if walker.actions == before:
            yield int(rng.integers(6))  # the walker is at the goal already


def look_around(walker: Walker) -> Moves:
    walker.begin("out")
    turns = FULL_TURN + int(walker.rng.integers(-2, 4))
    yield from _turn_and_back(walker, turns)


def turn_loop(walker: Walker) -> Moves:
    walker.begin("out")
    yield from _turn_and_back(walker, int(walker.rng.integers(FULL_TURN // 2, FULL_TURN + 1)))


def loop(task: str, reach: int) -> Any:
    """The program of a task ("ABA" or "ABCA") at a range in metres: look around, go to B (and C), return."""
    config = LoopConfig()

    def program(walker: Walker) -> Moves:
        maze, home = _map_of(walker), walker.pose.copy()
        walker.begin("look", home)
        yield from [LEFT] * FULL_TURN
        yield from _face(walker, home[3])
        for name in task[1:-1]:
            goal = _loop_goal(walker, maze, reach, config)
            walker.begin(name, np.array([*goal, 0]))
            if not (yield from _go(walker, maze, goal, arrival=0.7)):
                raise WalkFailed(f"did not reach {name}")
        walker.begin(RETURN, home)
        if not (yield from _go(walker, maze, home[:2], arrival=0.3)):
            raise WalkFailed("did not return to the start")
        yield from _face(walker, home[3])
        walker.begin("end", home)
        yield from [NOOP] * WAIT

    return program


def _loop_goal(walker: Walker, maze: MazeMap, reach: int, config: LoopConfig) -> np.ndarray:
    away = np.hypot(*(maze.middles - walker.pose[:2]).T)
    choice = maze.middles[(away >= config.nearest * reach) & (away <= reach + 1)]
    choice = [goal for goal in choice if maze.length(walker.pose[:2], goal) <= config.detour * reach]
    if not choice:
        raise WalkFailed(f"no place to walk to at a range of {reach}")
    return choice[int(walker.rng.integers(len(choice)))]


# Moves


def _map_of(walker: Walker) -> MazeMap:
    return MazeMap(walker.env.unwrapped.ball.maze)  # type: ignore[attr-defined]


def _turn_and_back(walker: Walker, turns: int) -> Moves:
    """Turn left and then right by the same number of steps, at rest in between. The dynamics are linear, so both cancel."""
    home = walker.pose.copy()
    yield from [LEFT] * turns
    yield from [NOOP] * 2
    walker.begin(RETURN, home)
    yield from [RIGHT] * turns
    yield from [NOOP] * 2


def _face(walker: Walker, yaw: float) -> Moves:
    """Turn on the spot to a yaw, as exactly as whole steps allow."""
    for _ in range(2 * FULL_TURN):
        error = wrap_angle(yaw - walker.pose[3])
        if abs(error) <= STEER / 2:
            return
        yield LEFT if error > 0 else RIGHT


def _go(
    walker: Walker,
    maze: MazeMap,
    goal: np.ndarray,
    arrival: float,
    until: Any = lambda: False,
    patience: int = 400,
) -> Generator[int, None, bool]:
    """Walk until the goal is within `arrival` metres, or until `until()`. Returns False if that takes more than `patience` steps, or if
    there is no path."""
    slow = 0
    for _ in range(patience):
        here = walker.pose[:2].copy()
        if until() or math.dist(here, goal) < arrival:
            return True
        path = maze.path(here, goal)
        if path is None:
            return False
        ahead = next((point for point in path[::-1] if maze.is_clear(here, point)), path[min(2, len(path) - 1)])
        action = _steer(walker.pose, ahead)
        yield action
        moved = math.dist(here, walker.pose[:2])
        slow = slow + 1 if action not in (LEFT, RIGHT) and moved < REST else 0
        if slow > 2:  # stuck on a corner
            walker.stuck += 1
            slow = 0
            yield from [int(walker.rng.choice([LEFT, RIGHT]))] * 3
            yield from [FORWARD] * 2
    return False


def _steer(pose: np.ndarray, spot: np.ndarray) -> int:
    """Turn on the spot if the bearing is far off, else roll towards the spot, turning on the way."""
    error = wrap_angle(math.atan2(spot[1] - pose[1], spot[0] - pose[0]) - pose[3])
    if abs(error) > 1.0:
        return LEFT if error > 0 else RIGHT
    if abs(error) > STEER / 2:
        return FORWARD_LEFT if error > 0 else FORWARD_RIGHT
    return FORWARD
