"""The bank: storage on the device for the frames that a world has seen, with their poses and times.

A frame's payload is any tree of tensors: latents and actions, or keys and values. Older frames are in an archive, a store that lanes
share and in which each lane has the indices of its own frames. So branches of one state hold one copy of their past. The newest frames
are in a short tail per lane. A write copies only the tail. When the tail is full, its frames move to the store, and frames that no lane
holds any longer are removed.

A lane holds its `capacity` newest frames. The archive grows by doubling, so memory use and time per step depend on the frames held, not on
the capacity. Slots (tail first, then archive) are in no particular order. A slot is identified by its time; -1 marks an empty slot.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from wmgym.core import Footprint
from wmgym.tree import HighWater, Shared, Slots, first_tensor, map_tensors, tensors

ROOM = 64  # archive slots of a new bank


@dataclass(frozen=True)
class Bank:
    archive: Shared  # payload [P, ...]; each lane has rows [B, S]
    tail: Any  # payload [B, K, ...]
    poses: Slots  # float32 [B, K + S, 5]
    times: Slots  # int64 [B, K + S]
    used: HighWater  # tail slots in use
    capacity: int

    @property
    def tail_len(self) -> int:
        """K."""
        return first_tensor(self.tail).shape[1]


def empty(batch: int, capacity: int, tail: int, blank: Any) -> Bank:
    """A bank without frames. `blank` is a payload of one frame [1, ...] that sets shapes, dtypes and device."""
    device = first_tensor(blank).device
    room = min(capacity, ROOM)
    return Bank(
        Shared(blank, torch.zeros(batch, room, dtype=torch.int64, device=device)),
        map_tensors(lambda one: one.new_zeros(batch, tail, *one.shape[1:]), blank),
        Slots(torch.zeros(batch, tail + room, 5, device=device)),
        Slots(torch.full((batch, tail + room), -1, dtype=torch.int64, device=device), -1),
        HighWater(0),
        capacity,
    )


def blank_actions(shape: tuple[int, ...], action_size: int, device: torch.device | str) -> Tensor:
    """Actions of zeros [*shape], or [*shape, A] for continuous actions of length A; action_size=0: discrete."""
    if action_size:
        return torch.zeros(*shape, action_size, device=device)
    return torch.zeros(*shape, dtype=torch.int64, device=device)


def recorded(episodes: Shared, poses: Tensor, times: Tensor, room: int = 0) -> Bank:
    """A bank of stored episodes without a copy of their payload, for training.

    episodes: payload [E, T, ...] with one row per lane; poses [B, T, 5]; times int64 [B, T], -1 for frames that are not in memory. room:
    number of frames that can be written before the archive is copied.
    """
    lanes, length = times.shape
    numbers = episodes.rows[:, None] * length + torch.arange(length, device=times.device)
    tail = map_tensors(lambda data: data.new_zeros(lanes, room, *data.shape[2:]), episodes.data)
    return Bank(
        Shared(map_tensors(lambda data: data.flatten(0, 1), episodes.data), numbers),
        tail,
        Slots(torch.cat([poses.new_zeros(lanes, room, 5), poses], 1)),
        Slots(torch.cat([times.new_full((lanes, room), -1), times], 1), -1),
        HighWater(0),
        length,
    )


def write(bank: Bank, payload: Any, poses: Tensor, times: Tensor, valid: Tensor) -> Bank:
    """Add frames [B, n, ...]. Frames that are not valid take a slot but are never read."""
    times = torch.where(valid, times, -1)
    payload = map_tensors(lambda new, old: new.to(old.dtype), payload, bank.tail)
    frames, first = times.shape[1], bank.used.count
    if first + frames > bank.tail_len:
        return _archive(bank, payload, poses, times)
    own = slice(first, first + frames)

    def put(old: Tensor, new: Tensor) -> Tensor:
        changed = old.clone()
        changed[:, own] = new
        return changed

    all_times = put(bank.times.values, times)
    # drop frames beyond the capacity now, not when the archive is rewritten, since that time depends on the other lanes
    all_times = torch.where(all_times > all_times.amax(1, keepdim=True) - bank.capacity, all_times, -1)
    return replace(
        bank,
        tail=map_tensors(put, bank.tail, payload),
        poses=Slots(put(bank.poses.values, poses)),
        times=Slots(all_times, -1),
        used=HighWater(own.stop),
    )


def _archive(bank: Bank, payload: Any, poses: Tensor, times: Tensor) -> Bank:
    """Rewrite the archive with the newest frames of tail, chunk and archive. Shared frames stay shared."""
    lanes, frames = times.shape
    k, old = bank.tail_len, bank.archive
    # candidates: tail, chunk and archive, with their indices in the joined store
    own = map_tensors(lambda kept, new: torch.cat([kept, new], 1), bank.tail, payload)
    numbers = len(old) + torch.arange(lanes * (k + frames), device=times.device).view(lanes, -1)
    numbers = torch.cat([numbers, old.rows], 1)
    all_times = torch.cat([bank.times.values[:, :k], times, bank.times.values[:, k:]], 1)
    all_poses = torch.cat([bank.poses.values[:, :k], poses, bank.poses.values[:, k:]], 1)
    most = int((all_times >= 0).sum(1).amax())  # most frames of any lane; `int` waits for a GPU, and so does `compact` below
    size = min(bank.capacity, max(ROOM, 1 << (most - 1).bit_length()))
    kept, index = all_times.topk(min(size, all_times.shape[1]), dim=1)
    store = map_tensors(lambda stored, new: torch.cat([stored, new.flatten(0, 1)]), old.data, own)
    row, newest_row = torch.arange(lanes, device=times.device)[:, None], numbers.gather(1, index[:, :1])
    kept, chosen_poses = Slots(kept, -1).padded(size), Slots(all_poses[row, index]).padded(size)
    rows = torch.where(kept >= 0, Slots(numbers.gather(1, index)).padded(size), newest_row)
    return Bank(
        Shared(store, rows).compact(),
        map_tensors(torch.zeros_like, bank.tail),
        Slots(torch.cat([all_poses.new_zeros(lanes, k, 5), chosen_poses], 1)),
        Slots(torch.cat([kept.new_full((lanes, k), -1), kept], 1), -1),
        HighWater(0),
        bank.capacity,
    )


def take(bank: Bank, slots: Tensor) -> Any:
    """Payload of slots int64 [B, n]: [B, n, ...]."""
    k, archive = bank.tail_len, bank.archive
    numbers = archive.rows.gather(1, (slots - k).clamp(min=0))
    if k == 0:
        return map_tensors(lambda stored: stored[numbers], archive.data)
    row, is_new = torch.arange(len(slots), device=slots.device)[:, None], slots < k
    recent = slots.clamp(max=k - 1)

    def pick(stored: Tensor, tail: Tensor) -> Tensor:
        new = tail[row, recent]
        return torch.where(is_new.view(*is_new.shape, *[1] * (new.ndim - 2)), new, stored[numbers])

    return map_tensors(pick, archive.data, bank.tail)


def newest(bank: Bank, n: int) -> tuple[Tensor, Tensor]:
    """Slots int64 [B, n] of the n newest frames, newest first, and which of them exist: bool [B, n]."""
    there = min(n, bank.times.values.shape[1])
    times, slots = bank.times.values.topk(there, dim=1)
    return Slots(slots).padded(n), Slots(times, -1).padded(n) >= 0


def footprint(bank: Bank) -> Footprint:
    """Frames and bytes that each lane holds."""
    frames = (bank.times.values >= 0).sum(1)
    return Footprint(frames, frames * bytes_per_frame(bank.archive.data))


def bytes_per_frame(blank: Any) -> int:
    """Size of one frame with its pose and time; `blank` is a payload [P, ...]."""
    return sum(data.element_size() * data.shape[1:].numel() for data in tensors(blank)) + 4 * 5 + 8


def check_shown(budget: int, shown: int) -> None:
    """ValueError if a `memory_budget` is below the number of frames that are shown to the network."""
    if budget < shown:
        raise ValueError(f"memory_budget must be at least the {shown} frames that the network reads, got {budget}")


def check_budget(budget: int, lanes: int, blank: Any) -> None:
    """ValueError if the device is too small for a full `memory_budget`."""
    needed = budget * lanes * bytes_per_frame(blank)
    device = first_tensor(blank).device
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    elif hasattr(os, "sysconf"):  # not on Windows
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    if needed > there:
        raise ValueError(
            f"memory_budget={budget} would take {needed / 2**30:.1f} GiB for {lanes} lane{'s' * (lanes > 1)}, "
            f"{device} has {there / 2**30:.1f} GiB: give a smaller budget or fewer lanes"
        )
