"""The nouns of wmgym and the Protocols between its parts. Read this file first.

One word per concept, everywhere:

frame      what is seen: uint8 `[H, W, 3]` in Gymnasium, float in [-1, 1] `[B, T, C, H, W]` inside the library
latent     what the autoencoder makes of a frame: `[B, T, C, h, w]`, normalised to unit scale
pose       x, y, z in metres (blocks in Minecraft), yaw and pitch in radians: float32 `[5]` (axes: `geometry.py`)
action     what the agent chose, in the env's own action space
egomotion  the change of pose seen in the agent's own frame: forward, left, up, turn, tilt
chunk      the F frames that one generation makes (one world step)
opening    the frames that an episode starts with
context    what a memory gives the network to read
retrieval  which frames a memory chose
slot       one place in a memory
state      a value that changes over time: of a world, of a memory, of an env
setting    where an env plays: minecraft, memory_maze, memory_cards, recon (`settings/`)
system     a network with its memories and its training: worldpack, nwm, ... (`systems/`)
lane, row  one of the B worlds that run side by side in a batch; no row ever affects another

A running world is a value: a `WorldState` is never edited where a caller can see it, so a planner can branch it, a
vector env can reset some of its rows, and a bug can be replayed. Batch is always axis 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from wmgym.geometry import relative_pose

M = TypeVar("M")


# -- what happens in a world ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """Observed frames: frame t is what was seen *after* action t.

    Rows may have different lengths: they are aligned at the end, and `valid` marks the frames that exist.
    """

    frames: Tensor  # uint8 [B, T, H, W, 3]
    actions: Tensor  # [B, T] or [B, T, A]
    poses: Tensor  # float32 [B, T, 5]
    valid: Tensor  # bool [B, T]


@dataclass(frozen=True)
class Query:
    """Where and when the next chunk will be seen from. Poses are what the kinematics expect, before any correction."""

    poses: Tensor  # float32 [B, F, 5]
    times: Tensor  # int64 [B, F]: index of the frame, counted from the first frame of the opening


@dataclass(frozen=True)
class Condition:
    """What the frames of a chunk must show, apart from the noise level and the contexts."""

    actions: Tensor  # int64 [B, F], or float32 [B, F, A]
    egomotion: Tensor  # float32 [B, F, 5]: the motion that leads to each frame
    poses: Tensor  # float32 [B, F, 5]: absolute
    times: Tensor  # int64 [B, F]
    start: Tensor  # float32 [B, 5]: pose of the frame before the chunk
    origin: Tensor  # float32 [B, 5]: reference for absolute positions, the pose at the end of the opening

    @property
    def relative(self) -> Tensor:
        """Each pose as seen from the chunk's first: [B, F, 5]."""
        return relative_pose(self.poses, self.poses[:, :1])

    @property
    def pitch(self) -> Tensor:
        """Pitch of the chunk's first pose: [B]."""
        return self.poses[:, 0, 4]

    def at(self, poses: Tensor) -> Condition:
        """The same chunk at other poses [B, F, 5], with the egomotion that leads from one to the next."""
        before = torch.cat([self.start[:, None], poses[:, :-1]], 1)
        return replace(self, poses=poses, egomotion=relative_pose(poses, before))


@dataclass(frozen=True)
class KeysValues:
    """Keys and values of frames in one attention layer, keys not rotated by any temporal position."""

    keys: Tensor  # [B, S, N, heads, d]: S frames of N tokens
    values: Tensor  # [B, S, N, heads, d]


@dataclass(frozen=True)
class Trace:
    """What one clean pass of the network leaves behind for memories that keep the network's own activations."""

    kv: tuple[KeysValues, ...] = ()  # one per layer, of the chunk's F frames
    state: Any = None  # recurrent state after the chunk, batch first


@dataclass(frozen=True)
class FramePayload:
    """What is kept of frames beside their poses and times."""

    latents: Tensor  # [..., C, h, w]
    actions: Tensor  # int64 [...] or float32 [..., A]
    egomotion: Tensor  # float32 [..., 5]: the motion that led to each frame
    observed: Tensor  # bool [...]: True for real frames, False for dreamed ones


@dataclass(frozen=True)
class Seen:
    """A chunk of frames that a memory may store, dreamed or observed."""

    latents: Tensor  # [B, F, C, h, w]
    poses: Tensor  # float32 [B, F, 5]
    times: Tensor  # int64 [B, F]
    actions: Tensor  # [B, F] or [B, F, A]
    egomotion: Tensor  # float32 [B, F, 5]: the motion that led to each frame
    valid: Tensor  # bool [B, F]
    observed: Tensor  # bool [B, F]: True for real frames, False for dreamed ones
    trace: Trace | None = None  # for memories that `need` a part of it

    @property
    def payload(self) -> FramePayload:
        return FramePayload(self.latents, self.actions, self.egomotion, self.observed)


# -- what a memory hands to the network -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ContextFrames:
    """A group of remembered frames shown to the network at one compression level.

    At level l a token covers 2**l times the base patch's side, so a frame costs 4**l times fewer tokens.
    """

    latents: Tensor  # [B, n, C, h, w]
    offsets: Tensor  # [B, n]: how many steps before the target frame, > 0
    relative: Tensor  # [B, n, 5]: the frame's pose as seen from the target's pose (`geometry.relative_pose`)
    valid: Tensor  # bool [B, n]
    actions: Tensor  # [B, n] or [B, n, A]: the action that led to the frame
    egomotion: Tensor  # float32 [B, n, 5]
    poses: Tensor  # float32 [B, n, 5]: absolute
    times: Tensor  # int64 [B, n]
    level: int = 0


@dataclass(frozen=True)
class ContextKV:
    """Keys and values from earlier passes of the network, with the positions at which to read them."""

    layers: tuple[KeysValues, ...]
    offsets: Tensor  # [B, S]: temporal position before the target frame; a rank position need not be the true age
    valid: Tensor  # bool [B, S]
    poses: Tensor | None = None  # float32 [B, S, 5]: where each frame was seen from


@dataclass(frozen=True)
class ContextTokens:
    """Tokens that a memory computed itself, such as compressed or rendered history."""

    tokens: Tensor  # [B, M, D]
    offsets: Tensor  # [B, M]: temporal position before the target frame
    valid: Tensor  # bool [B, M]


@dataclass(frozen=True)
class Adapters:
    """Low-rank changes of a network's linear layers, one set per row (LoRA, Hu et al. 2021)."""

    layers: Mapping[str, tuple[Tensor, Tensor]]  # layer's name -> down [B, r, in], up [B, out, r]
    version: Tensor  # int64 [B]: counts the updates; keys made under one version are never read under another


@dataclass(frozen=True)
class Retrieval:
    """Which frames a memory chose for the next chunk: for `info`, plots and tests."""

    indices: Tensor  # int64 [B, R]: index counted from the first frame of the opening, padded with -1
    scores: Tensor  # float32 [B, R]: log scores, padded with -inf


@dataclass(frozen=True)
class Context:
    """The one thing a memory hands the network: a field for each way of remembering. Empty fields are absent."""

    frames: tuple[ContextFrames, ...] = ()
    kv: ContextKV | None = None
    tokens: ContextTokens | None = None
    adapters: Adapters | None = None
    state: Any = None  # recurrent state, batch first
    retrieval: Retrieval | None = None


@dataclass(frozen=True)
class Footprint:
    """What a memory holds, per row."""

    frames: Tensor  # int64 [B]
    bytes: Tensor  # int64 [B]: what one row would need if it shared nothing


# -- worlds ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorldState:
    """A running world: everything that the next frame depends on."""

    latents: Tensor  # [B, F, C, h, w]: the newest chunk
    poses: Tensor  # float32 [B, 5]
    times: Tensor  # int64 [B]: index of the newest frame, counted from the first frame of the opening
    keys: Tensor  # int64 [B, 2]: one random key per row
    origin: Tensor  # float32 [B, 5]: pose at the end of the opening
    memories: tuple[Any, ...]  # one state per memory of the world
    retrieval: Retrieval
    footprint: Footprint


@dataclass(frozen=True)
class Frames:
    """What one world step shows."""

    pixels: Tensor  # uint8 [B, F, H, W, 3]
    poses: Tensor  # float32 [B, F, 5]: the pose after each frame of the chunk
    rewards: Tensor | None = None  # float32 [B, F]: from a reward head, for worlds whose reward is in the pixels
    ends: Tensor | None = None  # bool [B, F]
    perf: dict[str, float] = field(default_factory=dict)  # network evaluations and the like; never in `info`
    finite: Tensor | None = None  # bool [B]: no latent, pixel or pose of the row was NaN or infinite; None: not known

    def check(self) -> None:
        """Raise `FloatingPointError` naming the rows whose frames or poses are not finite. Waits for the device."""
        finite = self.poses.isfinite().all(-1).all(-1)
        finite = finite if self.finite is None else finite & self.finite
        broken = torch.nonzero(~finite).flatten().tolist()
        if broken:
            raise FloatingPointError(f"lanes {broken}: the world made frames or poses that are not finite; its weights may be damaged")


# -- the parts ------------------------------------------------------------------------------------------------------------------------


class Bound(Protocol):
    """A network with condition and contexts fixed: everything that does not depend on the noise level is already computed."""

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        """Noisy latents [B, F, C, h, w] and noise levels [B] -> the network's prediction."""
        ...

    def trace(self, latents: Tensor, poses: Tensor) -> Trace:
        """One clean pass over latents [B, F, C, h, w] at the poses [B, F, 5] that will be remembered."""
        ...


class Network(Protocol):
    """What a world's frames are made with."""

    @property
    def predicts(self) -> str:
        """ "velocity" (rectified flow) or "noise" (DDPM)."""
        ...

    @property
    def chunk(self) -> int:
        """F, the frames made at a time."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C, h, w of one frame."""
        ...

    def bind(self, condition: Condition, contexts: tuple[Context, ...]) -> Bound:
        """Compute once per env step what stays the same while the noise level falls. One context per memory, in their order."""
        ...

    def matrices(self) -> Iterable[Parameter]:
        """The parameters that Muon optimises: matrices between hidden layers."""
        ...


class Memory(Protocol[M]):
    """How a world remembers. A memory has no parameters and no state: what it remembers is the value `M`, batch first."""

    @property
    def needs(self) -> frozenset[str]:
        """Fields of `Trace` that it wants of each chunk: "kv", "state"."""
        ...

    @property
    def num_retrieved(self) -> int:
        """How many indices its `Retrieval` holds (0: it retrieves nothing)."""
        ...

    def init(self, batch: int, keys: Tensor) -> M:
        """An empty memory of `batch` rows. A memory that draws at random does so from its row's key (int64 [B, 2])."""
        ...

    def read(self, memory: M, query: Query) -> Context:
        """What the network will look at to make the frames at `query`."""
        ...

    def write(self, memory: M, seen: Seen) -> M:
        """A new memory that also holds `seen`; the old one stays valid. May take gradient steps; rows stay independent."""
        ...

    def footprint(self, memory: M) -> Footprint:
        """How much is remembered."""
        ...


class WindowLoss(Protocol):
    """A system's training loss on windows of consecutive frames: what a memory minimises when it fits adapters."""

    def __call__(self, window: Seen, keys: Tensor, adapters: Adapters | None) -> Tensor:
        """Loss of each row, float32 [B]; noise and levels are drawn from `keys` (int64 [B, 2])."""
        ...


class World(Protocol):
    """A world that can be walked in: the only thing that Gymnasium envs, planners and benchmarks see."""

    chunk: int  # frames per step
    frame_shape: tuple[int, int, int]  # H, W, 3

    @property
    def device(self) -> Any:
        """Where its tensors live."""
        ...

    def start(self, opening: Clip, keys: Tensor) -> WorldState:
        """A new world of B rows that remembers `opening`; `keys` int64 [B, 2] seed each row's noise."""
        ...

    def observe(self, state: WorldState, seen: Clip) -> WorldState:
        """The same world after real frames were seen."""
        ...

    def step(self, state: WorldState, actions: Tensor) -> tuple[WorldState, Frames]:
        """One chunk: actions `[B, F]` (or `[B, F, A]`) -> the state after it, and the frames. `state` stays valid."""
        ...
