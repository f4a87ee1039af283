"""Memory of frames: recent ones at several resolutions, and older ones retrieved by pose.

    bank --newest--> recent frames, packed by level  \\
         --poses---> retrieved frames                 > Context.frames

All four memories of WorldPack's ablation are layouts of this class (`systems.worldpack.LAYOUTS`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wmgym.core import Context, ContextFrames, Footprint, FramePayload, Query, Retrieval, Seen
from wmgym.geometry import relative_pose
from wmgym.memory import bank as banks
from wmgym.memory.bank import Bank
from wmgym.memory.coverage import CoverageConfig, choose_views
from wmgym.memory.packing import Layout
from wmgym.memory.retrieval import RetrievalConfig, choose, log_score

TAIL = 32  # frames per lane before the shared archive is rewritten


class FrameStore:
    """What memories share that store frames in a `Bank`, whatever they read of them."""

    latent_shape: tuple[int, int, int]
    budget: int  # frames in memory
    action_size: int  # length of a continuous action; 0: discrete actions
    dtype: torch.dtype  # of latents

    def init(self, batch: int, keys: Tensor) -> Bank:
        blank = self.blank(keys.device)
        banks.check_budget(self.budget, batch, blank)
        return banks.empty(batch, self.budget, TAIL, blank)

    def blank(self, device: torch.device | str = "cpu") -> FramePayload:
        """A payload of one frame, all zeros."""
        return blank_frame(self.latent_shape, self.action_size, self.dtype, device)

    def write(self, memory: Bank, seen: Seen) -> Bank:
        return banks.write(memory, seen.payload, seen.poses, seen.times, seen.valid)

    def footprint(self, memory: Bank) -> Footprint:
        return banks.footprint(memory)


@dataclass(frozen=True)
class TrajectoryMemory(FrameStore):
    """`core.Memory` of frames in a `Bank`."""

    layout: Layout
    retrieval: RetrievalConfig
    latent_shape: tuple[int, int, int]
    budget: int = 512  # frames in memory
    action_size: int = 0  # length of a continuous action; 0: discrete actions
    dtype: torch.dtype = torch.float32
    coverage: CoverageConfig = field(default_factory=CoverageConfig)  # the camera, for retrieval by coverage
    needs: frozenset[str] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        banks.check_shown(self.budget, self.layout.num_frames)

    @property
    def num_retrieved(self) -> int:
        return self.layout.retrieved[0]

    def read(self, memory: Bank, query: Query) -> Context:
        reference, now = query.poses[:, 0], query.times[:, 0]
        slots, valid = banks.newest(memory, self.layout.num_recent)
        groups, start = [], 0
        for frames, level in self.layout.recent:
            part = slice(start, start + frames)
            groups.append(context_frames(memory, slots[:, part], valid[:, part], reference, now, level))
            start += frames
        n, level = self.layout.retrieved
        if n == 0:
            return Context(tuple(groups))
        chosen, scores, exists = self._retrieve(memory, query, n)
        groups.append(context_frames(memory, chosen, exists, reference, now, level))
        return Context(tuple(groups), retrieval=Retrieval(torch.where(exists, groups[-1].times, -1), scores))

    def _retrieve(self, memory: Bank, query: Query, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best frames, without the recent ones of the layout and those of the last second."""
        past, times = memory.poses.values, memory.times.values
        hidden = max(self.retrieval.exclusion, self.layout.num_recent)
        allowed = (times >= 0) & (query.times[:, :1] - times > hidden)
        if self.retrieval.method == "coverage":
            return choose_views(query.poses, past, times, allowed, n, self.coverage)
        return choose(log_score(query.poses[:, 0], past, self.retrieval), times, allowed, n, self.retrieval.suppression)


def blank_frame(latent_shape: tuple[int, int, int], action_size: int, dtype: torch.dtype, device: torch.device | str) -> FramePayload:
    """A payload of one frame [1, ...], all zeros. action_size: length of a continuous action; 0: discrete actions."""
    latents = torch.zeros(1, *latent_shape, device=device, dtype=dtype)
    actions = banks.blank_actions((1,), action_size, device)
    return FramePayload(latents, actions, latents.new_zeros(1, 5, dtype=torch.float32), latents.new_zeros(1, dtype=torch.bool))


def context_frames(memory: Bank, slots: Tensor, valid: Tensor, reference: Tensor, now: Tensor, level: int) -> ContextFrames:
    """Frames of slots int64 [B, n] of a bank of `FramePayload`, relative to the pose `reference` [B, 5] and the time `now` [B]."""
    poses = memory.poses.values.gather(1, slots[..., None].expand(-1, -1, 5))
    times = memory.times.values.gather(1, slots)
    held = banks.take(memory, slots)
    relative = relative_pose(poses, reference[:, None])
    return ContextFrames(held.latents, now[:, None] - times, relative, valid, held.actions, held.egomotion, poses, times, level)
