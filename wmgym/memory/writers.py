"""WorldTrace's writers: what is kept of chunks that leave the recent window, in a constant number of slots.

field        the mean of its members' keys before rotation, and of their values. Rotated to one position it has the mean attention logit
             of its members at that position: K(t_v) = R(t_v) 1/M sum R(-t_m) K_m (the page's Field formula; here the keys were never
             rotated). With pose rotation the slot stands at the pose of one of its middle members.
naive_mean   the mean of keys that were rotated to their own positions: phases cancel. The control.
landmark     scene entries, verbatim and frozen: a chunk whose pooled keys are far from those of every landmark so far.

How members are grouped into Field's slots is not published. Here each slot holds M chunks in a row; when all slots are full, neighbours
are merged and M doubles, so that the slots always cover the whole past evenly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from wmgym.core import KeysValues
from wmgym.memory.slots import ChunkKV, Slots
from wmgym.nets.phases import PhaseConfig, place_phases
from wmgym.nets.rope import rotate
from wmgym.tree import Shared, map_tensors


def _spread(blank: ChunkKV, batch: int, slots: int) -> ChunkKV:
    return map_tensors(lambda x: x.new_zeros(batch, slots, *x.shape[1:]), blank)


def _pick(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where mask [B, S] is set, else b; both [B, S, ...]."""
    return torch.where(mask.view(*mask.shape, *[1] * (a.ndim - 2)), a, b)


# -- means ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeanState:
    slots: Slots
    size: Tensor  # int64 [B]: M, members of a full slot


@dataclass(frozen=True)
class MeanWriter:
    """Field, and with `rotated` the naive mean. `phases` is the network's, for the naive mean's rotations."""

    slots: int
    chunk: int  # F
    rotated: bool = False
    phases: PhaseConfig | None = None

    def __post_init__(self) -> None:
        if self.slots < 2 or self.slots % 2:
            raise ValueError(f"means need an even number of slots of at least 2, since neighbours are merged, got {self.slots}")
        if self.rotated and self.phases is None:
            raise ValueError("the naive mean needs the network's phases, to rotate keys to their own positions")

    def init(self, batch: int, blank: ChunkKV) -> MeanState:
        chunks = _spread(blank, batch, self.slots)
        empty = torch.zeros_like(chunks.first)
        return MeanState(Slots(chunks, empty, empty, empty), torch.ones_like(empty[:, 0]))

    def write(self, state: MeanState, chunk: ChunkKV, leaves: Tensor) -> MeanState:
        full = (state.slots.members >= state.size[:, None]).all(1) & leaves
        state = self._halved(state, full)
        slots = state.slots
        filled = (slots.members > 0).sum(1)
        last = (filled - 1).clamp(min=0)
        room = (filled > 0) & (slots.members.gather(1, last[:, None])[:, 0] < state.size)
        target = torch.where(room, last, filled.clamp(max=self.slots - 1))
        here = (torch.arange(self.slots, device=target.device) == target[:, None]) & leaves[:, None]  # bool [B, S]
        new = Slots(map_tensors(lambda x: x[:, None].expand(-1, self.slots, *x.shape[1:]), chunk), *[chunk.first[:, None]] * 2, here.long())
        return replace(state, slots=self._added(slots, new, here))

    def read(self, state: MeanState) -> Slots:
        return state.slots

    def footprint(self, state: MeanState, chunk_bytes: int) -> Tensor:
        return (state.slots.members > 0).sum(1) * chunk_bytes

    def _halved(self, state: MeanState, full: Tensor) -> MeanState:
        """Neighbouring slots merged in the rows of `full`, which then have half of them free."""
        slots, half = state.slots, self.slots // 2
        even, odd = (map_tensors(lambda x, k=k: x[:, k::2], slots) for k in (0, 1))
        merged = self._added(even, odd, torch.ones_like(even.members, dtype=torch.bool))
        both = map_tensors(lambda x: torch.cat([x, x.new_zeros(len(x), half, *x.shape[2:])], 1), merged)
        everywhere = full[:, None].expand(-1, self.slots)
        return MeanState(map_tensors(lambda a, b: _pick(everywhere, a, b), both, slots), torch.where(full, 2 * state.size, state.size))

    def _added(self, old: Slots, new: Slots, where: Tensor) -> Slots:
        """Slots with the members of others added, where bool [B, S] says so."""
        a, b = old.members.float(), new.members.float()
        share = torch.where(where, b / (a + b).clamp(min=1), torch.zeros_like(a))  # of the new ones in the mean
        first = (old.members == 0) & where

        def mean(x: Tensor, y: Tensor) -> Tensor:
            weight = share.view(*share.shape, *[1] * (x.ndim - 2)).to(x.dtype)
            return torch.where(weight > 0, x + weight * (y.to(x.dtype) - x), x)

        layers = []
        for left, right in zip(old.chunks.layers, new.chunks.layers, strict=True):
            keys = right.keys
            if self.rotated:  # keys of a slot are rotated to their positions relative to its first member
                keys = self._turned(keys, torch.where(first, torch.zeros_like(old.oldest), new.oldest - old.oldest))
            layers.append(KeysValues(mean(left.keys, keys), mean(left.values, right.values)))
        # a middle member's pose stands for all: the newer of two takes over while it weighs as much
        newer = where & (share >= 0.5)
        chunks = ChunkKV(
            tuple(layers),
            _pick(newer | first, new.chunks.poses.expand_as(old.chunks.poses), old.chunks.poses),
            _pick(newer | first, new.chunks.valid.expand_as(old.chunks.valid), old.chunks.valid),
            _pick(first, new.chunks.first.expand_as(old.chunks.first), old.chunks.first),
        )
        return Slots(
            chunks,
            torch.where(first, new.oldest, old.oldest),
            torch.where(where & (new.members > 0), new.newest, old.newest),
            old.members + torch.where(where, new.members, torch.zeros_like(new.members)),
        )

    def _turned(self, keys: Tensor, ahead: Tensor) -> Tensor:
        """Keys [B, S, F, N, heads, d] rotated in time by `ahead` [B, S] frames."""
        assert self.phases is not None
        pairs = self.phases.pairs
        angles = place_phases(ahead, self.phases)[:, :, :1, : pairs.time]  # [B, S, 1, t]
        angles = F.pad(angles, (0, pairs.total - pairs.time))[:, :, :, None, None]  # the same for all frames, tokens and heads
        return rotate(keys, angles.cos(), angles.sin())


# -- landmarks ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LandmarkState:
    chunks: Shared  # of ChunkKV, rows [B, S]: branches share the landmarks that they have in common
    first: Tensor  # int64 [B, S]: time of each landmark's first frame
    held: Tensor  # bool [B, S]
    pooled: Tensor  # float32 [B, S, heads * d]: mean key of each landmark


@dataclass(frozen=True)
class LandmarkWriter:
    """Scene entries, verbatim and frozen on insertion.

    threshold: cosine distance of pooled keys of the middle layer beyond which a chunk is a new scene. The page says neither how the signal
    is pooled nor what it is compared with: here with every landmark, so that a scene seen again is not stored again (`compare="last"`
    compares with the newest alone). overflow: with all slots taken, "keep" stores nothing more, "replace" drops the oldest.
    """

    slots: int
    threshold: float = 0.15
    compare: str = "all"
    overflow: str = "keep"

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"landmarks need at least 1 slot, got {self.slots}")
        if not 0 <= self.threshold <= 2:
            raise ValueError(f"landmark_threshold is a cosine distance in [0, 2], got {self.threshold}")
        for name, allowed in (("compare", ("all", "last")), ("overflow", ("keep", "replace"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"landmark_{name} must be one of {list(allowed)}, got {getattr(self, name)!r}")

    def init(self, batch: int, blank: ChunkKV) -> LandmarkState:
        heads, width = blank.layers[0].keys.shape[-2:]
        nothing = torch.zeros(batch, self.slots, dtype=torch.int64, device=blank.first.device)
        pooled = torch.zeros(batch, self.slots, heads * width, device=blank.first.device)
        return LandmarkState(Shared(blank, nothing), nothing, nothing > 0, pooled)

    def write(self, state: LandmarkState, chunk: ChunkKV, leaves: Tensor) -> LandmarkState:
        pooled, filled = pooled_keys(chunk), state.held.sum(1)
        distance = 1 - F.cosine_similarity(state.pooled, pooled[:, None], dim=-1)  # [B, S]
        rank = torch.arange(self.slots, device=filled.device)
        relevant = (rank < filled[:, None]) if self.compare == "all" else (rank == filled[:, None] - 1)
        # rounded, so that the size of a batch cannot change a choice
        novel = (torch.where(relevant, distance, 2.0).amin(1) * 1024).round() > round(self.threshold * 1024)
        enters = leaves & ((filled == 0) | novel)
        full = filled == self.slots
        if self.overflow == "keep":
            enters = enters & ~full
        else:
            state = self._shifted(state, enters & full)
            filled = state.held.sum(1)
        here = (rank == filled[:, None]) & enters[:, None]
        return LandmarkState(
            _stored(state.chunks, chunk, enters, here),
            torch.where(here, chunk.first[:, None], state.first),
            state.held | here,
            _pick(here, pooled[:, None].expand_as(state.pooled), state.pooled),
        )

    def read(self, state: LandmarkState) -> Slots:
        return Slots(state.chunks.dense(), state.first, state.first, state.held.long())

    def footprint(self, state: LandmarkState, chunk_bytes: int) -> Tensor:
        return state.held.sum(1) * chunk_bytes

    def _shifted(self, state: LandmarkState, rows: Tensor) -> LandmarkState:
        """Without its oldest landmark in some rows."""
        everywhere = rows[:, None].expand(-1, self.slots)

        def shift(x: Tensor) -> Tensor:
            return _pick(everywhere, torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1), x)

        chunks = Shared(state.chunks.data, shift(state.chunks.rows))
        return LandmarkState(chunks, shift(state.first), shift(state.held), shift(state.pooled))


def _stored(chunks: Shared, new: ChunkKV, lanes: Tensor, here: Tensor) -> Shared:
    """A store with the chunks of some lanes (bool [B]) more, seen in the slots of `here` (bool [B, S])."""
    which = torch.nonzero(lanes).flatten()
    if not len(which):
        return chunks
    added = map_tensors(lambda old, x: torch.cat([old, x[which].to(old.dtype)]), chunks.data, new)
    number = torch.zeros_like(lanes, dtype=torch.int64).index_put((which,), len(chunks) + torch.arange(len(which), device=which.device))
    joined = Shared(added, torch.where(here, number[:, None], chunks.rows))
    return joined.compact() if joined.excessive else joined


def pooled_keys(chunk: ChunkKV) -> Tensor:
    """Mean unrotated key of the middle layer over a chunk's frames and tokens: float32 [B, heads * d]."""
    keys = chunk.layers[len(chunk.layers) // 2].keys.float()  # [B, F, N, heads, d]
    weight = chunk.valid[..., None, None, None].to(keys.dtype)
    return ((keys * weight).sum((1, 2)) / (weight.sum((1, 2)) * keys.shape[2]).clamp(min=1)).flatten(1)
