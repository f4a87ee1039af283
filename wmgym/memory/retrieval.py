"""Retrieval of past frames: WorldPack's pose score (section 4.2), in log space, and the choice of frames by score.

`RetrievalConfig.method` "coverage" replaces score and choice by greedy coverage of the target view (`coverage.py`).

    score_i = w_c max(cos, 0) exp(-s^2 / 2 sigma_s^2) exp(-l^2 / 2 sigma_l^2)
            + w_a max(-cos, 0) exp(-(s - mu_s)^2 / 2 sigma_s^2) exp(-l^2 / 2 sigma_l^2)

with s the forward projection of the past frame's position, l its lateral distance and cos the similarity of the view directions.
With the paper's sigma_s = 0.01 blocks the score underflows float32 beyond 0.144 blocks, less than one game tick of walking. Logarithms of
scores do not underflow, so all frames can be ranked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wmgym.geometry import view_direction

METHODS = ("score", "coverage")
_GRID = 1024  # scores are rounded to 1/1024, so that rounding errors in a batch cannot change a choice between equal frames


@dataclass(frozen=True)
class RetrievalConfig:
    """Constants of the score and of the choice. `PAPER` holds the published values.

    The defaults differ: with sigma_s = 0.01 and w_a = 1 the best frame on the way back is one block ahead and faces the agent, so it shows
    what is *behind* the target view. Here both distances are of the order of a view's extent, and frames that face the other way are
    excluded.
    """

    method: str = "score"  # "score": the highest, apart in time; "coverage": each frame for what it adds to those chosen before
    sigma_s: float = 8.0  # blocks, forward
    sigma_l: float = 4.0  # blocks, lateral
    mu_s: float = 1.0  # blocks
    w_c: float = 1.0
    w_a: float = 0.0
    exclusion: int = 5  # steps: frames of the last second are never retrieved
    suppression: int = 5  # steps, for method "score": a chosen frame excludes its neighbours within a second

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"retrieval method must be one of {', '.join(METHODS)}, got {self.method!r}")
        for name in ("sigma_s", "sigma_l"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("w_c", "w_a", "exclusion", "suppression"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


PAPER = RetrievalConfig(sigma_s=0.01, sigma_l=10.0, mu_s=1.0, w_c=1.0, w_a=1.0)


def log_score(pose: Tensor, past: Tensor, config: RetrievalConfig) -> Tensor:
    """Logarithm of the score of past poses [B, n, 5] for a view from `pose` [B, 5]: [B, n]; -inf where the score is exactly 0."""
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
    """Greedily choose the n best allowed entries. Each excludes the frames within `suppression` steps of it.

    scores, times, allowed: [B, S]. Returns slots int64 [B, n], their scores, and which of them exist (there may be fewer than n). Of equal
    scores the newer frame is chosen.
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
