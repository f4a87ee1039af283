"""`wmgym plan`: plan in a dream, act in its ground truth, and score how often and how directly the goal is reached.

Others act in the same worlds: the same planner with other models (the ground truth, which is the best that this search can do; the dream
without memory; the dream of an untrained network), a scripted rule, and random actions. Writes one folder: `args.json`, `result.json`,
`paths.png`, a film of the first episode for each model, and one file per finished batch of episodes in `cells/`. A killed run resumes from
those.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import gymnasium as gym
import numpy as np
import tyro
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor

import wmgym
from wmgym.agents.collect import WORLDS_PER_SEED
from wmgym.agents.mpc import PRESETS, PlannerConfig, PlanningAgent, preset
from wmgym.agents.objectives import IMAGE_OBJECTIVES, OBJECTIVES, Objective, make_objective
from wmgym.benchmarks.tables import columns
from wmgym.checkpoint import digest_of
from wmgym.env import make_env
from wmgym.experiments.support.film import panel, write_film
from wmgym.experiments.support.judged import untrained
from wmgym.experiments.support.pictures import check_plots, pyplot, save_figure
from wmgym.experiments.support.players import Planner, Random, Scripted, in_steps, rule_for
from wmgym.experiments.support.report import check_positive, check_seed, write_result
from wmgym.files import kept, open_run_folder
from wmgym.metrics.statistics import bootstrap_interval, paired_difference, wilson_interval
from wmgym.metrics.trajectory import path_length, spl
from wmgym.openings import frame_of
from wmgym.progress import Progress
from wmgym.tasks import ARRIVAL_DISTANCE, horizontal_distance
from wmgym.train.distance import load_distance
from wmgym.world_model import WorldModel

MODELS = ("dream", "none", "untrained", "truth", "scripted", "random")
WITHOUT_PLANS = ("scripted", "random")
DISCOUNT = 0.95  # of rewards, per frame
GOALS = ("task", "walk", "reward")
WALKS = 20  # random walks of each length that are tried for a goal away from the start
LONGER = (1, 2, 4, 8)  # factors by which those walks get longer
SHOWN = 6  # episodes in the picture of paths
RATE = 5  # frames per second of the films


@dataclass(frozen=True)
class PlanArgs:
    """Plan in a dream, act in its ground truth.

    Needs the id of a dream. Writes a folder with result.json, paths.png and a film for each model. Before it starts, it prints how many
    frames it will dream at most; `wmgym bench model` measures frames per second. A killed run resumes: type the same command again.
    Options that are not given have the default of the id or of the planner.
    """

    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]
    """Id of a dream, as `wmgym list` shows it."""
    models: tuple[str, ...] = ("dream", "truth", "random")
    """What the planner uses as its model: dream; none (the dream without memory); untrained (the dream with fresh network weights, its
    poses those of the kinematics); truth. Two act without a plan: scripted (a simple rule for the task), random."""
    planner: str = "cem"
    """cem: 256 frames a decision, one decision every 4 steps. nwm: the settings of NWM's planner (120 samples, 5 elites, 1 iteration, 3
    repeats, horizon 8), 2,904 frames a decision, one every step; discrete actions are free sequences. Or mppi."""
    objective: str = "pose"
    """pose, reward, lpips, dreamsim, ssim, latent or steps. The last five compare with a goal image; steps needs --distance."""
    distance: Path | None = None
    """Objective steps: the learned distance, DIR/distance.safetensors of `wmgym train distance --out DIR`."""
    goal: str = "auto"
    """task: the task's own goal. walk: the end of a random walk, given by pose and image. reward: none, and the episode succeeds with its
    first reward. auto: task if the task has a goal, else reward with --objective reward, else walk."""
    goal_steps: int = 8
    """Steps of that walk. If many walks in a row end near the start, longer ones are drawn."""
    task: str | None = None
    """Task of the env, such as navigate-near."""
    episodes: int = 20
    """Episodes for each model."""
    max_steps: int = 100
    """Steps after which an episode is given up."""
    lanes: int = 4
    """Episodes planned in one batch."""
    seed: int = 100
    """Seed of worlds and plans. Training uses 0 to 99."""
    horizon: int | None = None
    """Planner: frames of a plan. For dreams that make F frames a step: a multiple of F."""
    hold: int | None = None
    """Planner: frames of a plan that are acted before the next decision. For dreams that make F frames a step: 1 or a multiple of F."""
    samples: int | None = None
    """Planner: candidates in each iteration."""
    elites: int | None = None
    """Planner: best candidates that the next iteration is drawn around."""
    iterations: int | None = None
    """Planner: rounds of sampling."""
    repeats: int | None = None
    """Planner: dreams of each candidate, with different noise; their costs are averaged."""
    temperature: float | None = None
    """Planner mppi: the higher, the more evenly candidates count."""
    at_once: int | None = None
    """Rows dreamed in one batch, at most."""
    checkpoint: str | None = None
    """Bundled name, path, or hub name."""
    memory: str | None = None
    """Memory of the dream."""
    denoise_steps: int | None = None
    """Denoising steps per frame."""
    device: str | None = None
    """cpu, cuda, ..."""
    dtype: str | None = None
    """float32 or bfloat16."""
    film: bool = True
    """Write a film of the first episode for each model."""
    out: Path = Path("runs/plan")
    """Folder for the results."""

    def __post_init__(self) -> None:
        for name, values, allowed in (
            ("models", self.models, MODELS),
            ("planner", [self.planner], tuple(PRESETS)),
            ("objective", [self.objective], OBJECTIVES),
            ("goal", [self.goal], ("auto", *GOALS)),
        ):
            if not values or any(value not in allowed for value in values):
                raise ValueError(f"{name} must be of {', '.join(allowed)}, got {', '.join(map(repr, values)) or 'nothing'}")
        if (self.objective == "steps") != (self.distance is not None):
            raise ValueError(
                "objective 'steps' needs a learned distance, and no other objective does: give --objective steps --distance FILE "
                f"(`wmgym train distance` writes one), got objective={self.objective!r} and distance={str(self.distance)!r}"
            )
        check_positive(self, "goal_steps", "episodes", "max_steps", "lanes")
        check_seed(self.seed)


def plan(args: PlanArgs, progress: bool = True) -> dict[str, Any]:
    """Act out the batches that are missing, then the report (also in `result.json`)."""
    check_plots()
    names = ("task", "checkpoint", "memory", "denoise_steps", "device", "dtype")
    keywords = {name: value for name in names if (value := getattr(args, name)) is not None}
    stage = Stage(args, keywords)
    search = {name: value for name, value in asdict(stage.config).items() if name != "at_once"}
    learned = None if stage.distance is None else digest_of(stage.distance)
    made_with = {**asdict(args), "search": search, "weights": stage.world.provenance.weights, "distance_weights": learned}
    open_run_folder(args.out, made_with, {"models", "out", "film", "at_once"})
    rows: dict[str, list[dict[str, Any]]] = {model: [] for model in dict.fromkeys(args.models)}
    batches = [(model, first) for model in rows for first in range(0, args.episodes, args.lanes)]
    decisions = -(-args.max_steps // stage.config.hold)  # of an episode, at most
    most = decisions * sum(model not in WITHOUT_PLANS for model, _ in batches)
    if progress and most:
        print(what_it_costs(stage.config.frames, decisions, args.episodes), file=sys.stderr)
    with Progress(total=most, disable=not progress, unit="decision") as bar:
        for model, first in batches:
            seeds = [args.seed * WORLDS_PER_SEED + k for k in range(first, min(first + args.lanes, args.episodes))]
            bar.set_description(f"{model}, episodes {first} to {first + len(seeds) - 1}")
            file, before = args.out / "cells" / f"{model}-{first:04d}.json", bar.n
            rows[model] += kept(file, partial(stage.run, model, seeds, film=args.film and not first, decided=bar.update))["episodes"]
            if model not in WITHOUT_PLANS:
                bar.total -= decisions - (bar.n - before)  # decisions that were not needed, because episodes ended early
                bar.refresh()
    stage.close()
    draw_paths(args.out / "paths.png", rows)
    how = {"planner": asdict(stage.config), "objective": args.objective, "goal": stage.goal}
    report = {"id": args.id, **how, **summarise(rows), "out": str(args.out)}
    write_result(args.out, report)
    return report


def what_it_costs(frames: int, decisions: int, episodes: int) -> str:
    """A line that is printed before the run starts."""
    return (
        f"A decision dreams {frames:,} frames for each episode that has not ended; an episode has at most {decisions:,} decisions, so "
        f"{episodes:,} episodes dream at most {frames * decisions * episodes:,} frames (`wmgym bench model` measures frames per second)."
    )


def summarise(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """A table of the models, and each model's gain over random actions in the same worlds."""
    table, differences = [], []
    for model, episodes in rows.items():
        line: dict[str, Any] = {"model": model, "episodes": len(episodes)}
        line |= columns("success", wilson_interval([row["success"] for row in episodes]))
        for name in ("spl", "final_distance", "steps", "return"):
            if name in episodes[0]:
                line |= columns(name, bootstrap_interval([float(row[name]) for row in episodes]))
        table.append({**line, "plan_ms": float(np.mean([row["plan_ms"] for row in episodes]))})
        if model != "random" and "random" in rows:
            here, chance = ([float(row["success"]) for row in rows[name]] for name in (model, "random"))
            found = paired_difference(here, chance)
            differences.append({"difference": f"{model} - random", "success": found.mean, "low": found.low, "high": found.high})
    return {"models": table, "differences": differences}


class Stage:
    """The envs, made once: a ground truth for each lane, and one dream of all lanes."""

    def __init__(self, args: PlanArgs, keywords: dict[str, Any]) -> None:
        self.args, self.keywords = args, keywords
        self.pairs = [wmgym.twin(args.id, **keywords) for _ in range(min(args.lanes, args.episodes))]
        dream: Any = self.pairs[0][0].unwrapped
        self.task, self.world = dream.shell.task, dream.shell.world
        without = "reward" if args.objective == "reward" and self.task.world_rewards else "walk"
        self.goal = args.goal if args.goal != "auto" else "task" if self.task.needs_goal else without
        if self.goal == "task" and not self.task.needs_goal:
            raise ValueError(f"task {self.task.name!r} has no goal of its own: use --goal walk, or --goal reward")
        if self.goal == "reward" and (args.objective != "reward" or not self.task.world_rewards):
            given = f"{args.objective!r} and {self.task.name!r}"
            raise ValueError(f"--goal reward needs --objective reward and a task with rewards, got {given}")
        if self.goal == "task" and args.objective in IMAGE_OBJECTIVES and not self.task.goes_back:
            raise ValueError(f"objective {args.objective!r} needs a goal image, which only --goal walk and task 'revisit' have")
        self.rule = rule_for(self.task, dream.shell.setting) if "scripted" in args.models else None
        if self.rule is not None and self.goal == "walk":
            raise ValueError(f"the scripted rule of task {self.task.name!r} does not know the goal of --goal walk: leave 'scripted' out")
        self.distance = None if args.distance is None else load_distance(args.distance, self.world.provenance.autoencoder)
        changes = {name: getattr(args, name) for name in ("horizon", "hold", "samples", "elites", "iterations", "repeats", "temperature")}
        config = preset(args.planner, **changes, at_once=args.at_once)
        self.space, self.chunk = dream.shell.frame_actions, dream.shell.chunk
        self.config: PlannerConfig = replace(config, line=False) if isinstance(self.space, spaces.Discrete) else config
        self.in_steps, self.held = in_steps(self.config, self.chunk)  # what the dream plans with

    def run(self, model: str, seeds: Sequence[int], film: bool, decided: Callable[[], Any] = lambda: None) -> dict[str, Any]:
        """One episode per seed, side by side. `decided` is called after each plan."""
        truths = [cast(gym.Wrapper, truth).env if self.chunk > 1 else truth for _, truth in self.pairs[: len(seeds)]]  # frame by frame
        opened = [truth.reset(seed=seed) for truth, seed in zip(truths, seeds, strict=True)]
        goals, images = self._goals(truths, opened, seeds)
        paths = [[np.array(info["pose"])] for _, info in opened]
        frames = [frame_of(observation) for observation, _ in opened]
        returns, pages = np.zeros(len(seeds)), [frames[0].copy()]
        live = np.arange(len(seeds))  # lanes whose episode has not ended
        with closing(self._player(model, truths, seeds, goals, images, decided, (np.stack(frames), np.stack(paths)[:, -1]))) as player:
            for _ in range(self.args.max_steps):
                actions, over = player.act(), np.zeros(len(live), bool)
                for k, lane in enumerate(live):
                    observation, reward, terminated, truncated, info = truths[lane].step(actions[k])
                    frames[lane], returns[lane] = frame_of(observation), returns[lane] + float(reward)
                    paths[lane].append(np.array(info["pose"]))
                    over[k] = terminated or truncated or self._succeeds(paths[lane][-1], goals[lane], returns[lane])
                    if lane == 0:
                        pages.append(frames[0].copy())
                if over.all():
                    break
                if over.any():
                    player.keep(np.flatnonzero(~over))
                    live, actions = live[~over], actions[~over]
                player.look(np.stack([frames[lane] for lane in live]), actions, np.stack([paths[lane][-1] for lane in live]))
        if film:
            beside = [] if images is None else [panel(images[0], "goal")]
            write_film(self.args.out / f"{model}.mp4", [np.concatenate([panel(page, model), *beside], 1) for page in pages], RATE)
        ms = float(np.mean(player.ms or [0.0]))
        return {"episodes": [self._row(*lane, ms) for lane in zip(seeds, paths, goals, returns, strict=True)]}

    def close(self) -> None:
        for pair in self.pairs:
            for env in pair:
                env.close()

    def _encode(self, frames: Tensor) -> Tensor:
        if not isinstance(self.world, WorldModel):
            kind = type(self.world).__name__
            raise ValueError(f"objective {self.args.objective!r} needs a world with an autoencoder, and {self.args.id} is a {kind}")
        return self.world.encode(frames.to(self.world.device))

    def _succeeds(self, pose: np.ndarray, goal: np.ndarray, total: float) -> bool:
        """Whether the goal is reached at a pose, after rewards that sum to `total`."""
        if self.goal == "reward":
            return bool(total > 0)
        return bool(self.task.done(pose, goal) if self.goal == "task" else horizontal_distance(pose, goal) <= ARRIVAL_DISTANCE)

    def _row(self, seed: int, path: list[np.ndarray], goal: np.ndarray, total: float, ms: float) -> dict[str, Any]:
        positions, reached = np.stack(path)[:, :2], self._succeeds(path[-1], goal, total)
        travelled = float(path_length(positions))
        row = {"seed": seed, "success": reached, "steps": len(path) - 1, "return": float(total), "travelled": travelled, "plan_ms": ms}
        row["path"] = positions.round(3).tolist()
        if self.goal == "reward":
            return row
        distances = horizontal_distance(np.stack(path), goal)
        shortest = max(0.0, float(distances[0]) - ARRIVAL_DISTANCE)  # to the edge of the area that counts as arrival
        row["spl"] = float(spl([reached], [shortest], [travelled])[0])
        return {**row, "final_distance": float(distances[-1]), "goal": [float(v) for v in goal]}

    def _goals(self, truths: Sequence[gym.Env], opened: Sequence[Any], seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Poses [B, 5], NaN without goals; and their images, if there are any."""
        if self.goal == "reward":
            return np.full((len(seeds), 5), np.nan, np.float32), None
        if self.goal == "task":
            shown = np.stack([observation["goal"] for observation, _ in opened]) if self.task.goes_back else None
            return np.stack([info["goal"] for _, info in opened]), shown
        found = [
            walked_goal(truth, info["pose"], np.random.default_rng(seed), self.args.goal_steps)
            for truth, (_, info), seed in zip(truths, opened, seeds, strict=True)
        ]
        return np.stack([pose for _, pose in found]), np.stack([frame for frame, _ in found])

    def _player(
        self,
        model: str,
        truths: Sequence[gym.Env],
        seeds: Sequence[int],
        goals: np.ndarray,
        images: np.ndarray | None,
        decided: Callable[[], Any],
        first: tuple[np.ndarray, np.ndarray],  # frames and poses at the start of the episodes
    ) -> Random | Scripted | Planner:
        if model == "random":
            return Random(self.space, len(seeds), seeds[0])
        if model == "scripted":
            assert self.rule is not None
            return Scripted(self.rule, *first, goals)
        given: dict[str, Any] = {"goal_poses": goals, "goal_frames": images, "encode": self._encode, "distance": self.distance}
        if model == "truth":
            objective: Objective = make_objective(self.args.objective, **given)
            agent = PlanningAgent([truth.unwrapped for truth in truths], objective, self.config, self.args.seed)
            return Planner(agent, decided)
        objective = make_objective(self.args.objective, **given, discount=DISCOUNT**self.chunk)
        dream = self._dream(model, len(seeds))
        dream.reset(seed=list(seeds))  # type: ignore[arg-type]  # a list is Gymnasium's practice
        agent = PlanningAgent([dream], objective, self.in_steps, self.args.seed)
        return Planner(agent, decided, dream, self.chunk, held=self.held)

    def _dream(self, model: str, lanes: int) -> VectorEnv:
        """Lanes of the dream, of the dream without memory ("none"), or of its untrained network."""
        how: dict[str, Any] = {"autoreset_mode": "disabled", "obs_type": "torch", "hold_action": self.held}
        id: str = self.pairs[0][0].spec.id  # type: ignore[union-attr]
        if model == "untrained":
            own = gym.spec(id).kwargs
            name = self.args.checkpoint or own["checkpoint"]
            world = untrained(
                self.world,
                name,
                self.args.seed,
                system=own.get("system"),
                pose_source="actions",
                memory_budget=self.keywords.get("memory_budget"),
            )
            return cast(VectorEnv, make_env(world, self.task, num_envs=lanes, setting=own["setting"], twin=own["twin"], **how))
        return gym.make_vec(id, lanes, **{**self.keywords, **how, **({"memory": "none"} if model == "none" else {})})


def walked_goal(truth: gym.Env, start: np.ndarray, rng: np.random.Generator, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The frame and pose at the end of a random walk of `steps` steps away from the start. The ground truth is left as it was.

    Walks that end near the start are drawn again, and then longer ones; ValueError if none of them leads away.
    """
    env: Any = truth.unwrapped
    here = env.save_state()
    for left in np.repeat(LONGER, WALKS) * steps:
        terminated = truncated = False
        while left > 0 and not (terminated or truncated):
            action, times = rng.integers(env.action_space.n), min(left, int(rng.integers(1, 5)))
            for _ in range(times):
                observation, _, terminated, truncated, info = env.step(int(action))
                if terminated or truncated:
                    break
            left -= times
        frame, pose = frame_of(observation).copy(), np.array(info["pose"])
        env.load_state(here)
        if float(horizontal_distance(start, pose)) > ARRIVAL_DISTANCE:
            return frame, pose
    place = ", ".join(f"{v:.1f}" for v in start[:2])
    raise ValueError(
        f"none of {WALKS * len(LONGER)} random walks of {steps} to {steps * LONGER[-1]} steps leads more than {ARRIVAL_DISTANCE:g} blocks "
        f"away from where the episode starts ({place}): give more --goal-steps, or another --seed"
    )


def draw_paths(file: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """The first episodes from above: start, goal, and each model's path."""
    plt = pyplot()
    shown = min(SHOWN, min(len(episodes) for episodes in rows.values()))
    figure, axes = plt.subplots(1, shown, figsize=(3 * shown, 3.2), squeeze=False, layout="constrained")
    for k, ax in enumerate(axes[0]):
        for model, episodes in rows.items():
            ax.plot(*np.array(episodes[k]["path"]).T, label=model, lw=1, color="0.6" if model == "random" else None)
        goal = next(iter(rows.values()))[k].get("goal")
        if goal is not None:
            ax.add_patch(plt.Circle(goal[:2], ARRIVAL_DISTANCE, color="C2", alpha=0.3))
        ax.plot(*next(iter(rows.values()))[k]["path"][0], "k.", ms=8)
        ax.set(aspect="equal", title=f"episode {k}", xlabel="x")
        ax.tick_params(labelsize="x-small")
    axes[0, 0].legend(fontsize="x-small")
    save_figure(figure, file)
