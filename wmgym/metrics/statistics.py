"""Confidence intervals of means: percentile bootstrap (Efron and Tibshirani 1993, chapter 13), also of paired differences and clusters.

Shares of independent trials have Wilson's score interval (1927), which is also right for shares of 0 and 1.

Values from one drive, walk or episode are not independent. Given the clusters, the bootstrap resamples whole clusters (Davison and Hinkley
1997, section 3.8).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

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


def wilson_interval(outcomes: Sequence[bool] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval of the share of independent trials that succeeded (Wilson 1927; Brown, Cai and DasGupta 2001, equation 4).

    outcomes: one per trial, True or 1 for success. Unlike the bootstrap's, the interval has a width where all or none succeeded.
    """
    data = np.asarray(outcomes)
    if data.ndim != 1 or not len(data) or not np.isin(data, (0, 1)).all():
        raise ValueError(f"outcomes must be a non-empty list of True and False, got {outcomes if data.size < 20 else list(data.shape)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    n, share, z = len(data), float(data.mean()), NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), n)


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


def rank_correlation(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Spearman's rank correlation; equal values share their mean rank. NaN if all values of one list are equal."""
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"ranks are compared of two lists of the same length, at least 2, got {len(first)} and {len(second)}")
    a, b = (_ranks(np.asarray(values, np.float64)) for values in (first, second))
    if not np.ptp(a) or not np.ptp(b):
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[which]
