"""The training objective of Echo-Memory's families: what a memory would give at each chunk of a window, and the loss on the chunk alone.

    window of L chunks --each chunk a target--> its true past --memory--> context --net--> velocity --> loss on the chunk's frames

The memory reads recorded episodes, as it would read what a dream has written. Recurrent states come from one clean pass over the window,
in which each chunk starts from the state that the chunk before it left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wmgym.core import Condition, Context, Query
from wmgym.data.latents import Latents
from wmgym.diffusion.flow import corrupt, logit_normal, shifted, target_velocity
from wmgym.geometry import step_back
from wmgym.memory.bank import recorded
from wmgym.memory.recurrent import StateMemory
from wmgym.memory.summary import Summary, SummaryMemory
from wmgym.nets.echo import EchoDiT
from wmgym.train.video_loss import WindowBatch
from wmgym.train.windows import Windows
from wmgym.tree import Shared
from wmgym.world_model import WorldModel


@dataclass(frozen=True)
class EchoLossConfig:
    """The recipe that all families share."""

    shift: float = 3.0  # of the noise levels towards noise (15 in the paper, for 352 x 640 pixels)
    spike: float = 15.0  # chunks with a larger loss are left out
    anchor_only: float = 0.1  # share of the windows whose past is the newest frame alone
    context_noise: float = 0.1  # context frames carry noise of a level in [0, this]

    def __post_init__(self) -> None:
        if self.shift <= 0 or self.spike <= 0:
            raise ValueError(f"shift and spike must be positive, got {self.shift} and {self.spike}")
        for name in ("anchor_only", "context_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class Chunks:
    """The chunks of windows as rows: B windows of L chunks are B L rows, the chunks of a window in the order of time."""

    latents: Tensor  # float32 [B L, F, C, h, w]
    condition: Condition  # at the expected poses
    clean: Condition  # at the true poses
    rows: Tensor  # int64 [B L]: episodes
    first: Tensor  # int64 [B L]: time of the first frame
    length: int  # L


def as_chunks(batch: WindowBatch, windows: Windows, chunk: int) -> Chunks:
    """The chunks of a batch of windows."""
    length = windows.times.shape[1] // chunk

    def fold(x: Tensor) -> Tensor:
        return x.unflatten(1, (length, chunk)).flatten(0, 1)

    def condition(whole: Condition) -> Condition:
        poses, motion = fold(whole.poses), fold(whole.egomotion)
        start = step_back(poses[:, 0], motion[:, 0])
        origin = whole.origin.repeat_interleave(length, 0)
        return Condition(fold(whole.actions), motion, poses, fold(whole.times), start, origin)

    rows = windows.rows.repeat_interleave(length)
    return Chunks(fold(batch.latents), condition(batch.expected), condition(batch.clean), rows, windows.times[:, ::chunk].flatten(), length)


def contexts_of(world: WorldModel, data: Latents, chunks: Chunks, alone: Tensor) -> tuple[Context, ...]:
    """What each memory of a world gives at the chunks, from the true past. alone: bool [B L], rows that remember only the newest frame.

    Recurrent states are left out: see `with_states`.
    """
    time, first = torch.arange(data.latents.shape[1], device=alone.device), chunks.first[:, None]
    past = (time < first) & (~alone[:, None] | (time == first - 1))  # [B L, T]
    query, found = Query(chunks.condition.poses, chunks.condition.times), []
    for memory in world.settings.memories:
        memory = memory.frames if isinstance(memory, StateMemory) else memory
        if isinstance(memory, SummaryMemory):
            found.append(memory.read(_summary(data, chunks, past), query))
        else:
            bank = recorded(Shared(data.frames, chunks.rows), data.poses[chunks.rows], torch.where(past, time, -1))
            found.append(memory.read(bank, query))
    return tuple(found)


def _summary(data: Latents, chunks: Chunks, past: Tensor) -> Summary:
    """The mean latents of the pasts: one product per window, since its chunks share an episode."""
    episodes = data.latents[chunks.rows[:: chunks.length]].float()  # [B, T, C, h, w]
    count = past.sum(1)
    share = (past / count.clamp(min=1)[:, None]).unflatten(0, (-1, chunks.length))  # [B, L, T]
    mean = torch.bmm(share, episodes.flatten(2)).flatten(0, 1).unflatten(1, episodes.shape[2:])
    return Summary(mean, count)


def with_states(net: EchoDiT, contexts: tuple[Context, ...], chunks: Chunks, latents: Tensor, alone: Tensor) -> tuple[Context, ...]:
    """The contexts with the recurrent state before each chunk, from a clean pass over the windows' latents [B L, F, C, h, w].

    The state before a window, and before the chunks of `alone`, is blank.
    """
    if not net.state_shapes:
        return contexts
    after = net.bind(chunks.clean, contexts).roll(latents, chunks.clean.poses, chunks.length)

    def before(state: Tensor) -> Tensor:
        windows = state.unflatten(0, (-1, chunks.length))
        moved = torch.cat([torch.zeros_like(windows[:, :1]), windows[:, :-1]], 1).flatten(0, 1)
        return torch.where(alone.view(-1, *[1] * (moved.ndim - 1)), torch.zeros_like(moved), moved)

    return (*contexts, Context(state=tuple(map(before, after))))


def echo_loss(world: WorldModel, data: Latents, chunks: Chunks, generator: torch.Generator, config: EchoLossConfig) -> Tensor:
    """Mean squared error of the velocity over the chunks' frames; no other frame has a loss."""
    net, size, device = world.net, len(chunks.rows), chunks.latents.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def noisy(latents: Tensor) -> Tensor:
        level = config.context_noise * torch.rand(len(latents), generator=generator, device=device)
        return corrupt(latents.float(), normal(*latents.shape), level)

    windows = torch.rand(size // chunks.length, generator=generator, device=device)
    alone = (windows < config.anchor_only).repeat_interleave(chunks.length)
    contexts = tuple(
        replace(context, frames=tuple(replace(group, latents=noisy(group.latents)) for group in context.frames))
        for context in contexts_of(world, data, chunks, alone)
    )
    contexts = with_states(net, contexts, chunks, noisy(chunks.latents), alone)
    level = shifted(logit_normal(normal(size)), config.shift)
    noise = normal(*chunks.latents.shape)
    velocity = net.bind(chunks.condition, contexts)(corrupt(chunks.latents, noise, level), level)
    error = (velocity.float() - target_velocity(chunks.latents, noise)).square().flatten(1).mean(1)
    kept = error.detach() <= config.spike
    return torch.where(kept, error, torch.zeros_like(error)).sum() / kept.sum().clamp(min=1)
