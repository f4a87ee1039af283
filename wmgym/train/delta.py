"""What trainings of a delta on a video network share: the option that names the base, the model that they start from, the optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wmgym.checkpoint import Loaded, load, resolve
from wmgym.systems import System
from wmgym.train.run import RunArgs
from wmgym.world_model import WorldModel

GATE_RATE = 20.0  # times the learning rate of the rest


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


def optimiser(delta: nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW. A step moves a weight by about its rate, so gates, which go from 0 to about 1, have a higher one."""
    named = list(delta.named_parameters())
    gates = [weight for name, weight in named if name.rsplit(".", 1)[-1] == "gate"]
    rest = [weight for name, weight in named if name.rsplit(".", 1)[-1] != "gate"]
    groups: list[dict[str, Any]] = [{"params": rest}, *([{"params": gates, "lr": GATE_RATE * rate}] if gates else [])]
    return torch.optim.AdamW(groups, rate, betas=(0.9, 0.95), weight_decay=0.0)
