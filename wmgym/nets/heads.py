"""Small heads that read two successive latents: how far one really moved, and what was earned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmgym.nets.layers import ResidualConv


@dataclass(frozen=True)
class HeadConfig:
    latent_shape: tuple[int, int, int] = (12, 8, 8)
    num_actions: int = 10
    width: int = 64


class _Pair(nn.Module):
    """(previous latent, new latent, action) -> `outputs` numbers, zero at the start of training."""

    def __init__(self, config: HeadConfig, outputs: int) -> None:
        super().__init__()
        c, h, w = config.latent_shape
        self.action = nn.Embedding(config.num_actions, config.width)
        self.entry = nn.Conv2d(2 * c, config.width, 3, 1, 1)
        self.body = nn.Sequential(ResidualConv(config.width), nn.Conv2d(config.width, config.width, 4, 2, 1), ResidualConv(config.width))
        last = nn.Linear(128, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.exit = nn.Sequential(nn.Linear(config.width * (h // 2) * (w // 2), 128), nn.SiLU(), last)

    def forward(self, before: Tensor, after: Tensor, actions: Tensor) -> Tensor:
        dtype = self.entry.weight.dtype
        x = self.entry(torch.cat([before, after], -3).to(dtype)) + self.action(actions)[..., None, None]
        return self.exit(self.body(x).flatten(-3)).float()


class MotionHead(nn.Module):
    """How the true egomotion differs from the kinematics': a wall stops, a slope lifts.

    Latents [B, C, h, w] and actions int64 [B] -> correction float32 [B, 5] in metres and radians, to be added where the
    kinematics' mask allows.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.pair = _Pair(config, 5)

    def forward(self, before: Tensor, after: Tensor, actions: Tensor) -> Tensor:
        return self.pair(before, after, actions)

    def loss(self, before: Tensor, after: Tensor, actions: Tensor, correction: Tensor, mask: Tensor) -> Tensor:
        """Huber loss on the components that may be corrected (`mask` [5])."""
        error = (self(before, after, actions) - correction) * mask
        return F.huber_loss(error, torch.zeros_like(error), delta=0.5)


class RewardHead(nn.Module):
    """Reward class and end from the pixels: for worlds that show what they pay (Memory Maze's border changes colour).

    Rewards are predicted as one of `values`; the most likely one is given.
    """

    def __init__(self, config: HeadConfig, values: tuple[float, ...] = (0.0, 1.0)) -> None:
        super().__init__()
        self.values = values
        self.pair = _Pair(config, len(values) + 1)

    def forward(self, before: Tensor, after: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """-> rewards float32 [B], ends bool [B]."""
        out = self.pair(before, after, actions)
        values = torch.tensor(self.values, device=out.device)
        return values[out[:, :-1].argmax(-1)], out[:, -1] > 0

    def loss(self, before: Tensor, after: Tensor, actions: Tensor, rewards: Tensor, ends: Tensor, rare: float = 20.0) -> Tensor:
        """Cross-entropy of the reward's class plus of the end; a reward that is not `values[0]` weighs `rare` times (they are few)."""
        out = self.pair(before, after, actions)
        values = torch.tensor(self.values, device=out.device)
        target = (rewards[:, None] - values).abs().argmin(-1)
        weight = torch.where(target == 0, 1.0, rare)
        reward = (F.cross_entropy(out[:, :-1], target, reduction="none") * weight).sum() / weight.sum()
        return reward + F.binary_cross_entropy_with_logits(out[:, -1], ends.float())
