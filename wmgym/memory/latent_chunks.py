"""Latents of all frames, up to a budget. Chunks that are read get their keys anew, in one clean pass of the network per step.

The newest chunks are read, and those that together show most of the target view (`memory/coverage.py`), at positions by rank: what memory
`pose` reads (`memory/chunk_archive.py`), with far fewer bytes per frame and one more pass over all that is read. A chunk is encoded without
its own past, as the first chunk of a training window is.

Chunks are counted back from the newest frame, so frames are grouped anew when their number is no multiple of F.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from wmgym.core import Context, Query, Retrieval
from wmgym.memory import bank as banks
from wmgym.memory.bank import Bank
from wmgym.memory.coverage import CoverageConfig, choose_views
from wmgym.memory.slots import ranks
from wmgym.memory.trajectory import FrameStore, context_frames


@dataclass(frozen=True)
class LatentChunks(FrameStore):
    """`core.Memory` of the latents of the newest `budget` frames. recent, chosen: numbers of newest and retrieved chunks to read."""

    latent_shape: tuple[int, int, int]
    chunk: int  # F
    budget: int  # frames
    recent: int = 2
    chosen: int = 5
    action_size: int = 0  # length of a continuous action; 0: discrete actions
    dtype: torch.dtype = torch.float32
    coverage: CoverageConfig = field(default_factory=CoverageConfig)
    needs: frozenset[str] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        banks.check_shown(self.budget, self.chunk * (self.recent + self.chosen))

    @property
    def num_retrieved(self) -> int:
        return self.chosen

    def read(self, memory: Bank, query: Query) -> Context:
        times = memory.times.values
        newest = times.amax(1, keepdim=True)
        age, inside = newest - times, torch.arange(self.chunk, device=times.device)
        after = age % self.chunk  # frames of the same chunk after each frame
        behind = self.chunk - 1 - self.chunk // 2  # the same for a chunk's middle frame, whose view stands for the chunk
        lone = (after == 0) & (times < behind)  # in place of a middle frame before the start of the episode
        allowed = (times >= 0) & ((after == behind) | lone) & (age >= self.recent * self.chunk)
        chosen, gains, found = choose_views(query.poses, memory.poses.values, times, allowed, self.chosen, self.coverage)
        # the time of each chunk's last frame
        recent = newest - self.chunk * torch.arange(self.recent, device=times.device)
        last = torch.cat([recent, (times + after).gather(1, chosen)], 1)
        exists = torch.cat([recent >= 0, found], 1)
        wanted = (last[..., None] - (self.chunk - 1) + inside).flatten(1)  # [B, n * F]
        same = times[:, None] == wanted[..., None]
        there = same.any(2) & (wanted >= 0) & exists.repeat_interleave(self.chunk, 1)
        frames = context_frames(memory, same.int().argmax(2), there, query.poses[:, 0], query.times[:, 0], 0)
        rank = ranks(torch.where(exists, last, -1))
        offsets = (self.chunk * rank[..., None] - inside).flatten(1)
        firsts = torch.where(found, last[:, self.recent :] - (self.chunk - 1), -1)
        return Context((replace(frames, offsets=offsets),), retrieval=Retrieval(firsts, gains))
