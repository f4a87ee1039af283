"""Products of diffusion experts, and of contrastive ones (CoME, section 3.2 and equations 3 to 6).

    composed = Composition((Expert(base), Expert(stm, baseline=stm_without_context, alpha=2.0)), "guided")
    x = euler(composed, noise, levels(8))

A product of densities adds scores, and a score is -noise / t in predicted noise. So experts are combined in predicted noise: with rectified
flow x = (1 - t) data + t noise, an expert's velocity v predicts the noise x + (1 - t) v. For coefficients c_j with the sum C

    noise    = C x + (1 - t) sum c_j v_j
    velocity = sum c_j v_j + (C - 1) x / (1 - t)

If C is 1 this is the same combination of velocities. If it is not, as in the paper's equation 6 with K experts (C = K), the second term has
no limit at t = 1, where all experts predict x itself; 1 - t is then at least `floor`. On mixtures of Gaussians plain samples of such a
product all fall on one point, and samples with `Langevin` corrections agree with the exact density (`experiments/composition.py`).

An expert's coefficients are alpha for the expert and 1 - alpha for its baseline, times its weight:

poe      sum of weight * noise: a plain product; baselines and alphas are not used
sum      sum of weight * contrast, to the letter of equation 6
mean     the same with weights that are normalised to 1
guided   the first expert, plus the sum of weight * (noise - baseline's noise) of the others; alphas are not used. The first expert's
         distribution is moved by what the others' contexts add, and C is 1

The diffused product is not the product of the diffused experts (Du et al. 2023), so samples of a product are biased. `Langevin` and
`Hamiltonian` reduce that by steps at a constant noise level (appendix D.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from torch import Tensor

from wmgym import rng
from wmgym.diffusion.flow import Velocity

MODES = ("poe", "sum", "mean", "guided")
Noise = Callable[[Tensor, Tensor], Tensor]  # (x [B, ...], level [B]) -> predicted noise
Corrector = Callable[[Noise, Tensor, Tensor, Tensor], Tensor]  # (noise, x, level [B], keys [B, 2]) -> x


@dataclass(frozen=True)
class Expert:
    """A network bound to its context, and the one that it is contrasted with."""

    velocity: Velocity
    baseline: Velocity | None = None  # without the expert's context
    alpha: float = 1.0  # 1: no contrast; the paper takes at least 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight must not be negative, got {self.weight}")
        if not self.alpha >= 1:
            raise ValueError(f"alpha must be at least 1, got {self.alpha}")
        if self.alpha != 1 and self.baseline is None:
            raise ValueError(f"an expert with alpha={self.alpha} needs a baseline to be contrasted with")


def coefficients(mode: str, experts: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Coefficients in predicted noise of each expert, given by weight and alpha, and of its baseline."""
    total = sum(weight for weight, _ in experts) if mode == "mean" else 1.0
    if mode == "poe":
        return [(weight, 0.0) for weight, _ in experts]
    if mode == "guided":
        return [(weight, -weight) if k else (1.0, 0.0) for k, (weight, _) in enumerate(experts)]
    return [(weight / total * alpha, weight / total * (1 - alpha)) if weight else (0.0, 0.0) for weight, alpha in experts]


@dataclass(frozen=True)
class Composition:
    """Experts as one `Velocity`. Networks with coefficient 0 are not evaluated, and each network is evaluated once."""

    experts: tuple[Expert, ...]
    mode: str = "guided"
    floor: float = 0.02  # least 1 - t, if the coefficients do not add up to 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"compose must be one of {list(MODES)}, got {self.mode!r}")
        if not any(expert.weight for expert in self.experts):
            raise ValueError("a composition needs at least one expert with a weight above 0")
        if self.mode == "guided":
            missing = [k for k, expert in enumerate(self.experts[1:], 1) if expert.weight and expert.baseline is None]
            if missing:
                raise ValueError(f"mode 'guided' needs the baselines of all experts but the first; experts {missing} have none")

    @cached_property  # it is asked for at every noise level
    def coefficients(self) -> list[tuple[Velocity, float]]:
        """Each network with its coefficient in predicted noise."""
        pairs = coefficients(self.mode, [(expert.weight, expert.alpha) for expert in self.experts])
        found: dict[Velocity, float] = {}
        for expert, pair in zip(self.experts, pairs, strict=True):
            for network, coefficient in zip((expert.velocity, expert.baseline), pair, strict=True):
                if network is not None and coefficient:
                    found[network] = found.get(network, 0.0) + coefficient
        return [(network, coefficient) for network, coefficient in found.items() if coefficient]

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        """The composed velocity; x [B, ...], level [B]."""
        mixed, total = self._mixed(x, level)
        if abs(total - 1) < 1e-9:
            return mixed
        return mixed + (total - 1) * x / _wide(1 - level, x).clamp(min=self.floor)

    def noise(self, x: Tensor, level: Tensor) -> Tensor:
        """The composed predicted noise."""
        mixed, total = self._mixed(x, level)
        return total * x + _wide(1 - level, x) * mixed

    def _mixed(self, x: Tensor, level: Tensor) -> tuple[Tensor, float]:
        """The sum of coefficient * velocity, and the sum of the coefficients."""
        (first, factor), *others = self.coefficients
        mixed = first(x, level) if factor == 1 else factor * first(x, level)
        for network, coefficient in others:
            mixed = mixed + coefficient * network(x, level)
        return mixed, factor + sum(coefficient for _, coefficient in others)


def _wide(value: Tensor, x: Tensor) -> Tensor:
    return value.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)


# -- corrections ------------------------------------------------------------------------------------------------------------------------


def annealed(composed: Composition, x: Tensor, levels: Sequence[float], keys: Tensor, correct: Corrector) -> Tensor:
    """Euler steps, each followed by a correction at the level that it reached, but for level 0."""
    for step, (level, following) in enumerate(pairwise(levels)):
        x = x + (following - level) * composed(x, x.new_full((len(x),), level))
        if following > 0:
            x = correct(composed.noise, x, x.new_full((len(x),), following), rng.fold(keys, step))
    return x


@dataclass(frozen=True)
class Langevin:
    """Unadjusted Langevin steps at a constant level: x - size t noise + sqrt(2 size) t z, which is a step of size t**2 along the score."""

    steps: int = 4
    size: float = 0.1  # in units of t**2

    def __call__(self, noise: Noise, x: Tensor, level: Tensor, keys: Tensor) -> Tensor:
        t = _wide(level, x)
        for step in range(self.steps):
            z = rng.noise(rng.fold(keys, step), x.shape[1:]).to(x)
            x = x - self.size * t * noise(x, level) + (2 * self.size) ** 0.5 * t * z
        return x


@dataclass(frozen=True)
class Hamiltonian:
    """Unadjusted Hamiltonian steps at a constant level (Du et al. 2023): momentum partly redrawn, then `leaps` leapfrog steps."""

    steps: int = 2
    leaps: int = 3
    size: float = 0.3  # of a leap, in units of t
    persistence: float = 0.5  # share of the momentum that stays

    def __call__(self, noise: Noise, x: Tensor, level: Tensor, keys: Tensor) -> Tensor:
        t = _wide(level, x)
        leap = self.size * t

        def force(at: Tensor) -> Tensor:
            return -noise(at, level) / t

        momentum = rng.noise(keys, x.shape[1:]).to(x)
        for step in range(self.steps):
            z = rng.noise(rng.fold(keys, step), x.shape[1:]).to(x)
            momentum = self.persistence * momentum + (1 - self.persistence**2) ** 0.5 * z
            push = force(x)
            for _ in range(self.leaps):
                momentum = momentum + leap / 2 * push
                x = x + leap * momentum
                push = force(x)
                momentum = momentum + leap / 2 * push
        return x
