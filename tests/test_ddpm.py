"""Discrete diffusion: the schedule is the published one, and the samplers undo what is known in closed form."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from wmgym import rng
from wmgym.diffusion.ddpm import ANCESTRAL, STEPS, Predict, Schedule, ddim, ddpm, respaced

KEPT = (1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)).cumprod(0)


def noise_of(x: Tensor) -> Tensor:
    """A stream of noise that a test can repeat."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)


def gaussian(std: float, v: float = -1.0) -> Predict:
    """The exact noise prediction for data N(0, std^2), and a constant v."""

    def predict(x: Tensor, step: Tensor) -> Tensor:
        kept = KEPT[step.long()].to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        return torch.cat([x * (1 - kept).sqrt() / (kept * std**2 + 1 - kept), torch.full_like(x, v)], 2)

    return predict


def point(value: float) -> Predict:
    """The exact noise prediction for data that is one value everywhere."""

    def predict(x: Tensor, step: Tensor) -> Tensor:
        kept = KEPT[step.long()].to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        return torch.cat([(x - kept.sqrt() * value) / (1 - kept).sqrt(), torch.zeros_like(x)], 2)

    return predict


def test_the_schedule_visits_the_ends_and_keeps_the_products_of_all_1000_betas() -> None:
    schedule = respaced(250)
    assert len(schedule.steps) == 250 and schedule.steps[0] == 0 and schedule.steps[-1] == 999
    assert {b - a for a, b in pairwise(schedule.steps)} == {4, 5}
    betas = [1e-4 + t * (0.02 - 1e-4) / 999 for t in range(STEPS)]
    for i in (0, 100, 249):
        assert schedule.kept[i] == pytest.approx(math.prod(1 - beta for beta in betas[: schedule.steps[i] + 1]))
    assert respaced(STEPS).steps == tuple(range(STEPS))


@pytest.mark.parametrize("count", [0, STEPS + 1])
def test_a_count_of_steps_that_cannot_be_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and {STEPS}, got {count}"):
        respaced(count)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
@pytest.mark.parametrize("count", [1, 7, 250])
def test_with_the_exact_noise_of_a_point_every_sampler_lands_on_it(name: str, count: int) -> None:
    x = noise_of(torch.zeros(2, 1, 3, 4, 4, dtype=torch.float64))
    out = ANCESTRAL[name](point(0.7), x, respaced(count), lambda i: noise_of(x))
    assert torch.allclose(out, torch.full_like(x, 0.7), atol=1e-9)


def test_ddim_moves_a_gaussian_to_the_datas_width() -> None:
    """The exact flow of a Gaussian is a scaling by std / (std at the first step); the error of the steps falls with their number."""
    std = 0.4
    x = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    exact = std / math.sqrt(float(KEPT[-1]) * std**2 + 1 - float(KEPT[-1]))
    errors = [abs(float(ddim(gaussian(std), x, respaced(n), lambda i: x)) - exact) for n in (125, 250, 500, 1000)]
    assert errors[-1] < 0.01 * exact
    assert all(1.5 < a / b < 3 for a, b in pairwise(errors))  # first order


@pytest.mark.parametrize("v", [-1.0, 1.0])
def test_ddpm_gives_the_datas_variance_whichever_learned_variance_is_told(v: float) -> None:
    """The sampler is linear here. Row j gets one unit of noise at step j alone and so shows that step's gain: their squares add up."""
    std = 0.4

    def variance(count: int) -> float:
        one = torch.eye(count, dtype=torch.float64).view(count, count, 1, 1, 1, 1)  # row 0 begins with the unit
        return float(ddpm(gaussian(std, v), one[0], respaced(count), lambda i: one[i]).square().sum())

    coarse, fine = (abs(variance(count) - std**2) / std**2 for count in (250, 1000))
    assert fine < 0.02 and 2 < coarse / fine < 6  # first order


def test_the_learned_variance_runs_from_the_posteriors_to_beta() -> None:
    schedule = Schedule((100, 200), (float(KEPT[100]), float(KEPT[200])))
    zero = torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64)

    def drawn(v: float) -> float:
        """Standard deviation of the first of the two steps, read off with a prediction that the last one passes on unscaled."""
        predict = lambda x, step: torch.cat([torch.zeros_like(x), torch.full_like(x, v)], 2)  # noqa: E731
        out = ddpm(predict, zero, schedule, lambda i: zero + 1)
        return float(out) * math.sqrt(schedule.kept[0])  # without noise left, the last step divides by sqrt(a)

    beta = 1 - schedule.kept[1] / schedule.kept[0]
    posterior = beta * (1 - schedule.kept[0]) / (1 - schedule.kept[1])
    assert drawn(1.0) == pytest.approx(math.sqrt(beta)) and drawn(-1.0) == pytest.approx(math.sqrt(posterior))
    assert drawn(0.0) == pytest.approx((beta * posterior) ** 0.25)


def test_the_noise_of_each_step_is_its_own() -> None:
    keys = rng.make_keys([3])
    drawn = [rng.noise(rng.fold(keys, i), (64,)) for i in range(250)]
    assert len({float(x[0, 0]) for x in drawn}) == 250
