"""`wmgym demo`: walk a loop in the ground truth, dream the way back with memory and without, and show all three.

There are two loops: A -> B -> A at a range of 5 blocks, and one that only turns. Writes films, strips, a map and `result.json` into one
folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from wmgym.agents.collect import ATTEMPTS, WORLDS_PER_SEED, record
from wmgym.benchmarks.cells import strip_steps
from wmgym.benchmarks.loopnav import loop_of
from wmgym.benchmarks.rollout import Dream, Walk, dream_legs
from wmgym.experiments.support.film import film_pages, write_film
from wmgym.experiments.support.judged import DreamArgs, loader, system_of
from wmgym.experiments.support.pictures import check_plots, pyplot, save_figure
from wmgym.experiments.support.report import write_result
from wmgym.metrics.image import judge
from wmgym.progress import Progress
from wmgym.registration import default_checkpoint

WALKS = {"loop": "loop-ABA-5", "turn": "turn-loop"}  # file name -> walker
RATE = 8  # frames per second of the films; a step of the world is 1/5 s
MARGIN = 8  # blocks of map around the path
DPI = 120


@dataclass(frozen=True)
class DemoArgs(DreamArgs):
    """Two loops, truth beside dream: films, strips and a map.

    Needs only bundled weights. Takes under 2 minutes.
    """

    out: Path = Path("demo")
    """Folder for the pictures."""
    seed: int = 100
    """Seed of the worlds. Training uses 0 to 99."""
    checkpoint: str = default_checkpoint("minecraft")
    """Bundled name, path, or hub name."""


def demo(args: DemoArgs, progress: bool = True) -> dict[str, Any]:
    """The report: mean PSNR of the way back, and the files that were written."""
    check_plots()
    world_of = loader(args.checkpoint, args)
    system = system_of(world_of(None))
    worlds = {"with memory": world_of(system.default_memory), "without": world_of(system.reference)}
    env = gym.make("Minecraft-v0", task="free", disable_env_checker=True)
    args.out.mkdir(parents=True, exist_ok=True)
    rows, files = [], []
    with Progress(WALKS.items(), disable=not progress, unit="loop") as bar:
        for name, walker in bar:
            bar.set_description(f"{name}: walking")
            loop = walk(env, walker, args.seed)
            bar.set_description(f"{name}: dreaming")
            dreams = {label: dream_legs(world, [loop], [args.seed])[0] for label, world in worlds.items()}
            bar.set_description(f"{name}: drawing")
            rows += [{"walk": name, **row} for row in numbers(loop, dreams)]
            files += [film(args.out / f"{name}.mp4", loop, dreams), strip(args.out / f"{name}.png", loop, dreams)]
            if name == "loop":
                files.append(draw_map(args.out / "map.png", env, loop, dreams))
    env.close()
    report = {"seed": args.seed, "way_back": rows, "files": [str(file) for file in files]}
    write_result(args.out, report)
    return report


def walk(env: gym.Env, walker: str, seed: int) -> Walk:
    """The first walk of this seed that succeeds; `env` stays in its world."""
    for attempt in range(ATTEMPTS):
        world = seed * WORLDS_PER_SEED + attempt
        episode = record(env, walker, world, np.random.default_rng(world), 0)
        if episode.meta.outcome == "done":
            return loop_of(episode)
    raise ValueError(f"{ATTEMPTS} walks of {walker} in a row failed, the last with {episode.meta.outcome!r}; try another --seed")


def numbers(loop: Walk, dreams: Mapping[str, Dream]) -> list[dict[str, Any]]:
    """One row per dream, and one for repeating the last observed frame."""
    truth = loop.frames[loop.split :]
    shown = {label: dream.frames for label, dream in dreams.items()}
    shown["last seen frame"] = np.repeat(loop.frames[loop.split - 1 : loop.split], loop.leg, 0)
    rows = []
    for label, frames in shown.items():
        scores = judge(frames, truth)
        drift = np.linalg.norm(dreams[label].poses[-1, :3] - loop.poses[-1, :3]) if label in dreams else None
        found = {"psnr_db": float(scores["psnr"].mean()), "ssim": float(scores["ssim"].mean())}
        rows.append({"dream": label, "steps": loop.leg, **found, "drift_blocks": drift})
    return rows


# -- pictures ---------------------------------------------------------------------------------------------------------------------------


def film(file: Path, loop: Walk, dreams: Mapping[str, Dream]) -> Path:
    """Truth and dreams side by side. The last page stays for a second."""
    pages = film_pages(loop, dreams)
    return write_film(file, pages + [pages[-1]] * RATE, RATE)


def strip(file: Path, loop: Walk, dreams: Mapping[str, Dream], columns: int = 8) -> Path:
    """Evenly spaced steps of the way back: the truth, and each dream below it."""
    plt = pyplot()
    steps = strip_steps(loop.leg, columns)
    rows = {"truth": loop.frames[loop.split :], **{label: dream.frames for label, dream in dreams.items()}}
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.35 * columns + 1, 1.4 * len(rows)), layout="constrained")
    for line, (label, frames) in zip(axes, rows.items(), strict=True):
        for ax, step in zip(line, steps, strict=True):
            ax.imshow(frames[step], interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            if label == "truth":
                ax.set_title(f"step {step + 1}", fontsize="small")
        line[0].set_ylabel(label)
    return save_figure(figure, file, DPI)


def draw_map(file: Path, env: gym.Env, loop: Walk, dreams: Mapping[str, Dream]) -> Path:
    """The ground from above, the true path, the dreamed paths, and the retrieved frames."""
    plt = pyplot()
    paths = np.concatenate([loop.poses, *(dream.poses for dream in dreams.values())])
    low, high = np.floor(paths.min(0)[:3]).astype(int), np.ceil(paths.max(0)[:3]).astype(int)
    box = (int(low[0]) - MARGIN, int(low[1]) - MARGIN, int(low[2]) - 8), (int(high[0]) + MARGIN, int(high[1]) + MARGIN, int(high[2]) + 12)
    relief = _relief(env.unwrapped.solid(*box))  # type: ignore[attr-defined]
    figure, ax = plt.subplots(figsize=(9, 6), layout="constrained")
    ax.imshow(relief.T, origin="lower", extent=(box[0][0], box[1][0], box[0][1], box[1][1]), cmap="gray", alpha=0.75)
    ax.plot(*loop.poses[: loop.split, :2].T, color="white", lw=5, label="true way out")
    ax.plot(*loop.poses[loop.split - 1 :, :2].T, color="black", lw=5, label="true way back")
    for (label, dream), colour in zip(dreams.items(), ("C0", "C3"), strict=False):
        dreamed = np.concatenate([loop.poses[loop.split - 1 : loop.split], dream.poses])
        ax.plot(*dreamed[:, :2].T, color=colour, lw=2, marker=".", label=f"dreamed, {label}")
        known = np.concatenate([loop.poses[: loop.split], dream.poses])
        again = np.unique(dream.retrieved[dream.retrieved >= 0])
        if len(again):
            x, y, _, yaw, _ = known[again].T
            ax.quiver(x, y, np.cos(yaw), np.sin(yaw), color="C1", scale=18, width=0.005, label="retrieved frames\n(where they look)")
    ax.plot(*loop.poses[0, :2], "o", color="C2", ms=10, label="A")
    ax.plot(*loop.poses[loop.split - 1, :2], "s", color="C2", ms=10, label="B")
    ax.set(xlabel="x, blocks", ylabel="y, blocks", aspect="equal")
    figure.legend(loc="outside right upper", facecolor="0.85")
    return save_figure(figure, file, DPI)


def _relief(solid: np.ndarray) -> np.ndarray:
    """Columns of blocks [X, Y, Z] -> brightness [X, Y]: higher is brighter, and slopes are lit from one side."""
    height = np.where(solid.any(-1), solid.shape[-1] - np.argmax(solid[..., ::-1], -1), 0).astype(np.float32)
    slope_x, slope_y = np.gradient(height)
    return height / max(1.0, height.max()) + 0.15 * np.clip(slope_x - slope_y, -2, 2)
