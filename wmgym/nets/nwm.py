"""The network of Navigation World Models (Bar et al. 2024), for the published weights: CDiT-S/2, B/2, L/2 and XL/2.

    noisy target tokens --> [ self-attention | cross-attention to 4 context frames | MLP ] x depth --> noise and its variance
                                 ^ 11 modulation vectors by noise step, time ahead and displacement; 2 of them modulate the context

It shares almost no code with `cdit.py`: here the context is modulated by the noise step, so that nothing can be cached between steps;
positions are a learned table per context frame, without rotation; attention has no norms but a learned extra key and value; cosines come
before sines. Submodules have the published names, so a published state dict loads unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmgym.core import Condition, Context, Trace
from wmgym.nets.cdit import SIZES
from wmgym.nets.layers import hidden_matrices, modulate, sinusoid
from wmgym.nets.merge import merge

LONGEST = 128  # frames; the time ahead is given as a fraction of it
FREQUENCIES = 256  # of each sinusoidal embedding


@dataclass(frozen=True)
class NWMNetConfig:
    """Defaults are CDiT-S/2 with 4 context frames of 224 x 224 pixels."""

    latent_side: int = 28
    channels: int = 4
    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    context: int = 4  # frames
    chunk: int = 1

    def __post_init__(self) -> None:
        if self.width % self.heads or self.latent_side % self.patch:
            raise ValueError(f"heads {self.heads} must divide width {self.width}, and patch {self.patch} latent_side {self.latent_side}")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.channels, self.latent_side, self.latent_side

    @property
    def side(self) -> int:
        """Tokens along a side."""
        return self.latent_side // self.patch


PUBLISHED = {f"CDiT-{size}/2": (SIZES[size]["width"], SIZES[size]["depth"], SIZES[size]["heads"]) for size in ("S", "B", "L", "XL")}


def config_of(state: dict[str, Tensor]) -> NWMNetConfig:
    """The config of a published state dict. ValueError if it is not one."""
    try:
        frames, tokens, width = state["pos_embed"].shape
        channels, patch = state["x_embedder.proj.weight"].shape[1:3]
    except (KeyError, ValueError) as error:
        raise ValueError(f"not a published NWM state dict: {error!r}; it has {', '.join(sorted(state)[:4])} ...") from error
    depth = sum(name.endswith("cttn.in_proj_weight") for name in state)
    heads = next((h for w, d, h in PUBLISHED.values() if (w, d) == (width, depth)), None)
    if heads is None:
        raise ValueError(f"width {width} and depth {depth} are not of the published {', '.join(PUBLISHED)}")
    return NWMNetConfig(math.isqrt(tokens) * patch, channels, patch, width, depth, heads, frames - 1)


class _Embed(nn.Module):
    """Embeds a number as a vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        sin, cos = sinusoid(x, FREQUENCIES).chunk(2, -1)
        return self.mlp(torch.cat([cos, sin], -1).to(next(self.mlp.parameters()).dtype))


class _ActionEmbed(nn.Module):
    """Embeds x, y (normalised) and angle (radians) of a displacement, each with a third of the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.x_emb, self.y_emb, self.angle_emb = _Embed(width // 3), _Embed(width // 3), _Embed(width - 2 * (width // 3))

    def forward(self, action: Tensor) -> Tensor:
        return torch.cat([embed(a) for embed, a in zip((self.x_emb, self.y_emb, self.angle_emb), action.unbind(-1), strict=True)], -1)


class _Patches(nn.Module):
    def __init__(self, config: NWMNetConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.width, config.patch, config.patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = _SelfAttention(width, heads)
        self.cttn = nn.MultiheadAttention(width, heads, add_bias_kv=True, batch_first=True)
        self.mlp = _Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 11 * width))

    def forward(self, x: Tensor, condition: Tensor, context: Tensor) -> Tensor:
        """x [B, N, D], condition [B, D], normalised context [B, M, D]. The order of the modulation vectors is that of the weights."""
        m = self.adaLN_modulation(condition)[:, None].chunk(11, -1)
        x = x + m[2] * self.attn(modulate(_norm(x), m[0], m[1]))
        seen = modulate(context, m[3], m[4])
        x = x + m[7] * self.cttn(modulate(_norm(x), m[5], m[6]), seen, seen, need_weights=False)[0]
        return x + m[10] * self.mlp(modulate(_norm(x), m[8], m[9]))


class _Final(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, -1)
        return self.linear(modulate(_norm(x), shift, scale))


@dataclass(frozen=True)
class NWMBound:
    """The network with fixed context and displacement."""

    net: NWMNet
    context: Tensor  # [B, context * N, D], normalised, which does not depend on block or noise step
    condition: Tensor  # [B, D], without the noise step

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        """Noisy latents [B, 1, C, h, w], noise steps [B] of 1,000 -> [B, 1, 2 C, h, w]: noise and log variance (`diffusion/ddpm.py`)."""
        return self.net.denoise(self, x, level)

    def trace(self, latents: Tensor, poses: Tensor) -> Trace:
        raise ValueError("published NWM weights read four frames and have no trace: no keys, values or state for a memory")


class NWMNet(nn.Module):
    """A `core.Network` with the published submodules."""

    predicts = "noise"

    def __init__(self, config: NWMNetConfig) -> None:
        super().__init__()
        self.config = config
        self.chunk, self.latent_shape = config.chunk, config.latent_shape
        width = config.width
        self.x_embedder = _Patches(config)
        self.t_embedder, self.time_embedder, self.y_embedder = _Embed(width), _Embed(width), _ActionEmbed(width)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(config.context + 1, config.side**2, width))
        self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(config.depth))
        self.final_layer = _Final(width, 2 * config.channels * config.patch**2)

    def matrices(self) -> Iterable[nn.Parameter]:
        """The matrices of the blocks."""
        return hidden_matrices(self.blocks)

    def bind(self, condition: Condition, contexts: tuple[Context, ...]) -> NWMBound:
        """Condition.actions [B, 1, 3] as in `Displacement`; one context group of up to `config.context` frames."""
        (group,) = merge(contexts).frames
        order = torch.where(group.valid, group.offsets, -1).argsort(dim=1, descending=True, stable=True)  # oldest first, missing ones last
        missing = (~group.valid).sum(1, keepdim=True)
        place = (torch.arange(order.shape[1], device=order.device) - missing).clamp(min=0)  # the oldest frame replaces missing ones
        frames = group.latents[torch.arange(len(order), device=order.device)[:, None], order.gather(1, place)]
        tokens = self.x_embedder(frames.flatten(0, 1).to(self.pos_embed.dtype)).unflatten(0, frames.shape[:2]) + self.pos_embed[:-1]
        ahead = torch.where(group.valid, group.offsets, 2**31).amin(1)
        action = torch.cat([condition.actions[:, 0, :2], condition.actions[:, 0, 2:] * math.pi], -1)
        return NWMBound(self, _norm(tokens.flatten(1, 2)), self.time_embedder(ahead / LONGEST) + self.y_embedder(action))

    def denoise(self, bound: NWMBound, x: Tensor, step: Tensor) -> Tensor:
        """See `NWMBound`."""
        condition = bound.condition + self.t_embedder(step)
        h = self.x_embedder(x[:, 0].to(self.pos_embed.dtype)) + self.pos_embed[-1]
        for block in self.blocks:
            h = block(h, condition, bound.context)
        out = self.final_layer(h, condition)
        side, p = self.config.side, self.config.patch
        cells = out.unflatten(-1, (p, p, -1)).unflatten(1, (side, side))  # [B, rows, columns, p, p, 2 C]
        return cells.permute(0, 5, 1, 3, 2, 4).reshape(len(x), 1, -1, side * p, side * p).to(x.dtype)
