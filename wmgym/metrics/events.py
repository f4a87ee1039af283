"""Precision and recall of predicted rare events."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EventCounts:
    """Numbers of steps with a reward."""

    hits: int  # predicted at the same step with the same amount
    said: int  # predicted
    true: int

    @property
    def precision(self) -> float:
        """Share of the predicted events that are true; NaN if none was predicted."""
        return self.hits / self.said if self.said else math.nan

    @property
    def recall(self) -> float:
        """Share of the true events that were predicted; NaN if there are none."""
        return self.hits / self.true if self.true else math.nan


def count_events(said: np.ndarray, true: np.ndarray) -> EventCounts:
    """Count steps whose predicted (`said`) or true reward is not 0. Arrays of equal shape."""
    if said.shape != true.shape:
        raise ValueError(f"said and true must have one shape, got {list(said.shape)} and {list(true.shape)}")
    return EventCounts(int(((said == true) & (true != 0)).sum()), int((said != 0).sum()), int((true != 0).sum()))
