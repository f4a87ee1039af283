"""Sampling-based planning, as pure functions of a cost: CEM, its categorical form, and MPPI.

    found = cem(cost, mean, std, keys, bounds, CEMConfig(samples=64, elites=8, iterations=4))
    found.plan  # [B, *shape], inside the bounds

B lanes are planned side by side, with K candidates each. Every iteration computes all costs in one call: cost(candidates [B, K, *shape])
-> [B, K], lower is better. A lane's candidates depend on its key alone, so its plan does not depend on the batch size. A candidate whose
cost is not finite is never chosen and does not enter any update.

CEM: Rubinstein 1999, "The cross-entropy method for combinatorial and continuous optimization". MPPI: Williams et al. 2017, "Information
theoretic MPC for model-based reinforcement learning", equation 26 (with the costs of whole candidates). NWM: Bar et al. 2025, "Navigation
world models", section 4.3, as its released code has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wmgym import rng
from wmgym.geometry import wrap_angle

Cost = Callable[[Tensor], Tensor]  # [B, K, *shape] -> [B, K]
Bounds = tuple[Any, Any]  # lowest and highest, numbers or tensors that broadcast to [*shape]; may be infinite


def _check_counts(samples: int, iterations: int) -> None:
    for name, value in (("samples", samples), ("iterations", iterations)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")


def _check_answer(answer: str) -> None:
    if answer not in ("best", "mean"):
        raise ValueError(f"answer must be 'best' or 'mean', got {answer!r}")


@dataclass(frozen=True)
class CEMConfig:
    """Settings of `cem` and `categorical_cem`. A wrong value raises `ValueError`."""

    samples: int = 64  # K, candidates per lane
    elites: int = 8  # best candidates, to which the next distribution is fitted
    iterations: int = 4
    min_std: float = 0.05  # lower bound of the std, in units of the plan (not in `categorical_cem`)
    min_chance: float = 0.02  # lower bound of each category's probability (only in `categorical_cem`)
    smoothing: float = 0.0  # weight of the old distribution in the new one
    with_mean: bool = True  # the first candidate is the distribution's mean (or its most likely categories)
    answer: str = "best"  # the returned plan: "best" candidate of all iterations, or "mean" of the last distribution

    def __post_init__(self) -> None:
        _check_counts(self.samples, self.iterations)
        _check_answer(self.answer)
        if not 1 <= self.elites <= self.samples:
            raise ValueError(f"elites must be from 1 to samples={self.samples}, got {self.elites}")
        if not self.min_std >= 0:
            raise ValueError(f"min_std must not be negative, got {self.min_std}")
        for name in ("min_chance", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True)
class MPPIConfig:
    """Settings of `mppi`. A wrong value raises `ValueError`."""

    samples: int = 64
    iterations: int = 1
    temperature: float = 1.0  # in units of the cost: an excess cost of this size divides a candidate's weight by e
    with_mean: bool = True
    answer: str = "mean"

    def __post_init__(self) -> None:
        _check_counts(self.samples, self.iterations)
        _check_answer(self.answer)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")


class Gaussian(NamedTuple):
    """A diagonal Gaussian over plans."""

    mean: Tensor  # [B, *shape]
    std: Tensor  # [B, *shape]


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    plan: Tensor  # [B, *shape], float or int64
    cost: Tensor  # [B]: of the plan; infinite if no candidate had a finite cost (the plan is then the first mean)
    distribution: Any  # after the last iteration: a `Gaussian`, or probabilities [B, *shape, A]
    lowest: Tensor  # [B, iterations]: the lowest cost of each iteration


def cem(cost: Cost, mean: Tensor, std: Tensor, keys: Tensor, bounds: Bounds, config: CEMConfig = CEMConfig()) -> Found:
    """The cross-entropy method. mean and std float [B, *shape], keys int64 [B, 2]. Candidates are clipped to the bounds."""

    def update(old: Gaussian, candidates: Tensor, costs: Tensor) -> Gaussian:
        chosen, weights = _elites(candidates, costs, config.elites)
        new_mean = (weights * chosen).sum(1)
        new_std = (weights * (chosen - new_mean[:, None]).square()).sum(1).sqrt()
        found = weights.flatten(1).sum(1).gt(0).view(-1, *[1] * (mean.ndim - 1))
        mixed = Gaussian(*(torch.lerp(new, before, config.smoothing) for new, before in zip((new_mean, new_std), old)))
        return Gaussian(torch.where(found, mixed.mean, old.mean), torch.where(found, mixed.std, old.std))

    return _gaussian_search(cost, mean, std, keys, bounds, config.min_std, update, config)


def mppi(cost: Cost, mean: Tensor, std: Tensor, keys: Tensor, bounds: Bounds, config: MPPIConfig = MPPIConfig()) -> Found:
    """Model predictive path integral control: the mean of all candidates, weighted by exp(-cost / temperature). The std is constant."""

    def update(old: Gaussian, candidates: Tensor, costs: Tensor) -> Gaussian:
        lowest = costs.amin(1, keepdim=True)
        weights = torch.where(costs.isfinite(), (-(costs - lowest) / config.temperature).exp(), 0)
        total = weights.sum(1, keepdim=True)
        weights = (weights / total.clamp(min=1e-30)).view(*weights.shape, *[1] * (mean.ndim - 1))
        found = (total > 0).view(-1, *[1] * (mean.ndim - 1))
        return Gaussian(torch.where(found, (weights * candidates).sum(1), old.mean), old.std)

    return _gaussian_search(cost, mean, std, keys, bounds, 0.0, update, config)


def categorical_cem(cost: Cost, chances: Tensor, keys: Tensor, config: CEMConfig = CEMConfig()) -> Found:
    """CEM over independent categories: probabilities `chances` float [B, *shape, A] -> plans int64 [B, *shape]."""
    num = chances.shape[-1]
    if config.min_chance * num >= 1:
        raise ValueError(f"min_chance must be below 1 / {num} for {num} categories, got {config.min_chance}")
    if not bool((chances >= 0).all()) or not bool((chances.sum(-1) > 0).all()):
        raise ValueError("chances must not be negative, and must have a positive sum along the last axis")
    shape = tuple(chances.shape[1:-1])

    def floored(values: Tensor) -> Tensor:
        return config.min_chance + (1 - config.min_chance * num) * values / values.sum(-1, keepdim=True)

    def draw(values: Tensor, these: Tensor) -> Tensor:
        heights = values.cumsum(-1)
        heights = (heights / heights[..., -1:])[:, None]
        return (rng.uniform(these, (config.samples, *shape))[..., None] > heights).sum(-1)

    def update(old: Tensor, candidates: Tensor, costs: Tensor) -> Tensor:
        chosen, weights = _elites(torch.nn.functional.one_hot(candidates, num).float(), costs, config.elites)
        found = weights.flatten(1).sum(1).gt(0).view(-1, *[1] * (old.ndim - 1))
        return floored(torch.where(found, torch.lerp((weights * chosen).sum(1), old, config.smoothing), old))

    def likeliest(values: Tensor) -> Tensor:
        return values.argmax(-1)

    return _search(cost, floored(chances.float()), keys, draw, update, likeliest, config)


# -- shared by all searches -------------------------------------------------------------------------------------------------------------


def _gaussian_search(
    cost: Cost, mean: Tensor, std: Tensor, keys: Tensor, bounds: Bounds, min_std: float, update: Callable[..., Gaussian], config: Any
) -> Found:
    low, high = (torch.as_tensor(bound, dtype=mean.dtype, device=mean.device) for bound in bounds)
    if not bool((low <= high).all()):  # also catches NaN
        raise ValueError(f"bounds must be a lowest and a highest value, got {bounds[0]} and {bounds[1]}")
    std = std.to(mean).expand_as(mean)
    if not bool(mean.isfinite().all()) or not bool(((std >= 0) & std.isfinite()).all()):
        raise ValueError("mean and std must be finite, and std not negative")

    def draw(state: Gaussian, these: Tensor) -> Tensor:
        noise = state.std.clamp(min=min_std)[:, None] * rng.noise(these, (config.samples, *mean.shape[1:]))
        return (state.mean[:, None] + noise).clamp(low, high)

    def inside(state: Gaussian) -> Tensor:
        return state.mean.clamp(low, high)

    return _search(cost, Gaussian(inside(Gaussian(mean, std)), std.clamp(min=min_std)), keys, draw, update, inside, config)


def _search(
    cost: Cost,
    state: Any,
    keys: Tensor,
    draw: Callable[[Any, Tensor], Tensor],
    update: Callable[[Any, Tensor, Tensor], Any],
    centre: Callable[[Any], Tensor],
    config: Any,
) -> Found:
    """Repeat: draw candidates, compute their costs, update the distribution. The best candidate of all iterations is kept."""
    best = centre(state)
    if keys.shape != (len(best), 2):
        raise ValueError(f"keys must be [{len(best)}, 2], one for each lane, got {list(keys.shape)}")
    best_cost = torch.full((len(best),), math.inf, device=best.device)
    rows = torch.arange(len(best), device=best.device)
    lowest = []
    for iteration in range(config.iterations):
        candidates = draw(state, rng.fold(keys, iteration))
        if config.with_mean:
            candidates[:, 0] = centre(state)
        costs = _costs(cost, candidates)
        value, at = costs.min(1)
        better = value < best_cost
        best = torch.where(better.view(-1, *[1] * (best.ndim - 1)), candidates[rows, at], best)
        best_cost = torch.minimum(value, best_cost)
        lowest.append(value)
        state = update(state, candidates, costs)
    if config.answer == "mean":  # its cost is computed too: if it is not finite, the best candidate is returned instead
        last = centre(state)
        value = _costs(cost, last[:, None])[:, 0]
        fine = value.isfinite()
        best = torch.where(fine.view(-1, *[1] * (best.ndim - 1)), last, best)
        best_cost = torch.where(fine, value, best_cost)
    return Found(best, best_cost, state, torch.stack(lowest, 1))


def _costs(cost: Cost, candidates: Tensor) -> Tensor:
    """Costs float32 [B, K], infinite where the cost is not finite."""
    costs = cost(candidates)
    if costs.shape != candidates.shape[:2]:
        raise ValueError(f"cost must give [B, K] = {list(candidates.shape[:2])}, got {list(costs.shape)}")
    costs = costs.to(candidates.device, torch.float32)
    return torch.where(costs.isfinite(), costs, math.inf)


def _elites(candidates: Tensor, costs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best candidates [B, E, *shape] and their weights [B, E, 1...], which are equal, but 0 where the cost is not finite."""
    ranked, order = costs.sort(dim=1, stable=True)
    chosen = candidates[torch.arange(len(costs), device=costs.device)[:, None], order[:, :count]]
    fine = ranked[:, :count].isfinite().float()
    weights = fine / fine.sum(1, keepdim=True).clamp(min=1)
    return chosen, weights.view(*weights.shape, *[1] * (candidates.ndim - 2))


# -- NWM's planner ----------------------------------------------------------------------------------------------------------------------

NWM_CEM = CEMConfig(samples=120, elites=5, iterations=1, min_std=1e-3, with_mean=False, answer="mean")
NWM_HORIZON = 8  # steps of 1/4 s
NWM_REPEATS = 3  # dreams of each candidate, whose costs are averaged
NWM_BOUNDS = (-1.0, 1.0)  # of dx and dy normalised to the data, and of the final turn in half turns
NWM_PRIORS = {  # data set -> means and standard deviations of (dx, dy, final turn), from NWM's released code
    "recon": ((-0.10, 0.0, 0.0), (0.02, 0.1, 0.1)),
    "scand": ((-0.25, 0.0, 0.0), (0.04, 0.1, 0.1)),
    "sacson": ((-0.33, 0.0, 0.0), (0.03, 0.1, 0.1)),
    "tartan_drive": ((0.50, 0.0, 0.0), (0.07, 0.1, 0.1)),
}


def straight_line(samples: Tensor, horizon: int, to_spacings: Callable[[Tensor], Tensor]) -> Tensor:
    """NWM's candidates: a straight line at constant speed with one turn at its end.

    samples [..., 3]: the normalised displacement of one step, and the final turn in half turns (times pi radians).
    to_spacings: undoes the normalisation of a displacement [..., 2].
    Returns [..., horizon, 3]: the displacement of each step, normalised and in the frame of the path's start, and the turn of each step in
    radians. The first turn aligns the view with the line; the last one adds the final turn.
    """
    if samples.shape[-1] != 3 or horizon < 1:
        raise ValueError(f"samples must be [..., 3] and horizon positive, got {list(samples.shape)} and {horizon}")
    step = to_spacings(samples[..., :2])
    turns = samples.new_zeros(*samples.shape[:-1], horizon)
    turns[..., 0] = torch.atan2(step[..., 1], step[..., 0])
    turns[..., -1] = wrap_angle(turns[..., -1] + math.pi * samples[..., 2])
    line = samples[..., None, :2].expand(*samples.shape[:-1], horizon, 2)
    return torch.cat([line, turns[..., None]], -1)


def straight_line_prior(displacements: Tensor, turns: Tensor) -> Gaussian:
    """A prior of straight lines fitted to a data set, in place of a table such as `NWM_PRIORS`.

    Normalised displacements [N, 2] of one step and final turns [N] in half turns -> their mean and std [1, 3].
    """
    if displacements.ndim != 2 or displacements.shape[1:] != (2,) or turns.shape != displacements.shape[:1] or len(turns) < 2:
        raise ValueError(f"displacements must be [N, 2] and turns [N] with N > 1, got {list(displacements.shape)} and {list(turns.shape)}")
    samples = torch.cat([displacements.float(), turns.float()[:, None]], 1)
    return Gaussian(samples.mean(0, keepdim=True), samples.std(0, correction=0, keepdim=True))
