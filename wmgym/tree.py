"""Row operations on any dataclass, tuple or dict of batch-first tensors: how running worlds are branched, reset and moved.

A leaf is a tensor whose axis 0 is the batch, or a `Shared` (a tensor whose rows many lanes may read without owning a copy), or
a plain python value, which must be the same on both sides of a `where` (ints: the larger is kept, see `where`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Shared:
    """Rows of `data` that lanes read but never write: lane b sees `data[rows[b]]`, one row or several.

    Repeating or selecting lanes moves indices only, so a thousand branches of one moment hold one copy of its past.
    """

    data: Tensor  # [P, ...]
    rows: Tensor  # int64 [B] or [B, S], each in [0, P)

    @classmethod
    def own(cls, data: Tensor) -> Shared:
        """Each lane its own row."""
        return cls(data, torch.arange(len(data), device=data.device))

    def take(self, index: Tensor) -> Tensor:
        """Entries along axis 1 of each lane's one row: index int64 [B, n] -> [B, n, ...]."""
        return self.data[self.rows[:, None], index]

    def dense(self) -> Tensor:
        """A copy of what each lane sees: [B, ...]."""
        return self.data[self.rows]

    def compact(self) -> Shared:
        """The same without the rows that no lane sees."""
        seen, rows = self.rows.unique(return_inverse=True)
        return Shared(self.data[seen], rows)


def _map(function: Callable[..., Any], trees: Sequence[Any]) -> Any:
    """Apply `function` to matching leaves of equal trees."""
    first = trees[0]
    if isinstance(first, (Tensor, Shared)):
        return function(*trees)
    if is_dataclass(first) and not isinstance(first, type):
        changed = {f.name: _map(function, [getattr(t, f.name) for t in trees]) for f in fields(first)}
        return replace(first, **changed)
    if isinstance(first, tuple):
        if any(len(t) != len(first) for t in trees):
            raise ValueError(f"trees differ: tuples of length {[len(t) for t in trees]}")
        return tuple(_map(function, list(leaves)) for leaves in zip(*trees, strict=True))
    if isinstance(first, dict):
        return {k: _map(function, [t[k] for t in trees]) for k in first}
    return function(*trees)


def _is_leaf(value: Any) -> bool:
    return isinstance(value, (Tensor, Shared))


def select(tree: T, index: Tensor) -> T:
    """Rows `index` (int64 [n]) of a batch, in that order; rows may repeat."""

    def pick(leaf: Any) -> Any:
        if isinstance(leaf, Shared):
            return Shared(leaf.data, leaf.rows[index])
        return leaf[index] if isinstance(leaf, Tensor) else leaf

    return _map(pick, [tree])


def repeat(tree: T, n: int) -> T:
    """Each row n times, next to each other: B rows -> B * n rows. Shared leaves stay shared."""

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, Shared):
            return Shared(leaf.data, leaf.rows.repeat_interleave(n, 0))
        return leaf.repeat_interleave(n, 0) if isinstance(leaf, Tensor) else leaf

    return _map(copy, [tree])


def where(mask: Tensor, new: T, old: T) -> T:
    """Rows of `new` where `mask` (bool [B]) is set, rows of `old` elsewhere.

    Python ints are high-water marks (how much of a buffer is in use): the larger one is kept. Other plain values must agree.
    """

    def choose(a: Any, b: Any) -> Any:
        if isinstance(a, Shared):
            return _where_shared(mask, a, b)
        if isinstance(a, Tensor):
            return torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b)
        if isinstance(a, int) and isinstance(b, int):
            return max(a, b)
        if a != b:
            raise ValueError(f"trees differ: {a!r} and {b!r}")
        return a

    return _map(choose, [new, old])


def _where_shared(mask: Tensor, new: Shared, old: Shared) -> Shared:
    chosen = mask.view(-1, *[1] * (old.rows.ndim - 1))
    if new.data is old.data:
        return Shared(old.data, torch.where(chosen, new.rows, old.rows))
    joined = Shared(torch.cat([old.data, new.data]), torch.where(chosen, new.rows + len(old.data), old.rows))
    return joined.compact() if len(joined.data) > joined.rows.numel() else joined  # larger than if nothing were shared


def concat(trees: Sequence[T]) -> T:
    """Batches one after the other."""

    def join(*leaves: Any) -> Any:
        if isinstance(leaves[0], Shared):
            starts, total = [], 0
            for leaf in leaves:
                starts.append(total)
                total += len(leaf.data)
            rows = torch.cat([leaf.rows + start for leaf, start in zip(leaves, starts, strict=True)])
            return Shared(torch.cat([leaf.data for leaf in leaves]), rows)
        if isinstance(leaves[0], Tensor):
            return torch.cat(leaves)
        return max(leaves) if isinstance(leaves[0], int) else leaves[0]

    return _map(join, list(trees))


def to(tree: T, device: torch.device | str) -> T:
    """The same tree on another device."""

    def move(leaf: Any) -> Any:
        if isinstance(leaf, Shared):
            return Shared(leaf.data.to(device), leaf.rows.to(device))
        return leaf.to(device) if isinstance(leaf, Tensor) else leaf

    return _map(move, [tree])


def leaves(tree: Any) -> dict[str, Any]:
    """Path -> tensor or plain value, with Shared split into its two tensors: what a state file holds."""
    out: dict[str, Any] = {}

    def visit(path: str, value: Any) -> None:
        if value is None:
            out[path] = None
        elif is_dataclass(value) and not isinstance(value, type):
            for f in fields(value):
                visit(f"{path}.{f.name}" if path else f.name, getattr(value, f.name))
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                visit(f"{path}.{i}" if path else str(i), item)
        elif isinstance(value, dict):
            for key, item in value.items():
                visit(f"{path}.{key}" if path else str(key), item)
        else:
            out[path] = value

    visit("", tree)
    return out


def like(template: T, values: dict[str, Any]) -> T:
    """A tree of the template's structure holding `values` (from `leaves`); a missing path raises `ValueError`."""

    def build(path: str, value: Any) -> Any:
        if value is not None and is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{f.name: build(f"{path}.{f.name}" if path else f.name, getattr(value, f.name)) for f in fields(value)})
        if isinstance(value, tuple):
            return tuple(build(f"{path}.{i}" if path else str(i), item) for i, item in enumerate(value))
        if isinstance(value, dict):
            return {k: build(f"{path}.{k}" if path else str(k), item) for k, item in value.items()}
        if path not in values:
            raise ValueError(f"the saved state lacks {path!r}")
        return values[path]

    return build("", template)
