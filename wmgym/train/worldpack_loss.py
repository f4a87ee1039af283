"""WorldPack's training objective: the velocity of the next frame given the context of a memory, and the motion head's correction.

Recent frames explain most of the next one, so a network is slow to learn to use the rest of the context. Therefore the recent frames are
hidden in a share of the rows. A little noise on the context latents makes dreams robust to their own small errors.

Which frames are hidden is said by a rule (`HIDE`). "groups" hides all groups of a layout but the last, so a memory with one group is
spared. "newest" hides the newest 1 to 3 frames that a memory shows, whichever memory it is: examples of all memories are equally hard.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from wmgym.core import Condition, Context, ContextFrames
from wmgym.diffusion.flow import corrupt, logit_normal, target_velocity
from wmgym.geometry import relative_pose
from wmgym.nets.merge import merge
from wmgym.world_model import WorldModel

HIDE = ("groups", "newest")
MOST_HIDDEN = 3  # newest frames: every memory of the ablation shows at least four


@dataclass(frozen=True)
class Perturbation:
    """What is done to the context of a training example."""

    noise: float = 0.1  # standard deviation, on the latents
    drop: float = 0.0  # share of the rows in which recent frames are hidden
    hide: str = "groups"  # which (`HIDE`)

    def __post_init__(self) -> None:
        if self.hide not in HIDE:
            raise ValueError(f"hide must be one of {', '.join(HIDE)}, got {self.hide!r}")


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


def losses(world: WorldModel, batch: Batch, generator: torch.Generator, perturb: Perturbation = Perturbation()) -> dict[str, Tensor]:
    """Flow-matching loss of the network, "flow", and regression loss of the motion head, "motion"."""
    condition, context = inputs(world, batch, generator, perturb)
    data = batch.latents.float()
    level = logit_normal(_normal((len(data),), generator))
    noise = _normal(data.shape, generator)
    bound = world.net.bind(condition, (context,))
    velocity = bound(corrupt(data, noise, level), level).float()
    flow = (velocity - target_velocity(data, noise)).square().mean()
    if world.motion_head is None:
        return {"flow": flow}
    pairs = torch.cat([batch.before[:, None].float(), batch.latents.float()], 1)
    return {"flow": flow, "motion": _motion_loss(world, batch, pairs + perturb.noise * _normal(pairs.shape, generator))}


def inputs(world: WorldModel, batch: Batch, generator: torch.Generator, perturb: Perturbation) -> tuple[Condition, Context]:
    """What the network is given besides the noisy frames: `net.bind(condition, (context,))`.

    The condition has the poses that the kinematics expect, as in a dream, so obstacles must be inferred from the context. In a share
    `perturb.drop` of the rows recent frames are hidden, and all context latents carry noise.
    """
    egomotion = world.kinematics.motion(batch.actions)
    query = world.query(batch.pose, egomotion, batch.times[:, 0] - 1)
    context = merge(world.read(batch.memories, query))
    hide = hide_newest if perturb.hide == "newest" else hide_recent
    shown = hide(context.frames, generator, perturb.drop) if perturb.drop > 0 else context.frames
    noisy = tuple(replace(g, latents=g.latents.float() + perturb.noise * _normal(g.latents.shape, generator)) for g in shown)
    return Condition(batch.actions, egomotion, query.poses, query.times, batch.pose, batch.pose), replace(context, frames=noisy)


def _normal(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _motion_loss(world: WorldModel, batch: Batch, pairs: Tensor) -> Tensor:
    egomotion = world.kinematics.motion(batch.actions)
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


def hide_newest(groups: tuple[ContextFrames, ...], generator: torch.Generator, share: float) -> tuple[ContextFrames, ...]:
    """Hide the newest 1 to `MOST_HIDDEN` frames in `share` of the rows, whichever group they are in. The oldest frame always remains.

    Which rows, and how many frames, does not depend on the groups.
    """
    device = groups[0].valid.device
    rows = len(groups[0].valid)
    chosen = torch.rand(rows, generator=generator, device=device) < share
    count = torch.randint(1, MOST_HIDDEN + 1, (rows,), generator=generator, device=device) * chosen
    times = torch.cat([torch.where(g.valid, g.times, -1) for g in groups], 1)
    newer = (times[:, None] > times[:, :, None]).sum(2)  # frames that are newer than each
    oldest = (times >= 0) & (times == torch.where(times >= 0, times, times.amax(1, keepdim=True)).amin(1, keepdim=True))
    hidden = (newer < count[:, None]) & ~oldest
    parts = hidden.split([g.valid.shape[1] for g in groups], 1)
    return tuple(replace(g, valid=g.valid & ~gone) for g, gone in zip(groups, parts, strict=True))
