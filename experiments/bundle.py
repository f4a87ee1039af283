"""Add a trained model to the bundled weights: bfloat16, in files of at most 8 MB, with a model card beside them.

    python -m wmgym.experiments.bundle --run RUN --name worldpack-minecraft
    python -m wmgym.experiments.bundle --run RUN --name worldpack-memory-maze --openings data/maze-held-out

With `--openings`, the first frames of some of these episodes become the clips of `opening="bundled"` in that setting: frames, actions,
poses, and the seed with which the ground truth starts, so that a twin can walk them. Replace a bundled file only with one that measures
better by more than the interval.

A model is refused unless its notes hold all commands that lead to it (`wmgym.train.provenance`), from the collection of its episodes on, or
from another bundled checkpoint, which the card names with its SHA-256.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from wmgym import settings
from wmgym.agents.collect import parse_walkers, setting_of
from wmgym.benchmarks.loopnav import courses
from wmgym.checkpoint import BUNDLED, bundled, load, read, resolve, save
from wmgym.data.episode import list_episodes, load_episode, read_header
from wmgym.experiments.support.report import check_positive
from wmgym.openings import Opening, write_clips
from wmgym.train.provenance import chain, missing, walkers
from wmgym.world_model import WorldModel

MOST = 8_000_000  # bytes a file
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Args:
    """Bundle a run's model: from a folder of `wmgym train` to files in wmgym/weights."""

    run: Path
    """Folder of `wmgym train`."""
    name: str
    """Name of the checkpoint: SYSTEM-SETTING."""
    openings: Path | None = None
    """Folder of episodes (wmgym collect, with a seed that no training uses) to take opening clips from."""
    clips: int = 16
    """How many opening clips."""
    clip_frames: int = 64
    """Frames of each clip."""

    def __post_init__(self) -> None:
        check_positive(self, "clips", "clip_frames")


def main(args: Args) -> list[Path]:
    """The files that were written; those of an older checkpoint of this name are removed."""
    loaded = load(args.run / "model.safetensors")
    model, config, notes = loaded.model, loaded.config, loaded.notes
    notes = {**notes, "commands": commands_of(args, notes)}
    files = []
    if args.openings is not None:
        files.append(write_openings(config.setting, opening_clips(args.openings, args.clips, args.clip_frames)))
    for old in BUNDLED.glob(f"{args.name}*"):
        if re.fullmatch(rf"{re.escape(args.name)}(-\d+-of-\d+)?\.(safetensors|md)", old.name):
            old.unlink()
    files += save(BUNDLED / f"{args.name}.safetensors", model, config, dtype=DTYPE, max_bytes=MOST, notes=notes)
    (BUNDLED / f"{args.name}.md").write_text(card(args.name, model, config, notes))
    return files


def commands_of(args: Args, notes: dict[str, Any]) -> list[str]:
    """The commands that lead to the bundled files; ValueError if they do not begin from nothing."""
    openings = [] if args.openings is None else [args.openings]
    words = ["python", "-m", "wmgym.experiments.bundle", "--run", str(args.run), "--name", args.name]
    words += [word for folder in openings for word in ("--openings", str(folder))]
    commands = list(dict.fromkeys([*notes.get("commands", []), *chain(shlex.join(words), openings)]))
    if lacking := [name for name in missing(commands) if name not in started_from(args.name, commands)]:
        why = f"its commands start from {', '.join(lacking)}, which none of them makes"
        how = "train on folders that `wmgym collect` made, and start only from checkpoints whose notes name their commands"
        raise ValueError(f"{args.run} cannot be reproduced: {why}; {how}")
    return commands


def started_from(name: str, commands: Sequence[str]) -> dict[str, str]:
    """Other bundled checkpoints that the commands start from, with the SHA-256 of their weights."""
    return {other: read(resolve(other)).sha256 for other in missing(commands) if other in bundled() and other != name}


def opening_clips(folder: Path, count: int, frames: int) -> list[Opening]:
    """The first frames of `count` episodes, spread evenly over a folder; only of episodes that start where their seed says."""
    paths = [p for p in list_episodes(folder) if (h := read_header(p)).length >= frames and h.meta.start is None]
    if len(paths) < count:
        found = f"{len(paths)} episodes of {frames} frames that start where their seed says"
        raise ValueError(f"{folder} holds {found}, {count} are asked for")
    parts = [load_episode(paths[i], 0, frames) for i in np.linspace(0, len(paths) - 1, count).round().astype(int)]
    return [Opening(part.frames, part.actions, part.poses, None, part.meta.seed) for part in parts]


def write_openings(setting: str, clips: list[Opening]) -> Path:
    """The clips as a file of at most 8 MB beside the weights."""
    path = BUNDLED / f"{setting}-openings.npz"
    draft = path.with_name(f".{path.name}")
    write_clips(draft, clips)
    size = draft.stat().st_size
    if size > MOST:
        draft.unlink()
        asked = f"{len(clips)} clips of {len(clips[0].frames)} frames"
        raise ValueError(f"{asked} take {size / 1e6:.1f} MB, at most {MOST / 1e6:.0f} are allowed")
    return draft.replace(path)


def card(name: str, model: WorldModel, config: Any, notes: dict[str, Any]) -> str:
    """The model card: what the weights are, how they were made, and their figures."""
    place, size = settings.get(config.setting).truth or config.setting, config.autoencoder.frame_size
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    figures = {k: v for k, v in sorted(notes.items()) if isinstance(v, float)}
    head = {k: v for k, v in figures.items() if k.startswith(("reward_", "dreamed_"))}
    lines = [
        f"# {name}",
        "",
        f"A world model of `{place}` at {size} x {size} (system `{config.system}`): {millions:.1f} million parameters, in bfloat16.",
        "",
        f"- Made with wmgym {notes.get('wmgym_version', '?')} by the commands below, from {_begun_with(name, notes['commands'])}.",
        f"- Data: {notes.get('frames')} frames of our own walkers. No other data was used.",
        *_walkers(notes["commands"]),
        *_examples(notes),
        "- Licence: MIT, as the code.",
        "",
        "```",
        *notes["commands"],
        "```",
        "",
        "At the end of training, on episodes of worlds that were not trained on (PSNR in dB):",
        "",
        *_figures({k: v for k, v in figures.items() if k not in head}),
    ]
    if head:
        given = "`reward_` given the true latents before and after each step, `dreamed_` given dreamed latents"
        counted = "`dreamed_true` counts the steps near which the dream seems to show what truly happened"
        lines += ["", f"The reward head on such episodes (steps, and shares): {given}; {counted}:", ""]
        lines += _figures(head)
    return "\n".join(lines) + "\n"


def _begun_with(name: str, commands: Sequence[str]) -> str:
    inputs = [f"`{other}` (SHA-256 {sha256[:16]}...)" for other, sha256 in started_from(name, commands).items()]
    return f"the bundled {', '.join(inputs)} and nothing else" if inputs else "nothing else"


def _walkers(commands: Sequence[str]) -> list[str]:
    """The walkers in the data, and which of them the benchmarks use."""
    collections = [shlex.split(command) for command in commands if shlex.split(command)[:2] == ["wmgym", "collect"]]
    named: dict[str, None] = {}
    for words, text in zip(collections, walkers(commands), strict=True):
        named |= dict.fromkeys(parse_walkers(text or setting_of(words[2]).walkers)[0])
    judged = [name for name in named if name in {course.walker for course in courses()}]
    lines = [f"- Walkers in the data: {', '.join(named)}."]
    if judged:
        lines.append(f"- `wmgym eval loopnav` judges walks of {', '.join(judged)} too, in other worlds.")
    return lines


def _examples(notes: dict[str, Any]) -> list[str]:
    seen = ", ".join(f"{mode} {count}" for mode, count in notes.get("examples", {}).items())
    return [f"- Training examples per memory: {seen}."] if seen else []


def _figures(values: dict[str, float]) -> list[str]:
    return ["| figure | value |", "|---|---|", *(f"| {k} | {v:.2f} |" for k, v in values.items())]


if __name__ == "__main__":
    for file in main(tyro.cli(Args)):
        print(file, file.stat().st_size)
