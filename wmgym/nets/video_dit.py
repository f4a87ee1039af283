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
* Training computes two streams in one pass (`two_streams`): clean chunks as they are cached, and noisy chunks that attend to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmgym.core import Adapters, Condition, Context, ContextKV, KeysValues, Trace
from wmgym.geometry import token_rays
from wmgym.nets.layers import Mlp, attend, fourier, hidden_matrices, modulate, sinusoid, squash
from wmgym.nets.lora import linear
from wmgym.nets.merge import merge
from wmgym.nets.phases import PhaseConfig, place_phases, pose_phases, share_pairs
from wmgym.nets.rope import rotate

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


@dataclass(frozen=True)
class VideoBound:
    """The network with fixed condition and contexts. Past keys are already rotated to their positions."""

    net: VideoDiT
    condition: Condition
    adapters: Adapters | None
    inputs: FrameInputs
    past: tuple[tuple[Tensor, Tensor], ...]  # per layer: rotated keys and values [B, M, heads, d]; empty without a past
    mask: Tensor | None  # bool [B, M + F * N]: keys that exist

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        """Noisy latents [B, F, C, h, w] and noise levels [B] in [0, 1] -> velocity, of x's shape."""
        return self.net.run(x, level[:, None].expand(-1, x.shape[1]), self.inputs, self._attend, self.adapters)[0]

    def trace(self, latents: Tensor, poses: Tensor) -> Trace:
        """Unrotated keys and values of a clean pass over latents [B, F, C, h, w] at poses [B, F, 5]."""
        net = self.net
        inputs = net.frame_inputs(self.condition.at(poses), _chunk_times(poses), self.adapters)
        level = torch.full_like(poses[..., 0], net.config.context_level)
        return Trace(net.run(latents, level, inputs, self._attend, self.adapters, collect=True)[1])

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.past:
            k, v = torch.cat([self.past[layer][0], k], 1), torch.cat([self.past[layer][1], v], 1)
        return attend(q, k, v, self.mask)


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

    # -- once per env step ------------------------------------------------------------------------------------------------------

    def bind(self, condition: Condition, contexts: tuple[Context, ...]) -> VideoBound:
        """Rotate past keys to their positions and embed what does not depend on the noise level. All contexts are one stream."""
        context = merge(contexts)
        if context.frames or context.tokens is not None:
            raise ValueError("this network reads keys and values of past chunks; the memory gives frames or tokens")
        inputs = self.frame_inputs(condition, _chunk_times(condition.poses), context.adapters)
        past, mask = self._past(context.kv, condition.origin)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), condition.poses.shape[1] * self.config.tokens)], 1)
        return VideoBound(self, condition, context.adapters, inputs, past, mask)

    def _past(self, kv: ContextKV | None, origin: Tensor) -> tuple[tuple[tuple[Tensor, Tensor], ...], Tensor | None]:
        """Past keys and values per layer, rotated, and which of them exist (None: all)."""
        if kv is None:
            return (), None
        if self.config.pose_rotary and kv.poses is None:
            raise ValueError("pose rotation needs the poses of past frames: ContextKV.poses is None")
        rotations = self.rotations(-kv.offsets, kv.poses, origin)
        dtype = self.position.dtype
        past = []
        for layer in kv.layers:
            k = rotate(layer.keys.to(dtype).flatten(1, 2), *rotations.keys)
            v = layer.values.to(dtype).flatten(1, 2)
            past.append((k, rotate(v, *rotations.values) if rotations.values is not None else v))
        # on a CPU attention is faster without a mask, and the test is free; on a GPU the test would wait for the device
        there = None if kv.valid.device.type == "cpu" and bool(kv.valid.all()) else kv.valid.repeat_interleave(self.config.tokens, 1)
        return tuple(past), there

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
        self, x: Tensor, level: Tensor, inputs: FrameInputs, attention: Attend, adapters: Adapters | None = None, *, collect: bool = False
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


# -- training: two streams ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    """L chunks of F frames of one training window, either clean or noisy."""

    latents: Tensor  # [B, L * F, C, h, w]
    levels: Tensor  # [B, L * F]
    condition: Condition  # of the L * F frames; `start` and `at` are not used


def two_streams(net: VideoDiT, clean: Stream, noisy: Stream, visible: Tensor, valid: Tensor) -> tuple[Tensor, tuple[KeysValues, ...]]:
    """Velocity [B, L * F, C, h, w] of the noisy stream, and the clean stream's unrotated keys and values (the content of a cache).

    Noisy chunk i attends to itself and to the clean chunks before it; a clean chunk attends to itself and to the clean chunks before it.
    visible: bool [B, L], clean chunks that others may attend to; valid: bool [B, L * F], frames that exist. Chunk i has the temporal
    positions i F to i F + F - 1, independent of its true time, since slots are read by rank.
    """
    config = net.config
    frames, size = clean.latents.shape[1], config.chunk * config.tokens
    times = torch.arange(frames, device=valid.device).expand(valid.shape)
    parts = [net.frame_inputs(stream.condition, times) for stream in (clean, noisy)]
    same = parts[0].rotations.values is None  # rotations by time and place are equal in both streams

    def join(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], 1)

    keys = tuple(join(a, b) for a, b in zip(parts[0].rotations.keys, parts[1].rotations.keys, strict=True))
    values = None if same else tuple(join(a, b) for a, b in zip(parts[0].rotations.values, parts[1].rotations.values, strict=True))  # type: ignore[arg-type]
    position = parts[0].position if parts[0].position.shape[1] == 1 else join(parts[0].position, parts[1].position)
    inputs = FrameInputs(join(parts[0].embedded, parts[1].embedded), position, Rotations(keys, values))  # type: ignore[arg-type]
    exists = valid.repeat_interleave(config.tokens, 1)
    seen = exists & visible.repeat_interleave(size, 1)
    attention = _masked(seen, exists, size) if valid.device.type == "cuda" else _chunked(seen, exists, size)
    velocity, kept = net.run(join(clean.latents, noisy.latents), join(clean.levels, noisy.levels), inputs, attention, collect=True)
    return velocity[:, frames:], tuple(KeysValues(layer.keys[:, :frames], layer.values[:, :frames]) for layer in kept)


def _chunked(seen: Tensor, exists: Tensor, size: int) -> Attend:
    """Two attentions per chunk, over only the keys that it may attend to: 72 of 256 blocks for 8 chunks. For CPUs."""
    tokens = exists.shape[1]
    every = bool(seen.all())  # then no mask is needed

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:2], q.shape[2] * q.shape[3])
        for first in range(0, tokens, size):
            own, noisy = slice(first, first + size), slice(tokens + first, tokens + first + size)
            mask = None if every else torch.cat([seen[:, :first], exists[:, own]], 1)
            for part in (own, noisy):
                keys, values = (torch.cat([x[:, :first], x[:, part]], 1) for x in (k, v))
                out[:, part] = attend(q[:, part], keys, values, mask)
        return out

    return attention


def _masked(seen: Tensor, exists: Tensor, size: int) -> Attend:
    """One attention over both streams with a mask [B, 2 M, 2 M], M = L F N tokens. For a GPU."""
    tokens = exists.shape[1]
    chunk = torch.arange(tokens, device=exists.device) // size
    before, same = chunk[:, None] > chunk[None], chunk[:, None] == chunk[None]  # [M, M]: query, key
    past = before & seen[:, None]
    own = same & exists[:, None]
    nothing = torch.zeros_like(own)
    mask = torch.cat([torch.cat([past | own, nothing], 2), torch.cat([past, own], 2)], 1)[:, None]

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    return attention


def at_level(config: VideoDiTConfig, level: float) -> VideoDiTConfig:
    """The same config with another noise level of clean passes."""
    return replace(config, context_level=level)
