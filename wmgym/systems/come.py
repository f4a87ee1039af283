"""CoME ("Composition of memory experts for diffusion world models"): experts of the past, composed while a chunk is generated.

    base  the video network reading one past chunk
    stm   short-term memory: the base with trained low-rank adapters, reading 9 past chunks
    ltm   long-term memory: the base with low-rank adapters that are fitted to this episode, while it runs
    sltm  spatial long-term memory: a coarser network that sees only where each token looks, with adapters fitted in the same way

none            the base alone (the reference)
window          the base reading L_train - 1 past chunks
stm, ltm, sltm  the base and this expert
stm-ltm         the base and these two
come            all of them
sliding, full   not composed: the base with trained adapters, reading 50 past chunks; attention slides as in stm, or sees all of them
ssm             not composed: the base with trained adapters, reading 4 past chunks, and a recurrent state after every third block that
                carries the rest of the episode

`ltm` has two settings. "literal" is the paper's: windows of 5 chunks with one chunk of context, adapters in attention and MLP layers, the
training's own rate. "addressed" departs from it where the paper's gave nothing in our trials: windows of one chunk without a past, adapters
also on the layer that embeds what each token looks at, a higher rate, and the composition

    base with its past + weight * (adapted without a past - not adapted without a past)

`sltm` is always fitted on windows of one chunk, and contrasted with itself before fitting. The paper contrasts it with the same network
without poses, and infers poses with an encoder of its own; here they come from the kinematics and the motion head, as everywhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from wmgym.core import Memory
from wmgym.diffusion.compose import MODES
from wmgym.memory.lora_memory import Fitting, LoraMemory
from wmgym.memory.recurrent import StateMemory
from wmgym.memory.role import RoleMemory
from wmgym.memory.slots import SlotMemory
from wmgym.nets.composed import BLOCK_LAYERS, AttentionExpert, Composed, ComposedConfig, Role
from wmgym.nets.lora import shapes_of
from wmgym.nets.stateful import state_shapes
from wmgym.nets.video_dit import VideoDiTConfig
from wmgym.systems.latent import build_model
from wmgym.systems.system import MemoryChoice, MemoryHost, System
from wmgym.systems.video import VideoConfig, chunk_sizes, taken_over
from wmgym.systems.window_loss import VideoWindowLoss
from wmgym.world_model import WorldModel

ATTENTION = {
    "stm": AttentionExpert(),
    "sliding": AttentionExpert(window=51),
    "full": AttentionExpert(window=51, reach=None),
    "ssm": AttentionExpert(window=5, reach=None, recurrent=True),
}
EXPERTS = ("base", "ltm", "sltm", *ATTENTION)
TRAINED = ("sltm", *ATTENTION)  # experts with weights of their own
SETTINGS = ("addressed", "literal")
LITERAL_CHUNKS = 5  # of a window: 20 frames


@dataclass(frozen=True)
class CoMEConfig(VideoConfig):
    system: str = "come"
    memory: str = "ltm"
    experts: tuple[str, ...] = ()  # trained experts that these weights have

    def composed(self) -> ComposedConfig:
        """Sizes of the network."""
        net: VideoDiTConfig = self.net
        spatial = replace(net, patch=2 * net.patch, depth=max(1, net.depth // 2), pose_rotary=False, address=True, window=1, reach=())
        attention = {name: ATTENTION[name] for name in self.experts if name in ATTENTION}
        return ComposedConfig(net, attention, spatial if "sltm" in self.experts else None)


@dataclass(frozen=True)
class CoMEOptions:
    """Keywords of `CoME-*` envs."""

    ltm: str = "addressed"  # how adapters are fitted and read: "addressed", or "literal" as in the paper
    updates: int = 25  # steps each time that something is memorised
    memorise: str = "observed"  # frames that are memorised: "observed" ones, "all" (dreamed ones too) or "off"
    memorise_at_reset: bool = True  # fit to the opening at once, not only at the first `observe`
    memorise_window: int = 50  # frames; dreamed ones are memorised when so many are new
    replay: str = "all"  # what is fitted again: "all" frames that are kept, or the newest `memorise_window`
    rank: int = 24  # of the adapters
    memorise_rate: float | None = None  # AdamW's rate. Default: 2.5e-3 addressed, 1e-3 (the training's) literal
    memorise_batch: int | None = None  # windows per step. Default: 8 addressed, 1 literal
    compose: str = "guided"  # `diffusion.compose.MODES`; "sum" is equation 6 of the paper
    alphas: float | Mapping[str, float] = 2.0  # of each expert, in modes "sum" and "mean"
    weights: float | Mapping[str, float] = 1.0  # of each expert
    baseline: str = "empty"  # what baselines read in place of the past: nothing, or "noise" at the maximal level (the authors' code)
    ltm_baseline: str = "empty"  # of ltm: "empty" (section 3.3), or the "context" of the base (equation 4)

    def __post_init__(self) -> None:
        if self.ltm not in SETTINGS:
            raise ValueError(f"ltm must be one of {list(SETTINGS)}, got {self.ltm!r}")
        if self.compose not in MODES:
            raise ValueError(f"compose must be one of {list(MODES)}, got {self.compose!r}")
        for name, least in (("alphas", 1.0), ("weights", 0.0)):
            given = getattr(self, name)
            each = given if isinstance(given, Mapping) else dict.fromkeys(EXPERTS, given)
            if unknown := sorted(set(each) - set(EXPERTS)):
                raise ValueError(f"{name} must name experts in {list(EXPERTS)}, got {unknown[0]!r}")
            for expert, value in each.items():
                if not value >= least:
                    raise ValueError(f"{name} must be at least {least}, got {value!r} for expert {expert!r}")
        for expert in EXPERTS:
            self.role(expert)
        self.fitting(self.ltm == "literal")

    def fitting(self, literal: bool) -> Fitting:
        """How adapters are fitted, as in the paper or not."""
        rate = self.memorise_rate if self.memorise_rate is not None else (1e-3 if literal else 2.5e-3)
        batch = self.memorise_batch if self.memorise_batch is not None else (1 if literal else 8)
        chunks = LITERAL_CHUNKS if literal else 1
        return Fitting(
            self.rank,
            self.updates,
            batch,
            chunks,
            rate,
            when=self.memorise,
            at_reset=self.memorise_at_reset,
            window=self.memorise_window,
            replay=self.replay,
        )

    def role(self, expert: str) -> Role:
        """How the composition reads an expert's context."""
        weight = self.weights.get(expert, 1.0) if isinstance(self.weights, Mapping) else self.weights
        alpha = self.alphas.get(expert, 1.0) if isinstance(self.alphas, Mapping) else self.alphas
        past = self.ltm == "literal"
        return Role(expert, self.compose, float(weight), float(alpha), past, self.baseline, self.ltm_baseline)


def _memories(experts: tuple[str, ...], window: int | None, host: MemoryHost) -> tuple[Memory[Any], ...]:
    """The memories of these experts. window: chunks that the base attends to, its own included; None: L_train."""
    net: VideoDiTConfig = host.config.net
    options: CoMEOptions = host.options
    composed: Any = host.network
    recent = {"base": (window or net.window) - 1, **{name: expert.window - 1 for name, expert in ATTENTION.items()}}
    memories: list[Memory[Any]] = []
    layers = 0
    for expert in experts:
        if expert in ("ltm", "sltm"):
            memories.append(RoleMemory(_long_term(expert, host), options.role(expert)))
        else:
            moves = options.baseline == "noise"
            kept: Memory[Any] = SlotMemory(**chunk_sizes(host), recent=recent[expert], keeps_moves=moves, action_size=net.action_size)
            recurrent = composed.recurrent_layers(expert)
            if recurrent is not None:
                kept = StateMemory(kept, state_shapes(recurrent, net.tokens))
            memories.append(RoleMemory(kept, options.role(expert), layers, net.depth))
            layers += net.depth
    return tuple(memories)


def _long_term(expert: str, host: MemoryHost) -> LoraMemory:
    options: CoMEOptions = host.options
    literal = expert == "ltm" and options.ltm == "literal"
    composed: Any = host.network
    network = composed.base if expert == "ltm" else composed.sltm
    net: VideoDiTConfig = network.config
    kinds = BLOCK_LAYERS if literal or not net.address else (*BLOCK_LAYERS, "address")
    return LoraMemory(
        net.latent_shape,
        shapes_of(network, kinds),
        VideoWindowLoss(network, context=literal),
        net.chunk,
        options.fitting(literal),
        host.config.memory_budget,
        net.action_size,
        chunk_sizes(host)["dtype"],
        _FITS.setdefault(network, OrderedDict()),
    )


_FITS: WeakKeyDictionary[nn.Module, OrderedDict[bytes, Any]] = WeakKeyDictionary()  # adapters of openings, by network


def build(config: CoMEConfig) -> WorldModel:
    """The model with new weights."""
    return build_model(config, lambda net: Composed(config.composed()), SYSTEM)


def on_video(config: VideoConfig, deltas: tuple[str, ...]) -> CoMEConfig:
    """The config for the weights of a video network and trained experts."""
    return CoMEConfig(**taken_over(config), experts=deltas)


def base_name(name: str) -> str:
    """The name of a video network's tensor here."""
    return f"net.base.{name.removeprefix('net.')}" if name.startswith("net.") else name


def _choice(*experts: str, base: bool = True, window: int | None = 2) -> MemoryChoice:
    chosen = ("base", *experts) if base else experts
    return MemoryChoice(partial(_memories, chosen, window), deltas=tuple(e for e in experts if e in TRAINED))


SYSTEM = System(
    name="come",
    config=CoMEConfig,
    build=build,
    memories={
        "none": _choice(),
        "window": _choice(window=None),
        "stm": _choice("stm"),
        "ltm": _choice("ltm"),
        "sltm": _choice("sltm"),
        "stm-ltm": _choice("stm", "ltm"),
        "come": _choice("stm", "ltm", "sltm"),
        "sliding": _choice("sliding", base=False),
        "full": _choice("full", base=False),
        "ssm": _choice("ssm", base=False),
    },
    default_memory="ltm",
    options=CoMEOptions,
    comparisons=(*((name, "none") for name in ("stm", "ltm", "sltm", "come")), ("come", "stm"), ("come", "ltm"), ("come", "sltm")),
    train="wmgym.train.come:TrainArgs:train",
    train_delta="wmgym train come --expert {delta} --base BASE --data DATA",
    base="video",
    on_base=on_video,
    base_name=base_name,
)
