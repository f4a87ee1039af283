"""A memory whose frames are read by a mixture of contexts (`nets/routing.py`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from wmgym.core import Context, Footprint, Memory, Query, Seen


@dataclass(frozen=True)
class RoutedMemory:
    """`core.Memory`: another one, of whose frames each query reads `count`."""

    memory: Memory[Any]
    count: int

    @property
    def needs(self) -> frozenset[str]:
        return self.memory.needs

    @property
    def num_retrieved(self) -> int:
        return self.memory.num_retrieved

    def init(self, batch: int, keys: Tensor) -> Any:
        return self.memory.init(batch, keys)

    def read(self, memory: Any, query: Query) -> Context:
        return replace(self.memory.read(memory, query), routing=self.count)

    def write(self, memory: Any, seen: Seen) -> Any:
        return self.memory.write(memory, seen)

    def footprint(self, memory: Any) -> Footprint:
        return self.memory.footprint(memory)
