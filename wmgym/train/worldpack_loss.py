"""WorldPack's training objective: the velocity of the next frame given the context of a memory, and the motion head's correction.

Recent frames explain most of the next one, so a network is slow to learn to use the rest of the context. Therefore the recent frames are
hidden in a share of the rows. A little noise on the context latents makes dreams robust to their own small errors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from wmgym.core import Condition, ContextFrames
from wmgym.diffusion.flow import corrupt, logit_normal, target_velocity
from wmgym.geometry import relative_pose
from wmgym.nets.merge import merge
from wmgym.world_model import WorldModel


@dataclass(frozen=True)
class Batch:
    """Training examples: memories of the past, and the true next chunk."""

    memories: tuple[Any, ...]
    before: Tensor  # [B, C, h, w]: the newest latent before the chunk
    pose: Tensor  # float32 [B, 5]: its pose
    actions: Tensor  # int64 [B, F] or float32 [B, F, A]
    latents: Tensor  # [B, F, C, h, w]
    poses: Tensor  # float32 [B, F, 5]: true poses of the chunk
    times: Tensor  # int64 [B, F]


def losses(
    world: WorldModel, batch: Batch, generator: torch.Generator, context_noise: float = 0.1, context_drop: float = 0.0
) -> dict[str, Tensor]:
    """Flow-matching loss of the network, "flow", and regression loss of the motion head, "motion".

    The target is conditioned on the poses that the kinematics expect, as in a dream, so obstacles must be inferred from the context. In a
    share `context_drop` of the rows the recent frames are hidden, completely or partly, so only the last group of the context (the
    retrieved or oldest frames) is certain to remain.
    """

    def normal(shape: torch.Size | tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device)

    egomotion = world.kinematics.motion(batch.actions)
    query = world.query(batch.pose, egomotion, batch.times[:, 0] - 1)
    context = merge(world.read(batch.memories, query))
    shown = hide_recent(context.frames, generator, context_drop) if context_drop > 0 else context.frames
    noisy = tuple(replace(g, latents=g.latents.float() + context_noise * normal(g.latents.shape)) for g in shown)
    data = batch.latents.float()
    level = logit_normal(normal((len(data),)))
    noise = normal(data.shape)
    condition = Condition(batch.actions, egomotion, query.poses, query.times, batch.pose, batch.pose)
    bound = world.net.bind(condition, (replace(context, frames=noisy),))
    velocity = bound(corrupt(data, noise, level), level).float()
    flow = (velocity - target_velocity(data, noise)).square().mean()
    if world.motion_head is None:
        return {"flow": flow}
    pairs = torch.cat([batch.before[:, None].float(), batch.latents.float()], 1)
    return {"flow": flow, "motion": _motion_loss(world, batch, egomotion, pairs + context_noise * normal(pairs.shape))}


def _motion_loss(world: WorldModel, batch: Batch, egomotion: Tensor, pairs: Tensor) -> Tensor:
    poses = torch.cat([batch.pose[:, None], batch.poses], 1)
    correction = relative_pose(poses[:, 1:], poses[:, :-1]) - egomotion
    before, after = pairs[:, :-1].flatten(0, 1), pairs[:, 1:].flatten(0, 1)
    mask = world.kinematics.mask(pairs.device)
    assert world.motion_head is not None
    return world.motion_head.loss(before, after, batch.actions.flatten(), correction.flatten(0, 1), mask)


def hide_recent(groups: tuple[ContextFrames, ...], generator: torch.Generator, share: float) -> tuple[ContextFrames, ...]:
    """Hide all groups but the last in about half of `share` of the rows, and each of them at random in the other half.

    Rows whose last group is empty keep all groups.
    """
    device = groups[0].valid.device
    rows = len(groups[0].valid)
    fate = torch.rand(rows, generator=generator, device=device)
    odds = torch.where(fate < share / 2, 1.0, torch.where(fate < share, 0.5, 0.0)) * groups[-1].valid.any(1)
    hidden = torch.rand(len(groups) - 1, rows, generator=generator, device=device) < odds
    kept = [replace(g, valid=g.valid & ~gone[:, None]) for g, gone in zip(groups[:-1], hidden, strict=True)]
    return (*kept, groups[-1])
