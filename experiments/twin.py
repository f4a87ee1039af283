"""`wmgym eval twin ID`: the same start and the same actions, in a dream and in its ground truth.

Walkers walk the ground truth. The dream takes the same actions from the same opening, with its memory and without. Writes one folder:
`args.json`, `result.json`, `table.md`, `curves.png` (error and drift of the pose against the step, revisit error against the length of the
loop), a film of the first walk of each walker, and one file per finished cell in `cells/`. A killed run resumes from those.
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

import wmgym
from wmgym.agents.collect import ATTEMPTS, WORLDS_PER_SEED
from wmgym.agents.scripted import find_program, make_walker
from wmgym.benchmarks.revisit import BINS, by_length, walk_row
from wmgym.benchmarks.rollout import Walk, dream_legs
from wmgym.benchmarks.tables import columns, curve, markdown_rows
from wmgym.checkpoint import load_world
from wmgym.experiments.support.film import film_pages, write_film
from wmgym.experiments.support.pictures import check_plots, pyplot, save_figure
from wmgym.experiments.support.report import check_positive, check_seed, write_result
from wmgym.files import kept, open_run_folder, write_atomically
from wmgym.metrics.statistics import bootstrap_interval, paired_difference
from wmgym.openings import frame_of, plan_opening
from wmgym.progress import Progress
from wmgym.registration import row_of
from wmgym.systems import REFERENCE
from wmgym.world_model import WorldModel

WALKS = {"Minecraft-v0": ("turn-loop", "explorer", "random")}  # ground truth -> walkers; elsewhere only the random one
MILESTONES = (1, 5, 10, 20, 40, 80, 160)  # steps at which the table has error and drift
RATE = 8  # frames per second of the films
TITLES = {"steps": "Against the step", "revisits": "Revisits, by the length of the loop", "differences": "Paired differences at revisits"}
PREFACE = """\
Same start, same actions. Means over walks with 95 % bootstrap intervals; PSNR in dB against the truth, drift of the pose in metres
(blocks). A frame is a revisit if its view was seen before and left since; `consistency` compares it with what was shown then."""


@dataclass(frozen=True)
class TwinArgs:
    """Compare a dream with its ground truth along the same actions: error, drift, and revisit error against the length of the loop.

    Needs the id of a dream. Writes a folder with table.md, result.json, curves.png and films. The time grows with walkers, walks, steps,
    memories and denoising steps. A killed run resumes: type the same command again.
    """

    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]
    """Id of a dream, as `wmgym list` shows it."""
    walkers: tuple[str, ...] = ()
    """Who walks; by default turn-loop, explorer and random in Minecraft, random elsewhere."""
    walks: int = 20
    """Walks of each walker."""
    steps: int = 60
    """Dreamed steps of a walk, at most."""
    memories: tuple[str, ...] = ()
    """Memories to compare, with the same weights and noise; by default the id's own, and none."""
    seed: int = 100
    """Seed of worlds, walks and noise. Training uses 0 to 99."""
    checkpoint: str | None = None
    """Bundled name, path, or hub name; by default the id's."""
    denoise_steps: int | None = None
    """Denoising steps per frame; by default the checkpoint's."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, ..."""
    dtype: str = "auto"
    """float32 or bfloat16; auto: bfloat16 where the device multiplies it natively, else float32."""
    lanes: int = 32
    """Walks dreamed in one batch."""
    film: bool = True
    """Write a film of the first walk of each walker."""
    out: Path = Path("runs/twin")
    """Folder for the results."""

    def __post_init__(self) -> None:
        check_positive(self, "walks", "steps", "lanes")
        check_seed(self.seed)
        for walker in self.walkers:
            find_program(walker)


def evaluate(args: TwinArgs, progress: bool = True) -> dict[str, Any]:
    """Make the cells that are missing, then the report (also in `result.json`)."""
    check_plots()
    stage = Stage(args)
    weights = stage.world(stage.memories[0]).provenance.weights
    open_run_folder(args.out, {**asdict(args), "weights": weights}, {"walkers", "memories", "device", "lanes", "film", "out"})
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with Progress(total=len(stage.walkers) * len(stage.memories), disable=not progress, unit="cell") as bar:
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
    write_result(args.out, report)
    write_atomically(args.out / "table.md", markdown(args.id, summary).encode())
    return report


class Stage:
    """Walks and their dreams. Ground truth and worlds are made when the first missing cell needs them."""

    def __init__(self, args: TwinArgs) -> None:
        self.args, self.row = args, row_of(args.id)
        if self.row.twin is None:
            raise ValueError(f"{args.id} is a ground truth, or has none: a twin report compares a dream with its truth")
        own = str(self.row.kwargs.get("memory", REFERENCE))
        self.memories = tuple(dict.fromkeys(args.memories or (own, REFERENCE)))
        self.walkers = tuple(dict.fromkeys(args.walkers or WALKS.get(self.row.twin, ("random",))))
        self.walks = cache(self._walks)
        self.world = cache(self._world)

    @cached_property
    def twin(self) -> tuple[gym.Env, gym.Env]:
        given = {"checkpoint": self.args.checkpoint} if self.args.checkpoint else {}
        pair = wmgym.twin(self.row.id, task="free", device=self.args.device, dtype=self.args.dtype, **given)
        dream: Any = pair[0].unwrapped
        if dream.shell.chunk > 1:
            pair = (pair[0], pair[1].env)  # type: ignore[attr-defined]  # the truth frame by frame: `dream_legs` makes the chunks
        return pair

    def cell(self, walker: str, memory: str) -> dict[str, Any]:
        """The walks of a walker, dreamed with a memory and judged."""
        walks, seeds = self.walks(walker)
        dreams = dream_legs(self.world(memory), walks, seeds, self.args.lanes)
        return {"walker": walker, "memory": memory, "walks": [walk_row(*pair) for pair in zip(walks, dreams, strict=True)]}

    def draw_film(self, walker: str) -> None:
        """A film of the first walk: truth and dreams side by side."""
        walks, seeds = self.walks(walker)
        dreams = {memory: dream_legs(self.world(memory), walks[:1], seeds[:1])[0] for memory in self.memories}
        write_film(self.args.out / f"{walker}.mp4", film_pages(walks[0], dreams), RATE)

    def close(self) -> None:
        if "twin" in self.__dict__:
            for env in self.twin:
                env.close()

    def _world(self, memory: str) -> WorldModel:
        args, own = self.args, self.row.kwargs
        keywords: dict[str, Any] = {"denoise_steps": args.denoise_steps, "device": args.device, "dtype": args.dtype}
        return load_world(args.checkpoint or str(own["checkpoint"]), system=own.get("system"), memory=memory, **keywords)

    def _walks(self, walker: str) -> tuple[list[Walk], list[int]]:
        """Walks of the ground truth, each after its opening, and the seeds of the noise that the env itself would dream with."""
        walks: list[Walk] = []
        noise: list[int] = []
        attempt = 0
        while len(walks) < self.args.walks:
            found, key = walk(self.twin, walker, self.args.seed * WORLDS_PER_SEED + attempt, self.args.steps)
            if found is not None:
                walks.append(found)
                noise.append(key)
            attempt += 1
            if attempt - len(walks) > ATTEMPTS * self.args.walks:
                raise ValueError(f"{attempt - len(walks)} walks of {walker} failed: choose other --walkers for this ground truth")
        return walks, noise


def walk(twin: tuple[gym.Env, gym.Env], walker_name: str, seed: int, steps: int) -> tuple[Walk | None, int]:
    """The opening of both envs after `reset(seed=seed)` and a walk of the ground truth after it; and the seed of the dream's noise.

    The walk is None if the walker had to give up.
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
    return Walk(*path, len(opening.frames), seed), key  # type: ignore[call-arg, arg-type]


# -- the report -------------------------------------------------------------------------------------------------------------------------

Cells = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]


def summarise(cells: Cells, walkers: Sequence[str], memories: Sequence[str]) -> dict[str, Any]:
    """Error and drift at some steps, error at revisits by the length of the loop, and what memory gains there. Intervals are over walks."""
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
                    differences.append({**names, "walks": len(first), **columns("psnr", gained)})
    return {"steps": steps, "revisits": revisits, "differences": differences}


def _figures(rows: Sequence[Mapping[str, Any]], part: slice) -> dict[str, float]:
    found: dict[str, float] = {}
    for metric in ("psnr", "ssim", "drift"):
        found |= _mean(metric, [float(np.mean(row["steps"][metric][part])) for row in rows])
    return found


def _mean(name: str, values: Iterable[float]) -> dict[str, float]:
    return columns(name, bootstrap_interval([*values]))


def _name(bounds: tuple[int, int]) -> str:
    return f"{bounds[0]}-{bounds[1]}"


def markdown(id: str, summary: Mapping[str, Any]) -> str:
    """The tables of `summarise` as a page."""
    lines = [f"# {id} beside its truth", "", PREFACE]
    for key, title in TITLES.items():
        lines += ["", f"## {title}", "", *markdown_rows(summary[key])]
    return "\n".join(lines) + "\n"


def draw_curves(file: Path, cells: Cells, walkers: Sequence[str], memories: Sequence[str]) -> None:
    """PSNR against the step, drift against the step, and PSNR at revisits against the length of the loop: one row per walker."""
    plt = pyplot()
    figure, axes = plt.subplots(len(walkers), 3, figsize=(13, 2.9 * len(walkers)), squeeze=False, layout="constrained")
    for (left, middle, right), walker in zip(axes, walkers, strict=True):
        for place, memory in enumerate(memories):
            rows = cells[walker, memory]
            for ax, metric in ((left, "psnr"), (middle, "drift")):
                values = curve(rows, metric)
                ax.plot(np.arange(1, len(values) + 1), values, color=f"C{place}", label=memory)
            found = {i: bootstrap_interval([*of.values()]) for i, of in enumerate(by_length(rows, "psnr")) if of}
            arms = [[np.nan_to_num(abs(getattr(i, end) - i.mean)) for i in found.values()] for end in ("low", "high")]
            right.errorbar([*found], [i.mean for i in found.values()], arms, color=f"C{place}", marker="o", capsize=3, label=memory)
        left.set(title=f"{walker}, {len(rows)} walks", xlabel="step", ylabel="PSNR, dB")
        middle.set(title="drift of the pose", xlabel="step", ylabel="metres")
        right.set(title="revisits", xlabel="length of the loop, steps", ylabel="PSNR, dB")
        right.set_xticks(range(len(BINS)), [f"{low}-{high}" for low, high in BINS], fontsize="x-small")
    axes[0, 0].legend(fontsize="small")
    save_figure(figure, file)
