"""Put a trained model among the bundled weights: bfloat16, in files of at most 8 MB, with a model card beside them.

    python -m wmgym.experiments.bundle --run RUN --name worldpack-minecraft
    python -m wmgym.experiments.bundle --run RUN --name worldpack-memory-maze --openings data/maze-held-out

With `--openings` the first frames of some of these episodes become the clips that `opening="bundled"` opens with in that world: frames,
actions, poses and the seed with which the ground truth begins there, so that a twin can walk them. A bundled file is replaced only by
one that measures better by more than the interval.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from wmgym import settings
from wmgym.checkpoint import BUNDLED, load, save
from wmgym.data.episode import list_episodes, load_episode, read_header
from wmgym.openings import Opening, write_clips

MOST = 8_000_000  # bytes a file
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Args:
    """Bundle a run's model."""

    run: Path
    """Folder of `wmgym train`."""
    name: str
    """Name of the checkpoint, such as worldpack-minecraft."""
    openings: Path | None = None
    """Folder of episodes (wmgym collect, with a seed that was not trained on) to take opening clips from."""
    clips: int = 16
    """How many clips."""
    clip_frames: int = 64
    """Frames of each."""

    def __post_init__(self) -> None:
        for name in ("clips", "clip_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


def main(args: Args) -> list[Path]:
    loaded = load(args.run / "model.safetensors")
    model, config, notes = loaded.model, loaded.config, loaded.notes
    files = []
    if args.openings is not None:
        files.append(write_openings(config.setting, opening_clips(args.openings, args.clips, args.clip_frames)))
    for old in BUNDLED.glob(f"{args.name}*"):
        if re.fullmatch(rf"{re.escape(args.name)}(-\d+-of-\d+)?\.(safetensors|md)", old.name):
            old.unlink()
    files += save(BUNDLED / f"{args.name}.safetensors", model, config, dtype=DTYPE, max_bytes=MOST, notes=notes)
    parameters = sum(p.numel() for p in model.parameters())
    (BUNDLED / f"{args.name}.md").write_text(card(args.name, config.setting, config.autoencoder.frame_size, parameters, notes))
    return files


def opening_clips(folder: Path, count: int, frames: int) -> list[Opening]:
    """The first frames of `count` episodes, spread evenly over a folder; only those that their seed alone leads back to."""
    paths = [p for p in list_episodes(folder) if (h := read_header(p)).length >= frames and h.meta.start is None]
    if len(paths) < count:
        found = f"{len(paths)} episodes of {frames} frames that begin where their seed has it"
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


def card(name: str, setting: str, size: int, parameters: int, notes: dict[str, Any]) -> str:
    """What the weights are, how they came about and how they measure."""
    figures = {k: v for k, v in sorted(notes.items()) if isinstance(v, float)}
    head = {k: v for k, v in figures.items() if k.startswith(("reward_", "dreamed_"))}
    lines = [
        f"# {name}",
        "",
        f"A WorldPack world model of `{settings.get(setting).truth or setting}` at {size} x {size}: "
        f"{parameters / 1e6:.1f} million parameters, in bfloat16.",
        "",
        "- Trained by: " + f"`{notes.get('command', '')}`",
        f"- Data: {notes.get('frames')} frames; collected as `experiments/README.md` says.",
        "- Licence: MIT, as the code. The frames were collected by our own walkers; nobody else's data was used.",
        "",
        "At the end of training, on episodes of worlds not trained on (dB PSNR):",
        "",
        *_figures({k: v for k, v in figures.items() if k not in head}),
    ]
    if head:
        told = "`reward_` given the true latents before and after each step, `dreamed_` given dreamed ones"
        counted = "where `dreamed_true` counts the steps at which a dream seems to show what truly happened near them"
        lines += ["", f"The reward head on such episodes (steps, and shares): {told}, {counted}:", ""]
        lines += _figures(head)
    return "\n".join(lines) + "\n"


def _figures(values: dict[str, float]) -> list[str]:
    return ["| figure | value |", "|---|---|", *(f"| {k} | {v:.2f} |" for k, v in values.items())]


if __name__ == "__main__":
    for file in main(tyro.cli(Args)):
        print(file, file.stat().st_size)
