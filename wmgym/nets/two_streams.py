"""The pass that the video network is trained with: clean chunks as they are cached, and noisy chunks that attend to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmgym.core import Adapters, Condition, KeysValues
from wmgym.diffusion.flow import corrupt
from wmgym.nets.layers import attend
from wmgym.nets.stateful import carried_by_clean
from wmgym.nets.video_dit import After, Attend, FrameInputs, Rotations, VideoDiT, VideoDiTConfig


@dataclass(frozen=True)
class Stream:
    """L chunks of F frames of one training window, either clean or noisy."""

    latents: Tensor  # [B, L * F, C, h, w]
    levels: Tensor  # [B, L * F]
    condition: Condition  # of the L * F frames; `start` and `at` are not used


def noisy_stream(latents: Tensor, noise: Tensor, levels: Tensor, condition: Condition) -> Stream:
    """Latents [B, T, C, h, w] with noise at levels [B, T]."""
    return Stream(corrupt(latents.flatten(0, 1), noise.flatten(0, 1), levels.flatten()).view_as(latents), levels, condition)


def two_streams(
    net: VideoDiT,
    clean: Stream,
    noisy: Stream,
    visible: Tensor,
    valid: Tensor,
    adapters: Adapters | None = None,
    recurrent: nn.ModuleDict | None = None,
) -> tuple[Tensor, tuple[KeysValues, ...]]:
    """Velocity [B, L * F, C, h, w] of the noisy stream, and the clean stream's unrotated keys and values (the content of a cache).

    Noisy chunk i attends to itself and to the clean chunks before it; a clean chunk attends to itself and to the clean chunks before it.
    Of the chunks before it, a layer attends to those in its reach.
    visible: bool [B, L], clean chunks that others may attend to; valid: bool [B, L * F], frames that exist. Chunk i has the temporal
    positions i F to i F + F - 1, independent of its true time, since slots are read by rank.
    recurrent: layers after some blocks (`nets/stateful.py`); their state is that of the clean chunks, and all frames must be valid.
    """
    frames = clean.latents.shape[1]
    times = torch.arange(frames, device=valid.device).expand(valid.shape)
    parts = [net.frame_inputs(stream.condition, times, adapters) for stream in (clean, noisy)]
    same = parts[0].rotations.values is None  # rotations by time and place are equal in both streams

    def join(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], 1)

    keys = tuple(join(a, b) for a, b in zip(parts[0].rotations.keys, parts[1].rotations.keys, strict=True))
    values = None if same else tuple(join(a, b) for a, b in zip(parts[0].rotations.values, parts[1].rotations.values, strict=True))  # type: ignore[arg-type]
    position = parts[0].position if parts[0].position.shape[1] == 1 else join(parts[0].position, parts[1].position)
    inputs = FrameInputs(join(parts[0].embedded, parts[1].embedded), position, Rotations(keys, values))  # type: ignore[arg-type]
    x, levels = join(clean.latents, noisy.latents), join(clean.levels, noisy.levels)
    attention = _attention(net.config, visible, valid)
    after = carried_by_clean(recurrent, net.chunk, visible) if recurrent is not None else None
    velocity, kept = net.run(x, levels, inputs, attention, adapters, collect=True, after=after)
    return velocity[:, frames:], tuple(KeysValues(layer.keys[:, :frames], layer.values[:, :frames]) for layer in kept)


def clean_stream(
    net: VideoDiT, clean: Stream, visible: Tensor, valid: Tensor, adapters: Adapters | None = None, after: After | None = None
) -> tuple[KeysValues, ...]:
    """Unrotated keys and values of the clean chunks alone: the same that `two_streams` returns."""
    times = torch.arange(clean.latents.shape[1], device=valid.device).expand(valid.shape)
    inputs, attention = net.frame_inputs(clean.condition, times, adapters), _attention(net.config, visible, valid)
    return net.run(clean.latents, clean.levels, inputs, attention, adapters, collect=True, after=after)[1]


def _attention(config: VideoDiTConfig, visible: Tensor, valid: Tensor) -> Attend:
    """Attention of the clean stream, or of both streams, as `two_streams` describes it."""
    size = config.chunk * config.tokens
    exists = valid.repeat_interleave(config.tokens, 1)
    seen = exists & visible.repeat_interleave(size, 1)
    reach = config.reach or (visible.shape[1],) * config.depth
    return _masked(seen, exists, size, reach) if valid.device.type == "cuda" else _chunked(seen, exists, size, reach)


def _chunked(seen: Tensor, exists: Tensor, size: int, reach: tuple[int, ...]) -> Attend:
    """One attention per chunk and stream, over only the keys that it may attend to: 72 of 256 blocks for 8 chunks. For CPUs."""
    tokens = exists.shape[1]
    every = bool(seen.all())  # then no mask is needed

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:2], q.shape[2] * q.shape[3])
        for first in range(0, tokens, size):
            own, past = slice(first, first + size), slice(max(0, first - reach[layer] * size), first)
            mask = None if every else torch.cat([seen[:, past], exists[:, own]], 1)
            for begin in range(first, q.shape[1], tokens):
                part = slice(begin, begin + size)
                keys, values = (torch.cat([x[:, past], x[:, part]], 1) for x in (k, v))
                out[:, part] = attend(q[:, part], keys, values, mask)
        return out

    return attention


def _masked(seen: Tensor, exists: Tensor, size: int, reach: tuple[int, ...]) -> Attend:
    """One attention over both streams with a mask [B, 2 M, 2 M], M = L F N tokens, or over the clean one. For a GPU."""
    chunk = torch.arange(exists.shape[1], device=exists.device) // size
    ago = chunk[:, None] - chunk[None]  # [M, M]: query, key
    own = (ago == 0) & exists[:, None]
    nothing = torch.zeros_like(own)
    masks = {}
    for r in set(reach):
        past = (ago > 0) & (ago <= r) & seen[:, None]
        masks[r] = torch.cat([torch.cat([past | own, nothing], 2), torch.cat([past, own], 2)], 1)[:, None]

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        count = q.shape[1]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mask = masks[reach[layer]][..., :count, :count]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    return attention
