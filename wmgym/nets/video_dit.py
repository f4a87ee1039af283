"""The causal video network that WorldTrace, CoME and Echo-Memory share: frames in chunks, attention causal over chunks.

    noisy chunk of F frames --> [ attention to itself and to cached keys of past chunks | MLP ] x depth --> velocity
                                   ^ adaLN-Zero per frame by noise level, action, egomotion, heading and pitch

* Attention is full inside a chunk and causal over chunks; positions are rotary in time, row and column (`nets/phases.py`).
* Keys and values are cached before rotation and rotated when they are read, so a memory chooses the temporal position of a past chunk
  (WorldTrace: the rank of its slot).
* `pose_rotary` also rotates part of queries, keys and values by the token's direction in the world and the position of the eye; values are
  rotated back at the query. So attention to an old cached key depends on its true relative pose to the present view. The paper does not
  have it.
* `address` adds to every input token a linear map of multi-frequency features of its world ray and of the eye's position relative to
  `Condition.origin`. A memory in weights (CoME) needs it to learn.
* Training computes two streams in one pass (`nets/two_streams.py`): clean chunks as they are cached, and noisy chunks that attend to
  them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmgym.core import Adapters, Condition, Context, ContextFrames, ContextKV, KeysValues, Trace
from wmgym.geometry import step_back, token_rays
from wmgym.nets.layers import Mlp, attend, fourier, hidden_matrices, modulate, sinusoid, squash
from wmgym.nets.lora import linear
from wmgym.nets.merge import merge
from wmgym.nets.phases import PhaseConfig, place_phases, pose_phases, share_pairs
from wmgym.nets.rope import rotate
from wmgym.nets.routing import routed
from wmgym.tree import map_tensors

RAY_OCTAVES, EYE_OCTAVES = 4, 4


@dataclass(frozen=True)
class VideoDiTConfig:
    latent_shape: tuple[int, int, int] = (12, 8, 8)  # C, h, w
    patch: int = 1  # latent cells per token along a side
    width: int = 320
    depth: int = 6
    heads: int = 5
    num_actions: int = 10
    action_size: int = 0  # length of a continuous action; 0: discrete, with num_actions
    field_of_view: float = 1.309  # radians, vertical
    aspect: float = 1.0  # width of the view divided by its height, before frames are scaled to a square
    chunk: int = 4  # F, frames generated together
    window: int = 8  # L_train, chunks per training window
    pose_rotary: bool = True  # False in WorldTrace's paper
    address: bool = True
    extent: float = 64.0  # size of the world in metres
    context_level: float = 0.0  # noise level that a clean pass is conditioned on
    shared_modulation: bool = True  # one adaLN for all blocks plus a table per block (PixArt)
    reach: tuple[int, ...] = ()  # past chunks that each layer attends to; empty: all layers attend to all of them

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 * heads = {2 * self.heads}, got {self.width}")
        if self.latent_shape[1] % self.patch or self.latent_shape[2] % self.patch:
            raise ValueError(f"patch {self.patch} does not divide the latent's {self.latent_shape[1:]}")
        for name in ("chunk", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.context_level < 1:
            raise ValueError(f"context_level must be in [0, 1), got {self.context_level}")
        if self.reach and (len(self.reach) != self.depth or min(self.reach) < 0):
            raise ValueError(f"reach must name a number of past chunks for each of {self.depth} layers, got {self.reach}")
        if not self.extent > 1:
            raise ValueError(f"extent must be more than 1 metre, got {self.extent}")
        _ = self.phases

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of a frame: rows, columns."""
        return self.latent_shape[1] // self.patch, self.latent_shape[2] // self.patch

    @property
    def tokens(self) -> int:
        """N, tokens of a frame."""
        return self.grid[0] * self.grid[1]

    @property
    def phases(self) -> PhaseConfig:
        pairs = share_pairs(self.width // self.heads // 2, pose=self.pose_rotary)
        return PhaseConfig(pairs, self.grid, self.field_of_view, self.aspect, self.extent)


SIZES = {
    "MICRO": {"width": 192, "depth": 4, "heads": 3, "patch": 2},  # trains on two cores
    "TINY": {"width": 320, "depth": 6, "heads": 5},
    "S": {"width": 384, "depth": 12, "heads": 6, "shared_modulation": False},
    "B": {"width": 768, "depth": 12, "heads": 12, "shared_modulation": False},
}


# -- the parts of a pass --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rotations:
    """Cosines and sines [B, T * N, 1, pairs] of tokens' phases: of queries and keys, and of values (None: values are not rotated)."""

    keys: tuple[Tensor, Tensor]
    values: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class FrameInputs:
    """Inputs of the tokens of T frames, apart from latents and noise level."""

    embedded: Tensor  # [B, T, D]: actions, egomotion, heading
    position: Tensor  # [B, T, N, D] or [1, 1, N, D]: added to the tokens
    rotations: Rotations


Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, rotated q, k, v [B, T * N, heads, d] -> [B, T * N, D]
After = Callable[[int, Tensor], Tensor]  # layer, tokens after it [B, T, N, D] -> what the next layer gets


class Block(nn.Module):
    def __init__(self, config: VideoDiTConfig) -> None:
        super().__init__()
        d, self.heads = config.width, config.heads
        self.norm1, self.norm2 = (nn.LayerNorm(d, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.head_norm = nn.RMSNorm(d // config.heads, eps=1e-6, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp_in, self.mlp_out = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.sharpness = nn.Parameter(torch.ones(config.heads, 1))  # scale of each head's scores, since queries and keys are normalised
        if config.shared_modulation:
            self.modulation_table = nn.Parameter(torch.zeros(6, d))
        else:
            self.modulation = nn.Linear(d, 6 * d)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)


@dataclass(frozen=True, eq=False)
class VideoBound:
    """The network with fixed condition and contexts. Past keys are already rotated to their positions."""

    net: VideoDiT
    condition: Condition
    adapters: Adapters | None
    inputs: FrameInputs
    past: tuple[tuple[Tensor, Tensor], ...]  # per layer: rotated keys and values [B, M, heads, d]; empty without a past
    masks: tuple[Tensor | None, ...]  # per layer: bool [B, M + F * N], keys that exist and are in reach; None: all of them
    after: After | None = None  # read-outs of a memory between the blocks
    routing: int | None = None  # past frames that each query reads (`nets/routing.py`); None: all

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        """Noisy latents [B, F, C, h, w] and noise levels [B] in [0, 1] -> velocity, of x's shape."""
        return self.net.run(x, level[:, None].expand(-1, x.shape[1]), self.inputs, self._attend, self.adapters, after=self.after)[0]

    def trace(self, latents: Tensor, poses: Tensor) -> Trace:
        """Unrotated keys and values of a clean pass over latents [B, F, C, h, w] at poses [B, F, 5]."""
        net = self.net
        inputs = net.frame_inputs(self.condition.at(poses), _chunk_times(poses), self.adapters)
        level = torch.full_like(poses[..., 0], net.config.context_level)
        return Trace(net.run(latents, level, inputs, self._attend, self.adapters, collect=True, after=self.after)[1])

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = self.masks[layer] if self.masks else None
        if self.past:
            if self.routing is not None:
                mask = routed(q, self.past[layer][0], mask, self.net.config.tokens, self.routing)
            k, v = torch.cat([self.past[layer][0], k], 1), torch.cat([self.past[layer][1], v], 1)
        return attend(q, k, v, mask)

    def reading(self, kv: ContextKV | None) -> VideoBound:
        """The same with another past; None: without one."""
        past, masks = self.net._past(kv, self.condition)
        return replace(self, past=past, masks=masks)

    def without_past(self) -> VideoBound:
        """The same, reading nothing of the past."""
        return self.reading(None)

    def among(self, valid: Tensor) -> VideoBound:
        """The same without a past, where frames attend only to those of `valid` (bool [B, F]). In rows that have none they attend to all of
        theirs, since attention over no keys would give NaN."""
        there = valid | ~valid.any(1, keepdim=True)
        mask = None if there.device.type == "cpu" and bool(there.all()) else there.repeat_interleave(self.net.config.tokens, 1)
        return replace(self, past=(), masks=(mask,) * self.net.config.depth)


class VideoDiT(nn.Module):
    """A `core.Network`."""

    predicts = "velocity"

    def __init__(self, config: VideoDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.chunk, self.latent_shape = config.chunk, config.latent_shape
        c, d = config.latent_shape[0], config.width
        self.embed = nn.Linear(c * config.patch**2, d)
        self.position = nn.Parameter(torch.randn(config.tokens, d) * 0.02)
        if config.address:
            self.address = nn.Linear(_address_size(), d)
        self.noise_embed = Mlp(256, d, d)
        self.action_embed = Mlp(config.action_size, d, d) if config.action_size else nn.Embedding(config.num_actions, d)
        self.motion_embed = Mlp(5 + 4, d, d)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        if config.shared_modulation:
            self.modulation = nn.Linear(d, 6 * d)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)
        self.final_norm = nn.LayerNorm(d, elementwise_affine=False, eps=1e-6)
        self.final_modulation, self.final = nn.Linear(d, 2 * d), nn.Linear(d, c * config.patch**2)
        for layer in (self.final_modulation, self.final):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def matrices(self) -> Iterable[nn.Parameter]:
        """The matrices of the blocks."""
        return hidden_matrices(self.blocks)

    def with_reach(self, reach: tuple[int, ...]) -> VideoDiT:
        """The same weights with another reach of each layer: a view that shares all parameters."""
        view = copy.copy(self)
        view.config = replace(self.config, reach=reach)
        return view

    # -- once per env step ------------------------------------------------------------------------------------------------------

    def bind(self, condition: Condition, contexts: tuple[Context, ...]) -> VideoBound:
        """Rotate past keys to their positions and embed what does not depend on the noise level. All contexts are one stream."""
        context = merge(contexts)
        if context.tokens is not None:
            raise ValueError("this network reads past chunks, as frames or as keys and values; the memory gives tokens")
        kv = context.kv
        if context.frames:
            anew = (Context(kv=self.keys_of(frames, condition.origin, context.adapters)) for frames in context.frames)
            kv = merge((Context(kv=kv), *anew)).kv
        inputs = self.frame_inputs(condition, _chunk_times(condition.poses), context.adapters)
        return VideoBound(self, condition, context.adapters, inputs, *self._past(kv, condition))

    def keys_of(self, frames: ContextFrames, origin: Tensor, adapters: Adapters | None = None) -> ContextKV:
        """Keys and values of remembered chunks [B, n * F, ...] by one clean pass, in which each chunk reads itself alone.

        Frames that do not exist must be at the start of their chunk. The first that exists stands in for them, so that it has not moved.
        """
        count = frames.latents.shape[1] // self.chunk
        chunks = map_tensors(lambda x: x.unflatten(1, (count, self.chunk)).flatten(0, 1), frames)
        valid, row = chunks.valid, torch.arange(len(chunks.valid), device=chunks.valid.device)[:, None]
        index = torch.maximum(torch.arange(self.chunk, device=row.device), valid.int().argmax(1, keepdim=True))
        chunks = map_tensors(lambda x: x[row, index], chunks)
        start = step_back(chunks.poses[:, 0], chunks.egomotion[:, 0])
        origins = origin.repeat_interleave(count, 0)
        past = Condition(chunks.actions, chunks.egomotion, chunks.poses, chunks.times, start, origins)
        bound = self.bind(past, (Context(adapters=adapters),)).among(valid)
        kv = map_tensors(lambda x: x.unflatten(0, (-1, count)).flatten(1, 2), bound.trace(chunks.latents, chunks.poses).kv)
        return ContextKV(kv, frames.offsets, frames.valid, frames.poses)

    def _past(self, kv: ContextKV | None, condition: Condition) -> tuple[tuple[tuple[Tensor, Tensor], ...], tuple[Tensor | None, ...]]:
        """Past keys and values per layer, rotated, and the masks of the layers' keys."""
        if kv is None:
            return (), ()
        if self.config.pose_rotary and kv.poses is None:
            raise ValueError("pose rotation needs the poses of past frames: ContextKV.poses is None")
        rotations = self.rotations(-kv.offsets, kv.poses, condition.origin)
        dtype = self.position.dtype
        past = []
        for layer in kv.layers:
            k = rotate(layer.keys.to(dtype).flatten(1, 2), *rotations.keys)
            v = layer.values.to(dtype).flatten(1, 2)
            past.append((k, rotate(v, *rotations.values) if rotations.values is not None else v))
        reach = self.config.reach or (None,) * self.config.depth
        masks = {r: self._mask(kv, r, condition.poses.shape[1]) for r in set(reach)}
        return tuple(past), tuple(masks[r] for r in reach)

    def _mask(self, kv: ContextKV, reach: int | None, frames: int) -> Tensor | None:
        """Which past keys, and those of `frames` present frames, a layer of this reach attends to; None: all of them."""
        seen = kv.valid if reach is None else kv.valid & (kv.offsets <= reach * self.config.chunk)
        # on a CPU attention is faster without a mask, and the test is free; on a GPU the test would wait for the device
        if seen.device.type == "cpu" and bool(seen.all()):
            return None
        tokens = self.config.tokens
        return torch.cat([seen.repeat_interleave(tokens, 1), seen.new_ones(len(seen), frames * tokens)], 1)

    # -- inputs -----------------------------------------------------------------------------------------------------------------

    def frame_inputs(self, condition: Condition, times: Tensor, adapters: Adapters | None = None) -> FrameInputs:
        """Embeddings and rotations of T frames at temporal positions `times` [B, T]."""
        dtype = self.position.dtype
        yaw, pitch = condition.poses[..., 3], condition.poses[..., 4]
        look = torch.stack([yaw.sin(), yaw.cos(), pitch.sin(), pitch.cos()], -1)
        scaled = torch.cat([condition.egomotion[..., :3], condition.egomotion[..., 3:] * 4], -1)
        motion = torch.cat([squash(scaled), look], -1).to(dtype)
        actions = squash(condition.actions.to(dtype)) if self.config.action_size else condition.actions
        position = self.position[None, None]
        if self.config.address:
            features = _address_features(condition.poses, condition.origin, self.config).to(dtype)
            position = position + linear(self.address, features, adapters, "address")
        return FrameInputs(
            self.action_embed(actions) + self.motion_embed(motion), position, self.rotations(times, condition.poses, condition.origin)
        )

    def rotations(self, times: Tensor, poses: Tensor | None, origin: Tensor) -> Rotations:
        """Rotations of frames at temporal positions [B, T] and poses [B, T, 5]."""
        config = self.config.phases
        place = place_phases(times, config)
        if not self.config.pose_rotary:
            return Rotations(_turn(place), None)
        assert poses is not None
        pose = pose_phases(poses, origin, config)
        values = torch.cat([torch.zeros_like(place), pose], -1)
        return Rotations(_turn(torch.cat([place, pose], -1)), _turn(values))

    # -- passes -----------------------------------------------------------------------------------------------------------------

    def run(
        self,
        x: Tensor,
        level: Tensor,
        inputs: FrameInputs,
        attention: Attend,
        adapters: Adapters | None = None,
        *,
        collect: bool = False,
        after: After | None = None,
    ) -> tuple[Tensor, tuple[KeysValues, ...]]:
        """Latents [B, T, C, h, w] at levels [B, T] -> velocity, and if `collect` each block's unrotated keys and values."""
        dtype, (frames, count) = self.position.dtype, (x.shape[1], self.config.tokens)
        h = linear(self.embed, _patchify(x.to(dtype), self.config.patch), adapters, "embed") + inputs.position
        c = F.silu(inputs.embedded + self.noise_embed(sinusoid(1000 * level, 256).to(dtype)))  # [B, T, D]
        shared = linear(self.modulation, c, adapters, "modulation") if self.config.shared_modulation else None
        rotations, seen = inputs.rotations, list[KeysValues]()
        for i, block in enumerate(cast(Iterable[Block], self.blocks)):
            if shared is None:
                m = linear(block.modulation, c, adapters, f"blocks.{i}.modulation").unflatten(-1, (6, -1))
            else:
                m = shared.unflatten(-1, (6, -1)) + block.modulation_table
            shift1, scale1, gate1, shift2, scale2, gate2 = m[:, :, None].unbind(-2)  # [B, T, 1, D] each
            y = modulate(block.norm1(h), shift1, scale1).flatten(1, 2)
            q, k, v = linear(block.qkv, y, adapters, f"blocks.{i}.qkv").unflatten(-1, (3, block.heads, -1)).unbind(2)
            q, k = block.head_norm(q) * block.sharpness.to(dtype), block.head_norm(k)
            if collect:
                seen.append(KeysValues(k.unflatten(1, (frames, count)), v.unflatten(1, (frames, count))))
            q, k = rotate(q, *rotations.keys), rotate(k, *rotations.keys)
            v = rotate(v, *rotations.values) if rotations.values is not None else v
            gathered = attention(i, q, k, v)  # [B, T * N, D]
            if rotations.values is not None:
                cos, sin = rotations.values
                gathered = rotate(gathered.unflatten(-1, (block.heads, -1)), cos, -sin).flatten(2)
            h = h + gate1 * linear(block.out, gathered, adapters, f"blocks.{i}.out").unflatten(1, (frames, count))
            y = linear(block.mlp_in, modulate(block.norm2(h), shift2, scale2), adapters, f"blocks.{i}.mlp_in")
            h = h + gate2 * linear(block.mlp_out, F.gelu(y, approximate="tanh"), adapters, f"blocks.{i}.mlp_out")
            h = h if after is None else after(i, h)
        shift, scale = linear(self.final_modulation, c, adapters, "final_modulation")[:, :, None].chunk(2, -1)
        out = linear(self.final, modulate(self.final_norm(h), shift, scale), adapters, "final")
        return _unpatchify(out, self.config).to(x.dtype), tuple(seen)


def _chunk_times(poses: Tensor) -> Tensor:
    """Temporal positions of a chunk's own frames: 0 to F - 1."""
    return torch.arange(poses.shape[1], device=poses.device).expand(poses.shape[:2])


def _turn(phases: Tensor) -> tuple[Tensor, Tensor]:
    """Phases [B, T, N, p] -> cosine and sine [B, T * N, 1, p]."""
    flat = phases.flatten(1, 2)[:, :, None]
    return flat.cos(), flat.sin()


def _address_size() -> int:
    return 3 * (1 + 2 * RAY_OCTAVES) + 3 * (1 + 2 * EYE_OCTAVES)


def _address_features(poses: Tensor, origin: Tensor, config: VideoDiTConfig) -> Tensor:
    """World ray of each token and the eye's position relative to a reference, at several frequencies: [B, T, N, features]."""
    rays = token_rays(poses, torch.zeros_like(poses[:, 0, 0]), *config.grid, config.field_of_view, config.aspect)
    eye = rays[..., 3:] - origin[:, None, None, :3]
    near_and_far = eye.sign() * (eye.abs() + 1).log() / 4  # higher resolution for near positions
    return torch.cat([fourier(rays[..., :3], RAY_OCTAVES), fourier(near_and_far, EYE_OCTAVES)], -1)


def _patchify(x: Tensor, patch: int) -> Tensor:
    """[B, T, C, h, w] -> [B, T, N, C * patch**2]."""
    return F.pixel_unshuffle(x.flatten(0, 1), patch).flatten(2).transpose(1, 2).unflatten(0, x.shape[:2])


def _unpatchify(tokens: Tensor, config: VideoDiTConfig) -> Tensor:
    """[B, T, N, C * patch**2] -> [B, T, C, h, w]."""
    cells = tokens.flatten(0, 1).transpose(1, 2).unflatten(2, config.grid)
    return F.pixel_shuffle(cells, config.patch).unflatten(0, tokens.shape[:2])


def at_level(config: VideoDiTConfig, level: float) -> VideoDiTConfig:
    """The same config with another noise level of clean passes."""
    return replace(config, context_level=level)
