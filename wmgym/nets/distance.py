"""A learned distance in steps between two frames, read from their latents.

Trained from time differences within episodes: dynamical distance learning (Hartikainen et al. 2020). They regress the mean
number of steps. Here a classifier over bins of steps gives a distribution, whose last bin is "more" (as in Eysenbach et al. 2019), since
one pair of views is passed at different intervals: a walker stands still, or makes a detour. Bins grow with the distance, so that near
pairs are distinguished finely. "More" also holds pairs of frames from different episodes, as negatives (cf. Savinov et al. 2018).

The cost of a pair is the expectation of log(1 + steps). A logarithm keeps the cost sensitive near the goal and finite for "more".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmgym.nets.layers import ResidualConv


@dataclass(frozen=True)
class DistanceConfig:
    latent_shape: tuple[int, int, int] = (12, 8, 8)
    most: int = 32  # steps; pairs that are further apart are "more"
    width: int = 64

    def __post_init__(self) -> None:
        if self.most < 2:
            raise ValueError(f"most must be at least 2 steps, got {self.most}")
        if self.width < 8 or self.width % 8:
            raise ValueError(f"width must be a multiple of 8, got {self.width}")
        if min(self.latent_shape) < 1 or min(self.latent_shape[1:]) < 2:
            raise ValueError(f"latents must be at least 2 x 2, got latent_shape={self.latent_shape}")

    @property
    def starts(self) -> tuple[int, ...]:
        """Least number of steps of each bin: 0, then powers of the square root of 2, then `most`, which begins "more"."""
        between = {round(2 ** (k / 2)) for k in range(2 * self.most.bit_length())}
        return (0, *sorted(n for n in between if n < self.most), self.most)


class StepDistance(nn.Module):
    """Latents [B, C, h, w] of two frames -> how many steps lead from the first to the second.

    Both latents pass the same convolutions. Then each cell of one is compared with every cell of the other (a correlation layer,
    Dosovitskiy et al. 2015), since a turn moves a landmark across the view.
    """

    values: Tensor  # float32 [K]: mean log(1 + steps) of each bin; of "more": that of twice `most`

    def __init__(self, config: DistanceConfig) -> None:
        super().__init__()
        self.config = config
        c, h, w = config.latent_shape
        width, starts = config.width, config.starts
        self.entry = nn.Sequential(nn.Conv2d(c, width, 3, 1, 1), ResidualConv(width))
        self.body = nn.Sequential(
            nn.Conv2d(2 * width + h * w, width, 3, 1, 1),
            ResidualConv(width),
            nn.Conv2d(width, width, 4, 2, 1),
            ResidualConv(width),
            nn.Flatten(),
            nn.Linear(width * (h // 2) * (w // 2), 128),
            nn.SiLU(),
            nn.Linear(128, len(starts)),
        )
        logs = [torch.arange(a, b).float().log1p().mean() for a, b in pairwise(starts)]
        self.register_buffer("values", torch.stack([*logs, torch.tensor(2.0 * config.most).log1p()]), persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits of the bins: float32 [B, K]."""
        a, b = self.entry(torch.cat([first, second]).float()).chunk(2)
        match = torch.einsum("bcn,bchw->bnhw", F.normalize(b.flatten(2), dim=1), F.normalize(a, dim=1))
        return self.body(torch.cat([a, b, match], 1))

    def log_steps(self, first: Tensor, second: Tensor) -> Tensor:
        """Expected log(1 + steps): float32 [B]."""
        return self(first, second).softmax(-1) @ self.values

    def loss(self, first: Tensor, second: Tensor, bins: Tensor) -> Tensor:
        """Cross-entropy of bin numbers int64 [B]."""
        return F.cross_entropy(self(first, second), bins)
