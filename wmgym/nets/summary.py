"""Read-outs of a spatial summary (Echo-Memory): one small picture that stands for everything that was seen.

    mean latent --pooled to a grid--> cells --softmax mixing--> tokens --> frame | condition | cross

frame      the tokens are one more frame of the context, at the newest frame's pose
condition  their mean is added to the condition of each frame. The paper joins them to the text; this network has none, and its actions
           come in by the condition
cross      cross-attention after some blocks, with a gate that starts at zero
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmgym.nets.layers import attend

LARGEST = 8  # cells along a side of the grid
HEADS = 8
NEAR = 4.0  # initial logit of a token's own cell


def grid_of(latent_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Rows and columns of the summary's grid."""
    return min(LARGEST, latent_shape[1]), min(LARGEST, latent_shape[2])


def num_cells(latent_shape: tuple[int, int, int]) -> int:
    """Cells of the summary's grid."""
    rows, columns = grid_of(latent_shape)
    return rows * columns


def pooled(mean: Tensor) -> Tensor:
    """Mean latents [B, C, h, w] -> cells [B, G, C], row by row."""
    return F.adaptive_avg_pool2d(mean, grid_of((mean.shape[1], mean.shape[2], mean.shape[3]))).flatten(2).transpose(1, 2)


class Mixing(nn.Module):
    """Cells [B, G, C] -> tokens [B, N, C]: each token is a learned convex combination of cells, at first mostly of its own."""

    def __init__(self, latent_shape: tuple[int, int, int], tokens: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = grid_of(latent_shape)
        own = torch.arange(rows * columns).view(1, 1, rows, columns).float()
        own = F.interpolate(own, tokens, mode="nearest").flatten().long()
        self.logits = nn.Parameter(NEAR * F.one_hot(own, rows * columns).float())

    def forward(self, cells: Tensor) -> Tensor:
        return self.logits.softmax(-1).to(cells.dtype) @ cells


class CrossAttention(nn.Module):
    """Tokens h [B, T, N, D] attend to the summary's tokens [B, M, C]. At first it changes nothing."""

    def __init__(self, width: int, inner: int, channels: int) -> None:
        super().__init__()
        heads = max(1, min(HEADS, inner // 4))
        if inner % heads:
            raise ValueError(f"width {inner} is no multiple of {heads} heads")
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.query, self.pair, self.out = nn.Linear(width, inner), nn.Linear(channels, 2 * inner), nn.Linear(inner, width)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor, tokens: Tensor) -> Tensor:
        q = self.query(self.norm(h)).flatten(1, 2).unflatten(-1, (self.heads, -1))
        k, v = self.pair(tokens.to(h.dtype)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return h + self.gate.tanh() * self.out(attend(q, k, v)).view_as(h)
