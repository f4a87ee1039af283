"""A dreamed step as a CUDA graph: thousands of kernels are started at once. One by one they take longer to start than to run.

    state, action --copied in--> fixed inputs --graph: read, sample, decode--> fixed outputs --copied out--> chunk --memories write--> state

A graph repeats the kernels of one call on the same addresses. So inputs are copied to fixed tensors, and outputs are copied from fixed
tensors. A state stays good, however often the world steps from it. One graph is kept for each kind of state. The kind is the shapes of the
state's tensors (which depend on the number of lanes and on the sizes of the memories), and all its values that are not tensors. Two
numbers are treated differently, since they change often, and what a lane reads may not depend on them (`tree.py`): a `HighWater` is no
part of the kind, and the number of rows of a `Shared` store is rounded up to a power of 2.

`start`, `observe` and the memories' `write` are not captured. The kernels of `write` depend on a `HighWater`, and it waits for the device
where the tail of a bank is full. The first step of each kind is not captured either, so no graph is made for a state that occurs once.

Each graph holds fixed inputs of the size of a state. The `most` graphs that were used last are kept. The weights must not be moved, and
all steps must be taken on one stream.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import ref

import torch
from torch import Tensor

from wmgym.core import Clip, Frames, World, WorldState
from wmgym.tree import HighWater, Shared, Slots, map_leaves, map_tensors, tensors
from wmgym.world_model import WorldModel

MOST = 8  # graphs kept
WARM_UP = 2  # runs before a capture, in which libraries choose their kernels and allocate what they keep

Function = Callable[[Any], Any]  # a tree of tensors -> a tree of tensors
Replay = Callable[[], Any]  # computes the function of what its fixed inputs hold now; the result is overwritten by the next replay


class Capture(Protocol):
    def __call__(self, function: Function, inputs: Any) -> Replay:
        """Capture `function` of a tree of fixed inputs. It waits for no device and copies nothing from the host."""
        ...


def with_graphs(world: World, graph: bool | str) -> World:
    """The world, or where the keyword `graph` asks for it and the world is on an NVIDIA GPU, the same with its steps as CUDA graphs.

    graph: True, False or "auto". ValueError for True without such a GPU, or with a world that is no `WorldModel`.
    """
    device = torch.device(world.device)
    if graph is True and device.type != "cuda":
        raise ValueError(f"graph=True needs an NVIDIA GPU, and this world runs on {str(device)!r}: use graph='auto' or device='cuda'")
    if graph is True and not isinstance(world, WorldModel):
        raise ValueError(f"graph=True is for a WorldModel, such as a checkpoint's, and this world is a {type(world).__name__}: use 'auto'")
    return CapturedWorld(world) if graph and device.type == "cuda" and isinstance(world, WorldModel) else world


class CapturedWorld:
    """A `core.World` that steps as `world` does, by graphs. capture: how a function is captured; by default as a CUDA graph."""

    def __init__(self, world: WorldModel, capture: Capture | None = None, most: int = MOST) -> None:
        if most < 1:
            raise ValueError(f"the number of graphs to keep must be at least 1, got {most}")
        self.world, self.most = world, most
        self.chunk, self.frame_shape = world.chunk, world.frame_shape
        self._capture = capture if capture is not None else CudaCapture(world.device)
        self._kept: OrderedDict[Hashable, _Captured | None] = OrderedDict()  # None: a kind that was seen once

    @property
    def device(self) -> torch.device:
        return self.world.device

    @property
    def num_graphs(self) -> int:
        """Graphs that are kept."""
        return sum(graph is not None for graph in self._kept.values())

    def start(self, opening: Clip, keys: Tensor) -> WorldState:
        return self.world.start(opening, keys)

    def observe(self, state: WorldState, seen: Clip) -> WorldState:
        return self.world.observe(state, seen)

    @torch.no_grad()
    def step(self, state: WorldState, actions: Tensor) -> tuple[WorldState, Frames]:
        """See `core.World.step`."""
        self.world.check_actions(state, actions)
        made, frames = self._generated(state, actions)
        return self.world.remember(state, made), frames

    def _generated(self, state: WorldState, actions: Tensor) -> Any:
        kind = kind_of((state, actions))
        is_new = kind not in self._kept
        graph = self._kept.setdefault(kind, None)
        self._kept.move_to_end(kind)
        if not is_new and graph is None:
            graph = self._kept[kind] = _Captured(self._capture, self.world, state, actions)
        while self.num_graphs > self.most or len(self._kept) > 8 * self.most:
            self._kept.popitem(last=False)
        return graph(state, actions) if graph is not None else self.world.generate(state, actions)


# -- one graph ------------------------------------------------------------------------------------------------------------------------


class _Captured:
    """A step captured on fixed inputs of the kind of a state and its actions."""

    def __init__(self, capture: Capture, world: WorldModel, state: WorldState, actions: Tensor) -> None:
        fixed = map_leaves(_fixed, state)
        self._targets, self._actions = tensors(fixed), _fixed(actions)
        self._copied: list[Callable[[], Tensor | None]] = [lambda: None] * len(self._targets)  # which tensor each holds a copy of
        self._fill(state, actions)
        hidden = map_leaves(lambda leaf: _Unknown(0) if isinstance(leaf, HighWater) else leaf, fixed)
        self._replay = capture(lambda inputs: world.generate(*inputs), (hidden, self._actions))

    def __call__(self, state: WorldState, actions: Tensor) -> Any:
        self._fill(state, actions)
        return _copies(self._replay())

    def _fill(self, state: WorldState, actions: Tensor) -> None:
        """Copy the inputs, but for what was copied last time: a state is never edited, and its large stores rarely change."""
        self._actions.copy_(actions)
        for i, (source, target) in enumerate(zip(tensors(state), self._targets, strict=True)):
            if self._copied[i]() is not source:
                target[: len(source)].copy_(source)
                self._copied[i] = ref(source)


def kind_of(tree: Any) -> Hashable:
    """All that a captured function depends on besides the contents of tensors. A plain value that cannot be hashed raises `TypeError`."""
    found: list[Hashable] = []

    def note(leaf: Any) -> Any:
        if isinstance(leaf, Shared):
            found.extend((_room(len(data)), data.shape[1:], data.dtype) for data in tensors(leaf.data))
            found.append(leaf.rows.shape)
        elif isinstance(leaf, Slots):
            found.append((leaf.values.shape, leaf.values.dtype, leaf.fill))
        elif isinstance(leaf, Tensor):
            found.append((leaf.shape, leaf.dtype, leaf.device))
        elif not isinstance(leaf, HighWater):
            found.append((type(leaf), leaf))
        return leaf

    map_leaves(note, tree)
    return tuple(found)


def _room(rows: int) -> int:
    """Rows of the fixed copy of a store: the next power of 2."""
    return 1 << (rows - 1).bit_length()


def _fixed(leaf: Any) -> Any:
    """A leaf with tensors of its own, which hold zeros."""
    if isinstance(leaf, Shared):
        data = map_tensors(lambda x: x.new_zeros(_room(len(x)), *x.shape[1:]), leaf.data)
        return Shared(data, leaf.rows.new_zeros(leaf.rows.shape))
    if isinstance(leaf, Slots):
        return Slots(leaf.values.new_zeros(leaf.values.shape), leaf.fill)
    return leaf.new_zeros(leaf.shape) if isinstance(leaf, Tensor) else leaf


@dataclass(frozen=True)
class _Unknown(HighWater):
    """Stands for a `HighWater` while a function is captured."""

    def __getattribute__(self, name: str) -> Any:
        if name == "count":
            raise ValueError("what a memory reads depends on a HighWater, which depends on the other lanes, so the step cannot be captured")
        return super().__getattribute__(name)


def _copies(tree: Any) -> Any:
    """The tree with copies of its tensors. A tensor that is there twice is copied once."""
    copies = {id(x): x.clone() for x in {id(x): x for x in tensors(tree)}.values()}
    return map_tensors(lambda x: copies[id(x)], tree)


# -- CUDA -----------------------------------------------------------------------------------------------------------------------------


class CudaCapture:
    """Capture as CUDA graphs. They share one pool of memory, since what one of them computes is copied before another is replayed."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(f"CUDA graphs need an NVIDIA GPU, and this world runs on {str(device)!r}")
        self.device, self._stream, self._pool = device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def __call__(self, function: Function, inputs: Any) -> Replay:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP):
                    function(inputs)
            # other threads may use the GPU meanwhile, so only this one is held to what a capture allows
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                outputs = function(inputs)
            torch.cuda.current_stream().wait_stream(self._stream)

        def replay() -> Any:
            graph.replay()
            return outputs

        return replay
