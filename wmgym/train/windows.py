"""Windows of chunks that the video network learns from: contiguous ones, and ones whose first chunks come from long ago.

A memory reads old chunks at ranks, so in a share of the windows some past chunks are drawn from anywhere before the rest: half of them
because they show what the last chunk looks at, half at random. Ranks stay dense. In a tenth of the windows the first chunk holds fewer
frames than a chunk has, as an opening may.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wmgym.data.latents import Latents
from wmgym.memory.coverage import CoverageConfig, choose_views
from wmgym.train.loop import Draw


@dataclass(frozen=True)
class WindowConfig:
    chunk: int  # F
    window: int  # L
    gaps: float = 0.5  # share of windows with chunks from long ago
    most_old: int = 5  # of the L chunks
    short_openings: float = 0.1  # share of windows whose first chunk is not whole

    def __post_init__(self) -> None:
        if not 0 <= self.gaps <= 1 or not 0 <= self.short_openings <= 1:
            raise ValueError(f"gaps and short_openings are shares in [0, 1], got {self.gaps} and {self.short_openings}")
        if not 0 <= self.most_old < self.window:
            raise ValueError(f"most_old must be below the window's {self.window} chunks, got {self.most_old}")

    @property
    def frames(self) -> int:
        return self.chunk * self.window


@dataclass(frozen=True)
class Windows:
    """Which frames make up each window."""

    rows: Tensor  # int64 [B]: episodes
    times: Tensor  # int64 [B, L * F]: frames, chunk by chunk in the order of time
    valid: Tensor  # bool [B, L * F]


def draw_windows(data: Latents, draw: Draw, size: int, config: WindowConfig, coverage: CoverageConfig) -> Windows:
    """`size` windows; every place in an episode where one fits is equally likely to be its last frame."""
    chunk, device = config.chunk, data.latents.device
    room = (data.lengths - config.frames + 1).clamp(min=0).numpy()
    ends = room.cumsum()
    if ends[-1] < 1:
        raise ValueError(f"no episode has the {config.frames} frames of a window: collect longer ones (--episode-length)")
    flat = draw.numpy.integers(ends[-1], size=size)
    episode = np.searchsorted(ends, flat, side="right")
    rows = torch.from_numpy(episode).to(device)
    begin = torch.from_numpy(flat - (ends[episode] - room[episode])).to(device)
    starts = begin[:, None] + chunk * torch.arange(config.window, device=device)  # [B, L]
    if config.gaps > 0 and config.most_old:
        starts = _with_old_chunks(data, draw, rows, starts, config, coverage)
    times = (starts[..., None] + torch.arange(chunk, device=device)).flatten(1)
    held = np.where(draw.numpy.random(size) < config.short_openings, draw.numpy.integers(1, chunk, size) if chunk > 1 else 1, chunk)
    place = torch.arange(times.shape[1], device=device)
    return Windows(rows, times, place >= chunk - torch.from_numpy(held).to(device)[:, None])


def _with_old_chunks(data: Latents, draw: Draw, rows: Tensor, starts: Tensor, config: WindowConfig, coverage: CoverageConfig) -> Tensor:
    """The first few chunks of a share of the windows replaced by older ones, in the order of time."""
    size, chunk, device = len(rows), config.chunk, rows.device
    has_gap = torch.from_numpy(draw.numpy.random(size) < config.gaps).to(device)
    count = torch.from_numpy(draw.numpy.integers(1, config.most_old + 1, size)).to(device)  # chunks replaced
    kept = starts.gather(1, count[:, None])  # the first that stays: older ones end before it
    grid = torch.arange(0, data.latents.shape[1] - chunk + 1, chunk, device=device)  # candidates, the same for all rows
    allowed = grid + chunk <= kept
    middle = data.poses[rows[:, None], grid + chunk // 2]
    target = data.poses[rows[:, None], starts[:, -1:] + torch.arange(chunk, device=device)]
    order = grid.expand(size, -1)
    useful, _, exists = choose_views(target, middle, order, allowed, config.most_old, coverage)
    random = torch.from_numpy(draw.numpy.random((size, len(grid)))).to(device)
    anything = torch.where(allowed, random, -1.0).topk(min(config.most_old, len(grid)), 1).indices
    if anything.shape[1] < config.most_old:
        anything = torch.nn.functional.pad(anything, (0, config.most_old - anything.shape[1]))
    wanted = torch.from_numpy(draw.numpy.random((size, config.most_old)) < 0.5).to(device) & exists
    picked = grid[torch.where(wanted, useful, anything)]  # [B, most_old]
    enough = allowed.sum(1) >= count
    place = torch.arange(config.most_old, device=device) < count[:, None]
    # in the order of time, in the first `count` places; what is not replaced sorts behind
    picked = torch.where(place, picked, torch.iinfo(torch.int64).max).sort(1).values
    old = torch.cat([picked, starts[:, config.most_old :]], 1)
    replaced = torch.arange(config.window, device=device) < count[:, None]
    return torch.where(replaced & (has_gap & enough)[:, None], old, starts)
