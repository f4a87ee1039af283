"""Several video networks as one (CoME, section 3.2): each reads the contexts of its own memory, and their predictions are composed.

    context of "base" --> base network ------------------------------\\
    context of "stm"  --> base network + trained low-rank adapters ----> Composition (`diffusion/compose.py`) --> velocity
    context of "ltm"  --> base network + adapters fitted to the row ---/
    context of "sltm" --> a coarser network + adapters fitted to the row

An attention expert ("stm", and those that are not composed) may also have recurrent layers, through which a state goes along the episode.
`Context.role` says which expert reads a context. All but "sltm" are one set of weights and small differences to it. Each has keys of its
own: a trace holds those of all experts that cache any, in the order of the contexts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from torch import Tensor, nn

from wmgym.core import Adapters, Condition, Context, Trace
from wmgym.diffusion.compose import Composition, Expert, coefficients
from wmgym.diffusion.flow import Velocity
from wmgym.nets.drowned import drowned
from wmgym.nets.lora import LowRank, shapes_of
from wmgym.nets.recurrence import BlockWise, layers_with_readout
from wmgym.nets.stateful import Left, StatefulBound, blank_state, carried, in_order
from wmgym.nets.video_dit import VideoBound, VideoDiT, VideoDiTConfig

BASELINES = ("empty", "noise")
LTM_BASELINES = ("empty", "context")
BLOCK_LAYERS = ("qkv", "out", "mlp_in", "mlp_out")  # that get adapters (CoME, appendix)


@dataclass(frozen=True)
class Role:
    """How a composition reads a context."""

    expert: str  # "base", "ltm", "sltm", or the name of an attention expert
    mode: str = "guided"  # of the composition (`diffusion.compose.MODES`); read from the first context
    weight: float = 1.0
    alpha: float = 1.0
    past: bool = True  # ltm: whether the adapted network also reads the newest chunk
    baseline: str = "empty"  # what a baseline reads in place of the past: nothing, or "noise" at the maximal level (the authors' code)
    ltm_baseline: str = "empty"  # of ltm: the network without adapters and without its past, or with the "context" of the base

    def __post_init__(self) -> None:
        for name, allowed in (("baseline", BASELINES), ("ltm_baseline", LTM_BASELINES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class AttentionExpert:
    """The base with trained adapters and another reach of its layers."""

    window: int = 10  # chunks that it attends to, its own included
    reach: int | None = 4  # past chunks that a sliding layer attends to; None: no layer slides
    full: tuple[int, ...] = (2, 4)  # layers that do not slide, counted from 1
    rank: int = 32  # of its adapters
    recurrent: bool = False  # whether a state goes through recurrent layers after every third block (`nets/stateful.py`)

    def layers(self, depth: int) -> tuple[int, ...]:
        """Reach of each layer."""
        most = self.window - 1
        full = [i for i in self.full if i <= depth] or [depth]
        return tuple(most if self.reach is None or layer in full else min(self.reach, most) for layer in range(1, depth + 1))


@dataclass(frozen=True)
class ComposedConfig:
    """The experts of a composed network."""

    base: VideoDiTConfig
    attention: Mapping[str, AttentionExpert] = field(default_factory=dict)  # by name
    sltm: VideoDiTConfig | None = None  # the spatial expert's network; None: there is no such expert


@dataclass(frozen=True, eq=False)
class ComposedBound:
    """The experts with fixed condition and contexts."""

    composition: Composition
    traced: tuple[VideoBound | StatefulBound, ...]  # experts whose memories store keys and values

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        return self.composition(x, level)

    def trace(self, latents: Tensor, poses: Tensor) -> Trace:
        traces = [bound.trace(latents, poses) for bound in self.traced]
        state = next((trace.state for trace in traces if trace.state is not None), None)
        return Trace(tuple(layer for trace in traces for layer in trace.kv), state)


class Composed(nn.Module):
    """A `core.Network`."""

    predicts = "velocity"

    def __init__(self, config: ComposedConfig) -> None:
        super().__init__()
        self.config = config
        self.base = VideoDiT(config.base)
        self.chunk, self.latent_shape = self.base.chunk, self.base.latent_shape
        layers = shapes_of(self.base, BLOCK_LAYERS)
        self.attention = nn.ModuleDict({name: LowRank(layers, expert.rank) for name, expert in config.attention.items()})
        stateful = [name for name, expert in config.attention.items() if expert.recurrent]
        self.recurrent = nn.ModuleDict({name: _recurrent_layers(config.base) for name in stateful})
        self.sltm = VideoDiT(config.sltm) if config.sltm is not None else None

    def matrices(self) -> Iterable[nn.Parameter]:
        return self.base.matrices()

    def attending(self, expert: str) -> tuple[VideoDiT, Adapters]:
        """The base's weights with the attention of an expert, and the expert's adapters."""
        how, difference = self.config.attention[expert], self.attention[expert]
        assert isinstance(difference, LowRank)
        return self.base.with_reach(how.layers(self.config.base.depth)), difference.adapters()

    def recurrent_layers(self, expert: str) -> nn.ModuleDict | None:
        """The recurrent layers of an attention expert; None: it has none."""
        if expert not in self.recurrent:
            return None
        layers = self.recurrent[expert]
        assert isinstance(layers, nn.ModuleDict)
        return layers

    def trained(self, expert: str) -> nn.Module:
        """The weights that a trained expert adds to the base."""
        if expert not in self.attention:
            assert self.sltm is not None
            return self.sltm
        layers = self.recurrent_layers(expert)
        return self.attention[expert] if layers is None else nn.ModuleDict({"adapters": self.attention[expert], "recurrent": layers})

    def bind(self, condition: Condition, contexts: tuple[Context, ...]) -> ComposedBound:
        """Bind each expert to the context with its role, in the order of the contexts."""
        roles = [self._role(context) for context in contexts]
        if not roles:
            raise ValueError("a composition needs a context for each of its experts, got none")
        own = tuple(c for role, c in zip(roles, contexts, strict=True) if role.expert == "base")
        base = self.base.bind(condition, own)

        @cache  # a network that is the baseline of several experts is evaluated once
        def base_without_past(how: str) -> Velocity:
            return _without_past(base, own[0] if own else Context(), how)

        pairs = coefficients(roles[0].mode, [(role.weight, role.alpha) for role in roles])
        experts, traced = list[Expert](), list[VideoBound | StatefulBound]()
        for role, context, (_, contrast) in zip(roles, contexts, pairs, strict=True):
            bound: Velocity = base
            baseline: Velocity
            how = role.baseline if contrast else "empty"  # a baseline that is not evaluated costs nothing
            if role.expert in self.attention:
                bound = self._bind_attending(condition, context, role.expert)
                baseline = _without_past(bound, context, how)
            elif role.expert == "sltm":
                assert self.sltm is not None
                bound, baseline = (self.sltm.bind(condition, given) for given in ((Context(adapters=context.adapters),), ()))
            elif role.expert == "ltm":
                bound = self._bind_adapted(condition, context, role) if role.weight else base
                how = how if role.past else "empty"  # addressed: neither network reads a past
                baseline = base if role.ltm_baseline == "context" else base_without_past(how)
            else:
                baseline = base_without_past(how)
            experts.append(Expert(bound, baseline, role.alpha, role.weight))
            if context.kv is not None and isinstance(bound, VideoBound | StatefulBound):
                traced.append(bound)  # its keys are cached also where its weight is 0
        return ComposedBound(Composition(tuple(experts), roles[0].mode), tuple(traced))

    def _role(self, context: Context) -> Role:
        if not isinstance(context.role, Role):
            raise ValueError(f"a composition needs the role of each context, got {context.role!r}")
        have = ["base", "ltm", *self.attention, *(["sltm"] if self.sltm is not None else [])]
        if context.role.expert not in have:
            raise ValueError(f"these weights have the experts {have}, not {context.role.expert!r}")
        return context.role

    def _bind_attending(self, condition: Condition, context: Context, expert: str) -> VideoBound | StatefulBound:
        network, adapters = self.attending(expert)
        bound, layers = network.bind(condition, (replace(context, adapters=adapters),)), self.recurrent_layers(expert)
        if layers is None:
            return bound
        state = context.state if context.state is not None else blank_state(layers, len(condition.poses), network.config.tokens)
        return StatefulBound(bound, layers, state)

    def _bind_adapted(self, condition: Condition, context: Context, role: Role) -> VideoBound:
        """The base under a row's adapters. The keys of its past are computed here, under the same adapters."""
        return self.base.bind(condition, (Context(context.frames if role.past else (), adapters=context.adapters),))


def _recurrent_layers(config: VideoDiTConfig) -> nn.ModuleDict:
    layers = layers_with_readout(config.depth, every=3)
    return nn.ModuleDict({str(block): BlockWise(config.width, config.width // 2) for block in layers})


def _without_past(bound: VideoBound | StatefulBound, context: Context, how: str) -> VideoBound | StatefulBound:
    """The network of an expert as its baseline: it reads nothing in place of its past, or noise, of which a state begins anew."""
    noise = context.kv if how == "noise" else None
    if isinstance(bound, VideoBound):
        return bound.reading(drowned(bound.net, noise, bound.condition.origin, bound.adapters) if noise is not None else None)
    inner, left = bound.bound, Left()
    state = blank_state(bound.layers, len(inner.condition.poses), inner.net.config.tokens)
    if noise is None:
        return StatefulBound(inner.reading(None), bound.layers, state)
    kv = drowned(inner.net, noise, inner.condition.origin, inner.adapters, carried(bound.layers, state, left))
    return StatefulBound(inner.reading(kv), bound.layers, in_order(left))
