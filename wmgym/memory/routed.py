"""A memory whose frames are read by a mixture of contexts (`nets/routing.py`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from wmgym.core import Context, Query
from wmgym.memory.around import Around


@dataclass(frozen=True)
class RoutedMemory(Around):
    """`core.Memory`: another one, of whose frames each query reads `count`."""

    count: int

    def read(self, memory: Any, query: Query) -> Context:
        return replace(super().read(memory, query), routing=self.count)
