"""Memory of one picture: the mean of all latents so far, on a small grid (Echo-Memory's spatial summary). Its size is constant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wmgym.core import Context, ContextTokens, Footprint, Query, Seen
from wmgym.nets.summary import num_cells, pooled


@dataclass(frozen=True)
class Summary:
    mean: Tensor  # float32 [B, C, h, w]
    count: Tensor  # int64 [B]: frames in it


@dataclass(frozen=True)
class SummaryMemory:
    """`core.Memory` of the mean latent. It reads as tokens [B, cells, C], the cells of the grid row by row."""

    latent_shape: tuple[int, int, int]
    needs: frozenset[str] = frozenset()
    num_retrieved: int = 0

    def init(self, batch: int, keys: Tensor) -> Summary:
        return Summary(torch.zeros(batch, *self.latent_shape, device=keys.device), torch.zeros_like(keys[:, 0]))

    def read(self, memory: Summary, query: Query) -> Context:
        there = (memory.count > 0)[:, None].expand(-1, num_cells(self.latent_shape))
        return Context(tokens=ContextTokens(pooled(memory.mean), torch.ones_like(there, dtype=torch.int64), there))

    def write(self, memory: Summary, seen: Seen) -> Summary:
        new = seen.valid.sum(1)
        count = memory.count + new
        weight = seen.valid[..., None, None, None].float()
        added = (weight * (seen.latents.float() - memory.mean[:, None])).sum(1)
        return Summary(memory.mean + added / count.clamp(min=1)[:, None, None, None], count)

    def footprint(self, memory: Summary) -> Footprint:
        return Footprint(memory.count.clamp(max=1), torch.full_like(memory.count, memory.mean[0].nbytes))
