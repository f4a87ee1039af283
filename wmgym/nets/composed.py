"""Several video networks as one (CoME, section 3.2): each reads the contexts of its own memory, and their predictions are composed.

    context of "base" --> base network ------------------------------\\
    context of "stm"  --> base network + trained low-rank adapters ----> Composition (`diffusion/compose.py`) --> velocity
    context of "ltm"  --> base network + adapters fitted to the row ---/
    context of "sltm" --> a coarser network + adapters fitted to the row

`Context.role` says which expert reads a context. All but "sltm" are one set of weights and small differences to it. Each has keys of its
own: a trace holds those of all experts that cache any, in the order of the contexts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from wmgym.core import Adapters, Condition, Context, ContextFrames, ContextKV, Trace
from wmgym.diffusion.compose import Composition, Expert
from wmgym.geometry import step_back
from wmgym.nets.lora import LowRank, shapes_of
from wmgym.nets.video_dit import VideoBound, VideoDiT, VideoDiTConfig

BASELINES = ("empty", "context")
BLOCK_LAYERS = ("qkv", "out", "mlp_in", "mlp_out")  # that get adapters (CoME, appendix)


@dataclass(frozen=True)
class Role:
    """How a composition reads a context."""

    expert: str  # "base", "stm", "ltm" or "sltm"
    mode: str = "guided"  # of the composition (`diffusion.compose.MODES`); read from the first context
    weight: float = 1.0
    alpha: float = 1.0
    past: bool = True  # ltm: whether the adapted network also reads the newest chunk
    baseline: str = "empty"  # ltm: the network without adapters and "empty", without a past; or with the "context" of the base

    def __post_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise ValueError(f"the baseline of an expert must be one of {list(BASELINES)}, got {self.baseline!r}")


@dataclass(frozen=True)
class ComposedConfig:
    """Sizes of a composed network, in addition to those of the base."""

    base: VideoDiTConfig
    stm_rank: int = 0  # of the short-term expert's adapters; 0: there is no such expert
    stm_window: int = 10  # chunks that it attends to, its own included
    stm_reach: int = 4  # past chunks that its sliding layers attend to
    stm_full: tuple[int, ...] = (2, 4)  # layers that attend to all chunks of its window, counted from 1
    sltm: VideoDiTConfig | None = None  # the spatial expert's network; None: there is no such expert

    @property
    def stm_layers(self) -> tuple[int, ...]:
        """Reach of each layer of the short-term expert."""
        depth = self.base.depth
        full = [i for i in self.stm_full if i <= depth] or [depth]
        return tuple(self.stm_window - 1 if layer in full else self.stm_reach for layer in range(1, depth + 1))


@dataclass(frozen=True, eq=False)
class ComposedBound:
    """The experts with fixed condition and contexts."""

    composition: Composition
    traced: tuple[VideoBound, ...]  # experts whose memories store keys and values

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        return self.composition(x, level)

    def trace(self, latents: Tensor, poses: Tensor) -> Trace:
        return Trace(tuple(layer for bound in self.traced for layer in bound.trace(latents, poses).kv))


class Composed(nn.Module):
    """A `core.Network`."""

    predicts = "velocity"

    def __init__(self, config: ComposedConfig) -> None:
        super().__init__()
        self.config = config
        self.base = VideoDiT(config.base)
        self.chunk, self.latent_shape = self.base.chunk, self.base.latent_shape
        self.stm = LowRank(shapes_of(self.base, BLOCK_LAYERS), config.stm_rank) if config.stm_rank else None
        self.sltm = VideoDiT(config.sltm) if config.sltm is not None else None

    def matrices(self) -> Iterable[nn.Parameter]:
        return self.base.matrices()

    def short_term(self) -> VideoDiT:
        """The base's weights with the attention of the short-term expert."""
        return self.base.with_reach(self.config.stm_layers, self.config.stm_window)

    def bind(self, condition: Condition, contexts: tuple[Context, ...]) -> ComposedBound:
        """Bind each expert to the context with its role. The first context is the base's."""
        roles = [self._role(context) for context in contexts]
        if not roles or roles[0].expert != "base":
            raise ValueError(f"the first context must be the base expert's, got those of {[role.expert for role in roles]}")
        base = self.base.bind(condition, (contexts[0],))
        empty = base.without_past()
        experts = [Expert(base, empty, roles[0].alpha, roles[0].weight)]
        traced = [base] if contexts[0].kv is not None else []
        for role, context in zip(roles[1:], contexts[1:], strict=True):
            if role.expert == "stm":
                bound = self._bind_short_term(condition, context)
                traced.append(bound)  # its keys are cached also where its weight is 0
                expert = Expert(bound, bound.without_past(), role.alpha, role.weight)
            elif role.expert == "sltm":
                assert self.sltm is not None
                adapted, plain = (self.sltm.bind(condition, given) for given in ((Context(adapters=context.adapters),), ()))
                expert = Expert(adapted, plain, role.alpha, role.weight)
            else:
                bound = self._bind_adapted(condition, context, role) if role.weight else base
                expert = Expert(bound, base if role.baseline == "context" else empty, role.alpha, role.weight)
            experts.append(expert)
        return ComposedBound(Composition(tuple(experts), roles[0].mode), tuple(traced))

    def _role(self, context: Context) -> Role:
        if not isinstance(context.role, Role):
            raise ValueError(f"a composition needs the role of each context, got {context.role!r}")
        if getattr(self, context.role.expert, self) is None:
            raise ValueError(f"these weights have no expert {context.role.expert!r}")
        return context.role

    def _bind_short_term(self, condition: Condition, context: Context) -> VideoBound:
        assert self.stm is not None
        return self.short_term().bind(condition, (replace(context, adapters=self.stm.adapters()),))

    def _bind_adapted(self, condition: Condition, context: Context, role: Role) -> VideoBound:
        """The base under a row's adapters. The keys of its past are computed here, under the same adapters."""
        adapters = context.adapters
        assert adapters is not None
        if not role.past:
            return self.base.bind(condition, (Context(adapters=adapters),))
        (newest,) = context.frames
        return self.base.bind(condition, (Context(kv=self._keys(newest, condition.origin, adapters), adapters=adapters),))

    def _keys(self, frames: ContextFrames, origin: Tensor, adapters: Adapters) -> ContextKV:
        """Keys and values of a chunk of remembered frames under some adapters."""
        start = step_back(frames.poses[:, 0], frames.egomotion[:, 0])
        past = Condition(frames.actions, frames.egomotion, frames.poses, frames.times, start, origin)
        net = self.base
        inputs = net.frame_inputs(past, torch.arange(frames.poses.shape[1], device=start.device).expand(frames.valid.shape), adapters)
        there = frames.valid | ~frames.valid.any(1, keepdim=True)  # attention over no keys would give NaN
        exists = there.repeat_interleave(net.config.tokens, 1)
        bound = VideoBound(net, past, adapters, inputs, (), (exists,) * net.config.depth)
        return ContextKV(bound.trace(frames.latents, frames.poses).kv, frames.offsets, frames.valid, frames.poses)
