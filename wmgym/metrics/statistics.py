"""Confidence intervals of means: percentile bootstrap (Efron and Tibshirani 1993, chapter 13), also of paired differences and clusters.

Values from one drive, walk or episode are not independent. Given the clusters, the bootstrap resamples whole clusters (Davison and Hinkley
1997, section 3.8).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; the bounds are NaN for a single value or cluster."""

    mean: float
    low: float
    high: float
    count: int  # number of independent values or clusters

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]" if self.count > 1 else f"{self.mean:.2f}"


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """Interval of the mean of values, from resamples with replacement. The same seed gives the same interval.

    clusters: the cluster of each value; values of one cluster need not be independent. Default: all values are independent.
    """
    data = np.asarray(values, np.float64)
    if data.ndim != 1 or not len(data) or not np.isfinite(data).all():
        raise ValueError(f"values must be a non-empty list of finite numbers, got {data.tolist() if data.size < 20 else list(data.shape)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    if samples < 1:
        raise ValueError(f"samples must be positive, got {samples}")
    names = range(len(data)) if clusters is None else clusters
    if len(names) != len(data):
        raise ValueError(f"there must be one cluster per value, got {len(names)} and {len(data)}")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    member = [numbers[name] for name in names]
    sums, counts = np.bincount(member, data), np.bincount(member)
    if len(sums) == 1:
        return Interval(float(data.mean()), math.nan, math.nan, 1)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(samples, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(data.mean()), float(low), float(high), len(sums))


def paired_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """Interval of the mean of first - second, for values that were measured in pairs."""
    if len(first) != len(second):
        raise ValueError(f"paired values must be equally many, got {len(first)} and {len(second)}")
    return bootstrap_interval(np.asarray(first, np.float64) - np.asarray(second, np.float64), confidence, samples, seed, clusters)
