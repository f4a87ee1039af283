"""`Minecraft-v0`, the ground truth: a player in a block world, in first person.

Actions (0.2 s each): noop, forward, back, strafe left, strafe right, forward + jump, turn left, turn right, look up, look down.
Task "navigate": the observation is the frame and a compass; the reward is the distance gained towards the goal in blocks, plus 100 on
arrival. Task "navigate-near": the same with goals within 10 blocks, for training. Task "revisit": `reset` looks around, walks 3 to 8 blocks
away and turns; the observation is the frame and the first view, and the episode ends where that view is seen again. Task "free": the frame
alone, no reward. `backend` chooses the engine. The tasks are in wmgym/tasks.py, which the dreams of this world share.

With `action_mode="minerl"` a step is one game tick of 0.05 s and the action is MineRL's: a dict of eight keys, 0 or 1, and `camera`,
degrees down and to the right.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from wmgym.data.depth import DepthCamera
from wmgym.envs import checks
from wmgym.envs.checks import check_pose, check_render_mode, check_render_size, check_size
from wmgym.envs.minecraft.backend import (
    KEYS,
    Backend,
    BuildBackend,
    DepthBackend,
    Pose,
    TickBackend,
    check_action_mode,
    check_keywords,
    find_backend,
    make_backend,
)
from wmgym.envs.minecraft.way_out import walk_out
from wmgym.settings.minecraft import ACTIONS, SETTING
from wmgym.tasks import horizontal_distance
from wmgym.vectors import check_actions

if TYPE_CHECKING:
    from wmgym.envs.minecraft.vector_env import MinecraftVectorEnv

TASKS = SETTING.tasks
RESET_OPTIONS = ("goal", "start")
TICKS = 4  # game ticks of 0.05 s per step of mode "discrete"


class MinecraftEnv(gym.Env):
    """A Minecraft-like world. `info["pose"]` is the true pose, and in tasks with a goal `info["goal"]` and `info["goal_distance"]`.

    task: "navigate", "navigate-near", "revisit" or "free".
    backend: the engine: "voxel", "prismarine", "server" or "minerl".
    size: side of the square frames observed, in pixels.
    render_size: side, or (height, width), of what `render()` returns; default `size`.
    horizon: steps after which an episode is truncated; default 500 ("navigate"), 100 ("navigate-near", "revisit") or 10,000 ("free") of
        0.2 s, or the same time in ticks.
    action_mode: "discrete" (ten actions) or "minerl" (keys and camera, one tick per step).
    engine: keywords of the backend, such as `world`, `host`, `port` or `python` (`BACKENDS` in backend.py lists them).
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012  # Gymnasium's own form

    def __init__(
        self,
        task: str = "navigate",
        backend: str = "voxel",
        size: int = 64,
        render_size: int | Sequence[int] | None = None,
        horizon: int | None = None,
        render_mode: str | None = None,
        action_mode: str = "discrete",
        **engine: Any,
    ) -> None:
        check_keywords(type(self), engine)
        self.action_mode = check_action_mode(backend, action_mode)
        self.task, self.horizon = task, check_horizon(task, horizon, action_mode)
        self.size, self.render_size = check_size(size), check_render_size(render_size, size)
        self.render_mode = check_render_mode(render_mode)
        self.backend, self.engine_options = backend, engine
        self._engine = make_backend(backend, **engine)
        if action_mode == "minerl":
            self.metadata = {**self.metadata, "render_fps": 20}
        if find_backend(backend).depth:
            self.metadata = {**self.metadata, "depth": depth_camera(cast(DepthBackend, self._engine))}
        if find_backend(backend).builds:
            self.metadata = {**self.metadata, "builds": True}
        self.field_of_view = self._engine.field_of_view
        self.observation_space = observation_space(task, self.size)
        self.action_space = action_space(action_mode)
        self._pose: Pose | None = None
        self._goal: Pose | None = None
        self._goal_frame: NDArray[np.uint8] | None = None  # of task "revisit"
        self.walked: dict[str, NDArray[Any]] = {}  # task "revisit": frames, actions and poses of the opening that the last `reset` walked
        self._elapsed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in a new world. `options`: `start` (a pose) and, in tasks with a goal, `goal` (x, y or a pose)."""
        start, goal = check_options(options, self.task, self._engine.bounds)
        super().reset(seed=seed)
        if TASKS[self.task].goes_back:
            self._pose, self._goal = self._walk_out(start)
        else:
            self._pose, self._goal = open_episode(self._engine, self.np_random, self.task, start, goal)
        self._elapsed = 0
        return self._observe(self._pose), self._info(self._pose)

    def _walk_out(self, start: Pose | None) -> tuple[Pose, Pose]:
        """Begin task "revisit": the pose after the walk, and the goal."""
        seen: list[tuple[NDArray[np.uint8], int, Pose]] = []

        def see(step: int, action: int, pose: Pose) -> None:
            del seen[step:]  # of a world that was given up
            seen.append((self._engine.render(self.size, self.size), action, pose))

        self._pose = None  # until the walk has succeeded, since it leaves the present world
        pose, goal = walk_out(self._engine, self.np_random, start, see)
        frames, actions, poses = zip(*seen, strict=True)
        self.walked = {"frames": np.stack(frames), "actions": np.array(actions, np.int64), "poses": np.stack(poses)}
        self._goal_frame = frames[0]
        return pose, goal

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One action. After the end of an episode it raises `ResetNeeded`."""
        before = self._running()
        checks.check_not_over(*self._flags(before))
        if self.action_mode == "minerl":
            pose = cast(TickBackend, self._engine).tick(*check_minerl_action(action, self.action_space))
        else:
            pose = self._engine.step(int(check_actions(action, self.action_space)))
        self._pose = pose
        self._elapsed += 1
        reward = 0.0 if self._goal is None else float(TASKS[self.task].reward(before, pose, self._goal))
        return self._observe(pose), reward, *self._flags(pose), self._info(pose)

    def render(self) -> NDArray[np.uint8] | None:
        self._running()
        return self._engine.render(*self.render_size) if self.render_mode == "rgb_array" else None

    def depth(self) -> NDArray[np.float32]:
        """Depth of the frame observed, [size, size]: blocks along the optical axis (wmgym.data.depth), through water.

        Infinite in the sky and 60 blocks away or further. NotImplementedError where the engine measures none.
        """
        if not find_backend(self.backend).depth:
            raise NotImplementedError(f"backend {self.backend!r} measures no depth")
        self._running()
        return cast(DepthBackend, self._engine).depth(self.size, self.size)

    def close(self) -> None:
        self._engine.close()
        self._pose = None

    def save_state(self) -> dict[str, Any]:
        """Everything that this and the following episodes depend on, as a value. NotImplementedError if the engine cannot save."""
        check_saves(self.backend)
        self._running()
        goal = self._goal, self._goal_frame
        return state_of(self.task, self.horizon, self._elapsed, goal, self._engine, self.np_random, self._np_random_seed)

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a value of `save_state`, bit for bit. ValueError if it is not one, or is of another task."""
        check_saves(self.backend)
        check_state(state, self.task, self.size)
        self.horizon, self._elapsed = int(state["horizon"]), int(state["elapsed"])
        self._goal = None if state["goal"] is None else np.array(state["goal"], np.float32)
        self._goal_frame = None if state["goal_frame"] is None else np.array(state["goal_frame"], np.uint8)
        self.walked = {}
        self._pose = self._engine.load(state["backend"])
        self.np_random.bit_generator.state = copy.deepcopy(state["np_random"])
        self._np_random_seed = state["seed"]

    def branch(self, n: int, seeds: int | Sequence[int] | None = None) -> MinecraftVectorEnv:
        """n futures of the present state, as a vector env that never resets by itself. This env is untouched.

        Branches share the world. They keep this env's generator, or get new ones from `seeds`: either one number, to which the branch's
        index is added, or one number per branch. An episode draws no random numbers, so the seeds matter only for a later reset.
        """
        from wmgym.envs.minecraft.vector_env import MinecraftVectorEnv  # here, because that file imports this one

        here = MinecraftVectorEnv(
            1, self.task, self.backend, self.size, self.render_size, render_mode=self.render_mode, action_mode=self.action_mode,
            **self.engine_options,
        )  # fmt: skip
        try:
            terminated, truncated = self._flags(self._running())
            here.load_state({"lanes": (self.save_state(),), "terminated": [terminated], "truncated": [truncated]})
            return here.branch(n, seeds)
        finally:
            here.close()

    def solid(self, low: tuple[int, int, int], high: tuple[int, int, int]) -> NDArray[np.bool_]:
        """Which cells of the box from `low` to `high` (excluded) stop a body: [X, Y, Z], z up."""
        self._running()
        return self._engine.solid(low, high)

    def build(self, blocks: Mapping[tuple[int, int, int], str]) -> None:
        """Set cells (x, y, z) of the present world to blocks by name, such as "red", or to "air", until the next `reset`.

        The next frame shows them. ValueError if a cell lies outside the world or where the body stands, or a name is unknown;
        NotImplementedError where the engine cannot set blocks.
        """
        if not find_backend(self.backend).builds:
            raise NotImplementedError(f"backend {self.backend!r} sets no blocks")
        self._running()
        cast(BuildBackend, self._engine).build(blocks)

    def get_action_meanings(self) -> list[str]:
        """What each action does, in words; in mode "minerl" the parts of an action."""
        return action_meanings(self.action_mode)

    def get_keys_to_action(self) -> dict[tuple[str, ...], Any]:
        """The keys of `gymnasium.utils.play`."""
        if self.action_mode == "discrete":
            return dict(SETTING.keys)
        return {keys: minerl_action(*pressed) for keys, pressed in MINERL_PLAY_KEYS.items()}

    def _running(self) -> Pose:
        if self._pose is None:
            raise gym.error.ResetNeeded("reset() must be called first")
        return self._pose

    def _flags(self, pose: Pose) -> tuple[bool, bool]:
        """Whether the episode is terminated, and whether it is truncated. One that has just begun is neither, wherever its goal is."""
        if self._elapsed == 0:
            return False, False
        arrived = self._goal is not None and bool(TASKS[self.task].done(pose, self._goal))
        ending = self._engine.ending
        return arrived or ending == "terminated", self._elapsed >= self.horizon or ending == "truncated"

    def _observe(self, pose: Pose) -> Any:
        frame = self._engine.render(self.size, self.size)
        if self._goal is None:
            return frame
        return TASKS[self.task].observe(frame, pose, self._goal, None if self._goal_frame is None else self._goal_frame.copy())

    def _info(self, pose: Pose) -> dict[str, Any]:
        info: dict[str, Any] = {"pose": pose.copy()}
        if self._goal is not None:
            info |= {"goal": self._goal.copy(), "goal_distance": float(horizontal_distance(pose, self._goal))}
        return info


# shared with the vector env


def observation_space(task: str, size: int) -> spaces.Space:
    frame = spaces.Box(0, 255, (size, size, 3), np.uint8)
    return TASKS[task].observation_space(frame)


def action_space(mode: str) -> spaces.Space:
    if mode == "discrete":
        return spaces.Discrete(len(ACTIONS))
    return spaces.Dict({**{key: spaces.Discrete(2) for key in KEYS}, "camera": spaces.Box(-180, 180, (2,), np.float32)})


def action_meanings(mode: str) -> list[str]:
    return list(ACTIONS) if mode == "discrete" else [*KEYS, "camera"]


def depth_camera(engine: DepthBackend) -> DepthCamera:
    return DepthCamera(engine.field_of_view, (0.0, 0.0, engine.eyes))


def minerl_action(*pressed: str, camera: tuple[float, float] = (0, 0)) -> dict[str, Any]:
    """An action of mode "minerl": the keys held, and the camera's turn in degrees down and to the right."""
    return {**{key: np.int64(key in pressed) for key in KEYS}, "camera": np.array(camera, np.float32)}


# for `gymnasium.utils.play` in mode "minerl"; it has no mouse, so the camera does not turn
MINERL_PLAY_KEYS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("w",): ("forward",), ("s",): ("back",), ("a",): ("left",), ("d",): ("right",), (" ",): ("jump",), ("w", " "): ("forward", "jump")
}  # fmt: skip


def open_episode(engine: Backend, rng: np.random.Generator, task: str, start: Pose | None, goal: Pose | None) -> tuple[Pose, Pose | None]:
    """Draw a world's seed from `rng` and open it: the first pose, and the goal if the task has one."""
    pose = engine.reset(int(rng.integers(2**31)), start)
    if not TASKS[task].needs_goal:
        return pose, None
    return pose, choose_goal(rng, pose, engine.reachable, task) if goal is None else full_goal(goal, pose)


def choose_goal(rng: np.random.Generator, pose: Pose, reachable: Callable[[float, float], bool], task: str = "navigate") -> Pose:
    """A goal that can be reached on foot. If none of 64 draws can, the last one."""
    for _ in range(64):
        goal = cast(Pose, TASKS[task].choose_goal(rng, pose))
        if reachable(float(goal[0]), float(goal[1])):
            break
    return goal


def full_goal(goal: Pose, pose: Pose) -> Pose:
    """A goal of 5 numbers; one given as x, y gets the height of the start."""
    return goal if len(goal) == 5 else np.array([*goal, pose[2], 0, 0], np.float32)


def state_of(
    task: str,
    horizon: int,
    elapsed: int,
    goal: tuple[Pose | None, NDArray[np.uint8] | None],  # pose and frame
    engine: Backend,
    rng: np.random.Generator,
    seed: int | None,
) -> dict[str, Any]:
    """A running episode as a value."""
    pose, frame = goal
    return {
        "task": task,
        "horizon": horizon,
        "elapsed": elapsed,
        "goal": pose.copy() if TASKS[task].needs_goal and pose is not None else None,
        "goal_frame": frame.copy() if TASKS[task].goes_back and frame is not None else None,
        "backend": engine.save(),
        "np_random": copy.deepcopy(rng.bit_generator.state),
        "seed": seed,
    }


# checks of what a user gives


def check_state(state: Any, task: str, size: int) -> None:
    checks.check_state_keys(state, ("task", "horizon", "elapsed", "goal", "goal_frame", "backend", "np_random", "seed"))
    if state["task"] != task:
        raise ValueError(f"the saved state is of task {state['task']!r}, this env has task {task!r}")
    shown = state["goal_frame"]
    if shown is not None and np.shape(shown) != (size, size, 3):
        raise ValueError(f"the saved state shows its goal in {len(shown)} x {len(shown)} pixels, this env has size={size}")


def check_saves(backend: str) -> None:
    if not find_backend(backend).saves:
        raise NotImplementedError(f"states of backend {backend!r} cannot be saved: the program that runs its world does not export it")


def check_minerl_action(action: Any, space: spaces.Space) -> tuple[list[str], tuple[float, float]]:
    """The keys held and the camera's degrees in an action of mode "minerl"; keys left out are not held."""
    given = {**minerl_action(), **action} if isinstance(action, Mapping) else action
    if not space.contains(given):
        raise ValueError(f"action must be a dict of {', '.join(KEYS)} (0 or 1) and camera (2 float32 from -180 to 180), got {action!r}")
    return [key for key in KEYS if given[key]], (float(given["camera"][0]), float(given["camera"][1]))


def check_horizon(task: str, horizon: int | None, action_mode: str = "discrete") -> int:
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; available: {', '.join(map(repr, TASKS))}")
    if horizon is None:
        return TASKS[task].horizon * (1 if action_mode == "discrete" else TICKS)
    if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)) or horizon < 1:
        raise ValueError(f"horizon must be a positive integer, got {horizon!r}")
    return int(horizon)


def check_options(options: Any, task: str, bounds: Any) -> tuple[Pose | None, Pose | None]:
    """The start pose and the goal in the options of `reset`; None for one that is not given."""
    given = checks.check_reset_options(options, RESET_OPTIONS)
    start, goal = given.get("start"), given.get("goal")
    return None if start is None else check_pose("start", start), None if goal is None else check_goal(goal, task, bounds)


def check_goal(goal: Any, task: str, bounds: Any) -> Pose:
    """A goal pose of 2 or 5 numbers within the world."""
    if not TASKS[task].needs_goal:
        raise ValueError(f"option 'goal' belongs to the task 'navigate', this env has task {task!r}")
    if TASKS[task].goes_back:
        raise ValueError(f"the goal of task {task!r} is the first view of the opening: do not give the option 'goal'")
    pose = check_pose("goal", goal, (2, 5))
    low, high = bounds
    if not all(low[i] <= pose[i] < high[i] for i in range(2)):
        raise ValueError(f"goal must lie within the world, {low[:2]} to {high[:2]}, got {tuple(float(v) for v in pose[:2])}")
    return pose
