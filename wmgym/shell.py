"""N lanes of a dream behind Gymnasium's calls: all that the single and the vector env share, written once.

A `Shell` is what was fixed when the env was made: the world, the task, the spaces, where openings come from. What happens is
a `Moment`, a value: `open`, `step` and `observe` give a new one and leave the old one good. The single env is one lane, so
that lane i of a vector env is the single env with its seed by construction.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from wmgym import rng, tree
from wmgym.core import Clip, World
from wmgym.openings import ClipOpenings, DriveOpenings, LiveOpenings, Opening, Openings, check_context, check_goal, read_clips
from wmgym.tasks import SETTINGS, Free, Setting, Task, horizontal_distance

WEIGHTS = Path(__file__).parent / "weights"
OPTIONS = ("context", "goal")
NO_GOAL, POSE_GOAL, FRAME_GOAL = range(3)


@dataclass(frozen=True)
class Ledger:
    """How each lane's episode stands: small tensors on the CPU, whatever device the world is on."""

    poses: Tensor  # float32 [N, 5]
    goals: Tensor  # float32 [N, 5]
    goal_kinds: Tensor  # int64 [N]: NO_GOAL, POSE_GOAL or FRAME_GOAL
    goal_frames: Tensor  # uint8 [N, H, W, 3]: black without a goal frame
    elapsed: Tensor  # int64 [N]: frames since the opening
    horizons: Tensor  # int64 [N]: how many of them an episode may have
    terminated: Tensor  # bool [N]
    truncated: Tensor  # bool [N]


@dataclass(frozen=True)
class Moment:
    """All that the next step of N lanes depends on."""

    world: Any  # the world's own state, N rows
    frames: Tensor  # uint8 [N, F, H, W, 3], on the world's device: the newest chunk
    ledger: Ledger

    @property
    def num_lanes(self) -> int:
        return len(self.ledger.elapsed)

    @property
    def over(self) -> np.ndarray:
        """bool [N]: lanes whose episode has ended."""
        return (self.ledger.terminated | self.ledger.truncated).numpy()


@dataclass(frozen=True)
class SavedState:
    """What `save_state` gives: a moment, and each lane's `np_random` as it stood."""

    moment: Moment
    generators: tuple[dict[str, Any], ...]
    seeds: tuple[int | None, ...]


# ---- rows ----


def where(mask: np.ndarray, new: Moment, old: Moment) -> Moment:
    """Lanes of `new` where `mask` (bool [N]) is set, lanes of `old` elsewhere."""
    rows = torch.from_numpy(np.asarray(mask, bool))
    on_device = rows.to(old.frames.device)
    world, frames = tree.where(on_device, (new.world, new.frames), (old.world, old.frames))
    return Moment(world, frames, tree.where(rows, new.ledger, old.ledger))


def spread(few: Moment, mask: np.ndarray) -> Moment:
    """A moment whose lanes are those set in `mask`, laid out over all lanes (the others hold copies of the first)."""
    return select(few, torch.from_numpy(np.where(mask, np.cumsum(mask) - 1, 0)))


def select(moment: Moment, index: Tensor) -> Moment:
    """Lanes `index` (int64 [n]) of a moment, in that order."""
    world, frames = tree.select((moment.world, moment.frames), index.to(moment.frames.device))
    return Moment(world, frames, tree.select(moment.ledger, index))


def repeat(moment: Moment, n: int) -> Moment:
    """Each lane n times, next to each other."""
    return tree.repeat(moment, n)


def reseed(moment: Moment, generators: Sequence[np.random.Generator]) -> Moment:
    """The same moment with other noise to come: each lane's from its generator."""
    keys = rng.make_keys([lane_key(generator) for generator in generators], moment.frames.device)
    return replace(moment, world=replace(moment.world, keys=keys))


def goal_kind(opening: Opening) -> int:
    if opening.goal is None:
        return NO_GOAL
    return FRAME_GOAL if opening.goal.ndim == 3 else POSE_GOAL


# ---- random numbers ----


def lane_key(generator: np.random.Generator) -> int:
    """The seed of a lane's noise: the first number that an episode draws from `np_random`."""
    return int(generator.integers(2**64, dtype=np.uint64))


def save_generators(generators: Sequence[np.random.Generator]) -> tuple[dict[str, Any], ...]:
    return tuple(dict(generator.bit_generator.state) for generator in generators)


# ---- the shell ----


class Shell:
    """What was fixed when an env was made, and the functions from moment to moment."""

    def __init__(self, world: World, task: Task, setting: Setting, openings: Openings | None, *, horizon: int, hold_action: bool) -> None:
        self.world, self.task, self.setting, self.openings = world, task, setting, openings
        self.horizon, self.hold_action = horizon, hold_action
        self.chunk = world.chunk
        self.frame_actions = setting.frame_actions  # what one frame is told
        self.frame_space = spaces.Box(0, 255, world.frame_shape, np.uint8)
        self.observation_space = task.observation_space(self.frame_space)
        self.action_space = chunk_space(self.frame_actions, self.chunk, hold_action)
        self.perf: dict[str, float] = {}

    # -- opening --

    @torch.no_grad()
    def open(
        self,
        generators: Sequence[np.random.Generator],
        seeds: Sequence[int | None],
        options: Sequence[Mapping[str, Any]],
        horizon: int,
    ) -> Moment:
        """A first moment, one lane per generator. `seeds` are those given to `reset`, None for a lane that goes on."""
        begin = time.perf_counter()
        lane_keys = [lane_key(generator) for generator in generators]
        openings = [self._opening(*lane) for lane in zip(generators, seeds, options, strict=True)]
        keys = rng.make_keys(lane_keys, self.world.device)
        world = self.world.start(self._clip(openings), keys)
        poses = np.stack([opening.poses[-1] for opening in openings])
        kinds = [goal_kind(opening) for opening in openings]
        goals = np.zeros((len(openings), 5), np.float32)
        goal_frames = np.zeros((len(openings), *self.world.frame_shape), np.uint8)
        for lane, opening in enumerate(openings):
            if opening.goal is not None:
                (goals if kinds[lane] == POSE_GOAL else goal_frames)[lane] = opening.goal
        lanes = len(openings)
        ledger = Ledger(
            poses=torch.from_numpy(poses),
            goals=torch.from_numpy(goals),
            goal_kinds=torch.tensor(kinds),
            goal_frames=torch.from_numpy(goal_frames),
            elapsed=torch.zeros(lanes, dtype=torch.int64),
            horizons=torch.full((lanes,), horizon),
            terminated=torch.zeros(lanes, dtype=torch.bool),
            truncated=torch.zeros(lanes, dtype=torch.bool),
        )
        self.perf["reset_ms"] = 1e3 * (time.perf_counter() - begin)
        return Moment(world, self._still([opening.frames[-1] for opening in openings]), ledger)

    def _opening(self, generator: np.random.Generator, seed: int | None, options: Mapping[str, Any]) -> Opening:
        if options.get("context") is not None:
            opening = self.check_context(options["context"])
        elif self.openings is not None:
            opening = self.openings.draw(generator, seed)
            self.check_context(vars(opening), "the opening's")
        else:
            raise ValueError("this env has nothing to open with: give reset(options={'context': {frames, actions, poses}})")
        if options.get("goal") is not None:
            goal = check_goal(options["goal"], opening.poses[-1], self.world.frame_shape)
            opening = replace(opening, goal=goal)
        if self.task.needs_goal:
            if opening.goal is None:
                opening = replace(opening, goal=self.task.choose_goal(generator, opening.poses[-1]))
            elif opening.goal.ndim == 3:
                raise ValueError(f"task {self.task.name!r} needs the goal's pose: a goal frame says nothing of where it is")
        return opening

    def check_context(self, context: Any, name: str = "context") -> Opening:
        return check_context(context, self.world.frame_shape, self.frame_actions, name)

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
        """A chunk in which nothing happens: each lane's frame F times."""
        pixels = torch.from_numpy(np.stack(frames)).to(self.world.device)
        return pixels[:, None].repeat(1, self.chunk, 1, 1, 1)

    # -- stepping --

    @torch.no_grad()
    def step(self, moment: Moment, actions: Tensor) -> tuple[Moment, np.ndarray]:
        """One chunk in every lane: the next moment, and the rewards, float64 [N].

        After an end inside a chunk its last frame repeats, and what would have come later counts for nothing.
        """
        begin = time.perf_counter()
        ledger, lanes = moment.ledger, np.arange(moment.num_lanes)
        world, shown = self.world.step(moment.world, actions)
        poses = shown.poses.float().cpu().numpy()  # [N, F, 5]
        if not np.isfinite(poses).all():
            bad = np.flatnonzero(~np.isfinite(poses).all((1, 2)))
            raise FloatingPointError(f"the world dreamed a pose that is not a number in lanes {bad.tolist()}")

        before = np.concatenate([ledger.poses.numpy()[:, None], poses[:, :-1]], 1)
        goals = ledger.goals.numpy()[:, None]
        rewards = np.asarray(self.task.reward(before, poses, goals), np.float64)
        done = np.asarray(self.task.done(poses, goals), bool)
        if shown.rewards is not None and self.task.world_rewards:
            rewards = rewards + shown.rewards.double().cpu().numpy()
        if shown.ends is not None and self.task.world_rewards:
            done = done | shown.ends.cpu().numpy()

        count = ledger.elapsed.numpy()[:, None] + np.arange(1, self.chunk + 1)
        late = count >= ledger.horizons.numpy()[:, None]
        over = done | late
        last = np.where(over.any(1), over.argmax(1), self.chunk - 1)  # the last frame that counts
        index = np.minimum(np.arange(self.chunk), last[:, None])
        rewards = np.where(np.arange(self.chunk) <= last[:, None], rewards, 0).sum(1)
        frames = shown.pixels
        if (last < self.chunk - 1).any():
            rows = torch.from_numpy(index).to(frames.device)
            frames = frames[torch.arange(len(frames), device=frames.device)[:, None], rows]
        ledger = replace(
            ledger,
            poses=torch.from_numpy(poses[lanes, last]),
            elapsed=torch.from_numpy(count[lanes, last]),
            terminated=torch.from_numpy(done[lanes, last]),
            truncated=torch.from_numpy(late[lanes, last]),
        )
        self.perf.update(shown.perf, step_ms=1e3 * (time.perf_counter() - begin))
        return Moment(world, frames, ledger), rewards

    @torch.no_grad()
    def observe(self, moment: Moment, seen: Sequence[Opening]) -> Moment:
        """Real frames, one clip per lane: they are remembered, the last is what is seen now, and no time passes."""
        world = self.world.observe(moment.world, self._clip(seen))
        poses = torch.from_numpy(np.stack([clip.poses[-1] for clip in seen]))
        return Moment(world, self._still([clip.frames[-1] for clip in seen]), replace(moment.ledger, poses=poses))

    def decode(self, actions: Any, lanes: int) -> Tensor:
        """One action of the env per lane -> what the world is told: int64 [N, F] or float32 [N, F, A]."""
        if not isinstance(actions, Tensor):
            actions = np.asarray(actions)
            if actions.dtype.kind not in "biuf":
                raise ValueError(f"actions must be numbers, got {actions!r}")
        given = torch.as_tensor(actions)
        space, size = self.frame_actions, self.frame_actions.shape or ()
        held = self.chunk == 1 or self.hold_action
        shape = (lanes, *size) if held else (lanes, self.chunk, *size)
        if tuple(given.shape) != shape:
            raise ValueError(f"actions must have the shape {list(shape)} ({self.action_space} in each lane), got {list(given.shape)}")
        if isinstance(space, spaces.Discrete):
            if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
                raise ValueError(f"actions must be integers, got {given.dtype}: {actions!r}")
            given = given.to(self.world.device, torch.int64)
            inside = (given >= 0) & (given < int(space.n))
        else:
            assert isinstance(space, spaces.Box)
            given = given.to(self.world.device, torch.float32)
            low, high = (torch.from_numpy(bound).to(given.device) for bound in (space.low, space.high))
            inside = (given >= low) & (given <= high)  # a NaN is in no interval
        if not bool(inside.all()):
            raise ValueError(f"actions must lie in {self.action_space}, got {actions!r}")
        return given[:, None].expand(lanes, self.chunk, *size) if held else given

    # -- what the agent is given --

    def observation(self, moment: Moment) -> Any:
        """One batched observation, in fresh memory: a frame is a tensor on the device, the rest numpy."""
        ledger = moment.ledger
        return self.task.observe(moment.frames[:, -1].clone(), ledger.poses.numpy(), ledger.goals.numpy())

    def info(self, moment: Moment) -> Info:
        """Batched info: key -> (values [N, ...], which lanes have it), nested for `memory`."""
        ledger, world = moment.ledger, moment.world
        every = np.ones(moment.num_lanes, bool)
        kinds = ledger.goal_kinds.numpy()
        info: Info = {"pose": (ledger.poses.numpy().copy(), every)}
        if (kinds == POSE_GOAL).any():
            distance = horizontal_distance(ledger.poses.numpy(), ledger.goals.numpy())
            info["goal"] = ledger.goals.numpy().copy(), kinds == POSE_GOAL
            info["goal_distance"] = np.asarray(distance, np.float64), kinds == POSE_GOAL
        if (kinds == FRAME_GOAL).any():
            info["goal_frame"] = ledger.goal_frames.numpy().copy(), kinds == FRAME_GOAL
        if self.chunk > 1:
            info["frames"] = to_numpy(moment.frames), every
        remembered = {
            "frames": world.footprint.frames,
            "bytes": world.footprint.bytes,
            "retrieved": world.recall.indices,
            "scores": world.recall.scores,
        }
        info["memory"] = {name: (to_numpy(values), every) for name, values in remembered.items()}
        return info

    def truth_keywords(self) -> dict[str, Any]:
        """What a ground truth must be made with to show this world's frames; a task of one's own is unknown to it."""
        return {"task": self.task.name if self.task.name in self.setting.tasks else "free", "size": self.world.frame_shape[0]}

    def close(self) -> None:
        if self.openings is not None:
            self.openings.close()


def chunk_space(frame_actions: gym.Space, chunk: int, hold_action: bool) -> gym.Space:
    """The action space of an env whose step makes `chunk` frames."""
    if chunk == 1 or hold_action:
        return frame_actions
    if isinstance(frame_actions, spaces.Discrete):
        return spaces.MultiDiscrete([int(frame_actions.n)] * chunk)
    assert isinstance(frame_actions, spaces.Box)
    shape = (chunk, *frame_actions.shape)
    return spaces.Box(np.broadcast_to(frame_actions.low, shape), np.broadcast_to(frame_actions.high, shape), shape, np.float32)


# ---- info, by lane ----

Info = dict[str, Any]


def info_row(info: Info, lane: int) -> dict[str, Any]:
    """One lane's info, as the single env gives it: plain numbers and small arrays."""
    out: dict[str, Any] = {}
    for key, entry in info.items():
        if isinstance(entry, dict):
            out[key] = info_row(entry, lane)
        elif entry[1][lane]:
            value = entry[0][lane]
            out[key] = value.item() if value.ndim == 0 else value
    return out


def info_batch(info: Info, lanes: np.ndarray) -> dict[str, Any]:
    """Gymnasium's batched info: each key beside a mask `_key` of the lanes that have it; only `lanes` (bool [N]) are told."""
    out: dict[str, Any] = {}
    for key, entry in info.items():
        if isinstance(entry, dict):
            out[key], out[f"_{key}"] = info_batch(entry, lanes), lanes.copy()
        elif (entry[1] & lanes).any():
            has = entry[1] & lanes
            out[key], out[f"_{key}"] = np.where(has.reshape(-1, *[1] * (entry[0].ndim - 1)), entry[0], np.zeros((), entry[0].dtype)), has
    return out


def to_numpy(values: Tensor) -> np.ndarray:
    """A copy on the CPU that nobody else holds."""
    return values.detach().to("cpu", copy=True).numpy()


# ---- making ----


def make_shell(
    checkpoint: str | World | None,
    *,
    setting: str | None,
    num_actions: int | None,
    action_space: gym.Space | None,
    task: str | Task | None,
    memory: str | None,
    memory_budget: int | None,
    denoise_steps: int | None,
    device: str | None,
    dtype: str | None,
    hold_action: bool,
    horizon: int | None,
    context: Any,
    data: str | None,
    twin: str | None,
    twin_kwargs: Mapping[str, Any] | None,
) -> Shell:
    """Check every keyword, load the world, and put the parts together. A wrong value raises `ValueError`."""
    place = _setting(setting, num_actions, action_space)
    if checkpoint is None:
        raise ValueError("this id comes without weights: give checkpoint=, a path, 'hub:OWNER/NAME' or 'nwm:PATH' (published NWM weights)")
    if place.needs_data and data is None:
        raise ValueError(f"episodes of setting {place.name!r} open with recorded drives: give data= (a folder of them)")
    if data is not None and not place.needs_data:
        raise ValueError(f"data means nothing for setting {place.name!r}, got {data!r}")
    chosen = _task(place, task)
    check_positive(horizon=horizon, memory_budget=memory_budget, denoise_steps=denoise_steps)
    if not isinstance(hold_action, (bool, np.bool_)):
        raise ValueError(f"hold_action must be True or False, got {hold_action!r}")
    if isinstance(context, str) and context not in ("live", "bundled"):
        raise ValueError(f"context must be 'live', 'bundled' or frames, got {context!r}")
    taken = sorted({"task", "size"} & set(twin_kwargs or {}))
    if taken:
        raise ValueError(f"twin_kwargs must not hold {taken}: they follow from the task and the checkpoint")
    if context == "live" and twin is None:
        raise ValueError("context='live' walks the ground truth, and this env has none: use 'bundled' or give a context")
    loaded = _world(
        checkpoint, device=device, dtype=dtype, memory=memory, memory_budget=memory_budget, denoise_steps=denoise_steps
    )
    shell = Shell(loaded, chosen, place, None, horizon=horizon or chosen.horizon, hold_action=bool(hold_action))
    shell.openings = _openings(shell, context, data, twin, dict(twin_kwargs or {}))
    return shell


def check_positive(**values: Any) -> None:
    """Each value must be None or a positive whole number."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _setting(name: str | None, num_actions: int | None, action_space: gym.Space | None) -> Setting:
    if name is not None:
        if name not in SETTINGS:
            raise ValueError(f"setting must be one of {sorted(SETTINGS)}, got {name!r}")
        if num_actions is not None or action_space is not None:
            raise ValueError(f"the actions of setting {name!r} are known: num_actions and action_space must not be given")
        return SETTINGS[name]
    if (num_actions is None) == (action_space is None):
        raise ValueError("give one of setting, num_actions and action_space")
    check_positive(num_actions=num_actions)
    space = action_space if action_space is not None else spaces.Discrete(int(num_actions or 0))
    if not isinstance(space, (spaces.Discrete, spaces.Box)):
        raise ValueError(f"action_space must be Discrete or Box, got {space}")
    if isinstance(space, spaces.Discrete) and space.start != 0:
        raise ValueError(f"a Discrete action_space must start at 0, got {space}")
    return Setting("own", space, tuple(f"action {i}" for i in range(int(space.n))) if isinstance(space, spaces.Discrete) else ())


def _task(setting: Setting, task: str | Task | None) -> Task:
    if task is None:
        return next(iter(setting.tasks.values()), Free())
    if not isinstance(task, str):
        return task
    if task not in setting.tasks:
        raise ValueError(f"task must be one of {sorted(setting.tasks)}, got {task!r}")
    return setting.tasks[task]


def _world(checkpoint: str | World, *, device: str | None, dtype: str | None, **settings: Any) -> World:
    if isinstance(checkpoint, (str, Path)):
        from wmgym.checkpoint import load_world  # here, so that a world of one's own needs none of it

        return load_world(str(checkpoint), device=device or "auto", dtype=dtype or "auto", **settings)
    given = {name: value for name, value in {"device": device, "dtype": dtype, **settings}.items() if value not in (None, "auto")}
    if given:
        raise ValueError(f"a world that is there already has its own {', '.join(given)}: do not give {given}")
    return checkpoint


def _openings(shell: Shell, context: Any, data: str | None, twin: str | None, twin_kwargs: dict[str, Any]) -> Openings | None:
    if context is None and data is not None:
        return _drives(shell, data)
    suited = shell.setting.bundled
    if context is None:
        shipped = shell.task.name in suited if suited else twin is None and _clips_of(shell).is_file()
        context = "bundled" if shipped else "live" if twin else None
    if context is None:
        return None
    if isinstance(context, str):
        if context == "live":
            assert twin is not None
            return LiveOpenings(twin, shell.setting.opening, **shell.truth_keywords(), **twin_kwargs)
        if suited and shell.task.name not in suited:
            raise ValueError(f"shipped clips open the tasks {', '.join(suited)}, not {shell.task.name!r}: give context='live' or frames")
        return read_clips(_clips_of(shell))
    clips = [context] if isinstance(context, Mapping) else list(context)
    return ClipOpenings([shell.check_context(clip) for clip in clips])


def _drives(shell: Shell, data: str) -> DriveOpenings:
    """Openings from recorded drives, whose displacements must mean what the world's actions mean."""
    from wmgym.kinematics import Displacement
    from wmgym.world_model import WorldModel

    openings = DriveOpenings(Path(data), shell.world.frame_shape[0])
    if isinstance(shell.world, WorldModel) and shell.world.kinematics != openings.dataset.displacement:
        told = shell.world.kinematics if isinstance(shell.world.kinematics, Displacement) else shell.world.kinematics.name
        raise ValueError(f"the checkpoint was made for {told}, the drives of {data} say {openings.dataset.displacement}")
    return openings


def _clips_of(shell: Shell) -> Path:
    return WEIGHTS / f"{shell.setting.name}-openings.npz"
