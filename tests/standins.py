"""A small world that keeps every promise of `core.World` exactly, and its ground truth: what the shells are tested with.

What is seen is a plain function of the pose. The dream adds a little noise of its row's key and a tint from the remembered
frame that was nearest, so that a wrong key, pose or memory shows in the pixels. All arithmetic is elementwise: rows agree bit
for bit at any batch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

import wmgym
from wmgym import rng, tasks
from wmgym.core import Clip, Footprint, Frames, Retrieval, WorldState
from wmgym.geometry import compose
from wmgym.settings import minecraft
from wmgym.tree import HighWater, Shared

SLOTS, RECALLED = 32, 2
TRUTH = "StandInTruth-v0"


def draw(poses: Tensor, size: int) -> Tensor:
    """Poses [..., 5] -> frames in [0, 1], [..., H, W, 3]: a grating that turns and shifts with the pose."""
    v, u = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    x, y, _, yaw, pitch = (p[..., None, None] for p in poses.unbind(-1))
    red = torch.sin(6 * u + 2 * yaw + x)
    green = torch.sin(6 * v + 2 * pitch + y)
    blue = torch.sin(3 * (u + v) + x - y)
    return 0.5 + 0.3 * torch.stack([red + 0 * green, green + 0 * red, blue], -1)


def to_pixels(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class Trace:
    """The newest SLOTS frames' mean colours, poses and times, oldest first."""

    colours: Shared  # [B, SLOTS, 3]
    poses: Tensor  # [B, SLOTS, 5]
    times: Tensor  # [B, SLOTS], -1 where empty
    most: HighWater  # high-water mark, as a memory that grows would have


class StandInWorld:
    device = torch.device("cpu")

    def __init__(self, size: int = 16, chunk: int = 1, noise: float = 0.1, ends_at: int | None = None) -> None:
        self.chunk, self.frame_shape, self.noise, self.ends_at = chunk, (size, size, 3), noise, ends_at
        self.steps = 0  # network passes, to prove that N lanes cost one

    def start(self, context: Clip, keys: Tensor) -> WorldState:
        lanes = len(keys)
        empty = Trace(Shared.own(torch.zeros(lanes, SLOTS, 3)), torch.zeros(lanes, SLOTS, 5), torch.full((lanes, SLOTS), -1), HighWater(0))
        recall = Retrieval(torch.full((lanes, RECALLED), -1), torch.full((lanes, RECALLED), -math.inf))
        still = draw(context.poses[:, -1:], self.frame_shape[0]).movedim(-1, 2).repeat(1, self.chunk, 1, 1, 1)
        counts = torch.zeros(lanes, dtype=torch.int64)
        last = context.poses[:, -1]
        state = WorldState(still, last, counts - 1, keys, last, (empty,), recall, Footprint(counts, counts))
        return self.observe(state, context)

    def observe(self, state: WorldState, seen: Clip) -> WorldState:
        return self._write(state, seen.frames.float() / 255, seen.poses, seen.valid)

    def step(self, state: WorldState, actions: Tensor) -> tuple[WorldState, Frames]:
        self.steps += 1
        poses, pose = [], state.poses
        for f in range(self.chunk):
            pose = compose(pose, minecraft.SETTING.kinematics.motion(actions[:, f]))
            poses.append(pose)
        path = torch.stack(poses, 1)
        trace = state.memories[0]
        far = (trace.poses[..., :2] - state.poses[:, None, :2]).square().sum(-1).masked_fill(trace.times < 0, math.inf)
        scores, nearest = (-far).topk(RECALLED, -1)
        recall = Retrieval(trace.times.gather(1, nearest), scores)
        tint = 0.2 * trace.colours.take(nearest)[:, 0]
        noise = self.noise * rng.noise(state.keys, (self.chunk, *self.frame_shape))
        images = 0.8 * draw(path, self.frame_shape[0]) + tint[:, None, None, None] + noise
        valid = torch.ones(path.shape[:2], dtype=torch.bool)
        state = replace(state, latents=images.movedim(-1, 2), keys=rng.next_keys(state.keys), retrieval=recall)
        state = self._write(state, images, path, valid)
        ends = None if self.ends_at is None else (state.times[:, None] - self.chunk + 1 + torch.arange(self.chunk)) == self.ends_at
        rewards = None if ends is None else 10.0 * ends
        return state, Frames(to_pixels(images), path, rewards, ends, {"network_evaluations": 1.0})

    def _write(self, state: WorldState, images: Tensor, poses: Tensor, valid: Tensor) -> WorldState:
        old = state.memories[0]
        times = torch.where(valid, state.times[:, None] + valid.cumsum(1), -1)
        colours = torch.cat([old.colours.dense(), images.mean((2, 3))], 1)
        order = torch.cat([old.times >= 0, valid], 1).int().sort(dim=1, stable=True).indices  # what is valid comes last

        def newest(rows: Tensor) -> Tensor:
            index = order.view(*order.shape, *[1] * (rows.ndim - 2)).expand_as(rows)
            return rows.gather(1, index)[:, -SLOTS:]

        trace = Trace(
            Shared.own(newest(colours)), newest(torch.cat([old.poses, poses], 1)), newest(torch.cat([old.times, times], 1)),
            HighWater(min(SLOTS, old.most.count + valid.shape[1])),
        )  # fmt: skip
        held = (trace.times >= 0).sum(1)
        return replace(state, poses=poses[:, -1], times=times[:, -1], memories=(trace,), footprint=Footprint(held, held * 12))


class StandInTruth(gym.Env):
    """What a `StandInWorld` imagines: the same places without noise or memory."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(
        self, task: str = "navigate", backend: str = "near", size: int = 16, horizon: int | None = None, render_mode: str | None = None
    ) -> None:
        self.shift = {"near": 0, "far": 100}[backend]
        setting = minecraft.SETTING
        self.task, self.size, self.render_mode = setting.tasks[task], size, render_mode
        self.horizon = horizon or self.task.horizon
        self.observation_space = self.task.observation_space(gym.spaces.Box(0, 255, (size, size, 3), np.uint8))
        self.action_space = setting.frame_actions
        self.opened = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.opened += 1
        x, y, yaw = self.np_random.uniform(-3, 3, 3)
        self.pose = np.array([x + self.shift, y, 0, yaw, 0], np.float32)
        given = (options or {}).get("goal")
        self.goal = tasks.sample_goal(self.np_random, self.pose) if given is None else np.array(given, np.float32)
        self.elapsed = 0
        return self._seen(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        before = self.pose
        moved = compose(torch.from_numpy(self.pose)[None], minecraft.SETTING.kinematics.motion(torch.tensor([int(action)])))
        self.pose, self.elapsed = moved[0].numpy(), self.elapsed + 1
        reward = float(self.task.reward(before, self.pose, self.goal))
        return self._seen(), reward, bool(self.task.done(self.pose, self.goal)), self.elapsed >= self.horizon, self._info()

    def render(self) -> Any:
        return self._frame()

    def _frame(self) -> np.ndarray:
        return to_pixels(draw(torch.from_numpy(self.pose)[None], self.size))[0].numpy()

    def _seen(self) -> Any:
        batch = self.task.observe(self._frame()[None], self.pose[None], self.goal[None])
        return {key: value[0] for key, value in batch.items()} if isinstance(batch, dict) else batch[0]

    def _info(self) -> dict[str, Any]:
        info = {"pose": self.pose.copy()}
        if self.task.needs_goal:
            info |= {"goal": self.goal.copy(), "goal_distance": float(tasks.horizontal_distance(self.pose, self.goal))}
        return info


gym.register(TRUTH, entry_point="standins:StandInTruth")


def clip(length: int = 3, size: int = 16, x: float = 0.0) -> dict[str, np.ndarray]:
    """A context in which one walks along +x."""
    poses = torch.zeros(length, 5)
    poses[:, 0] = x + torch.arange(length) * 0.5
    return {"frames": to_pixels(draw(poses, size)).numpy(), "actions": np.ones(length, np.int64), "poses": poses.numpy()}


def single(world: StandInWorld | None = None, **keywords: Any) -> Any:
    """A dream of the stand-in, opened live by its truth unless told otherwise."""
    return wmgym.make_env(world or StandInWorld(), **_defaults(keywords))


def vector(num_envs: int, world: StandInWorld | None = None, **keywords: Any) -> Any:
    return wmgym.make_env(world or StandInWorld(), num_envs=num_envs, **_defaults(keywords))


def _defaults(keywords: dict[str, Any]) -> dict[str, Any]:
    live = {} if "opening" in keywords else {"twin": TRUTH}
    return {"task": "navigate", "setting": "minecraft", **live, **keywords}


def assert_same(a: Any, b: Any) -> None:
    """Equal to the last bit, all the way down."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)) or (isinstance(a, np.ndarray) and a.dtype == object):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        np.testing.assert_array_equal(a, b)
