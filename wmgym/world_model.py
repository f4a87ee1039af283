"""WorldModel: the only place where network, sampler and memory meet.

One imagined chunk:

    pose' = motion(pose, action) -> context = merge(read each memory at pose') -> velocity = net bound to it
    -> latent = sampler(velocity, noise(keys), levels) -> one clean pass if a memory wants keys and values
    -> the motion head corrects pose' -> write each memory -> new WorldState

Training, Gymnasium, planners and benchmarks all go through here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from wmgym import rng
from wmgym.core import Clip, Context, ContextFrames, Footprint, Frames, Memory, Query, Recall, Seen, WorldState
from wmgym.diffusion.ddpm import ANCESTRAL, respaced
from wmgym.diffusion.flow import corrupt, levels, logit_normal, target_velocity
from wmgym.diffusion.samplers import SAMPLERS, evaluations
from wmgym.geometry import compose, relative_pose
from wmgym.kinematics import Displacement, Kinematics
from wmgym.memory.merge import merge
from wmgym.nets.autoencoder import Autoencoder, to_uint8
from wmgym.nets.cdit import CDiT, Condition
from wmgym.nets.heads import MotionHead, RewardHead
from wmgym.nets.kl_autoencoder import KLAutoencoder
from wmgym.nets.nwm import NWMNet

_ENCODE_AT_ONCE = 256  # frames


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
class Batch:
    """Training examples: memories of what came before, and the chunk that did come."""

    memories: tuple[Any, ...]
    before: Tensor  # [B, C, h, w]: the newest latent before the chunk
    pose: Tensor  # float32 [B, 5]: its pose
    actions: Tensor  # int64 [B, F] or float32 [B, F, A]
    latents: Tensor  # [B, F, C, h, w]
    poses: Tensor  # float32 [B, F, 5]: where the chunk really was
    times: Tensor  # int64 [B, F]


class WorldModel(nn.Module):
    """`core.World` over a CDiT. Memories, sampler and pose source are settings.

    Weights are `autoencoder`, `net`, `motion_head`, `reward_head`.
    """

    def __init__(
        self,
        autoencoder: Autoencoder | KLAutoencoder,
        net: CDiT | NWMNet,
        motion_head: MotionHead | None,
        kinematics: Kinematics | Displacement,
        memories: tuple[Memory[Any], ...],
        sampler: SamplerConfig,
        *,
        reward_head: RewardHead | None = None,
        pose_source: str = "learned",
        through_pixels: bool = False,
    ) -> None:
        super().__init__()
        if (net.predicts == "noise") != (sampler.name in ANCESTRAL):
            raise ValueError(f"the network predicts {net.predicts}, sampler {sampler.name!r} does not remove it")
        if pose_source not in ("learned", "actions"):
            raise ValueError(f"pose_source must be 'learned' or 'actions', got {pose_source!r}")
        self.autoencoder, self.net, self.motion_head, self.reward_head = autoencoder, net, motion_head, reward_head
        self.kinematics, self.memories, self.sampler, self.pose_source = kinematics, memories, sampler, pose_source
        self.through_pixels = through_pixels  # remember what was dreamed as frames would be seen: decoded and encoded again
        self.chunk = net.config.chunk
        size = autoencoder.config.frame_size
        self.frame_shape = (size, size, 3)

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    # -- core.World -------------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def start(self, context: Clip, keys: Tensor) -> WorldState:
        """A world that remembers `context` and stands at its last frame."""
        b, t = context.valid.shape
        latents = self.encode(context.frames)
        times = context.valid.cumsum(1) - 1
        seen = Seen(latents, context.poses, times, context.actions, context.valid)
        state = WorldState(
            latents[:, -self.chunk :] if t >= self.chunk else latents[:, -1:].expand(-1, self.chunk, -1, -1, -1).contiguous(),
            context.poses[:, -1],
            times[:, -1],
            keys,
            tuple(memory.init(b) for memory in self.memories),
            self._no_recall(b),
            Footprint(times.new_zeros(b), times.new_zeros(b)),
        )
        return self._remember(state, seen)

    @torch.inference_mode()
    def observe(self, state: WorldState, seen: Clip) -> WorldState:
        """Real frames during an episode: remembered as they are, with the poses given."""
        latents = self.encode(seen.frames)
        times = state.times[:, None] + seen.valid.cumsum(1)
        newest = torch.cat([state.latents, latents], 1)[:, -self.chunk :]
        state = replace(state, latents=newest, poses=seen.poses[:, -1], times=times[:, -1])
        return self._remember(state, Seen(latents, seen.poses, times, seen.actions, seen.valid))

    @torch.inference_mode()
    def step(self, state: WorldState, actions: Tensor, stride: int = 1) -> tuple[WorldState, Frames]:
        """One chunk; actions int64 [B, F] or float32 [B, F, A]. An action may lead `stride` frames ahead at once."""
        size = self.kinematics.action_size
        wanted = (len(state.times), self.chunk, *([size] if size else []))
        if actions.shape != wanted:
            raise ValueError(f"actions must have shape {wanted}, got {tuple(actions.shape)}")
        state, (poses, rewards, ends), pixels = self._imagine(state, actions, stride)
        pixels = pixels if pixels is not None else to_uint8(self.autoencoder.decode(state.latents))
        spent = evaluations(self.sampler.name, self.sampler.denoise_steps)
        return state, Frames(pixels, poses, rewards, ends, {"network_evaluations": spent})

    # -- the parts --------------------------------------------------------------------------------------------------------------

    def imagine(
        self, state: WorldState, actions: Tensor, stride: int = 1
    ) -> tuple[WorldState, tuple[Tensor, Tensor | None, Tensor | None]]:
        """A step that stays in latent space: the new state, and the chunk's poses, rewards and ends."""
        return self._imagine(state, actions, stride)[:2]

    def _imagine(
        self, state: WorldState, actions: Tensor, stride: int
    ) -> tuple[WorldState, tuple[Tensor, Tensor | None, Tensor | None], Tensor | None]:
        """Also its frames, if they had to be decoded to be remembered."""
        egomotion = self.kinematics.motion(actions)
        query = self.query(state.poses, egomotion, state.times + (stride - 1))
        context = self.recall(state.memories, query)
        bound = self.net.bind(condition(query, actions, egomotion), context)
        latents = self._sample(bound, state.keys, tuple(state.latents.shape[1:]))
        poses, rewards, ends = self._arrive(state, latents, actions, egomotion)
        valid = torch.ones_like(query.times, dtype=torch.bool)
        kv = bound.keys_values(latents) if self._needs_kv else None
        recall = context.recall or self._no_recall(len(actions))
        state = replace(state, latents=latents, poses=poses[:, -1], times=query.times[:, -1], keys=rng.next_keys(state.keys), recall=recall)
        pixels = to_uint8(self.autoencoder.decode(latents)) if self.through_pixels else None
        kept = latents if pixels is None else self.encode(pixels)
        return self._write(state, Seen(kept, poses, query.times, actions, valid, kv)), (poses, rewards, ends), pixels

    def _sample(self, bound: Any, keys: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Latents [B, *shape] from noise, by the sampler of the settings."""
        settings, start = self.sampler, rng.noise(keys, shape)
        if settings.name in SAMPLERS:
            return SAMPLERS[settings.name](bound, start, levels(settings.denoise_steps, settings.shift))
        schedule = respaced(settings.denoise_steps)
        return ANCESTRAL[settings.name](bound, start, schedule, lambda i: rng.noise(rng.fold(keys, i), shape))

    def encode(self, frames: Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] -> latents [B, T, C, h, w], a bounded number at once."""
        flat = frames.flatten(0, 1)
        parts = [self.autoencoder.encode(flat[i : i + _ENCODE_AT_ONCE]) for i in range(0, len(flat), _ENCODE_AT_ONCE)]
        return torch.cat(parts).unflatten(0, frames.shape[:2])

    def query(self, poses: Tensor, egomotion: Tensor, times: Tensor) -> Query:
        """Poses [B, 5] and the chunk's egomotion [B, F, 5] -> where its frames are expected."""
        expected = []
        for f in range(egomotion.shape[1]):
            poses = compose(poses, egomotion[:, f])
            expected.append(poses)
        return Query(torch.stack(expected, 1), times[:, None] + torch.arange(1, egomotion.shape[1] + 1, device=times.device))

    def recall(self, memories: tuple[Any, ...], query: Query) -> Context:
        """What all memories show the network."""
        return merge([memory.read(value, query) for memory, value in zip(self.memories, memories, strict=True)])

    def _arrive(
        self, state: WorldState, latents: Tensor, actions: Tensor, egomotion: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Poses of the chunk's frames [B, F, 5], corrected by what the frames show, and rewards and ends where a head reads them."""
        before = torch.cat([state.latents[:, -1:], latents[:, :-1]], 1).flatten(0, 1)
        after, flat = latents.flatten(0, 1), actions.flatten(0, 1)
        if self.pose_source == "learned" and self.motion_head is not None:
            correction = self.motion_head(before, after, flat) * self.kinematics.mask(latents.device)
            egomotion = egomotion + correction.view_as(egomotion)
        poses = self.query(state.poses, egomotion, state.times).poses
        if self.reward_head is None:
            return poses, None, None
        rewards, ends = self.reward_head(before, after, flat)
        return poses, rewards.view(actions.shape[:2]), ends.view(actions.shape[:2])

    def _write(self, state: WorldState, seen: Seen) -> WorldState:
        memories = tuple(memory.write(value, seen) for memory, value in zip(self.memories, state.memories, strict=True))
        held = [memory.footprint(value) for memory, value in zip(self.memories, memories, strict=True)]
        total = Footprint(torch.stack([h.frames for h in held]).amax(0), torch.stack([h.bytes for h in held]).sum(0))
        return replace(state, memories=memories, footprint=total)

    def _remember(self, state: WorldState, seen: Seen) -> WorldState:
        """Write observed frames. A memory of keys and values wants them as the network computes them, one chunk after the other."""
        if not self._needs_kv:
            return self._write(state, seen)
        seen = _whole_chunks(seen, self.chunk)
        for first in range(0, seen.times.shape[1], self.chunk):
            part = slice(first, first + self.chunk)
            query = Query(seen.poses[:, part], seen.times[:, part])
            actions = seen.actions[:, part]
            bound = self.net.bind(condition(query, actions, self.kinematics.motion(actions)), self.recall(state.memories, query))
            latents = seen.latents[:, part]
            now = Seen(latents, query.poses, query.times, actions, seen.valid[:, part], bound.keys_values(latents))
            state = self._write(state, now)
        return state

    @property
    def _needs_kv(self) -> bool:
        return any(memory.needs_kv for memory in self.memories)

    def _no_recall(self, batch: int) -> Recall:
        slots = max((memory.slots for memory in self.memories), default=0)
        empty = torch.full((batch, slots), -1, dtype=torch.int64, device=self.device)
        return Recall(empty, torch.full((batch, slots), -torch.inf, device=self.device))

    # -- training ---------------------------------------------------------------------------------------------------------------

    def loss(
        self, batch: Batch, generator: torch.Generator, context_noise: float = 0.1, context_drop: float = 0.0
    ) -> dict[str, Tensor]:
        """Flow-matching loss of the net and regression loss of the motion head.

        The target is conditioned on where the kinematics expect it, as in a dream; what stood in the way must be seen in the context.
        Context latents carry a little noise, so that the dream bears its own small errors. In a share `context_drop` of the rows the
        recent frames are hidden, wholly or in part, and the last group of the context (what is retrieved, or oldest) must do: recent
        frames explain so much of the next one that a network otherwise learns late to look at anything else.
        """

        def normal(shape: torch.Size | tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=generator, device=generator.device)

        egomotion = self.kinematics.motion(batch.actions)
        query = self.query(batch.pose, egomotion, batch.times[:, 0] - 1)
        context = self.recall(batch.memories, query)
        shown = hide_recent(context.frames, generator, context_drop) if context_drop > 0 else context.frames
        noisy = tuple(replace(g, latents=g.latents.float() + context_noise * normal(g.latents.shape)) for g in shown)
        data = batch.latents.float()
        level = logit_normal(normal((len(data),)))
        noise = normal(data.shape)
        bound = self.net.bind(condition(query, batch.actions, egomotion), replace(context, frames=noisy))
        velocity = bound(corrupt(data, noise, level), level).float()
        flow = (velocity - target_velocity(data, noise)).square().mean()
        if self.motion_head is None:
            return {"flow": flow}
        pairs = torch.cat([batch.before[:, None].float(), batch.latents.float()], 1)
        return {"flow": flow, "motion": self._motion_loss(batch, egomotion, pairs + context_noise * normal(pairs.shape))}

    def _motion_loss(self, batch: Batch, egomotion: Tensor, pairs: Tensor) -> Tensor:
        stood = torch.cat([batch.pose[:, None], batch.poses], 1)
        correction = relative_pose(stood[:, 1:], stood[:, :-1]) - egomotion
        before, after = pairs[:, :-1].flatten(0, 1), pairs[:, 1:].flatten(0, 1)
        mask = self.kinematics.mask(pairs.device)
        assert self.motion_head is not None
        return self.motion_head.loss(before, after, batch.actions.flatten(), correction.flatten(0, 1), mask)


def _whole_chunks(seen: Seen, chunk: int) -> Seen:
    """The same frames in whole chunks: where a row begins later than a chunk does, its first frame is repeated and not valid."""
    rows, frames = seen.valid.shape
    at = torch.arange(-(-frames % chunk), frames, device=seen.valid.device)
    index = torch.maximum(at, seen.valid.int().argmax(1, keepdim=True))  # [B, T]
    row = torch.arange(rows, device=at.device)[:, None]
    latents, poses, times, actions, valid = (x[row, index] for x in (seen.latents, seen.poses, seen.times, seen.actions, seen.valid))
    return Seen(latents, poses, times - (index - at), actions, valid & (index == at))


def hide_recent(groups: tuple[ContextFrames, ...], generator: torch.Generator, share: float) -> tuple[ContextFrames, ...]:
    """Context groups with all but the last hidden in about half of `share` of the rows, and each hidden at random in the other half.

    Rows whose last group holds nothing keep all they have.
    """
    device = groups[0].valid.device
    rows = len(groups[0].valid)
    fate = torch.rand(rows, generator=generator, device=device)
    odds = torch.where(fate < share / 2, 1.0, torch.where(fate < share, 0.5, 0.0)) * groups[-1].valid.any(1)
    hidden = torch.rand(len(groups) - 1, rows, generator=generator, device=device) < odds
    kept = [replace(g, valid=g.valid & ~gone[:, None]) for g, gone in zip(groups[:-1], hidden, strict=True)]
    return (*kept, groups[-1])


def condition(query: Query, actions: Tensor, egomotion: Tensor) -> Condition:
    """A query as the network's condition: target poses are told relative to the chunk's first."""
    reference = query.poses[:, 0]
    return Condition(actions, egomotion, relative_pose(query.poses, reference[:, None]), reference[:, 4])
