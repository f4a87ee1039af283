"""WorldModel: the only file that combines network, sampler and memory.

One imagined chunk:

    pose' = motion(pose, action) -> contexts = each memory read at pose' -> velocity = net bound to the contexts
    -> latent = sampler(velocity, noise(keys), levels) -> the motion head corrects pose'
    -> trace = one clean pass at the corrected poses, if a memory wants it -> write each memory -> new WorldState

Gymnasium envs, planners and benchmarks all use it. Training objectives belong to the systems (`train/`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from wmgym import rng
from wmgym.core import (
    Bound,
    Clip,
    Condition,
    Context,
    Footprint,
    Frames,
    Memory,
    Network,
    Query,
    Retrieval,
    Seen,
    Trace,
    WorldState,
)
from wmgym.diffusion.ddpm import ANCESTRAL, respaced
from wmgym.diffusion.flow import levels
from wmgym.diffusion.samplers import SAMPLERS, evaluations
from wmgym.geometry import relative_pose, step_back, walk
from wmgym.kinematics import Kinematics
from wmgym.nets.autoencoder import FrameCoder, to_uint8
from wmgym.nets.heads import MotionHead, RewardHead

_ENCODE_AT_ONCE = 256  # frames
POSE_SOURCES = ("learned", "actions")


@dataclass(frozen=True)
class SamplerConfig:
    name: str = "euler"
    denoise_steps: int = 4
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in (*SAMPLERS, *ANCESTRAL):
            raise ValueError(f"sampler must be one of {sorted([*SAMPLERS, *ANCESTRAL])}, got {self.name!r}")
        levels(self.denoise_steps, self.shift)
        if self.name in ANCESTRAL:
            respaced(self.denoise_steps)


@dataclass(frozen=True)
class Settings:
    """How weights are run: everything that can differ between two worlds with the same weights."""

    memories: tuple[Memory[Any], ...]
    sampler: SamplerConfig
    pose_source: str = "learned"  # "actions": the kinematics alone; "learned": corrected by the motion head
    through_pixels: bool = False  # write decoded-then-re-encoded latents to memory, as for observed frames
    options: Any = None  # the system's own dataclass (`systems.System.options`)

    def __post_init__(self) -> None:
        if self.pose_source not in POSE_SOURCES:
            raise ValueError(f"pose_source must be one of {list(POSE_SOURCES)}, got {self.pose_source!r}")

    @property
    def trace_needs(self) -> frozenset[str]:
        """The parts of a `Trace` that at least one memory needs."""
        return frozenset().union(*(memory.needs for memory in self.memories))


@dataclass(frozen=True)
class Provenance:
    """Origin of a world's weights. Saved states and results record it."""

    system: str = "own"
    setting: str = ""
    memory: str = ""
    weights: str = ""  # SHA-256
    autoencoder: str = ""  # SHA-256 of its part of them, before a change of precision


@dataclass(frozen=True)
class Made:
    """A new chunk that no memory holds yet."""

    latents: Tensor  # [B, F, C, h, w]
    keys: Tensor  # int64 [B, 2]: of the next step
    retrieval: Retrieval  # which past frames it was made from
    seen: Seen  # the chunk as the memories will store it


Arrival = tuple[Tensor, Tensor | None, Tensor | None]  # poses float32 [B, F, 5]; rewards float32 [B, F] and ends bool [B, F]


class WorldModel(nn.Module):
    """A `core.World` with a neural network: `autoencoder`, `net`, `motion_head` and `reward_head`. `settings` is how these run."""

    def __init__(
        self,
        autoencoder: FrameCoder,
        net: Network,
        kinematics: Kinematics,
        settings: Settings,
        *,
        motion_head: MotionHead | None = None,
        reward_head: RewardHead | None = None,
    ) -> None:
        super().__init__()
        if (net.predicts == "noise") != (settings.sampler.name in ANCESTRAL):
            raise ValueError(f"the network predicts {net.predicts}; sampler {settings.sampler.name!r} needs another prediction")
        self.autoencoder: Any = autoencoder  # typed as protocols in the signature, but they are modules
        self.net: Any = net
        self.motion_head, self.reward_head = motion_head, reward_head
        self.kinematics, self.settings, self.provenance = kinematics, settings, Provenance()
        self.chunk = net.chunk
        size = autoencoder.frame_size
        self.frame_shape = (size, size, 3)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype_name(self) -> str:
        """The dtype of its weights, in the form of the keyword `dtype`."""
        return str(next(self.parameters()).dtype).removeprefix("torch.")

    def with_settings(self, **changes: Any) -> WorldModel:
        """A view of the same weights with other settings (fields of `Settings`). This one is unchanged."""
        view = WorldModel(
            self.autoencoder,
            self.net,
            self.kinematics,
            replace(self.settings, **changes),
            motion_head=self.motion_head,
            reward_head=self.reward_head,
        )
        view.provenance = self.provenance
        view.training = self.training  # set directly: `train()` would also change the shared parts
        return view

    # -- core.World -------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, opening: Clip, keys: Tensor) -> WorldState:
        """A world that remembers `opening`. Its present frame is the last frame of the opening."""
        b, t = opening.valid.shape
        latents = self.encode(opening.frames)
        times = opening.valid.cumsum(1) - 1
        state = WorldState(
            latents[:, -self.chunk :] if t >= self.chunk else latents[:, -1:].expand(-1, self.chunk, -1, -1, -1).contiguous(),
            opening.poses[:, -1],
            times[:, -1],
            keys,
            opening.poses[:, -1],
            tuple(memory.init(b, rng.fold(keys, i)) for i, memory in enumerate(self.settings.memories)),
            self._nothing_retrieved(b),
            Footprint(times.new_zeros(b), times.new_zeros(b)),
        )
        return self._remember(state, self._observed(opening, latents, times, opening.poses[:, 0]))

    @torch.no_grad()
    def observe(self, state: WorldState, seen: Clip) -> WorldState:
        """Add real frames with given poses to the memories during an episode."""
        latents = self.encode(seen.frames)
        times = state.times[:, None] + seen.valid.cumsum(1)
        chunk = self._observed(seen, latents, times, state.poses)
        newest = torch.cat([state.latents, latents], 1)[:, -self.chunk :]
        state = replace(state, latents=newest, poses=seen.poses[:, -1], times=times[:, -1])
        return self._remember(state, chunk)

    @torch.no_grad()
    def step(self, state: WorldState, actions: Tensor, stride: int = 1) -> tuple[WorldState, Frames]:
        """Generate one chunk; actions int64 [B, F] or float32 [B, F, A]. stride: frames that one action covers."""
        self.check_actions(state, actions)
        made, frames = self.generate(state, actions, stride)
        return self.remember(state, made), frames

    # -- the parts --------------------------------------------------------------------------------------------------------------

    def imagine(self, state: WorldState, actions: Tensor, stride: int = 1) -> tuple[WorldState, Arrival]:
        """A step without decoding to pixels: the new state, and the chunk's poses, rewards and ends."""
        made, arrival, _ = self._imagine(state, actions, stride)
        return self.remember(state, made), arrival

    def check_actions(self, state: WorldState, actions: Tensor) -> None:
        """ValueError unless the actions are one chunk for each row of the state."""
        size = self.kinematics.action_size
        wanted = (len(state.times), self.chunk, *([size] if size else []))
        if actions.shape != wanted:
            raise ValueError(f"actions must have shape {wanted}, got {tuple(actions.shape)}")

    @torch.no_grad()
    def generate(self, state: WorldState, actions: Tensor, stride: int = 1) -> tuple[Made, Frames]:
        """A step up to what the memories will write: read, sample, decode. It depends on no value that is not a tensor, but for the
        sizes in `state`, and waits for no device, so it can be captured as a CUDA graph (`captured.py`)."""
        made, (poses, rewards, ends), images = self._imagine(state, actions, stride)
        images = images if images is not None else self.autoencoder.decode(made.latents)
        finite = made.latents.isfinite().flatten(1).all(1) & images.isfinite().flatten(1).all(1) & poses.isfinite().flatten(1).all(1)
        sampler = self.settings.sampler
        spent: dict[str, float] = {"network_evaluations": evaluations(sampler.name, sampler.denoise_steps)}
        return made, Frames(to_uint8(images), poses, rewards, ends, spent, finite)

    def remember(self, state: WorldState, made: Made) -> WorldState:
        """The state after `state`, in which the memories hold the new chunk."""
        seen = made.seen
        after = replace(
            state, latents=made.latents, poses=seen.poses[:, -1], times=seen.times[:, -1], keys=made.keys, retrieval=made.retrieval
        )
        return self._write(after, seen)

    def _imagine(self, state: WorldState, actions: Tensor, stride: int) -> tuple[Made, Arrival, Tensor | None]:
        """The new chunk, where it leads, and its images [B, F, 3, H, W] if `through_pixels` is set."""
        egomotion = self.kinematics.motion(actions)
        query = self.query(state.poses, egomotion, state.times + (stride - 1))
        contexts = self.read(state.memories, query)
        bound = self.net.bind(Condition(actions, egomotion, query.poses, query.times, state.poses, state.origin), contexts)
        latents = self._sample(bound, state.keys, tuple(state.latents.shape[1:]))
        arrival = self._arrive(state, latents, actions, egomotion)
        poses = arrival[0]
        images = self.autoencoder.decode(latents) if self.settings.through_pixels else None
        kept = latents if images is None else self.encode(to_uint8(images))
        there = torch.ones_like(query.times, dtype=torch.bool)
        motion = relative_pose(poses, torch.cat([state.poses[:, None], poses[:, :-1]], 1))
        seen = Seen(kept, poses, query.times, actions, motion, there, ~there, self._trace(bound, kept, poses))
        retrieval = next((c.retrieval for c in contexts if c.retrieval is not None), None) or self._nothing_retrieved(len(actions))
        return Made(latents, rng.next_keys(state.keys), retrieval, seen), arrival, images

    def _sample(self, bound: Bound, keys: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Sample latents [B, *shape] with the sampler of the settings."""
        sampler, start = self.settings.sampler, rng.noise(keys, shape)
        if sampler.name in SAMPLERS:
            return SAMPLERS[sampler.name](bound, start, levels(sampler.denoise_steps, sampler.shift))
        schedule = respaced(sampler.denoise_steps)
        return ANCESTRAL[sampler.name](bound, start, schedule, lambda i: rng.noise(rng.fold(keys, i), shape))

    def encode(self, frames: Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] -> latents [B, T, C, h, w], at most 256 frames at once."""
        flat = frames.flatten(0, 1)
        parts = [self.autoencoder.encode(flat[i : i + _ENCODE_AT_ONCE]) for i in range(0, len(flat), _ENCODE_AT_ONCE)]
        return torch.cat(parts).unflatten(0, frames.shape[:2])

    def query(self, poses: Tensor, egomotion: Tensor, times: Tensor) -> Query:
        """Poses [B, 5] and the chunk's egomotion [B, F, 5] -> expected poses and times of its frames."""
        ahead = torch.arange(1, egomotion.shape[1] + 1, device=times.device)
        return Query(walk(poses, egomotion), times[:, None] + ahead)

    def read(self, memories: tuple[Any, ...], query: Query) -> tuple[Context, ...]:
        """The context of each memory."""
        return tuple(memory.read(value, query) for memory, value in zip(self.settings.memories, memories, strict=True))

    def _arrive(self, state: WorldState, latents: Tensor, actions: Tensor, egomotion: Tensor) -> Arrival:
        """The chunk's poses, corrected by the motion head, and rewards and ends from the reward head; None without one."""
        before = torch.cat([state.latents[:, -1:], latents[:, :-1]], 1).flatten(0, 1)
        after, flat = latents.flatten(0, 1), actions.flatten(0, 1)
        if self.settings.pose_source == "learned" and self.motion_head is not None:
            correction = self.motion_head(before, after, flat) * self.kinematics.mask(latents.device)
            egomotion = egomotion + correction.view_as(egomotion)
        poses = self.query(state.poses, egomotion, state.times).poses
        if self.reward_head is None:
            return poses, None, None
        rewards, ends = self.reward_head(before, after, flat)
        return poses, rewards.view(actions.shape[:2]), ends.view(actions.shape[:2])

    def _trace(self, bound: Bound, latents: Tensor, poses: Tensor) -> Trace | None:
        return bound.trace(latents, poses) if self.settings.trace_needs else None

    def _write(self, state: WorldState, seen: Seen, traced: bool | None = None) -> WorldState:
        """Write to all memories, or only to those that need traces (`traced`) or need none."""
        pairs = list(zip(self.settings.memories, state.memories, strict=True))
        chosen = [traced is None or bool(memory.needs) == traced for memory, _ in pairs]
        memories = tuple(memory.write(value, seen) if own else value for (memory, value), own in zip(pairs, chosen, strict=True))
        held = [memory.footprint(value) for (memory, _), value in zip(pairs, memories, strict=True)]
        total = Footprint(torch.stack([h.frames for h in held]).amax(0), torch.stack([h.bytes for h in held]).sum(0))
        return replace(state, memories=memories, footprint=total)

    def _observed(self, clip: Clip, latents: Tensor, times: Tensor, start: Tensor) -> Seen:
        """Real frames as `Seen`; `start` [B, 5] is the pose before the first one. The egomotion of an opening's first frame is 0."""
        known = torch.cat([clip.valid.new_zeros(len(start), 1), clip.valid[:, :-1]], 1)
        before = torch.where(known[..., None], clip.poses.roll(1, 1), start[:, None])
        motion = relative_pose(clip.poses, before)
        motion = torch.where((times > 0)[..., None], motion, torch.zeros_like(motion))
        return Seen(latents, clip.poses, times, clip.actions, motion, clip.valid, clip.valid)

    def _remember(self, state: WorldState, seen: Seen) -> WorldState:
        """Write observed frames to the memories: all at once, but chunk by chunk where a memory needs the network's traces."""
        needing = [bool(memory.needs) for memory in self.settings.memories]
        chunks = _whole_chunks(seen, self.chunk) if any(needing) else None
        for first in range(0, chunks.times.shape[1], self.chunk) if chunks is not None else ():
            part = slice(first, first + self.chunk)
            now = Seen(*(getattr(chunks, name)[:, part] for name in _FRAME_FIELDS))
            query = Query(now.poses, now.times)
            start = step_back(now.poses[:, 0], now.egomotion[:, 0])
            condition = Condition(now.actions, now.egomotion, now.poses, now.times, start, state.origin)
            bound = self.net.bind(condition, self.read(state.memories, query))
            state = self._write(state, replace(now, trace=self._trace(bound, now.latents, now.poses)), traced=True)
        return state if all(needing) else self._write(state, seen, traced=False)

    def _nothing_retrieved(self, batch: int) -> Retrieval:
        count = max((memory.num_retrieved for memory in self.settings.memories), default=0)
        empty = torch.full((batch, count), -1, dtype=torch.int64, device=self.device)
        return Retrieval(empty, torch.full((batch, count), -torch.inf, device=self.device))


_FRAME_FIELDS = ("latents", "poses", "times", "actions", "egomotion", "valid", "observed")  # of `Seen`


def _whole_chunks(seen: Seen, chunk: int) -> Seen:
    """The same frames padded to whole chunks: before the first frame of a row it is repeated, and marked as not valid."""
    rows, frames = seen.valid.shape
    at = torch.arange(-(-frames % chunk), frames, device=seen.valid.device)
    index = torch.maximum(at, seen.valid.int().argmax(1, keepdim=True))  # [B, T]
    row = torch.arange(rows, device=at.device)[:, None]
    taken = Seen(*(getattr(seen, name)[row, index] for name in _FRAME_FIELDS))
    own = index == at
    return replace(taken, times=taken.times - (index - at), valid=taken.valid & own, observed=taken.observed & own)
