"""The memory of frames: recent ones at several resolutions, and older ones retrieved by pose.

    bank --newest--> recent frames, packed by level  \\
         --score---> retrieved frames                 > Context.frames

All four modes of WorldPack's ablation are layouts of this one class (`packing.LAYOUTS`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wmgym.core import Context, ContextFrames, Footprint, Query, Recall, Seen
from wmgym.geometry import relative_pose
from wmgym.memory import bank as banks
from wmgym.memory.bank import Bank
from wmgym.memory.packing import Layout
from wmgym.memory.retrieval import RetrievalConfig, choose, log_score

TAIL = 32  # frames a lane holds of its own before its archive is rewritten


@dataclass(frozen=True)
class TrajectoryMemory:
    """`core.Memory` over a `Bank`."""

    layout: Layout
    retrieval: RetrievalConfig
    latent_shape: tuple[int, int, int]
    budget: int = 512  # frames remembered
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    needs_kv: bool = False

    def __post_init__(self) -> None:
        if self.budget < self.layout.num_frames:
            shown = self.layout.num_frames
            raise ValueError(f"memory_budget must be at least the {shown} frames that the network is shown, got {self.budget}")

    @property
    def slots(self) -> int:
        return self.layout.retrieved[0]

    def init(self, batch: int) -> Bank:
        return banks.empty(batch, self.budget, TAIL, self.latent_shape, self.device, self.dtype)

    def write(self, memory: Bank, seen: Seen) -> Bank:
        return banks.write(memory, seen)

    def footprint(self, memory: Bank) -> Footprint:
        return banks.footprint(memory)

    def read(self, memory: Bank, query: Query) -> Context:
        reference, now = query.poses[:, 0], query.times[:, 0]
        slots, valid = banks.newest(memory, self.layout.num_recent)
        groups, start = [], 0
        for frames, level in self.layout.recent:
            part = slice(start, start + frames)
            groups.append(self._group(memory, slots[:, part], valid[:, part], reference, now, level))
            start += frames
        n, level = self.layout.retrieved
        if n == 0:
            return Context(tuple(groups))
        picked, scores, exists = self._retrieve(memory, reference, now, n)
        groups.append(self._group(memory, picked, exists, reference, now, level))
        indices = torch.where(exists, memory.times.gather(1, picked), -1)
        return Context(tuple(groups), recall=Recall(indices, scores))

    def _retrieve(self, memory: Bank, reference: Tensor, now: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best frames among those not already shown and not of the last second."""
        scores = log_score(reference, memory.poses, self.retrieval)
        hidden = max(self.retrieval.exclusion, self.layout.num_recent)
        allowed = (memory.times >= 0) & (now[:, None] - memory.times > hidden)
        return choose(scores, memory.times, allowed, n, self.retrieval.suppression)

    def _group(self, memory: Bank, slots: Tensor, valid: Tensor, reference: Tensor, now: Tensor, level: int) -> ContextFrames:
        index = slots[..., None].expand(-1, -1, 5)
        relative = relative_pose(memory.poses.gather(1, index), reference[:, None])
        offsets = now[:, None] - memory.times.gather(1, slots)
        return ContextFrames(banks.take(memory, slots), offsets, relative, valid, level)
