"""Diffusion in discrete steps: DDPM (Ho et al. 2020) with learned variances (Nichol and Dhariwal 2021), and DDIM (Song et al. 2021).

Step t of 1,000 mixes sqrt(a_t) of the data with sqrt(1 - a_t) of noise. The network predicts the noise and, in as many further channels,
the interpolation of each log variance between its smallest and largest value. Sampling uses only some of the steps ("respaced").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

STEPS = 1000
Predict = Callable[[Tensor, Tensor], Tensor]  # (x [B, F, C, ...], step [B]) -> [B, F, 2 C, ...]: noise, then v in about [-1, 1]
Noise = Callable[[int], Tensor]  # position in the schedule -> standard normal numbers of x's shape


@dataclass(frozen=True)
class Schedule:
    """The steps of a sampler, from low to high noise, and the share of the data's variance that is left at each (float64)."""

    steps: tuple[int, ...]
    kept: tuple[float, ...]  # a_t, the product of 1 - beta up to t

    def before(self, i: int) -> float:
        """The share that is left at the step after i in sampling order."""
        return self.kept[i - 1] if i else 1.0


@lru_cache
def respaced(count: int, steps: int = STEPS) -> Schedule:
    """`count` evenly spaced steps, with the first and the last; betas grow linearly from 1e-4 to 0.02."""
    if not 1 <= count <= steps:
        raise ValueError(f"denoise_steps must be between 1 and {steps}, got {count}")
    kept = (1 - torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)).cumprod(0)
    chosen = [round(i * (steps - 1) / (count - 1)) for i in range(count)] if count > 1 else [steps - 1]
    return Schedule(tuple(chosen), tuple(kept[chosen].tolist()))


def ddpm(predict: Predict, x: Tensor, schedule: Schedule, noise: Noise) -> Tensor:
    """Ancestral sampling with one network evaluation per step. The last step adds no noise."""
    for i in reversed(range(len(schedule.steps))):
        eps, v = _predicted(predict, x, schedule, i)
        kept, before = schedule.kept[i], schedule.before(i)
        beta = 1 - kept / before  # of the respaced step
        clean = (x - (1 - kept) ** 0.5 * eps) / kept**0.5
        mean = beta * before**0.5 / (1 - kept) * clean + (1 - before) * (1 - beta) ** 0.5 / (1 - kept) * x
        if i == 0:
            return mean
        # the posterior's variance is the smallest, beta the largest (Nichol and Dhariwal, equation 15)
        smallest, largest = torch.tensor([beta * (1 - before) / (1 - kept), beta], dtype=torch.float64).log().tolist()
        share = (v + 1) / 2
        x = mean + (0.5 * (share * largest + (1 - share) * smallest)).exp() * noise(i)
    return x


def ddim(predict: Predict, x: Tensor, schedule: Schedule, noise: Noise) -> Tensor:
    """Deterministic sampling (eta = 0). The learned variances and `noise` are not used."""
    for i in reversed(range(len(schedule.steps))):
        eps, _ = _predicted(predict, x, schedule, i)
        kept, before = schedule.kept[i], schedule.before(i)
        clean = (x - (1 - kept) ** 0.5 * eps) / kept**0.5
        x = before**0.5 * clean + (1 - before) ** 0.5 * eps
    return x


ANCESTRAL = {"ddpm": ddpm, "ddim": ddim}


def _predicted(predict: Predict, x: Tensor, schedule: Schedule, i: int) -> tuple[Tensor, Tensor]:
    eps, v = predict(x, x.new_full((len(x),), schedule.steps[i])).chunk(2, 2)
    return eps, v
