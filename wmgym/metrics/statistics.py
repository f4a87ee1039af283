"""How sure a mean is: percentile bootstrap (Efron and Tibshirani 1993, chapter 13), also of paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean, and the interval that holds the true one with the confidence asked for; NaN bounds for a single value."""

    mean: float
    low: float
    high: float
    count: int  # independent values it rests on

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]" if self.count > 1 else f"{self.mean:.2f}"


def bootstrap_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95, samples: int = 10_000, seed: int = 0) -> Interval:
    """Interval of the mean of independent values, from means of resamples with replacement. The same seed gives the same interval."""
    data = np.asarray(values, np.float64)
    if data.ndim != 1 or not len(data) or not np.isfinite(data).all():
        raise ValueError(f"values must be a non-empty list of finite numbers, got {data.tolist() if data.size < 20 else list(data.shape)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    if samples < 1:
        raise ValueError(f"samples must be positive, got {samples}")
    if len(data) == 1:
        return Interval(float(data[0]), math.nan, math.nan, 1)
    means = data[np.random.default_rng(seed).integers(len(data), size=(samples, len(data)))].mean(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(data.mean()), float(low), float(high), len(data))


def paired_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of first - second, where values at one place were measured on the same thing."""
    if len(first) != len(second):
        raise ValueError(f"paired values must be as many, got {len(first)} and {len(second)}")
    return bootstrap_interval(np.asarray(first, np.float64) - np.asarray(second, np.float64), confidence, samples, seed)
