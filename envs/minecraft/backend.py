"""The interface of the engines behind `Minecraft-v0`, and the table of engines.

An engine runs one world at a time. Poses are float32 [5]: x, y, z of the feet in blocks with z up, yaw, pitch in radians. Boxes are in
whole blocks along the same axes. A step is 4 game ticks at 20 Hz. Actions are indices into wmgym.settings.minecraft.ACTIONS.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Pose = NDArray[np.float32]


class Backend(Protocol):
    """An engine: one world with one player."""

    field_of_view: float  # vertical, radians
    bounds: tuple[tuple[int, int, int], tuple[int, int, int]]  # the world: lowest cell, and one past the highest
    ending: str  # "terminated" or "truncated" if the engine ended the episode (the player died, for example), else ""

    def reset(self, seed: int, start: Pose | None) -> Pose:
        """Open the world of `seed` and stand at `start`, or where the engine chooses. ValueError if a body cannot stand at `start`."""
        ...

    def step(self, action: int) -> Pose:
        """One action, 4 ticks: the pose after it."""
        ...

    def render(self, height: int, width: int) -> NDArray[np.uint8]:
        """The first-person view: [height, width, 3]."""
        ...

    def solid(self, low: tuple[int, int, int], high: tuple[int, int, int]) -> NDArray[np.bool_]:
        """Which cells of the box from `low` to `high` (excluded) stop a body: [X, Y, Z]. Cells outside the world do."""
        ...

    def reachable(self, x: float, y: float) -> bool:
        """Whether (x, y) is open ground that a walker can be expected to reach."""
        ...

    def save(self) -> dict[str, Any]:
        """The whole running state, as numbers and arrays. `load` continues from it bit for bit."""
        ...

    def load(self, state: dict[str, Any]) -> Pose:
        """Continue from a value of `save`: its pose."""
        ...

    def close(self) -> None: ...


class Lanes(Protocol):
    """Many engines of one kind. One call moves all of them and one call renders them; the rest goes through `engines`."""

    engines: Sequence[Backend]

    def step(self, actions: NDArray[np.int64]) -> Pose:
        """One action per lane, [N]. A lane with a negative action does not move. Poses [N, 5]."""
        ...

    def render(self, height: int, width: int, lanes: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """The first-person views of some lanes, or of all: [n, height, width, 3]."""
        ...


class DepthBackend(Backend, Protocol):
    """An engine that also measures depth."""

    eyes: float  # blocks above the feet

    def depth(self, height: int, width: int) -> NDArray[np.float32]:
        """Depth of what `render` shows (wmgym.data.depth): [height, width], infinite in the sky."""
        ...


class BuildBackend(Backend, Protocol):
    """An engine in which blocks can be set."""

    def build(self, blocks: Mapping[tuple[int, int, int], str]) -> None:
        """Set cells (x, y, z) to blocks by name, or to "air"; the body stays where it is. ValueError if a cell or a name is unknown."""
        ...


class TickBackend(Backend, Protocol):
    """An engine that also takes a player's keys and camera, one game tick of 50 ms at a time."""

    def tick(self, pressed: Sequence[str], camera: tuple[float, float]) -> Pose:
        """Turn by `camera` (degrees down and to the right), then hold the keys `pressed` (of KEYS) for one tick."""
        ...


class TickLanes(Lanes, Protocol):
    """Lanes of such engines."""

    def tick(self, inputs: Sequence[tuple[Sequence[str], tuple[float, float]] | None]) -> Pose:
        """The arguments of `tick` for each lane's engine. A lane with None does not move. Poses [N, 5]."""
        ...


KEYS = ("forward", "back", "left", "right", "jump", "sneak", "sprint", "attack")  # of the action dict, by MineRL's names


class Engine(NamedTuple):
    """An entry of the table of engines. It can be read without importing the engine."""

    engine: str  # class of one engine, "module:class"
    lanes: str  # class of many
    options: tuple[str, ...] = ()  # the engine's own keywords
    action_modes: tuple[str, ...] = ("discrete",)
    saves: bool = True  # whether `save` and `load` work
    depth: bool = False  # whether it is a DepthBackend
    builds: bool = False  # whether it is a BuildBackend


ACTION_MODES = ("discrete", "minerl")
_VOXEL = "wmgym.envs.minecraft.voxel.engine"
_PRISMARINE = "wmgym.envs.minecraft.prismarine.engine"
_MINERL = "wmgym.envs.minecraft.minerl.engine"
_NODE = ("version", "view_distance", "heap", "timeout")
_SERVER = ("host", "port", "username", "realtime", *_NODE)
_JAVA = ("python", "family", "resolution", "timeout")
BACKENDS = {
    "voxel": Engine(f"{_VOXEL}:VoxelBackend", f"{_VOXEL}:VoxelLanes", depth=True, builds=True),
    "prismarine": Engine(f"{_PRISMARINE}:PrismarineBackend", f"{_PRISMARINE}:PrismarineLanes", ("world", *_NODE), ACTION_MODES),
    "server": Engine(f"{_PRISMARINE}:ServerBackend", f"{_PRISMARINE}:ServerLanes", _SERVER, ACTION_MODES, saves=False),
    "minerl": Engine(f"{_MINERL}:MineRLBackend", f"{_MINERL}:MineRLLanes", _JAVA, ACTION_MODES, saves=False),
}


def make_backend(name: str, **options: Any) -> Backend:
    """A new engine by name, with the engine's own options."""
    return _load(find_backend(name, options).engine)(**options)


def make_lanes(name: str, num_lanes: int, **options: Any) -> Lanes:
    """New lanes of an engine, by name."""
    return _load(find_backend(name, options).lanes)(num_lanes, **options)


def find_backend(name: str, options: Iterable[str] = ()) -> Engine:
    """The table's entry for an engine. ValueError if the name or an option is unknown."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; available: {', '.join(map(repr, BACKENDS))}")
    engine = BACKENDS[name]
    unknown = [option for option in options if option not in engine.options]
    if unknown:
        allowed = f"it takes {', '.join(engine.options)}" if engine.options else "it takes none"
        raise ValueError(f"backend {name!r} has no option {unknown[0]!r}; {allowed}")
    return engine


def check_keywords(env: type, options: Iterable[str]) -> None:
    """TypeError if one of the `options` given to the class `env` is an option of no engine. It names the keywords that there are."""
    engines = list(dict.fromkeys(option for engine in BACKENDS.values() for option in engine.options))
    unknown = [option for option in options if option not in engines]
    if unknown:
        own = [name for name, each in inspect.signature(env).parameters.items() if each.kind is not each.VAR_KEYWORD]
        known = f"it takes {', '.join(own)}, and of its backends {', '.join(engines)}"
        raise TypeError(f"{env.__name__} got an unexpected keyword argument {unknown[0]!r}; {known}")


def check_action_mode(name: str, mode: str) -> str:
    """The action mode. ValueError if it is unknown, or if the engine called `name` does not support it."""
    if mode not in ACTION_MODES:
        raise ValueError(f"unknown action_mode {mode!r}; available: {', '.join(map(repr, ACTION_MODES))}")
    if mode not in find_backend(name).action_modes:
        able = ", ".join(repr(other) for other, engine in BACKENDS.items() if mode in engine.action_modes)
        raise ValueError(f"action_mode={mode!r} needs one of the backends {able}, got backend={name!r}")
    return mode


def _load(path: str) -> Any:
    module, _, cls = path.partition(":")
    return getattr(import_module(module), cls)
