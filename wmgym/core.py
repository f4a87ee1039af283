"""The nouns of wmgym and the Protocols between its parts. Read this file first.

One word per concept, everywhere:

frame      what is seen: uint8 `[H, W, 3]` in Gymnasium, float in [-1, 1] `[B, T, C, H, W]` inside the library
latent     what the autoencoder makes of a frame: `[B, T, C, h, w]`, normalised to unit scale
pose       x, y, z in metres (blocks in Minecraft), yaw and pitch in radians: float32 `[5]` (axes: `geometry.py`)
action     what the agent chose, in the env's own action space
egomotion  the change of pose seen in the agent's own frame: forward, left, up, turn, tilt
chunk      the F frames that one generation makes (one world step)
context    what a memory gives the network to read
lane, row  one of the B worlds that live side by side in a batch; no row ever affects another
slot       one place in a memory

A running world is a value: a `WorldState` is never edited where a caller can see it, so a planner can branch it, a
vector env can reset some of its rows, and a bug can be replayed. Batch is always axis 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor

M = TypeVar("M")


@dataclass(frozen=True)
class Clip:
    """Observed frames: frame t is what was seen *after* action t.

    Rows may be of different lengths: they are aligned at the end, and `valid` marks what is there.
    """

    frames: Tensor  # uint8 [B, T, H, W, 3]
    actions: Tensor  # [B, T] or [B, T, A]
    poses: Tensor  # float32 [B, T, 5]
    valid: Tensor  # bool [B, T]


@dataclass(frozen=True)
class Query:
    """Where and when the next chunk will be seen from; poses are what the kinematics expect, before any correction."""

    poses: Tensor  # float32 [B, F, 5]
    times: Tensor  # int64 [B, F]: index of the frame since the first context frame


@dataclass(frozen=True)
class KeysValues:
    """Keys and values of frames in one attention layer, keys not rotated by any temporal position."""

    keys: Tensor  # [B, S, N, heads, d]: S frames of N tokens
    values: Tensor  # [B, S, N, heads, d]


@dataclass(frozen=True)
class Seen:
    """A chunk of frames that happened, imagined or real: what a memory may write down."""

    latents: Tensor  # [B, F, C, h, w]
    poses: Tensor  # float32 [B, F, 5]
    times: Tensor  # int64 [B, F]
    actions: Tensor  # [B, F] or [B, F, A]
    valid: Tensor  # bool [B, F]
    kv: tuple[KeysValues, ...] | None = None  # one per layer, when the memory asked for them


@dataclass(frozen=True)
class ContextFrames:
    """A group of remembered frames shown to the network at one compression level.

    Level l means that a token covers 2**l times the base patch's side, so the group costs 4**l times fewer tokens a frame.
    """

    latents: Tensor  # [B, n, C, h, w]
    offsets: Tensor  # [B, n]: how many steps before the target frame, > 0
    relative: Tensor  # [B, n, 5]: the frame's pose as seen from the target's pose (`geometry.relative_pose`)
    valid: Tensor  # bool [B, n]
    level: int = 0


@dataclass(frozen=True)
class ContextKV:
    """Keys and values remembered from earlier passes of the network, with the positions they shall be read at."""

    layers: tuple[KeysValues, ...]
    offsets: Tensor  # [B, S]: temporal position before the target frame; a rank position need not be a true age
    valid: Tensor  # bool [B, S]


@dataclass(frozen=True)
class Recall:
    """Which frames a memory chose for the next chunk: for `info`, plots and tests."""

    indices: Tensor  # int64 [B, R]: index since the first context frame, padded with -1
    scores: Tensor  # float32 [B, R]: log scores, padded with -inf


@dataclass(frozen=True)
class Context:
    """The one thing a memory hands the network: a field for each way of remembering. Empty fields are absent."""

    frames: tuple[ContextFrames, ...] = ()
    kv: ContextKV | None = None
    recall: Recall | None = None


@dataclass(frozen=True)
class Footprint:
    """What a memory holds, per row."""

    frames: Tensor  # int64 [B]
    bytes: Tensor  # int64 [B]: what one row would need if it shared nothing


@dataclass(frozen=True)
class WorldState:
    """A running world: everything that the next frame depends on."""

    latents: Tensor  # [B, F, C, h, w]: the newest chunk
    poses: Tensor  # float32 [B, 5]
    times: Tensor  # int64 [B]: index of the newest frame, counted from the first context frame
    keys: Tensor  # int64 [B, 2]: one random key per row
    memories: tuple[Any, ...]  # one state per memory of the world
    recall: Recall
    footprint: Footprint


@dataclass(frozen=True)
class Frames:
    """What one world step shows."""

    pixels: Tensor  # uint8 [B, F, H, W, 3]
    poses: Tensor  # float32 [B, F, 5]: the pose after each frame of the chunk
    rewards: Tensor | None = None  # float32 [B, F]: from a reward head, for worlds whose reward is in the pixels
    ends: Tensor | None = None  # bool [B, F]
    perf: dict[str, float] = field(default_factory=dict)  # network evaluations and the like; never in `info`


class Memory(Protocol[M]):
    """How a world remembers. A memory is stateless: what it remembers is the value `M`, batch first."""

    @property
    def needs_kv(self) -> bool:
        """Whether it wants the network's own keys and values of each frame seen."""
        ...

    @property
    def slots(self) -> int:
        """How many indices its `Recall` holds (0: none)."""
        ...

    def init(self, batch: int) -> M:
        """An empty memory of `batch` rows."""
        ...

    def read(self, memory: M, query: Query) -> Context:
        """What the network shall look at to make the frames at `query`."""
        ...

    def write(self, memory: M, seen: Seen) -> M:
        """A new memory that also holds `seen`; the old one is still good."""
        ...

    def footprint(self, memory: M) -> Footprint:
        """How much is remembered."""
        ...


class World(Protocol):
    """A world that can be walked in: the only thing that Gymnasium shells, planners and benchmarks see."""

    chunk: int  # frames per step
    frame_shape: tuple[int, int, int]  # H, W, 3

    @property
    def device(self) -> Any:
        """Where its tensors live."""
        ...

    def start(self, context: Clip, keys: Tensor) -> WorldState:
        """A new world of B rows that remembers `context`; `keys` int64 [B, 2] seed each row's noise."""
        ...

    def observe(self, state: WorldState, seen: Clip) -> WorldState:
        """The same world after real frames were seen."""
        ...

    def step(self, state: WorldState, actions: Tensor) -> tuple[WorldState, Frames]:
        """One chunk: actions `[B, F]` (or `[B, F, A]`) -> the state after it, and the frames. `state` is still good."""
        ...
