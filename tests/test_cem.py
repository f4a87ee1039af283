"""The planners find optima that are known, stay in bounds, repeat themselves, and are not fooled by costs that are no numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from wmgym import rng
from wmgym.agents import cem as planning
from wmgym.agents.cem import CEMConfig, MPPIConfig, categorical_cem, cem, mppi, straight_line

KEYS = rng.make_keys([1, 2, 3])


def bowl(centre: Any) -> Any:
    def cost(candidates: Tensor) -> Tensor:
        return (candidates - torch.as_tensor(centre)).square().flatten(2).sum(-1)

    return cost


MEAN, STD = torch.zeros(3, 4, 2), torch.ones(3, 4, 2)
MANY = CEMConfig(samples=256, elites=16, iterations=12, min_std=1e-3)


def test_cem_finds_the_bottom_of_a_bowl() -> None:
    centre = torch.linspace(-0.8, 0.9, 8).view(4, 2)
    found = cem(bowl(centre), MEAN, STD, KEYS, (-1, 1), MANY)
    torch.testing.assert_close(found.plan, centre.expand(3, 4, 2), atol=0.02, rtol=0)
    torch.testing.assert_close(found.cost, bowl(centre)(found.plan[:, None])[:, 0])


def test_each_lane_finds_its_own() -> None:
    centres = torch.tensor([-0.5, 0.0, 0.7]).view(3, 1, 1, 1)
    found = cem(bowl(centres), MEAN, STD, KEYS, (-1, 1), MANY)
    torch.testing.assert_close(found.plan.mean((1, 2)), centres.flatten(), atol=0.02, rtol=0)


def test_an_optimum_outside_of_asymmetric_bounds_is_found_on_their_edge() -> None:
    low, high = torch.tensor([-0.4, 2.0]), torch.tensor([0.3, 5.0])
    seen: list[Tensor] = []

    def cost(candidates: Tensor) -> Tensor:
        seen.append(candidates)
        return bowl(torch.tensor([9.0, -9.0]))(candidates)

    for found in (
        cem(cost, MEAN, 30 * STD, KEYS, (low, high), MANY),
        cem(cost, MEAN, 30 * STD, KEYS, (low, high), CEMConfig(iterations=6, answer="mean")),
        mppi(cost, MEAN, 30 * STD, KEYS, (low, high), MPPIConfig(samples=256, iterations=3)),
    ):
        assert bool(((found.plan >= low) & (found.plan <= high)).all())
    assert all(bool(((c >= low) & (c <= high)).all()) for c in seen)
    found = cem(cost, MEAN, STD, KEYS, (low, high), MANY)
    torch.testing.assert_close(found.plan, torch.tensor([0.3, 2.0]).expand(3, 4, 2), atol=1e-3, rtol=0)


def test_categorical_cem_finds_the_code_of_a_lock() -> None:
    code = torch.tensor([3, 0, 4, 1, 2, 2])

    def cost(candidates: Tensor) -> Tensor:
        return (candidates != code).sum(-1).float()

    found = categorical_cem(cost, torch.ones(3, 6, 5), KEYS, CEMConfig(samples=200, elites=20, iterations=10))
    assert found.plan.dtype == torch.int64
    assert (found.plan == code).all() and (found.cost == 0).all()
    assert bool((found.distribution >= 0.02 - 1e-6).all())  # no category is ever ruled out
    torch.testing.assert_close(found.distribution.sum(-1), torch.ones(3, 6))


def test_a_category_without_a_chance_is_not_drawn() -> None:
    chances = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0]).expand(3, 6, 5)
    drawn: list[Tensor] = []

    def cost(candidates: Tensor) -> Tensor:
        drawn.append(candidates)
        return torch.zeros(candidates.shape[:2])

    categorical_cem(cost, chances, KEYS, CEMConfig(samples=1000, elites=1, iterations=1, min_chance=0))
    share = torch.bincount(drawn[0].flatten(), minlength=5) / drawn[0].numel()
    torch.testing.assert_close(share, torch.tensor([0, 0.25, 0, 0.75, 0]), atol=0.02, rtol=0)


def test_mppi_is_the_weighted_mean() -> None:
    """exp(-(x - c)^2 / 2 T) on N(0, 1) is a Gaussian again, with the mean c / (1 + T)."""
    lanes, temperature, centre = 3, 0.5, 1.2
    found = mppi(
        lambda x: (x - centre).square().flatten(2).sum(-1) / 2,
        torch.zeros(lanes, 1),
        torch.ones(lanes, 1),
        KEYS,
        (-math.inf, math.inf),
        MPPIConfig(samples=20_000, temperature=temperature, with_mean=False),
    )
    expected = centre / (1 + temperature)  # product of N(0, 1) and N(centre, temperature)
    torch.testing.assert_close(found.plan, torch.full((lanes, 1), expected), atol=0.02, rtol=0)
    torch.testing.assert_close(found.distribution.std, torch.ones(lanes, 1))


def test_mppi_finds_the_bottom_too() -> None:
    centre = torch.linspace(-0.8, 0.9, 8).view(4, 2)
    found = mppi(bowl(centre), MEAN, 0.3 * STD, KEYS, (-1, 1), MPPIConfig(samples=512, iterations=30, temperature=0.05))
    torch.testing.assert_close(found.plan, centre.expand(3, 4, 2), atol=0.1, rtol=0)


# -- the same again ---------------------------------------------------------------------------------------------------------------------


def everything(keys: Tensor) -> list[Tensor]:
    lanes = len(keys)
    chances = torch.ones(lanes, 6, 5)
    return [
        cem(bowl(0.3), MEAN[:lanes], STD[:lanes], keys, (-1, 1)).plan,
        mppi(bowl(0.3), MEAN[:lanes], STD[:lanes], keys, (-1, 1)).plan,
        categorical_cem(lambda c: -(c * torch.tensor([1, 2, 4, 8, 16, 32])).sum(-1).float(), chances, keys, CEMConfig(iterations=1)).plan,
    ]


def test_two_runs_with_one_seed_agree_and_other_seeds_differ() -> None:
    for first, second, other in zip(everything(KEYS), everything(KEYS), everything(rng.make_keys([7, 8, 9])), strict=True):
        assert torch.equal(first, second)
        assert not torch.equal(first, other)


def test_a_lane_plans_alike_in_any_batch() -> None:
    for together, alone in zip(everything(KEYS), everything(KEYS[:1]), strict=True):
        torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=0)


def test_nothing_given_is_changed() -> None:
    mean, std, chances = MEAN.clone(), STD.clone(), torch.ones(3, 6, 5)
    cem(bowl(0.3), mean, std, KEYS, (-1, 1))
    categorical_cem(lambda c: c.sum(-1).float(), chances, KEYS)
    assert torch.equal(mean, MEAN) and torch.equal(std, STD) and torch.equal(chances, torch.ones(3, 6, 5))


# -- costs that are no numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("answer", ["best", "mean"])
def test_a_cost_that_is_no_number_is_never_chosen(poison: float, answer: str) -> None:
    """The bowl's bottom lies where the cost is poisoned: the plan comes near, and stays outside."""

    def cost(candidates: Tensor) -> Tensor:
        value = bowl(0.0)(candidates)
        return torch.where((candidates < 0.2).any(-1).any(-1), poison, value)

    config = CEMConfig(samples=256, elites=16, iterations=8, min_std=1e-3, answer=answer)
    found = cem(cost, MEAN + 0.5, 0.2 * STD, KEYS, (-1, 1), config)
    assert bool(found.cost.isfinite().all())
    assert bool((found.plan >= 0.2).all()) and bool((found.plan < 0.4).all())
    assert bool(found.distribution.mean.isfinite().all())
    weighted = mppi(cost, MEAN + 0.5, 0.2 * STD, KEYS, (-1, 1), MPPIConfig(samples=256, temperature=0.1))
    assert bool((weighted.plan >= 0.2).all()) and bool(weighted.cost.isfinite().all())


def test_with_no_finite_cost_at_all_the_plan_is_the_first_mean_and_says_so() -> None:
    def nothing(candidates: Tensor) -> Tensor:
        return torch.full(candidates.shape[:2], math.nan)

    for search, config in ((cem, CEMConfig()), (cem, CEMConfig(answer="mean")), (mppi, MPPIConfig())):
        found = search(nothing, MEAN + 0.25, STD, KEYS, (-1, 1), config)  # type: ignore[operator]
        assert torch.equal(found.plan, MEAN + 0.25)
        assert bool(found.cost.isinf().all())
        assert torch.equal(found.distribution.mean, MEAN + 0.25)
    chances = torch.tensor([0.1, 0.6, 0.3]).expand(3, 4, 3)
    assert (categorical_cem(nothing, chances, KEYS).plan == 1).all()


def test_the_best_candidate_of_all_iterations_is_returned() -> None:
    """Costs get worse with every call, so that the first iteration holds the best."""
    calls: list[Tensor] = []

    def cost(candidates: Tensor) -> Tensor:
        calls.append(candidates)
        return bowl(0.5)(candidates) + 100.0 * (len(calls) - 1)

    found = cem(cost, MEAN, STD, KEYS, (-1, 1), CEMConfig(iterations=3))
    best = bowl(0.5)(calls[0]).min(1)
    torch.testing.assert_close(found.cost, best.values)
    assert torch.equal(found.plan, calls[0][torch.arange(3), best.indices])
    torch.testing.assert_close(found.lowest.min(1).values, found.cost)


def test_the_spread_never_falls_below_its_floor() -> None:
    spreads: list[float] = []

    def cost(candidates: Tensor) -> Tensor:
        spreads.append(float(candidates[:, 1:].std(1).mean()))
        return bowl(0.0)(candidates)

    cem(cost, MEAN, 0 * STD, KEYS, (-9, 9), CEMConfig(samples=128, elites=1, iterations=5, min_std=0.3))
    assert min(spreads) == pytest.approx(0.3, rel=0.1)
    assert max(spreads) == pytest.approx(0.3, rel=0.1)


# -- NWM ---------------------------------------------------------------------------------------------------------------------------------

LOW, HIGH = torch.tensor([-2.5, -4.0]), torch.tensor([5.0, 4.0])


def to_spacings(normalised: Tensor) -> Tensor:
    return (normalised + 1) / 2 * (HIGH - LOW) + LOW


def test_a_straight_line_goes_straight_and_turns_at_its_ends() -> None:
    sample = torch.tensor([[0.2, 0.1, 0.25]])  # (2, 0.4) spacings a step
    steps = straight_line(sample, 8, to_spacings)
    assert steps.shape == (1, 8, 3)
    path = to_spacings(steps[..., :2]).cumsum(1)
    torch.testing.assert_close(path[0, -1], 8 * to_spacings(sample[0, :2]))
    heading = math.atan2(0.4, 2.0)
    torch.testing.assert_close(steps[0, :, 2], torch.tensor([heading, 0, 0, 0, 0, 0, 0, math.pi / 4]), atol=1e-6, rtol=0)
    assert straight_line(sample, 1, to_spacings)[0, 0, 2].item() == pytest.approx(heading + math.pi / 4, abs=1e-6)


def test_nwms_setting_asks_for_as_many_frames_as_published() -> None:
    """2,888 generated frames for a trajectory: 120 x 3 x 8 candidates, and 8 of the plan itself."""
    mean, std = (torch.tensor([v]) for v in planning.NWM_PRIORS["recon"])
    frames = 0

    def cost(samples: Tensor) -> Tensor:
        nonlocal frames
        repeats = planning.NWM_REPEATS if samples.shape[1] > 1 else 1
        frames += samples.shape[1] * repeats * planning.NWM_HORIZON
        end = 8 * to_spacings(samples[..., :2])
        return (end - torch.tensor([7.0, 1.0])).square().sum(-1)

    found = cem(cost, mean, std, KEYS[:1], planning.NWM_BOUNDS, planning.NWM_CEM)
    assert frames == 2888
    torch.testing.assert_close(found.plan, found.distribution.mean)
    assert float(found.cost) < float(cost(mean[:, None]))


def test_the_prior_of_a_data_set_is_its_mean_and_spread() -> None:
    prior = planning.straight_line_prior(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([0.5, -0.5]))
    torch.testing.assert_close(prior.mean, torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(prior.std, torch.tensor([[1.0, 0.0, 0.5]]))


# -- what is refused --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: CEMConfig(samples=4, elites=5), "elites"),
        (lambda: CEMConfig(iterations=0), "iterations"),
        (lambda: CEMConfig(answer="last"), "answer"),
        (lambda: MPPIConfig(temperature=0), "temperature"),
        (lambda: cem(bowl(0.0), MEAN, STD, KEYS[:2], (-1, 1)), "keys"),
        (lambda: cem(bowl(0.0), MEAN, STD, KEYS, (1, -1)), "bounds"),
        (lambda: cem(bowl(0.0), MEAN * math.nan, STD, KEYS, (-1, 1)), "finite"),
        (lambda: cem(lambda c: c.sum(), MEAN, STD, KEYS, (-1, 1)), r"\[B, K\]"),
        (lambda: categorical_cem(bowl(0.0), torch.ones(3, 2, 60), KEYS), "min_chance"),
        (lambda: categorical_cem(bowl(0.0), torch.zeros(3, 2, 4), KEYS), "chances"),
        (lambda: straight_line(torch.zeros(2), 8, to_spacings), "samples"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
