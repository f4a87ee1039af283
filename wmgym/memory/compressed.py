"""Memory of the newest frames, compressed by weight or by length (Echo-Memory).

    newest frame as it is | older ones --mean over r frames--> fewer frames --> gains decay**distance

Not learned: means and gains are fixed. `weight` keeps all frames (r = 1) and lets old ones fade, `length` takes means, `hybrid` does both.
The packed variant of `length` adds copies at 2 and 4 times the ratio, with gains 1/4 and 0.15.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from wmgym.core import Context, ContextFrames, Query
from wmgym.memory import bank as banks
from wmgym.memory.bank import Bank
from wmgym.memory.trajectory import TAIL, FrameStore, context_frames
from wmgym.tree import map_tensors

COPIES = ((2, 0.25), (4, 0.15))  # of the packed variant: factor on the ratio, gain


@dataclass(frozen=True)
class CompressedMemory(FrameStore):
    """`core.Memory` of the newest frame and the `frames` before it.

    ratio: frames per mean. decay: factor on the values per frame of distance from the newest; 1: none.
    """

    latent_shape: tuple[int, int, int]
    frames: int = 24
    ratio: int = 1
    decay: float = 1.0
    packed: bool = False
    action_size: int = 0
    dtype: torch.dtype = torch.float32
    needs: frozenset[str] = field(default=frozenset(), init=False)
    num_retrieved: int = 0

    def __post_init__(self) -> None:
        if self.frames < 1 or not 1 <= self.ratio <= self.frames:
            raise ValueError(f"ratio must be between 1 and the {self.frames} frames that are compressed, got {self.ratio}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be in (0, 1], got {self.decay}")

    @property
    def scales(self) -> tuple[tuple[int, float], ...]:
        """Frames per mean, and gain, of each copy of the past."""
        return tuple((self.ratio * factor, gain) for factor, gain in ((1, 1.0), *(COPIES if self.packed else ())))

    @property
    def num_read(self) -> int:
        """Frames that it gives: the newest, and the means of each copy."""
        return 1 + sum(-(-self.frames // size) for size, _ in self.scales)

    def init(self, batch: int, keys: Tensor) -> Bank:
        return banks.empty(batch, 1 + self.frames, TAIL, self.blank(keys.device))

    def read(self, memory: Bank, query: Query) -> Context:
        most = max(-(-self.frames // size) * size for size, _ in self.scales)
        slots, valid = banks.newest(memory, 1 + most)
        valid = valid & (torch.arange(1 + most, device=valid.device) <= self.frames)
        shown = context_frames(memory, slots, valid, query.poses[:, 0], query.times[:, 0], 0)
        gains = torch.pow(self.decay, (shown.offsets - 1).clamp(min=0).float())
        shown = replace(shown, gains=gains)
        groups = [map_tensors(lambda x: x[:, :1], shown)]
        for size, gain in self.scales:
            older = slice(1, 1 + -(-self.frames // size) * size)
            group = means(map_tensors(lambda x, part=older: x[:, part], shown), size)
            assert group.gains is not None
            groups.append(replace(group, gains=gain * group.gains))
        return Context(tuple(groups))


def means(frames: ContextFrames, ratio: int) -> ContextFrames:
    """Each `ratio` successive frames as one: the mean of the latents that exist, and all else of the middle one among these."""
    valid = frames.valid.unflatten(1, (-1, ratio))  # [B, n / r, r]
    count = valid.sum(2)
    middle = torch.minimum(count - 1, torch.full_like(count, ratio // 2)).clamp(min=0)
    row = torch.arange(valid.shape[0], device=valid.device)[:, None]
    index = torch.arange(valid.shape[1], device=valid.device) * ratio + middle
    taken = map_tensors(lambda x: x[row, index], frames)
    latents = frames.latents.unflatten(1, (-1, ratio))
    weight = valid.to(latents.dtype)[..., None, None, None]
    mean = (latents * weight).sum(2) / count.clamp(min=1).to(latents.dtype)[..., None, None, None]
    return replace(taken, latents=mean, valid=count > 0)
