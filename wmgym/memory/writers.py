"""WorldTrace's writers: store the chunks that leave the recent window in a constant number of slots.

field        the mean of the members' unrotated keys, and of their values. Rotated to a position, its attention logit is the mean logit of
             its members at that position: K(t_v) = R(t_v) 1/M sum R(-t_m) K_m (the page's Field formula; here keys are stored
             unrotated). With pose rotation the slot has the pose of one of its middle members.
naive_mean   the mean of keys that are rotated to their own positions, in which phases cancel. The control.
landmark     verbatim chunks of new scenes: a chunk is stored if its pooled keys are far from those of all landmarks.

The grouping of members into Field's slots is not published. Here each slot holds M consecutive chunks. When all slots are full,
neighbours are merged and M doubles, so the slots always cover the whole past evenly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from wmgym.core import KeysValues
from wmgym.memory import bank as banks
from wmgym.memory.bank import Bank
from wmgym.memory.slots import TAIL, ChunkKV, Slots
from wmgym.nets.phases import PhaseConfig, place_phases
from wmgym.nets.rope import rotate
from wmgym.tree import map_tensors


def _zeros(blank: ChunkKV, batch: int, slots: int) -> ChunkKV:
    """Chunks [B, S, ...] of zeros."""
    return map_tensors(lambda x: x.new_zeros(batch, slots, *x.shape[1:]), blank)


def _pick(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where mask [B, S] is set, else b; both [B, S, ...]."""
    return torch.where(mask.view(*mask.shape, *[1] * (a.ndim - 2)), a, b)


# -- means ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeanState:
    slots: Slots
    size: Tensor  # int64 [B]: M, number of members of a full slot


@dataclass(frozen=True)
class MeanWriter:
    """Writer `field`, or `naive_mean` with `rotated`. phases: the network's, which `naive_mean` needs to rotate keys."""

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
        chunks = _zeros(blank, batch, self.slots)
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
        first = chunk.first[:, None]
        new = Slots(map_tensors(lambda x: x[:, None].expand(-1, self.slots, *x.shape[1:]), chunk), first, first, here.long())
        return replace(state, slots=self._added(slots, new, here))

    def read(self, state: MeanState) -> Slots:
        return state.slots

    def full(self, state: MeanState) -> Tensor:
        return (state.slots.members > 0).sum(1)

    def _halved(self, state: MeanState, full: Tensor) -> MeanState:
        """Merge neighbouring slots in the rows of `full`, so that half of their slots are free."""
        slots, half = state.slots, self.slots // 2
        even, odd = (map_tensors(lambda x, k=k: x[:, k::2], slots) for k in (0, 1))
        merged = self._added(even, odd, torch.ones_like(even.members, dtype=torch.bool))
        both = map_tensors(lambda x: torch.cat([x, x.new_zeros(len(x), half, *x.shape[2:])], 1), merged)
        everywhere = full[:, None].expand(-1, self.slots)
        return MeanState(map_tensors(lambda a, b: _pick(everywhere, a, b), both, slots), torch.where(full, 2 * state.size, state.size))

    def _added(self, old: Slots, new: Slots, where: Tensor) -> Slots:
        """Add the members of `new` to the slots of `old` where the mask (bool [B, S]) is set."""
        a, b = old.members.float(), new.members.float()
        share = torch.where(where, b / (a + b).clamp(min=1), torch.zeros_like(a))  # weight of the new members in the mean
        first = (old.members == 0) & where

        def mean(x: Tensor, y: Tensor) -> Tensor:
            weight = share.view(*share.shape, *[1] * (x.ndim - 2)).to(x.dtype)
            return torch.where(weight > 0, x + weight * (y.to(x.dtype) - x), x)

        layers = []
        for left, right in zip(old.chunks.layers, new.chunks.layers, strict=True):
            keys = right.keys
            if self.rotated:  # keys are rotated to their position relative to the slot's first member
                keys = self._turned(keys, torch.where(first, torch.zeros_like(old.oldest), new.oldest - old.oldest))
            layers.append(KeysValues(mean(left.keys, keys), mean(left.values, right.values)))
        # the slot's pose is that of a middle member: the newer side replaces it while its weight is at least as large
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
        angles = F.pad(angles, (0, pairs.total - pairs.time))[:, :, :, None, None]  # equal for all frames, tokens and heads
        return rotate(keys, angles.cos(), angles.sin())


# -- landmarks ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LandmarkState:
    chunks: Bank  # of ChunkKV; times count the chunks that ever were landmarks. Branches share common landmarks
    first: Tensor  # int64 [B, S]: time of each landmark's first frame
    held: Tensor  # bool [B, S]
    pooled: Tensor  # float32 [B, S, heads * d]: mean key of each landmark
    entered: Tensor  # int64 [B]: chunks that ever were landmarks


@dataclass(frozen=True)
class LandmarkWriter:
    """Writer `landmark`: verbatim chunks of new scenes. A stored chunk never changes.

    threshold: a chunk is a new scene above this cosine distance of the middle layer's pooled keys. compare: "all" compares with every
    landmark, so that a scene that is seen again is not stored again; "last" compares with the newest landmark only. (The page
    specifies neither the pooling nor the comparison.) overflow, if all slots are full: "keep" stores nothing more, "replace" drops the
    oldest landmark.
    """

    slots: int
    threshold: float = 0.15
    compare: str = "all"
    overflow: str = "keep"

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"landmarks need at least 1 slot, got {self.slots}")
        if not 0 <= self.threshold <= 2:
            raise ValueError(f"landmark_threshold must be a cosine distance in [0, 2], got {self.threshold}")
        for name, allowed in (("compare", ("all", "last")), ("overflow", ("keep", "replace"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"landmark_{name} must be one of {list(allowed)}, got {getattr(self, name)!r}")

    def init(self, batch: int, blank: ChunkKV) -> LandmarkState:
        heads, width = blank.layers[0].keys.shape[-2:]
        nothing = torch.zeros(batch, self.slots, dtype=torch.int64, device=blank.first.device)
        pooled = torch.zeros(batch, self.slots, heads * width, device=blank.first.device)
        return LandmarkState(banks.empty(batch, self.slots, TAIL, blank), nothing, nothing > 0, pooled, nothing[:, 0])

    def write(self, state: LandmarkState, chunk: ChunkKV, leaves: Tensor) -> LandmarkState:
        pooled, filled = pooled_keys(chunk), state.held.sum(1)
        distance = 1 - F.cosine_similarity(state.pooled, pooled[:, None], dim=-1)  # [B, S]
        rank = torch.arange(self.slots, device=filled.device)
        relevant = (rank < filled[:, None]) if self.compare == "all" else (rank == filled[:, None] - 1)
        # rounded, so that the batch size cannot change a choice
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
            _stored(state.chunks, chunk, enters, state.entered),
            torch.where(here, chunk.first[:, None], state.first),
            state.held | here,
            _pick(here, pooled[:, None].expand_as(state.pooled), state.pooled),
            state.entered + enters,
        )

    def read(self, state: LandmarkState) -> Slots:
        newest, _ = banks.newest(state.chunks, self.slots)
        place = state.held.sum(1, keepdim=True) - 1 - torch.arange(self.slots, device=newest.device)  # of the oldest, the next, ...
        chunks = banks.take(state.chunks, newest.gather(1, place.clamp(min=0)))
        return Slots(chunks, state.first, state.first, state.held.long())

    def full(self, state: LandmarkState) -> Tensor:
        return state.held.sum(1)

    def _shifted(self, state: LandmarkState, rows: Tensor) -> LandmarkState:
        """Remove the oldest landmark in some rows."""
        everywhere = rows[:, None].expand(-1, self.slots)

        def shift(x: Tensor) -> Tensor:
            return _pick(everywhere, torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1), x)

        return replace(state, first=shift(state.first), held=shift(state.held), pooled=shift(state.pooled))


def _stored(chunks: Bank, new: ChunkKV, lanes: Tensor, numbers: Tensor) -> Bank:
    """Add the chunks of some lanes (bool [B]) as landmarks of these numbers [B]. A lane keeps its newest ones, as many as it has slots."""
    if lanes.device.type == "cpu" and not bool(lanes.any()):  # on a CPU the test is free; on a GPU it would wait for the device
        return chunks
    return banks.write(chunks, map_tensors(lambda x: x[:, None], new), new.poses[:, -1:], numbers[:, None], lanes[:, None])


def pooled_keys(chunk: ChunkKV) -> Tensor:
    """Mean unrotated key of the middle layer over a chunk's frames and tokens: float32 [B, heads * d]."""
    keys = chunk.layers[len(chunk.layers) // 2].keys.float()  # [B, F, N, heads, d]
    weight = chunk.valid[..., None, None, None].to(keys.dtype)
    return ((keys * weight).sum((1, 2)) / (weight.sum((1, 2)) * keys.shape[2]).clamp(min=1)).flatten(1)
