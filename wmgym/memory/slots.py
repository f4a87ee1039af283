"""Key-value memory of chunks (WorldTrace): a verbatim recent window, and slots that a writer fills with chunks that leave it.

    finished chunk --one clean pass--> keys and values --> recent window --oldest chunk--> writer ---> slots
                                                              |                                           |
                                                              +---------- read at their positions --------+

The recent chunks are in a bank (`memory/bank.py`), so branches share them until they write. Keys are stored before rotation, so a slot can
be read at any temporal position. `positions` chooses the position of each slot:

slot_rank   its rank: slot s of n is (recent + n - s) chunks before the present, which is the paper's v_s = q - (L_train - 1 - s) F when
            all slots are full; always in the trained range
block_rel   the true distance of the slot's newest member (Infinity-RoPE's block-relative positions: the newest chunk is at the end of the
            trained range, and others keep their distance to it); old slots are outside of the trained range
centroid    the mean distance of the slot's members
absolute    the true distance of the slot's first member

For slots with one chunk the last three are equal, since rotary attention depends only on distances.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from wmgym.core import Context, ContextKV, Footprint, KeysValues, Query, Retrieval, Seen
from wmgym.memory import bank as banks
from wmgym.memory.bank import Bank
from wmgym.tree import first_tensor, map_tensors

POSITIONS = ("slot_rank", "block_rel", "centroid", "absolute")
TAIL = 2  # chunks per lane before the shared archive is rewritten


@dataclass(frozen=True)
class ChunkKV:
    """The stored form of a chunk: F frames of N tokens."""

    layers: tuple[KeysValues, ...]  # [..., F, N, heads, d] each
    poses: Tensor  # float32 [..., F, 5]
    valid: Tensor  # bool [..., F]: False for frames before the start of an opening
    first: Tensor  # int64 [...]: time of the chunk's first frame
    moves: tuple[Tensor, ...] = ()  # if kept: actions [..., F] or [..., F, A], and egomotion [..., F, 5]


@dataclass(frozen=True)
class Slots:
    """The output of a writer: S slots of one chunk each, oldest first."""

    chunks: ChunkKV  # [B, S, ...]
    oldest: Tensor  # int64 [B, S]: time of the first frame of the slot's oldest member
    newest: Tensor  # int64 [B, S]: the same for its newest member
    members: Tensor  # int64 [B, S]: number of chunks that the slot summarises; 0: empty


class Writer(Protocol):
    """Stores the chunks that leave the recent window."""

    @property
    def slots(self) -> int:
        """S, the number of slots."""
        ...

    def init(self, batch: int, blank: ChunkKV) -> Any:
        """An empty state. `blank` is a chunk [1, ...] that sets shapes, dtypes and device."""
        ...

    def write(self, state: Any, chunk: ChunkKV, leaves: Tensor) -> Any:
        """Add a chunk [B, ...] in the rows of `leaves` (bool [B])."""
        ...

    def read(self, state: Any) -> Slots:
        """The slots, full ones first."""
        ...

    def full(self, state: Any) -> Tensor:
        """Slots that are not empty: int64 [B]."""
        ...


@dataclass(frozen=True)
class SlotState:
    recent: Bank  # of ChunkKV; times count chunks
    written: Tensor  # int64 [B]: chunks written
    slots: Any  # state of the writer


@dataclass(frozen=True)
class SlotMemory:
    """`core.Memory` of keys and values: `recent` chunks verbatim, and the slots of a writer (None: no slots)."""

    layers: int
    chunk: int  # F
    tokens: int  # N
    heads: int
    head_width: int
    recent: int
    writer: Writer | None = None
    positions: str = "slot_rank"
    dtype: torch.dtype = torch.float32
    keeps_moves: bool = False  # whether the context also says what led to each frame
    action_size: int = 0  # length of a continuous action; 0: discrete actions
    needs: frozenset[str] = frozenset({"kv"})
    num_retrieved: int = 0

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise ValueError(f"memory_positions must be one of {list(POSITIONS)}, got {self.positions!r}")
        if self.recent < 1:
            raise ValueError(f"the recent window must hold at least 1 chunk, got {self.recent}")
        if self.keeps_moves and self.writer is not None:
            raise ValueError("moves are kept of the recent window only; use it without a writer")

    def blank(self, device: torch.device | str) -> ChunkKV:
        """A chunk [1, ...] of zeros."""
        chunk = blank_chunk(self.layers, self.chunk, self.tokens, self.heads, self.head_width, self.dtype, device)
        if not self.keeps_moves:
            return chunk
        actions = banks.blank_actions((1, self.chunk), self.action_size, device)
        return replace(chunk, moves=(actions, torch.zeros(1, self.chunk, 5, device=device)))

    def init(self, batch: int, keys: Tensor) -> SlotState:
        blank = self.blank(keys.device)
        slots = self.writer.init(batch, blank) if self.writer is not None else ()
        return SlotState(banks.empty(batch, self.recent, TAIL, blank), torch.zeros_like(keys[:, 0]), slots)

    def write(self, memory: SlotState, seen: Seen) -> SlotState:
        chunk, there = chunk_of(seen, self.dtype), seen.valid.any(1)
        chunk = replace(chunk, moves=(seen.actions, seen.egomotion)) if self.keeps_moves else chunk
        slots = memory.slots
        if self.writer is not None:
            old, exists = banks.newest(memory.recent, self.recent)
            leaving = map_tensors(lambda x: x[:, 0], banks.take(memory.recent, old[:, -1:]))
            slots = self.writer.write(slots, leaving, exists[:, -1] & there)
        number = torch.where(there, memory.written, -1)[:, None]
        poses = seen.poses[:, -1:]
        recent = banks.write(memory.recent, map_tensors(lambda x: x[:, None], chunk), poses, number, there[:, None])
        return SlotState(recent, memory.written + there, slots)

    def read(self, memory: SlotState, query: Query) -> Context:
        order, exists = banks.newest(memory.recent, self.recent)
        chunks = banks.take(memory.recent, order)
        now = query.times[:, :1]
        ranks = torch.arange(1, self.recent + 1, device=now.device).expand(exists.shape)
        parts = [(chunks, self.chunk * ranks, exists)]  # the recent window has no gaps, so ranks are true distances in chunks
        if self.writer is not None:
            slots = self.writer.read(memory.slots)
            held = slots.members > 0
            parts.append((slots.chunks, self._offsets(slots, held, exists.sum(1, keepdim=True), now), held))
        return Context(kv=joined(parts, self.chunk))

    def _offsets(self, slots: Slots, held: Tensor, recent: Tensor, now: Tensor) -> Tensor:
        """Temporal position of each slot's first frame, in frames before the query's first frame: [B, S]."""
        if self.positions == "slot_rank":
            rank = torch.arange(held.shape[1], device=held.device)
            return self.chunk * (recent + held.sum(1, keepdim=True) - rank)
        if self.positions == "absolute":
            return now - slots.oldest
        if self.positions == "block_rel":
            return now - slots.newest
        return now - (slots.oldest + slots.newest) / 2  # members are evenly spaced

    def footprint(self, memory: SlotState) -> Footprint:
        held = (memory.recent.times.values >= 0).sum(1)
        held = held + self.writer.full(memory.slots) if self.writer is not None else held
        return Footprint(held * self.chunk, held * chunk_bytes(memory.recent.archive.data))


def blank_chunk(
    layers: int, chunk: int, tokens: int, heads: int, head_width: int, dtype: torch.dtype, device: torch.device | str
) -> ChunkKV:
    """A chunk [1, ...] of zeros."""
    zeros = torch.zeros(1, chunk, tokens, heads, head_width, dtype=dtype, device=device)
    pose = torch.zeros(1, chunk, 5, device=device)
    return ChunkKV(
        tuple(KeysValues(zeros, zeros) for _ in range(layers)),
        pose,
        torch.zeros(1, chunk, dtype=torch.bool, device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
    )


def chunk_of(seen: Seen, dtype: torch.dtype) -> ChunkKV:
    """The stored form of a chunk with its trace."""
    if seen.trace is None or not seen.trace.kv:
        raise ValueError("a memory of keys and values needs them in the trace, and this network's trace has none")
    layers = tuple(KeysValues(layer.keys.to(dtype), layer.values.to(dtype)) for layer in seen.trace.kv)
    return ChunkKV(layers, seen.poses, seen.valid, seen.times[:, 0])


def chunk_bytes(chunk: ChunkKV) -> int:
    """Bytes of the keys and values of one chunk; `chunk` is [P, ...]."""
    return sum(2 * layer.keys.element_size() * layer.keys.shape[1:].numel() for layer in chunk.layers)


def ranks(numbers: Tensor) -> Tensor:
    """Rank of each chunk that is read: the number of newer ones, plus 1. numbers int64 [B, n] grow with time; -1: no chunk."""
    return (numbers[:, None] > numbers[:, :, None]).sum(2) + 1


def joined(parts: list[tuple[ChunkKV, Tensor, Tensor]], frames: int, retrieval: Retrieval | None = None) -> ContextKV:
    """Join groups of chunks: (chunks [B, n, ...], offsets of their first frames [B, n], which exist [B, n])."""
    inside = torch.arange(frames, device=first_tensor(parts[0][0]).device)

    def frames_of(x: Tensor) -> Tensor:
        return x.flatten(1, 2)  # [B, n, F, ...] -> [B, n F, ...]

    count = len(parts[0][0].layers)
    layers = tuple(
        KeysValues(
            torch.cat([frames_of(chunks.layers[i].keys) for chunks, _, _ in parts], 1),
            torch.cat([frames_of(chunks.layers[i].values) for chunks, _, _ in parts], 1),
        )
        for i in range(count)
    )
    offsets = torch.cat([(first[..., None] - inside).flatten(1) for _, first, _ in parts], 1)
    valid = torch.cat([frames_of(chunks.valid & there[..., None]) for chunks, _, there in parts], 1)
    poses = torch.cat([frames_of(chunks.poses) for chunks, _, _ in parts], 1)
    moves = tuple(torch.cat([frames_of(chunks.moves[i]) for chunks, _, _ in parts], 1) for i in range(len(parts[0][0].moves)))
    return ContextKV(layers, offsets, valid, poses, moves)
