"""Long-term memory in weights (CoME, section 3.3): low-rank adapters that are fitted to what was seen, while the world runs.

    frames seen --> bank --random windows--> the system's training loss --AdamW--> adapters [B, r, in], [B, out, r] per layer

Each row has adapters, moments and random numbers of its own, and all rows take a step in one batched pass, so a row is fitted in company
as it is alone, up to rounding. A state is a value: fitting makes new adapters and leaves the old ones as they were. The frames are kept as
latents, in a bank that branches share, because keys that one set of adapters computed must not be read with another.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from wmgym import rng
from wmgym.core import Adapters, Context, Footprint, FramePayload, Query, Seen, WindowLoss
from wmgym.memory import bank as banks
from wmgym.memory.bank import Bank
from wmgym.memory.trajectory import blank_frame, context_frames
from wmgym.nets.lora import fresh
from wmgym.progress import Progress
from wmgym.tree import map_tensors, select, tensors

TAIL = 32  # frames per lane before the shared archive is rewritten
WHEN = ("observed", "all", "off")
REPLAY = ("all", "window")
KEPT_FITS = 8  # openings whose adapters are kept in a process


@dataclass(frozen=True)
class Fitting:
    """How adapters are fitted."""

    rank: int = 24
    updates: int = 25  # steps of AdamW each time
    batch: int = 8  # windows per row and step
    chunks: int = 1  # chunks of a window
    rate: float = 2.5e-3
    decay: float = 0.01  # weight decay
    betas: tuple[float, float] = (0.9, 0.98)
    when: str = "observed"  # which frames are memorised: "observed", "all" (dreamed ones too) or "off"
    at_reset: bool = True  # whether the opening is memorised at once
    window: int = 50  # frames: dreamed ones are memorised when so many are new
    replay: str = "all"  # windows are drawn from "all" frames that are kept, or from the newest `window`

    def __post_init__(self) -> None:
        for name in ("rank", "updates", "batch", "chunks", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.rate > 0:
            raise ValueError(f"the memorising rate must be positive, got {self.rate}")
        if self.when not in WHEN:
            raise ValueError(f"memorise must be one of {list(WHEN)}, got {self.when!r}")
        if self.replay not in REPLAY:
            raise ValueError(f"replay must be one of {list(REPLAY)}, got {self.replay!r}")


@dataclass(frozen=True)
class LoraState:
    frames: Bank  # of FramePayload
    adapters: Adapters
    moments: Mapping[str, tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]  # per layer: AdamW's moments of down and of up
    pending: Tensor  # int64 [B]: frames since adapters were fitted
    origin: Tensor  # float32 [B, 5]: pose of the opening's last frame
    keys: Tensor  # int64 [B, 2]


@dataclass(frozen=True)
class LoraMemory:
    """`core.Memory` of adapters. Also gives the newest chunk as frames, for passes whose keys the adapters change."""

    latent_shape: tuple[int, int, int]
    shapes: Mapping[str, tuple[int, int]]  # of the layers that get adapters: width in, width out
    loss: WindowLoss = field(compare=False, repr=False)
    chunk: int = 4  # F
    fitting: Fitting = field(default_factory=Fitting)
    budget: int = 512  # frames that are kept for replay
    action_size: int = 0
    dtype: torch.dtype = torch.float32  # of latents
    done: OrderedDict[bytes, Any] = field(default_factory=OrderedDict, compare=False, repr=False)  # adapters of openings
    needs: frozenset[str] = frozenset()
    num_retrieved: int = 0

    def __post_init__(self) -> None:
        least = self.chunk * self.fitting.chunks
        if self.budget < least:
            raise ValueError(f"memory_budget must be at least the {least} frames of a window, got {self.budget}")

    def init(self, batch: int, keys: Tensor) -> LoraState:
        blank = blank_frame(self.latent_shape, self.action_size, self.dtype, keys.device)
        banks.check_budget(self.budget, batch, blank)
        adapters = fresh(self.shapes, self.fitting.rank, rng.fold(keys, 0), torch.promote_types(self.dtype, torch.float32))
        moments = {name: ((torch.zeros_like(a),) * 2, (torch.zeros_like(b),) * 2) for name, (a, b) in adapters.layers.items()}
        still = torch.zeros_like(keys[:, 0])
        origin = torch.zeros(batch, 5, device=keys.device)
        return LoraState(banks.empty(batch, self.budget, TAIL, blank), adapters, moments, still, origin, rng.fold(keys, 1))

    def read(self, memory: LoraState, query: Query) -> Context:
        slots, valid = banks.newest(memory.frames, self.chunk)
        newest = context_frames(memory.frames, slots.flip(1), valid.flip(1), query.poses[:, 0], query.times[:, 0], 0)
        return Context(frames=(newest,), adapters=memory.adapters)

    def write(self, memory: LoraState, seen: Seen) -> LoraState:
        how = self.fitting
        first = (memory.frames.times.values < 0).all(1) & seen.valid.any(1)
        new = seen.valid & (seen.observed if how.when == "observed" else torch.ones_like(seen.observed))
        memory = replace(
            memory,
            frames=banks.write(memory.frames, seen.payload, seen.poses, seen.times, seen.valid),
            origin=torch.where(first[:, None], seen.poses[:, -1], memory.origin),
            pending=memory.pending + new.sum(1),
        )
        if how.when == "off":
            return memory
        observed = (seen.valid & seen.observed).any(1)
        due = torch.where(observed, ~first | how.at_reset, memory.pending >= how.window)
        rows = due.nonzero().flatten()
        return memory if len(rows) == 0 else self._memorise(memory, rows, openings=bool(first[rows].all()))

    def footprint(self, memory: LoraState) -> Footprint:
        held = banks.footprint(memory.frames)
        own = sum(tensor[0].nbytes for tensor in (*tensors(memory.adapters), *tensors(memory.moments)))
        return Footprint(held.frames, held.bytes + own)

    # -- fitting ------------------------------------------------------------------------------------------------------------------

    def _memorise(self, memory: LoraState, rows: Tensor, openings: bool) -> LoraState:
        """Fit the adapters of these rows. The result of an opening is kept and used again for an equal one."""
        if not openings:
            return _put(memory, rows, self.fit(select(memory, rows)))
        names = [self._digest(select(memory, row[None])) for row in rows]
        unknown = [i for i, name in enumerate(names) if name not in self.done]
        if unknown:
            fitted = self.fit(select(memory, rows[unknown]))
            for place, i in enumerate(unknown):
                self.done[names[i]] = _fitted_part(select(fitted, torch.tensor([place], device=rows.device)))
        parts = [self.done[name] for name in names]
        while len(self.done) > KEPT_FITS:
            self.done.popitem(last=False)
        together = map_tensors(lambda *each: torch.cat(each), *parts)
        return _put(memory, rows, replace(select(memory, rows), **together))

    def fit(self, memory: LoraState) -> LoraState:
        """Take `updates` steps in all rows."""
        how, keys = self.fitting, memory.keys
        names = list(memory.adapters.layers)
        values = [part.clone() for name in names for part in memory.adapters.layers[name]]
        moments = [[part[i].clone() for name in names for part in memory.moments[name]] for i in (0, 1)]
        version = memory.adapters.version
        source = self.windows(memory)
        with Progress(total=how.updates, desc="memorising", unit="step", delay=2, leave=False, disable=None) as bar:
            for _ in range(how.updates):
                keys, version = rng.next_keys(keys), version + 1
                window, origin, own = source.draw(keys, how.batch, memory.origin)
                gradients = self._gradients(names, values, version, window, origin, own)
                _adamw(values, gradients, moments, version, how)
                bar.update()
        pairs = list(zip(values[::2], values[1::2], strict=True))
        adapters = Adapters(dict(zip(names, pairs, strict=True)), version)
        firsts, seconds = moments
        kept = {n: ((firsts[2 * i], seconds[2 * i]), (firsts[2 * i + 1], seconds[2 * i + 1])) for i, n in enumerate(names)}
        return replace(memory, adapters=adapters, moments=kept, pending=torch.zeros_like(memory.pending), keys=keys)

    def windows(self, memory: LoraState) -> Windows:
        """What random windows are drawn from."""
        how = self.fitting
        return Windows(memory.frames, how.window if how.replay == "window" else self.budget, self.chunk * how.chunks)

    def _gradients(
        self, names: list[str], values: list[Tensor], version: Tensor, window: Seen, origin: Tensor, keys: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            free = [value.detach().requires_grad_() for value in values]
            layers = dict(zip(names, zip(free[::2], free[1::2], strict=True), strict=True))
            losses = self.loss(window, origin, keys, Adapters(layers, version))
            return torch.autograd.grad(losses.sum() / self.fitting.batch, free)

    def _digest(self, memory: LoraState) -> bytes:
        """A name for what a memory of one row is fitted to, and how."""
        order, _ = banks.newest(memory.frames, int((memory.frames.times.values >= 0).sum()))
        held: FramePayload = banks.take(memory.frames, order)
        poses = memory.frames.poses.values.gather(1, order[..., None].expand(-1, -1, 5))
        parts = (held.latents.float(), held.actions, held.egomotion, poses, memory.origin, memory.keys)
        content = b"".join(part.cpu().numpy().tobytes() for part in parts)
        return hashlib.sha256(repr((self, sorted(self.shapes))).encode() + content).digest()


def _adamw(values: list[Tensor], gradients: tuple[Tensor, ...], moments: list[list[Tensor]], version: Tensor, how: Fitting) -> None:
    """One step of AdamW (Loshchilov & Hutter 2019) in place; each row counts its own steps."""
    (first, second), (m, v) = how.betas, moments
    torch._foreach_lerp_(m, list(gradients), 1 - first)
    torch._foreach_mul_(v, second)
    torch._foreach_addcmul_(v, list(gradients), list(gradients), 1 - second)
    step = version.view(-1, 1, 1).to(values[0].dtype)
    unbias_first, unbias_second = 1 - first**step, (1 - second**step).sqrt()
    for value, mean, square in zip(values, m, v, strict=True):
        value.mul_(1 - how.rate * how.decay).sub_(how.rate * (mean / unbias_first) / (square.sqrt() / unbias_second + 1e-8))


@dataclass(frozen=True)
class Windows:
    """Random windows of consecutive frames from those that a bank holds."""

    frames: Bank
    newest: int  # drawn from so many of the newest frames
    length: int  # frames of a window

    def draw(self, keys: Tensor, count: int, origin: Tensor) -> tuple[Seen, Tensor, Tensor]:
        """`count` windows per row: frames [B * count, length], their rows' origins, and a key for each."""
        times = self.frames.times.values
        last = times.amax(1, keepdim=True)
        oldest = torch.where(times >= 0, times, last).amin(1, keepdim=True)
        low = torch.maximum(oldest, last - self.newest + 1)
        room = (last - self.length + 1 - low).clamp(min=0) + 1  # a short past has one window, with frames that do not exist
        first = low + (rng.uniform(rng.fold(keys, 0), (count,)) * room).long()  # [B, count]
        wanted = (first[..., None] + torch.arange(self.length, device=times.device)).flatten(1)
        match = times[:, None] == wanted[..., None]  # [B, count * length, slots]
        slots, valid = match.int().argmax(-1), match.any(-1)
        held: FramePayload = banks.take(self.frames, slots)
        poses = self.frames.poses.values.gather(1, slots[..., None].expand(-1, -1, 5))

        def rows(x: Tensor) -> Tensor:
            return x.unflatten(1, (count, self.length)).flatten(0, 1)

        held = map_tensors(rows, held)
        seen = Seen(held.latents, rows(poses), rows(wanted), held.actions, held.egomotion, rows(valid), held.observed)
        return seen, origin.repeat_interleave(count, 0), rng.bits(rng.fold(keys, 1), count).flatten(0, 1)


def _fitted_part(memory: LoraState) -> dict[str, Any]:
    """What `fit` changes."""
    return {name: getattr(memory, name) for name in ("adapters", "moments", "pending", "keys")}


def _put(memory: LoraState, rows: Tensor, fitted: LoraState) -> LoraState:
    """The memory with what `fit` changed in these rows."""
    if len(rows) == len(memory.pending):
        return replace(memory, **_fitted_part(fitted))
    old, new = _fitted_part(memory), _fitted_part(fitted)
    return replace(memory, **map_tensors(lambda a, b: a.index_copy(0, rows, b), old, new))
