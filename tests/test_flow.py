"""Rectified flow and its samplers: on Gaussian data the exact velocity is known, so the order of each sampler can be measured."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from wmgym.diffusion.flow import corrupt, levels, logit_normal, target_velocity
from wmgym.diffusion.samplers import SAMPLERS, evaluations

MEAN, STD = 0.7, 0.4  # of the data


def gaussian_velocity(x: Tensor, level: Tensor) -> Tensor:
    """E[noise - data | x] for data ~ N(MEAN, STD^2): x is normal with mean (1 - t) MEAN and variance (1 - t)^2 STD^2 + t^2."""
    t = level.view(-1, 1)
    variance = (1 - t) ** 2 * STD**2 + t**2
    return (t - (1 - t) * STD**2) / variance * (x - (1 - t) * MEAN) - MEAN


def quantiles() -> Tensor:
    return torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("name", "order"), [("euler", 1.0), ("heun", 2.0)])
def test_the_error_falls_with_the_samplers_order(name: str, order: float, shift: float) -> None:
    """The exact flow takes the quantile z of the noise to the same quantile of the data, MEAN + STD z."""
    noise = quantiles()
    errors = []
    for steps in (64, 128, 256):
        reached = SAMPLERS[name](gaussian_velocity, noise, levels(steps, shift))
        errors.append(float((reached - (MEAN + STD * noise)).norm()))
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_straight_flow_is_followed_exactly_in_one_step(name: str) -> None:
    """With one data point the velocity towards it is constant along the way."""
    data, noise = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    reached = SAMPLERS[name](lambda x, level: (x - data) / level.view(-1, 1), noise, levels(1))
    assert torch.allclose(reached, data, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_network_evaluations_are_counted_and_levels_are_per_row(name: str, steps: int) -> None:
    seen = []

    def velocity(x: Tensor, level: Tensor) -> Tensor:
        seen.append(level)
        return torch.zeros_like(x)

    noise = torch.randn(3, 2)
    before = noise.clone()
    assert torch.equal(SAMPLERS[name](velocity, noise, levels(steps)), noise)
    assert torch.equal(noise, before)
    assert len(seen) == evaluations(name, steps)
    assert all(level.shape == (3,) and 0 < level.min() == level.max() <= 1 for level in seen)


def test_levels_fall_from_one_to_zero() -> None:
    assert levels(4) == (1, 0.75, 0.5, 0.25, 0)
    for steps, shift in ((1, 1.0), (7, 0.5), (7, 3.0)):
        fall = levels(steps, shift)
        assert len(fall) == steps + 1 and fall[0] == 1 and fall[-1] == 0
        assert all(a > b for a, b in itertools.pairwise(fall))


def test_shift_multiplies_the_ratio_of_noise_to_data() -> None:
    """Esser et al. 2024, section 5.3.2: t / (1 - t) is multiplied by the shift."""
    for even, shifted in zip(levels(9)[1:-1], levels(9, 3.0)[1:-1]):
        assert shifted / (1 - shifted) == pytest.approx(3 * even / (1 - even))


def test_wrong_numbers_are_named() -> None:
    with pytest.raises(ValueError, match=r"denoise_steps.*0"):
        levels(0)
    with pytest.raises(ValueError, match=r"shift.*-1"):
        levels(3, -1.0)


def test_the_target_velocity_is_the_slope_of_the_corrupted_line() -> None:
    data, noise = torch.randn(2, 5, 2, 3, dtype=torch.float64)
    level = torch.rand(5, dtype=torch.float64)
    x, slope = corrupt(data, noise, level), target_velocity(data, noise)
    moved = corrupt(data, noise, level + 0.125)
    assert torch.allclose((moved - x) / 0.125, slope, atol=1e-12)
    to_end = level.view(-1, 1, 1)
    assert torch.allclose(x - to_end * slope, data, atol=1e-12)
    assert torch.allclose(x + (1 - to_end) * slope, noise, atol=1e-12)
    assert torch.equal(corrupt(data, noise, torch.zeros(5)), data) and torch.equal(corrupt(data, noise, torch.ones(5)), noise)


def test_training_levels_have_the_asked_logit() -> None:
    normal = torch.randn(20_000, dtype=torch.float64)
    level = logit_normal(normal, mean=0.5, std=2.0)
    assert level.min() > 0 and level.max() < 1
    assert torch.allclose(torch.logit(level), 0.5 + 2 * normal, atol=1e-6)
    assert float(logit_normal(normal).median()) == pytest.approx(0.5, abs=0.02)
