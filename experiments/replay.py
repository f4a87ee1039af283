"""`wmgym eval replay`: CoME's protocol for one checkpoint with each of its memories.

The world observes 200 frames and dreams the next 17 along the true actions. Writes one folder: `args.json`, `result.json`, `table.md`,
`curves.png` (each metric against the step), `strips.png` (truth above dreams), and one file per finished cell in `cells/`. A killed run
resumes from those. Episodes are collected in the ground truth of the checkpoint's setting unless `--data` names a folder of them.

If the model has a reward head, the head is evaluated on the same episodes, whole and teacher-forced: it is given the true latents before
and after each step. Precision is the share of the predicted rewards that came at that very step; recall is the share of the true rewards
that were predicted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wmgym import settings
from wmgym.agents.collect import CollectArgs, collect
from wmgym.benchmarks import cells as cell_files
from wmgym.benchmarks import replay, tables
from wmgym.benchmarks.cells import BASELINES
from wmgym.data.episode import Header, read_header
from wmgym.experiments.support.judged import (
    OLDER,
    DreamArgs,
    context_lengths,
    encoded,
    loader,
    made_with,
    modes_of,
    reconstruct,
    training_in_words,
)
from wmgym.experiments.support.pictures import check_plots, pair_of, plot_strips, pyplot, save_figure, style_of
from wmgym.experiments.support.report import check_positive, check_seed, show_in, write_result
from wmgym.files import json_object, kept, open_run_folder, write_atomically
from wmgym.metrics.image import lpips_available
from wmgym.progress import Progress
from wmgym.registration import default_checkpoint
from wmgym.train.reward import encode_with, measure
from wmgym.world_model import WorldModel

WALKERS = {"memory_cards": "zig-zag"}  # setting -> walker; elsewhere the setting's own
UNITS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "feature_distance": "feature distance",
    "recall": "tile recall",
    "drift": "pose drift, metres",
}
RECALL = """\
After the last step. `recall`: share of the 16 tiles whose mean squared error is below 2e-5 (pixels in [0, 1]). `recall_turned`: the same
share of the tiles that differ from the last observed frame, which no copy can get right.
"""
ITERATIONS = """\
PSNR of each block, which is dreamed after all true frames before it.
"""
REWARDS = """\
Teacher-forced: from the true latents before and after each step of whole episodes. `said` counts predicted rewards, `true` true ones,
`hits` those that are both, and `expected` is the sum of the head's probabilities. Precision is the share of the predicted rewards that came
at that step, recall the share of the true rewards that were predicted.
"""


@dataclass(frozen=True)
class ReplayArgs(DreamArgs):
    """Show a world the first frames of episodes, dream the next ones along the true actions, and compare.

    Needs a checkpoint. Writes a folder with table.md, result.json, curves.png and strips.png. The time grows with windows, steps, modes
    and denoising steps, plus collecting the episodes unless --data gives them. A killed run resumes: type the same command again.
    """

    checkpoint: str = default_checkpoint("minecraft")
    """Bundled name, path, or hub name."""
    modes: tuple[str, ...] | None = None
    """Memories to compare, with the same weights, episodes and noise; by default all memories of the checkpoint's system."""
    windows: int = 50
    """How many episodes, one window each."""
    context: int = replay.CONTEXT
    """Frames observed."""
    steps: int = replay.STEPS
    """Frames dreamed."""
    iterations: int = 1
    """Blocks of `steps` frames; the true frames are observed after each, and the next is dreamed. CoME's stream has 11."""
    data: Path | None = None
    """Folder of episodes (and its subfolders). By default they are collected, and kept in OUT/episodes."""
    env_id: str | None = None
    """Ground truth to collect in; by default that of the checkpoint's setting."""
    env_kwargs: str = "{}"
    """Keywords for the ground truth, as JSON."""
    walker: str | None = None
    """Who walks there (see wmgym collect); by default zig-zag in Memory Cards, elsewhere the setting's own walker."""
    seed: int = 100
    """Seed of worlds, walks and noise. Training uses 0 to 99 and evaluation 100 and above, so they never share a world."""
    lanes: int = 32
    """Windows dreamed in one batch."""
    out: Path = Path("runs/replay")
    """Folder for the results."""

    def __post_init__(self) -> None:
        if self.modes == ():
            raise ValueError("modes must name at least one")
        check_positive(self, "windows", "context", "steps", "lanes", "iterations")
        check_seed(self.seed)
        json_object(self.env_kwargs, "env_kwargs")


def evaluate(args: ReplayArgs, progress: bool = True) -> dict[str, Any]:
    """Make the cells that are missing, then the report (also in `result.json`)."""
    check_plots()
    out, group = args.out, replay.group(args.context, args.steps, args.iterations)
    world_of = loader(args.checkpoint, args)
    system, modes = modes_of(world_of, args.modes)
    model = world_of(modes[0])
    free = {"modes", "device", "lanes", "out", "checkpoint"}  # change no finished cell
    open_run_folder(out, {**asdict(args), **made_with(model), "measures": cell_files.MEASURES}, free, {**OLDER, "iterations": 1})
    paths = find_episodes(args, model, progress)
    more = {"more": replay.tile_scores} if model.provenance.setting == "memory_cards" else {}
    block = args.steps if args.iterations > 1 else None
    how = cell_files.Settings(args.seed, args.lanes, lpips_available(), partial(encoded, model), block, **more)
    windows = {group.name: partial(replay.read_windows, paths, args.context, args.steps * args.iterations)}
    with Progress(disable=not progress, unit="frame") as bar:
        cells = cell_files.evaluate(windows, modes, world_of, partial(reconstruct, model), out, how, show_in(bar))
    found = replay.tables(cells, group, modes, system)
    if block:
        found["iterations"] = replay.by_iteration(cells, group, modes, system, block)
    rewards = kept(out / "cells" / "rewards.json", partial(_rewards, model, paths)) if model.reward_head is not None else None
    plot_curves(cells, group.name, modes, out / "curves.png")
    plot_strips(out, [group.name], pair_of(system, modes))
    report = {
        "checkpoint": args.checkpoint,
        "training": training_in_words(args.checkpoint),
        "windows": args.windows,
        "episodes": str(args.data or out / "episodes"),
        "env_id": read_header(paths[0]).meta.env_id,
        "lpips": "measured" if how.with_lpips else "left out: its weights are not here",
        "context": context_lengths(world_of, modes),
        **found,
        **({"reward_head": [rewards]} if rewards else {}),
        "out": str(out),
    }
    write_result(out, report)
    text = tables.markdown(found, replay.PREFACE.format(context=args.context, steps=args.steps), report["training"])
    for title, words, rows in (
        ("Iterations", ITERATIONS, found.get("iterations")),
        ("Tile recall", RECALL, found.get("tile_recall")),
        ("Reward head", REWARDS, [rewards] if rewards else None),
    ):
        if rows:
            text += "\n".join(["", f"## {title}", "", words, *tables.markdown_rows(rows), ""])
    write_atomically(out / "table.md", text.encode())
    return report


def _rewards(model: WorldModel, paths: Sequence[Path]) -> dict[str, Any]:
    """The reward head's figures on whole episodes."""
    assert model.reward_head is not None
    steps = sum(read_header(path).steps for path in paths)
    figures = measure(model.reward_head, encode_with(model, paths))
    return {"episodes": len(paths), "steps": steps, **{name.removeprefix("reward_"): value for name, value in figures.items()}}


# -- where episodes come from -----------------------------------------------------------------------------------------------------------


def find_episodes(args: ReplayArgs, model: WorldModel, progress: bool) -> list[Path]:
    """The episodes of the windows, from `args.data` or collected."""
    frames = args.context + args.steps * args.iterations
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
    """A folder with enough episodes of exactly this many frames; a killed collection resumes."""
    setting = settings.get(model.provenance.setting)
    env_id = args.env_id or setting.truth
    if env_id is None:
        raise ValueError(f"no ground truth is known for setting {setting.name!r}: give --data or --env-id")
    kwargs = json.dumps({"size": model.frame_shape[0], **json_object(args.env_kwargs, "env_kwargs")})
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
                values = tables.curve(rows, metric)
                ax.plot(np.arange(1, len(values) + 1), values, label=mode, **style_of(mode, modes))
        ax.set(xlabel="step of the dream", ylabel=UNITS[metric])
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].legend(fontsize="small")
    save_figure(figure, file)
