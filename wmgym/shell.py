"""N lanes of a dream: the implementation that the single env and the vector env share.

A `Shell` holds what is fixed when an env is made: world, task, spaces, source of openings. The running episodes are an `EnvState`, a
value: `open`, `step` and `observe` return a new one and leave the old one unchanged. The single env is a shell with one lane. So lane i
of a vector env has the noise and the memory decisions of the single env with its seed; frames agree up to the rounding of batched
matrix products.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from wmgym import rng
from wmgym.core import Clip, World
from wmgym.episode import FRAME_GOAL, NO_GOAL, POSE_GOAL, EnvState, EpisodeStatus, Identity
from wmgym.openings import Opening, OpeningPlan, Openings, check_goal, check_opening, plan_opening
from wmgym.settings import Setting
from wmgym.settings.setting import chunk_space
from wmgym.tasks import REVISIT_DISTANCES, Task, horizontal_distance
from wmgym.vectors import Info, check_actions


@dataclass(frozen=True)
class ResetOptions:
    """Options of `reset` for one lane. The goal is checked later, since its check needs the opening."""

    opening: Opening | None = None
    goal: Any = None

    KEYS = ("opening", "context", "goal")  # `context` is the old name of `opening`


class Shell:
    """The fixed parts of an env, and the functions from state to state."""

    def __init__(
        self,
        world: World,
        task: Task,
        setting: Setting,
        openings: Openings | None,
        identity: Identity,
        *,
        hold_action: bool,
    ) -> None:
        self.world, self.task, self.setting, self.openings, self.identity = world, task, setting, openings, identity
        self.horizon, self.hold_action, self.chunk = identity.horizon, hold_action, world.chunk
        self.frame_actions = setting.frame_actions  # action space of one frame
        self.frame_space = spaces.Box(0, 255, world.frame_shape, np.uint8)
        self.observation_space = task.observation_space(self.frame_space)
        self.action_space = chunk_space(self.frame_actions, self.chunk, hold_action)
        self.perf: dict[str, float] = {}

    # -- opening --

    def read_options(self, options: Any) -> ResetOptions:
        """Check the reset options of one lane. A wrong one raises `ValueError`."""
        if not isinstance(options, Mapping):
            raise ValueError(f"options must be a dict, got {type(options).__name__}")
        unknown = sorted(set(options) - set(ResetOptions.KEYS))
        if unknown:
            raise ValueError(f"the options of a dream's reset are opening and goal, got {', '.join(map(str, unknown))}")
        given = [options[name] for name in ("opening", "context") if options.get(name) is not None]
        if len(given) > 1:
            raise ValueError("opening and context are two names of one option: give one of them")
        return ResetOptions(self.check_opening(given[0]) if given else None, options.get("goal"))

    def check_opening(self, opening: Any, name: str = "opening") -> Opening:
        """Check that frames, actions and poses fit this env. ValueError if not."""
        return check_opening(opening, self.world.frame_shape, self.frame_actions, name)

    @torch.no_grad()
    def open(self, generators: Sequence[np.random.Generator], seeds: Sequence[int | None], options: Sequence[ResetOptions]) -> EnvState:
        """The first state of new episodes, one lane per generator. seeds: the arguments of `reset`; None for an autoreset."""
        begin = time.perf_counter()
        plans = [
            plan_opening(self.openings if given.opening is None else None, generator, seed)
            for generator, seed, given in zip(generators, seeds, options, strict=True)
        ]
        openings = [self._opening(generator, plan, given) for generator, (_, plan), given in zip(generators, plans, options, strict=True)]
        world = self.world.start(self._clip(openings), rng.make_keys([noise for noise, _ in plans], self.world.device))
        status = self._first_status(openings)
        self.perf["reset_ms"] = 1e3 * (time.perf_counter() - begin)
        return EnvState(world, self._still([opening.frames[-1] for opening in openings]), status)

    def _opening(self, generator: np.random.Generator, plan: OpeningPlan | None, options: ResetOptions) -> Opening:
        """The opening of one lane, with its goal."""
        if options.opening is not None:
            opening = options.opening
        elif self.openings is not None and plan is not None:
            opening = self.openings.show(plan)
            self.check_opening(vars(opening), "the drawn opening's")
        else:
            raise ValueError("this env has no source of openings: give reset(options={'opening': {frames, actions, poses}})")
        if self.task.goes_back:
            return self._with_way_back(opening, options.goal)
        if options.goal is not None:
            opening = replace(opening, goal=check_goal(options.goal, opening.poses[-1], self.world.frame_shape))
        if self.task.needs_goal:
            if opening.goal is None:
                opening = replace(opening, goal=self.task.choose_goal(generator, opening.poses[-1]))
            elif opening.goal.ndim == 3:
                raise ValueError(f"task {self.task.name!r} needs a goal pose, got a goal frame")
        return opening

    def _with_way_back(self, opening: Opening, goal: Any) -> Opening:
        """The opening with its first pose as the goal. ValueError if the goal is given, or too near or too far."""
        if goal is not None:
            raise ValueError(f"the goal of task {self.task.name!r} is the first view of the opening: do not give the option 'goal'")
        low, high = REVISIT_DISTANCES
        distance = float(horizontal_distance(opening.poses[-1], opening.poses[0]))
        if not low <= distance <= high:
            away = f"{low:g} to {high:g} blocks away, this one leads {distance:.1f}"
            raise ValueError(f"task {self.task.name!r} needs an opening that leads {away}")
        return replace(opening, goal=opening.poses[0])

    def _first_status(self, openings: Sequence[Opening]) -> EpisodeStatus:
        lanes = len(openings)
        kinds = [goal_kind(opening) for opening in openings]
        goals = np.zeros((lanes, 5), np.float32)
        goal_frames = np.zeros((lanes, *self.world.frame_shape), np.uint8)
        for lane, opening in enumerate(openings):
            if opening.goal is not None:
                (goals if kinds[lane] == POSE_GOAL else goal_frames)[lane] = opening.goal
            if self.task.goes_back:
                goal_frames[lane] = opening.frames[0]
        return EpisodeStatus(
            poses=torch.from_numpy(np.stack([opening.poses[-1] for opening in openings])),
            goals=torch.from_numpy(goals),
            goal_kinds=torch.tensor(kinds),
            goal_frames=torch.from_numpy(goal_frames),
            elapsed=torch.zeros(lanes, dtype=torch.int64),
            terminated=torch.zeros(lanes, dtype=torch.bool),
            truncated=torch.zeros(lanes, dtype=torch.bool),
        )

    def _clip(self, openings: Sequence[Opening]) -> Clip:
        """Openings of different lengths as one batch, aligned at the end."""
        longest = max(len(opening.frames) for opening in openings)
        valid = np.zeros((len(openings), longest), bool)
        columns: list[np.ndarray] = []
        for name in ("frames", "actions", "poses"):
            parts = [getattr(opening, name) for opening in openings]
            column = np.zeros((len(parts), longest, *parts[0].shape[1:]), parts[0].dtype)
            for row, part in enumerate(parts):
                column[row, longest - len(part) :] = part
                valid[row, longest - len(part) :] = True
            columns.append(column)
        return Clip(*(torch.from_numpy(array).to(self.world.device) for array in (*columns, valid)))

    def _still(self, frames: Sequence[np.ndarray]) -> Tensor:
        """A chunk that repeats each lane's frame F times."""
        pixels = torch.from_numpy(np.stack(frames)).to(self.world.device)
        return pixels[:, None].repeat(1, self.chunk, 1, 1, 1)

    # -- stepping --

    @torch.no_grad()
    def step(self, state: EnvState, actions: Tensor) -> tuple[EnvState, np.ndarray]:
        """One chunk in every lane: the next state, and the rewards, float64 [N].

        If an episode ends inside a chunk, its last frame is repeated and later rewards are ignored.
        """
        begin = time.perf_counter()
        status, lanes = state.status, np.arange(state.num_lanes)
        world, shown = self.world.step(state.world, actions)
        shown.check()
        poses = shown.poses.float().cpu().numpy()  # [N, F, 5]
        before = np.concatenate([status.poses.numpy()[:, None], poses[:, :-1]], 1)
        goals = status.goals.numpy()[:, None]
        rewards = np.asarray(self.task.reward(before, poses, goals), np.float64)
        done = np.asarray(self.task.done(poses, goals), bool)
        if shown.rewards is not None and self.task.world_rewards:
            rewards = rewards + shown.rewards.double().cpu().numpy()
        if shown.ends is not None and self.task.world_rewards:
            done = done | shown.ends.cpu().numpy()

        count = status.elapsed.numpy()[:, None] + np.arange(1, self.chunk + 1)
        late = count >= self.horizon
        over = done | late
        last = np.where(over.any(1), over.argmax(1), self.chunk - 1)  # the last frame that counts
        index = np.minimum(np.arange(self.chunk), last[:, None])
        rewards = np.where(np.arange(self.chunk) <= last[:, None], rewards, 0).sum(1)
        frames = shown.pixels
        if (last < self.chunk - 1).any():
            rows = torch.from_numpy(index).to(frames.device)
            frames = frames[torch.arange(len(frames), device=frames.device)[:, None], rows]
        status = replace(
            status,
            poses=torch.from_numpy(poses[lanes, last]),
            elapsed=torch.from_numpy(count[lanes, last]),
            terminated=torch.from_numpy(done[lanes, last]),
            truncated=torch.from_numpy(late[lanes, last]),
        )
        self.perf.update(shown.perf, step_ms=1e3 * (time.perf_counter() - begin))
        return EnvState(world, frames, status), rewards

    @torch.no_grad()
    def observe(self, state: EnvState, seen: Sequence[Opening]) -> EnvState:
        """Add real frames to the memories, one clip per lane. The last frame becomes the present one; `elapsed` does not change."""
        world = self.world.observe(state.world, self._clip(seen))
        poses = torch.from_numpy(np.stack([clip.poses[-1] for clip in seen]))
        return EnvState(world, self._still([clip.frames[-1] for clip in seen]), replace(state.status, poses=poses))

    def decode(self, actions: Any, lanes: int | None) -> Tensor:
        """One env action per lane (lanes=None: a single env's action) -> actions of the world: int64 [N, F] or float32 [N, F, A]."""
        checked = check_actions(actions, self.action_space, lanes)
        given = torch.from_numpy(checked if lanes is not None else checked[None]).to(self.world.device)
        held = self.chunk == 1 or self.hold_action
        return given[:, None].expand(len(given), self.chunk, *given.shape[1:]) if held else given

    # -- observation and info --

    def observation(self, state: EnvState, *, tensors: bool = False) -> Any:
        """The batched observation, as a copy: numpy, or tensors on the world's device."""
        status = state.status
        goal_frames = status.goal_frames.numpy().copy() if self.task.goes_back else None
        seen = self.task.observe(state.frames[:, -1].clone(), status.poses.numpy(), status.goals.numpy(), goal_frames)

        def convert(value: Any) -> Any:
            if tensors:
                return value if isinstance(value, Tensor) else torch.from_numpy(value).to(self.world.device)
            return value.cpu().numpy() if isinstance(value, Tensor) else value

        return {key: convert(value) for key, value in seen.items()} if isinstance(seen, dict) else convert(seen)

    def info(self, state: EnvState) -> Info:
        """Batched info: key -> (values [N, ...], mask of the lanes with a value)."""
        status, world = state.status, state.world
        every = np.ones(state.num_lanes, bool)
        kinds = status.goal_kinds.numpy()
        info: Info = {"pose": (status.poses.numpy().copy(), every)}
        if (kinds == POSE_GOAL).any():
            distance = horizontal_distance(status.poses.numpy(), status.goals.numpy())
            info["goal"] = status.goals.numpy().copy(), kinds == POSE_GOAL
            info["goal_distance"] = np.asarray(distance, np.float64), kinds == POSE_GOAL
        if (kinds == FRAME_GOAL).any():
            info["goal_frame"] = status.goal_frames.numpy().copy(), kinds == FRAME_GOAL
        if self.chunk > 1:
            info["frames"] = to_numpy(state.frames), every
        remembered = {
            "memory_frames": world.footprint.frames,
            "memory_bytes": world.footprint.bytes,
            "memory_retrieved": world.retrieval.indices,
            "memory_scores": world.retrieval.scores,
        }
        return info | {name: (to_numpy(values), every) for name, values in remembered.items()}

    def truth_keywords(self) -> dict[str, Any]:
        """Keywords of the ground truth with the same frames. It does not know a task of the user's own, so it gets "free"."""
        return {"task": self.task.name if self.task.name in self.setting.tasks else "free", "size": self.world.frame_shape[0]}

    def close(self) -> None:
        if self.openings is not None:
            self.openings.close()


def goal_kind(opening: Opening) -> int:
    if opening.goal is None:
        return NO_GOAL
    return FRAME_GOAL if opening.goal.ndim == 3 else POSE_GOAL


def to_numpy(values: Tensor) -> np.ndarray:
    """A copy on the CPU."""
    return values.detach().to("cpu", copy=True).numpy()
