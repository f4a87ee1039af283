"""A recurrent state in a pass of the video network: layers of `nets/recurrence.py` after some of its blocks.

    in a dream    state before a chunk --> layer, frame by frame --> state after it
    in training   clean chunks, one after another --> state after each; noisy chunk i starts from the state after clean chunk i - 1

The layers are in a `ModuleDict` by the number of the block that they follow. A state is a tuple of tensors [B, ...], one for each layer, in
the order of the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from wmgym.core import Trace
from wmgym.nets.recurrence import Recurrent
from wmgym.nets.video_dit import After, VideoBound

State = tuple[Tensor, ...]
Left = dict[int, Tensor]  # block -> what its layer leaves behind


def blank_state(layers: nn.ModuleDict, batch: int, tokens: int) -> State:
    """The state before the first chunk."""
    return tuple(cast(Recurrent, layers[str(block)]).blank(batch, tokens) for block in blocks(layers))


def state_shapes(layers: nn.ModuleDict, tokens: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of the state, one for each layer, without the batch."""
    return tuple(tuple(part.shape[1:]) for part in blank_state(layers, 1, tokens))


def blocks(layers: nn.ModuleDict) -> list[int]:
    """The blocks that a layer follows."""
    return sorted(map(int, layers))


def in_order(left: Left) -> State:
    return tuple(left[block] for block in sorted(left))


def carried(layers: nn.ModuleDict, state: State, left: Left, length: int = 1) -> After:
    """What happens to the tokens of chunks after each block. The state after each chunk is put into `left`.

    Each `length` successive rows are successive chunks of one world; the state before the first of them is that of its row.
    """
    before = dict(zip(blocks(layers), state, strict=True))

    def after(block: int, h: Tensor) -> Tensor:
        if block not in before:
            return h
        frames = h.shape[1]
        line = h.unflatten(0, (-1, length)).flatten(1, 2)  # [B / length, length * F, N, D]
        line, passed = layers[str(block)](line, before[block][::length])
        left[block] = passed[:, frames - 1 :: frames].flatten(0, 1)
        return line.unflatten(1, (length, frames)).flatten(0, 1)

    return after


def carried_by_clean(layers: nn.ModuleDict, chunk: int, visible: Tensor) -> After:
    """The same for two streams of L chunks, [B, 2 L F, N, D]. The state before a chunk that follows a hidden one is blank.

    visible: bool [B, L], clean chunks that others may read.
    """
    known = torch.cat([torch.zeros_like(visible[:, :1]), visible[:, :-1]], 1)  # whether there is a state before each chunk

    def after(block: int, h: Tensor) -> Tensor:
        if str(block) not in layers:
            return h
        layer, frames = cast(Recurrent, layers[str(block)]), h.shape[1] // 2
        blank = layer.blank(len(h), h.shape[2])
        clean, passed = layer(h[:, :frames], blank)
        before = torch.cat([blank[:, None], passed[:, chunk - 1 :: chunk][:, :-1]], 1)  # [B, L, ...]
        before = torch.where(known.view(*known.shape, *[1] * (before.ndim - 2)), before, blank[:, None])
        noisy, _ = layer(h[:, frames:].unflatten(1, (-1, chunk)).flatten(0, 1), before.flatten(0, 1))
        return torch.cat([clean, noisy.unflatten(0, visible.shape).flatten(1, 2)], 1)

    return after


@dataclass(frozen=True, eq=False)
class StatefulBound:
    """A video network with recurrent layers, with fixed condition and contexts and the state before the chunk."""

    bound: VideoBound
    layers: nn.ModuleDict
    state: State

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        """Noisy latents [B, F, C, h, w] and noise levels [B] in [0, 1] -> velocity, of x's shape."""
        return replace(self.bound, after=carried(self.layers, self.state, {}))(x, level)

    def trace(self, latents: Tensor, poses: Tensor) -> Trace:
        """Keys and values of a clean pass over latents [B, F, C, h, w] at poses [B, F, 5], and the state after them."""
        left: Left = {}
        kv = replace(self.bound, after=carried(self.layers, self.state, left)).trace(latents, poses).kv
        return Trace(kv, in_order(left))
