"""Training on the model's own dreams: predict the true next frame from dreamed recent frames.

    true past ----------------> t0 --- dreamed by the model along the true actions ---> t0 + k | target: the true frame at t0 + k + 1

A network that was trained only on true frames relies too much on the recent ones: a dream of fifty steps drifts, although the memory holds
the true past. So stretches of the training episodes are dreamed with the present weights at regular intervals, and a share of the batches
has dreamed recent frames, a true past, and the true next frame as target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wmgym import rng
from wmgym.core import Footprint, FramePayload, Retrieval, WorldState
from wmgym.data.latents import Latents
from wmgym.memory.bank import Bank, recorded
from wmgym.memory.coverage import CoverageConfig, shown, target_points
from wmgym.memory.retrieval import RetrievalConfig, log_score
from wmgym.train.loop import Draw
from wmgym.train.worldpack_loss import Batch
from wmgym.tree import HighWater, Shared, Slots
from wmgym.world_model import WorldModel

DRAWS = 3  # candidates per example that must be a revisit
LONG_PAST = 11  # steps: the recent frames in WorldPack's context


@dataclass(frozen=True)
class Stretch:
    """R dreamed stretches of K frames each."""

    rows: Tensor  # int64 [R]: episodes
    first: Tensor  # int64 [R]: time of the first dreamed frame
    latents: Tensor  # [R, K, C, h, w]


def past(data: Latents, rows: Tensor, first: Tensor, room: int = 0) -> Bank:
    """The frames of episodes `rows` before the times `first`, as a memory. room: number of frames that can be added."""
    time = torch.arange(data.latents.shape[1], device=rows.device)
    return recorded(Shared(data.frames, rows), data.poses[rows], torch.where(time < first[:, None], time, -1), room)


def draw_starts(
    data: Latents, draw: Draw, size: int, revisits: float, steps: int = 1, likeness: RetrievalConfig | CoverageConfig | None = None
) -> tuple[Tensor, Tensor]:
    """Draw training examples of `steps` frames: episodes [size] and times [size] of their first frames.

    A share `revisits` of them are revisits: of several candidates, those whose last pose resembles the past from long before the first
    frame most. likeness: by the best score of a past pose (the default), or by the share of the view that all past poses together show.
    """
    chosen = round(revisits * size)
    rows, first = (x.to(data.latents.device) for x in data.draw(draw.numpy, size - chosen + chosen * DRAWS, steps))
    if not chosen:
        return rows, first
    pool = slice(size - chosen, None)
    time = torch.arange(data.latents.shape[1], device=rows.device)
    long_past = first[pool, None] - time > LONG_PAST
    target, poses = data.poses[rows[pool], first[pool] + steps - 1], data.poses[rows[pool]]
    if isinstance(likeness, CoverageConfig):
        alike = _covered(target, poses, long_past, likeness)
    else:
        alike = torch.where(long_past, log_score(target, poses, likeness or RetrievalConfig()), -torch.inf).amax(1)
    best = alike.topk(chosen).indices + size - chosen
    kept = torch.cat([torch.arange(size - chosen, device=rows.device), best])
    return rows[kept], first[kept]


def _covered(target: Tensor, past: Tensor, allowed: Tensor, config: CoverageConfig) -> Tensor:
    """How much of the views from `target` [B, 5] the allowed past poses [B, S, 5] together show: [B] in [0, 1]."""
    points, directions = target_points(target[:, None], config)
    quality = shown(points, directions, past, config) * allowed[..., None]
    return quality.amax(1).mean(1)


@torch.no_grad()
def dream(world: WorldModel, data: Latents, draw: Draw, where: tuple[Tensor, Tensor], steps: int, denoise_steps: int = 2) -> Stretch:
    """Dream stretches of `steps` frames with the present weights and a world's memory, at the true poses.

    where: episodes [R] and times [R] of the first frames, for example from `draw_starts`.
    """
    rows, first = where
    keys = rng.make_keys([int(seed) for seed in draw.numpy.integers(2**63, size=len(rows))], rows.device)
    world = world.with_settings(sampler=replace(world.settings.sampler, denoise_steps=denoise_steps), pose_source="actions")
    none = torch.zeros_like(rows)
    state = WorldState(
        data.latents[rows, first - 1][:, None].float(),
        data.poses[rows, first - 1],
        first - 1,
        keys,
        data.poses[rows, first - 1],
        (past(data, rows, first, room=steps),),
        Retrieval(none[:, None], none[:, None].float()),
        Footprint(none, none),
    )
    made = []
    for k in range(steps):
        state = replace(state, poses=data.poses[rows, first + k - 1])
        state, _ = world.imagine(state, data.actions[rows, first + k][:, None])
        made.append(state.latents[:, 0])
    return Stretch(rows, first, torch.stack(made, 1))


def draw_batch(data: Latents, stretch: Stretch, draw: Draw, size: int) -> Batch:
    """Examples whose last 1 to K frames are dreamed, and whose target is a true frame."""
    count, steps = stretch.latents.shape[:2]
    device = stretch.rows.device
    which = torch.from_numpy(draw.numpy.integers(count, size=size)).to(device)
    dreamed = torch.from_numpy(draw.numpy.integers(1, steps, size=size)).to(device)  # the next frame must be in the stretch
    rows, first = stretch.rows[which], stretch.first[which]
    target = first + dreamed
    true = past(data, rows, first)
    order = torch.arange(steps, device=device)
    times = torch.where(order < dreamed[:, None], first[:, None] + order, -1)
    at = rows[:, None], first[:, None] + order
    tail = FramePayload(stretch.latents[which], data.actions[at], data.frames.egomotion[at], torch.zeros_like(times, dtype=torch.bool))
    memory = replace(
        true,
        tail=tail,
        poses=Slots(torch.cat([data.poses[at], true.poses.values], 1)),
        times=Slots(torch.cat([times, true.times.values], 1), -1),
        used=HighWater(steps),
    )
    last = target - 1
    return Batch(
        (memory,),
        stretch.latents[which, dreamed - 1],
        data.poses[rows, last],
        data.actions[rows, target][:, None],
        data.latents[rows, target][:, None],
        data.poses[rows, target][:, None],
        target[:, None],
    )
