"""Several contexts as one, for networks that read one stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wmgym.core import Context


def merge(contexts: Sequence[Context]) -> Context:
    """What several memories hand over, as one context. Frames are joined; of everything else at most one memory may give any."""
    return Context(
        tuple(group for context in contexts for group in context.frames),
        *(_only(contexts, name) for name in ("kv", "tokens", "adapters", "state", "retrieval")),
    )


def _only(contexts: Sequence[Context], name: str) -> Any:
    given = [getattr(context, name) for context in contexts if getattr(context, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{len(given)} memories of one world each hand over {name}, and this network reads one stream")
    return given[0] if given else None
