"""CDiT: the conditional diffusion transformer of NWM (Bar et al. 2024), as used by WorldPack (section 4.1).

    noisy target tokens --> [ self-attention | cross-attention to the context | MLP ] x depth --> velocity
                                    ^ adaLN-Zero by noise level, actions and egomotion

Differences from the published network:

* The context is not modulated by the noise level. So its keys and values are computed once per env step (`bind`) and reused in every
  denoising step.
* The WorldPack paper does not say where RoPE is applied. Here keys of the cross-attention are rotated by the age of their frame, in half
  of each head's dimensions (`rope_share`); the other half attends by content at any distance.
* There is one projection per compression level, initialised from the base projection by repeating and dividing its kernel (section
  4.3). So at the start of training a packed token equals the average of the tokens that it replaces.
* `pose_condition` adds a pose to each context token: "frame" the frame's relative pose, "rays" the token's viewing direction and eye in
  the target's frame of reference, "none" (the paper) nothing.
* `rotate_values` (with "rays") rotates each value by its token's viewing direction, and rotates the attention's output back by the
  target token's direction (as Miyato et al. 2024 do in 3-D). A coarse token then holds Fourier coefficients of the part of the view that
  it covers, and a target token evaluates them at its own direction. A linear map can then read what a small network otherwise learns
  slowly or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmgym.core import Condition, Context, ContextFrames, ContextKV, KeysValues, Trace
from wmgym.geometry import token_rays
from wmgym.nets.layers import Mlp, attend, fourier, hidden_matrices, modulate, sinusoid, squash
from wmgym.nets.merge import merge
from wmgym.nets.rope import rotate, rotation

LEVELS = 3  # 2**0, 2**1, 2**2 times the base patch's side, which are the paper's ratios 2^0, 2^2, 2^4 of token counts
_OCTAVES = 4


@dataclass(frozen=True)
class CDiTConfig:
    latent_shape: tuple[int, int, int] = (12, 8, 8)  # C, h, w
    patch: int = 1  # latent cells per token along a side, at level 0
    width: int = 256
    depth: int = 6
    heads: int = 4
    num_actions: int = 10
    action_size: int = 0  # length of a continuous action; 0: discrete, with num_actions
    field_of_view: float = 1.309  # radians, vertical; used by pose_condition "rays"
    aspect: float = 1.0  # width of the view divided by its height, before frames are scaled to a square
    pose_condition: str = "rays"
    rotate_values: bool = True  # only with "rays"
    rope_share: float = 0.5  # share of each head's dimensions that are rotated by time
    shared_modulation: bool = True  # one adaLN for all blocks plus a table per block (PixArt); saves most of the parameters
    chunk: int = 1  # frames generated together

    def __post_init__(self) -> None:
        if self.pose_condition not in ("none", "frame", "rays"):
            raise ValueError(f"pose_condition must be 'none', 'frame' or 'rays', got {self.pose_condition!r}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 * heads = {2 * self.heads}, got {self.width}")
        if self.latent_shape[1] % self.patch or self.latent_shape[2] % self.patch:
            raise ValueError(f"patch {self.patch} does not divide the latent's {self.latent_shape[1:]}")

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of a frame at level 0: rows, columns."""
        return self.latent_shape[1] // self.patch, self.latent_shape[2] // self.patch

    @property
    def rope_width(self) -> int:
        """Number of a head's dimensions that are rotated."""
        return 2 * round(self.width // self.heads * self.rope_share / 2)


# NWM's sizes (width, depth, heads; patch 2 on 28 x 28 latents), and TINY, which trains on a laptop's CPU.
SIZES = {
    "TINY": {"width": 256, "depth": 6, "heads": 4},
    "S": {"width": 384, "depth": 12, "heads": 6, "shared_modulation": False},
    "B": {"width": 768, "depth": 12, "heads": 12, "shared_modulation": False},
    "L": {"width": 1024, "depth": 24, "heads": 16, "shared_modulation": False},
    "XL": {"width": 1152, "depth": 28, "heads": 16, "shared_modulation": False},
}


def tokens_per_frame(latent_side: int, patch: int, level: int) -> int:
    """Number of tokens of a square frame at a level, padded to whole tokens."""
    return (-(-latent_side // (patch * 2**level))) ** 2


def wave_vectors(count: int, config: CDiTConfig) -> Tensor:
    """The `count` slowest plane waves over (azimuth, elevation), in radians per radian: [count, 2].

    The slowest wave spans two tokens of the coarsest level, so the coefficients of a token encode positions inside it.
    """
    coarsest = config.field_of_view * 2 ** (LEVELS - 1) / config.grid[0]
    reach = range(-count, count + 1)
    half = [(x, y) for x in range(count + 1) for y in reach if x > 0 or y >= 0]  # a wave and its opposite are the same
    slowest = sorted(half, key=lambda k: (k[0] ** 2 + k[1] ** 2, k))[:count]
    return torch.tensor(slowest, dtype=torch.float32) * torch.pi / coarsest


class PatchEmbed(nn.Module):
    """Latent frames [n, C, h, w] -> tokens [n, N, D] at one level. Sides are padded to a multiple of the kernel by repeating the edge."""

    def __init__(self, channels: int, kernel: int, width: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.projection = nn.Conv2d(channels, width, kernel, kernel)

    def forward(self, x: Tensor) -> Tensor:
        down, right = -x.shape[-2] % self.kernel, -x.shape[-1] % self.kernel
        if down or right:
            x = F.pad(x, (0, right, 0, down), mode="replicate")
        return self.projection(x).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def interpolate_from(self, base: PatchEmbed) -> None:
        """Repeat and divide the base kernel, so that this layer gives the base layer's output for the averaged input."""
        times = self.kernel // base.kernel
        weight = base.projection.weight.repeat_interleave(times, -1).repeat_interleave(times, -2)
        self.projection.weight.copy_(weight / times**2)
        self.projection.bias.copy_(base.projection.bias)  # type: ignore[union-attr, arg-type]


class Attention(nn.Module):
    """Queries and keys are normalised per head, then rotated by time."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.norm = nn.RMSNorm(width // heads, eps=1e-6, elementwise_affine=False)
        self.sharpness = nn.Parameter(torch.ones(heads, 1))  # scale of each head's scores, since queries and keys are normalised

    def queries(self, x: Tensor) -> Tensor:
        q = self.norm(self.query(x).unflatten(-1, (self.heads, -1)))
        return q * self.sharpness.to(q.dtype)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., N, D] -> keys (not rotated) and values [..., N, heads, d]."""
        k, v = self.key_value(x).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        return self.norm(k), v


class Block(nn.Module):
    def __init__(self, config: CDiTConfig) -> None:
        super().__init__()
        d = config.width
        self.norms = nn.ModuleList(nn.LayerNorm(d, elementwise_affine=False, eps=1e-6) for _ in range(3))
        self.self_attention = Attention(d, config.heads)
        self.context_norm = nn.LayerNorm(d)
        self.cross_attention = Attention(d, config.heads)
        self.mlp = Mlp(d, 4 * d, d, gelu=True)
        if config.shared_modulation:
            self.modulation_table = nn.Parameter(torch.zeros(9, d))
        else:
            self.modulation = nn.Linear(d, 9 * d)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)


@dataclass(frozen=True)
class LayerContext:
    """Context of one block, computed once per env step: rotated keys [B, M, heads, d] and values."""

    cross: tuple[Tensor, Tensor]
    past: tuple[Tensor, Tensor] | None  # remembered keys and values for the self-attention


@dataclass(frozen=True)
class Bound:
    """The network with fixed condition and context: everything that does not depend on the noise level."""

    net: CDiT
    condition: Condition
    contexts: tuple[Context, ...]
    embedded: Tensor  # [B, F, D]: actions and egomotion
    position: Tensor  # [B, F, N, D] or [1, 1, N, D]
    gaze: tuple[Tensor, Tensor] | None  # cosine and sine [B, F * N, 1, d / 2] of the target tokens' phases, for `rotate_values`
    layers: tuple[LayerContext, ...]
    cross_mask: Tensor | None
    self_mask: Tensor | None

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        """Noisy latents [B, F, C, h, w] and noise levels [B] in [0, 1] -> velocity, of x's shape."""
        return self.net.denoise(self, x, level)[0]

    def trace(self, latents: Tensor, poses: Tensor) -> Trace:
        """Unrotated self-attention keys and values of clean latents at these poses, for key-value memories."""
        bound = self.net.bind(self.condition.at(poses), self.contexts)
        return Trace(self.net.denoise(bound, latents, latents.new_zeros(len(latents)), collect=True)[1])


class CDiT(nn.Module):
    predicts = "velocity"
    waves: Tensor

    def __init__(self, config: CDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.chunk, self.latent_shape = config.chunk, config.latent_shape
        c, d = config.latent_shape[0], config.width
        self.target_embed = PatchEmbed(c, config.patch, d)
        self.context_embed = nn.ModuleList(PatchEmbed(c, config.patch * 2**level, d) for level in range(LEVELS))
        for level in range(1, LEVELS):
            self.context_embed[level].interpolate_from(self.context_embed[0])  # type: ignore[operator]
        self.position = nn.Parameter(torch.randn(1, d, *config.grid) * 0.02)
        self.context_position = nn.Parameter(torch.randn(1, d, *config.grid) * 0.02)
        self.noise_embed = Mlp(256, d, d)
        self.action_embed = Mlp(config.action_size, d, d) if config.action_size else nn.Embedding(config.num_actions, d)
        self.motion_embed = Mlp(5 + 2, d, d)
        if config.pose_condition == "rays":
            self.pose_embed = Mlp(6 * (1 + 2 * _OCTAVES), d, d)
        elif config.pose_condition == "frame":
            self.pose_embed = Mlp(7, d, d)
        self.register_buffer("waves", wave_vectors(d // config.heads // 2, config), persistent=False)
        self.context_mlp = Mlp(d, 4 * d, d, gelu=True)
        self.context_mlp_norm = nn.LayerNorm(d)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        if config.shared_modulation:
            self.modulation = nn.Linear(d, 9 * d)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)
        self.final_norm = nn.LayerNorm(d, elementwise_affine=False, eps=1e-6)
        self.final_modulation = nn.Linear(d, 2 * d)
        self.final = nn.Linear(d, c * config.patch**2)
        for layer in (self.final_modulation, self.final):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def matrices(self) -> Iterable[nn.Parameter]:
        """The matrices of the blocks."""
        return hidden_matrices(self.blocks)

    # -- once per env step ------------------------------------------------------------------------------------------------------

    def bind(self, condition: Condition, contexts: tuple[Context, ...]) -> Bound:
        """Compute everything that does not depend on the noise level. Frames of all contexts are one stream."""
        context, relative = merge(contexts), condition.relative
        motion = _motion_features(condition.egomotion, condition.pitch).to(self.position.dtype)
        actions = squash(condition.actions.to(self.position.dtype)) if self.config.action_size else condition.actions
        embedded = self.action_embed(actions) + self.motion_embed(motion)
        position = self.position.flatten(2).transpose(1, 2)[:, None]  # [1, 1, N, D]
        gaze = None
        if self.config.pose_condition == "rays":
            rays = token_rays(relative, condition.pitch, *self.config.grid, self.config.field_of_view, self.config.aspect)
            position = position + self._ray_embed(rays)
            gaze = self._phases(rays)
        tokens, offsets, mask, phases = self._context_tokens(condition, context.frames)
        cos, sin = rotation(-offsets, self.config.rope_width)  # [B, M, r]
        past, self_mask = _past(context.kv, self.config, condition, self.position.dtype)
        layers = []
        for i, block in enumerate(self.blocks):
            k, v = block.cross_attention.keys_values(block.context_norm(tokens))  # type: ignore[union-attr, operator]
            if phases is not None:
                v = rotate(v, phases[0], -phases[1])
            layers.append(LayerContext((rotate(k, cos[:, :, None], sin[:, :, None]), v), past[i] if past else None))
        return Bound(self, condition, contexts, embedded, position, gaze, tuple(layers), mask, self_mask)

    def _ray_embed(self, rays: Tensor) -> Tensor:
        """Embedding of a token's ray [..., 6]: [..., D]."""
        eye = rays[..., 3:]
        squashed = eye.sign() * (eye.abs() + 1).log() / 4  # higher resolution for near positions
        features = fourier(torch.cat([rays[..., :3], squashed], -1), _OCTAVES)
        return self.pose_embed(features.to(self.position.dtype))

    def _phases(self, rays: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosine and sine of the values' phases for rays of tokens [B, n, N, 6]: [B, n * N, 1, d / 2] each."""
        if not self.config.rotate_values:
            return None
        azimuth = torch.atan2(rays[..., 1], rays[..., 0])
        elevation = torch.atan2(rays[..., 2], rays[..., :2].norm(dim=-1))
        look = torch.stack([azimuth, elevation], -1).flatten(1, 2)  # [B, n * N, 2]
        phases = (look @ self.waves.to(look.dtype).T)[:, :, None]
        return phases.cos(), phases.sin()

    def _context_tokens(
        self, condition: Condition, groups: tuple[ContextFrames, ...]
    ) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
        """All context frames as tokens [B, M, D], their ages in steps [B, M], which exist [B, M] (None: all), and their phases."""
        if not groups:  # a memory may give only keys and values
            b = len(condition.pitch)
            nothing = self.position.new_zeros(b, 0, self.config.width)
            return nothing, torch.zeros(b, 0, dtype=torch.int64, device=nothing.device), None, None
        tokens, offsets, masks, phases = [], [], [], []
        for group in groups:
            b, n = group.valid.shape
            embedded = self.context_embed[group.level](group.latents.flatten(0, 1).to(self.position.dtype)).unflatten(0, (b, n))
            rows, columns = (-(-side // 2**group.level) for side in self.config.grid)
            table = F.adaptive_avg_pool2d(self.context_position, (rows, columns)).flatten(2).transpose(1, 2)
            embedded = embedded + table[:, None]
            if self.config.pose_condition == "rays":
                rays = token_rays(group.relative, condition.pitch, rows, columns, self.config.field_of_view, self.config.aspect)
                embedded = embedded + self._ray_embed(rays)
                phases.append(self._phases(rays))
            elif self.config.pose_condition == "frame":
                embedded = embedded + self.pose_embed(_pose_features(group.relative).to(embedded.dtype))[:, :, None]
            count = rows * columns
            tokens.append(embedded.flatten(1, 2))
            offsets.append(group.offsets.repeat_interleave(count, 1))
            masks.append(group.valid.repeat_interleave(count, 1))
        joined, mask = torch.cat(tokens, 1), torch.cat(masks, 1)
        joined = joined + self.context_mlp(self.context_mlp_norm(joined))
        # on a CPU attention is faster without a mask, and the test is free; on a GPU the test would wait for the device
        there = None if mask.device.type == "cpu" and bool(mask.all()) else mask
        turned = [p for p in phases if p is not None]
        joined_phases = (torch.cat([cos for cos, _ in turned], 1), torch.cat([sin for _, sin in turned], 1)) if turned else None
        return joined, torch.cat(offsets, 1), there, joined_phases

    # -- once per denoising step ------------------------------------------------------------------------------------------------

    def denoise(self, bound: Bound, x: Tensor, level: Tensor, *, collect: bool = False) -> tuple[Tensor, tuple[KeysValues, ...]]:
        """See `Bound`. collect: also return each block's unrotated self-attention keys and values."""
        b, frames = x.shape[:2]
        h = self.target_embed(x.flatten(0, 1).to(self.position.dtype)).unflatten(0, (b, frames)) + bound.position
        count = h.shape[2]
        c = F.silu(bound.embedded + self.noise_embed(sinusoid(1000 * level, 256).to(h.dtype))[:, None])  # [B, F, D]
        shared = self.modulation(c) if self.config.shared_modulation else None
        times = torch.arange(frames, device=x.device)
        cos, sin = (r.repeat_interleave(count, 0)[None, :, None] for r in rotation(times, self.config.rope_width))
        seen = []
        for block, layer in zip(self.blocks, bound.layers, strict=True):
            if shared is None:
                modulation = block.modulation(c).unflatten(-1, (9, -1))  # type: ignore[operator]
            else:
                modulation = shared.unflatten(-1, (9, -1)) + block.modulation_table
            m = modulation[:, :, None].unbind(-2)  # nine of [B, F, 1, D]
            h, kv = _block(block, h, m, layer, bound, cos, sin)  # type: ignore[arg-type]
            if collect:
                seen.append(kv)
        shift, scale = self.final_modulation(c)[:, :, None].chunk(2, -1)
        out = self.final(modulate(self.final_norm(h), shift, scale))
        return _unpatchify(out, self.config).to(x.dtype), tuple(seen)


def _block(
    block: Block, h: Tensor, m: tuple[Tensor, ...], layer: LayerContext, bound: Bound, cos: Tensor, sin: Tensor
) -> tuple[Tensor, KeysValues]:
    """One block on h [B, F, N, D]."""
    frames = h.shape[1]
    norm1, norm2, norm3 = block.norms
    attention = block.self_attention
    x = modulate(norm1(h), m[0], m[1]).flatten(1, 2)
    raw, v = attention.keys_values(x)
    q, k = attention.queries(x), raw
    if frames > 1:  # a single target frame is at time 0, where the rotation is the identity
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    keys, values = (k, v) if layer.past is None else (torch.cat([layer.past[0], k], 1), torch.cat([layer.past[1], v], 1))
    h = h + m[2] * attention.output(attend(q, keys, values, bound.self_mask)).unflatten(1, (frames, -1))
    q = block.cross_attention.queries(modulate(norm2(h), m[3], m[4]).flatten(1, 2))
    if frames > 1:
        q = rotate(q, cos, sin)
    gathered = attend(q, *layer.cross, bound.cross_mask)
    if bound.gaze is not None:
        gathered = rotate(gathered.unflatten(-1, (attention.heads, -1)), *bound.gaze).flatten(2)
    h = h + m[5] * block.cross_attention.output(gathered).unflatten(1, (frames, -1))
    h = h + m[8] * block.mlp(modulate(norm3(h), m[6], m[7]))
    return h, KeysValues(raw.unflatten(1, (frames, -1)), v.unflatten(1, (frames, -1)))


def _past(
    kv: ContextKV | None, config: CDiTConfig, condition: Condition, dtype: torch.dtype
) -> tuple[list[tuple[Tensor, Tensor]] | None, Tensor | None]:
    """Past keys, rotated to their positions, with values, and the mask over (past + own) keys."""
    if kv is None:
        return None, None
    count = kv.layers[0].keys.shape[2]
    cos, sin = (r[:, :, None, None] for r in rotation(-kv.offsets, config.rope_width))
    turned = [(rotate(layer.keys.to(dtype), cos, sin).flatten(1, 2), layer.values.to(dtype).flatten(1, 2)) for layer in kv.layers]
    b, frames = condition.actions.shape[:2]
    own = kv.valid.new_ones(b, frames * config.grid[0] * config.grid[1])
    return turned, torch.cat([kv.valid.repeat_interleave(count, 1), own], 1)


def _pose_features(relative: Tensor) -> Tensor:
    turn, tilt = relative[..., 3], relative[..., 4]
    return torch.cat([relative[..., :3] / 8, torch.stack([turn.sin(), turn.cos(), tilt.sin(), tilt.cos()], -1)], -1)


def _motion_features(egomotion: Tensor, pitch: Tensor) -> Tensor:
    """[B, F, 5], [B] -> [B, F, 7]: egomotion at a scale near 1, and sine and cosine of the pitch."""
    look = pitch[:, None, None].expand(*egomotion.shape[:2], 1)
    return torch.cat([squash(torch.cat([egomotion[..., :3], egomotion[..., 3:] * 4], -1)), look.sin(), look.cos()], -1)


def _unpatchify(tokens: Tensor, config: CDiTConfig) -> Tensor:
    """[B, F, N, C * patch**2] -> [B, F, C, h, w]."""
    (c, _, _), (rows, columns), p = config.latent_shape, config.grid, config.patch
    b, frames = tokens.shape[:2]
    cells = tokens.view(b, frames, rows, columns, p, p, c)
    return cells.permute(0, 1, 6, 2, 4, 3, 5).reshape(b, frames, c, rows * p, columns * p)
