"""`wmgym eval twin ID`: the same start and the same actions, in the dream and in its truth.

Walkers walk the truth; the dream takes the same actions from the same opening, with its memory and without. Writes one folder: `args.json`,
`result.json`, `table.md`, `curves.png` (error and drift of the pose against the step, revisit error against the length of the loop), a film
of the first walk of each walker, and finished cells in `cells/`, so that a killed run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.utils import seeding
from tqdm import tqdm

import wmgym
from wmgym.agents.collect import ATTEMPTS, WORLDS_PER_SEED
from wmgym.agents.scripted import find_program, make_walker
from wmgym.benchmarks import loopnav_table
from wmgym.benchmarks.revisit import BINS, by_length, walk_row
from wmgym.benchmarks.rollout import Loop, dream_legs
from wmgym.checkpoint import load_world
from wmgym.cli import plain
from wmgym.experiments.film import film_pages, write_film
from wmgym.experiments.plots import pyplot
from wmgym.files import as_json, kept, open_run_folder, write_atomically
from wmgym.metrics.statistics import Interval, bootstrap_interval, paired_difference
from wmgym.openings import frame_of, plan_opening
from wmgym.registration import row_of
from wmgym.world_model import WorldModel

WALKS = {"Minecraft-v0": ("turn-loop", "explorer", "random")}  # truth -> walkers; elsewhere only random ones
OFF = "none"
MILESTONES = (1, 5, 10, 20, 40, 80, 160)  # steps at which the table tells error and drift
RATE = 8  # frames per second of the films
TITLES = {"steps": "Against the step", "revisits": "Revisits, by the length of the loop", "differences": "Paired differences at revisits"}
PREFACE = """\
Same start, same actions. Means over walks with 95 % bootstrap intervals; PSNR in dB against the truth, drift of the pose in metres
(blocks). A frame revisits when its view was seen before and left since; `consistency` compares it with what was shown then."""


@dataclass(frozen=True)
class TwinArgs:
    """Truth beside dream: error and drift against the step, revisit error against the length of the loop, with memory and without."""

    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]
    """An imagined id, as `wmgym list` shows it."""
    walkers: tuple[str, ...] = ()
    """Who walks; by default turn-loop, explorer and random in Minecraft, random elsewhere."""
    walks: int = 20
    """Of each walker."""
    steps: int = 60
    """Dreamed steps of a walk, at most."""
    memories: tuple[str, ...] = ()
    """Ways to remember, all with the same weights and noise; by default the id's own, and none."""
    seed: int = 100
    """Of worlds, walks and noise; training has 0 to 99."""
    checkpoint: str | None = None
    denoise_steps: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    lanes: int = 32
    """Walks dreamed in one batch."""
    film: bool = True
    out: Path = Path("runs/twin")

    def __post_init__(self) -> None:
        for name in ("walks", "steps", "lanes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        for walker in self.walkers:
            find_program(walker)


def evaluate(args: TwinArgs, progress: bool = True) -> dict[str, Any]:
    """All cells that are not there yet, then the report (also in `result.json`)."""
    stage = Stage(args)
    weights = stage.world(stage.memories[0]).provenance.weights
    open_run_folder(args.out, {**asdict(args), "weights": weights}, {"walkers", "memories", "device", "lanes", "film", "out"})
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tqdm(total=len(stage.walkers) * len(stage.memories), disable=not progress, unit="cell") as bar:
        for walker in stage.walkers:
            for memory in stage.memories:
                bar.set_description(f"{walker} {memory}")
                cells[walker, memory] = kept(args.out / "cells" / f"{walker}-{memory}.json", lambda: stage.cell(walker, memory))["walks"]  # noqa: B023
                bar.update()
            if args.film and not (args.out / f"{walker}.mp4").is_file():
                stage.draw_film(walker)
    stage.close()
    summary = summarise(cells, stage.walkers, stage.memories)
    draw_curves(args.out / "curves.png", cells, stage.walkers, stage.memories)
    report = {"id": args.id, "truth": stage.row.twin, "walks": args.walks, **summary, "out": str(args.out)}
    write_atomically(args.out / "result.json", as_json(plain(report)))
    write_atomically(args.out / "table.md", markdown(args.id, summary).encode())
    return report


class Stage:
    """Where walks are walked and dreamed. Truth and worlds are made when the first cell wants them."""

    def __init__(self, args: TwinArgs) -> None:
        self.args, self.row = args, row_of(args.id)
        if self.row.twin is None:
            raise ValueError(f"{args.id} is a ground truth, or has none: a twin report compares a dream with its truth")
        own = str(self.row.kwargs.get("memory", OFF))
        self.memories = tuple(dict.fromkeys(args.memories or (own, OFF)))
        self.walkers = tuple(dict.fromkeys(args.walkers or WALKS.get(self.row.twin, ("random",))))
        self.loops = cache(self._loops)
        self.world = cache(self._world)

    @cached_property
    def twin(self) -> tuple[gym.Env, gym.Env]:
        given = {"checkpoint": self.args.checkpoint} if self.args.checkpoint else {}
        pair = wmgym.twin(self.row.id, task="free", device=self.args.device, dtype=self.args.dtype, **given)
        dream: Any = pair[0].unwrapped
        if dream.shell.chunk > 1:
            pair = (pair[0], pair[1].env)  # type: ignore[attr-defined]  # the truth frame by frame: chunks are cut by `dream_legs`
        return pair

    def cell(self, walker: str, memory: str) -> dict[str, Any]:
        loops, seeds = self.loops(walker)
        dreams = dream_legs(self.world(memory), loops, seeds, self.args.lanes)
        return {"walker": walker, "memory": memory, "walks": [walk_row(*pair) for pair in zip(loops, dreams, strict=True)]}

    def draw_film(self, walker: str) -> None:
        """The first walk, truth and dreams side by side; before the dream begins, all see the truth."""
        loops, seeds = self.loops(walker)
        dreams = {memory: dream_legs(self.world(memory), loops[:1], seeds[:1])[0] for memory in self.memories}
        write_film(self.args.out / f"{walker}.mp4", film_pages(loops[0], dreams), RATE)

    def close(self) -> None:
        if "twin" in self.__dict__:
            for env in self.twin:
                env.close()

    def _world(self, memory: str) -> WorldModel:
        checkpoint = self.args.checkpoint or str(self.row.kwargs["checkpoint"])
        return load_world(checkpoint, memory=memory, denoise_steps=self.args.denoise_steps, device=self.args.device, dtype=self.args.dtype)

    def _loops(self, walker: str) -> tuple[list[Loop], list[int]]:
        """Walks of the truth, each behind its opening, and the seeds of the noise: those that the env itself would dream with."""
        loops: list[Loop] = []
        keys: list[int] = []
        attempt = 0
        while len(loops) < self.args.walks:
            seed = self.args.seed * WORLDS_PER_SEED + attempt
            loop, key = walk(self.twin, walker, seed, self.args.steps)
            if loop is not None:
                loops.append(loop)
                keys.append(key)
            attempt += 1
            if attempt - len(loops) > ATTEMPTS * self.args.walks:
                raise ValueError(f"{attempt - len(loops)} walks of {walker} failed: this truth is no place for it")
        return loops, keys


def walk(twin: tuple[gym.Env, gym.Env], walker_name: str, seed: int, steps: int) -> tuple[Loop | None, int]:
    """The opening that both open with after `reset(seed=seed)`, then a walk of the truth; and the seed of the dream's noise.

    None instead of the walk if the walker could not go on.
    """
    dream, truth = twin
    shell = dream.unwrapped.shell  # type: ignore[attr-defined]
    generator, _ = seeding.np_random(seed)
    key, plan = plan_opening(shell.openings, generator, seed)
    opening = shell.openings.show(plan)
    observation, info = truth.reset(seed=seed)
    walker = make_walker(walker_name, truth, np.random.default_rng(seed))
    frames: list[np.ndarray] = []
    actions: list[Any] = []
    poses: list[np.ndarray] = []
    while len(frames) < steps:
        action = walker.act(info["pose"])
        if action is None:
            break
        observation, _, terminated, truncated, info = truth.step(action)
        frames.append(frame_of(observation).copy())
        actions.append(action)
        poses.append(np.array(info["pose"]))
        if terminated or truncated:
            break
    if not frames or walker.outcome.startswith("aborted"):
        return None, key
    columns = ((opening.frames, frames), (opening.actions, actions), (opening.poses, poses))
    path = (np.concatenate([seen, np.asarray(walked, seen.dtype)]) for seen, walked in columns)
    return Loop(*path, len(opening.frames), seed), key  # type: ignore[call-arg, arg-type]


# -- the report -------------------------------------------------------------------------------------------------------------------------

Cells = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]


def summarise(cells: Cells, walkers: Sequence[str], memories: Sequence[str]) -> dict[str, Any]:
    """Error and drift at some steps, revisits by the length of the loop, and what memory gains there; intervals are over walks."""
    steps, revisits, differences = [], [], []
    for walker in walkers:
        for memory in memories:
            rows = cells[walker, memory]
            line = {"walker": walker, "memory": memory}
            steps.append({**line, "step": "all", "walks": len(rows), **_figures(rows, slice(None))})
            for step in MILESTONES:
                there = [row for row in rows if row["leg"] >= step]
                if there:
                    steps.append({**line, "step": step, "walks": len(there), **_figures(there, slice(step - 1, step))})
            for bounds, psnr, consistency in zip(BINS, by_length(rows, "psnr"), by_length(rows, "consistency"), strict=True):
                if psnr:
                    figures = {**_mean("psnr", psnr.values()), **_mean("consistency", consistency.values())}
                    revisits.append({**line, "loop_length": _name(bounds), "walks": len(psnr), **figures})
        for other in memories[1:]:
            pair = [by_length(cells[walker, memory], "psnr") for memory in (memories[0], other)]
            for bounds, first, second in zip(BINS, *pair, strict=True):
                if first:
                    gained = paired_difference([*first.values()], [*second.values()])
                    names = {"walker": walker, "difference": f"{memories[0]} - {other}", "loop_length": _name(bounds)}
                    differences.append({**names, "walks": len(first), **_columns("psnr", gained)})
    return {"steps": steps, "revisits": revisits, "differences": differences}


def _figures(rows: Sequence[Mapping[str, Any]], part: slice) -> dict[str, float]:
    found: dict[str, float] = {}
    for metric in ("psnr", "ssim", "drift"):
        found |= _mean(metric, [float(np.mean(row["steps"][metric][part])) for row in rows])
    return found


def _mean(name: str, values: Iterable[float]) -> dict[str, float]:
    return _columns(name, bootstrap_interval([*values]))


def _name(bounds: tuple[int, int]) -> str:
    return f"{bounds[0]}-{bounds[1]}"


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def markdown(id: str, summary: Mapping[str, Any]) -> str:
    """The tables for people."""
    lines = [f"# {id} beside its truth", "", PREFACE]
    for key, title in TITLES.items():
        lines += ["", f"## {title}", "", *loopnav_table.markdown_rows(summary[key])]
    return "\n".join(lines) + "\n"


def draw_curves(file: Path, cells: Cells, walkers: Sequence[str], memories: Sequence[str]) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(len(walkers), 3, figsize=(13, 2.9 * len(walkers)), squeeze=False, layout="constrained")
    for (left, middle, right), walker in zip(axes, walkers, strict=True):
        for place, memory in enumerate(memories):
            rows = cells[walker, memory]
            for ax, metric in ((left, "psnr"), (middle, "drift")):
                values = loopnav_table.curve(rows, metric)
                ax.plot(np.arange(1, len(values) + 1), values, color=f"C{place}", label=memory)
            found = {i: bootstrap_interval([*of.values()]) for i, of in enumerate(by_length(rows, "psnr")) if of}
            arms = [[np.nan_to_num(abs(getattr(i, end) - i.mean)) for i in found.values()] for end in ("low", "high")]
            right.errorbar([*found], [i.mean for i in found.values()], arms, color=f"C{place}", marker="o", capsize=3, label=memory)
        left.set(title=f"{walker}, {len(rows)} walks", xlabel="step", ylabel="PSNR, dB")
        middle.set(title="drift of the pose", xlabel="step", ylabel="metres")
        right.set(title="revisits", xlabel="length of the loop, steps", ylabel="PSNR, dB")
        right.set_xticks(range(len(BINS)), [f"{low}-{high}" for low, high in BINS], fontsize="x-small")
    axes[0, 0].legend(fontsize="small")
    figure.savefig(file, dpi=110)
    plt.close(figure)
