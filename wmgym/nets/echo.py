"""Echo-Memory's network: one video network and one of several read-outs (King et al. 2026, "A controlled study of memory").

    context frames --each by itself, one clean pass--> keys and values at ranks before the chunk --+
    noisy chunk ------------------------------------------------------------------ VideoDiT <------+--> velocity
                                                                            read-out after some blocks

The backbone's weights are frozen. All that is trained is `EchoDiT.delta`: low-rank adapters on the backbone's linear layers, an encoding of
each frame's camera relative to the chunk's first frame, and the read-out of one family. Without a delta the network is its backbone, which
reads frames by themselves.

read-out      what the memory gives
context       frames only
summary-*     the tokens of a spatial summary (`nets/summary.py`): none, frame, condition, cross
block_wise,
convolution   a recurrent state (`nets/recurrence.py`)
geometry      frames, which are placed in the world by a depth head and drawn into the target view (`nets/splat.py`)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmgym.core import Adapters, Condition, Context, ContextFrames, ContextKV, ContextTokens, KeysValues, Trace
from wmgym.geometry import relative_camera
from wmgym.nets.layers import attend, hidden_matrices, squash
from wmgym.nets.lora import LowRank, shapes_of
from wmgym.nets.merge import merge
from wmgym.nets.recurrence import KINDS, layers_with_readout
from wmgym.nets.splat import View, place, render
from wmgym.nets.stateful import blank_state, carried, in_order, state_shapes
from wmgym.nets.summary import CrossAttention, Mixing
from wmgym.nets.video_dit import After, FrameInputs, VideoBound, VideoDiT, VideoDiTConfig
from wmgym.tree import map_tensors

READOUTS = ("context", "summary-none", "summary-frame", "summary-condition", "summary-cross", "block_wise", "convolution", "geometry")
MIXED = READOUTS[2:5]  # that read a spatial summary
ADAPTED = ("qkv", "out", "mlp_in", "mlp_out")  # layers of each block with adapters
RANK = 8
FARTHEST = 256.0  # metres: depth of what has no surface, such as sky
SUMMARY_RANK = 2  # temporal position of a summary that is read as a frame, behind the newest frame


class DepthHead(nn.Module):
    """Depth at the latents' resolution: latents [..., C, h, w] -> metres along the optical axis [..., h, w]."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        layers = [nn.Conv2d(channels, width, 3, 1, 1), nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1), nn.SiLU(), nn.Conv2d(width, 1, 3, 1, 1)]
        self.body = nn.Sequential(*layers)
        nn.init.zeros_(self.body[-1].weight)  # type: ignore[arg-type]
        nn.init.ones_(self.body[-1].bias)  # type: ignore[arg-type]

    def log_depth(self, latents: Tensor) -> Tensor:
        flat = latents.flatten(0, -4).to(self.body[0].weight.dtype)  # type: ignore[arg-type]
        return self.body(flat)[:, 0].unflatten(0, latents.shape[:-3]).float()

    def forward(self, latents: Tensor) -> Tensor:
        return self.log_depth(latents).exp().clamp(max=FARTHEST)

    def loss(self, latents: Tensor, depth: Tensor) -> Tensor:
        """Mean absolute error of the logarithm; depth [..., h, w] in metres, infinite where nothing is."""
        return (self.log_depth(latents) - depth.clamp(0.1, FARTHEST).log()).abs().mean()


class Delta(nn.Module):
    """All that a family adds to the backbone."""

    camera_place: Tensor  # float32 [4]: see `nets/splat.py`

    def __init__(self, backbone: VideoDiT, readout: str, rank: int) -> None:
        super().__init__()
        config = backbone.config
        d, inner = config.width, config.width // 2
        self.low_rank = LowRank(shapes_of(backbone.blocks, ADAPTED), rank)
        self.camera = nn.Linear(12, d)
        nn.init.zeros_(self.camera.weight)
        nn.init.zeros_(self.camera.bias)
        layers = layers_with_readout(config.depth)
        if readout in KINDS:
            size = inner if readout == "block_wise" else inner // 2
            self.recurrent = nn.ModuleDict({str(i): KINDS[readout](d, size) for i in layers})
        elif readout in MIXED:
            self.mixing = Mixing(config.latent_shape, config.grid)
            if readout == "summary-condition":
                self.to_condition = nn.Linear(config.latent_shape[0], d)
                nn.init.zeros_(self.to_condition.weight)
                nn.init.zeros_(self.to_condition.bias)
            elif readout == "summary-cross":
                self.cross = nn.ModuleDict({str(i): CrossAttention(d, inner, config.latent_shape[0]) for i in layers})
        elif readout == "geometry":
            self.depth = DepthHead(config.latent_shape[0])
            self.rendered, self.hole = nn.Parameter(torch.zeros(d)), nn.Parameter(torch.zeros(d))
            self.register_buffer("camera_place", torch.zeros(4))

    def adapters(self) -> Adapters:
        found = self.low_rank.adapters()
        return replace(found, layers={f"blocks.{name}": pair for name, pair in found.layers.items()})


@dataclass(frozen=True, eq=False)
class EchoBound:
    """The network with fixed condition and contexts."""

    net: EchoDiT
    bound: VideoBound
    state: Any  # recurrent state before the chunk; None without one
    summary: Tensor | None  # mixed tokens [B, N, C] of a spatial summary

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        """Noisy latents [B, F, C, h, w] and noise levels [B] in [0, 1] -> velocity, of x's shape."""
        return replace(self.bound, after=self._after(1, {}))(x, level)

    def trace(self, latents: Tensor, poses: Tensor) -> Trace:
        """The recurrent state after a clean pass over latents [B, F, C, h, w] at poses [B, F, 5]; no keys and values."""
        return Trace(state=self.roll(latents, poses, 1))

    def roll(self, latents: Tensor, poses: Tensor, length: int) -> tuple[Tensor, ...]:
        """As `trace`, for a batch in which each `length` successive rows are successive chunks of one world: the state after each chunk.

        The state before the first chunk of each world is that of its row.
        """
        if self.state is None:
            return ()
        net = self.net
        inputs = net.inputs(self.bound.condition.at(poses), self.summary)
        level = torch.full_like(poses[:, 0, 0], net.config.context_level)
        states: dict[int, Tensor] = {}
        replace(self.bound, inputs=inputs, after=self._after(length, states))(latents, level)
        return in_order(states)

    def _after(self, length: int, states: dict[int, Tensor]) -> After | None:
        """What happens to the tokens after each block. The states after each chunk are put into `states`."""
        delta = self.net.delta
        if delta is not None and self.net.readout == "summary-cross":
            assert self.summary is not None
            tokens = self.summary
            return lambda i, h: delta.cross[str(i)](h, tokens) if str(i) in delta.cross else h
        if delta is None or self.state is None:
            return None
        return carried(delta.recurrent, self.state, states, length)


class EchoDiT(nn.Module):
    """A `core.Network`. readout: one of `READOUTS`; "": the backbone without a delta."""

    predicts = "velocity"

    def __init__(self, config: VideoDiTConfig, readout: str = "", rank: int = RANK) -> None:
        super().__init__()
        if readout not in ("", *READOUTS):
            raise ValueError(f"readout must be one of {', '.join(READOUTS)}, got {readout!r}")
        self.config, self.readout = config, readout
        self.chunk, self.latent_shape = config.chunk, config.latent_shape
        self.backbone = VideoDiT(config)
        self.delta = Delta(self.backbone, readout, rank) if readout else None

    def matrices(self) -> Iterable[nn.Parameter]:
        """The matrices of the delta's read-out."""
        return hidden_matrices(self.delta) if self.delta is not None else []

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the recurrent state, one for each layer that has one, without the batch."""
        if self.delta is None or self.readout not in KINDS:
            return ()
        return state_shapes(self.delta.recurrent, self.config.tokens)

    # -- once per env step ------------------------------------------------------------------------------------------------------

    def bind(self, condition: Condition, contexts: tuple[Context, ...]) -> EchoBound:
        """Encode the context's frames and embed what does not depend on the noise level. All contexts are one stream."""
        context = merge(contexts)
        if context.kv is not None:
            raise ValueError("this network reads frames; the memory gives keys and values of past chunks")
        adapters = self._adapters()
        summary = self._summary(context.tokens)
        frames = _joined(context.frames[:1] if self.readout == "geometry" else context.frames)
        parts = [self._encoded(frames, condition, adapters)] if frames is not None else []
        if summary is not None and self.readout == "summary-frame" and frames is not None:
            assert context.tokens is not None
            parts.append(self._summary_frame(summary, context.tokens, frames, condition, adapters))
        covered = None
        if self.readout == "geometry" and context.frames:
            drawn, covered = self._drawn(context.frames, condition, adapters)
            parts.append(drawn)
        bound = self.backbone.bind(condition, (Context(kv=_side_by_side(parts), adapters=adapters),))
        bound = replace(bound, inputs=self.inputs(condition, summary), routing=context.routing)
        if covered is not None:
            bound = self._hiding(bound, covered)
        return EchoBound(self, bound, self._state(context, len(condition.poses)), summary)

    def inputs(self, condition: Condition, summary: Tensor | None) -> FrameInputs:
        """Inputs of the chunk's own frames, with the camera relative to the first of them."""
        times = torch.arange(condition.poses.shape[1], device=condition.poses.device).expand(condition.poses.shape[:2])
        found = self._with_camera(self.backbone.frame_inputs(condition, times, self._adapters()), condition.poses, condition.poses[:, :1])
        if summary is not None and self.readout == "summary-condition":
            assert self.delta is not None
            added = self.delta.to_condition(summary.mean(1).to(found.embedded.dtype))[:, None]
            found = replace(found, embedded=found.embedded + added)
        return found

    def _adapters(self) -> Adapters | None:
        return self.delta.adapters() if self.delta is not None else None

    def _with_camera(self, inputs: FrameInputs, poses: Tensor, reference: Tensor) -> FrameInputs:
        if self.delta is None:
            return inputs
        camera = relative_camera(poses, reference)
        told = torch.cat([squash(camera[..., :3]), camera[..., 3:]], -1).to(inputs.embedded.dtype)
        return replace(inputs, embedded=inputs.embedded + self.delta.camera(told))

    def _state(self, context: Context, batch: int) -> Any:
        if self.delta is None or self.readout not in KINDS:
            return None
        return context.state if context.state is not None else blank_state(self.delta.recurrent, batch, self.config.tokens)

    # -- context ----------------------------------------------------------------------------------------------------------------

    def _encoded(self, frames: ContextFrames, condition: Condition, adapters: Adapters | None) -> ContextKV:
        """Keys and values of frames, each of which attends to itself only, at their rank: the newest is 1 frame before the chunk."""
        newer = frames.valid[:, None] & (frames.times[:, None] > frames.times[:, :, None])
        rank = newer.sum(2) + 1  # [B, n]
        start = torch.zeros_like(condition.origin)  # not used
        shown = Condition(frames.actions, frames.egomotion, frames.poses, frames.times, start, condition.origin)
        inputs = self.backbone.frame_inputs(shown, -rank, adapters)
        inputs = self._with_camera(inputs, frames.poses, condition.poses[:, :1])
        layers = self._keys_values(frames.latents, inputs, adapters)
        if frames.gains is not None:
            layers = tuple(KeysValues(x.keys, x.values * frames.gains[..., None, None, None].to(x.values.dtype)) for x in layers)
        return ContextKV(layers, rank, frames.valid, frames.poses)

    def _keys_values(self, latents: Tensor, inputs: FrameInputs, adapters: Adapters | None) -> tuple[KeysValues, ...]:
        """Unrotated keys and values [B, n, N, heads, d] of frames by themselves."""
        count = self.config.tokens

        def alone(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.unflatten(1, (-1, count)).flatten(0, 1) for x in (q, k, v))
            return attend(q, k, v).view(latents.shape[0], -1, self.config.width)

        level = torch.full_like(inputs.embedded[..., 0], self.config.context_level)
        return self.backbone.run(latents, level, inputs, alone, adapters, collect=True)[1]

    # -- spatial summary --------------------------------------------------------------------------------------------------------

    def _summary(self, tokens: ContextTokens | None) -> Tensor | None:
        """Mixed tokens [B, N, C]; None where nothing is read of them."""
        if tokens is None or self.delta is None or self.readout not in MIXED:
            return None
        cells = torch.where(tokens.valid[..., None], tokens.tokens, torch.zeros_like(tokens.tokens))
        return self.delta.mixing(cells.to(self.backbone.position.dtype))

    def _summary_frame(
        self, summary: Tensor, given: ContextTokens, frames: ContextFrames, condition: Condition, adapters: Adapters | None
    ) -> ContextKV:
        """The summary as a frame at the newest frame's pose."""
        picture = summary.transpose(1, 2).unflatten(2, self.config.grid)
        latents = picture.repeat_interleave(self.config.patch, 2).repeat_interleave(self.config.patch, 3)[:, None]
        newest = replace(map_tensors(lambda x: x[:, :1], frames), latents=latents, gains=None)
        found = self._encoded(newest, condition, adapters)
        return replace(found, offsets=torch.full_like(found.offsets, SUMMARY_RANK), valid=given.valid[:, :1])

    # -- geometry ---------------------------------------------------------------------------------------------------------------

    def _drawn(self, groups: tuple[ContextFrames, ...], condition: Condition, adapters: Adapters | None) -> tuple[ContextKV, Tensor]:
        """Remembered frames drawn into the chunk's views, as frames at these poses and times, and which tokens show something [B, F, N]."""
        assert self.delta is not None
        frames = _joined(groups)
        assert frames is not None
        picture, there = drawn(frames, self.delta.depth(frames.latents), condition.poses, self.delta.camera_place, self.config)
        covered = F.max_pool2d(there.flatten(0, 1)[:, None].float(), self.config.patch).view(*there.shape[:2], -1) > 0
        times = torch.arange(there.shape[1], device=there.device).expand(there.shape[:2])
        inputs = self._with_camera(self.backbone.frame_inputs(condition, times, adapters), condition.poses, condition.poses[:, :1])
        marks = self.delta.rendered + torch.where(covered[..., None], torch.zeros_like(self.delta.hole), self.delta.hole)
        inputs = replace(inputs, position=inputs.position + marks)
        layers = self._keys_values(picture, inputs, adapters)
        return ContextKV(layers, -times, torch.ones_like(times, dtype=torch.bool), condition.poses), covered

    def _hiding(self, bound: VideoBound, covered: Tensor) -> VideoBound:
        """The same without the tokens of drawn frames that show nothing; these frames are the last of the past."""
        batch, own = len(covered), bound.condition.poses.shape[1] * self.config.tokens
        past = bound.past[0][0].shape[1]
        told = torch.ones(batch, past + own, dtype=torch.bool, device=covered.device)
        told[:, past - covered[0].numel() : past] = covered.flatten(1)
        return replace(bound, masks=tuple(told if mask is None else told & mask for mask in bound.masks))


def drawn(frames: ContextFrames, depth: Tensor, poses: Tensor, camera: Tensor, config: VideoDiTConfig) -> tuple[Tensor, Tensor]:
    """Latents of remembered frames drawn into the views from poses [B, F, 5]: [B, F, C, h, w], and where they show something: bool.

    depth: float32 [B, n, h, w], of the frames, exact or predicted.
    """
    view = View(config.field_of_view, config.aspect)
    points = place(depth, frames.poses, camera, view).flatten(1, 3)
    features = frames.latents.transpose(2, 3).transpose(3, 4).flatten(1, 3)  # [B, n h w, C]
    exists = frames.valid[..., None].expand(-1, -1, depth.shape[2] * depth.shape[3]).flatten(1)
    return render(points, features, exists, poses, camera, view, config.latent_shape[1:])


def _joined(groups: tuple[ContextFrames, ...]) -> ContextFrames | None:
    """One group of frames; None without any."""
    if not groups:
        return None
    if any(group.level for group in groups):
        raise ValueError(f"this network reads whole frames, the memory gives levels {[group.level for group in groups]}")
    if any(group.gains is not None for group in groups):
        groups = tuple(g if g.gains is not None else replace(g, gains=torch.ones_like(g.offsets, dtype=torch.float32)) for g in groups)
    return map_tensors(_beside, *groups)


def _side_by_side(parts: list[ContextKV]) -> ContextKV | None:
    """Several groups of keys and values as one; None without any."""
    return map_tensors(_beside, *parts) if parts else None


def _beside(*parts: Tensor) -> Tensor:
    return torch.cat(parts, 1)
