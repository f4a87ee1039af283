"""`wmgym train ppo ID`: train an agent in a dream, and evaluate it in the ground truth.

There are three agents: one trained in the dream only, one trained in the ground truth for as many steps, and one that takes random
actions. Each is evaluated in both places, in the same worlds with the same goals and after the same opening, so returns are paired.
Writes one folder: `args.json`, `result.json`, `learning.png`, `dream/agent.safetensors` and `truth/agent.safetensors` (saved after every
stretch, from which a killed run resumes), TensorBoard's files in `tb/`, and finished evaluations in `cells/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.vector import VectorEnv, VectorWrapper

import wmgym
from wmgym.agents import ppo
from wmgym.agents.collect import WORLDS_PER_SEED
from wmgym.agents.ppo import PPOConfig, Trained
from wmgym.benchmarks.tables import columns
from wmgym.experiments.support.pictures import check_plots, pyplot, save_figure
from wmgym.experiments.support.report import check_positive, write_result
from wmgym.files import kept, open_run_folder
from wmgym.integrations import sb3
from wmgym.metrics.statistics import bootstrap_interval, paired_difference, wilson_interval
from wmgym.openings import LiveOpenings
from wmgym.progress import Progress
from wmgym.registration import row_of
from wmgym.twins import ChunkedLanes

PLACES = ("dream", "truth")
JUDGED_FROM = 100  # evaluation uses worlds with seeds from this many millions on; training uses those below
DREAM_ONLY = ("opening", "checkpoint", "memory", "denoise_steps", "device", "dtype")
HOLDS = {"chunk": True, "frame": False}  # what one action is for, in dreams that make several frames a step


@dataclass(frozen=True)
class PPOArgs:
    """Train an agent in a dream with PPO, and evaluate it in the ground truth.

    Needs the id of a dream. Writes a folder with result.json, learning.png and the agents. The time grows with steps and episodes, and
    with what a dreamed step costs (`wmgym bench model`). A killed run resumes: type the same command again. Options that are not given
    have the default of the id.
    """

    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]
    """Id of a dream, as `wmgym list` shows it."""
    task: str | None = None
    """Task of the env. Two cores can learn navigate-near (Minecraft: goals within 10 blocks) and targets-near (Memory Maze). revisit
    (Minecraft: return to a view) cannot be done without looking."""
    steps: int = 40_000
    """Training steps of all lanes together, rounded up to whole updates (lanes x --ppo.n-steps). The report has the rounded number."""
    lanes: int = 16
    """Envs that an agent learns in at the same time."""
    seed: int = 0
    """Seed of training and its worlds: 0 to 99."""
    learn_in: tuple[str, ...] = PLACES
    """Where agents learn: dream, truth."""
    episodes: int = 100
    """Episodes that evaluate each agent, in the ground truth and in the dream."""
    act_per: str = "chunk"
    """For dreams that make chunks of F frames a step: chunk (one action, held for F frames) or frame (F actions at once). The discount and
    GAE's lambda are given per frame."""
    horizon: int | None = None
    """Steps of an episode; by default the task's."""
    opening: str | None = None
    """live: each dream opens with a walk in a ground truth of its own. Needed for tasks that otherwise open with shipped clips."""
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
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Options of PPO."""
    out: Path = Path("runs/ppo")
    """Folder for the results."""

    def __post_init__(self) -> None:
        check_positive(self, "steps", "lanes", "episodes")
        if not 0 <= self.seed < JUDGED_FROM:
            raise ValueError(
                f"seed must be from 0 to {JUDGED_FROM - 1} (worlds from {JUDGED_FROM} million on are for evaluation), got {self.seed}"
            )
        if not self.learn_in or set(self.learn_in) - set(PLACES):
            raise ValueError(f"learn_in must be of {', '.join(PLACES)}, got {', '.join(self.learn_in) or 'nothing'}")
        if self.act_per not in HOLDS:
            raise ValueError(f"act_per must be one of {', '.join(HOLDS)}, got {self.act_per!r}")


def train(args: PPOArgs, progress: bool = True) -> dict[str, Any]:
    """Train and evaluate what is missing, then the report (also in `result.json`)."""
    check_plots()
    row = row_of(args.id)
    if row.twin is None:
        raise ValueError(f"{args.id} has no twin: agents learn in a dream and are evaluated in its ground truth")
    stage = Stage(args)
    open_run_folder(args.out, {**asdict(args), "weights": stage.weights}, {"learn_in", "episodes", "out", "steps"})
    learned: dict[str, Trained] = {}
    for place in dict.fromkeys(args.learn_in):
        with Progress(total=args.steps, disable=not progress, unit="step", desc=f"learn in the {place}") as bar:
            learned[place] = stage.learn(place, lambda steps: bar.update(min(steps, bar.total) - bar.n))
    agents = [*(f"learned in the {place}" for place in learned), "random"]
    with Progress(total=len(agents) * len(PLACES), disable=not progress, unit="cell", desc="judge") as bar:
        judged = {}
        for name in agents:
            for place in PLACES:
                judged[name, place] = stage.judge(name, place, learned)
                bar.update()
    frames = {place: stage.truth_frames(place, found.opened, found.model.num_timesteps) for place, found in learned.items()}
    report = {
        "id": args.id,
        "truth": row.twin,
        "task": stage.task,
        "episodes": args.episodes,
        **summarise(judged, agents, {place: found.model.num_timesteps for place, found in learned.items()}, frames, stage.can_succeed),
        "out": str(args.out),
    }
    draw_learning(args.out / "learning.png", learned)
    write_result(args.out, report)
    return report


class Stage:
    """The envs of a dream and of its ground truth, with the same task, horizon and opening."""

    def __init__(self, args: PPOArgs) -> None:
        given = {name: value for name in ("task", "horizon", *DREAM_ONLY) if (value := getattr(args, name)) is not None}
        given["hold_action"] = HOLDS[args.act_per]
        dream, truth = wmgym.twin(args.id, **given)  # checks that the two fit, and knows what the truth must be made with
        shell: Any = dream.unwrapped.shell  # type: ignore[attr-defined]
        self.chunk, self.hold = shell.chunk, shell.hold_action
        if not isinstance(shell.openings, LiveOpenings):
            raise ValueError(
                f"task {shell.task.name!r} opens with a few shipped clips: agents would be evaluated on the openings they were trained on; "
                f"give --opening live, or a task that opens live"
            )
        self.args, self.task = args, shell.task.name
        self.weights = shell.identity.weights
        self.can_succeed = shell.task.needs_goal  # tasks without a goal end by time only
        plan = shell.openings.plan(np.random.default_rng(0), 0)
        self.opening: Sequence[Any] = plan.actions
        shown = len(shell.openings.show(plan).frames) if shell.task.goes_back else 1 + len(plan.actions)
        self.opening_frames = {"dream": shown, "truth": shown if shell.task.goes_back else 1}  # of the ground truth, per episode
        self.ids = {"dream": row_of(args.id).id, "truth": str(row_of(args.id).twin)}
        self.horizon = shell.horizon
        self.keywords = {"dream": given, "truth": {**shell.truth_keywords(), "horizon": shell.horizon}}
        dream.close()
        truth.close()

    def learn(self, place: str, progress: Callable[[int], None]) -> Trained:
        args = self.args
        file, logs = args.out / place / "agent.safetensors", args.out / "tb" / place
        config = replace(args.ppo, gamma=args.ppo.gamma**self.chunk, gae_lambda=args.ppo.gae_lambda**self.chunk)
        with closing(sb3.adapt(self._lanes(place, args.lanes, "same_step"))) as env:
            return ppo.train(env, config, args.steps, args.seed, file, tensorboard=logs, progress=progress)

    def _lanes(self, place: str, lanes: int, autoreset: str, opening: Sequence[Any] = ()) -> VectorEnv:
        """Lanes whose step is a chunk, in either place. opening: the actions of a ground truth after each reset (mode "disabled" only)."""
        if place == "dream" or (self.chunk == 1 and not opening):
            return gym.make_vec(self.ids[place], lanes, autoreset_mode=autoreset, **self.keywords[place])
        keywords = {**self.keywords[place], "horizon": self.horizon + len(opening)}
        truth = LanesStartAtOpening(gym.make_vec(self.ids[place], lanes, autoreset_mode="disabled", **keywords), opening)
        return truth if self.chunk == 1 else ChunkedLanes(truth, self.chunk, hold_action=self.hold, autoreset_mode=autoreset)

    def judge(self, agent: str, place: str, learned: Mapping[str, Trained]) -> list[dict[str, Any]]:
        """One row per episode. An earlier evaluation after as many steps, with as many episodes, is kept."""
        args = self.args
        seeds = [JUDGED_FROM * WORLDS_PER_SEED + k for k in range(args.episodes)]
        model = learned[agent.split()[-1]].model if agent != "random" else None

        def measure() -> dict[str, Any]:
            with closing(self.make(place)) as env:
                act = ppo.policy_of(model) if model is not None else ppo.random_policy(env, args.seed)
                return {"episodes": ppo.evaluate(act, env, seeds, args.seed)}

        steps = 0 if model is None else model.num_timesteps
        name = f"{agent.replace(' ', '-')}-{steps}-in-{place}-{args.episodes}"
        return kept(args.out / "cells" / f"{name}.json", measure)["episodes"]

    def make(self, place: str) -> VectorEnv:
        """Lanes for evaluation."""
        return self._lanes(place, min(self.args.lanes, self.args.episodes), "disabled", self.opening)

    def truth_frames(self, place: str, opened: int, steps: int) -> int:
        """How many frames of the ground truth an agent's training used. Training in a dream uses those of the openings."""
        return opened * self.opening_frames[place] + (self.chunk * steps if place == "truth" else 0)


class LanesStartAtOpening(VectorWrapper):
    """Lanes of a ground truth that start where their dreams do: with the same seeds, after the actions of the opening."""

    def __init__(self, env: VectorEnv, opening: Sequence[Any]) -> None:
        super().__init__(env)
        self._opening = opening

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        for action in self._opening:
            observation, *_, info = self.env.step(np.stack([action] * self.num_envs))
        return observation, info


Judged = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]  # (agent, place) -> episodes


def summarise(
    judged: Judged, agents: Sequence[str], steps: Mapping[str, int], frames: Mapping[str, int], can_succeed: bool
) -> dict[str, Any]:
    """Imagined return, true return and their gap for each agent; and each agent against random actions in the same true worlds.

    steps, frames: place -> training steps, and frames of the ground truth that they used. Success is reported if `can_succeed`.
    """
    table, against = [], []
    for name in agents:
        imagined, true = judged[name, "dream"], judged[name, "truth"]
        place = name.split()[-1]
        line: dict[str, Any] = {"agent": name, "steps": steps.get(place, 0), "truth_frames": frames.get(place, 0)}
        for column, rows, key in (
            ("imagined_return", imagined, "return"),
            ("true_return", true, "return"),
            ("imagined_success", imagined, "success"),
            ("true_success", true, "success"),
        ):
            if key == "return":
                line |= columns(column, bootstrap_interval([float(row[key]) for row in rows]))
            elif can_succeed:
                line |= columns(column, wilson_interval([row[key] for row in rows]))
        gap = paired_difference([row["return"] for row in imagined], [row["return"] for row in true])
        table.append({**line, **columns("gap", gap)})
        if name != "random":
            better = paired_difference([row["return"] for row in true], [row["return"] for row in judged["random", "truth"]])
            against.append({"agent": name, "true_return_above_random": better.mean, "low": better.low, "high": better.high})
    return {"agents": table, "against_random": against}


def draw_learning(file: Path, learned: Mapping[str, Trained], parts: int = 25) -> None:
    """Mean return of the training episodes that ended in each of `parts` stretches of training."""
    plt = pyplot()
    figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for place, found in learned.items():
        if found.returns:
            steps, values = np.array(found.returns).T
            which = np.minimum((parts * steps / steps.max()).astype(int), parts - 1)
            means = [(steps[which == i].mean(), values[which == i].mean()) for i in np.unique(which)]
            ax.plot(*np.array(means).T, marker=".", label=f"in the {place}")
    ax.set(xlabel="steps", ylabel="return of an episode")
    if learned:
        ax.legend()
    save_figure(figure, file)
