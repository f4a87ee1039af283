"""The nouns of wmgym and the Protocols between its parts. Read this file first.

One word per concept, everywhere:

frame      what is seen: uint8 `[H, W, 3]` in Gymnasium, float in [-1, 1] `[B, T, C, H, W]` inside the library
latent     a frame encoded by the autoencoder: `[B, T, C, h, w]`, normalised to unit scale
pose       x, y, z in metres (blocks in Minecraft), yaw and pitch in radians: float32 `[5]` (axes: `geometry.py`)
action     what the agent chose, in the env's own action space
egomotion  the change of pose in the agent's own frame of reference: forward, left, up, turn, tilt
chunk      the F frames generated together in one world step
opening    the frames that an episode starts with
context    what a memory gives the network to read
retrieval  which frames a memory chose
slot       one place in a memory
state      a value that changes over time: of a world, of a memory, of an env
setting    the kind of world: minecraft, memory_maze, memory_cards, recon (`settings/`)
system     a network with its memories and its training: worldpack, nwm, ... (`systems/`)
lane, row  one of the B worlds in a batch; rows never affect each other

A running world is a value: a `WorldState` is never edited in place where a caller can see it. So a planner can branch it, a vector env
can reset some of its rows, and a bug can be replayed. Batch is always axis 0.
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
    """Poses and times of the frames to generate. The poses are those that the kinematics expect, before any correction."""

    poses: Tensor  # float32 [B, F, 5]
    times: Tensor  # int64 [B, F]: index of the frame, counted from the first frame of the opening


@dataclass(frozen=True)
class Condition:
    """The inputs that a chunk is generated from, apart from noise, noise level and contexts."""

    actions: Tensor  # int64 [B, F], or float32 [B, F, A]
    egomotion: Tensor  # float32 [B, F, 5]: the motion that leads to each frame
    poses: Tensor  # float32 [B, F, 5]: absolute
    times: Tensor  # int64 [B, F]
    start: Tensor  # float32 [B, 5]: pose of the frame before the chunk
    origin: Tensor  # float32 [B, 5]: reference for absolute positions, the pose at the end of the opening

    @property
    def relative(self) -> Tensor:
        """Each pose relative to the chunk's first: [B, F, 5]."""
        return relative_pose(self.poses, self.poses[:, :1])

    @property
    def pitch(self) -> Tensor:
        """Pitch of the chunk's first pose: [B]."""
        return self.poses[:, 0, 4]

    def at(self, poses: Tensor) -> Condition:
        """The same chunk at other poses [B, F, 5], with the egomotion between consecutive poses."""
        before = torch.cat([self.start[:, None], poses[:, :-1]], 1)
        return replace(self, poses=poses, egomotion=relative_pose(poses, before))


@dataclass(frozen=True)
class KeysValues:
    """Keys and values of frames in one attention layer. Keys are stored before the rotation by temporal position."""

    keys: Tensor  # [B, S, N, heads, d]: S frames of N tokens
    values: Tensor  # [B, S, N, heads, d]


@dataclass(frozen=True)
class Trace:
    """Activations of one pass of the network over clean latents, for memories that store activations."""

    kv: tuple[KeysValues, ...] = ()  # one per layer, of the chunk's F frames
    state: Any = None  # recurrent state after the chunk, batch first


@dataclass(frozen=True)
class FramePayload:
    """What a `Bank` stores of frames, in addition to poses and times."""

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
    trace: Trace | None = None  # for memories whose `needs` is not empty

    @property
    def payload(self) -> FramePayload:
        return FramePayload(self.latents, self.actions, self.egomotion, self.observed)


# -- what a memory gives the network -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ContextFrames:
    """A group of remembered frames at one compression level.

    At level l a token covers a patch whose side is 2**l times the base patch's, so a frame has 4**l times fewer tokens.
    """

    latents: Tensor  # [B, n, C, h, w]
    offsets: Tensor  # [B, n]: steps before the target frame, > 0
    relative: Tensor  # [B, n, 5]: the frame's pose relative to the target's (`geometry.relative_pose`)
    valid: Tensor  # bool [B, n]
    actions: Tensor  # [B, n] or [B, n, A]: the action that led to the frame
    egomotion: Tensor  # float32 [B, n, 5]
    poses: Tensor  # float32 [B, n, 5]: absolute
    times: Tensor  # int64 [B, n]
    level: int = 0
    gains: Tensor | None = None  # [B, n]: factors on the values of a frame's tokens; None: 1


@dataclass(frozen=True)
class ContextKV:
    """Keys and values from earlier passes of the network, with their temporal positions."""

    layers: tuple[KeysValues, ...]
    offsets: Tensor  # [B, S]: temporal position before the target frame; may differ from the true age
    valid: Tensor  # bool [B, S]
    poses: Tensor | None = None  # float32 [B, S, 5]: pose of each frame
    moves: tuple[Tensor, ...] = ()  # what led to each frame, where a memory keeps it: actions [B, S] or [B, S, A], egomotion [B, S, 5]


@dataclass(frozen=True)
class ContextTokens:
    """Tokens that a memory computed itself, such as compressed or rendered history."""

    tokens: Tensor  # [B, M, D]
    offsets: Tensor  # [B, M]: temporal position before the target frame
    valid: Tensor  # bool [B, M]


@dataclass(frozen=True)
class Adapters:
    """Low-rank updates of a network's linear layers, one set per row (LoRA, Hu et al. 2021)."""

    layers: Mapping[str, tuple[Tensor, Tensor]]  # layer's name -> down [B, r, in], up [B, out, r]
    version: Tensor  # int64 [B]: number of updates; keys computed with one version are never read with another


@dataclass(frozen=True)
class Retrieval:
    """Which frames a memory chose for the next chunk: for `info`, plots and tests."""

    indices: Tensor  # int64 [B, R]: index counted from the first frame of the opening, padded with -1
    scores: Tensor  # float32 [B, R]: log scores, padded with -inf


@dataclass(frozen=True)
class Context:
    """What a memory gives the network: one field for each way of remembering. A field that a memory does not use is empty or None."""

    frames: tuple[ContextFrames, ...] = ()
    kv: ContextKV | None = None
    tokens: ContextTokens | None = None
    adapters: Adapters | None = None
    state: Any = None  # recurrent state, batch first
    retrieval: Retrieval | None = None
    routing: int | None = None  # past frames that each query reads, those most similar to it (`nets/routing.py`); None: all
    role: Any = None  # for a network that combines several: which of them reads this context, and with which weight


@dataclass(frozen=True)
class Footprint:
    """What a memory holds, per row."""

    frames: Tensor  # int64 [B]
    bytes: Tensor  # int64 [B]: size of a row without any sharing between rows


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
    """Output of one world step."""

    pixels: Tensor  # uint8 [B, F, H, W, 3]
    poses: Tensor  # float32 [B, F, 5]: the pose after each frame of the chunk
    rewards: Tensor | None = None  # float32 [B, F]: predicted by a reward head; None without one
    ends: Tensor | None = None  # bool [B, F]: episode ends predicted by a reward head
    perf: dict[str, float] = field(default_factory=dict)  # counts such as network evaluations; not part of `info`
    finite: Tensor | None = None  # bool [B]: False where a latent, pixel or pose was NaN or infinite; None: not checked

    def check(self) -> None:
        """Raise `FloatingPointError` that names the rows with frames or poses that are not finite. Waits for the device."""
        finite = self.poses.isfinite().all(-1).all(-1)
        finite = finite if self.finite is None else finite & self.finite
        broken = torch.nonzero(~finite).flatten().tolist()
        if broken:
            raise FloatingPointError(f"lanes {broken}: the world generated frames or poses that are not finite; its weights may be damaged")


# -- the parts ------------------------------------------------------------------------------------------------------------------------


class Bound(Protocol):
    """A network with fixed condition and contexts: everything that does not depend on the noise level is already computed."""

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        """Noisy latents [B, F, C, h, w] and noise levels [B] -> the network's prediction."""
        ...

    def trace(self, latents: Tensor, poses: Tensor) -> Trace:
        """One pass over clean latents [B, F, C, h, w] at the poses [B, F, 5] that will be stored."""
        ...


class Network(Protocol):
    """Predicts the denoising direction of a chunk of frames."""

    @property
    def predicts(self) -> str:
        """ "velocity" (rectified flow) or "noise" (DDPM)."""
        ...

    @property
    def chunk(self) -> int:
        """F, the frames generated together."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C, h, w of one frame."""
        ...

    def bind(self, condition: Condition, contexts: tuple[Context, ...]) -> Bound:
        """Compute once per env step what does not depend on the noise level. One context per memory, in the memories' order."""
        ...

    def matrices(self) -> Iterable[Parameter]:
        """The parameters that Muon optimises: matrices between hidden layers."""
        ...


class Memory(Protocol[M]):
    """How a world remembers. The object has no parameters and no state; what is remembered is the value `M`, batch first."""

    @property
    def needs(self) -> frozenset[str]:
        """Fields of `Trace` that `write` needs of each chunk: "kv", "state"."""
        ...

    @property
    def num_retrieved(self) -> int:
        """Number of indices in its `Retrieval` (0: it retrieves nothing)."""
        ...

    def init(self, batch: int, keys: Tensor) -> M:
        """An empty memory of `batch` rows. Random numbers come from each row's key (int64 [B, 2])."""
        ...

    def read(self, memory: M, query: Query) -> Context:
        """The context for generating the frames at `query`. It waits for no device, so that a step can be captured (`captured.py`)."""
        ...

    def write(self, memory: M, seen: Seen) -> M:
        """A new memory that also contains `seen`; the old one stays valid. It may run gradient steps; rows stay independent."""
        ...

    def footprint(self, memory: M) -> Footprint:
        """Size of what is remembered."""
        ...


class WindowLoss(Protocol):
    """A system's training loss on windows of consecutive frames. A memory that fits adapters minimises it."""

    def __call__(self, window: Seen, origin: Tensor, keys: Tensor, adapters: Adapters | None) -> Tensor:
        """Loss of each row, float32 [B]; noise and levels are drawn from `keys` (int64 [B, 2]). origin: as in `Condition`.

        With S sets of adapters the first B / S rows use the first set, and so on.
        """
        ...


class World(Protocol):
    """A world that an agent can act in: the only interface that Gymnasium envs, planners and benchmarks use."""

    chunk: int  # frames per step
    frame_shape: tuple[int, int, int]  # H, W, 3

    @property
    def device(self) -> Any:
        """Device of its tensors."""
        ...

    def start(self, opening: Clip, keys: Tensor) -> WorldState:
        """A new world of B rows that remembers `opening`; `keys` int64 [B, 2] seed each row's noise."""
        ...

    def observe(self, state: WorldState, seen: Clip) -> WorldState:
        """Add real frames to the memories; the last one becomes the newest frame."""
        ...

    def step(self, state: WorldState, actions: Tensor) -> tuple[WorldState, Frames]:
        """Generate one chunk: actions `[B, F]` (or `[B, F, A]`) -> the next state and the frames. `state` stays valid."""
        ...
