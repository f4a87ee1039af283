"""Training on the model's own dreams: how to find back to the truth once the recent frames are no longer true.

    true past ----------------> t0 --- dreamed by the model itself, along the true actions ---> t0 + k | the true frame at t0 + k + 1

A network that has only seen true frames trusts its recent ones too much: a dream of fifty steps drifts, though the memory still
knows. So, every so many steps, stretches of the training episodes are dreamed with the present weights; some of the batches
then have dreamed recent frames, a true past, and the truth for a target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wmgym import rng
from wmgym.core import Footprint, FramePayload, Retrieval, WorldState
from wmgym.data.latents import Latents
from wmgym.memory.bank import Bank, recorded
from wmgym.memory.retrieval import RetrievalConfig, log_score
from wmgym.train.loop import Draw
from wmgym.train.worldpack_loss import Batch
from wmgym.tree import HighWater, Shared, Slots
from wmgym.world_model import WorldModel

DRAWS = 3  # draws for each example that is to be a revisit
LONG_PAST = 11  # steps: what WorldPack shows of the recent past anyway


@dataclass(frozen=True)
class Stretch:
    """Dreams of R stretches, K frames each."""

    rows: Tensor  # int64 [R]: episodes
    first: Tensor  # int64 [R]: time of the first dreamed frame
    latents: Tensor  # [R, K, C, h, w]


def past(data: Latents, rows: Tensor, first: Tensor, room: int = 0) -> Bank:
    """What was seen of episodes `rows` before the times `first`, as a memory with room for more."""
    time = torch.arange(data.latents.shape[1], device=rows.device)
    return recorded(Shared(data.frames, rows), data.poses[rows], torch.where(time < first[:, None], time, -1), room)


def moments(
    data: Latents, draw: Draw, size: int, revisits: float, steps: int = 1, retrieval: RetrievalConfig | None = None
) -> tuple[Tensor, Tensor]:
    """Episodes [size] and times [size] of the first of `steps` frames to be learned.

    A share `revisits` of them are such that something seen long before the first resembles the last by pose: the best among several draws.
    """
    chosen = round(revisits * size)
    rows, first = (x.to(data.latents.device) for x in data.draw(draw.numpy, size - chosen + chosen * DRAWS, steps))
    if not chosen:
        return rows, first
    pool = slice(size - chosen, None)
    time = torch.arange(data.latents.shape[1], device=rows.device)
    long_past = first[pool, None] - time > LONG_PAST
    target = data.poses[rows[pool], first[pool] + steps - 1]
    likeness = torch.where(long_past, log_score(target, data.poses[rows[pool]], retrieval or RetrievalConfig()), -torch.inf).amax(1)
    best = likeness.topk(chosen).indices + size - chosen
    kept = torch.cat([torch.arange(size - chosen, device=rows.device), best])
    return rows[kept], first[kept]


@torch.no_grad()
def dream(
    world: WorldModel, data: Latents, draw: Draw, where: tuple[Tensor, Tensor], steps: int, denoise_steps: int = 2
) -> Stretch:
    """Dream stretches of `steps` frames with the present weights and a world's memory. Poses are the true ones throughout.

    where: episodes [R] and times [R] of the first frames, such as `moments` gives.
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
    """Examples whose last 1 to K frames are dreamed, and whose target is true."""
    count, steps = stretch.latents.shape[:2]
    device = stretch.rows.device
    which = torch.from_numpy(draw.numpy.integers(count, size=size)).to(device)
    dreamed = torch.from_numpy(draw.numpy.integers(1, steps, size=size)).to(device)  # the last dreamed frame has no successor here
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
