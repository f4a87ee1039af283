"""`python -m wmgym.experiments.composition`: products of experts and of contrastive experts on mixtures of Gaussians (CoME, figure 4).

Two experts are mixtures in one dimension whose modes shrink from left to right; their baselines have modes of equal height. Everything is
known in closed form: densities, and the velocity of each mixture under rectified flow. So the picture shows each product's exact density,
and beside it the samples that `diffusion.compose` draws with and without corrections. Writes `composition.png` and `result.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from wmgym import rng
from wmgym.diffusion.compose import Composition, Expert, Langevin, annealed
from wmgym.diffusion.flow import levels
from wmgym.experiments.support.pictures import check_plots, pyplot, save_figure
from wmgym.experiments.support.report import check_positive, write_result

LOW, HIGH = -2.0, 2.0  # of the picture
LEFT = -0.9  # between the leftmost mode and the others


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of Gaussians in one dimension, as density and as exact rectified flow."""

    weights: Tensor  # [M], add up to 1
    means: Tensor  # [M]
    std: float

    def density(self, x: Tensor) -> Tensor:
        """[...] -> [...]"""
        return (self.weights * torch.exp(self._logs(x, x.new_zeros(1)))).sum(-1)

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        """Expected noise - data at points [B] and levels [B]."""
        t = level[:, None]
        odds = torch.softmax(self.weights.log() + self._logs(x, level), -1)
        residual = x[:, None] - (1 - t) * self.means
        variance = (1 - t) ** 2 * self.std**2 + t**2
        noise, data = t * residual / variance, self.means + (1 - t) * self.std**2 * residual / variance
        return (odds * (noise - data)).sum(-1)

    def _logs(self, x: Tensor, level: Tensor) -> Tensor:
        """Log density of each mode at a level: [..., M]."""
        t = level[:, None]
        variance = (1 - t) ** 2 * self.std**2 + t**2
        return -0.5 * (x[..., None] - (1 - t) * self.means) ** 2 / variance - 0.5 * torch.log(2 * torch.pi * variance)


def experts(modes: int = 6, decay: float = 0.65, std: float = 0.12, shift: float = 0.08) -> list[tuple[Mixture, Mixture]]:
    """Two experts whose modes shrink geometrically and lie a little apart, each with its baseline of equal modes."""
    means = torch.linspace(-1.25, 1.25, modes)
    weights = decay ** torch.arange(modes)
    falling, equal = weights / weights.sum(), torch.full((modes,), 1 / modes)
    return [(Mixture(falling, means + s, std), Mixture(equal, means + s, std)) for s in (-shift / 2, shift / 2)]


def product(pairs: Sequence[tuple[Mixture, Mixture]], alpha: float, grid: Tensor) -> Tensor:
    """The exact density of the product of contrastive experts on a grid; alpha = 1: the plain product of experts."""
    logs = torch.stack([alpha * expert.density(grid).log() + (1 - alpha) * base.density(grid).log() for expert, base in pairs]).sum(0)
    density = torch.exp(logs - logs.max())
    return density / torch.trapezoid(density, grid)


def sample(composed: Composition, count: int, steps: int, correct: Langevin | None) -> Tensor:
    """[count] samples."""
    keys = rng.make_keys(list(range(count)))
    start = rng.noise(keys, ())
    return annealed(composed, start, levels(steps), rng.fold(keys, 1), correct or Langevin(0))


@dataclass(frozen=True)
class CompositionArgs:
    """Products of experts on mixtures of Gaussians, in closed form and by sampling. Takes a minute."""

    alpha: float = 3.0
    """Contrast of the contrastive experts."""
    samples: int = 20_000
    """Samples of each product."""
    steps: int = 100
    """Sampler steps."""
    out: Path = Path("runs/composition")
    """Folder for the results."""

    def __post_init__(self) -> None:
        check_positive(self, "samples", "steps")
        if not self.alpha > 1:
            raise ValueError(f"alpha must be above 1, got {self.alpha}")


def run(args: CompositionArgs) -> dict[str, Any]:
    """The share of each product's mass that is not in the leftmost mode: exact, sampled, and sampled with Langevin corrections."""
    check_plots()
    pairs = experts()
    grid = torch.linspace(LOW, HIGH, 4001)
    plain = tuple(Expert(expert) for expert, _ in pairs)
    contrasted = tuple(Expert(expert, base, args.alpha) for expert, base in pairs)
    rows, drawn = [], {}
    kinds = {"expert": (plain[:1], "poe"), "PoE": (plain, "poe"), "PoCE": (contrasted, "sum"), "PoCE, mean": (contrasted, "mean")}
    for name, (parts, mode) in kinds.items():
        composed = Composition(parts, mode)
        exact = pairs[0][0].density(grid) if name == "expert" else product(pairs, args.alpha if "PoCE" in name else 1.0, grid)
        if mode == "mean":  # each contrast to the power 1/2
            exact = exact.sqrt() / torch.trapezoid(exact.sqrt(), grid)
        found = {which: sample(composed, args.samples, args.steps, kind) for which, kind in (("euler", None), ("langevin", Langevin()))}
        drawn[name] = (exact, found)
        others = grid > LEFT
        line = {"composition": name, "mode": mode, "exact": float(torch.trapezoid(exact * others, grid))}
        rows.append(line | {which: float((x > LEFT).float().mean()) for which, x in found.items()})
    report = {"alpha": args.alpha, "mass_outside_the_leftmost_mode": rows, "out": str(args.out)}
    draw(args.out / "composition.png", grid, drawn)
    write_result(args.out, report)
    return report


def draw(file: Path, grid: Tensor, drawn: dict[str, tuple[Tensor, dict[str, Tensor]]]) -> None:
    """One panel per composition: exact density, and histograms of the samples."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(drawn), figsize=(3.4 * len(drawn), 2.8), layout="constrained")
    bins = np.linspace(LOW, HIGH, 121)
    for ax, (name, (exact, found)) in zip(axes, drawn.items(), strict=True):
        ax.plot(grid, exact, color="k", lw=1, label="exact")
        for which, x in found.items():
            ax.hist(x.clamp(LOW, HIGH).numpy(), bins=bins, density=True, histtype="step", label=which)
        ax.set(title=name, xlabel="x", yticks=[])
    axes[0].legend(fontsize="x-small")
    save_figure(figure, file)


if __name__ == "__main__":
    from wmgym.cli import as_text, plain

    print(as_text(plain(run(tyro.cli(CompositionArgs)))))
