"""`wmgym eval revisit`: does a view that was left look the same after the return? Echo-Memory's branches, for checkpoints with a camera.

    replay      dream along the true camera of recorded episodes (the windows of `wmgym eval replay`)
    return      turn out and back, and compare mirrored frames; needs no truth (the paths of `wmgym eval loopmem`)
    landmark    a landmark of unseen shape or colour is in view, the camera turns away and comes back; judges mark what is there
    change      meanwhile another landmark has replaced it: how often is the old one shown

Writes one folder: `args.json`, `result.json`, `table.md`, `strips.png`, one file per finished cell in `cells/`, one per verdict of a judge
in `cells/verdicts/`. A killed run resumes from those. `landmark` and `change` share their dreams.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from wmgym import settings
from wmgym.agents.collect import WORLDS_PER_SEED
from wmgym.agents.paths import motions_of
from wmgym.agents.scenes import VARIANTS
from wmgym.benchmarks import landmarks, mirror, replay
from wmgym.benchmarks.judges import Case, Judge, Verdict
from wmgym.benchmarks.loopmem import HORIZON, OPENING, motion_columns, motions
from wmgym.benchmarks.rollout import Walk
from wmgym.benchmarks.tables import difference_columns, markdown_rows, score_columns
from wmgym.benchmarks.vision_judges import find_judge
from wmgym.data import mind
from wmgym.experiments.replay import ReplayArgs, find_episodes
from wmgym.experiments.support.camera_walks import walks_of_path
from wmgym.experiments.support.judged import DreamArgs
from wmgym.experiments.support.landmark_scenes import find_cases, landmark_env
from wmgym.experiments.support.pictures import check_plots, plot_strips
from wmgym.experiments.support.report import check_positive, check_seed, show_in, write_result
from wmgym.experiments.support.rows import Row, Score, Scores, comparisons, find_rows, row_cells, setting_of_all, untrained_row
from wmgym.files import json_object, kept, open_run_folder, write_atomically
from wmgym.metrics import image
from wmgym.progress import Progress
from wmgym.registration import default_checkpoint
from wmgym.world_model import WorldModel

BRANCHES = ("replay", "return", "landmark", "change")
LANDMARKS = "landmarks"  # the group of walks of the last two branches
PREFACE = """\
# Revisit

Means with 95 % bootstrap intervals; of shares, Wilson's. `truth` is the ground truth, `frozen` repeats the last observed frame, `untrained`
is a network with fresh weights. `motion` is the share of the truth's mean change from frame to frame; a row below half is marked invalid,
since a film that stands still agrees with itself."""
WORDS = {
    "replay": "Along the truth's camera: {steps} frames after {context} observed ones. Means over frames, then over windows.",
    "return": "A turn and the same turn back after {opening} observed frames. `mirror_*` compares each frame of the way back with its\n"
    "mirror on the way out, `psnr` and `ssim` compare with the truth.",
    "return_recorded": "Samples in MIND's folders. `motion` is in grey levels per frame.",
    "landmark": "A landmark is in view; a turn of {away:g} degrees to the right, {wait} frames of waiting, the turn back. Marks are from\n"
    "0 to 5. `score` is the paper's; `gated` counts view and scene only where the landmark is present. Intervals resample scenes.",
    "agreement": "Two judges on the same views, all rows: mean difference of their scores, and Spearman's rank correlation.",
    "change": "The same dreams. Another landmark has replaced the one that was seen, so the truth shows the new one; a world that\n"
    "remembers shows the old one.",
}
Shown = Callable[[str, int, int], None]  # what is being made, how much is done, how much there is
Frames = Mapping[str, Sequence[np.ndarray]]  # row -> the last frame of each case


@dataclass(frozen=True)
class RevisitArgs(DreamArgs):
    """Leave a view and come back: replay, mirrored turns, landmarks that must still be there, and landmarks that change while unseen.

    Needs checkpoints of one setting with a camera; landmarks need a ground truth in which blocks can be set (Minecraft-v0's own engine).
    Writes a folder with table.md, result.json and strips.png. A killed run resumes: type the same command again.
    """

    worlds: tuple[str, ...] = (default_checkpoint("minecraft"),)
    """Checkpoints, each with the memories to compare: CHECKPOINT or CHECKPOINT=MEMORY,MEMORY; SYSTEM@CHECKPOINT runs it as another system
    that stands on its weights. Without memories: all of the system."""
    branches: tuple[str, ...] = BRANCHES
    """Of replay, return, landmark and change."""
    untrained: bool = True
    """Also a row with the first checkpoint's network and fresh weights."""
    windows: int = 20
    """Branch replay: episodes, one window each."""
    context: int = 64
    """Branch replay: frames observed."""
    steps: int = 3 * HORIZON
    """Branch replay: frames dreamed; three training windows, as the paper's three segments."""
    turns: tuple[int, ...] = (180, 360)
    """Branch return: degrees out, and back."""
    walks: int = 20
    """Branch return: walks of each turn."""
    scenes: int = 20
    """Branches landmark and change: places."""
    variants: int = len(VARIANTS)
    """Branches landmark and change: landmarks at each place, up to 8."""
    away: float = 45
    """Branches landmark and change: degrees of the turn away."""
    wait: int = 10
    """Branches landmark and change: frames between the turns; with the default 16 frames are dreamed."""
    judges: tuple[str, ...] = ("exact",)
    """Branch landmark: exact; URL=MODEL for a vision-language model at an OpenAI-compatible address such as http://localhost:8000/v1 (its
    key, if any, in the variable WMGYM_JUDGE_KEY); or the folder of such a model, for transformers. Two give their agreement."""
    mind: Path | None = None
    """Branch return: also score the recorded samples of MIND's form below this folder, one row for each of its subfolders."""
    write_mind: bool = False
    """Branch return: also write each row's films as MIND's folders, in OUT/mind/ROW."""
    options: str = field(default="{}", kw_only=True)
    """The system's own keywords as JSON; systems that do not know them are run without."""
    env_kwargs: str = "{}"
    """Keywords for the ground truth, as JSON."""
    seed: int = 100
    """Seed of worlds, walks and noise. Training uses 0 to 99 and evaluation 100 and above, so they never share a world."""
    lanes: int = 16
    """Walks dreamed in one batch."""
    out: Path = Path("runs/revisit")
    """Folder for the results."""

    def __post_init__(self) -> None:
        for name in ("worlds", "branches", "turns", "judges"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} must name at least one, and none twice, got {given}")
        if unknown := set(self.branches) - set(BRANCHES):
            raise ValueError(f"branches must be of {', '.join(BRANCHES)}, got {', '.join(sorted(unknown))}")
        check_positive(self, "windows", "context", "steps", "turns", "walks", "scenes", "variants", "away", "wait", "lanes")
        if self.variants > len(VARIANTS):
            raise ValueError(f"variants must be from 1 to {len(VARIANTS)}, got {self.variants}")
        if (self.write_mind or self.mind is not None) and "return" not in self.branches:
            raise ValueError(f"mind and write_mind belong to the branch return, which branches={self.branches} leaves out")
        check_seed(self.seed)
        json_object(self.env_kwargs, "env_kwargs")
        json_object(self.options, "options")


FREE = {"branches", "worlds", "turns", "judges", "mind", "device", "lanes", "out"}  # change no finished cell


def evaluate(args: RevisitArgs, progress: bool = True) -> dict[str, Any]:
    """Make the cells that are missing, then the report (also in `result.json`)."""
    check_plots()
    rows = find_rows(args.worlds, args)
    first = rows[0].world()
    setting = setting_of_all(rows)
    motions_of(setting)  # a setting without a camera is refused before any work
    with_landmarks = bool({"landmark", "change"} & set(args.branches))
    if with_landmarks:
        landmark_env(setting, first.frame_shape[0], args.env_kwargs).close()
    judges = [find_judge(text, args.device) for text in args.judges] if "landmark" in args.branches else []
    samples = _score_samples(args.mind) if args.mind is not None else {}
    weights = sorted({row.world().provenance.weights for row in rows})
    open_run_folder(args.out, {**asdict(args), "weights": weights, "dtype": first.dtype_name, "metrics": _metrics()}, FREE)
    pairs = comparisons(rows)
    if args.untrained:
        rows = [*rows, untrained_row(args, args.worlds[0], rows[0], args.seed)]
    run = Run(args, setting, first.frame_shape[0], rows, pairs, progress)
    tables: dict[str, Any] = {}
    groups: list[str] = []
    with Progress(disable=not progress, unit="frame") as bar:
        show = show_in(bar)
        if "replay" in args.branches:
            groups.append(replay.group(args.context, args.steps).name)
            tables |= _replay(run, groups[-1], cache(partial(_windows, args, first, progress)), show)
        if "return" in args.branches:
            groups += [f"mirror-{degrees}" for degrees in args.turns]
            tables |= _return(run, show)
            if samples:
                tables["return_recorded"] = mirror.summarise_samples(samples)
        if with_landmarks:
            groups.append(LANDMARKS)
            tables |= _landmarks(run, judges, show)
    plot_strips(args.out, groups, ["frozen", *(row.name for row in rows)])
    report = {"worlds": list(args.worlds), "judges": list(args.judges), **tables, "out": str(args.out)}
    write_result(args.out, report)
    write_atomically(args.out / "table.md", _markdown(args, tables).encode())
    return report


# -- branches ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What all branches share."""

    args: RevisitArgs
    setting: str
    size: int  # side of a frame, in pixels
    rows: list[Row]
    pairs: list[tuple[str, str]]  # of rows to compare
    progress: bool

    @property
    def env_kwargs(self) -> str:
        return json.dumps({"size": self.size, **json_object(self.args.env_kwargs, "env_kwargs")})

    def cells(self, group: str, walks_of: Callable[[], Sequence[Walk]], score: Score, show: Shown, **more: Any) -> Scores:
        """`row_cells` of this run."""
        how = {"seed": self.args.seed, "lanes": self.args.lanes, "progress": show, **more}
        return row_cells(self.args.out, group, self.rows, walks_of, score, **how)


def _metrics() -> tuple[str, ...]:
    return ("psnr", "ssim", *(["lpips"] if image.lpips_available() else []))


def _windows(args: RevisitArgs, model: WorldModel, progress: bool) -> list[Walk]:
    """The windows that `wmgym eval replay` would take."""
    how = {name: getattr(args, name) for name in ("windows", "context", "steps", "env_kwargs", "seed", "out")}
    return replay.read_windows(find_episodes(ReplayArgs(**how), model, progress), args.context, args.steps)


def _replay(run: Run, group: str, walks_of: Callable[[], list[Walk]], show: Shown) -> dict[str, Any]:
    metrics = _metrics()

    def score(leg: np.ndarray, k: int) -> dict[str, Any]:
        walk = walks_of()[k]
        scores = image.judge(leg, walk.frames[walk.split :], metrics)
        return {name: float(value.mean()) for name, value in scores.items()} | motions(leg, walk)

    found = run.cells(group, walks_of, score, show)
    table = [{"row": row, "windows": len(here), **score_columns(here, metrics), **motion_columns(here)} for row, here in found.items()]
    differences = [{"difference": f"{a} - {b}", **difference_columns(found[a], found[b], metrics)} for a, b in run.pairs]
    return {"replay": table, "replay_differences": differences}


def _return(run: Run, show: Shown) -> dict[str, Any]:
    args, moves, found = run.args, settings.get(run.setting).kinematics, {}
    assert moves is not None
    for degrees in args.turns:
        path = f"mirror-{degrees}"
        is_good = partial(mirror.is_walked, near=motions_of(run.setting).tolerances[0], alike=motions_of(run.setting).turn / 2)
        collected = partial(walks_of_path, args.out, path, args.walks, run.setting, is_good)
        walks_of = cache(partial(collected, args.seed, run.env_kwargs, run.progress))

        def score(leg: np.ndarray, k: int, walks_of: Callable[[], list[Walk]] = walks_of) -> dict[str, Any]:
            return mirror.score(leg, walks_of()[k], _metrics())

        def keep(row: str, k: int, leg: np.ndarray, path: str = path, walks_of: Callable[[], list[Walk]] = walks_of) -> None:
            if args.write_mind:
                sample = mirror.sample_of(leg, walks_of()[k], moves, f"{path}, {row}")
                mind.write_sample(args.out / "mind" / row / f"{path}-{k:03d}", sample, settings.get(run.setting).fps)

        found[path] = run.cells(path, walks_of, score, show, keep=keep)
    return mirror.summarise(found, run.pairs)


def _score_samples(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Model -> the scores of its samples that go out and back."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in mind.find_samples(folder):
        sample = mind.read_sample(path)
        if mirror.is_out_and_back(sample):
            inside = path.relative_to(folder).parts
            found.setdefault(inside[0] if len(inside) > 1 else folder.resolve().name, []).append(mirror.score_sample(sample, _metrics()))
    if not found:
        raise ValueError(f"no sample in {folder} has context and keys that are followed by their opposites after mark_time")
    return found


def _landmarks(run: Run, judges: Sequence[Judge], show: Shown) -> dict[str, Any]:
    args, tables = run.args, dict[str, Any]()

    @cache
    def cases_of() -> list[Case]:
        with closing(landmark_env(run.setting, run.size, args.env_kwargs)) as env:
            turn = motions_of(run.setting), math.radians(args.away), args.wait
            return find_cases(args.out / "scenes", env, args.scenes, args.variants, *turn, args.seed * WORLDS_PER_SEED, show)

    views = run.cells(LANDMARKS, lambda: [case.walk for case in cases_of()], lambda leg, k: landmarks.view_of(leg, cases_of()[k]), show)
    frames = {row: [landmarks.frame_of(view) for view in here] for row, here in views.items()}
    if judges:
        names = [judge.name for judge in judges]
        titles = [judge.identity if names.count(judge.name) > 1 else judge.name for judge in judges]
        verdicts = {title: _judged(args.out, judge, frames, cases_of(), show) for title, judge in zip(titles, judges, strict=True)}
        tables |= landmarks.summarise_verdicts(views, verdicts, run.pairs)
    if "change" in args.branches:
        frames = {**frames, "truth": [case.changed for case in cases_of()]}
        shown = {row: [landmarks.shows(*pair) for pair in zip(here, cases_of(), strict=True)] for row, here in frames.items()}
        tables |= landmarks.summarise_changes(views, shown)
    return tables


def _judged(out: Path, judge: Judge, frames: Frames, cases: Sequence[Case], show: Shown) -> dict[str, list[Verdict]]:
    """A judge's verdicts: row -> case. Each is written when it is given, so a judge that fails loses none."""

    def ask(frame: np.ndarray, case: Case) -> dict[str, float]:
        try:
            return asdict(judge.judge(frame, case))
        except (ConnectionError, ValueError) as error:
            raise type(error)(f"{error}; dreams and finished verdicts are kept in {out}: type the same command again to go on") from error

    found: dict[str, list[Verdict]] = {}
    for row, here in frames.items():
        found[row] = []
        for k, (frame, case) in enumerate(zip(here, cases, strict=True)):
            file = out / "cells" / "verdicts" / judge.identity / row / f"{case.name}.json"
            found[row].append(Verdict(**kept(file, partial(ask, frame, case))))
            show(f"{judge.name} marks {row}", k + 1, len(here))
    return found


# -- the page ---------------------------------------------------------------------------------------------------------------------------

TITLES = {
    "replay": "Replay", "return": "In-domain return", "return_recorded": "Recorded samples", "landmark": "Open-domain return",
    "agreement": "Agreement of judges", "change": "Change while unseen",
}  # fmt: skip


def _markdown(args: RevisitArgs, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = [PREFACE]
    for name, rows in tables.items():
        _, _, more = name.partition("_")
        if more == "differences":
            if rows:
                lines += ["", "Paired differences:", "", *markdown_rows(rows)]
            continue
        words = WORDS.get(name, "").format(**asdict(args), opening=OPENING)
        lines += ["", f"## {TITLES[name]}", "", *([words, ""] if words else []), *markdown_rows(rows)]
    return "\n".join(lines) + "\n"
