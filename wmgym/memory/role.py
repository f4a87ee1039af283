"""A memory of one expert among several: its contexts say who reads them, and it takes its own layers of a trace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from wmgym.core import Context, Query, Seen, Trace
from wmgym.memory.around import Around
from wmgym.nets.composed import Role


@dataclass(frozen=True)
class RoleMemory(Around):
    """`core.Memory`. first, layers: its part of the keys and values in a trace; layers=0 if it stores none."""

    role: Role
    first: int = 0
    layers: int = 0

    def read(self, memory: Any, query: Query) -> Context:
        return replace(super().read(memory, query), role=self.role)

    def write(self, memory: Any, seen: Seen) -> Any:
        if seen.trace is not None:
            seen = replace(seen, trace=Trace(seen.trace.kv[self.first : self.first + self.layers], seen.trace.state))
        return super().write(memory, seen)
