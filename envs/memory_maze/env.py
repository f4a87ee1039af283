"""`MemoryMaze-9x9-v0` and its variants, the ground truth: go to the target of the requested colour, again and again.

Actions (0.25 s each): noop, forward, turn left, turn right, forward + left, forward + right. The border of the frame has the colour
of the requested target. Touching that target gives +1, and another one is requested. Episodes are truncated at upstream's time limit
and never terminate. `reset(seed=s)` opens the maze that upstream makes with `seed=s`; `reset()` opens one of a random seed.

Task "targets-near" has 30 steps. It begins at rest, within two cells of the first target and facing it within 45 degrees, so that small
agents can learn it on two cores.

Task "targets-behind" has 40 steps and needs memory. It begins at rest, within two cells of the first target, with a clear line to it. One
look around, 20 turns to the left, shows the target. Before it and after it the target is more than 60 degrees off the heading. Dreams and
their twins open with this look around.

`info["pose"]` is in mujoco's metres: a cell is 2 m wide and the middle of the maze is (0, 0). The agent is a ball with inertia: the
effect of an action depends on the speed before it (wmgym/settings/memory_maze.py has typical values).
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wmgym.data.depth import DepthCamera
from wmgym.envs import checks
from wmgym.envs.checks import check_pose, check_render_mode, check_render_size, check_size
from wmgym.envs.memory_maze.upstream import CELL, Variant, check_installed, load, variant
from wmgym.envs.process_vector import ProcessVectorEnv, branch_of, lane_state
from wmgym.settings import memory_maze as setting
from wmgym.vectors import check_actions, load_generator

if TYPE_CHECKING:
    from wmgym.envs.memory_maze.maze import Ball, Maze

TASKS = tuple(setting.SETTING.tasks)
NEAR = 2  # tasks "targets-near" and "targets-behind": greatest length in cells of the way to the first target
ASIDE = np.pi / 4  # task "targets-near": greatest angle in radians between the view direction and the first target
BEHIND = math.radians(75)  # task "targets-behind": least such angle. Twins begin 4 degrees further left, which leaves more than 60
RESET_OPTIONS = ("start", "goal")
CAMERA = DepthCamera(setting.FIELD_OF_VIEW, eye=(0.15, 0.0, 0.9), tilt=-math.atan(0.1))  # of upstream's ball
NUM_SEEDS = 2**32  # seeds that upstream's generator accepts
_MAZES: weakref.WeakValueDictionary[Any, Maze] = weakref.WeakValueDictionary()  # the mazes in use in this process


class MemoryMazeEnv(gym.Env):
    """A maze with coloured targets. `info["pose"]` is the true pose.

    cells: 9, 11, 13 or 15 along a side.
    variant: one of upstream's suffixes, such as "ExtraObs-Vis".
    task: "targets", "targets-near", "targets-behind", or "free" (no rewards).
    backend: "mujoco", the only one.
    size: side of the square frames observed, in pixels; default upstream's, 64 or 256.
    render_size: side, or (height, width), of what `render()` returns; default `size`.
    horizon: steps after which an episode is truncated; default upstream's limit ("targets"), 30 ("targets-near"),
        40 ("targets-behind") or 10,000 ("free").
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  # Gymnasium's own form

    def __init__(
        self,
        cells: int = 9,
        variant: str = "",
        task: str = "targets",
        backend: str = "mujoco",
        size: int | None = None,
        render_size: int | Sequence[int] | None = None,
        horizon: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_installed()
        self.kind = check_kind(cells, variant, backend)
        self.cells, self.variant, self.backend = cells, variant, backend
        self.task, self.horizon = task, check_horizon(cells, self.kind, task, horizon)
        self.size = check_size(self.kind.frame_side if size is None else size)
        self.render_size = check_render_size(render_size, self.size)
        check_room_for_map(cells, self.kind, self.size, *self.render_size)
        self.render_mode = check_render_mode(render_mode)
        self._kwargs = {
            "cells": cells, "variant": variant, "task": task, "backend": backend, "size": self.size, "render_size": self.render_size,
            "render_mode": render_mode,
        }  # fmt: skip
        self.metadata = {**self.metadata, "render_fps": round(self.kind.control_hz), **({} if self.kind.top else {"depth": CAMERA})}
        self.observation_space = observation_space(cells, self.kind, self.size)
        self.action_space = spaces.Discrete(len(setting.ACTIONS))
        self._ball: Ball | None = None
        self._elapsed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Open a maze. `options`: `start` (a pose, at rest) and `goal` (a position on the target that is requested first)."""
        start, goal = check_options(options, self.task)
        before = copy.deepcopy(self._np_random), self._np_random_seed
        super().reset(seed=seed)
        world = int(seed) if seed is not None and seed < NUM_SEEDS else int(self.np_random.integers(2**31))
        ball = self._open(world)
        try:
            if start is not None:
                place(ball, start)
            if goal is not None:
                name_target(ball, goal)
            if start is None and self.task in PLACED:
                PLACED[self.task](ball, self.np_random)
        except ValueError:
            self._np_random, self._np_random_seed = before
            raise
        self._ball, self._elapsed = ball, 0
        return self._observe(ball), {"pose": ball.pose}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One action. After the end of an episode it raises `ResetNeeded`."""
        ball = self._running()
        checks.check_not_over(self._is_over)
        touched = ball.step(int(check_actions(action, self.action_space)))
        self._elapsed += 1
        reward = float(touched and self.task != "free")
        return self._observe(ball), reward, False, self._is_over, {"pose": ball.pose}

    def render(self) -> NDArray[np.uint8] | None:
        """The frame, with its border, at `render_size`."""
        ball = self._running()
        return frame(ball, self.kind, *self.render_size) if self.render_mode == "rgb_array" else None

    def depth(self) -> NDArray[np.float32]:
        """Depth of what the ball's camera sees, [size, size]: metres along the optical axis (wmgym.data.depth), infinite in the sky.

        The border and the oracle's map are painted over the frame and have no depth. NotImplementedError for the variants seen from above.
        """
        if self.kind.top:
            raise NotImplementedError(f"variant {self.variant!r} is seen from above: depth is measured by the ball's own camera only")
        return self._running().depth(self.size, self.size)

    def close(self) -> None:
        self._ball = None

    def save_state(self) -> dict[str, Any]:
        """Everything that this and the following episodes depend on, as a value."""
        ball = self._running()
        return {
            "task": self.task,
            "horizon": self.horizon,
            "elapsed": self._elapsed,
            "world": {"cells": self.cells, "variant": self.variant, "seed": ball.maze.seed, **ball.save()},
            "np_random": copy.deepcopy(self.np_random.bit_generator.state),
            "seed": self._np_random_seed,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a value of `save_state`, bit for bit. Fast if the state is of the present maze.

        ValueError if it is not such a value, or is of another task, size or variant.
        """
        check_state(state, self.task, self.cells, self.variant)
        world = state["world"]
        ball = self._open(int(world["seed"]))
        ball.load(world)
        self._ball, self._elapsed, self.horizon = ball, int(state["elapsed"]), int(state["horizon"])
        self._np_random = load_generator(state["np_random"])
        self._np_random_seed = state["seed"]

    def branch(self, n: int, seeds: int | Sequence[int] | None = None) -> ProcessVectorEnv:
        """n futures of the present state, as a vector env in the calling process that never resets by itself. This env is untouched.

        Branches share the maze. They keep this env's generator, or get new ones from `seeds`: either one number, to which the branch's
        index is added, or one number per branch.
        """
        ball = self._running()
        here = lane_state(self.save_state(), self._observe(ball), {"pose": ball.pose}, truncated=self._is_over)
        return branch_of("wmgym.envs.memory_maze.env:MemoryMazeEnv", self._kwargs, here, n, seeds)

    def __getstate__(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """For `pickle` and `copy`: the attributes without the simulation, and the saved state of a running episode."""
        return {**self.__dict__, "_ball": None}, None if self._ball is None else self.save_state()

    def __setstate__(self, parts: tuple[dict[str, Any], dict[str, Any] | None]) -> None:
        attributes, state = parts
        self.__dict__.update(attributes)
        if state is not None:
            self.load_state(state)

    def get_action_meanings(self) -> list[str]:
        """What each action does, in words."""
        return list(setting.ACTIONS)

    def get_keys_to_action(self) -> dict[tuple[str, ...], int]:
        """The keys of `gymnasium.utils.play`."""
        return dict(setting.SETTING.keys)

    @property
    def ball(self) -> Ball:
        """The simulation's state, for oracles and walkers: `ball.position`, `ball.named`, `ball.maze.targets`, `ball.maze.layout`."""
        return self._running()

    @property
    def _is_over(self) -> bool:
        return self._elapsed >= self.horizon

    def _open(self, seed: int) -> Ball:
        """A ball at upstream's start in the maze of a seed. All balls of one maze in this process share it."""
        from wmgym.envs.memory_maze.maze import Ball, Maze  # here, because mujoco takes a second to import

        largest = max(self.size, self.render_size[0]), max(self.size, self.render_size[1])
        key = self.cells, self.variant, seed, largest
        maze = _MAZES.get(key)
        if maze is None:
            maze = _MAZES[key] = Maze(self.cells, self.kind, seed, largest)
        return Ball(maze)

    def _running(self) -> Ball:
        if self._ball is None:
            raise gym.error.ResetNeeded("reset() must be called first")
        return self._ball

    def _observe(self, ball: Ball) -> Any:
        return observe(ball, self.kind, self.size)


# observations


def observation_space(cells: int, kind: Variant, size: int) -> spaces.Space:
    """The frame alone, or upstream's observations under upstream's names."""
    image, extra = spaces.Box(0, 255, (size, size, 3), np.uint8), setting.extra_observations(cells, kind.name)
    return spaces.Dict({**extra, "image": image}) if extra else image


def observe(ball: Ball, kind: Variant, size: int) -> Any:
    """An observation in `observation_space`."""
    if not kind.extra:
        return frame(ball, kind, size, size)
    observation = {**_facts(ball), "image": bordered(ball.draw(size, size), _colour(ball))}
    return _with_map(observation) if kind.oracle else observation


def frame(ball: Ball, kind: Variant, height: int, width: int) -> NDArray[np.uint8]:
    """The camera's view with the border, and with the map in variants that have one: uint8 [height, width, 3]."""
    image = bordered(ball.draw(height, width), _colour(ball))
    return _with_map({**_facts(ball), "image": image})["image"] if kind.oracle else image


def bordered(image: NDArray[np.uint8], colour: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Draw a border in 0.7 of a colour in [0, 1], in place. Its width is upstream's, but at least 1 (upstream has none below 64 pixels)."""
    wide = max(1, int(2 * np.sqrt(image.shape[0] // 64)))
    for side in (image[:, :wide], image[:, -wide:], image[:wide], image[-wide:]):
        side[:] = colour * 255 * 0.7
    return image


def _colour(ball: Ball) -> NDArray[np.float64]:
    return ball.maze.colours[ball.named]


def _facts(ball: Ball) -> dict[str, Any]:
    """Upstream's global observations: float64 in grid coordinates, directions along the agent's own axes (right, ahead)."""
    maze, axes = ball.maze, ball.axes
    towards = np.stack([np.dot(away, axes) for away in maze.targets - ball.position])[:, :2] / CELL  # one at a time, to match bit for bit
    places = maze.to_grid(maze.targets[:, :2])
    return {
        "target_color": _colour(ball).copy(),
        "agent_pos": maze.to_grid(ball.position[:2]),
        "agent_dir": axes[:2, 1].copy(),
        "targets_vec": towards,
        "targets_pos": places,
        "target_vec": towards[ball.named].copy(),
        "target_pos": places[ball.named].copy(),
        "maze_layout": maze.layout.copy(),
    }


def _with_map(observation: dict[str, Any]) -> dict[str, Any]:
    """An observation after upstream's oracle: the path to the target in the layout, and a map of it in the corner of the frame."""
    oracle = load("oracle")
    return oracle.DrawMinimapWrapper(None).observation(oracle.PathToTargetWrapper(None).observation(observation))


# the start of an episode


def place(ball: Ball, start: NDArray[np.float32]) -> None:
    """Put the ball at a pose, at rest. ValueError if it does not fit there."""
    x, y, yaw = float(start[0]), float(start[1]), float(start[3])
    if not ball.maze.fits(x, y):
        raise ValueError(f"start must be in the maze, at least 0.25 m from all walls; ({x:g}, {y:g}) is not (a cell is 2 m wide)")
    ball.place(x, y, yaw)


def place_near_target(ball: Ball, rng: np.random.Generator) -> None:
    """Put the ball at rest in the middle of a random cell, on foot 1 to `NEAR` cells from the requested target and facing it roughly."""
    places = near_places(ball)
    x, y = places[int(rng.integers(len(places)))]
    ball.place(x, y, _bearing(ball, x, y) + rng.uniform(-ASIDE, ASIDE))


def place_before_unseen_target(ball: Ball, rng: np.random.Generator) -> None:
    """The same, but with a clear line to the target, and facing away from it by `BEHIND` or more."""
    maze, target = ball.maze, ball.maze.targets[ball.named, :2]
    others = np.delete(maze.targets[:, :2], ball.named, 0)
    places = near_places(ball)
    clear = [place for place in places if maze.is_clear(place, target) and not hides(others, place, target, 2 * maze.target_radius)]
    x, y = clear[int(rng.integers(len(clear)))]
    ball.place(x, y, _bearing(ball, x, y) + rng.choice([-1, 1]) * rng.uniform(BEHIND, np.pi))


PLACED = {"targets-near": place_near_target, "targets-behind": place_before_unseen_target}  # task -> how it begins


def near_places(ball: Ball) -> NDArray[np.float64]:
    """The middles in metres of the cells that are 1 to `NEAR` cells from the requested target on foot: [n, 2]."""
    maze = ball.maze
    target = maze.targets[ball.named, :2]
    column, row = np.floor(maze.to_grid(target)).astype(int)
    reached = np.zeros((maze.cells + 2, maze.cells + 2), bool)  # with walls around
    reached[row + 1, column + 1] = True
    free = np.pad(maze.layout == 1, 1)
    for _ in range(NEAR):
        reached |= free & (np.roll(reached, 1, 0) | np.roll(reached, -1, 0) | np.roll(reached, 1, 1) | np.roll(reached, -1, 1))
    reached[row + 1, column + 1] = False
    rows, columns = np.nonzero(reached[1:-1, 1:-1])
    return maze.to_metres(np.stack([columns, rows], -1).astype(np.float64) + 0.5)


def hides(others: NDArray[np.float64], eye: NDArray[np.float64], target: NDArray[np.float64], width: float) -> bool:
    """Whether one of `others` [n, 2] is within `width` metres of the line from `eye` to `target`."""
    ahead = target - eye
    along = ((others - eye) @ ahead / (ahead @ ahead)).clip(0, 1)
    return bool((np.hypot(*(eye + along[:, None] * ahead - others).T) < width).any())


def _bearing(ball: Ball, x: float, y: float) -> float:
    """Direction of the requested target from (x, y): radians."""
    target = ball.maze.targets[ball.named]
    return float(np.arctan2(target[1] - y, target[0] - x))


def name_target(ball: Ball, goal: NDArray[np.float32]) -> None:
    """Request the target at a position. ValueError if there is none."""
    index = ball.maze.target_at(goal[:2].astype(np.float64))
    if index is None:
        centres = ", ".join(f"({x:g}, {y:g})" for x, y, _ in ball.maze.targets.tolist())
        raise ValueError(f"goal must be a position on one of the targets at {centres}, got {goal[:2].tolist()}")
    ball.named = index


# checks of what a user gives


def check_kind(cells: Any, name: Any, backend: Any) -> Variant:
    if isinstance(cells, bool) or cells not in setting.TIME_LIMITS:
        raise ValueError(f"cells must be one of {tuple(setting.TIME_LIMITS)}, got {cells!r}")
    if backend != "mujoco":
        raise ValueError(f"unknown backend {backend!r}; available: 'mujoco'")
    return variant(name)


def check_room_for_map(cells: int, kind: Variant, *sides: int) -> None:
    if kind.oracle and min(sides) < 2 * cells:
        raise ValueError(f"the oracle's map needs frames of {2 * cells} pixels a side or more, got {min(sides)}: choose a larger size")


def check_horizon(cells: int, kind: Variant, task: Any, horizon: Any) -> int:
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; available: {', '.join(map(repr, TASKS))}")
    if horizon is None:
        return round(setting.TIME_LIMITS[cells] * kind.control_hz) if task == "targets" else setting.SETTING.tasks[task].horizon
    if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)) or horizon < 1:
        raise ValueError(f"horizon must be a positive integer, got {horizon!r}")
    return int(horizon)


def check_options(options: Any, task: str) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """The start pose and the goal in the options of `reset`; None for one that is not given."""
    given = checks.check_reset_options(options, RESET_OPTIONS)
    start, goal = given.get("start"), given.get("goal")
    if goal is not None and task == "free":
        raise ValueError(f"option 'goal' belongs to the tasks with targets, this env has task {task!r}")
    return None if start is None else check_pose("start", start, (5,)), None if goal is None else check_pose("goal", goal, (2, 5))


def check_state(state: Any, task: str, cells: int, name: str) -> None:
    checks.check_state_keys(state, ("task", "horizon", "elapsed", "world", "np_random", "seed"))
    if state["task"] != task:
        raise ValueError(f"the saved state is of task {state['task']!r}, this env has task {task!r}")
    world = state["world"]
    if (world["cells"], world["variant"]) != (cells, name):
        saved = f"cells={world['cells']}, variant={world['variant']!r}"
        raise ValueError(f"the saved state is of {saved}; this env has cells={cells}, variant={name!r}")
