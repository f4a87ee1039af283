"""`wmgym eval recon`: NWM's planning table on RECON, or on data laid out like it, and single frames far ahead.

Writes one folder: `args.json`, `result.json`, `table.md`, `paths.png` (planned and true paths), `frames.png` (last seen, goal, and the end
of each plan), `far.png`, every judged frame in `images/`, and a file per system in `cells/` that grows with each batch of tasks, so that
a killed run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from wmgym import rng
from wmgym.agents.cem import NWM_CEM, NWM_HORIZON, NWM_PRIORS, NWM_REPEATS, CEMConfig, Gaussian, straight_line_prior
from wmgym.agents.objectives import IMAGE_OBJECTIVES, Objective, make_objective
from wmgym.agents.policy import Policy, PolicyConfig, fit_policy
from wmgym.agents.proposals import Chosen, DreamConfig, View, line_paths, moves_of, plan_line, rank
from wmgym.benchmarks import recon as protocol
from wmgym.benchmarks.recon import Problem
from wmgym.checkpoint import load_world
from wmgym.data import recon
from wmgym.data.episode import as_json, write_atomically
from wmgym.data.recon import Dataset, Task, Trajectory
from wmgym.experiments import recon_pictures as pictures
from wmgym.experiments.loopnav import fingerprint
from wmgym.memory.packing import LAYOUTS
from wmgym.metrics.image import lpips_available
from wmgym.systems.nwm import PREFIX
from wmgym.world_model import WorldModel

EVALUATIONS = ("planning", *protocol.ISOLATED)
LINE, POLICY = "straight line", "GNM-like policy"
NAMES = {"none": "NWM", "worldpack": "WorldPack"}


@dataclass(frozen=True)
class ReconArgs:
    """Plan to views 2 s ahead on RECON or data laid out like it, and compare the plans with what was driven."""

    data: Path
    """Folder of RECON's HDF5 files or of processed trajectories (wmgym collect --format recon makes one)."""
    checkpoint: tuple[str, ...] = ()
    """Paths or hub names of models of world recon, or nwm:PATH for published NWM weights. None: the baselines alone."""
    modes: tuple[str, ...] = ("none", "worldpack")
    """Memory modes of each checkpoint: none (that is NWM), packing, retrieval, worldpack. Published weights have none only."""
    evaluations: tuple[str, ...] = ("planning",)
    """Of planning, time, rollout_1fps, rollout_4fps."""
    dataset: str = "recon"
    """Which published dataset the data are, if their folder does not say it in dataset.json: spacing, and where planners begin."""
    split: Path | None = None
    """A navigation_eval.pkl; by default the one in the data's folder, or else tasks spread over the trajectories."""
    train_data: Path | None = None
    """Drives that the policy learns from and the prior is measured on; by default those of --data that have no task."""
    tasks: int = 100
    """How many, at most."""
    context: int = 64
    """Frames that a world is shown before each task, at most. NWM looks at the last four."""
    objective: str = "auto"
    """What tells how near a dream is to the goal: lpips, dreamsim, ssim, latent; auto: lpips where its weights are, else latent."""
    horizon: int = NWM_HORIZON
    """Steps planned."""
    samples: int = NWM_CEM.samples
    """Candidates of CEM."""
    elites: int = NWM_CEM.elites
    """Of them, those that the plan is the mean of."""
    iterations: int = NWM_CEM.iterations
    """Rounds of CEM."""
    repeats: int = NWM_REPEATS
    """Dreams of each candidate, whose costs are averaged."""
    rank: tuple[int, ...] = (16, 32)
    """Numbers of the policy's proposals that each world ranks; none: no such rows."""
    policy_steps: int = 600
    """Training steps of the policy; 0: no policy."""
    seconds: tuple[int, ...] = protocol.SECONDS
    """How far ahead single frames are judged."""
    as_released: bool = False
    """Do as NWM's released code where it errs: rollouts lose the normalisation's offset, displacements stay in the frame of the start."""
    denoise_steps: int | None = None
    """By default the checkpoint's."""
    seed: int = 100
    """Of tasks, noise and candidates."""
    device: str = "auto"
    """cpu, cuda, ..."""
    dtype: str = "auto"
    """float32 or bfloat16; auto: float32 on a CPU, bfloat16 on a GPU."""
    lanes: int = 4
    """Tasks planned side by side."""
    at_once: int = 512
    """Dreams in one batch."""
    out: Path = Path("runs/recon")
    """Folder for the results."""

    def __post_init__(self) -> None:
        objectives = ("auto", *IMAGE_OBJECTIVES)
        for names, known in ((self.evaluations, EVALUATIONS), (self.modes, tuple(LAYOUTS)), ((self.objective,), objectives)):
            for name in names:
                if name not in known:
                    raise ValueError(f"must be one of {', '.join(known)}, got {name!r}")
        for name in ("tasks", "context", "horizon", "repeats", "lanes", "at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.horizon < 2:
            raise ValueError(f"horizon must be at least 2 (an RPE compares successive steps), got {self.horizon}")
        if any(count < 1 for count in (*self.rank, *self.seconds)) or self.policy_steps < 0 or self.seed < 0:
            raise ValueError("rank and seconds must be positive, policy_steps and seed not negative")
        _ = self.cem

    @property
    def cem(self) -> CEMConfig:
        return replace(NWM_CEM, samples=self.samples, elites=self.elites, iterations=self.iterations)


@dataclass(frozen=True)
class System:
    """A row of the tables."""

    name: str
    checkpoint: str | None = None
    mode: str | None = None
    rank: int | None = None  # of the policy's proposals; None: a world plans by itself


def evaluate(args: ReconArgs, progress: bool = True) -> dict[str, Any]:
    """All rows that are not there yet, then the report (also in `result.json`)."""
    return _Evaluation(args, progress).run()


class _Evaluation:
    """One run: what is read once and used by every row."""

    def __init__(self, args: ReconArgs, progress: bool) -> None:
        self.args, self.progress = args, progress
        self.dataset: Dataset = recon.read_dataset(args.data, args.dataset)
        self.paths = {path.stem: path for path in recon.list_trajectories(args.data)}
        self.world_of = cache(self._world_of)
        self.systems = self._systems()
        worlds = {system.checkpoint for system in self.systems if system.checkpoint}
        weights = {name: fingerprint(self.world_of(name, "none")) for name in sorted(worlds)}
        self.size = self._frame_size()
        self._claim(weights)

    def run(self) -> dict[str, Any]:
        args = self.args
        planning: dict[str, list[dict[str, Any]]] = {}
        isolated: dict[str, dict[str, list[dict[str, Any]]]] = {}
        if "planning" in args.evaluations:
            tasks = self._tasks(args.horizon)
            for system in self.systems:
                planning[system.name] = self._rows(f"planning {system.name}", tasks, partial(self._plan, system))
            pictures.plot_paths(planning, args.out / "paths.png")
            pictures.plot_plans(args.out, tasks, list(planning))
        for evaluation in (name for name in args.evaluations if name != "planning"):
            tasks = self._far_tasks()
            copy: list[System] = [System("copy"), *(s for s in self.systems if s.checkpoint and s.rank is None)]
            isolated[evaluation] = {
                s.name: self._rows(f"{evaluation} {s.name}", tasks, partial(self._far, s, evaluation)) for s in copy
            }
        if isolated:
            first = self._far_tasks()[0]
            rows = {name: (self._names(name), [s for s in systems if s != "copy"]) for name, systems in isolated.items()}
            pictures.plot_far(args.out, first, rows, args.seconds)
        summary = protocol.summarise(planning, isolated)
        about = (
            f"Data `{args.data}` ({self.dataset.name}, {len(self.paths)} trajectories, spacing {self.dataset.displacement.spacing:g} m). "
            f"CEM: {args.samples} candidates, {args.elites} elites, {args.iterations} iteration(s), {args.repeats} dreams each, "
            f"horizon {args.horizon}; objective {self.objective_name}. Means with 95 % bootstrap intervals over tasks."
        )
        report = {
            "data": str(args.data),
            "dataset": self.dataset.name,
            "spacing_m": self.dataset.displacement.spacing,
            "objective": self.objective_name,
            "prior": self.prior_name if "planning" in args.evaluations else "not used",
            "lpips": "measured" if lpips_available() else "left out: its weights are not here",
            "as_released": args.as_released,
            **summary,
            "out": str(args.out),
        }
        write_atomically(args.out / "result.json", as_json(report))
        write_atomically(args.out / "table.md", protocol.markdown(summary, about).encode())
        return report

    # -- what is evaluated --------------------------------------------------------------------------------------------------------------

    def _systems(self) -> list[System]:
        args = self.args
        systems = [System(LINE)]
        if args.policy_steps and "planning" in args.evaluations:
            systems.append(System(POLICY))
        several = len(args.checkpoint) > 1
        for checkpoint in args.checkpoint:
            published = checkpoint.startswith(PREFIX)
            for mode in dict.fromkeys(("none",) if published else args.modes):
                name = "NWM (published)" if published else NAMES.get(mode, mode)
                name += f" {Path(checkpoint.split(',')[0].removeprefix(PREFIX)).parent.name}" if several else ""
                systems.append(System(name, checkpoint, mode))
                if args.policy_steps:
                    systems += [System(f"{name} + policy x{count}", checkpoint, mode, count) for count in args.rank]
        names = [system.name for system in systems]
        if len(set(names)) < len(names):
            raise ValueError(f"checkpoints must be told apart by their folders, got {args.checkpoint}")
        return systems

    def _world_of(self, checkpoint: str, mode: str) -> WorldModel:
        args = self.args
        world = load_world(checkpoint, memory=mode, device=args.device, dtype=args.dtype, denoise_steps=args.denoise_steps)
        if moves_of(world) != self.dataset.displacement:
            raise ValueError(f"{checkpoint} was made for {world.kinematics}, the data of {args.data} say {self.dataset.displacement}")
        return world

    def _frame_size(self) -> int:
        sizes = {self.world_of(s.checkpoint, s.mode or "none").frame_shape[0] for s in self.systems if s.checkpoint}
        if len(sizes) > 1:
            raise ValueError(f"checkpoints of one table must have frames of one size, got {sorted(sizes)}")
        return sizes.pop() if sizes else PolicyConfig.size

    @cache  # noqa: B019  one evaluation lives as long as the program
    def _trajectory(self, name: str) -> Trajectory:
        if name not in self.paths:
            raise ValueError(f"the split names the trajectory {name!r}, which {self.args.data} has not")
        return recon.read_trajectory(self.paths[name])

    @cached_property
    def _all(self) -> list[Trajectory]:
        return [self._trajectory(name) for name in tqdm(self.paths, desc="odometry", disable=not self.progress)]

    @cache  # noqa: B019
    def _tasks(self, horizon: int) -> list[Task]:
        args = self.args
        split = args.split or args.data / "navigation_eval.pkl"
        if args.split is None and not split.is_file():
            return recon.make_split(self._all, args.tasks, horizon, min(args.context, 4), args.seed)
        tasks = recon.read_split(split)[: args.tasks]
        if wrong := [task for task in tasks if task.goal != horizon]:
            raise ValueError(f"{split} asks for a goal {wrong[0].goal} steps ahead, horizon is {horizon}")
        return tasks

    def _far_tasks(self) -> list[Task]:
        args = self.args
        ahead = math.ceil(max(args.seconds) * self.dataset.displacement.rate)
        return recon.make_split(self._all, args.tasks, ahead, min(args.context, 4), args.seed)

    @cached_property
    def _training(self) -> list[Trajectory]:
        """Drives without a task."""
        if self.args.train_data is not None:
            there = recon.read_dataset(self.args.train_data, self.args.dataset)
            if there.displacement != self.dataset.displacement:
                raise ValueError(f"{self.args.train_data} is {there}, {self.args.data} is {self.dataset}")
            return [recon.read_trajectory(path) for path in recon.list_trajectories(self.args.train_data)]
        used = {task.trajectory for task in self._tasks(self.args.horizon)}
        rest = [trajectory for trajectory in self._all if trajectory.name not in used]
        if not rest:
            raise ValueError(f"every drive of {self.args.data} has a task: give --train-data for policy and prior, or fewer --tasks")
        return rest

    @cached_property
    def objective_name(self) -> str:
        if self.args.objective != "auto":
            return self.args.objective
        return "lpips" if lpips_available() else "latent"

    @property
    def prior_name(self) -> str:
        return f"NWM's for {self.dataset.name}" if self.dataset.name in NWM_PRIORS else "measured on drives without a task"

    @cached_property
    def _prior(self) -> Gaussian:
        if self.dataset.name in NWM_PRIORS:
            mean, std = NWM_PRIORS[self.dataset.name]
            return Gaussian(torch.tensor([mean]), torch.tensor([std]))
        return straight_line_prior(*recon.straight_lines(self._training, self.dataset.displacement, self.args.horizon))

    @cached_property
    def _policy(self) -> Policy:
        config = PolicyConfig(horizon=self.args.horizon, size=self.size, steps=self.args.policy_steps, seed=self.args.seed)
        return fit_policy(self._training, self.dataset.displacement.spacing, config, self.args.out / "policy", self.progress)

    # -- one batch of tasks -------------------------------------------------------------------------------------------------------------

    def _problems(self, tasks: Sequence[Task], size: int | None = None) -> list[Problem]:
        moves, context = self.dataset.displacement, self.args.context
        return [protocol.problem_of(self._trajectory(task.trajectory), task, moves, size or self.size, context) for task in tasks]

    def _seeds(self, problems: Sequence[Problem]) -> list[int]:
        """A task's noise and candidates depend on it alone, whatever batch it is in."""
        words = [hashlib.sha256(f"{self.args.seed} {problem.name}".encode()).digest() for problem in problems]
        return [int.from_bytes(word[:8]) for word in words]

    def _plan(self, system: System, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        args, problems = self.args, self._problems(tasks)
        seeds = self._seeds(problems)
        shown: np.ndarray | None = None
        if system.name == LINE:
            paths = line_paths(self._prior.mean, args.horizon, self.dataset.displacement).expand(len(problems), -1, -1)
        elif system.checkpoint is None:
            paths = self._policy.propose(_view(problems, seeds, self._policy.context), 1)[:, 0]
        else:
            world = self.world_of(system.checkpoint, system.mode or "none")
            state = protocol.opened(world, problems, seeds)
            goals = torch.from_numpy(np.stack([problem.goal for problem in problems])).to(world.device)
            aim = make_objective(self.objective_name, goal_frames=goals, encode=world.encode)
            chosen = self._choose(system, world, state, aim, problems, seeds)
            paths, shown = chosen.paths, chosen.frames.numpy()
        for i, problem in enumerate(problems):
            pictures.keep(args.out, f"planning/gt/{problem.name}", np.stack([problem.frames[-1], problem.goal]), ["seen", "goal"])
            if shown is not None:
                pictures.keep(args.out, f"planning/{pictures.plain(system.name)}/{problem.name}", shown[i : i + 1], ["end"])
        spacing = self.dataset.displacement.spacing
        return [protocol.judge_path(path.numpy(), problem, spacing) for path, problem in zip(paths, problems, strict=True)]

    def _choose(
        self, system: System, world: WorldModel, state: Any, aim: Objective, problems: Sequence[Problem], seeds: Sequence[int]
    ) -> Chosen:
        args = self.args
        config = DreamConfig(args.repeats, args.at_once, args.as_released)
        if system.rank is None:
            return plan_line(world, state, aim, self._prior, args.cem, args.horizon, config)
        return rank(world, state, aim, self._policy.propose(_view(problems, seeds, self._policy.context), system.rank), config)

    def _far(self, system: System, evaluation: str, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        args, rate = self.args, self.dataset.displacement.rate
        problems = self._problems(tasks)
        at = [round(second * rate) for second in args.seconds]
        truth = [self._trajectory(p.task.trajectory).frames([p.task.time + n for n in at], self.size) for p in problems]
        if system.checkpoint is None:
            frames = np.stack([np.repeat(p.frames[-1:], len(at), 0) for p in problems])
        else:
            world = self.world_of(system.checkpoint, system.mode or "none")
            seeds = self._seeds(problems)
            frames = protocol.far_frames(world, problems, evaluation, args.seconds, seeds, as_released=args.as_released)
        rows = []
        for i, problem in enumerate(problems):
            for name, pixels in (("gt", truth[i]), (pictures.plain(system.name), frames[i])):
                pictures.keep(args.out, f"{evaluation}/{name}/{problem.name}", pixels, self._names(evaluation))
            where = {"trajectory": problem.task.trajectory, "time": problem.task.time, "seconds": list(args.seconds)}
            rows.append({**where, **protocol.judge_frames(frames[i], truth[i])})
        return rows

    def _names(self, evaluation: str) -> list[str]:
        """What the files of frames far ahead are called, as NWM's are: by second, or by the number of the frame."""
        fps = {"rollout_1fps": 1, "rollout_4fps": 4}.get(evaluation)
        return [str(second * fps - 1 if fps else second) for second in self.args.seconds]

    # -- kept on the disk ---------------------------------------------------------------------------------------------------------------

    def _rows(self, name: str, tasks: Sequence[Task], make: Callable[[Sequence[Task]], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """A row per task; those in the cell's file are not made again."""
        file = self.args.out / "cells" / f"{pictures.plain(name)}.json"
        try:
            rows = json.loads(file.read_text())
        except (OSError, ValueError):
            rows = []
        done = [(row["trajectory"], row["time"]) for row in rows]
        expected = [(task.trajectory, task.time) for task in tasks]
        rows = rows[: len(tasks)] if done[: len(tasks)] == expected[: len(done)] else []
        with tqdm(total=len(tasks), initial=len(rows), desc=name, unit="task", disable=not self.progress) as bar:
            while len(rows) < len(tasks):
                part = tasks[len(rows) : len(rows) + self.args.lanes]
                rows += make(part)
                write_atomically(file, json.dumps(rows).encode())
                bar.update(len(part))
        return rows

    def _claim(self, weights: Mapping[str, str]) -> None:
        """Make the folder ours, or see that its rows were made with the same arguments and weights."""
        args = self.args
        free = {"checkpoint", "modes", "evaluations", "rank", "device", "lanes", "at_once", "out"}  # change no finished row
        free |= {"tasks"} if args.train_data is not None else set()  # else it decides which drives policy and prior are made from
        values: dict[str, Any] = json.loads(json.dumps(asdict(args), default=str))
        file = args.out / "args.json"
        before: dict[str, Any] = {}
        if file.is_file():
            try:
                before = json.loads(file.read_text())
            except ValueError as error:
                raise ValueError(f"{file} is damaged ({error}); use another folder") from error
            for key in values.keys() - free:
                if before.get(key) != values[key]:
                    raise ValueError(f"{args.out} holds results with {key}={before.get(key)!r}, not {values[key]!r}; use another folder")
        known = {**before.get("weights", {}), **weights}
        for name, found in before.get("weights", {}).items():
            if known[name] != found:
                raise ValueError(f"{args.out} holds results of other weights under the name {name!r}; use another folder")
        write_atomically(file, as_json({**values, "weights": known}))


def _view(problems: Sequence[Problem], seeds: Sequence[int], context: int) -> View:
    """What a policy is shown of problems."""
    index = [np.maximum(np.arange(len(problem.frames) - context, len(problem.frames)), 0) for problem in problems]
    frames = np.stack([problem.frames[rows] for problem, rows in zip(problems, index, strict=True)])
    return View(frames, np.stack([problem.goal for problem in problems]), rng.make_keys(list(seeds)))
