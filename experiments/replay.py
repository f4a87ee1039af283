"""`wmgym eval replay`: CoME's protocol for one checkpoint in its memory modes: 200 frames seen, the next 17 dreamed along the true actions.

Writes one folder: `args.json`, `result.json`, `table.md`, `curves.png` (each metric against the step), `strips.png` (truth above dreams),
and a file per finished cell in `cells/`, so that a killed run goes on where it was. Episodes are collected in the ground truth of the
checkpoint's world unless `--data` gives them.

Where the model has a reward head, it is tried on the same episodes, whole: from the true latents before and after each step
(teacher-forced) it says what was earned. Precision: of the rewards said, how many came at that very step. Recall: of those that came,
how many were said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from wmgym import settings
from wmgym.agents.collect import CollectArgs, collect, parse_kwargs
from wmgym.benchmarks import loopnav, loopnav_table, replay
from wmgym.benchmarks.loopnav import BASELINES
from wmgym.data.episode import Header, read_header
from wmgym.experiments.loopnav import (
    DreamArgs,
    colour_of,
    context_lengths,
    loader,
    made_with,
    modes_of,
    plot_strips,
    reconstruct,
    save_figure,
    show_in,
)
from wmgym.experiments.plots import pyplot
from wmgym.files import open_run_folder, write_atomically
from wmgym.metrics.image import lpips_available
from wmgym.train.reward import encode_with, measure
from wmgym.world_model import WorldModel

WALKERS = {"memory_cards": "zig-zag"}  # by setting; elsewhere its own
UNITS = {"psnr": "PSNR, dB", "ssim": "SSIM", "lpips": "LPIPS", "recall": "tile recall", "drift": "pose drift, metres"}
PREFACE = """\
# Replay

{context} frames seen, {steps} dreamed along the true actions. Means over the dreamed frames and then over windows, with 95 % bootstrap
intervals over windows, one window an episode. PSNR in dB; `drift` is the distance between the dreamed and the true pose at the end. `copy`
repeats the last frame seen (for the next frame: the one before), `ceiling` is the autoencoder's own picture of the truth.
"""
RECALL = """\
After the last step. `recall`: share of the 16 tiles whose mean squared error is below 2e-5 (pixels in [0, 1]). `recall_turned`: the same
among the tiles that show something else than in the last frame seen, which no copy can know.
"""
REWARDS = """\
Teacher-forced: from the true latents before and after each step of whole episodes. `said` rewards, `true` ones, those that are both
(`hits`), and how many the head's probabilities expect; precision is the share of those said that came at that step, recall the share of
those that came that were said.
"""


@dataclass(frozen=True)
class ReplayArgs(DreamArgs):
    """Show a world the first frames of episodes, dream the next ones along the true actions, and compare."""

    checkpoint: str = "worldpack-minecraft"
    """Bundled name, path, or hub name."""
    modes: tuple[str, ...] | None = None
    """Memories, all with the same weights, episodes and noise; by default all of the checkpoint's system."""
    windows: int = 50
    """Episodes, one window each."""
    context: int = replay.CONTEXT
    """Frames seen."""
    steps: int = replay.STEPS
    """Frames dreamed."""
    data: Path | None = None
    """Folder of episodes (and its subfolders); by default they are collected, and kept in OUT/episodes."""
    env_id: str | None = None
    """Ground truth to collect in; by default that of the checkpoint's world."""
    env_kwargs: str = "{}"
    """Keywords for it, as JSON."""
    walker: str | None = None
    """Who walks there (see wmgym collect); by default zig-zag for Memory Cards, else explorer."""
    seed: int = 100
    """Of worlds, walks and noise. Training has 0 to 99, evaluation 100 and above: they never share a world."""
    lanes: int = 32
    """Windows dreamed in one batch."""
    out: Path = Path("runs/replay")
    """Folder for the results."""

    def __post_init__(self) -> None:
        if self.modes == ():
            raise ValueError("modes must name at least one")
        for name in ("windows", "context", "steps", "lanes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        parse_kwargs(self.env_kwargs)


def evaluate(args: ReplayArgs, progress: bool = True) -> dict[str, Any]:
    """All cells that are not there yet, then the report (also in `result.json`)."""
    out, wanted = args.out, replay.course(args.context, args.steps)
    world_of = loader(args.checkpoint, args)
    system, modes = modes_of(world_of, args.modes)
    model = world_of(modes[0])
    has_tiles = model.provenance.setting == "memory_cards"
    open_run_folder(args.out, {**asdict(args), **made_with(model)}, {"modes", "device", "lanes", "out", "checkpoint"})
    paths = _episodes(args, model, progress)
    more = {"more": replay.tile_scores} if has_tiles else {}
    how = loopnav.Settings(args.seed, args.lanes, lpips_available(), **more)
    with tqdm(disable=not progress, unit="frame") as bar:
        cells = loopnav.evaluate(
            [wanted],
            modes,
            lambda _: replay.read_windows(paths, args.context, args.steps),
            world_of,
            partial(reconstruct, model),
            out,
            how,
            show_in(bar),
        )
    found = replay.tables(cells, wanted, modes, system)
    rewards = _rewards(model, paths, out / "cells" / "rewards.json")
    plot_curves(cells, wanted.name, modes, out / "curves.png")
    plot_strips([wanted], modes, out)
    report = {
        "checkpoint": args.checkpoint,
        "windows": args.windows,
        "episodes": str(args.data or out / "episodes"),
        "env_id": read_header(paths[0]).meta.env_id,
        "lpips": "measured" if how.with_lpips else "left out: its weights are not here",
        "context": context_lengths(world_of, modes),
        **found,
        **({"reward_head": [rewards]} if rewards else {}),
        "out": str(out),
    }
    write_atomically(out / "result.json", loopnav_table.report_json(report))
    text = loopnav_table.markdown(found, PREFACE.format(context=args.context, steps=args.steps))
    for title, words, rows in (
        ("Tile recall", RECALL, found.get("tile_recall")),
        ("Reward head", REWARDS, [rewards] if rewards else None),
    ):
        if rows:
            text += "\n".join(["", f"## {title}", "", words, *loopnav_table.markdown_rows(rows), ""])
    write_atomically(out / "table.md", text.encode())
    return report


def _rewards(model: WorldModel, paths: Sequence[Path], file: Path) -> dict[str, Any]:
    """The reward head's figures on whole episodes; empty without a head. Kept in a file, as the cells are."""
    if model.reward_head is None:
        return {}
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        pass
    steps = sum(read_header(path).steps for path in paths)
    figures = measure(model.reward_head, encode_with(model, paths))
    found = {"episodes": len(paths), "steps": steps, **{name.removeprefix("reward_"): value for name, value in figures.items()}}
    write_atomically(file, json.dumps(found).encode())
    return found


# -- where episodes come from -----------------------------------------------------------------------------------------------------------


def _episodes(args: ReplayArgs, model: WorldModel, progress: bool) -> list[Path]:
    frames = args.context + args.steps
    folder = args.data or _collected(args, model, frames, progress)
    paths = replay.find_windows(folder, args.windows, frames)
    for path in paths:
        _check(path, read_header(path), model)
    return paths


def _check(path: Path, header: Header, model: WorldModel) -> None:
    if header.frame_shape != model.frame_shape:
        raise ValueError(f"{path}: frames are {list(header.frame_shape)}, the checkpoint wants {list(model.frame_shape)}")
    actions = header.meta.action_space.get("n", model.kinematics.num_actions)
    if actions != model.kinematics.num_actions:
        world = f"the checkpoint's setting {model.provenance.setting!r} has {model.kinematics.num_actions}"
        raise ValueError(f"{path}: {header.meta.env_id} has {actions} actions, {world}")


def _collected(args: ReplayArgs, model: WorldModel, frames: int, progress: bool) -> Path:
    """A folder with enough episodes of just so many frames; a killed collection goes on where it was."""
    setting = settings.get(model.provenance.setting)
    env_id = args.env_id or setting.truth
    if env_id is None:
        raise ValueError(f"no ground truth is known for setting {setting.name!r}: give --data or --env-id")
    kwargs = json.dumps({"size": model.frame_shape[0], **parse_kwargs(args.env_kwargs)})
    folder, steps = args.out / "episodes", max(1, frames - 1)
    walker = args.walker or WALKERS.get(setting.name, setting.walkers)
    wanted = CollectArgs(env_id, walker, args.windows * steps, folder, args.seed, episode_length=steps, env_kwargs=kwargs)
    collect(wanted, progress=progress)
    return folder


# -- pictures ---------------------------------------------------------------------------------------------------------------------------


def plot_curves(cells: Mapping[str, Mapping[str, Any]], name: str, modes: Sequence[str], file: Path) -> None:
    """Each metric against the step of the dream."""
    plt = pyplot()
    metrics = [metric for metric in UNITS if metric in cells[f"{name} {modes[0]}"]["loops"][0]["steps"]]
    figure, axes = plt.subplots(1, len(metrics), figsize=(3.6 * len(metrics), 3), squeeze=False, layout="constrained")
    for ax, metric in zip(axes[0], metrics, strict=True):
        for mode in (*modes, *BASELINES):
            rows = cells[f"{name} {mode}"]["loops"]
            if metric in rows[0]["steps"]:
                values = loopnav_table.curve(rows, metric)
                style = "--" if mode in BASELINES else "-"
                ax.plot(np.arange(1, len(values) + 1), values, label=mode, color=colour_of(mode, modes), ls=style)
        ax.set(xlabel="step of the dream", ylabel=UNITS[metric])
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].legend(fontsize="small")
    save_figure(figure, file)
