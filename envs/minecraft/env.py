"""`Minecraft-v0`, the ground truth: a body in a block world, seen from its eyes.

Actions (0.2 s each): noop, forward, back, strafe left, strafe right, forward + jump, turn left, turn right, look up, look down.
Task "navigate": the frame and a compass; reward is the blocks gained towards the goal, and 100 on arrival. Task "free": the frame
alone, no reward. The engine is chosen by `backend`; the task is in wmgym/tasks.py, shared with the dreams of this world.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wmgym import tasks
from wmgym.envs.minecraft.backend import Pose, check_pose, make_backend

TASKS = ("navigate", "free")
RESET_OPTIONS = ("goal", "start")


class MinecraftEnv(gym.Env):
    """A Minecraft-like world of which `info["pose"]` is known.

    size: side of the square frames observed. render_size: side, or (height, width), of what `render()` returns; default `size`.
    horizon: steps after which an episode is cut off; default 500 ("navigate") or 10,000 ("free").
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(
        self,
        task: str = "navigate",
        backend: str = "voxel",
        size: int = 64,
        render_size: int | Sequence[int] | None = None,
        horizon: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.task, self.horizon = task, check_horizon(task, horizon)
        self.size, self.render_size = check_size("size", size)[0], check_size("render_size", size if render_size is None else render_size)
        self.render_mode = check_render_mode(render_mode)
        self._backend = make_backend(backend)
        self.field_of_view = self._backend.field_of_view
        self.observation_space = observation_space(task, self.size)
        self.action_space = spaces.Discrete(len(tasks.MINECRAFT_ACTIONS))
        self._pose: Pose | None = None
        self._goal: Pose | None = None
        self._elapsed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        options = check_options(options)
        goal = None if options.get("goal") is None else check_goal(options["goal"], self.task, self._backend.bounds)
        start = None if options.get("start") is None else check_pose("start", options["start"])
        super().reset(seed=seed)
        self._pose = self._backend.reset(int(self.np_random.integers(2**31)), start)
        self._goal = None
        if self.task == "navigate":
            self._goal = choose_goal(self.np_random, self._pose, self._backend.reachable) if goal is None else full_goal(goal, self._pose)
        self._elapsed = 0
        return self._observe(), self._info()

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        before = self._running()
        if not self.action_space.contains(action):
            raise ValueError(f"action must be an integer from 0 to {self.action_space.n - 1}, got {action!r}")
        self._pose = self._backend.step(int(action))
        self._elapsed += 1
        reward, arrived = 0.0, False
        if self._goal is not None:
            reward = float(tasks.navigate_reward(before, self._pose, self._goal))
            arrived = bool(tasks.navigate_arrived(self._pose, self._goal))
        return self._observe(), reward, arrived, self._elapsed >= self.horizon, self._info()

    def render(self) -> NDArray[np.uint8] | None:
        self._running()
        return self._backend.render(*self.render_size) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self._backend.close()
        self._pose = None

    def save_state(self) -> dict[str, Any]:
        """Everything that the rest of the episode, and the episodes after it, depend on."""
        self._running()
        return {
            "task": self.task,
            "horizon": self.horizon,
            "elapsed": self._elapsed,
            "goal": None if self._goal is None else self._goal.copy(),
            "backend": self._backend.save(),
            "np_random": copy.deepcopy(self.np_random.bit_generator.state),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a value of `save_state`, bit for bit."""
        if state["task"] != self.task:
            raise ValueError(f"state is of task {state['task']!r}, this env has task {self.task!r}")
        self.horizon, self._elapsed = state["horizon"], state["elapsed"]
        self._goal = None if state["goal"] is None else np.array(state["goal"], np.float32)
        self._pose = self._backend.load(state["backend"])
        self.np_random.bit_generator.state = copy.deepcopy(state["np_random"])

    def solid(self, low: tuple[int, int, int], high: tuple[int, int, int]) -> NDArray[np.bool_]:
        """Which cells of the box from `low` up to, not including, `high` stop a body: [X, Y, Z], z up."""
        self._running()
        return self._backend.solid(low, high)

    def get_action_meanings(self) -> list[str]:
        return list(tasks.MINECRAFT_ACTIONS)

    def get_keys_to_action(self) -> dict[tuple[str, ...], int]:
        return dict(KEYS)

    def _running(self) -> Pose:
        if self._pose is None:
            raise gym.error.ResetNeeded("reset() must be called first")
        return self._pose

    def _observe(self) -> Any:
        frame = self._backend.render(self.size, self.size)
        return frame if self._goal is None else {"pov": frame, "compass": tasks.compass(self._pose, self._goal)}

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"pose": self._pose.copy()}
        if self._goal is not None:
            info |= {"goal": self._goal.copy(), "goal_distance": float(tasks.horizontal_distance(self._pose, self._goal))}
        return info


KEYS = {("w",): 1, ("s",): 2, ("a",): 3, ("d",): 4, (" ",): 5, ("w", " "): 5, ("j",): 6, ("l",): 7, ("i",): 8, ("k",): 9}


def observation_space(task: str, size: int) -> spaces.Space:
    frame = spaces.Box(0, 255, (size, size, 3), np.uint8)
    return spaces.Dict(pov=frame, compass=spaces.Box(-1, 1, (2,), np.float32)) if task == "navigate" else frame


def choose_goal(rng: np.random.Generator, pose: Pose, reachable: Any) -> Pose:
    """A goal that a walker can get to; the last one tried, if none of 64 is."""
    for _ in range(64):
        goal = tasks.sample_goal(rng, pose)
        if reachable(float(goal[0]), float(goal[1])):
            break
    return goal


def full_goal(goal: Pose, pose: Pose) -> Pose:
    """A goal given as x, y gets the height of the start."""
    return goal if len(goal) == 5 else np.array([*goal, pose[2], 0, 0], np.float32)


# what a user may give


def check_horizon(task: str, horizon: int | None) -> int:
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; available: {', '.join(map(repr, TASKS))}")
    if horizon is None:
        return tasks.NAVIGATE_HORIZON if task == "navigate" else tasks.FREE_HORIZON
    if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)) or horizon < 1:
        raise ValueError(f"horizon must be a positive integer, got {horizon!r}")
    return int(horizon)


def check_size(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from a side or a pair."""
    pair = (size, size) if isinstance(size, (int, np.integer)) else tuple(size) if isinstance(size, (list, tuple)) and name == "render_size" else ()
    if len(pair) != 2 or not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and 8 <= n <= 2048 for n in pair):
        raise ValueError(f"{name} must be {'a side or (height, width)' if name == 'render_size' else 'a side'} from 8 to 2048 pixels, got {size!r}")
    return int(pair[0]), int(pair[1])


def check_render_mode(render_mode: str | None) -> str | None:
    if render_mode not in (None, *MinecraftEnv.metadata["render_modes"]):
        raise ValueError(f"unknown render_mode {render_mode!r}; available: None, 'rgb_array'")
    return render_mode


def check_options(options: dict[str, Any] | None) -> dict[str, Any]:
    unknown = [key for key in options or {} if key not in RESET_OPTIONS]
    if unknown:
        raise ValueError(f"unknown reset option {unknown[0]!r}; available: {', '.join(map(repr, RESET_OPTIONS))}")
    return dict(options or {})


def check_goal(goal: Any, task: str, bounds: Any) -> Pose:
    """A goal pose of 2 or 5 numbers within the world."""
    if task != "navigate":
        raise ValueError(f"option 'goal' belongs to the task 'navigate', this env has task {task!r}")
    pose = check_pose("goal", goal, (2, 5))
    low, high = bounds
    if not all(low[i] <= pose[i] < high[i] for i in range(2)):
        raise ValueError(f"goal must lie within the world, {low[:2]} to {high[:2]}, got {tuple(float(v) for v in pose[:2])}")
    return pose
