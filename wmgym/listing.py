"""`wmgym list`: what can be made, told from the table of ids and the files beside it, without loading torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmgym.registration import TABLE

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class ListArgs:
    """List the environment ids, their twins, spaces and weights."""

    variants: bool = False
    """Also Memory Maze's variants (other cameras, observations, numbers of targets)."""


def list_environments(args: ListArgs) -> dict[str, Any]:
    """One row per id; `weights` says whether its checkpoint came with the package."""
    rows = [row for row in TABLE if args.variants or not row.kwargs.get("variant")]
    left_out = len(TABLE) - len(rows)
    return {
        "environments": [
            {
                "id": row.id,
                "imagines": row.twin,
                "tasks": list(row.world.tasks),
                "observation": row.world.observation,
                "action": row.world.action,
                "memory": row.kwargs.get("memory"),
                "weights": weights_of(row.kwargs.get("checkpoint")) if "memory" in row.kwargs else None,
            }
            for row in rows
        ],
        **({"left_out": f"{left_out} variants of Memory Maze; --variants lists them"} if left_out else {}),
    }


def weights_of(checkpoint: str | None) -> str:
    """Where a checkpoint's weights are."""
    if checkpoint is None:
        return "give checkpoint="
    return "bundled" if weight_files(checkpoint) else "missing"


def weight_files(checkpoint: str) -> list[Path]:
    """The files of a bundled checkpoint: one, or all of its parts; none if it is not there. `checkpoint.py` reads them."""
    whole = WEIGHTS / f"{checkpoint}.safetensors"
    return [whole] if whole.is_file() else sorted(WEIGHTS.glob(f"{checkpoint}-*-of-*.safetensors"))
