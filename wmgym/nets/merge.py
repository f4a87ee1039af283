"""Merge several contexts into one, for networks that read one stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wmgym.core import Context


def merge(contexts: Sequence[Context]) -> Context:
    """One context from those of several memories. Frames are concatenated; any other field may come from one memory only."""
    return Context(
        tuple(group for context in contexts for group in context.frames),
        **{name: _only(contexts, name) for name in ("kv", "tokens", "adapters", "state", "retrieval", "routing")},
    )


def _only(contexts: Sequence[Context], name: str) -> Any:
    given = [getattr(context, name) for context in contexts if getattr(context, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{len(given)} memories of one world give {name}, and this network reads only one stream")
    return given[0] if given else None
