"""Rare events in time: how many were foreseen, and how many foreseen ones came."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EventCounts:
    """Steps with a reward, said and true."""

    hits: int  # said as they came
    said: int
    true: int

    @property
    def precision(self) -> float:
        """Share of the events said that came; NaN if none was said."""
        return self.hits / self.said if self.said else math.nan

    @property
    def recall(self) -> float:
        """Share of the events that came that were said; NaN if none came."""
        return self.hits / self.true if self.true else math.nan


def count_events(said: np.ndarray, true: np.ndarray) -> EventCounts:
    """Count the steps whose reward is not 0; a hit is one said at the same step with the same amount. Arrays of one shape."""
    if said.shape != true.shape:
        raise ValueError(f"said and true must have one shape, got {list(said.shape)} and {list(true.shape)}")
    return EventCounts(int(((said == true) & (true != 0)).sum()), int((said != 0).sum()), int((true != 0).sum()))
