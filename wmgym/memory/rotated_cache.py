"""WorldTrace's writers on a key-value cache of somebody else's model, whose keys are stored already rotated.

    rotated keys --unrotate--> canonical keys --writer--> slots + recent window --rotate--> keys at slot ranks

A video diffusion model such as Self-Forcing keeps, per layer, keys and values [B, T, heads, d] of T tokens, frame after frame. The first
pairs of a head rotate with time, the others with row and column, and only the first are turned here. The rewritten cache has at most
`slots + recent` chunks before the present, at the temporal positions 0, F, 2 F, ..., so a rolling generation stays within the positions
that the model was trained on, at any length (v_s = q - (L_train - 1 - s) F with q = (L_train - 1) F).

Rewriting a cache that was rewritten before treats its slots as chunks: landmarks stay, but Field gives an old mean the weight of one chunk.
Angles are computed in float64, as in Wan 2.1, and keys are turned in float64, so turning there and back is exact to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wmgym.core import KeysValues
from wmgym.memory.slots import ChunkKV, Writer
from wmgym.tree import map_tensors

PAIRINGS = ("interleaved", "halves")


@dataclass(frozen=True)
class RotaryTime:
    """How the temporal part of a model's rotary embedding is laid out. The defaults are those of Wan 2.1, which Self-Forcing keeps."""

    head: int = 128  # d, dimensions of a head
    band: int = 44  # dimensions that rotate with time: the first band / 2 pairs
    pairing: str = "interleaved"  # dimensions of pair k: 2 k and 2 k + 1; "halves": k and k + d / 2
    theta: float = 10_000.0  # pair k turns by t * theta ** (-2 k / band) at time t

    def __post_init__(self) -> None:
        if self.pairing not in PAIRINGS:
            raise ValueError(f"pairing must be one of {list(PAIRINGS)}, got {self.pairing!r}")
        if self.head % 2 or self.band % 2 or not 0 < self.band <= self.head:
            raise ValueError(f"head and band must be even with 0 < band <= head, got {self.head} and {self.band}")

    def angles(self, times: Tensor) -> Tensor:
        """Times [...] -> float64 [..., band / 2], radians."""
        exponent = torch.arange(0, self.band, 2, dtype=torch.float64, device=times.device) / self.band
        return times.double()[..., None] * self.theta**-exponent

    def turn(self, keys: Tensor, times: Tensor) -> Tensor:
        """Keys [B, T, heads, d] turned ahead by `times` [B, T] or [T] (negative: back), computed in float64, in the dtype of the keys."""
        if keys.shape[-1] != self.head:
            raise ValueError(f"keys must have heads of {self.head} dimensions, got {keys.shape[-1]}")
        angle = self.angles(times)[..., None, :]
        cos, sin = angle.cos(), angle.sin()
        wide, pairs = keys.double(), self.band // 2
        split = wide.unflatten(-1, (-1, 2)) if self.pairing == "interleaved" else wide.unflatten(-1, (2, -1)).transpose(-1, -2)
        x, y = split[..., :pairs, :].unbind(-1)
        turned = torch.cat([torch.stack([x * cos - y * sin, x * sin + y * cos], -1), split[..., pairs:, :]], -2)
        flat = turned if self.pairing == "interleaved" else turned.transpose(-1, -2)
        return flat.flatten(-2).to(keys.dtype)


@dataclass(frozen=True)
class RotatedCache:
    """Keys and values of past frames, as another model keeps them."""

    layers: tuple[KeysValues, ...]  # [B, frames * N, heads, d] each; keys are rotated to `times`
    times: Tensor  # int64 [frames]: temporal position of each frame


def rewrite(cache: RotatedCache, writer: Writer, layout: RotaryTime, *, tokens: int, chunk: int, recent: int) -> RotatedCache:
    """The cache with all but the newest `recent` chunks written into the writer's slots, at positions by rank.

    tokens: N, tokens of a frame. chunk: F, frames made at a time. The present chunk's first frame then has the position
    `len(result.times)`. All rows must fill the same number of slots, since a cache has no mask: landmarks of several rows may differ, so
    give those one row at a time. ValueError for sizes that do not fit.
    """
    frames = len(cache.times)
    shape = cache.layers[0].keys.shape
    if chunk < 1 or tokens < 1 or recent < 0 or frames % chunk:
        raise ValueError(f"the cache must hold whole chunks: {frames} frames, chunk={chunk}, tokens={tokens}, recent={recent}")
    if shape[1] != frames * tokens:
        raise ValueError(f"keys must have frames * tokens = {frames} * {tokens} = {frames * tokens} entries, got {shape[1]}")
    per_token = cache.times.repeat_interleave(tokens)
    canonical = [KeysValues(layout.turn(layer.keys, -per_token), layer.values) for layer in cache.layers]
    count = frames // chunk
    chunks = [_chunk(canonical, k, tokens, chunk) for k in range(count)]
    older = chunks[: max(0, count - recent)]
    everywhere = torch.ones(shape[0], dtype=torch.bool, device=cache.times.device)
    state = writer.init(shape[0], map_tensors(lambda x: torch.zeros_like(x[:1]), chunks[0]))
    for one in older:
        state = writer.write(state, one, everywhere)
    slots = writer.read(state)
    held = (slots.members > 0).sum(1)
    if bool((held != held[0]).any()):
        raise ValueError(f"rows fill different numbers of slots: {held.tolist()}; rewrite them one at a time")
    kept = int(held[0])
    times = torch.arange((kept + len(chunks[len(older) :])) * chunk, device=cache.times.device)
    layers = []
    for i in range(len(cache.layers)):
        parts = [KeysValues(slots.chunks.layers[i].keys[:, s], slots.chunks.layers[i].values[:, s]) for s in range(kept)]
        parts += [one.layers[i] for one in chunks[len(older) :]]
        keys, values = (torch.cat([getattr(part, name).flatten(1, 2) for part in parts], 1) for name in ("keys", "values"))
        layers.append(KeysValues(layout.turn(keys, times.repeat_interleave(tokens)), values))
    return RotatedCache(tuple(layers), times)


def _chunk(layers: Sequence[KeysValues], number: int, tokens: int, chunk: int) -> ChunkKV:
    """Chunk `number` of unrotated layers. Its pose is not known, and not needed."""
    part = slice(number * chunk * tokens, (number + 1) * chunk * tokens)
    cut = tuple(KeysValues(*(x[:, part].unflatten(1, (chunk, tokens)) for x in (layer.keys, layer.values))) for layer in layers)
    batch, device = len(layers[0].keys), layers[0].keys.device
    valid = torch.ones(batch, chunk, dtype=torch.bool, device=device)
    return ChunkKV(cut, torch.zeros(batch, chunk, 5, device=device), valid, torch.full((batch,), number * chunk, device=device))
