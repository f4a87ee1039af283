"""Small networks that read two successive latents: `MotionHead` corrects the motion, `RewardHead` classifies the outcome."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmgym.constants import constant
from wmgym.nets.layers import ResidualConv


@dataclass(frozen=True)
class HeadConfig:
    latent_shape: tuple[int, int, int] = (12, 8, 8)
    num_actions: int = 10
    width: int = 64


class _Pair(nn.Module):
    """(previous latent, new latent, action) -> `outputs` numbers, initialised to zero."""

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
    """Difference between the true egomotion and that of the kinematics, for example at walls and slopes.

    Latents [B, C, h, w] and actions int64 [B] -> correction float32 [B, 5] in metres and radians, which is added where the kinematics'
    mask allows it.
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
    """Classifies a step's reward and end, for worlds whose frames show them (in Memory Maze the border changes its colour).

    A class is one of `outcomes`, pairs of a reward and whether the episode ended. One outcome may be a hundred times rarer than another.
    Training therefore draws all outcomes equally often (`train/reward.py`), and `log_prior`, the logarithm of each outcome's frequency in
    the data over that in a batch, is added afterwards (logit adjustment, Menon et al. 2021, section 3). The posterior is then that of
    the data. The prediction is the most probable outcome, so equal latents give equal rewards.
    """

    log_prior: Tensor  # float32 [K]

    def __init__(self, config: HeadConfig, outcomes: tuple[tuple[float, bool], ...] = ((0.0, False), (1.0, False))) -> None:
        super().__init__()
        self.outcomes = outcomes
        self.pair = _Pair(config, len(outcomes))
        self.register_buffer("log_prior", torch.zeros(len(outcomes)))

    def forward(self, before: Tensor, after: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [B, C, h, w] and actions int64 [B] -> rewards float32 [B], ends bool [B]."""
        which = self.posterior(before, after, actions).argmax(-1)
        rewards, ends = zip(*self.outcomes, strict=True)
        return constant(rewards, torch.float32, which.device)[which], constant(ends, torch.bool, which.device)[which]

    def posterior(self, before: Tensor, after: Tensor, actions: Tensor) -> Tensor:
        """Probability of each outcome: float32 [B, K]."""
        return (self.pair(before, after, actions) + self.log_prior).softmax(-1)

    def loss(self, before: Tensor, after: Tensor, actions: Tensor, outcomes: Tensor) -> Tensor:
        """Cross-entropy of outcome indices int64 [B], for a batch in which all outcomes are equally frequent."""
        return F.cross_entropy(self.pair(before, after, actions), outcomes)
