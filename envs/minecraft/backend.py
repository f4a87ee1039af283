"""The one interface behind `Minecraft-v0`, and the engines that satisfy it.

An engine runs one world at a time. Poses are float32 [5] as everywhere (x, y, z of the feet in blocks, z up, yaw, pitch); boxes are
in whole blocks along the same axes. A step is 4 game ticks at 20 Hz; actions are numbered as wmgym.settings.minecraft.ACTIONS.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Pose = NDArray[np.float32]


class Backend(Protocol):
    field_of_view: float  # vertical, radians
    bounds: tuple[tuple[int, int, int], tuple[int, int, int]]  # the world: lowest cell, and one past the highest
    ending: str  # whether the engine itself has ended the episode, as a game does when the player dies: "", "terminated" or "truncated"

    def reset(self, seed: int, start: Pose | None) -> Pose:
        """Open the world of `seed` and stand on `start`, or on a place of the engine's choice. ValueError if nobody can stand there."""
        ...

    def step(self, action: int) -> Pose: ...

    def render(self, height: int, width: int) -> NDArray[np.uint8]:
        """What the eyes see: [height, width, 3]."""
        ...

    def solid(self, low: tuple[int, int, int], high: tuple[int, int, int]) -> NDArray[np.bool_]:
        """Which cells of the box from `low` up to, not including, `high` stop a body: [X, Y, Z]. Outside of the world all do."""
        ...

    def reachable(self, x: float, y: float) -> bool:
        """Whether a walker may be expected to get to this place, on open ground."""
        ...

    def save(self) -> dict[str, Any]:
        """All of the running state, as numbers and arrays; `load` continues from it bit for bit."""
        ...

    def load(self, state: dict[str, Any]) -> Pose: ...

    def close(self) -> None: ...


class Lanes(Protocol):
    """Many engines of one kind, moved and drawn by one call each; all else is asked of the engine of a lane."""

    engines: Sequence[Backend]

    def step(self, actions: NDArray[np.int64]) -> Pose:
        """One action per lane, [N]; a lane with a negative one stays as it is. Poses [N, 5]."""
        ...

    def render(self, height: int, width: int, lanes: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """What the eyes see, in some lanes or in all: [n, height, width, 3]."""
        ...


class TickBackend(Backend, Protocol):
    """An engine that also takes what a player's hands do, one game tick of 50 ms at a time."""

    def tick(self, pressed: Sequence[str], camera: tuple[float, float]) -> Pose:
        """Hold the keys `pressed` (of KEYS) for one tick, after turning by `camera`: degrees down and to the right."""
        ...


class TickLanes(Lanes, Protocol):
    """Lanes of such engines."""

    def tick(self, hands: Sequence[tuple[Sequence[str], tuple[float, float]] | None]) -> Pose:
        """What `tick` of each lane's engine is told; a lane with None stays as it is. Poses [N, 5]."""
        ...


KEYS = ("forward", "back", "left", "right", "jump", "sneak", "sprint", "attack")  # of the action dict, as MineRL names them


class Engine(NamedTuple):
    """What is known of an engine without importing it."""

    engine: str  # "module:class"
    lanes: str
    options: tuple[str, ...] = ()  # keywords of its own
    action_modes: tuple[str, ...] = ("discrete",)
    saves: bool = True  # whether `save` and `load` work


ACTION_MODES = ("discrete", "minerl")
_VOXEL = "wmgym.envs.minecraft.voxel.engine"
_PRISMARINE = "wmgym.envs.minecraft.prismarine.engine"
_MINERL = "wmgym.envs.minecraft.minerl.engine"
_NODE = ("version", "view_distance", "heap", "timeout")
_SERVER = ("host", "port", "username", "realtime", *_NODE)
_JAVA = ("python", "family", "resolution", "timeout")
BACKENDS = {
    "voxel": Engine(f"{_VOXEL}:VoxelBackend", f"{_VOXEL}:VoxelLanes"),
    "prismarine": Engine(f"{_PRISMARINE}:PrismarineBackend", f"{_PRISMARINE}:PrismarineLanes", ("world", *_NODE), ACTION_MODES),
    "server": Engine(f"{_PRISMARINE}:ServerBackend", f"{_PRISMARINE}:ServerLanes", _SERVER, ACTION_MODES, saves=False),
    "minerl": Engine(f"{_MINERL}:MineRLBackend", f"{_MINERL}:MineRLLanes", _JAVA, ACTION_MODES, saves=False),
}


def make_backend(name: str, **options: Any) -> Backend:
    """The engine called `name`, with its own options."""
    return _load(find_backend(name, options).engine)(**options)


def make_lanes(name: str, num_lanes: int, **options: Any) -> Lanes:
    """Lanes of the engine called `name`."""
    return _load(find_backend(name, options).lanes)(num_lanes, **options)


def find_backend(name: str, options: Iterable[str] = ()) -> Engine:
    """What is known of the engine called `name`; ValueError if there is none, or if it has no such options."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; available: {', '.join(map(repr, BACKENDS))}")
    engine = BACKENDS[name]
    unknown = [option for option in options if option not in engine.options]
    if unknown:
        allowed = f"it takes {', '.join(engine.options)}" if engine.options else "it takes none"
        raise ValueError(f"backend {name!r} has no option {unknown[0]!r}; {allowed}")
    return engine


def check_action_mode(name: str, mode: str) -> str:
    """The way actions are given, if the engine called `name` takes it."""
    if mode not in ACTION_MODES:
        raise ValueError(f"unknown action_mode {mode!r}; available: {', '.join(map(repr, ACTION_MODES))}")
    if mode not in find_backend(name).action_modes:
        able = ", ".join(repr(other) for other, engine in BACKENDS.items() if mode in engine.action_modes)
        raise ValueError(f"action_mode={mode!r} needs one of the backends {able}, got backend={name!r}")
    return mode


def _load(path: str) -> Any:
    module, _, cls = path.partition(":")
    return getattr(import_module(module), cls)
