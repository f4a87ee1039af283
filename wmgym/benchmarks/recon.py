"""RECON (NWM's evaluation): plan to a view 2 s ahead, and dream single frames up to 16 s ahead.

planning   The goal is the frame `horizon` steps after time t. A planner sees the frames up to t and the goal frame, and returns a path.
           The path is compared with the driven one: ATE and RPE, in metres and in waypoint spacings (the unit of the published tables).
time       One jump of the world to 1, 2, 4, 8 or 16 s ahead, given the whole displacement.
rollout    Step after step along the true displacements, at 1 or 4 frames per second, judged at the same times.

NWM's released code of `rollout` feeds differences of normalised positions, which lose the offset of the normalisation after the first step,
and keeps displacements in the frame of the start. `as_released` reproduces both. Otherwise each displacement is normalised by itself, in
the frame of the pose that it starts from, as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmgym import rng
from wmgym.benchmarks.rollout import clip_of
from wmgym.benchmarks.tables import columns, markdown_rows
from wmgym.core import WorldState
from wmgym.data.recon import Task, Trajectory, to_actions
from wmgym.geometry import relative_pose
from wmgym.kinematics import Displacement
from wmgym.metrics import image
from wmgym.metrics.statistics import bootstrap_interval
from wmgym.metrics.trajectory import path_errors
from wmgym.world_model import WorldModel

SECONDS = (1, 2, 4, 8, 16)
ISOLATED = ("time", "rollout_1fps", "rollout_4fps")
PAPER = """\
Published, on 100 RECON trajectories (ATE / RPE in spacings of 0.25 m): GNM 1.87 / 0.73, NoMaD 1.93 / 0.52, NWM 1.13 / 0.35 (Bar et al.
2024); CoME 0.96 / 0.28, STM 1.05 / 0.32, LTM 1.10 / 0.32, NWM+STM 0.98 / 0.30, NWM+LTM 1.07 / 0.33 (CoME, table 2). Scores on other data
are not comparable."""


@dataclass(frozen=True)
class Problem:
    """One task: the frames up to its time, and the future. Frame t was seen after action t."""

    task: Task
    frames: np.ndarray  # uint8 [n, H, W, 3]: the last one is the frame at the task's time
    actions: np.ndarray  # float32 [n, 3]
    poses: np.ndarray  # float32 [n, 5]
    future: np.ndarray  # float32 [task.goal, 5]: the next poses, as seen from the last of `poses`
    goal: np.ndarray  # uint8 [H, W, 3]: the frame at the end of `future`

    @property
    def name(self) -> str:
        return f"{self.task.trajectory}-{self.task.time}"


def problem_of(trajectory: Trajectory, task: Task, moves: Displacement, size: int, context: int) -> Problem:
    """A task, with at most `context` frames up to its time; ValueError if the trajectory is too short."""
    now, end = task.time, task.time + task.goal
    if not 0 <= now < end < len(trajectory):
        raise ValueError(f"{trajectory.name} has {len(trajectory)} frames, the task at {now} needs the one {task.goal} later")
    seen = slice(max(0, now + 1 - context), now + 1)
    frames = trajectory.frames([*range(seen.start, seen.stop), end], size)
    poses = torch.from_numpy(trajectory.poses)
    future = relative_pose(poses[now + 1 : end + 1], poses[now]).numpy()
    return Problem(task, frames[:-1], to_actions(trajectory, moves)[seen], trajectory.poses[seen], future, frames[-1])


def opened(world: WorldModel, problems: Sequence[Problem], seeds: Sequence[int]) -> WorldState:
    """A world that has observed each problem's frames, one lane per problem. A lane's noise depends on its seed alone."""
    parts = [slice(0, len(problem.frames)) for problem in problems]
    return world.start(clip_of(problems, parts, world.device), rng.make_keys(list(seeds), world.device))


# -- planning ---------------------------------------------------------------------------------------------------------------------------


def judge_path(path: np.ndarray, problem: Problem, spacing: float) -> dict[str, Any]:
    """A row of the planning table: errors of a path float32 [T, 5] (poses as seen from the start), and the path itself."""
    errors = path_errors(path[:, :2], problem.future[:, :2], path[:, 3], problem.future[:, 3], spacing=spacing)
    rounded = {name: round(float(value), 6) for name, value in errors.items()}
    where = {"trajectory": problem.task.trajectory, "time": problem.task.time, "goal": problem.task.goal}
    return {**where, **rounded, "path": path[:, [0, 1, 3]].round(4).tolist(), "truth": problem.future[:, [0, 1, 3]].round(4).tolist()}


# -- frames far ahead -------------------------------------------------------------------------------------------------------------------


def stops(evaluation: str, seconds: Sequence[int], rate: float) -> list[list[int]]:
    """Which frames after the start each dream passes through, one list per dream. The frames at `seconds` are judged."""
    if evaluation == "time":
        return [[round(second * rate)] for second in seconds]
    fps = {"rollout_1fps": 1, "rollout_4fps": 4}.get(evaluation)
    if fps is None:
        raise ValueError(f"evaluation must be one of {', '.join(ISOLATED)}, got {evaluation!r}")
    stride = rate / fps
    if stride < 1 or stride != int(stride):
        raise ValueError(f"{evaluation} needs data at a multiple of {fps} frames per second, these have {rate}")
    return [list(range(int(stride), round(max(seconds) * rate) + 1, int(stride)))]


def far_frames(
    world: WorldModel,
    problems: Sequence[Problem],
    evaluation: str,
    seconds: Sequence[int],
    seeds: Sequence[int],
    *,
    as_released: bool = False,
    tick: Callable[[int], None] = lambda frames: None,
) -> np.ndarray:
    """Dreamed frames at each of `seconds`: uint8 [B, len(seconds), H, W, 3], one lane per problem."""
    moves = world.kinematics
    assert isinstance(moves, Displacement)
    wanted = [round(second * moves.rate) for second in seconds]
    start = opened(world, problems, seeds)
    shown: dict[int, np.ndarray] = {}
    for frames in stops(evaluation, seconds, moves.rate):
        actions = hops(np.stack([problem.future for problem in problems]), frames, moves, as_released=as_released).to(world.device)
        state, before = start, 0
        for step, at in enumerate(frames):
            state, seen = world.step(state, actions[:, step, None], stride=at - before)
            before = at
            if at in wanted:
                seen.check()
                shown[at] = seen.pixels[:, -1].cpu().numpy()
            tick(len(problems))
    return np.stack([shown[at] for at in wanted], 1)


def hops(future: np.ndarray, frames: Sequence[int], moves: Displacement, *, as_released: bool = False) -> Tensor:
    """The actions that lead through `frames` of a future [B, T, 5] (poses as seen from the start): float32 [B, len(frames), 3]."""
    poses = torch.from_numpy(np.concatenate([np.zeros_like(future[:, :1]), future], 1))[:, [0, *frames]]
    actions = moves.action(relative_pose(poses[:, 1:], poses[:, :-1]))
    if as_released:  # positions are normalised and then subtracted, so only the first difference keeps the offset
        normalised = moves.action(poses[:, 1:])[..., :2]
        actions[..., :2] = torch.cat([normalised[:, :1], normalised.diff(dim=1)], 1)
    return actions


def judge_frames(frames: np.ndarray, truth: np.ndarray, metrics: Sequence[str]) -> dict[str, list[float]]:
    """Metric -> value of each frame [n, H, W, 3], as plain numbers."""
    return {name: [round(float(v), 4) for v in values] for name, values in image.judge(frames, truth, metrics).items()}


# -- tables -----------------------------------------------------------------------------------------------------------------------------

PLAN_COLUMNS = ("ate_spacings", "rpe_spacings", "final_distance_spacings", "ate_m", "rpe_m", "final_yaw_rad")
FRAME_COLUMNS = ("psnr", "ssim", "lpips", "dreamsim")

Rows = Mapping[str, Sequence[Mapping[str, Any]]]  # system -> rows, of the same tasks in the same order


def summarise(planning: Rows, isolated: Mapping[str, Rows], references: Sequence[str] = ()) -> dict[str, Any]:
    """Tables of means with 95 % bootstrap intervals, and of paired differences between each system and each of `references`.

    planning: system -> rows. isolated: evaluation -> system -> rows. Tasks of one drive are not independent, so intervals resample drives.
    """
    plans = [{"system": name, **_means(rows, PLAN_COLUMNS)} for name, rows in planning.items() if rows]
    gaps = [{"difference": words, **_means(rows, PLAN_COLUMNS)} for words, rows in _differences(planning, references, PLAN_COLUMNS)]
    frames, frame_gaps = [], []
    for evaluation, systems in isolated.items():
        times = next((rows[0]["seconds"] for rows in systems.values() if rows), ())
        for k, second in enumerate(times):
            where = {"evaluation": evaluation, "seconds": second}
            at = {name: [_at(row, k) for row in rows] for name, rows in systems.items()}
            frames += [{**where, "system": name, **_means(rows, FRAME_COLUMNS)} for name, rows in at.items() if rows]
            pairs = _differences(at, references, FRAME_COLUMNS)
            frame_gaps += [{**where, "difference": words, **_means(rows, FRAME_COLUMNS)} for words, rows in pairs]
    return {"planning": plans, "planning_differences": gaps, "frames": frames, "frame_differences": frame_gaps}


def _at(row: Mapping[str, Any], k: int) -> dict[str, Any]:
    """A row of frames, at its k-th time only."""
    return {"trajectory": row["trajectory"], "time": row["time"], **{m: row[m][k] for m in FRAME_COLUMNS if m in row}}


def _differences(systems: Rows, references: Sequence[str], names: Sequence[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """System minus reference, task by task. Of two references, only the later minus the earlier."""
    known = [name for name in references if systems.get(name)]
    for name, rows in systems.items():
        for other in known[: known.index(name)] if name in known else known:
            pairs = list(zip(rows, systems[other], strict=True))
            assert all((a["trajectory"], a["time"]) == (b["trajectory"], b["time"]) for a, b in pairs)
            gaps = [{"trajectory": a["trajectory"], **{c: a[c] - b[c] for c in names if c in a and c in b}} for a, b in pairs]
            yield f"{name} - {other}", gaps


def _means(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Means of those columns that all rows have."""
    drives = [row["trajectory"] for row in rows]
    out: dict[str, Any] = {"tasks": len(rows), "drives": len(set(drives))}
    for name in names:
        if all(name in row for row in rows):
            out |= columns(name, bootstrap_interval([row[name] for row in rows], clusters=drives))
    return out


def markdown(summary: Mapping[str, Any], about: str) -> str:
    """The tables of `summarise` as a page."""
    lines = ["# RECON", "", about, "", PAPER, ""]
    paired = "Paired differences, task by task: the errors of the first minus those of the second."
    if summary["planning"]:
        lines += ["ATE, RPE and final distance in waypoint spacings; the same in metres; final yaw error in radians.", ""]
        lines += [*markdown_rows(summary["planning"]), ""]
    if summary["planning_differences"]:
        lines += [paired, "", *markdown_rows(summary["planning_differences"]), ""]
    if summary["frames"]:
        lines += ["Single frames far ahead. PSNR in dB; `copy` repeats the last observed frame.", "", *markdown_rows(summary["frames"]), ""]
    if summary["frame_differences"]:
        lines += [paired.replace("errors", "scores"), "", *markdown_rows(summary["frame_differences"]), ""]
    return "\n".join(lines)
