"""Episodes as latents in memory, from which training draws its batches.

All frames are encoded once, before training. Episodes are rows of one tensor, padded to the longest, so that the past of a training
example is a slice of a row and is read without a copy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wmgym.core import FramePayload
from wmgym.data.episode import Episode, load_episode
from wmgym.geometry import relative_pose
from wmgym.progress import Progress


@dataclass(frozen=True)
class Latents:
    """E episodes of up to T frames. Frame t is the observation after action t."""

    latents: Tensor  # float16 [E, T, C, h, w]
    poses: Tensor  # float32 [E, T, 5]
    actions: Tensor  # int64 [E, T], or float32 [E, T, A]
    lengths: Tensor  # int64 [E]
    rewards: Tensor | None = None  # float32 [E, T]; None: encoded by an older version, which did not store them
    ends: Tensor | None = None  # bool [E, T]: the episode terminated here (a truncation does not count)

    def draw(self, rng: np.random.Generator, size: int, chunk: int = 1) -> tuple[Tensor, Tensor]:
        """Random episode rows [size] and first target frames [size], uniform over all frames that have a past."""
        room = (self.lengths - chunk).clamp(min=0).numpy()
        ends = np.cumsum(room)
        if ends[-1] < 1:
            raise ValueError(f"no episode is longer than {chunk} frames: collect longer episodes")
        flat = rng.integers(ends[-1], size=size)
        rows = np.searchsorted(ends, flat, side="right")
        first = flat - (ends[rows] - room[rows]) + 1
        return torch.from_numpy(rows), torch.from_numpy(first)

    def to(self, device: torch.device | str) -> Latents:
        return Latents(**{name: value if name == "lengths" else value.to(device) for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are not None, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    @cached_property
    def frames(self) -> FramePayload:
        """The payload that a memory stores of each frame, [E, T, ...]."""
        motion = relative_pose(self.poses[:, 1:], self.poses[:, :-1])
        motion = torch.cat([torch.zeros_like(self.poses[:, :1]), motion], 1)
        return FramePayload(self.latents, self.actions, motion, torch.ones_like(self.poses[..., 0], dtype=torch.bool))


def encode(
    paths: Sequence[Path], encoder: Callable[[Tensor], Tensor], frame_size: int, *, action_size: int = 0, progress: bool = True
) -> Latents:
    """Read episodes and encode their frames. ValueError if frames or actions have another shape than the model needs.

    encoder: uint8 [n, H, W, 3] -> latents [n, C, h, w]. frame_size: side of the frames. action_size: size of a continuous action; 0 for
    discrete actions.
    """
    latents, poses, actions, rewards, ends = [], [], [], [], []
    for path, episode in Progress(_read_ahead(paths), total=len(paths), desc="encode", unit="episode", disable=not progress):
        if episode.frames.shape[1:3] != (frame_size, frame_size):
            raise ValueError(f"{path}: frames are {episode.frames.shape[1]} x {episode.frames.shape[2]}, the model needs {frame_size} x {frame_size}")
        shape = (action_size,) if action_size else ()
        if episode.actions.shape[1:] != shape:
            kind = f"[T, {action_size}]" if action_size else "[T], since they are discrete"
            raise ValueError(f"{path}: actions have shape {episode.actions.shape}, must be {kind}")
        latents.append(encoder(torch.from_numpy(episode.frames)).half().cpu())
        poses.append(torch.from_numpy(episode.poses))
        actions.append(torch.from_numpy(episode.actions.astype(np.int64 if episode.actions.ndim == 1 else np.float32)))
        rewards.append(torch.from_numpy(episode.rewards))
        ends.append(torch.from_numpy(episode.terminated))
    lengths = torch.tensor([len(p) for p in poses])
    return Latents(_pad(latents), _pad(poses), _pad(actions), lengths, _pad(rewards), _pad(ends))


def _read_ahead(paths: Sequence[Path], ahead: int = 8) -> Iterator[tuple[Path, Episode]]:
    """Episodes in order; the next `ahead` are read in the background."""
    with ThreadPoolExecutor(2) as pool:
        reading: deque[Future[Episode]] = deque(pool.submit(load_episode, path) for path in paths[:ahead])
        for k, path in enumerate(paths):
            episode = reading.popleft().result()
            reading.extend(pool.submit(load_episode, later) for later in paths[k + ahead : k + ahead + 1])
            yield path, episode


def _pad(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
