"""What trainings of a delta on a video network share: the option that names the base."""

from __future__ import annotations

from dataclasses import dataclass

from wmgym.train.run import RunArgs


@dataclass(frozen=True)
class DeltaArgs(RunArgs):
    """Options of all of them, in addition to `RunArgs`."""

    base: str = ""
    """Checkpoint of the video network (name or path)."""
    steps: int = 5_000
    """Training steps of the delta."""
    batch: int = 8
    """Windows per step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.base:
            raise ValueError("base must name the checkpoint of a video network (a bundled name or a path), got ''")
