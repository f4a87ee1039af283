"""`wmgym list`: the environment ids and their weights, without loading torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium import spaces

from wmgym.registration import TABLE

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class ListArgs:
    """List the environment ids.

    Output: for each id the ground truth that it imagines, tasks, spaces, default memory, and whether its weights are in this package.
    Takes a few seconds.
    """

    variants: bool = False
    """Also list Memory Maze's variants (other cameras, observations and numbers of targets)."""


def list_environments(args: ListArgs) -> dict[str, Any]:
    """One row per id."""
    rows = [row for row in TABLE if args.variants or row.truth is None or not row.truth.is_variant]
    left_out = len(TABLE) - len(rows)
    return {
        "environments": [
            {
                "id": row.id,
                "imagines": row.twin,
                "tasks": list(row.setting.tasks),
                "observation": describe(row.observation_space),
                "action": describe(row.action_space),
                "memory": row.kwargs.get("memory"),
                "weights": weights_of(row.kwargs["checkpoint"]) if row.is_dream else None,
            }
            for row in rows
        ],
        **({"left_out": f"{left_out} variants of Memory Maze; --variants lists them"} if left_out else {}),
    }


def describe(space: spaces.Space) -> str:
    """A space in words: "compass 2 float32, pov 64x64x3 uint8"."""
    if isinstance(space, spaces.Dict):
        return ", ".join(f"{name} {describe(part)}" for name, part in sorted(space.items()))
    if isinstance(space, spaces.Box):
        return f"{'x'.join(map(str, space.shape))} {space.dtype}"
    return str(space)


def weights_of(checkpoint: str | None) -> str:
    """Whether a checkpoint's weights are in this package."""
    if checkpoint is None:
        return "give checkpoint="
    return "bundled" if weight_files(checkpoint) else "missing"


def weight_files(checkpoint: str) -> list[Path]:
    """The files of a bundled checkpoint: one, or all parts; empty if it is not there. `checkpoint.py` reads them."""
    whole = WEIGHTS / f"{checkpoint}.safetensors"
    return [whole] if whole.is_file() else sorted(WEIGHTS.glob(f"{checkpoint}-*-of-*.safetensors"))
