"""What trainings of a delta on a video network share: the option that names the base, and the model that they start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wmgym.checkpoint import Loaded, load, resolve
from wmgym.systems import System
from wmgym.train.run import RunArgs
from wmgym.world_model import WorldModel


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


def open_base(name: str, system: System) -> Loaded:
    """The checkpoint that a system's deltas stand on. ValueError if it is of another system."""
    loaded = load(resolve(name))
    if loaded.config.system != system.base:
        raise ValueError(f"base must be a checkpoint of system {system.base!r}, {name} is of system {loaded.config.system!r}")
    return loaded


def on_base(base: Loaded, system: System, delta: str) -> tuple[WorldModel, Any]:
    """The base's weights, frozen, with a fresh delta; and their config."""
    assert system.on_base is not None and system.build is not None
    config = system.on_base(base.config, (delta,))
    model = system.build(config)
    model.load_state_dict({system.base_name(name): value for name, value in base.model.state_dict().items()}, strict=False)
    return model.requires_grad_(False), config
