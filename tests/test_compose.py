"""Products of experts: coefficients, closed forms of mixtures, and samples that agree with exact densities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wmgym import rng
from wmgym.diffusion.compose import MODES, Composition, Expert, Hamiltonian, Langevin, annealed
from wmgym.diffusion.flow import levels
from wmgym.diffusion.samplers import euler
from wmgym.experiments.composition import LEFT, CompositionArgs, Mixture, experts, product, run, sample


def network(slope: float, calls: list[float] | None = None):
    """A velocity that is not trivial, and counts its evaluations."""

    def velocity(x: Tensor, level: Tensor) -> Tensor:
        if calls is not None:
            calls.append(slope)
        return torch.sin(slope * x) + slope * level.view(-1, *[1] * (x.ndim - 1))

    return velocity


@pytest.fixture
def points() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, 2, generator=generator, dtype=torch.float64), torch.rand(5, generator=generator, dtype=torch.float64) * 0.9


def noise_of(velocity, x: Tensor, level: Tensor) -> Tensor:
    return x + (1 - level.view(-1, 1, 1)) * velocity(x, level)


def test_one_expert_without_contrast_is_that_expert(points: tuple[Tensor, Tensor]) -> None:
    a, b = network(1.5), network(0.3)
    for mode in MODES:
        composed = Composition((Expert(a, b, weight=1.0),), mode)
        assert torch.equal(composed(*points), a(*points))
        torch.testing.assert_close(composed.noise(*points), noise_of(a, *points))


def test_an_expert_of_weight_zero_costs_nothing(points: tuple[Tensor, Tensor]) -> None:
    calls: list[float] = []
    made = (Expert(network(1.0, calls)), Expert(network(2.0, calls), network(3.0, calls), 2.0, weight=0.0))
    for mode in MODES:
        calls.clear()
        Composition(made, mode)(*points)
        assert calls == [1.0]
    calls.clear()
    shared = network(3.0, calls)  # a baseline that two experts share is evaluated once
    Composition((Expert(network(1.0, calls), shared, 2.0), Expert(network(2.0, calls), shared, 1.5)), "sum")(*points)
    assert sorted(calls) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("mode", MODES)
def test_noises_are_combined_as_the_equation_says(mode: str, points: tuple[Tensor, Tensor]) -> None:
    """Equation 6, written out in predicted noise, and turned into a velocity at the end."""
    nets = [network(s) for s in (0.5, 1.5, 0.7, 2.5)]
    alphas, weights = (2.0, 3.0), (1.0, 0.5)
    n, n0, m, m0 = (noise_of(net, *points) for net in nets)
    expected = {
        "poe": n + 0.5 * m,
        "sum": 2 * n - n0 + 0.5 * (3 * m - 2 * m0),
        "mean": (2 * n - n0 + 0.5 * (3 * m - 2 * m0)) / 1.5,
        "guided": n + 0.5 * (m - m0),
    }[mode]
    composed = Composition((Expert(nets[0], nets[1], alphas[0], weights[0]), Expert(nets[2], nets[3], alphas[1], weights[1])), mode)
    torch.testing.assert_close(composed.noise(*points), expected)
    x, level = points
    torch.testing.assert_close(composed(x, level), (expected - x) / (1 - level.view(-1, 1, 1)))


def test_coefficients_that_add_up_to_one_have_a_limit_at_pure_noise(points: tuple[Tensor, Tensor]) -> None:
    x = points[0]
    at = torch.ones(len(x), dtype=x.dtype)
    pair = (Expert(network(0.5), network(1.0), 2.0), Expert(network(2.0), network(3.0), 4.0))
    near = at - 1e-9
    for mode in ("mean", "guided"):
        composed = Composition(pair, mode)
        torch.testing.assert_close(composed(x, at), composed(x, near), atol=1e-6, rtol=0)
    literal = Composition(pair, "sum", floor=0.05)  # coefficients add up to 2: finite, thanks to the floor
    torch.testing.assert_close(literal(x, at) - (Composition(pair, "mean")(x, at) * 2), x / 0.05, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Expert(network(1.0), weight=-1.0), "weight must not be negative, got -1.0"),
        (lambda: Expert(network(1.0), weight=float("nan")), "weight must not be negative"),
        (lambda: Expert(network(1.0), network(2.0), 0.5), "alpha must be at least 1, got 0.5"),
        (lambda: Expert(network(1.0), alpha=2.0), r"alpha=2.0 needs a baseline"),
        (lambda: Composition((Expert(network(1.0), weight=0.0),)), "at least one expert with a weight above 0"),
        (lambda: Composition(()), "at least one expert"),
        (lambda: Composition((Expert(network(1.0)),), "product"), "compose must be one of"),
        (lambda: Composition((Expert(network(1.0)), Expert(network(2.0)))), r"experts \[1\] have none"),
    ],
)
def test_wrong_compositions_are_refused(wrong, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong()


# -- closed forms -----------------------------------------------------------------------------------------------------------------------


def test_the_flow_of_a_mixture_samples_the_mixture() -> None:
    mixture = Mixture(torch.tensor([0.7, 0.3]), torch.tensor([-1.0, 1.5]), 0.2)
    x = sample(Composition((Expert(mixture),), "poe"), 4000, 60, None)
    assert float((x < 0).float().mean()) == pytest.approx(0.7, abs=0.02)
    assert float(x[x < 0].mean()) == pytest.approx(-1, abs=0.02) and float(x[x < 0].std()) == pytest.approx(0.2, abs=0.02)
    grid = torch.linspace(-3, 4, 7001)
    assert float(torch.trapezoid(mixture.density(grid), grid)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("alpha", [1.5, 3.0])
def test_contrast_reweights_disjoint_kernels_and_keeps_their_shape(alpha: float) -> None:
    """Proposition 1: p**alpha q**(1 - alpha) of mixtures of the same disjoint kernels has the weights pi**alpha omega**(1 - alpha)."""
    means = torch.tensor([-6.0, 0.0, 6.0], dtype=torch.float64)
    pi, omega = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    grid = torch.linspace(-9, 9, 9001, dtype=torch.float64)
    contrast = product([(Mixture(pi, means, 0.3), Mixture(omega, means, 0.3))], alpha, grid)
    weights = pi**alpha * omega ** (1 - alpha)
    expected = Mixture(weights / weights.sum(), means, 0.3).density(grid)
    near = expected > 1e-6  # between the kernels nothing is left of either
    torch.testing.assert_close(contrast[near], expected[near], atol=1e-5, rtol=1e-3)
    tempered = Mixture(pi, means, 0.3).density(grid) ** alpha  # what contrast avoids: kernels narrower by sqrt(alpha)
    tempered = tempered / torch.trapezoid(tempered, grid)
    assert float(tempered.max()) > 1.15 * float(Mixture(pi**alpha / (pi**alpha).sum(), means, 0.3).density(grid).max())


def test_products_of_experts_keep_spurious_modes_that_contrast_removes() -> None:
    """Appendix A: the exact densities."""
    pairs, grid = experts(), torch.linspace(-2, 2, 4001)
    outside = grid > LEFT

    def mass(density: Tensor) -> float:
        return float(torch.trapezoid(density * outside, grid))

    one, poe, poce = mass(pairs[0][0].density(grid)), mass(product(pairs, 1.0, grid)), mass(product(pairs, 3.0, grid))
    assert one > poe > 4 * poce and poce < 0.1


def test_sampled_contrast_removes_spurious_modes() -> None:
    pairs = experts()
    shares = {}
    for name, alpha, mode in (("plain", 1.0, "mean"), ("contrast", 3.0, "mean")):
        parts = tuple(Expert(expert, base, alpha) for expert, base in pairs)
        x = sample(Composition(parts, mode), 2000, 60, None)
        shares[name] = float((x > LEFT).float().mean())
    assert shares["contrast"] < 0.5 * shares["plain"]


# -- corrections ------------------------------------------------------------------------------------------------------------------------


def gaussian(mean: float, variance: float):
    """The predicted noise of N(mean, variance) at any level: -t times its score, without diffusing it."""

    def noise(x: Tensor, level: Tensor) -> Tensor:
        return level.view(-1, 1) * (x - mean) / variance

    return noise


@pytest.mark.parametrize("t", [1.0, 0.4])
def test_langevin_steps_keep_a_gaussian(t: float) -> None:
    """Steps of size d along the score of N(m, s**2) have the stationary variance s**2 / (1 - d / (2 s**2))."""
    kind, variance = Langevin(200, 0.1), 0.5
    x = kind(gaussian(0.7, variance), torch.zeros(4000, 2), torch.full((4000,), t), rng.make_keys(list(range(4000))))
    step = kind.size * t**2
    assert float(x.mean()) == pytest.approx(0.7, abs=0.05)
    assert float(x.var()) == pytest.approx(variance / (1 - step / (2 * variance)), rel=0.06)


def test_hamiltonian_steps_keep_a_gaussian() -> None:
    x = Hamiltonian(60, 3, 0.3)(gaussian(-0.4, 0.5), torch.zeros(4000, 2), torch.ones(4000), rng.make_keys(list(range(4000))))
    assert float(x.mean()) == pytest.approx(-0.4, abs=0.05)
    assert float(x.var()) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("kind", [Langevin(6, 0.05), Hamiltonian(3, 3, 0.2)])
def test_corrections_bring_samples_nearer_to_the_product(kind: Langevin | Hamiltonian) -> None:
    """N(-1, .25) times N(1, 1) is N(-.6, .2)."""
    one = torch.ones(1)
    parts = (Expert(Mixture(one, -one, 0.5)), Expert(Mixture(one, one, 1.0)))
    composed = Composition(parts, "poe")
    keys = rng.make_keys(list(range(4000)))

    def away(x: Tensor) -> float:
        return abs(float(x.mean()) + 0.6) + abs(float(x.std()) - 0.2**0.5)

    start = rng.noise(keys, ())
    uncorrected = euler(composed, start, levels(50))
    corrected = annealed(composed, start, levels(50), keys, kind)
    assert away(corrected) < 0.5 * away(uncorrected) and away(corrected) < 0.15


def test_a_lanes_corrections_do_not_depend_on_the_batch() -> None:
    keys = rng.make_keys([3, 4, 5])
    for kind in (Langevin(), Hamiltonian()):
        x, t = torch.zeros(3, 2), torch.full((3,), 0.5)
        torch.testing.assert_close(kind(gaussian(0, 1), x, t, keys)[1:2], kind(gaussian(0, 1), x[1:2], t[1:2], keys[1:2]))


def test_the_figure(tmp_path: Path) -> None:
    report = run(CompositionArgs(samples=200, steps=10, out=tmp_path))
    assert (tmp_path / "composition.png").stat().st_size > 1000
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(report))
    with pytest.raises(ValueError, match="alpha must be above 1"):
        CompositionArgs(alpha=1.0)
