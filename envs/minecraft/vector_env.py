"""Many block worlds behind Gymnasium's vector API: one call moves all bodies, one call draws all views.

After `reset(seed=s)` lane i equals the single env that was reset with seed s + i, bit for bit, also across autoresets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from wmgym import tasks
from wmgym.envs.checks import check_render_mode, check_render_size, check_size, check_state_keys
from wmgym.envs.minecraft import env as single
from wmgym.envs.minecraft.backend import Pose, TickLanes, check_action_mode, check_keywords, find_backend, make_lanes
from wmgym.envs.minecraft.faults import BackendError
from wmgym.envs.minecraft.way_out import walk_out
from wmgym.vectors import Info, LanesEnv, Mask, VectorConfig, as_tensors, check_actions, check_count, info_batch, lane_seeds, load_generator


class MinecraftVectorEnv(LanesEnv):
    """N Minecraft-like worlds. The keywords of `MinecraftEnv`, and:

    autoreset_mode: "next_step", "same_step" or "disabled" (an ended lane rests, with its flags set, until it is reset).
    obs_type: "numpy", or "torch" for tensors on the CPU.
    max_episode_steps: another name of `horizon`, used by `gymnasium.make_vec`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012  # Gymnasium's own form

    def __init__(
        self,
        num_envs: int = 1,
        task: str = "navigate",
        backend: str = "voxel",
        size: int = 64,
        render_size: int | Sequence[int] | None = None,
        horizon: int | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = "next_step",
        obs_type: str = "numpy",
        action_mode: str = "discrete",
        **engine: Any,
    ) -> None:
        check_keywords(type(self), engine)
        config = VectorConfig.read(num_envs, autoreset_mode, obs_type, horizon, max_episode_steps)
        self.action_mode = check_action_mode(backend, action_mode)
        self.horizon = single.check_horizon(task, config.horizon, action_mode)
        self.task, self._rules = task, single.TASKS[task]
        self.size, self.render_size = check_size(size), check_render_size(render_size, size)
        fps = 20 if action_mode == "minerl" else self.metadata["render_fps"]
        spaces = single.observation_space(task, self.size), single.action_space(action_mode)
        self._prepare(config, spaces, {**self.metadata, "render_fps": fps}, check_render_mode(render_mode))
        self.backend, self.engine_options = backend, engine
        self._lanes = make_lanes(backend, self.num_envs, **engine)
        self._poses = np.zeros((self.num_envs, 5), np.float32)
        self._goals = np.zeros((self.num_envs, 5), np.float32)
        self._goal_frames = np.zeros((self.num_envs, self.size, self.size, 3), np.uint8)  # of task "revisit"
        self._elapsed = np.zeros(self.num_envs, np.int64)
        self._terminated, self._truncated = np.zeros((2, self.num_envs), bool)
        self._frames = np.zeros((self.num_envs, self.size, self.size, 3), np.uint8)

    # ---- lanes ----

    def _read_options(self, options: Any) -> tuple[Pose | None, Pose | None]:
        return single.check_options(options, self.task, self._lanes.engines[0].bounds)

    def _is_per_lane(self, key: str, value: Any) -> bool:
        return key in single.RESET_OPTIONS and np.ndim(value) == 2

    def _open(self, mask: Mask, seeds: Sequence[int | None], options: Sequence[tuple[Pose | None, Pose | None]]) -> None:
        """A `BackendError` means that an engine's process failed. All lanes must then be reset."""
        may_be_refused = any(pose is not None for pair in options for pose in pair)
        before = self.save_state() if may_be_refused and self._is_running and find_backend(self.backend).saves else None
        try:
            for lane in np.flatnonzero(mask).tolist():
                self._open_lane(lane, seeds[lane], *options[lane])
            self._draw(mask)
        except BackendError:
            self._is_running = False  # the state of that lane is lost with its process
            raise
        except BaseException:
            if before is not None:
                self.load_state(before)
            raise

    def _open_lane(self, lane: int, seed: int | None, start: Pose | None, goal: Pose | None) -> None:
        """Begin an episode in one lane, as the single env's reset does."""
        self._seed(lane, seed)
        engine, rng = self._lanes.engines[lane], self.np_random[lane]
        pose: Pose
        chosen: Pose | None
        if self._rules.goes_back:
            pose, chosen = walk_out(engine, rng, start, partial(self._see, lane))
        else:
            pose, chosen = single.open_episode(engine, rng, self.task, start, goal)
        self._poses[lane], self._goals[lane] = pose, 0 if chosen is None else chosen
        self._elapsed[lane] = 0
        self._terminated[lane] = self._truncated[lane] = False

    def _see(self, lane: int, step: int, action: int, pose: Pose) -> None:
        """A step of the way out in one lane. Its first view is the goal."""
        if step == 0:
            self._goal_frames[lane] = self._lanes.engines[lane].render(self.size, self.size)

    def _advance(self, actions: Any, moving: Mask) -> NDArray[np.float64]:
        try:
            before, self._poses = self._poses, self._move(actions, moving)
            self._draw(moving)
        except BackendError:
            self._is_running = False
            raise
        self._elapsed[moving] += 1
        rewards = np.zeros(self.num_envs)
        self._truncated[moving] = self._elapsed[moving] >= self.horizon
        if self._rules.needs_goal:
            rewards[moving] = self._rules.reward(before, self._poses, self._goals)[moving]
            self._terminated[moving] = self._rules.done(self._poses, self._goals)[moving]
        endings = np.array([engine.ending for engine in self._lanes.engines])
        self._terminated |= moving & (endings == "terminated")
        self._truncated |= moving & (endings == "truncated")
        return rewards

    def _flags(self) -> tuple[Mask, Mask]:
        return self._terminated.copy(), self._truncated.copy()

    def _draw(self, lanes: Mask) -> None:
        """Render the frames of some lanes."""
        if lanes.any():
            self._frames[lanes] = self._lanes.render(self.size, self.size, None if lanes.all() else np.flatnonzero(lanes))

    def _observe(self) -> Any:
        observation = self._rules.observe(self._frames.copy(), self._poses, self._goals, self._goal_frames.copy())
        return as_tensors(observation) if self.obs_type == "torch" else observation

    def _info(self, lanes: Mask) -> dict[str, Any]:
        every = np.ones(self.num_envs, bool)
        info: Info = {"pose": (self._poses, every)}
        if self._rules.needs_goal:
            distance = tasks.horizontal_distance(self._poses, self._goals).astype(np.float64)
            info |= {"goal": (self._goals, every), "goal_distance": (distance, every)}
        return info_batch(info, lanes)

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """One frame per lane."""
        self._check_running()
        return tuple(self._lanes.render(*self.render_size)) if self.render_mode == "rgb_array" else None

    def close_extras(self, **kwargs: Any) -> None:
        for engine in self._lanes.engines:
            engine.close()
        self._is_running = False

    # ---- more than Gymnasium asks ----

    def save_state(self) -> dict[str, Any]:
        """Everything that the future depends on, as a value. `state["lanes"][i]` is a state of the single env.

        NotImplementedError if the engine cannot save.
        """
        single.check_saves(self.backend)
        self._check_running()
        lanes = tuple(
            single.state_of(
                self.task,
                self.horizon,
                int(self._elapsed[i]),
                (self._goals[i], self._goal_frames[i]),
                engine,
                self.np_random[i],
                self.np_random_seed[i],
            )
            for i, engine in enumerate(self._lanes.engines)
        )
        return {"lanes": lanes, "terminated": self._terminated.copy(), "truncated": self._truncated.copy()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a value of `save_state`, bit for bit. ValueError if it is not one, or has other lanes or another task."""
        check_state_keys(state, ("lanes", "terminated", "truncated"))
        if len(state["lanes"]) != self.num_envs:
            raise ValueError(f"the saved state has {len(state['lanes'])} lanes, this env has {self.num_envs}")
        for lane in state["lanes"]:
            single.check_state(lane, self.task, self.size)
        self._generators, self._seeds = [], []
        for i, lane in enumerate(state["lanes"]):
            self._poses[i] = self._lanes.engines[i].load(lane["backend"])
            self._goals[i] = 0 if lane["goal"] is None else lane["goal"]
            self._goal_frames[i] = 0 if lane["goal_frame"] is None else lane["goal_frame"]
            self._elapsed[i] = lane["elapsed"]
            self._generators.append(load_generator(lane["np_random"]))
            self._seeds.append(lane["seed"])
        self.horizon = int(state["lanes"][0]["horizon"])
        self._terminated, self._truncated = np.array(state["terminated"], bool), np.array(state["truncated"], bool)
        self._draw(np.ones(self.num_envs, bool))
        self._is_running = True

    def branch(self, n: int, seeds: int | Sequence[int] | None = None) -> MinecraftVectorEnv:
        """n futures of each lane, next to each other, as a vector env that never resets by itself. This env is untouched.

        Branches keep the generators of their lanes, or get new ones from `seeds`: either one number, to which the branch's index is
        added, or one number per branch.
        """
        state = self.save_state()
        lanes = tuple(lane for lane in state["lanes"] for _ in range(check_count("n", n)))
        flags = {key: state[key].repeat(n) for key in ("terminated", "truncated")}
        branches = MinecraftVectorEnv(
            len(lanes),
            self.task,
            self.backend,
            self.size,
            self.render_size,
            render_mode=self.render_mode,
            autoreset_mode="disabled",
            obs_type=self.obs_type,
            action_mode=self.action_mode,
            **self.engine_options,
        )
        branches.load_state({"lanes": lanes, **flags})
        for lane, seed in enumerate(lane_seeds(seeds, branches.num_envs)):
            branches._seed(lane, seed)
        return branches

    def get_action_meanings(self) -> list[str]:
        """What each action does, in words."""
        return single.action_meanings(self.action_mode)

    # ---- parts ----

    def _move(self, actions: Any, moving: Mask) -> Pose:
        if self.action_mode == "discrete":
            return self._lanes.step(np.where(moving, check_actions(actions, self.single_action_space, self.num_envs), -1))
        if not isinstance(actions, Mapping):
            raise ValueError(f"actions must be a dict with a row per lane under each key, got {type(actions).__name__}")
        rows = [{key: value[lane] for key, value in actions.items()} for lane in range(self.num_envs)]
        inputs = [single.check_minerl_action(row, self.single_action_space) for row in rows]
        return cast(TickLanes, self._lanes).tick([each if moves else None for each, moves in zip(inputs, moving)])
