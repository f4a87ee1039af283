"""`wmgym train ppo ID`: learn to act in a dream, judge it in the truth.

Three agents: one that learned in the dream only, one that learned in the truth for as many steps, and one that acts at random. Each is
judged in the truth and in the dream, in the same worlds with the same goals, from the same opening on, so that what they earn is paired.
Writes one folder: `args.json`, `result.json`, `learning.png`, `dream/agent.safetensors` and `truth/agent.safetensors` (after every stretch:
a killed run goes on where it was), TensorBoard's files in `tb/`, and finished evaluations in `cells/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.vector import VectorEnv, VectorWrapper
from tqdm import tqdm

import wmgym
from wmgym.agents import ppo
from wmgym.agents.collect import WORLDS_PER_SEED
from wmgym.agents.ppo import PPOConfig, Trained
from wmgym.cli import plain
from wmgym.experiments.plots import pyplot
from wmgym.files import as_json, kept, open_run_folder, write_atomically
from wmgym.integrations import sb3
from wmgym.metrics.statistics import bootstrap_interval, paired_difference
from wmgym.openings import LiveOpenings
from wmgym.registration import row_of

PLACES = ("dream", "truth")
JUDGED_FROM = 100  # seeds of worlds that are judged in: from this many millions on; training has those below
DREAM_ONLY = ("opening", "checkpoint", "memory", "denoise_steps", "device", "dtype")


@dataclass(frozen=True)
class PPOArgs:
    """Learn in a dream with PPO, judge in its truth. Options that are not given keep the id's own values."""

    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]
    """An imagined id, as `wmgym list` shows it."""
    task: str | None = None
    """On two cores navigate-near (Minecraft: goals within 10 blocks) and targets-near (Memory Maze) can be learned."""
    steps: int = 40_000
    """To learn from, of all lanes together; rounded up to whole updates (lanes x --ppo.n-steps), and reported as they were."""
    lanes: int = 16
    seed: int = 0
    """Of learning and its worlds; below 100."""
    learn_in: tuple[str, ...] = PLACES
    """Where agents learn: dream, truth."""
    episodes: int = 100
    """To judge each agent by, in the truth and in the dream."""
    horizon: int | None = None
    """Steps of an episode; by default the task's."""
    opening: str | None = None
    """live: each dream opens with a walk in a true world of its own; for tasks that open with shipped clips otherwise."""
    checkpoint: str | None = None
    memory: str | None = None
    denoise_steps: int | None = None
    device: str | None = None
    dtype: str | None = None
    ppo: PPOConfig = PPOConfig()  # noqa: RUF009  # frozen
    out: Path = Path("runs/ppo")

    def __post_init__(self) -> None:
        for name in ("steps", "lanes", "episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.seed < JUDGED_FROM:
            raise ValueError(
                f"seed must be from 0 to {JUDGED_FROM - 1} (worlds from {JUDGED_FROM} million on are to judge), got {self.seed}"
            )
        if not self.learn_in or set(self.learn_in) - set(PLACES):
            raise ValueError(f"learn_in must be of {', '.join(PLACES)}, got {', '.join(self.learn_in) or 'nothing'}")


def train(args: PPOArgs, progress: bool = True) -> dict[str, Any]:
    """Train what is not trained yet, judge what is not judged yet; the report (also in `result.json`)."""
    row = row_of(args.id)
    if row.twin is None:
        raise ValueError(f"{args.id} has no twin: agents learn in a dream and are judged in its truth")
    stage = Stage(args)
    open_run_folder(args.out, {**asdict(args), "weights": stage.weights}, {"learn_in", "episodes", "out", "steps"})
    learned: dict[str, Trained] = {}
    for place in dict.fromkeys(args.learn_in):
        with tqdm(total=args.steps, disable=not progress, unit="step", desc=f"learn in the {place}") as bar:
            learned[place] = stage.learn(place, lambda steps: bar.update(min(steps, bar.total) - bar.n))
    agents = [*(f"learned in the {place}" for place in learned), "random"]
    with tqdm(total=len(agents) * len(PLACES), disable=not progress, unit="cell", desc="judge") as bar:
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
    write_atomically(args.out / "result.json", as_json(plain(report)))
    return report


class Stage:
    """The envs of a dream and its truth, made alike."""

    def __init__(self, args: PPOArgs) -> None:
        given = {name: value for name in ("task", "horizon", *DREAM_ONLY) if (value := getattr(args, name)) is not None}
        dream, truth = wmgym.twin(args.id, **given)  # tells what the truth must be made with, and that the two fit
        shell: Any = dream.unwrapped.shell  # type: ignore[attr-defined]
        if shell.chunk > 1:
            raise ValueError(f"{args.id} makes {shell.chunk} frames a step; `wmgym train ppo` knows single frames only")
        if not isinstance(shell.openings, LiveOpenings):
            raise ValueError(
                f"task {shell.task.name!r} opens with a few shipped clips: agents would be judged where they learned; "
                f"give --opening live, or a task that opens live"
            )
        self.args, self.task = args, shell.task.name
        self.weights = shell.identity.weights
        self.can_succeed = shell.task.needs_goal  # elsewhere only time ends an episode
        self.opening: Sequence[Any] = shell.openings.plan(np.random.default_rng(0), 0).actions
        self.ids = {"dream": row_of(args.id).id, "truth": str(row_of(args.id).twin)}
        self.horizon = shell.horizon
        self.keywords = {"dream": given, "truth": {**shell.truth_keywords(), "horizon": shell.horizon}}
        dream.close()
        truth.close()

    def learn(self, place: str, progress: Callable[[int], None]) -> Trained:
        args = self.args
        file, logs = args.out / place / "agent.safetensors", args.out / "tb" / place
        with closing(sb3.make_vec(self.ids[place], args.lanes, **self.keywords[place])) as env:
            return ppo.train(env, args.ppo, args.steps, args.seed, file, tensorboard=logs, progress=progress)

    def judge(self, agent: str, place: str, learned: Mapping[str, Trained]) -> list[dict[str, Any]]:
        """One row per episode. What was judged before with as many steps and episodes is kept."""
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
        """Lanes to judge in."""
        keywords: dict[str, Any] = {"autoreset_mode": "disabled", **self.keywords[place]}
        lanes = min(self.args.lanes, self.args.episodes)
        if place == "dream":
            return gym.make_vec(self.ids[place], lanes, **keywords)
        return Opened(gym.make_vec(self.ids[place], lanes, **{**keywords, "horizon": self.horizon + len(self.opening)}), self.opening)

    def truth_frames(self, place: str, opened: int, steps: int) -> int:
        """How many frames of the truth an agent's learning took: a dream still wants its openings."""
        return opened * (len(self.opening) + 1) if place == "dream" else opened + steps


class Opened(VectorWrapper):
    """Lanes of a truth that begin where their dreams do: at the same seeds, after the opening's actions, which earn nothing."""

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
    """Imagined return, true return and the gap of each agent; and each against random actions in the same true worlds.

    steps, frames: those that agents learned from, and those of the truth that they took, by place. Success is told where there is any.
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
            if key == "return" or can_succeed:
                line |= _interval(column, [float(row[key]) for row in rows])
        gap = paired_difference([row["return"] for row in imagined], [row["return"] for row in true])
        table.append({**line, "gap": gap.mean, "gap_low": gap.low, "gap_high": gap.high})
        if name != "random":
            better = paired_difference([row["return"] for row in true], [row["return"] for row in judged["random", "truth"]])
            against.append({"agent": name, "true_return_above_random": better.mean, "low": better.low, "high": better.high})
    return {"agents": table, "against_random": against}


def _interval(name: str, values: Sequence[float]) -> dict[str, float]:
    found = bootstrap_interval(values)
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def draw_learning(file: Path, learned: Mapping[str, Trained], parts: int = 25) -> None:
    """Mean return of the episodes that ended in each stretch of learning, where the agent learned."""
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
    figure.savefig(file, dpi=110)
    plt.close(figure)
