"""A network, a memory, a setting and two systems that no file of wmgym knows: what a package outside of it would bring.

The network paints the newest remembered frame, brightened by the action. The second system adds one learned number to the first one's
weights, as a delta.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from gymnasium import spaces
from torch import Tensor, nn

from wmgym.core import Condition, Context, ContextTokens, Footprint, Query, Seen, Trace
from wmgym.kinematics import DiscreteKinematics
from wmgym.nets.autoencoder import Autoencoder, AutoencoderConfig
from wmgym.nets.merge import merge
from wmgym.settings import Setting
from wmgym.systems import MemoryChoice, MemoryHost, System
from wmgym.world_model import SamplerConfig, WorldModel

CODER = AutoencoderConfig(kind="pixels", factor=4, frame_size=16)

CORRIDOR = Setting(
    name="corridor",
    frame_actions=spaces.Discrete(3),
    kinematics=DiscreteKinematics(((0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (-1, 0, 0, 0, 0)), (False,) * 5, field_of_view=1.0),
    actions=("stay", "ahead", "back"),
    frame_size=16,
    fps=7,
)


@dataclass(frozen=True)
class Newest:
    frame: Tensor  # [B, C, h, w]
    count: Tensor  # int64 [B]: frames seen


@dataclass(frozen=True)
class NewestFrame:
    """Remembers the newest frame, or nothing (`blank`)."""

    latent_shape: tuple[int, int, int]
    budget: int
    blank: bool = False
    needs: frozenset[str] = frozenset()
    num_retrieved: int = 0

    def init(self, batch: int, keys: Tensor) -> Newest:
        return Newest(torch.zeros(batch, *self.latent_shape, device=keys.device), torch.zeros(batch, dtype=torch.int64, device=keys.device))

    def read(self, memory: Newest, query: Query) -> Context:
        shown = torch.zeros_like(memory.frame) if self.blank else memory.frame
        return Context(tokens=ContextTokens(shown.flatten(1)[:, None], query.times[:, :1], (memory.count > 0)[:, None]))

    def write(self, memory: Newest, seen: Seen) -> Newest:
        return Newest(seen.latents[:, -1], memory.count + seen.valid.sum(1))

    def footprint(self, memory: Newest) -> Footprint:
        held = memory.count.clamp(max=0 if self.blank else 1)
        return Footprint(held, held * memory.frame[0].nbytes)


@dataclass(frozen=True)
class PainterBound:
    target: Tensor  # [B, F, C, h, w]

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        return (x - self.target) / level.view(-1, 1, 1, 1, 1)

    def trace(self, latents: Tensor, poses: Tensor) -> Trace:
        return Trace()


class Painter(nn.Module):
    """A `core.Network`: rectified flow with a known answer."""

    predicts, chunk = "velocity", 1

    def __init__(self, latent_shape: tuple[int, int, int], strength: float = 1.0, *, tinted: bool = False) -> None:
        super().__init__()
        self.latent_shape, self.strength = latent_shape, strength
        self.brightness = nn.Parameter(torch.tensor([0.0, 0.1, -0.1]))
        if tinted:
            self.tint = nn.Parameter(torch.zeros(()))

    def matrices(self) -> Iterable[nn.Parameter]:
        return []

    def bind(self, condition: Condition, contexts: tuple[Context, ...]) -> PainterBound:
        tokens = merge(contexts).tokens
        assert tokens is not None
        frame = tokens.tokens[:, 0].unflatten(1, self.latent_shape)
        change = self.strength * self.brightness[condition.actions[:, 0]] + getattr(self, "tint", 0)
        return PainterBound((frame + change.view(-1, 1, 1, 1))[:, None])


@dataclass(frozen=True)
class PainterOptions:
    strength: float = 1.0  # of what an action does

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError(f"strength must not be negative, got {self.strength}")


@dataclass(frozen=True)
class PainterConfig:
    system: str = "painter"
    setting: str = "corridor"
    memory: str = "newest"
    memory_budget: int = 8
    pose_source: str = "actions"
    through_pixels: bool = False
    autoencoder: AutoencoderConfig = field(default_factory=lambda: CODER)
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig("euler", 2))


@dataclass(frozen=True)
class TintedConfig(PainterConfig):
    system: str = "tinted"
    deltas: tuple[str, ...] = ()


def _memory(blank: bool, host: MemoryHost) -> tuple[NewestFrame, ...]:
    if isinstance(host.options, PainterOptions):
        host.network.strength = host.options.strength  # type: ignore[attr-defined]  # a toy's shortcut: one world at a time
    return (NewestFrame(host.network.latent_shape, host.config.memory_budget, blank),)


def build(system: System, config: PainterConfig) -> WorldModel:
    net = Painter(config.autoencoder.latent_shape, tinted=bool(getattr(config, "deltas", ())))
    assert CORRIDOR.kinematics is not None
    return WorldModel(Autoencoder(config.autoencoder), net, CORRIDOR.kinematics, system.settings(net, config))


def on_painter(config: PainterConfig, deltas: tuple[str, ...]) -> TintedConfig:
    shared = {name: value for name, value in vars(config).items() if name != "system"}
    return TintedConfig(**shared, deltas=deltas)


PAINTER = System(
    name="painter",
    config=PainterConfig,
    build=lambda config: build(PAINTER, config),
    memories={"newest": MemoryChoice(partial(_memory, False)), "blank": MemoryChoice(partial(_memory, True))},
    default_memory="newest",
    reference="blank",
    options=PainterOptions,
)
TINTED = replace(
    PAINTER,
    name="tinted",
    config=TintedConfig,
    build=lambda config: build(TINTED, config),
    memories={**PAINTER.memories, "warm": MemoryChoice(partial(_memory, False), deltas=("warm",))},
    base="painter",
    on_base=on_painter,
    train_delta="toy-train --delta {delta} --setting {setting}",
)
