"""Row operations on any dataclass, tuple or dict of batch-first tensors. They branch, reset and move running worlds.

A leaf is a tensor whose axis 0 is the batch, or one of

    Shared      rows of stored tensors that many lanes can read without a copy
    Slots       a tensor [B, S, ...] that grows along axis 1; two of different S are padded to the larger
    HighWater   a count for all rows together; of two, the larger is kept

or a plain Python value, which must be equal in all trees that are combined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Shared:
    """Rows of `data` that lanes read but never write: lane b sees `data[rows[b]]`, one row or several.

    Repeating or selecting lanes moves only indices, so a thousand branches of one state hold one copy of its past. Where lanes read
    several rows, S may grow: missing indices are padded with 0, and the lane must not read those. What a lane reads may not depend on P,
    which depends on the other lanes.
    """

    data: Any  # a tensor [P, ...], or a tree of them
    rows: Tensor  # int64 [B] or [B, S], in [0, P)

    @classmethod
    def own(cls, data: Any) -> Shared:
        """One row per lane."""
        first = first_tensor(data)
        return cls(data, torch.arange(len(first), device=first.device))

    def __len__(self) -> int:
        """P, the number of stored rows."""
        return len(first_tensor(self.data))

    def take(self, index: Tensor) -> Any:
        """Entries along axis 1 of each lane's row (`rows` is [B]): index int64 [B, n] -> [B, n, ...]."""
        rows = self.rows[:, None]
        return map_tensors(lambda data: data[rows, index], self.data)

    def dense(self) -> Any:
        """A copy of what each lane reads: [B, ...]."""
        return map_tensors(lambda data: data[self.rows], self.data)

    def compact(self) -> Shared:
        """The same without the rows that no lane reads."""
        seen, rows = self.rows.unique(return_inverse=True)
        return Shared(map_tensors(lambda data: data[seen], self.data), rows)

    @property
    def excessive(self) -> bool:
        """Whether more rows are stored than without sharing."""
        return len(self) > self.rows.numel()


@dataclass(frozen=True)
class Slots:
    """A tensor [B, S, ...] with a fill value, so that states of different S can be combined."""

    values: Tensor  # [B, S, ...]
    fill: float = 0

    def padded(self, size: int) -> Tensor:
        """The values with at least `size` slots: [B, max(S, size), ...]."""
        return _pad(self.values, size, self.fill)


@dataclass(frozen=True)
class HighWater:
    """Length of a buffer that is in use in at least one row. It depends on all lanes, so what a lane reads may not depend on it."""

    count: int


LEAVES = (Tensor, Shared, Slots, HighWater)


def _pad(values: Tensor, size: int, fill: float) -> Tensor:
    missing = size - values.shape[1]
    return values if missing <= 0 else F.pad(values, (*(0, 0) * (values.ndim - 2), 0, missing), value=fill)


def _map(function: Callable[..., Any], trees: Sequence[Any]) -> Any:
    """Apply `function` to the corresponding leaves of trees of one structure."""
    first = trees[0]
    if isinstance(first, LEAVES):
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


def map_tensors(function: Callable[..., Tensor], *trees: Any) -> Any:
    """The first tree with each tensor replaced by `function` of it and the corresponding tensors of the other trees. Other leaves stay."""
    return _map(lambda *leaves: function(*leaves) if isinstance(leaves[0], Tensor) else leaves[0], trees)


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with each leaf replaced by `function` of it: tensors, `Shared`, `Slots`, `HighWater` and plain values."""
    return _map(function, [tree])


def tensors(tree: Any) -> list[Tensor]:
    """The leaves of a tree that are tensors, in order."""
    return [leaf for leaf in leaves(tree).values() if isinstance(leaf, Tensor)]


def first_tensor(tree: Any) -> Tensor:
    """The first tensor of a tree, which has its batch size and device."""
    found = tensors(tree)
    if not found:
        raise ValueError(f"{type(tree).__name__} holds no tensor")
    return found[0]


def select(tree: T, index: Tensor) -> T:
    """Rows `index` (int64 [n]) of a batch, in that order; rows may repeat."""
    return _rows(tree, lambda tensor: tensor[index])


def repeat(tree: T, n: int) -> T:
    """Each row n times, consecutively: B rows -> B * n rows. Shared leaves stay shared."""
    return _rows(tree, lambda tensor: tensor.repeat_interleave(n, 0))


def _rows(tree: T, pick: Callable[[Tensor], Tensor]) -> T:
    def apply(leaf: Any) -> Any:
        if isinstance(leaf, Shared):
            return Shared(leaf.data, pick(leaf.rows))
        if isinstance(leaf, Slots):
            return Slots(pick(leaf.values), leaf.fill)
        return pick(leaf) if isinstance(leaf, Tensor) else leaf

    return _map(apply, [tree])


def where(mask: Tensor, new: T, old: T) -> T:
    """Rows of `new` where `mask` (bool [B]) is set, rows of `old` elsewhere."""

    def mix(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b)

    def choose(a: Any, b: Any) -> Any:
        if isinstance(a, Shared):
            return _where_shared(mix, a, b)
        if isinstance(a, Slots):
            size = max(a.values.shape[1], b.values.shape[1])
            return Slots(mix(a.padded(size), b.padded(size)), _agreed(a.fill, b.fill))
        if isinstance(a, Tensor):
            return mix(a, b)
        return _plain(a, b)

    return _map(choose, [new, old])


def _where_shared(mix: Callable[[Tensor, Tensor], Tensor], new: Shared, old: Shared) -> Shared:
    new_rows, old_rows = _same_size([new.rows, old.rows])
    if _same_data(new.data, old.data):
        return Shared(old.data, mix(new_rows, old_rows))
    data = map_tensors(lambda a, b: torch.cat([a, b]), old.data, new.data)
    joined = Shared(data, mix(new_rows + len(old), old_rows))
    return joined.compact() if joined.excessive else joined


def _same_size(rows: Sequence[Tensor]) -> list[Tensor]:
    if rows[0].ndim == 1:
        return list(rows)
    size = max(r.shape[1] for r in rows)
    return [_pad(r, size, 0) for r in rows]


def _same_data(a: Any, b: Any) -> bool:
    return all(x is y for x, y in zip(tensors(a), tensors(b), strict=True))


def _agreed(a: Any, b: Any) -> Any:
    if a != b:
        raise ValueError(f"trees differ: {a!r} and {b!r}")
    return a


def _plain(*leaves: Any) -> Any:
    """Combine leaves that are not tensors: the largest `HighWater`, or the value, which must be equal in all trees."""
    if isinstance(leaves[0], HighWater):
        return max(leaves, key=lambda mark: mark.count)
    for leaf in leaves[1:]:
        _agreed(leaves[0], leaf)
    return leaves[0]


def concat(trees: Sequence[T]) -> T:
    """Concatenate batches."""

    def join(*leaves: Any) -> Any:
        first = leaves[0]
        if isinstance(first, Shared):
            starts = [sum(len(leaf) for leaf in leaves[:i]) for i in range(len(leaves))]
            rows = [rows + start for rows, start in zip(_same_size([leaf.rows for leaf in leaves]), starts, strict=True)]
            return Shared(map_tensors(lambda *parts: torch.cat(parts), *(leaf.data for leaf in leaves)), torch.cat(rows))
        if isinstance(first, Slots):
            size = max(leaf.values.shape[1] for leaf in leaves)
            return Slots(torch.cat([leaf.padded(size) for leaf in leaves]), _plain(*(leaf.fill for leaf in leaves)))
        return torch.cat(leaves) if isinstance(first, Tensor) else _plain(*leaves)

    return _map(join, list(trees))


def to(tree: T, device: torch.device | str) -> T:
    """The same tree on another device."""

    def move(leaf: Any) -> Any:
        if isinstance(leaf, Shared):
            return Shared(to(leaf.data, device), leaf.rows.to(device))
        if isinstance(leaf, Slots):
            return Slots(leaf.values.to(device), leaf.fill)
        return leaf.to(device) if isinstance(leaf, Tensor) else leaf

    return _map(move, [tree])


def leaves(tree: Any) -> dict[str, Any]:
    """Path -> tensor or plain value, with compound leaves split into their parts. State files store this."""
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
    """A tree with the template's structure and `values` (from `leaves`). A missing path raises `ValueError`."""

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
