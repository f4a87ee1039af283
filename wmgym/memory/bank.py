"""The bank: latents, poses and times of the frames a world has seen, on the device.

What was seen long ago lies in an archive, a store of frames in which each lane knows its own by number: branches of one moment hold
one copy of their past, however long they go on. What was seen since lies in a short tail of each lane's own. Only the tail is copied
when a frame is written; when it is full, its frames join the store, and those that no lane remembers any more leave it. A lane
remembers as many frames as it has archive slots, the newest. Slots are in no particular order: a slot is known by its time, -1 marks
an empty one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wmgym.core import Footprint, Seen
from wmgym.tree import Shared


@dataclass(frozen=True)
class Bank:
    archive: Shared  # latents [P, C, h, w], of which each lane has rows [B, S]
    tail: Tensor  # latents [B, K, C, h, w]
    poses: Tensor  # float32 [B, S + K, 5]: archive slots first
    times: Tensor  # int64 [B, S + K]
    used: int  # tail slots in use in any lane


def empty(batch: int, capacity: int, tail: int, latent_shape: tuple[int, int, int], device: torch.device | str, dtype: torch.dtype) -> Bank:
    """A bank of `capacity` archived frames and `tail` new ones per lane."""
    slots = capacity + tail
    blank = torch.zeros(1, *latent_shape, device=device, dtype=dtype)
    return Bank(
        Shared(blank, torch.zeros(batch, capacity, dtype=torch.int64, device=device)),
        torch.zeros(batch, tail, *latent_shape, device=device, dtype=dtype),
        torch.zeros(batch, slots, 5, device=device),
        torch.full((batch, slots), -1, dtype=torch.int64, device=device),
        0,
    )


def recorded(latents: Shared, poses: Tensor, times: Tensor, room: int = 0) -> Bank:
    """A bank over frames already stored [P, S, ...], a row for each lane: how training reads whole episodes without copying them.

    `room` is how many frames can be written before the archive must be copied.
    """
    lanes, s = len(poses), latents.data.shape[1]
    tail = latents.data.new_zeros(lanes, room, *latents.data.shape[2:])
    poses = torch.cat([poses, poses.new_zeros(lanes, room, 5)], 1)
    frames = Shared(latents.data.flatten(0, 1), latents.rows[:, None] * s + torch.arange(s, device=latents.rows.device))
    return Bank(frames, tail, poses, torch.cat([times, times.new_full((lanes, room), -1)], 1), 0)


def write(bank: Bank, seen: Seen) -> Bank:
    """The bank with a chunk more. Frames that are not valid take a slot but are never found."""
    frames, k = seen.times.shape[1], bank.tail.shape[1]
    times = torch.where(seen.valid, seen.times, -1)
    latents = seen.latents.to(bank.tail.dtype)
    if bank.used + frames > k:
        return _archive(bank, latents, seen.poses, times)
    at = slice(bank.used, bank.used + frames)
    s = bank.times.shape[1] - k
    own = slice(s + at.start, s + at.stop)
    tail, all_poses, all_times = bank.tail.clone(), bank.poses.clone(), bank.times.clone()
    tail[:, at], all_poses[:, own], all_times[:, own] = latents, seen.poses, times
    # forget what is beyond the capacity now, not when the archive is rewritten: that moment depends on the other lanes
    all_times = torch.where(all_times > all_times.amax(1, keepdim=True) - s, all_times, -1)
    return replace(bank, tail=tail, poses=all_poses, times=all_times, used=at.stop)


def _archive(bank: Bank, latents: Tensor, poses: Tensor, times: Tensor) -> Bank:
    """Archive the newest frames of archive, tail and chunk; what lanes shared they still share."""
    (lanes, s), own = bank.archive.rows.shape, torch.cat([bank.tail, latents], 1)
    kept, index = torch.cat([bank.times, times], 1).topk(s, dim=1)
    numbers = len(bank.archive.data) + torch.arange(own[:, :, 0, 0, 0].numel(), device=times.device).view(lanes, -1)
    numbers = torch.cat([bank.archive.rows, numbers], 1).gather(1, index)
    store = Shared(torch.cat([bank.archive.data, own.flatten(0, 1)]), torch.where(kept >= 0, numbers, numbers[:, :1]))
    fresh = empty(lanes, s, bank.tail.shape[1], tuple(latents.shape[2:]), times.device, bank.tail.dtype)  # type: ignore[arg-type]
    new_poses, new_times = fresh.poses, fresh.times
    new_poses[:, :s] = torch.cat([bank.poses, poses], 1)[torch.arange(lanes, device=times.device)[:, None], index]
    new_times[:, :s] = kept
    return Bank(store.compact(), fresh.tail, new_poses, new_times, 0)


def take(bank: Bank, slots: Tensor) -> Tensor:
    """Latents in slots int64 [B, n] -> [B, n, C, h, w]."""
    s, k = bank.archive.rows.shape[1], bank.tail.shape[1]
    old = bank.archive.data[bank.archive.rows.gather(1, slots.clamp(max=s - 1))]
    if k == 0:
        return old
    rows = torch.arange(len(slots), device=slots.device)[:, None]
    new = bank.tail[rows, (slots - s).clamp(min=0)]
    return torch.where((slots < s)[..., None, None, None], old, new)


def newest(bank: Bank, n: int) -> tuple[Tensor, Tensor]:
    """Slots [B, n] of the newest frames, newest first, and which of them exist."""
    n_there = min(n, bank.times.shape[1])
    times, slots = bank.times.topk(n_there, dim=1)
    if n_there < n:
        pad = (len(slots), n - n_there)
        slots, times = torch.cat([slots, slots.new_zeros(pad)], 1), torch.cat([times, times.new_full(pad, -1)], 1)
    return slots, times >= 0


def footprint(bank: Bank) -> Footprint:
    frames = (bank.times >= 0).sum(1)
    each = bank.tail[0, :0].element_size() * bank.tail.shape[2:].numel() + 4 * 5 + 8
    return Footprint(frames, frames * each)
