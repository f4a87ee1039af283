"""The bank: latents, poses and times of the frames a world has seen, on the device.

What was seen long ago lies in an archive whose rows lanes may share (branches of one moment hold one copy of their past); what was
seen since lies in a short tail of each lane's own. Only the tail is copied when a frame is written; when it is full, the newest
frames of both become the new archive. A lane remembers as many frames as the archive has room for, the newest. Slots are in no
particular order: a slot is known by its time, -1 marks an empty one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wmgym.core import Footprint, Seen
from wmgym.tree import Shared


@dataclass(frozen=True)
class Bank:
    archive: Shared  # latents [P, S, C, h, w]
    tail: Tensor  # latents [B, K, C, h, w]
    poses: Tensor  # float32 [B, S + K, 5]: archive slots first
    times: Tensor  # int64 [B, S + K]
    used: int  # tail slots in use in any lane


def empty(batch: int, capacity: int, tail: int, latent_shape: tuple[int, int, int], device: torch.device | str, dtype: torch.dtype) -> Bank:
    """A bank of `capacity` archived frames and `tail` new ones per lane."""
    slots = capacity + tail
    blank = torch.zeros(1, capacity, *latent_shape, device=device, dtype=dtype)
    return Bank(
        Shared(blank, torch.zeros(batch, dtype=torch.int64, device=device)),
        torch.zeros(batch, tail, *latent_shape, device=device, dtype=dtype),
        torch.zeros(batch, slots, 5, device=device),
        torch.full((batch, slots), -1, dtype=torch.int64, device=device),
        0,
    )


def recorded(latents: Shared, poses: Tensor, times: Tensor, room: int = 0) -> Bank:
    """A bank over frames already stored [P, S, ...]: how training reads whole episodes without copying them.

    `room` is how many frames can be written before the archive must be copied.
    """
    lanes = len(poses)
    tail = latents.data.new_zeros(lanes, room, *latents.data.shape[2:])
    poses = torch.cat([poses, poses.new_zeros(lanes, room, 5)], 1)
    return Bank(latents, tail, poses, torch.cat([times, times.new_full((lanes, room), -1)], 1), 0)


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
    """Keep the newest frames of archive, tail and chunk as the new archive, each lane its own."""
    s = bank.archive.data.shape[1]
    all_times = torch.cat([bank.times, times], 1)
    all_poses = torch.cat([bank.poses, poses], 1)
    kept, index = all_times.topk(s, dim=1)
    all_latents = torch.cat([bank.archive.dense(), bank.tail, latents], 1)
    rows = torch.arange(len(times), device=times.device)[:, None]
    fresh = empty(len(times), s, bank.tail.shape[1], tuple(latents.shape[2:]), times.device, bank.tail.dtype)  # type: ignore[arg-type]
    new_poses, new_times = fresh.poses, fresh.times
    new_poses[:, :s], new_times[:, :s] = all_poses[rows, index], kept
    return Bank(Shared.own(all_latents[rows, index]), fresh.tail, new_poses, new_times, 0)


def take(bank: Bank, slots: Tensor) -> Tensor:
    """Latents in slots int64 [B, n] -> [B, n, C, h, w]."""
    s, k = bank.archive.data.shape[1], bank.tail.shape[1]
    old = bank.archive.take(slots.clamp(max=s - 1))
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
