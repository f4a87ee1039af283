"""A memory around another one: the same, but for what a subclass changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from wmgym.core import Context, Footprint, Memory, Query, Seen


@dataclass(frozen=True)
class Around:
    """`core.Memory` that does what `memory` does."""

    memory: Memory[Any]

    @property
    def needs(self) -> frozenset[str]:
        return self.memory.needs

    @property
    def num_retrieved(self) -> int:
        return self.memory.num_retrieved

    def init(self, batch: int, keys: Tensor) -> Any:
        return self.memory.init(batch, keys)

    def read(self, memory: Any, query: Query) -> Context:
        return self.memory.read(memory, query)

    def write(self, memory: Any, seen: Seen) -> Any:
        return self.memory.write(memory, seen)

    def footprint(self, memory: Any) -> Footprint:
        return self.memory.footprint(memory)
