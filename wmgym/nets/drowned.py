"""A past of pure noise, for the baseline that CoME's authors contrast an expert with (their code; the paper leaves the past out).

    poses, actions and motions of past chunks + noise at level 1 --one pass of the clean stream--> keys and values in place of the past's

These are the keys that a twentieth of the training's windows read (`VideoLossConfig.drowned`): the frames are noise, and what is said about
them is true. The noise is the same in all rows and at every step, so rows stay independent and an episode can be repeated.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from wmgym import rng
from wmgym.core import Adapters, Condition, ContextKV
from wmgym.nets.two_streams import Stream, clean_stream
from wmgym.nets.video_dit import After, VideoDiT
from wmgym.tree import map_tensors

SEED = 0  # of the noise


def drowned(net: VideoDiT, past: ContextKV, origin: Tensor, adapters: Adapters | None = None, after: After | None = None) -> ContextKV:
    """The past with keys and values of noise, oldest frame first. `past` is of whole chunks and has moves, or it raises `ValueError`."""
    if not past.moves:
        raise ValueError("a past of noise needs the actions and motions of the past frames, and the memory gives none")
    chunk, rows = net.config.chunk, torch.arange(len(origin), device=origin.device)[:, None]
    order = past.offsets.argsort(1, descending=True)
    past = map_tensors(lambda x: x[rows, order], replace(past, layers=()))
    assert past.poses is not None
    actions, egomotion = past.moves
    there = past.valid.unflatten(1, (-1, chunk)).any(2)  # bool [B, chunks]
    told = Condition(actions, egomotion, past.poses, -past.offsets, origin, origin)  # `times` and `start` are not used
    stream = Stream(noise_of(net, order), torch.ones_like(order, dtype=torch.float32), told)
    valid = past.valid | ~there.repeat_interleave(chunk, 1)  # attention over no keys would give NaN
    return replace(past, layers=clean_stream(net, stream, there, valid, adapters, after))


def noise_of(net: VideoDiT, frames: Tensor) -> Tensor:
    """The noise that stands for the past [B, S, C, h, w]; frames is any tensor [B, S]."""
    one = _noise(frames.shape[1], net.config.latent_shape, frames.device)
    return one.expand(len(frames), *one.shape[1:])


@lru_cache(maxsize=8)  # a seed would be copied to the device in every step
def _noise(frames: int, latent_shape: tuple[int, int, int], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a tensor of inference mode could not be used in training later
        return rng.noise(rng.make_keys([SEED], device), (frames, *latent_shape))
