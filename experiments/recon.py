"""`wmgym eval recon`: NWM's planning table on RECON, or on data laid out like it, and single frames far ahead.

Writes one folder: `args.json`, `result.json`, `table.md`, `paths.png` (planned and true paths), `frames.png` (last seen, goal, and the end
of each plan), `far.png`, every judged frame in `images/`, and a file per system in `cells/` that grows with each batch of tasks, so that
a killed run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from wmgym import rng
from wmgym.agents.cem import NWM_CEM, NWM_HORIZON, NWM_PRIORS, NWM_REPEATS, CEMConfig, Gaussian, straight_line_prior
from wmgym.agents.objectives import IMAGE_OBJECTIVES, make_objective
from wmgym.agents.policy import Policy, PolicyConfig, fit_policy
from wmgym.agents.proposals import DreamConfig, View, line_frames, line_paths, moves_of, plan_line, rank, rank_frames
from wmgym.benchmarks import recon as protocol
from wmgym.benchmarks.recon import Problem
from wmgym.checkpoint import load_world
from wmgym.cli import plain
from wmgym.data import recon
from wmgym.data.recon import Dataset, Task, Trajectory
from wmgym.diffusion.samplers import evaluations
from wmgym.experiments import recon_pictures as pictures
from wmgym.files import as_json, open_run_folder, write_atomically
from wmgym.memory.packing import LAYOUTS
from wmgym.metrics.image import available, lpips_available
from wmgym.systems.nwm import PREFIX
from wmgym.world_model import WorldModel

EVALUATIONS = ("planning", *protocol.ISOLATED)
SPLITS = {"planning": "navigation_eval.pkl", "time": "time.pkl", "rollout_1fps": "rollout.pkl", "rollout_4fps": "rollout.pkl"}
LINE, TOLD, POLICY, COPY = "straight line", "line to the true goal", "GNM-like policy", "copy"
NAMES = {"none": "NWM", "worldpack": "WorldPack"}
FREE = frozenset("checkpoint modes evaluations rank objective device dtype lanes at_once out".split())  # decide no row, or its cell tells

Tick = Callable[[int], Any]  # frames made


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
    """A navigation_eval.pkl, with time.pkl and rollout.pkl beside it for frames far ahead (without those: its drives); by default what
    lies in the data's folder, or else tasks spread over the trajectories."""
    train_data: Path | None = None
    """Drives that the policy learns from and the prior is measured on; by default those of --data that have no task."""
    tasks: int = 100
    """How many, at most."""
    context: int = 64
    """Frames that a world is shown before each task, at most. NWM looks at the last four."""
    objective: str = "auto"
    """What tells how near a dream is to the goal: lpips, dreamsim, ssim, latent; auto: as the folder's rows had it, else lpips where its
    weights are, else latent."""
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
    """float32 or bfloat16; auto: as the folder's rows had it, else float32 on a CPU, bfloat16 on a GPU."""
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
        self.weights_of = cache(lambda checkpoint: self.world_of(checkpoint, "none").provenance.weights)
        self.systems = self._systems()
        self.size = self._frame_size()
        self._check_cells()
        open_run_folder(args.out, asdict(args), FREE | ({"tasks"} if args.train_data is not None else set()))

    def run(self) -> dict[str, Any]:
        args = self.args
        self._announce()
        found: dict[str, dict[str, list[dict[str, Any]]]] = {
            evaluation: {system.name: self._rows(evaluation, system) for system in self._systems_of(evaluation)}
            for evaluation in dict.fromkeys(args.evaluations)
        }
        planning, isolated = found.get("planning", {}), {name: rows for name, rows in found.items() if name != "planning"}
        if planning:
            pictures.plot_paths({name: rows for name, rows in planning.items() if name != TOLD}, args.out / "paths.png")
            pictures.plot_plans(args.out, self._tasks("planning"), list(planning))
        if isolated:
            worlds = {name: [system for system in systems if system != COPY] for name, systems in isolated.items()}
            shown = {name: (self._tasks(name)[0], self._names(name), systems) for name, systems in worlds.items()}
            pictures.plot_far(args.out, shown, args.seconds)
        references = (LINE, COPY, *(s.name for s in self.systems if s.mode == "none" and s.rank is None))
        summary = protocol.summarise(planning, isolated, references)
        about = (
            f"Data `{args.data}` ({self.dataset.name}, {len(self.paths)} trajectories, spacing {self.dataset.displacement.spacing:g} m). "
            f"CEM: {args.samples} candidates, {args.elites} elites, {args.iterations} iteration(s), {args.repeats} dreams each, "
            f"horizon {args.horizon}; objective {self.objective_name}. Means with 95 % bootstrap intervals over drives."
        )
        report = {
            "data": str(args.data),
            "dataset": self.dataset.name,
            "spacing_m": self.dataset.displacement.spacing,
            "objective": self.objective_name,
            "prior": self.prior_name if planning else "not used",
            "tasks_from": {name: str(self._split(name) or "spread over the trajectories") for name in found},
            "frame_metrics": ", ".join(self.metrics),
            "as_released": args.as_released,
            **({"warning": self.warning} if self.warning else {}),
            **summary,
            "out": str(args.out),
        }
        write_atomically(args.out / "result.json", as_json(plain(report)))
        text = f"**{self.warning}**\n\n{about}" if self.warning else about
        write_atomically(args.out / "table.md", protocol.markdown(summary, text).encode())
        return report

    def _announce(self) -> None:
        """What there is to do, before hours go by."""
        frames = passes = rows = 0
        for evaluation in dict.fromkeys(self.args.evaluations):
            for system in self._systems_of(evaluation):
                left = len(self._tasks(evaluation)) - len(self._done(evaluation, system))
                dreamed = left * self._frames(evaluation, system)
                rows += left > 0
                frames += dreamed
                if dreamed:
                    sampler = self._world(system).settings.sampler
                    passes += dreamed * evaluations(sampler.name, sampler.denoise_steps)
        if self.progress:
            print(f"recon: {rows} rows to make, {frames:,} frames to dream, {passes:,} network evaluations", file=sys.stderr)
            if self.warning:
                print(f"recon: {self.warning}", file=sys.stderr)

    @cached_property
    def warning(self) -> str:
        """Published weights were trained on most of the drives of their dataset."""
        spread = [name for name in dict.fromkeys(self.args.evaluations) if self._split(name) is None]
        if not spread or not any(c.startswith(PREFIX) for c in self.args.checkpoint) or (self.args.data / "traj_names.txt").is_file():
            return ""
        return (
            f"Published weights are judged here ({', '.join(spread)}) on drives that they may have learned from: there is neither a split "
            f"(navigation_eval.pkl, time.pkl, rollout.pkl) nor a traj_names.txt of test drives in {self.args.data}."
        )

    # -- what is evaluated --------------------------------------------------------------------------------------------------------------

    def _systems(self) -> list[System]:
        args = self.args
        systems = [System(LINE), System(TOLD)]
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
        names = {pictures.plain(system.name) for system in systems}
        if len(names) < len(systems):
            raise ValueError(f"checkpoints must be told apart by their folders, got {args.checkpoint}")
        return systems

    def _systems_of(self, evaluation: str) -> list[System]:
        if evaluation == "planning":
            return self.systems
        return [System(COPY), *(system for system in self.systems if system.checkpoint and system.rank is None)]

    def _world_of(self, checkpoint: str, mode: str) -> WorldModel:
        args = self.args
        dtype = self._told("dtype") or "auto" if args.dtype == "auto" else args.dtype
        world = load_world(checkpoint, memory=mode, device=args.device, dtype=dtype, denoise_steps=args.denoise_steps)
        if moves_of(world) != self.dataset.displacement:
            raise ValueError(f"{checkpoint} was made for {world.kinematics}, the data of {args.data} say {self.dataset.displacement}")
        return world

    def _world(self, system: System) -> WorldModel:
        assert system.checkpoint and system.mode
        return self.world_of(system.checkpoint, system.mode)

    def _frame_size(self) -> int:
        sizes = {self._world(s).frame_shape[0] for s in self.systems if s.checkpoint}
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

    def _split(self, evaluation: str) -> Path | None:
        """The file that names an evaluation's tasks, or at least their drives; None if there is none."""
        folder = self.args.split.parent if self.args.split else self.args.data
        own, drives = folder / SPLITS[evaluation], self.args.split or folder / SPLITS["planning"]
        if own.is_file() and evaluation != "planning":
            return own
        return drives if self.args.split or drives.is_file() else None

    @cache  # noqa: B019
    def _tasks(self, evaluation: str) -> list[Task]:
        args, split = self.args, self._split(evaluation)
        far = evaluation != "planning"
        ahead = math.ceil(max(args.seconds) * self.dataset.displacement.rate) if far else args.horizon
        if split is None:
            return recon.make_split(self._all, args.tasks, ahead, min(args.context, 4), args.seed)
        tasks = recon.read_split(split)
        if far and split.name != SPLITS[evaluation]:  # tasks 2 s long: their drives will do
            drives = [self._trajectory(name) for name in dict.fromkeys(task.trajectory for task in tasks)]
            return recon.make_split(drives, args.tasks, ahead, min(args.context, 4), args.seed)
        if far:
            return [replace(task, goal=ahead) for task in tasks[: args.tasks]]  # which leaves their goals open
        if wrong := [task for task in tasks[: args.tasks] if task.goal != ahead]:
            raise ValueError(f"{split} asks for a goal {wrong[0].goal} steps ahead, horizon is {ahead}")
        return tasks[: args.tasks]

    @cached_property
    def _training(self) -> list[Trajectory]:
        """Drives without a task."""
        if self.args.train_data is not None:
            there = recon.read_dataset(self.args.train_data, self.args.dataset)
            if there.displacement != self.dataset.displacement:
                raise ValueError(f"{self.args.train_data} is {there}, {self.args.data} is {self.dataset}")
            return [recon.read_trajectory(path) for path in recon.list_trajectories(self.args.train_data)]
        used = {task.trajectory for task in self._tasks("planning")}
        rest = [trajectory for trajectory in self._all if trajectory.name not in used]
        if not rest:
            raise ValueError(f"every drive of {self.args.data} has a task: give --train-data for policy and prior, or fewer --tasks")
        return rest

    @cached_property
    def objective_name(self) -> str:
        if self.args.objective != "auto":
            return self.args.objective
        return self._told("objective") or ("lpips" if lpips_available() else "latent")

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Of frames far ahead."""
        return tuple(self._told("metrics") or available())

    @property
    def prior_name(self) -> str:
        return f"NWM's for {self.dataset.name}" if self.dataset.name in NWM_PRIORS else "measured on drives without a task"

    @cached_property
    def dreams(self) -> DreamConfig:
        return DreamConfig(self.args.repeats, self.args.at_once, self.args.as_released)

    @cached_property
    def _prior(self) -> Gaussian:
        if self.dataset.name in NWM_PRIORS:
            mean, std = NWM_PRIORS[self.dataset.name]
            return Gaussian(torch.tensor([mean]), torch.tensor([std]))
        return straight_line_prior(*recon.straight_lines(self._training, self.dataset.displacement, self.args.horizon))

    @cached_property
    def _policy(self) -> Policy:
        config = PolicyConfig(horizon=self.args.horizon, steps=self.args.policy_steps, seed=self.args.seed)
        return fit_policy(self._training, self.dataset.displacement.spacing, config, self.args.out / "policy", self.progress)

    # -- one batch of tasks -------------------------------------------------------------------------------------------------------------

    def _problems(self, tasks: Sequence[Task], size: int | None = None) -> list[Problem]:
        moves, context = self.dataset.displacement, self.args.context
        return [protocol.problem_of(self._trajectory(task.trajectory), task, moves, size or self.size, context) for task in tasks]

    def _seeds(self, problems: Sequence[Problem]) -> list[int]:
        """A task's noise and candidates depend on it alone, whatever batch it is in."""
        words = [hashlib.sha256(f"{self.args.seed} {problem.name}".encode()).digest() for problem in problems]
        return [int.from_bytes(word[:8]) for word in words]

    def _proposals(self, tasks: Sequence[Task], seeds: Sequence[int], count: int) -> torch.Tensor:
        """The policy's paths. It is shown frames of its own size, so that they are the same whichever world ranks them."""
        return self._policy.propose(_view(self._problems(tasks, self._policy.config.size), seeds, self._policy.context), count)

    def _plan(self, system: System, tasks: Sequence[Task], tick: Tick) -> list[dict[str, Any]]:
        args, problems = self.args, self._problems(tasks)
        seeds = self._seeds(problems)
        shown: np.ndarray | None = None
        if system.name == LINE:
            paths = line_paths(self._prior.mean, args.horizon, self.dataset.displacement).expand(len(problems), -1, -1)
        elif system.name == TOLD:
            way = torch.arange(1, args.horizon + 1)[:, None] / args.horizon
            paths = torch.from_numpy(np.stack([problem.future[args.horizon - 1 : args.horizon] for problem in problems])) * way
        elif system.checkpoint is None:
            paths = self._proposals(tasks, seeds, 1)[:, 0]
        else:
            world = self._world(system)
            state = protocol.opened(world, problems, seeds)
            goals = torch.from_numpy(np.stack([problem.goal for problem in problems])).to(world.device)
            aim = make_objective(self.objective_name, goal_frames=goals, encode=world.encode)
            dreams = replace(self.dreams, tick=tick)
            if system.rank is None:
                chosen = plan_line(world, state, aim, self._prior, args.cem, args.horizon, dreams)
            else:
                chosen = rank(world, state, aim, self._proposals(tasks, seeds, system.rank), dreams)
            paths, shown = chosen.paths, chosen.frames.numpy()
        for i, problem in enumerate(problems):
            pictures.keep(args.out, f"planning/gt/{problem.name}", np.stack([problem.frames[-1], problem.goal]), ["seen", "goal"])
            if shown is not None:
                pictures.keep(args.out, f"planning/{pictures.plain(system.name)}/{problem.name}", shown[i : i + 1], ["end"])
        spacing = self.dataset.displacement.spacing
        return [protocol.judge_path(path.numpy(), problem, spacing) for path, problem in zip(paths, problems, strict=True)]

    def _far(self, evaluation: str, system: System, tasks: Sequence[Task], tick: Tick) -> list[dict[str, Any]]:
        args, rate = self.args, self.dataset.displacement.rate
        problems = self._problems(tasks)
        at = [round(second * rate) for second in args.seconds]
        truth = [self._trajectory(p.task.trajectory).frames([p.task.time + n for n in at], self.size) for p in problems]
        if system.checkpoint is None:
            frames = np.stack([np.repeat(p.frames[-1:], len(at), 0) for p in problems])
        else:
            seeds, world = self._seeds(problems), self._world(system)
            frames = protocol.far_frames(world, problems, evaluation, args.seconds, seeds, as_released=args.as_released, tick=tick)
        rows = []
        for i, problem in enumerate(problems):
            for name, pixels in (("gt", truth[i]), (pictures.plain(system.name), frames[i])):
                pictures.keep(args.out, f"{evaluation}/{name}/{problem.name}", pixels, self._names(evaluation))
            where = {"trajectory": problem.task.trajectory, "time": problem.task.time, "seconds": list(args.seconds)}
            rows.append({**where, **protocol.judge_frames(frames[i], truth[i], self.metrics)})
        return rows

    def _names(self, evaluation: str) -> list[str]:
        """What the files of frames far ahead are called, as NWM's are: by second, or by the number of the frame."""
        fps = {"rollout_1fps": 1, "rollout_4fps": 4}.get(evaluation)
        return [str(second * fps - 1 if fps else second) for second in self.args.seconds]

    # -- kept on the disk ---------------------------------------------------------------------------------------------------------------

    def _cell(self, evaluation: str, system: System) -> Path:
        return self.args.out / "cells" / f"{pictures.plain(f'{evaluation} {system.name}')}.json"

    def _made_with(self, evaluation: str, system: System) -> dict[str, Any]:
        """What decides a cell's rows besides the arguments that `open_run_folder` compares."""
        told: dict[str, Any] = {}
        if system.checkpoint:
            world = self._world(system)
            told = {"checkpoint": system.checkpoint, "weights": self.weights_of(system.checkpoint), "dtype": world.dtype_name}
            told["sampler"] = asdict(world.settings.sampler)
        if evaluation != "planning":
            return {**told, "metrics": list(self.metrics), "frame_size": self.size}
        return {**told, "objective": self.objective_name} if told else told

    @cached_property
    def _cells(self) -> dict[Path, dict[str, Any]]:
        """What lay in the folder when we came; a damaged file is no cell."""
        found = {file: _read_cell(file) for file in sorted((self.args.out / "cells").glob("*.json"))}
        return {file: cell for file, cell in found.items() if cell is not None}

    def _told(self, key: str) -> Any:
        """How "auto" was understood when the folder's rows were made; None if none are there."""
        return next((cell["made_with"][key] for cell in self._cells.values() if key in cell["made_with"]), None)

    def _check_cells(self) -> None:
        """Rows of other weights, or made otherwise, are neither taken for ours nor thrown away."""
        for evaluation in dict.fromkeys(self.args.evaluations):
            for system in self._systems_of(evaluation):
                file, wanted = self._cell(evaluation, system), self._made_with(evaluation, system)
                there = self._cells[file]["made_with"] if file in self._cells else wanted
                for key in sorted((wanted.keys() | there.keys()) - {"checkpoint"}):  # the same weights may have moved
                    if there.get(key) != wanted.get(key):
                        was = f"{key}={there.get(key)!r} (checkpoint {there.get('checkpoint')!r}), not {wanted.get(key)!r}"
                        raise ValueError(f"{file} holds rows made with {was}; use another folder, or remove the file to make them again")

    def _done(self, evaluation: str, system: System) -> list[dict[str, Any]]:
        """Rows of a cell's file, if they are of the first tasks."""
        tasks = self._tasks(evaluation)
        rows = self._cells.get(self._cell(evaluation, system), {}).get("rows", [])[: len(tasks)]
        same = all((row["trajectory"], row["time"]) == (task.trajectory, task.time) for row, task in zip(rows, tasks))
        return rows if same else []

    def _frames(self, evaluation: str, system: System) -> int:
        """How many a world dreams for each task; 0 without a world."""
        if system.checkpoint is None:
            return 0
        if evaluation != "planning":
            return sum(map(len, protocol.stops(evaluation, self.args.seconds, self.dataset.displacement.rate)))
        if system.rank is None:
            return line_frames(self.args.cem, self.args.horizon, self.dreams)
        return rank_frames(system.rank, self.args.horizon, self.dreams)

    def _rows(self, evaluation: str, system: System) -> list[dict[str, Any]]:
        """A row per task; those in the cell's file are not made again."""
        tasks, rows = self._tasks(evaluation), [*self._done(evaluation, system)]
        file, made_with = self._cell(evaluation, system), self._made_with(evaluation, system)
        make = self._plan if evaluation == "planning" else partial(self._far, evaluation)
        each = self._frames(evaluation, system)
        unit, each = ("frame", each) if each else ("task", 1)
        title = f"{evaluation} {system.name}"
        with tqdm(total=each * len(tasks), initial=each * len(rows), desc=title, unit=unit, disable=not self.progress) as bar:
            while len(rows) < len(tasks):
                part = tasks[len(rows) : len(rows) + self.args.lanes]
                rows += make(system, part, bar.update)
                write_atomically(file, json.dumps({"made_with": made_with, "rows": rows}).encode())
                bar.update(each * len(rows) - bar.n)  # a world has told it all by then
        return rows


def _read_cell(file: Path) -> dict[str, Any] | None:
    """A cell with its rows and what they were made with; None if it is damaged, ValueError if it was written by an older version."""
    try:
        cell = json.loads(file.read_text())
    except ValueError:
        return None
    if not isinstance(cell, dict) or "made_with" not in cell:
        raise ValueError(f"{file} does not say what its rows were made with; use another folder")
    return cell


def _view(problems: Sequence[Problem], seeds: Sequence[int], context: int) -> View:
    """What a policy is shown of problems."""
    index = [np.maximum(np.arange(len(problem.frames) - context, len(problem.frames)), 0) for problem in problems]
    frames = np.stack([problem.frames[rows] for problem, rows in zip(problems, index, strict=True)])
    return View(frames, np.stack([problem.goal for problem in problems]), rng.make_keys(list(seeds)))
