"""Walkers: scripted agents that record the episodes on which world models are trained and evaluated.

`make_walker(name, env, rng)` makes one. `walker.act(pose)` gives the next action, or None when the walk is over. Equal generators and
poses give equal walks. `walker.segments` records which frames belong to which part of the walk.

    random                   uniform actions
    look-around              a full turn to the left and back, sometimes with a look up or down
    explorer                 random walks and turns that often return to earlier places and headings
    loop-ABA-R, loop-ABCA-R  LoopNav's tasks: look around, walk to B (and C) at a range of R blocks, walk back to A
    turn-loop                turns to the left on the spot, then all the way back
    path-aba-4, ...          camera paths that come back (paths.py)
    cards-random, zig-zag    turn cards (cards.py)

All but `random` need the actions of their world. `explorer` and the loops also need `env.unwrapped.solid` in `Minecraft-v0`. Memory Maze
has its own walkers under the same names, and an `oracle` (maze_walkers.py).

Longer than 400 lines: the walkers of the block world and the steering that they share are read together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from wmgym.agents.cards import cards_random, zig_zags
from wmgym.agents.pathfinding import Cell, Region
from wmgym.data.episode import RETURN, Segment
from wmgym.geometry import wrap_angle
from wmgym.settings import TABLE, minecraft

NOOP, FORWARD, BACK, STRAFE_LEFT, STRAFE_RIGHT, JUMP, TURN_LEFT, TURN_RIGHT, LOOK_UP, LOOK_DOWN = range(10)
TURN = math.radians(15)
FULL_TURN = 24  # actions
WAIT = 15  # actions at the end: LoopNav records 3 s after the goal

Moves = Generator[int, None, None]


@dataclass(frozen=True)
class ExplorerConfig:
    """Frequencies of the explorer's behaviours. A trip is a walk to a place and the behaviours there; probabilities are per trip."""

    reach: float = 16.0  # greatest walking distance of a trip, in blocks
    returns: float = 0.6  # probability that a trip leads to an earlier place and heading
    turn_about: float = 0.25  # probability of turning some way at the end, often followed by the same turn back
    tilt: float = 0.5  # probability of looking up or down during the trip
    sidestep: float = 0.6  # probability of some steps to the side or back
    restless: float = 0.05  # probability per step of a jump or a pause while walking


@dataclass(frozen=True)
class LoopConfig:
    """LoopNav's rules for the goals of a loop."""

    nearest: float = 0.8  # least horizontal distance of a goal, as a share of the range
    max_climb: int = 10  # greatest difference in height, in blocks
    detour: float = 3.0  # greatest path cost to a goal, in multiples of the range
    arrival: float = 1.0  # horizontal distance in blocks at which a goal counts as reached
    max_steps: int = 2500


class WalkFailed(Exception):
    """The walk cannot continue: there is no goal within reach, the walker is stuck, or the walk is too long."""


class Walker:
    """Runs a program: a generator that yields actions and reads the resulting pose from `walker.pose`."""

    def __init__(self, name: str, env: gym.Env, rng: np.random.Generator, program: Callable[[Walker], Moves], open_ended: bool) -> None:
        self.name = name
        self.open_ended = open_ended  # the program never ends
        self.rng = rng
        self.env = env
        self.pose = np.zeros(5, np.float32)
        self.actions = 0
        self.pitch = 0  # look-ups minus look-downs
        self.segments: list[Segment] = []
        self.outcome = "running"  # then "done" or "aborted: <why>"
        self.stuck = 0  # times that the walker was stuck or found no path
        self._moves = program(self)

    def act(self, pose: np.ndarray) -> Any:
        """The action to take at this pose; None when the walk is over (see `outcome`)."""
        self.pose = np.asarray(pose, np.float64)
        try:
            action = next(self._moves)
        except StopIteration:
            self.outcome = "done" if self.outcome == "running" else self.outcome
            return None
        except WalkFailed as error:
            self.outcome = f"aborted: {error}"
            return None
        self.actions += 1
        return action

    def begin(self, name: str, goal: Cell | np.ndarray | None = None) -> None:
        """Start a segment with the next action."""
        first = self.actions + 1 if self.segments else 0
        where = None if goal is None else (float(goal[0]), float(goal[1]), float(goal[2]))
        self.segments.append(Segment(name, first, where))


def find_program(name: str, world: str = "minecraft") -> tuple[Callable[[Walker], Moves], bool]:
    """The program of a walker in a world, and whether it is open-ended. ValueError if there is no walker of this name."""
    if name.startswith("path-"):
        from wmgym.agents.paths import path_program  # here, because that file imports this one

        return path_program(name.removeprefix("path-"), world), False
    programs = _programs(world)
    kinds: dict[str, tuple[Callable[[Walker], Moves], bool]] = {"random": (_random, True), **programs.named}
    loop = re.fullmatch(r"loop-(ABC?A)-([1-9]\d*)", name)
    if loop and programs.loop:
        return programs.loop(loop[1], int(loop[2])), False
    if name not in kinds:
        loops = ["loop-ABA-R", "loop-ABCA-R"] if programs.loop else []
        raise ValueError(f"unknown walker {name!r}; known in {world}: {', '.join([*kinds, *loops])}")
    return kinds[name]


class Programs(NamedTuple):
    """The walkers of one world."""

    named: Mapping[str, tuple[Callable[[Walker], Moves], bool]]  # name -> program, and whether it is open-ended
    loop: Callable[[str, int], Callable[[Walker], Moves]] | None  # task ("ABA") and range -> program


def _programs(world: str) -> Programs:
    if world == "memory_maze":
        from wmgym.agents import maze_walkers as maze  # here, because that file imports this one

        turning = {"look-around": (maze.look_around, False), "turn-loop": (maze.turn_loop, False)}
        return Programs({"oracle": (maze.oracle, True), "explorer": (maze.explorer, True), **turning}, maze.loop)
    if world == "memory_cards":
        return Programs({"cards-random": (cards_random, True), "zig-zag": (zig_zags, True)}, None)
    blocks = {"look-around": (_look_around, False), "explorer": (_explorer, True), "turn-loop": (_turn_loop, False)}
    return Programs(blocks, lambda task, reach: _loop(task, reach, LoopConfig()))


def world_of(env: gym.Env) -> str:
    """The world whose walkers fit an environment, by the meanings of its actions, else by their number; "" if there is none."""
    if not hasattr(env.unwrapped, "get_action_meanings"):
        return "minecraft" if getattr(env.action_space, "n", None) == len(minecraft.ACTIONS) else ""
    meanings = tuple(env.unwrapped.get_action_meanings())
    return next((name for name, setting in TABLE.items() if setting.actions == meanings), "")


def make_walker(name: str, env: gym.Env, rng: np.random.Generator) -> Walker:
    """A walker by name (see the top of this file), for an environment that has been reset.

    ValueError if the name is unknown, or if the environment lacks what the walker needs.
    """
    world = world_of(env)
    if not world and name != "random":
        raise ValueError(f"walker {name!r} needs the ten actions of Minecraft-v0, got the action space {env.action_space}; use 'random'")
    program, open_ended = find_program(name, world or "minecraft")
    if world == "minecraft" and (name == "explorer" or name.startswith("loop-")) and not hasattr(env.unwrapped, "solid"):
        raise ValueError(f"walker {name!r} needs a world that reports solid blocks, {env.unwrapped} does not; use 'turn-loop' or 'random'")
    return Walker(name, env, rng, program, open_ended)


# Programs


def _random(walker: Walker) -> Generator[Any, None, None]:
    space, rng = walker.env.action_space, walker.rng
    while True:
        if isinstance(space, gym.spaces.Discrete):
            yield int(space.start + rng.integers(space.n))
        elif isinstance(space, gym.spaces.MultiDiscrete):
            yield rng.integers(space.nvec).astype(space.dtype)
        elif isinstance(space, gym.spaces.Box):
            yield rng.uniform(space.low, space.high).astype(space.dtype)
        else:
            raise ValueError(f"walker 'random' needs Discrete, MultiDiscrete or Box actions, got {space}")


def _look_around(walker: Walker) -> Moves:
    rng = walker.rng
    walker.begin("out")
    tilt = int(rng.choice([0, 0, 0, 1, -1]))
    yield from _tilt(walker, tilt)
    turns = FULL_TURN + int(rng.integers(-2, 7))
    yield from _turn(walker, turns)
    yield from _pause(int(rng.integers(0, 3)))
    if rng.random() < 0.3:
        yield from _tilt(walker, int(rng.choice([-1, 0, 1])))
    walker.begin(RETURN)
    yield from _turn(walker, -turns)
    yield from _tilt(walker, 0)


def _turn_loop(walker: Walker) -> Moves:
    turns = int(walker.rng.integers(12, FULL_TURN + 1))
    walker.begin("out")
    yield from _turn(walker, turns)
    walker.begin(RETURN)
    yield from _turn(walker, -turns)


def _explorer(walker: Walker) -> Moves:
    config, rng = ExplorerConfig(), walker.rng
    walker.begin("explore")
    places: list[tuple[Cell, float]] = []  # earlier cells and headings
    while True:
        before = walker.actions
        here = _region(walker, int(config.reach) + 4)
        cell = here.cell_of(walker.pose)
        if cell is None:  # in the air or in deep water
            yield from _shake(walker)
            continue
        flood = here.flood(cell, config.reach)
        old = [(place, yaw) for place, yaw in places if here.can_stand(place) and np.isfinite(flood.cost[here._flat(place)])]
        heading = None
        if old and rng.random() < config.returns:
            goal, heading = old[int(rng.integers(len(old)))]
        else:
            goal = _far_cell(flood.cells(), flood.cost, cell, config.reach, rng)
        if rng.random() < config.tilt:
            yield from _tilt(walker, int(rng.choice([-2, -1, -1, 1, 1])))
        yield from _walk(walker, goal, arrival=0.6, restless=config.restless, patience=3)
        if heading is not None:
            yield from _face(walker, heading)
        if rng.random() < config.tilt:
            yield from _tilt(walker, 0)
        if rng.random() < config.sidestep:
            for move in rng.choice([BACK, STRAFE_LEFT, STRAFE_RIGHT, STRAFE_LEFT, STRAFE_RIGHT], int(rng.integers(1, 3))):
                yield from _repeat(int(move), int(rng.integers(1, 4)))
        if rng.random() < config.turn_about:
            turns = int(rng.choice([-1, 1])) * int(rng.integers(4, FULL_TURN + 1))
            yield from _turn(walker, turns)
            if rng.random() < 0.6:
                yield from _pause(int(rng.integers(0, 3)))
                yield from _turn(walker, -turns)
        now = _region(walker, 2, 12).cell_of(walker.pose)
        if now is not None:
            places = (places + [(now, float(walker.pose[3]))])[-12:]
        if walker.actions == before:
            yield TURN_LEFT if rng.random() < 0.5 else TURN_RIGHT  # there was nowhere to go


def _loop(task: str, reach: int, config: LoopConfig) -> Callable[[Walker], Moves]:
    def program(walker: Walker) -> Moves:
        home = walker.pose.copy()
        home_cell = _standing(walker, _region(walker, 2))
        walker.begin("look", home)
        yield from _turn(walker, FULL_TURN)
        for name in task[1:-1]:
            goal = _loop_goal(walker, reach, config)
            walker.begin(name, _middle(goal))
            if not (yield from _walk(walker, goal, config.arrival, max_steps=config.max_steps)):
                raise WalkFailed(f"did not reach {name}")
        walker.begin(RETURN, home)
        if not (yield from _walk(walker, home_cell, config.arrival, aim=home, max_steps=config.max_steps)):
            raise WalkFailed("did not return to the start")
        walker.begin("end", home)
        yield from _pause(WAIT)

    return program


def _loop_goal(walker: Walker, reach: int, config: LoopConfig) -> Cell:
    region = _region(walker, reach + 8)
    start = _standing(walker, region)
    flood = region.flood(start, config.detour * reach)
    cells = flood.cells()
    away = cells - np.array(start)
    far = np.hypot(away[:, 0], away[:, 1]) >= config.nearest * reach
    inside = (np.abs(away[:, :2]) <= reach).all(-1) & (np.abs(away[:, 2]) <= config.max_climb)
    choice = cells[far & inside]
    if not len(choice):
        raise WalkFailed(f"no place to walk to at a range of {reach}")
    x, y, z = choice[int(walker.rng.integers(len(choice)))]
    return int(x), int(y), int(z)


def _far_cell(cells: np.ndarray, cost: np.ndarray, start: Cell, reach: float, rng: np.random.Generator) -> Cell:
    """A random cell. The probability grows with the distance, or walks in narrow places would hardly leave their start."""
    distance = np.hypot(cells[:, 0] - start[0], cells[:, 1] - start[1])
    chance = distance + 1e-3
    x, y, z = cells[int(rng.choice(len(cells), p=chance / chance.sum()))]
    return int(x), int(y), int(z)


# Moves


def _repeat(action: int, times: int) -> Moves:
    for _ in range(times):
        yield action


def _pause(times: int) -> Moves:
    yield from _repeat(NOOP, times)


def _turn(walker: Walker, turns: int) -> Moves:
    """Turn `turns` times by 15 degrees, to the left if positive."""
    yield from _repeat(TURN_LEFT if turns > 0 else TURN_RIGHT, abs(turns))


def _face(walker: Walker, yaw: float) -> Moves:
    yield from _turn(walker, round(wrap_angle(yaw - walker.pose[3]) / TURN))


def _tilt(walker: Walker, pitch: int) -> Moves:
    """Look up or down to `pitch` notches of 15 degrees above the horizon."""
    while walker.pitch != pitch:
        up = pitch > walker.pitch
        walker.pitch += 1 if up else -1
        yield LOOK_UP if up else LOOK_DOWN


def _walk(
    walker: Walker,
    goal: Cell,
    arrival: float,
    aim: np.ndarray | None = None,  # the exact position; default the middle of the goal's cell
    restless: float = 0.0,
    patience: int = 12,  # attempts before giving up
    max_steps: float = math.inf,
) -> Generator[int, None, bool]:
    """Walk to a cell. Returns whether the walker came within `arrival` blocks of it (horizontally)."""
    spot = _middle(goal) if aim is None else aim[:3]
    rng = walker.rng
    for _ in range(patience):
        path = _plan(walker, goal)
        if path is None:
            yield from _shake(walker)
            continue
        at, recent = 0, [walker.pose[:3].copy()]
        while True:
            if math.dist(walker.pose[:2], spot[:2]) < arrival and _above(walker, spot):
                return True
            if walker.actions >= max_steps:
                raise WalkFailed(f"longer than {max_steps} steps")
            at = _progress(path, at, walker.pose)
            if math.dist(walker.pose[:2], path[at][:2]) > 2.0:
                break  # fell or was pushed off the path: plan again
            action = _steer(walker.pose, path, at, spot)
            if restless and action == FORWARD and rng.random() < restless:
                action = int(rng.choice([JUMP, NOOP]))
            yield action
            if action in (FORWARD, JUMP):
                recent = (recent + [walker.pose[:3].copy()])[-6:]
                if len(recent) == 6 and math.dist(recent[0][:2], recent[-1][:2]) < 0.6:
                    yield from _shake(walker)
                    break
    return False


def _above(walker: Walker, spot: np.ndarray) -> bool:
    """Whether the walker is at the height of a spot or directly above it, not on another floor."""
    if abs(walker.pose[2] - spot[2]) < 1.5:
        return True
    cell = _region(walker, 2, 10).cell_of(walker.pose)
    return cell is not None and abs(cell[2] - spot[2]) < 1.5


def _plan(walker: Walker, goal: Cell) -> list[np.ndarray] | None:
    away = max(abs(goal[0] - walker.pose[0]), abs(goal[1] - walker.pose[1]))
    for reach in (int(away) + 10, int(away) + 40):
        region = _region(walker, reach)
        start = region.cell_of(walker.pose)
        path = region.path(start, goal) if start is not None else None
        if path is not None:
            return [_middle(cell) for cell in path]
    return None


def _shake(walker: Walker) -> Moves:
    """A few random moves, which often free a body that is stuck on a corner."""
    walker.stuck += 1
    move = int(walker.rng.choice([BACK, STRAFE_LEFT, STRAFE_RIGHT, JUMP]))
    yield from _repeat(move, int(walker.rng.integers(1, 3)))


def _progress(path: list[np.ndarray], at: int, pose: np.ndarray) -> int:
    """Index of the nearest of the next few waypoints; of equally near ones, the later."""
    ahead = range(at, min(at + 4, len(path)))
    return min(ahead, key=lambda i: (round(math.dist(pose[:2], path[i][:2]), 2), -i))


def _steer(pose: np.ndarray, path: list[np.ndarray], at: int, spot: np.ndarray) -> int:
    """Turn towards a waypoint slightly ahead, or walk to it, with a jump before a step up."""
    ahead = min(at + 2, len(path) - 1)
    while ahead > at + 1 and not _straight(path, at, ahead):
        ahead -= 1
    target = spot if ahead == len(path) - 1 else path[ahead]
    bearing = math.atan2(target[1] - pose[1], target[0] - pose[0])
    error = wrap_angle(bearing - pose[3])
    if abs(error) > TURN / 2 + 1e-3:
        return TURN_LEFT if error > 0 else TURN_RIGHT
    for i in range(at, min(at + 3, len(path))):
        if path[i][2] > pose[2] + 0.5 and math.dist(pose[:2], path[i][:2]) < 1.7:
            return JUMP
    return FORWARD


def _straight(path: list[np.ndarray], first: int, last: int) -> bool:
    """Whether the waypoints from `first` to `last` are on a straight line at one height, so that those in between can be skipped."""
    step = path[first + 1] - path[first]
    return all(np.array_equal(path[i + 1] - path[i], step) for i in range(first, last)) and step[2] == 0


def _region(walker: Walker, reach: int, height: int = 24) -> Region:
    x, y, z = (math.floor(v + 0.01) for v in walker.pose[:3])
    return Region.around(walker.env.unwrapped.solid, (x, y, z), reach, height)  # type: ignore[attr-defined]


def _standing(walker: Walker, region: Region) -> Cell:
    cell = region.cell_of(walker.pose)
    if cell is None:
        x, y, z = walker.pose[:3]
        raise WalkFailed(f"nothing to stand on at ({x:.1f}, {y:.1f}, {z:.1f})")
    return cell


def _middle(cell: Cell) -> np.ndarray:
    return np.array([cell[0] + 0.5, cell[1] + 0.5, cell[2]], np.float64)
