"""A memory of one expert among several: its contexts say who reads them, and it takes its own layers of a trace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from wmgym.core import Context, Footprint, Memory, Query, Seen, Trace
from wmgym.nets.composed import Role


@dataclass(frozen=True)
class RoleMemory:
    """`core.Memory`. first, layers: its part of the keys and values in a trace; layers=0 if it stores none."""

    memory: Memory[Any]
    role: Role
    first: int = 0
    layers: int = 0

    @property
    def needs(self) -> frozenset[str]:
        return self.memory.needs

    @property
    def num_retrieved(self) -> int:
        return self.memory.num_retrieved

    def init(self, batch: int, keys: Tensor) -> Any:
        return self.memory.init(batch, keys)

    def read(self, memory: Any, query: Query) -> Context:
        return replace(self.memory.read(memory, query), role=self.role)

    def write(self, memory: Any, seen: Seen) -> Any:
        if seen.trace is not None:
            seen = replace(seen, trace=Trace(seen.trace.kv[self.first : self.first + self.layers], seen.trace.state))
        return self.memory.write(memory, seen)

    def footprint(self, memory: Any) -> Footprint:
        return self.memory.footprint(memory)
