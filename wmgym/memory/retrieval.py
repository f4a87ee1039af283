"""Which past frames to look at again: WorldPack's pose score (section 4.2), in log space, and how it is turned into a choice.

    score_i = w_c max(cos, 0) exp(-s^2 / 2 sigma_s^2) exp(-l^2 / 2 sigma_l^2)
            + w_a max(-cos, 0) exp(-(s - mu_s)^2 / 2 sigma_s^2) exp(-l^2 / 2 sigma_l^2)

with s the forward projection of the past frame's position, l its lateral distance and cos the similarity of the view directions.
The paper's sigma_s = 0.01 blocks underflows float32 beyond 0.144 blocks, less than one walked tick, so scores are kept as
logarithms: a score that would have been 0 still ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wmgym.geometry import view_direction

_GRID = 1024  # scores are compared to within 1/1024, so that rounding in a batch cannot change a choice between equal frames


@dataclass(frozen=True)
class RetrievalConfig:
    """Constants of the score and of the choice. `PAPER` holds the published ones.

    The defaults differ from them: with sigma_s = 0.01 and w_a = 1 the best frame on a way back is one seen a block ahead, facing the
    walker, which shows what lies *behind* the target view. Here both distances are of the order of what a view spans, and frames
    that face the other way are left out.
    """

    sigma_s: float = 8.0  # blocks, forward
    sigma_l: float = 4.0  # blocks, lateral
    mu_s: float = 1.0  # blocks
    w_c: float = 1.0
    w_a: float = 0.0
    exclusion: int = 5  # steps: never retrieve what was seen in the last second
    suppression: int = 5  # steps: a chosen frame rules out its neighbours within a second

    def __post_init__(self) -> None:
        for name in ("sigma_s", "sigma_l"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("w_c", "w_a", "exclusion", "suppression"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


PAPER = RetrievalConfig(sigma_s=0.01, sigma_l=10.0, mu_s=1.0, w_c=1.0, w_a=1.0)


def log_score(pose: Tensor, past: Tensor, config: RetrievalConfig) -> Tensor:
    """Logarithm of the score of past poses [B, n, 5] for a view from `pose` [B, 5]: [B, n], -inf where the score is truly 0."""
    direction = view_direction(pose)[:, None]
    away = past[..., :3] - pose[:, None, :3]
    away = torch.cat([away[..., :2], torch.zeros_like(away[..., :1])], -1)  # the paper's p = (x, y, 0)
    s = (away * direction).sum(-1)
    lateral = (away - s[..., None] * direction).square().sum(-1)
    cos = (view_direction(past) * direction).sum(-1)
    sideways = -lateral / (2 * config.sigma_l**2)
    same = _log(config.w_c) + cos.clamp(min=0).log() - s.square() / (2 * config.sigma_s**2)
    opposed = _log(config.w_a) + (-cos).clamp(min=0).log() - (s - config.mu_s).square() / (2 * config.sigma_s**2)
    return torch.logaddexp(same, opposed) + sideways


def _log(weight: float) -> float:
    return math.log(weight) if weight > 0 else -math.inf


def choose(scores: Tensor, times: Tensor, allowed: Tensor, n: int, suppression: int) -> tuple[Tensor, Tensor, Tensor]:
    """The n best allowed entries, greedily, each ruling out what was seen within `suppression` steps of it.

    scores, times, allowed: [B, S]. Returns slots int64 [B, n], their scores, and which of them exist (fewer may be left over).
    Of equal scores the newer frame wins. One pass of tensor operations per pick, for all rows.
    """
    rank = torch.where(allowed & torch.isfinite(scores), (scores.double() * _GRID).round(), -math.inf)
    slots, kept, exists = [], [], []
    for _ in range(n):
        best = rank.amax(1, keepdim=True)
        slot = torch.where(rank == best, times, -1).argmax(1, keepdim=True)
        slots.append(slot)
        exists.append(best > -math.inf)
        kept.append(scores.gather(1, slot))
        near = (times - times.gather(1, slot)).abs() <= suppression
        rank = torch.where(near, -math.inf, rank)
    there = torch.cat(exists, 1)
    return torch.cat(slots, 1), torch.where(there, torch.cat(kept, 1), -math.inf), there
