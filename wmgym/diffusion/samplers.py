"""Samplers of the form `(velocity, x, levels) -> x`. Conditions and contexts are already bound in `velocity`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from wmgym.diffusion.flow import Velocity

Sampler = Callable[[Velocity, Tensor, Sequence[float]], Tensor]


def euler(velocity: Velocity, x: Tensor, levels: Sequence[float]) -> Tensor:
    """First order: one evaluation per step."""
    for level, following in pairwise(levels):
        x = x + (following - level) * velocity(x, x.new_full((len(x),), level))
    return x


def heun(velocity: Velocity, x: Tensor, levels: Sequence[float]) -> Tensor:
    """Second order: two evaluations per step, one in the last (Karras et al. 2022, algorithm 1 without churn)."""
    for level, following in pairwise(levels):
        slope = velocity(x, x.new_full((len(x),), level))
        ahead = x + (following - level) * slope
        if following > 0:
            slope = (slope + velocity(ahead, x.new_full((len(x),), following))) / 2
        x = x + (following - level) * slope
    return x


SAMPLERS: dict[str, Sampler] = {"euler": euler, "heun": heun}


def evaluations(name: str, steps: int) -> int:
    """Number of network evaluations of a sampler."""
    return 2 * steps - 1 if name == "heun" else steps
