"""Recurrent layers between the blocks of a video network (Echo-Memory; CoME's `ssm`): each spatial token has a state that goes along time.

    tokens of a frame --> [ block --> recurrent layer ] --> ...
                                       ^ state after the frame before, v state after this frame

A layer is causal: a frame sees its own tokens and the state. So chunks run one after another, each from the state that the chunk before
left, give what all of them give in one run. Both layers change nothing at first, since their gates start at zero.

block_wise   state = decay * state + (1 - decay) * tanh(u), decay learned per channel; the output is read through a sigmoid gate, and its
             residual is bounded
convolution  the earlier hybrid: a causal convolution of width 3 along time, each channel by itself; its state is the last 2 frames
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BOUND = 0.2  # largest factor on the residual of a block-wise layer (0.1 to 0.2 in the published code)
HALF_LIVES = (2.0, 256.0)  # frames, of the channels of a fresh block-wise layer
OUT_SCALE = 8.0  # of the output projection: averages over time are small, and an open gate must be able to matter
TAPS = 3  # frames that the convolution covers
EXPAND = 2


class Recurrent(Protocol):
    """A recurrent layer."""

    def blank(self, batch: int, tokens: int) -> Tensor:
        """The state before the first frame: float32 [B, ...]."""
        ...

    def __call__(self, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, N, D] and the state before them [B, ...] -> new tokens, and the state after each frame [B, T, ...]."""
        ...


class BlockWise(nn.Module):
    """Exponential averages of projected tokens. State [B, N, S]."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.write, self.read, self.out = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)
        nn.init.normal_(self.out.weight, std=OUT_SCALE / math.sqrt(inner))
        shortest, longest = HALF_LIVES
        kept = 0.5 ** (1 / (shortest * (longest / shortest) ** torch.linspace(0, 1, inner)))
        self.decay = nn.Parameter(torch.logit(kept))
        self.gate = nn.Parameter(torch.zeros(width))

    def blank(self, batch: int, tokens: int) -> Tensor:
        return torch.zeros(batch, tokens, len(self.decay), device=self.decay.device)

    def forward(self, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(h)
        kept = self.decay.float().sigmoid()
        new = (1 - kept) * self.write(y).float().tanh()
        states = []
        for frame in new.unbind(1):
            state = kept * state + frame
            states.append(state)
        after = torch.stack(states, 1)  # [B, T, N, S]
        shown = self.out(self.read(y).sigmoid() * after.to(h.dtype))
        return h + BOUND * self.gate.tanh() * shown, after


class CausalConvolution(nn.Module):
    """A gated depth-wise convolution along time. State [B, 2, N, E]: the last 2 frames of its input."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        expanded = EXPAND * inner
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.entry, self.out = nn.Linear(width, 2 * expanded), nn.Linear(expanded, width)
        self.taps = nn.Parameter(torch.randn(TAPS, expanded) / math.sqrt(TAPS))
        self.gate = nn.Parameter(torch.zeros(()))

    def blank(self, batch: int, tokens: int) -> Tensor:
        return torch.zeros(batch, TAPS - 1, tokens, self.taps.shape[1], device=self.taps.device)

    def forward(self, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        value, open_ = self.entry(self.norm(h)).chunk(2, -1)
        line = torch.cat([state, value.float()], 1)  # [B, 2 + T, N, E]
        frames = h.shape[1]
        mixed = torch.stack([line[:, k : k + frames] * self.taps[k].float() for k in range(TAPS)]).sum(0)
        shown = self.out(mixed.to(h.dtype) * F.silu(open_))
        after = torch.stack([line[:, k : k + frames] for k in range(1, TAPS)], 2)  # [B, T, 2, N, E]
        return h + self.gate.tanh() * shown, after


KINDS: Mapping[str, type[BlockWise] | type[CausalConvolution]] = {"block_wise": BlockWise, "convolution": CausalConvolution}


def layers_with_readout(depth: int, every: int | None = None) -> tuple[int, ...]:
    """The blocks that a read-out follows: one of `every` (default: every fourth, every third of six), and the middle one of fewer than six.

    Not the last alone: then no attention would read what it adds.
    """
    if depth < 6:
        return ((depth - 1) // 2,)
    every = every or (3 if depth == 6 else 4)
    return tuple(range(every - 1, depth, every))
