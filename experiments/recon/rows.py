"""One row per task: a plan compared with the driven path, or dreamed frames compared with the true ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from wmgym import rng
from wmgym.agents.cem import NWM_PRIORS, Gaussian, straight_line_prior
from wmgym.agents.objectives import make_objective
from wmgym.agents.policy import Policy, PolicyConfig, fit_policy
from wmgym.agents.proposals import View, line_frames, line_paths, plan_line, rank, rank_frames
from wmgym.benchmarks import recon as protocol
from wmgym.benchmarks.recon import Problem
from wmgym.data import recon
from wmgym.data.recon import Task
from wmgym.experiments.recon import pictures
from wmgym.experiments.recon.args import PLANNING, ReconArgs
from wmgym.experiments.recon.drives import Drives
from wmgym.experiments.recon.methods import LINE, TOLD, Method, Methods

Tick = Callable[[int], Any]  # number of frames dreamed since the last call
Made = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # evaluation -> method -> rows


@dataclass(frozen=True)
class Maker:
    """Makes rows. Holds what all rows of a run share."""

    args: ReconArgs
    drives: Drives
    methods: Methods
    objective: str
    metrics: tuple[str, ...]  # of frames far ahead
    progress: bool

    def rows(self, evaluation: str, method: Method, tasks: Sequence[Task], tick: Tick) -> list[dict[str, Any]]:
        """One row per task. `tick` is called as frames are dreamed."""
        return self._plan(method, tasks, tick) if evaluation == PLANNING else self._far(evaluation, method, tasks, tick)

    def frames(self, evaluation: str, method: Method) -> int:
        """How many frames a world dreams for each task; 0 for methods without a world."""
        if method.checkpoint is None:
            return 0
        if evaluation != PLANNING:
            return sum(map(len, protocol.stops(evaluation, self.args.seconds, self.drives.dataset.displacement.rate)))
        if method.rank is None:
            return line_frames(self.args.cem, self.args.horizon, self.args.dreams)
        return rank_frames(method.rank, self.args.horizon, self.args.dreams)

    def made_with(self, evaluation: str, method: Method) -> dict[str, Any]:
        """What decides a method's rows besides the arguments that `open_run_folder` compares."""
        made: dict[str, Any] = {}
        if method.checkpoint:
            world = self.methods.world(method)
            made = {"checkpoint": method.checkpoint, "weights": world.provenance.weights, "dtype": world.dtype_name}
            made["sampler"] = asdict(world.settings.sampler)
        if evaluation != PLANNING:
            return {**made, "metrics": list(self.metrics), "frame_size": self.methods.frame_size}
        return {**made, "objective": self.objective} if made else made

    @property
    def prior_name(self) -> str:
        name = self.drives.dataset.name
        return f"NWM's for {name}" if name in NWM_PRIORS else "measured on drives without a task"

    @cached_property
    def _prior(self) -> Gaussian:
        """Where CEM starts."""
        dataset = self.drives.dataset
        if dataset.name in NWM_PRIORS:
            mean, std = NWM_PRIORS[dataset.name]
            return Gaussian(torch.tensor([mean]), torch.tensor([std]))
        return straight_line_prior(*recon.straight_lines(self.drives.training, dataset.displacement, self.args.horizon))

    @cached_property
    def _policy(self) -> Policy:
        config = PolicyConfig(horizon=self.args.horizon, steps=self.args.policy_steps, seed=self.args.seed)
        return fit_policy(self.drives.training, self.drives.dataset.displacement.spacing, config, self.args.out / "policy", self.progress)

    # -- one batch of tasks -------------------------------------------------------------------------------------------------------------

    def _plan(self, method: Method, tasks: Sequence[Task], tick: Tick) -> list[dict[str, Any]]:
        problems = self._problems(tasks)
        paths, shown = self._paths(method, tasks, problems, tick)
        for i, problem in enumerate(problems):
            pictures.keep(self.args.out, f"{PLANNING}/gt/{problem.name}", np.stack([problem.frames[-1], problem.goal]), ["seen", "goal"])
            if shown is not None:
                pictures.keep(self.args.out, f"{PLANNING}/{pictures.plain(method.name)}/{problem.name}", shown[i : i + 1], ["end"])
        spacing = self.drives.dataset.displacement.spacing
        return [protocol.judge_path(path.numpy(), problem, spacing) for path, problem in zip(paths, problems, strict=True)]

    def _paths(
        self, method: Method, tasks: Sequence[Task], problems: Sequence[Problem], tick: Tick
    ) -> tuple[torch.Tensor, np.ndarray | None]:
        """Planned paths [B, horizon, 5], and from worlds the last frames that were dreamed along them."""
        args, seeds = self.args, self._seeds(problems)
        if method.name == LINE:
            line = line_paths(self._prior.mean, args.horizon, self.drives.dataset.displacement)
            return line.expand(len(problems), -1, -1), None
        if method.name == TOLD:
            way = torch.arange(1, args.horizon + 1)[:, None] / args.horizon
            return torch.from_numpy(np.stack([problem.future[args.horizon - 1 : args.horizon] for problem in problems])) * way, None
        if method.checkpoint is None:
            return self._proposals(tasks, seeds, 1)[:, 0], None
        world = self.methods.world(method)
        state = protocol.opened(world, problems, seeds)
        goals = torch.from_numpy(np.stack([problem.goal for problem in problems])).to(world.device)
        objective = make_objective(self.objective, goal_frames=goals, encode=world.encode)
        dreams = replace(args.dreams, tick=tick)
        if method.rank is None:
            chosen = plan_line(world, state, objective, self._prior, args.cem, args.horizon, dreams)
        else:
            chosen = rank(world, state, objective, self._proposals(tasks, seeds, method.rank), dreams)
        return chosen.paths, chosen.frames.numpy()

    def _far(self, evaluation: str, method: Method, tasks: Sequence[Task], tick: Tick) -> list[dict[str, Any]]:
        args, rate, size = self.args, self.drives.dataset.displacement.rate, self.methods.frame_size
        problems = self._problems(tasks)
        at = [round(second * rate) for second in args.seconds]
        truth = [self.drives.trajectory(p.task.trajectory).frames([p.task.time + n for n in at], size) for p in problems]
        if method.checkpoint is None:
            frames = np.stack([np.repeat(p.frames[-1:], len(at), 0) for p in problems])
        else:
            seeds, world = self._seeds(problems), self.methods.world(method)
            frames = protocol.far_frames(world, problems, evaluation, args.seconds, seeds, as_released=args.as_released, tick=tick)
        rows = []
        for i, problem in enumerate(problems):
            for name, pixels in (("gt", truth[i]), (pictures.plain(method.name), frames[i])):
                pictures.keep(args.out, f"{evaluation}/{name}/{problem.name}", pixels, far_names(evaluation, args.seconds))
            where = {"trajectory": problem.task.trajectory, "time": problem.task.time, "seconds": list(args.seconds)}
            rows.append({**where, **protocol.judge_frames(frames[i], truth[i], self.metrics)})
        return rows

    def _problems(self, tasks: Sequence[Task], size: int | None = None) -> list[Problem]:
        moves, context = self.drives.dataset.displacement, self.args.context
        size = size or self.methods.frame_size
        return [protocol.problem_of(self.drives.trajectory(task.trajectory), task, moves, size, context) for task in tasks]

    def _seeds(self, problems: Sequence[Problem]) -> list[int]:
        """A task's noise and candidates depend on the task alone, whatever batch it is in."""
        words = [hashlib.sha256(f"{self.args.seed} {problem.name}".encode()).digest() for problem in problems]
        return [int.from_bytes(word[:8]) for word in words]

    def _proposals(self, tasks: Sequence[Task], seeds: Sequence[int], count: int) -> torch.Tensor:
        """The policy's paths. It sees frames of its own size, so its paths are the same whichever world ranks them."""
        return self._policy.propose(_view(self._problems(tasks, self._policy.config.size), seeds, self._policy.context), count)


def far_names(evaluation: str, seconds: Sequence[int]) -> list[str]:
    """The names of the files of frames far ahead, as NWM has them: the second, or the number of the frame."""
    fps = {"rollout_1fps": 1, "rollout_4fps": 4}.get(evaluation)
    return [str(second * fps - 1 if fps else second) for second in seconds]


def _view(problems: Sequence[Problem], seeds: Sequence[int], context: int) -> View:
    """What a policy sees of these problems."""
    index = [np.maximum(np.arange(len(problem.frames) - context, len(problem.frames)), 0) for problem in problems]
    frames = np.stack([problem.frames[rows] for problem, rows in zip(problems, index, strict=True)])
    return View(frames, np.stack([problem.goal for problem in problems]), rng.make_keys(list(seeds)))
