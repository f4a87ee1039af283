"""Several memories, one context."""

from __future__ import annotations

from wmgym.core import Context


def merge(contexts: list[Context]) -> Context:
    """What several memories recall, as one context. At most one of them may hand over keys and values, and one a recall."""
    kv = [c.kv for c in contexts if c.kv is not None]
    recalls = [c.recall for c in contexts if c.recall is not None]
    if len(kv) > 1 or len(recalls) > 1:
        raise ValueError("two memories of one world both hand over keys and values, or both retrieve: which one should be read?")
    frames = tuple(group for c in contexts for group in c.frames)
    return Context(frames, kv[0] if kv else None, recalls[0] if recalls else None)
