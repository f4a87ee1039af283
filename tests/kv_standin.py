"""The smallest memory of keys and values: the newest frames, as the network saw them. It proves the path that real ones will take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wmgym.core import Context, ContextKV, Footprint, KeysValues, Query, Seen


@dataclass(frozen=True)
class Window:
    layers: tuple[KeysValues, ...]  # [B, S, N, heads, d] each, newest first
    times: Tensor  # int64 [B, S], -1 where empty


@dataclass(frozen=True)
class SlidingWindow:
    """`core.Memory` over the keys and values of the last `budget` frames."""

    budget: int
    depth: int
    tokens: int
    heads: int
    width: int  # of a head
    needs: frozenset[str] = frozenset({"kv"})
    num_retrieved: int = 0

    def init(self, batch: int, keys: Tensor) -> Window:
        def blank() -> Tensor:
            return torch.zeros(batch, self.budget, self.tokens, self.heads, self.width)

        layers = tuple(KeysValues(blank(), blank()) for _ in range(self.depth))
        return Window(layers, torch.full((batch, self.budget), -1))

    def read(self, memory: Window, query: Query) -> Context:
        return Context(kv=ContextKV(memory.layers, query.times[:, :1] - memory.times, memory.times >= 0))

    def write(self, memory: Window, seen: Seen) -> Window:
        assert seen.trace is not None and seen.trace.kv, "a memory that needs keys and values was not given any"
        times = torch.cat([memory.times, torch.where(seen.valid, seen.times, -1)], 1)
        kept, index = times.topk(self.budget, dim=1)
        rows = torch.arange(len(times))[:, None]

        def newest(old: Tensor, new: Tensor) -> Tensor:
            return torch.cat([old, new], 1)[rows, index]

        pairs = zip(memory.layers, seen.trace.kv, strict=True)
        return Window(tuple(KeysValues(newest(a.keys, b.keys), newest(a.values, b.values)) for a, b in pairs), kept)

    def footprint(self, memory: Window) -> Footprint:
        frames = (memory.times >= 0).sum(1)
        return Footprint(frames, frames * (2 * self.depth * self.tokens * self.heads * self.width * 4 + 8))
