"""The loss that adapters are fitted with: the video network's training objective on windows of what was seen (CoME, section 3.3).

Windows of one chunk have no past, so the only way to lower the loss is to learn what is seen from where. With `context` the first chunk of
a window is given, as in the paper, and each later chunk reads the one before it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wmgym import rng
from wmgym.core import Adapters, Condition, Context, Seen
from wmgym.diffusion.flow import logit_normal, target_velocity
from wmgym.geometry import step_back
from wmgym.nets.two_streams import noisy_stream, two_streams
from wmgym.nets.video_dit import VideoDiT

CONTEXT_LEVEL = 0.1  # clean chunks carry noise of a level in [0, this], as in training


class VideoWindowLoss:
    """A `core.WindowLoss` on windows of whole chunks."""

    def __init__(self, net: VideoDiT, *, context: bool) -> None:
        self.net, self.context = net, context

    def __call__(self, window: Seen, origin: Tensor, keys: Tensor, adapters: Adapters | None) -> Tensor:
        data, size = window.latents.to(torch.promote_types(window.latents.dtype, torch.float32)), self.net.chunk
        chunks = data.shape[1] // size
        start = step_back(window.poses[:, 0], window.egomotion[:, 0])
        condition = Condition(window.actions, window.egomotion, window.poses, window.times, start, origin)
        noise = rng.noise(rng.fold(keys, 0), data.shape[1:]).to(data.dtype)
        if not self.context:
            levels = rng.uniform(rng.fold(keys, 1), (1,)).expand(window.valid.shape)
            bound = self.net.bind(condition, (Context(adapters=adapters),)).among(window.valid)
            velocity = bound(noisy_stream(data, noise, levels, condition).latents, levels[:, 0])
            judged = window.valid
        else:
            empty = ~window.valid.unflatten(1, (chunks, size)).any(2)
            there = window.valid | empty.repeat_interleave(size, 1)  # attention over no keys would give NaN
            levels = logit_normal(rng.noise(rng.fold(keys, 1), (chunks,)))
            velocity = self._after(data, noise, levels, condition, there, keys, adapters)
            judged = window.valid & (torch.arange(data.shape[1], device=data.device) >= size)
        error = (velocity.to(data.dtype) - target_velocity(data, noise)).square().mean((2, 3, 4))
        return (error * judged).sum(1) / judged.sum(1).clamp(min=1)

    def _after(
        self, data: Tensor, noise: Tensor, levels: Tensor, condition: Condition, valid: Tensor, keys: Tensor, adapters: Adapters | None
    ) -> Tensor:
        """Velocity of chunks that also read the one before them, nearly without noise."""
        clean_levels = CONTEXT_LEVEL * rng.uniform(rng.fold(keys, 2), (levels.shape[1],))
        other = rng.noise(rng.fold(keys, 3), data.shape[1:]).to(data.dtype)
        per_frame = self.net.chunk
        clean = noisy_stream(data, other, clean_levels.repeat_interleave(per_frame, 1), condition)
        noisy = noisy_stream(data, noise, levels.repeat_interleave(per_frame, 1), condition)
        near = self.net.with_reach((1,) * self.net.config.depth)
        return two_streams(near, clean, noisy, torch.ones_like(levels, dtype=torch.bool), valid, adapters)[0]
