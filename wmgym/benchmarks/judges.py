"""Open-domain return (Echo-Memory): is the object that was in view still there when the camera comes back?

A judge sees the view before the camera left and the view after it returned, and gives four marks from 0 to 5. The paper's score is

    (0.45 appearance + 0.25 presence + 0.20 view + 0.10 scene) / 5 * 100

An empty scene seen from the right place can earn 30 of these 100 points. So there is also a gated score: where the object is absent
(presence below 2.5), view and scene do not count, and the score is at most 10.

`ExactJudge` needs no model: in a ground truth it is known which pixels the object must cover and what lies behind it. Models as judges are
in vision_judges.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import combinations
from typing import Any, Protocol

import numpy as np

from wmgym.benchmarks.rollout import Walk
from wmgym.benchmarks.tables import columns
from wmgym.metrics.statistics import paired_difference, rank_correlation

BEST = 5.0  # the highest mark
WEIGHTS = (0.45, 0.25, 0.20, 0.10)  # of appearance, presence, view, scene
PRESENT = 2.5  # the lowest mark of presence at which the object counts as present
ABSENT = 10.0  # the highest gated score without it


@dataclass(frozen=True)
class Verdict:
    """Marks from 0 to 5. ValueError for others."""

    appearance: float  # the object looks the same
    presence: float  # an object is there
    view: float  # the camera looks the same way
    scene: float  # the surroundings are the same

    def __post_init__(self) -> None:
        for part in fields(self):
            mark = getattr(self, part.name)
            if not 0 <= mark <= BEST:
                raise ValueError(f"{part.name} must be a mark from 0 to {BEST:g}, got {mark}")

    @property
    def score(self) -> float:
        """The paper's, from 0 to 100."""
        return _weighted(astuple(self))

    @property
    def gated(self) -> float:
        """The same where the object is present; at most `ABSENT` elsewhere."""
        return self.score if self.presence >= PRESENT else min(ABSENT, _weighted((self.appearance, self.presence, 0, 0)))


def _weighted(marks: Sequence[float]) -> float:
    return float(np.dot(WEIGHTS, marks)) / BEST * 100


@dataclass(frozen=True)
class Case:
    """A landmark in view, from which the camera turns away and to which it returns. The walk's last frame is the view after the return."""

    name: str  # "SCENE-VARIANT"
    scene: int  # cases of one scene are not independent
    walk: Walk
    out: int  # frames of the leg in which the camera turns away
    mask: np.ndarray  # bool [H, W]: where the landmark must appear after the return
    empty: np.ndarray  # uint8 [H, W, 3]: the view after the return without any landmark
    changed: np.ndarray  # uint8 [H, W, 3]: that view with the landmark that has replaced it behind the agent's back
    changed_mask: np.ndarray  # bool [H, W]

    @property
    def before(self) -> np.ndarray:
        """The last observed view: [H, W, 3]."""
        return self.walk.frames[self.walk.split - 1]

    @property
    def after(self) -> np.ndarray:
        """The true view after the return: [H, W, 3]."""
        return self.walk.frames[-1]


class Judge(Protocol):
    """What gives marks. Judges with equal identities give equal marks."""

    @property
    def name(self) -> str:
        """In tables."""
        ...

    @property
    def identity(self) -> str:
        """In the names of files."""
        ...

    def judge(self, returned: np.ndarray, case: Case) -> Verdict:
        """Marks of a view uint8 [H, W, 3] after the return."""
        ...


@dataclass(frozen=True)
class ExactJudge:
    """Marks from the ground truth. The true view gets 5 in each, and the true view without the landmark 0 in appearance and presence.

    appearance  1 - error / contrast over the landmark's pixels, where contrast is the error of the empty scene
    presence    whether what differs from the empty scene lies where the landmark must be, whatever its colour: the share of the squared
                difference that lies in the landmark's pixels, less the share that chance gives, within a window twice its size; less where
                the difference is below half of the contrast
    view        which of the true views of the turn away the frame is nearest to: 1 for the first, 0 for the outermost; 0 also where that
                view is no nearer than one flat colour
    scene       1 - error / error of one flat colour, over the other pixels
    """

    name: str = "exact"
    identity: str = "exact"

    def judge(self, returned: np.ndarray, case: Case) -> Verdict:
        shown, true, empty = (frame.astype(np.float64) for frame in (returned, case.after, case.empty))
        there, rest = case.mask, ~case.mask
        contrast = _apart(empty, true)[there].mean()
        appearance = 1 - _apart(shown, true)[there].mean() / max(contrast, 1e-9)
        found = (
            appearance,
            _localised(shown, true, empty, there) * min(1.0, _apart(shown, empty)[there].mean() / max(contrast / 2, 1e-9)),
            _facing(shown, case),
            1 - _apart(shown, true)[rest].mean() / max(_apart(true[rest].mean(0), true)[rest].mean(), 1e-9),
        )
        return Verdict(*(BEST * float(np.clip(value, 0, 1)) for value in found))


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference of colours, in grey levels: [H, W]."""
    return np.abs(a - b).mean(-1)


def _localised(shown: np.ndarray, true: np.ndarray, empty: np.ndarray, mask: np.ndarray) -> float:
    """How far the difference from the empty scene lies within the mask: 1 if all of it, 0 if no more than by chance."""
    window = np.zeros_like(mask)
    rows, columns_ = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    (top, bottom), (left, right) = ((int(x[0]), int(x[-1]) + 1) for x in (rows, columns_))
    tall, wide = (bottom - top + 1) // 2, (right - left + 1) // 2
    window[max(top - tall, 0) : bottom + tall, max(left - wide, 0) : right + wide] = True
    change = _apart(shown, empty) ** 2
    around = np.minimum(change, _apart(shown, true) ** 2)[window & ~mask].sum()  # the landmark's own shadow is no difference
    inside, chance = change[mask].sum(), mask.sum() / window.sum()
    share = inside / max(inside + around, 1e-9)
    return float(np.clip((share - chance) / max(1 - chance, 1e-9), 0, 1))


def _facing(shown: np.ndarray, case: Case) -> float:
    first = case.walk.split - 1
    views = case.walk.frames[first : first + case.out + 1].astype(np.float64)
    errors = np.square(views - shown).mean((1, 2, 3))
    nearest = int(errors.argmin())
    flat = np.square(views[nearest] - views[nearest].mean((0, 1))).mean()
    return 1 - nearest / case.out if errors[nearest] < flat else 0.0


# -- agreement --------------------------------------------------------------------------------------------------------------------------


def agreement(scores: Mapping[str, Sequence[float]], scenes: Sequence[int]) -> list[dict[str, Any]]:
    """Each pair of judges on the same views: mean difference of their scores and Spearman's rank correlation.

    scores: judge -> score of each view. scenes: the scene of each view; intervals resample scenes.
    """
    table = []
    for a, b in combinations(scores, 2):
        line: dict[str, Any] = {"judges": f"{a} - {b}", "views": len(scenes)}
        line |= columns("difference", paired_difference(scores[a], scores[b], clusters=scenes))
        table.append({**line, "spearman": f"{rank_correlation(scores[a], scores[b]):.2f}"})
    return table
