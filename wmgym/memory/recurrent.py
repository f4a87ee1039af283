"""Memory of a recurrent state that the network computes: of constant size, whatever the length of an episode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from wmgym.core import Context, Footprint, Memory, Query, Seen
from wmgym.tree import map_tensors

State = tuple[Tensor, ...]  # float32 [B, ...], one for each recurrent layer


@dataclass(frozen=True)
class Recurrent:
    frames: Any
    state: State  # after the newest chunk


@dataclass(frozen=True)
class StateMemory:
    """`core.Memory` of the newest frames, or of their keys and values, and of the state after the newest chunk.

    The network reads the frames when it computes the state, so both are written chunk by chunk, also those of an opening. shapes: of each
    layer's state, without the batch. Where an opening's first chunk is not whole, its first frame is repeated, and the state has seen it
    that often.
    """

    frames: Memory[Any]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def needs(self) -> frozenset[str]:
        return self.frames.needs | {"state"}

    @property
    def num_retrieved(self) -> int:
        return self.frames.num_retrieved

    def init(self, batch: int, keys: Tensor) -> Recurrent:
        return Recurrent(self.frames.init(batch, keys), tuple(torch.zeros(batch, *shape, device=keys.device) for shape in self.shapes))

    def read(self, memory: Recurrent, query: Query) -> Context:
        return replace(self.frames.read(memory.frames, query), state=memory.state)

    def write(self, memory: Recurrent, seen: Seen) -> Recurrent:
        if seen.trace is None or seen.trace.state is None:
            raise ValueError("a memory of a recurrent state needs it in the trace, and this network's trace has none")
        there = seen.valid.any(1)

        def newer(old: Tensor, new: Tensor) -> Tensor:
            return torch.where(there.view(-1, *[1] * (old.ndim - 1)), new.to(old.dtype), old)

        return Recurrent(self.frames.write(memory.frames, seen), map_tensors(newer, memory.state, seen.trace.state))

    def footprint(self, memory: Recurrent) -> Footprint:
        held = self.frames.footprint(memory.frames)
        return Footprint(held.frames, held.bytes + sum(x[0].nbytes for x in memory.state))
