"""Keys and values of all chunks, up to a budget. Reads all of them, or those that show the target view.

Memory `full` reads all chunks at true temporal distances, also beyond the trained range; it is a baseline of WorldTrace. Memory `pose`
reads the newest chunks and those that together show most of the target view (`memory/coverage.py`), at positions by rank. A chunk that
is not read now stays stored and can be read later, as in WorldKV (arXiv 2605.22718).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wmgym.core import Context, Footprint, Query, Retrieval, Seen
from wmgym.memory import bank as banks
from wmgym.memory.bank import Bank
from wmgym.memory.coverage import CoverageConfig, choose_views
from wmgym.memory.slots import TAIL, ChunkKV, blank_chunk, chunk_of, joined, ranks
from wmgym.tree import map_tensors


@dataclass(frozen=True)
class ArchiveState:
    bank: Bank  # of ChunkKV; times count chunks, poses are those of the middle frames
    written: Tensor  # int64 [B]: chunks written


@dataclass(frozen=True)
class ChunkArchive:
    """`core.Memory` of the keys and values of the newest `budget` frames.

    recent, chosen: numbers of newest and retrieved chunks to read; chosen=0 reads all chunks.
    """

    layers: int
    chunk: int  # F
    tokens: int  # N
    heads: int
    head_width: int
    budget: int  # frames
    recent: int = 2
    chosen: int = 0
    coverage: CoverageConfig = field(default_factory=CoverageConfig)
    dtype: torch.dtype = torch.float32
    needs: frozenset[str] = frozenset({"kv"})

    def __post_init__(self) -> None:
        banks.check_shown(self.budget, self.chunk * max(1, self.recent + self.chosen))

    @property
    def num_retrieved(self) -> int:
        return self.chosen

    def blank(self, device: torch.device | str) -> ChunkKV:
        """A chunk [1, ...] of zeros."""
        return blank_chunk(self.layers, self.chunk, self.tokens, self.heads, self.head_width, self.dtype, device)

    def init(self, batch: int, keys: Tensor) -> ArchiveState:
        blank = self.blank(keys.device)
        banks.check_budget(self.budget // self.chunk, batch, blank)
        return ArchiveState(banks.empty(batch, self.budget // self.chunk, TAIL, blank), torch.zeros_like(keys[:, 0]))

    def write(self, memory: ArchiveState, seen: Seen) -> ArchiveState:
        chunk, there = chunk_of(seen, self.dtype), seen.valid.any(1)
        number = torch.where(there, memory.written, -1)[:, None]
        middle = seen.poses[:, self.chunk // 2][:, None]
        bank = banks.write(memory.bank, map_tensors(lambda x: x[:, None], chunk), middle, number, there[:, None])
        return ArchiveState(bank, memory.written + there)

    def read(self, memory: ArchiveState, query: Query) -> Context:
        bank, now = memory.bank, query.times[:, :1]
        if not self.chosen:
            slots = torch.arange(bank.times.values.shape[1], device=now.device).expand(bank.times.values.shape)
            chunks = banks.take(bank, slots)
            exists = bank.times.values >= 0
            return Context(kv=joined([(chunks, now - chunks.first, exists)], self.chunk))
        times = bank.times.values
        newest, exists = banks.newest(bank, self.recent)
        oldest_recent = torch.where(exists, times.gather(1, newest), memory.written[:, None]).amin(1, keepdim=True)
        allowed = (times >= 0) & (times < oldest_recent)
        chosen, gains, found = choose_views(query.poses, bank.poses.values, times, allowed, self.chosen, self.coverage)
        slots, there = torch.cat([newest, chosen], 1), torch.cat([exists, found], 1)
        rank = ranks(torch.where(there, times.gather(1, slots), -1))
        chunks = banks.take(bank, slots)
        seen = torch.where(found, chunks.first[:, self.recent :], -1)
        return Context(kv=joined([(chunks, self.chunk * rank, there)], self.chunk), retrieval=Retrieval(seen, gains))

    def footprint(self, memory: ArchiveState) -> Footprint:
        held = banks.footprint(memory.bank)
        return Footprint(held.frames * self.chunk, held.bytes)
