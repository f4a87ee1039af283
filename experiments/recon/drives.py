"""The data of a run: drives, the tasks on them, and the drives without a task."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path

from wmgym.data import recon
from wmgym.data.recon import Dataset, Task, Trajectory
from wmgym.experiments.recon.args import PLANNING, ReconArgs
from wmgym.progress import Progress

SPLITS = {PLANNING: "navigation_eval.pkl", "time": "time.pkl", "rollout_1fps": "rollout.pkl", "rollout_4fps": "rollout.pkl"}


class Drives:
    """Drives and tasks. Everything is read once, when it is first needed."""

    def __init__(self, args: ReconArgs, progress: bool) -> None:
        self.args, self._progress = args, progress
        self.dataset: Dataset = recon.read_dataset(args.data, args.dataset)
        self.paths = {path.stem: path for path in recon.list_trajectories(args.data)}
        self.trajectory = cache(self._trajectory)
        self.tasks = cache(self._tasks)

    def split_file(self, evaluation: str) -> Path | None:
        """The file that names an evaluation's tasks, or at least their drives; None if there is none."""
        folder = self.args.split.parent if self.args.split else self.args.data
        own, drives = folder / SPLITS[evaluation], self.args.split or folder / SPLITS[PLANNING]
        if own.is_file() and evaluation != PLANNING:
            return own
        return drives if self.args.split or drives.is_file() else None

    @cached_property
    def training(self) -> list[Trajectory]:
        """Drives without a task: for the policy and the prior."""
        if self.args.train_data is not None:
            there = recon.read_dataset(self.args.train_data, self.args.dataset)
            if there.displacement != self.dataset.displacement:
                raise ValueError(f"{self.args.train_data} is {there}, {self.args.data} is {self.dataset}")
            return [recon.read_trajectory(path) for path in recon.list_trajectories(self.args.train_data)]
        used = {task.trajectory for task in self.tasks(PLANNING)}
        rest = [trajectory for trajectory in self._all if trajectory.name not in used]
        if not rest:
            raise ValueError(f"every drive of {self.args.data} has a task: give --train-data for policy and prior, or fewer --tasks")
        return rest

    @cached_property
    def _all(self) -> list[Trajectory]:
        return [self.trajectory(name) for name in Progress(self.paths, desc="odometry", disable=not self._progress)]

    def _trajectory(self, name: str) -> Trajectory:
        if name not in self.paths:
            raise ValueError(f"the split names the trajectory {name!r}, which is not in {self.args.data}")
        return recon.read_trajectory(self.paths[name])

    def _tasks(self, evaluation: str) -> list[Task]:
        """The tasks of an evaluation, the same for every method."""
        args, split = self.args, self.split_file(evaluation)
        is_far = evaluation != PLANNING
        ahead = math.ceil(max(args.seconds) * self.dataset.displacement.rate) if is_far else args.horizon
        if split is None:
            return self._spread(self._all, ahead)
        tasks = recon.read_split(split)
        if is_far and split.name != SPLITS[evaluation]:  # its tasks are only 2 s long, so only its drives can be used
            return self._spread([self.trajectory(name) for name in dict.fromkeys(task.trajectory for task in tasks)], ahead)
        if is_far:
            return [replace(task, goal=ahead) for task in tasks[: args.tasks]]  # these files leave the goal open
        if wrong := [task for task in tasks[: args.tasks] if task.goal != ahead]:
            raise ValueError(f"{split} asks for a goal {wrong[0].goal} steps ahead, horizon is {ahead}")
        return tasks[: args.tasks]

    def _spread(self, drives: list[Trajectory], ahead: int) -> list[Task]:
        return recon.make_split(drives, self.args.tasks, ahead, min(self.args.context, 4), self.args.seed)
