"""Put a trained model among the bundled weights: bfloat16, in files of at most 8 MB, with a model card beside them.

    python -m wmgym.experiments.bundle --run RUN --name worldpack-minecraft

A bundled file is replaced only by one that measures better by more than the interval.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from wmgym.checkpoint import BUNDLED, load, save

MOST = 8_000_000  # bytes a file
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Args:
    """Bundle a run's model."""

    run: Path
    """Folder of `wmgym train`."""
    name: str
    """Name of the checkpoint, such as worldpack-minecraft."""


def main(args: Args) -> list[Path]:
    model, config, notes = load(args.run / "model.safetensors")
    for old in BUNDLED.glob(f"{args.name}*"):
        if re.fullmatch(rf"{re.escape(args.name)}(-\d+-of-\d+)?\.(safetensors|md)", old.name):
            old.unlink()
    files = save(BUNDLED / f"{args.name}.safetensors", model, config, dtype=DTYPE, max_bytes=MOST, notes=notes)
    parameters = sum(p.numel() for p in model.parameters())
    (BUNDLED / f"{args.name}.md").write_text(card(args.name, parameters, notes))
    return files


def card(name: str, parameters: int, notes: dict[str, Any]) -> str:
    """What the weights are, how they came about and how they measure."""
    figures = {k: v for k, v in notes.items() if isinstance(v, (int, float))}
    lines = [
        f"# {name}",
        "",
        f"A WorldPack world model of the embedded `Minecraft-v0` at 64 x 64: {parameters / 1e6:.1f} million parameters, in bfloat16.",
        "",
        "- Trained by: " + f"`{notes.get('command', '')}`",
        f"- Data: {notes.get('frames')} frames; collected as `experiments/README.md` says.",
        "- Licence: MIT, as the code. The frames were drawn by our own renderer; nobody else's data was used.",
        "",
        "At the end of training, on episodes of worlds not trained on (dB PSNR):",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {k} | {v:.2f} |" for k, v in sorted(figures.items()) if isinstance(v, float)),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for file in main(tyro.cli(Args)):
        print(file, file.stat().st_size)
