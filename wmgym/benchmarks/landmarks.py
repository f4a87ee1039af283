"""Returns to a landmark: tables of what judges say (Echo-Memory's open-domain return), and of landmarks that change while unseen.

Change while unseen is MemoBench's idea: behind the agent's back another landmark replaces the one that it saw. The truth then shows the new
one, which no dream can know. A dream that remembers shows the old one.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from wmgym.benchmarks.judges import PRESENT, Case, Verdict, agreement
from wmgym.benchmarks.loopmem import motion_columns, motions
from wmgym.benchmarks.tables import columns, difference_columns, score_columns
from wmgym.files import png
from wmgym.metrics.statistics import wilson_interval

SHOWS = ("old", "new", "nothing", "neither")
Views = Mapping[str, Sequence[Mapping[str, Any]]]  # row -> one view per case (`view_of`)
Verdicts = Mapping[str, Mapping[str, Sequence[Verdict]]]  # judge -> row -> verdict on each case


def view_of(leg: np.ndarray, case: Case) -> dict[str, Any]:
    """What a row shows of a case [L, H, W, 3], as JSON: the last frame, and how much the film moves."""
    named = {"case": case.name, "scene": case.scene, "world": case.walk.seed}
    return {**named, **motions(leg, case.walk), "frame": base64.b64encode(png(leg[-1])).decode()}


def frame_of(view: Mapping[str, Any]) -> np.ndarray:
    """The last frame of a view: uint8 [H, W, 3]."""
    import cv2

    picture = cv2.imdecode(np.frombuffer(base64.b64decode(view["frame"]), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return np.ascontiguousarray(picture[..., ::-1])


def shows(returned: np.ndarray, case: Case) -> str:
    """Which of `SHOWS` a view uint8 [H, W, 3] is after the landmark has changed.

    It is the true view (with the old landmark, the new one, or none) whose colours are nearest where either landmark stands. "neither": the
    nearest is further away than half of its distance to the next true view.
    """
    where = case.mask | case.changed_mask
    true = {"old": case.after, "new": case.changed, "nothing": case.empty}

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a.astype(np.float64) - b)[where].mean())

    nearest = min(true, key=lambda name: apart(returned, true[name]))
    gap = min(apart(true[nearest], true[other]) for other in true if other != nearest)
    return nearest if apart(returned, true[nearest]) <= gap / 2 else "neither"


# -- tables -----------------------------------------------------------------------------------------------------------------------------


def summarise_verdicts(views: Views, verdicts: Verdicts, comparisons: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Tables of each judge's scores, of paired differences, and of the agreement of judges. Intervals resample scenes."""
    table, differences = [], []
    scenes = {row: [view["scene"] for view in here] for row, here in views.items()}
    for judge, rows in verdicts.items():
        scores = {row: [{"score": each.score, "gated": each.gated} for each in found] for row, found in rows.items()}
        for row, found in rows.items():
            parts = {name: float(np.mean([asdict(each)[name] for each in found])) for name in asdict(found[0])}
            line: dict[str, Any] = {"judge": judge, "row": row, "views": len(found)}
            line |= score_columns(scores[row], ("score", "gated"), scenes[row])
            present = columns("present", wilson_interval([each.presence >= PRESENT for each in found]))
            table.append({**line, **present, **parts, **motion_columns(views[row])})
        for a, b in comparisons:
            line = {"judge": judge, "difference": f"{a} - {b}"}
            differences.append(line | difference_columns(scores[a], scores[b], ("score", "gated"), scenes[a]))
    tables = {"landmark": table, "landmark_differences": differences}
    if len(verdicts) > 1:
        for name in ("score", "gated"):
            every = {judge: [getattr(each, name) for found in rows.values() for each in found] for judge, rows in verdicts.items()}
            lines = agreement(every, [scene for row in next(iter(verdicts.values())) for scene in scenes[row]])
            tables["agreement"] = [*tables.get("agreement", []), *({"of": name, **line} for line in lines)]
    return tables


def summarise_changes(views: Views, shown: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """How often each row shows the old landmark and the new one, with Wilson intervals. shown: row -> `shows` of each case."""
    table = []
    for row, found in shown.items():
        line: dict[str, Any] = {"row": row, "views": len(found)}
        for name in SHOWS[:2]:
            line |= columns(f"shows_{name}", wilson_interval([each == name for each in found]))
        shares = {f"shows_{name}": f"{np.mean([each == name for each in found]):.2f}" for name in SHOWS[2:]}
        table.append({**line, **shares, **motion_columns(views[row])})
    return {"change": table}
