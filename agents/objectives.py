"""Planning objectives: costs of imagined futures, from goal images, goal poses or rewards. Lower is better.

    objective = make_objective("ssim", goal_frames=frames)  # uint8 [B, H, W, 3], one for each lane
    objective(futures)                                      # float32 [B, K]

"lpips", "dreamsim", "ssim" and "latent" compare the last frame of each future with the goal frame. "steps" predicts the number of steps
from that frame to the goal frame with a learned distance (`wmgym train distance`). "pose" uses the distance to the goal's pose. "reward"
uses the environment's rewards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmgym.geometry import wrap_angle
from wmgym.metrics import image
from wmgym.nets.distance import StepDistance

IMAGE_OBJECTIVES = ("lpips", "dreamsim", "ssim", "latent", "steps")
OBJECTIVES = (*IMAGE_OBJECTIVES, "pose", "reward")


@dataclass(frozen=True)
class Futures:
    """K futures of each of B lanes, T steps long."""

    frames: Tensor  # uint8 [B, K, H, W, 3]: the last frame of each future
    poses: Tensor  # float32 [B, K, T, 5]: after each step
    rewards: Tensor  # float32 [B, K, T]


Objective = Callable[[Futures], Tensor]  # -> float32 [B, K]; the dataclasses below have tensors with one row per lane


def make_objective(
    name: str,
    *,
    goal_frames: Any = None,
    goal_poses: Any = None,
    encode: Callable[[Tensor], Tensor] | None = None,
    distance: StepDistance | None = None,
    yaw_weight: float = 0.0,
    discount: float = 0.95,
) -> Objective:
    """An objective by name. ValueError if the name is unknown or the goal that it needs is missing.

    goal_frames: uint8 [B, H, W, 3].
    goal_poses: float [B, 5].
    encode: frames uint8 [N, T, H, W, 3] -> latents, such as `WorldModel.encode` ("latent", "steps").
    distance: the learned distance of that encoder's latents ("steps"; `train.distance.load_distance`).
    yaw_weight: cost in metres per radian of the final heading error ("pose").
    discount: per step ("reward").
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {name!r}")
    if name == "reward":
        return Reward(discount)
    if name == "pose":
        if goal_poses is None:
            raise ValueError("objective 'pose' needs goal_poses [B, 5]: a goal image does not contain its pose")
        poses = _tensor(goal_poses).float()
        if poses.ndim != 2 or poses.shape[1] != 5 or not bool(poses.isfinite().all()):
            raise ValueError(f"goal_poses must be finite [B, 5], got {list(poses.shape)}")
        return ToPose(poses, yaw_weight)
    if goal_frames is None:
        raise ValueError(f"objective {name!r} needs goal_frames uint8 [B, H, W, 3]")
    frames = _tensor(goal_frames)
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"goal_frames must be uint8 [B, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    if name in ("latent", "steps"):
        if encode is None:
            raise ValueError(f"objective {name!r} needs encode, the encoder of the world model")
        goals = encode(frames[:, None])[:, 0].float()
        if name == "latent":
            return ToLatent(goals, encode)
        if distance is None:
            raise ValueError("objective 'steps' needs distance, a learned distance: train one with `wmgym train distance`")
        if tuple(goals.shape[1:]) != distance.config.latent_shape:
            raise ValueError(f"the distance reads latents {list(distance.config.latent_shape)}, encode gives {list(goals.shape[1:])}")
        return StepsTo(goals, encode, distance.to(goals.device))
    measure = {"lpips": image.lpips, "dreamsim": image.dreamsim, "ssim": lambda a, b: 1 - image.ssim(a, b)}[name]
    return ToImage(frames, measure)


@dataclass(frozen=True)
class ToImage:
    """Perceptual distance of the last frame to the goal frame."""

    goals: Tensor  # uint8 [B, H, W, 3]
    measure: Callable[[Tensor, Tensor], Tensor]  # frames, frames [N, H, W, 3] -> [N]

    def __call__(self, futures: Futures) -> Tensor:
        goals = self.goals.to(futures.frames.device)[:, None].expand_as(futures.frames)
        return self.measure(futures.frames.flatten(0, 1), goals.flatten(0, 1)).view(futures.frames.shape[:2])


@dataclass(frozen=True)
class ToLatent:
    """Mean squared error between the last frame's latent and the goal's."""

    goals: Tensor  # float [B, C, h, w]
    encode: Callable[[Tensor], Tensor]

    def __call__(self, futures: Futures) -> Tensor:
        return (self.encode(futures.frames).float() - self.goals[:, None]).square().flatten(2).mean(-1)


@dataclass(frozen=True)
class StepsTo:
    """Expected log(1 + steps) from the last frame to the goal frame, by a learned distance."""

    goals: Tensor  # float [B, C, h, w]
    encode: Callable[[Tensor], Tensor]
    distance: StepDistance

    def __call__(self, futures: Futures) -> Tensor:
        latents = self.encode(futures.frames).float()  # [B, K, C, h, w]
        goals = self.goals[:, None].expand_as(latents)
        return self.distance.log_steps(latents.flatten(0, 1), goals.flatten(0, 1)).view(latents.shape[:2])


@dataclass(frozen=True)
class ToPose:
    """Horizontal distance to the goal, averaged over the path so that an earlier arrival costs less, plus the final heading error."""

    goals: Tensor  # float [B, 5]
    yaw_weight: float = 0.0  # metres per radian

    def __call__(self, futures: Futures) -> Tensor:
        goals = self.goals.to(futures.poses.device)[:, None]
        distance = (futures.poses[..., :2] - goals[:, :, None, :2]).norm(dim=-1).mean(-1)
        return distance + self.yaw_weight * wrap_angle(futures.poses[..., -1, 3] - goals[..., 3]).abs()


@dataclass(frozen=True)
class Reward:
    """The negative discounted sum of rewards."""

    discount: float

    def __call__(self, futures: Futures) -> Tensor:
        steps = torch.arange(futures.rewards.shape[-1], device=futures.rewards.device)
        return -(futures.rewards * self.discount**steps).sum(-1)


def _tensor(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
