"""The form of a system: a network with the memories that can run it, its env keywords and its training."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from wmgym.core import Memory, Network, WindowLoss
from wmgym.world_model import Settings, WorldModel

REFERENCE = "none"  # is accepted for every system's memory: the one that others are compared with


@dataclass(frozen=True)
class NoOptions:
    """A system without env keywords of its own."""


@dataclass(frozen=True)
class MemoryHost:
    """What a memory is built on."""

    network: Network
    config: Any  # the system's config: sizes, memory budget, and what else its memories need
    options: Any  # the system's env keywords
    loss: WindowLoss | None = None  # for memories that fit adapters
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class MemoryChoice:
    """One name that the keyword `memory` takes."""

    build: Callable[[MemoryHost], tuple[Memory[Any], ...]]
    deltas: tuple[str, ...] = ()  # checkpoints SYSTEM-DELTA-SETTING that it needs on top of the base
    title: str = ""  # its name in tables, where the papers call it something else


@dataclass(frozen=True)
class Loader:
    """A way to open weights that were published in another form than ours, by a checkpoint name with a prefix."""

    prefix: str  # "nwm:"
    usage: str  # for messages: "'nwm:PATH' (published NWM weights)"
    stamp: Callable[[str], Hashable]  # changes whenever the files do
    load: Callable[[str], tuple[WorldModel, Any, str]]  # name -> model on the CPU, config, SHA-256 of the weights


@dataclass(frozen=True)
class System:
    """What the rest of wmgym knows of a system. `systems.register` makes one known."""

    name: str
    config: type  # frozen dataclass with system, setting, memory, memory_budget, pose_source, through_pixels and sampler
    build: Callable[[Any], WorldModel] | None  # config -> a model with fresh weights; None: opened by its loader only
    memories: Mapping[str, MemoryChoice]
    default_memory: str
    reference: str = REFERENCE
    preset: Callable[[str, str], Any] | None = None  # (size, setting) -> config of a network of that size
    options: type = NoOptions  # frozen dataclass of the system's own env keywords
    comparisons: tuple[tuple[str, str], ...] = ()  # pairs of memories whose differences are tabulated
    context_cost: Callable[[WorldModel], dict[str, Any]] | None = None  # what a world's memory shows the network, in frames
    window_loss: Callable[[WorldModel], WindowLoss] | None = None
    train: str | None = None  # "module:Options:function" of `wmgym train NAME`
    synthetic: str | None = None  # "module:function", (size, batch, device) -> loop.Training on random latents: for `wmgym bench train`
    train_delta: str = ""  # the command that trains a delta, with {delta} and {setting}
    base: str | None = None  # the system whose checkpoints its deltas stand on
    on_base: Callable[[Any, tuple[str, ...]], Any] | None = None  # (the base's config, deltas) -> this system's config
    base_name: Callable[[str], str] = str  # a tensor's name in the base -> its name in this system; unchanged by default
    renamed: Mapping[str, str] = field(default_factory=dict)  # fields of older configs
    loader: Loader | None = None

    def memory_name(self, name: str) -> str:
        """A memory by name, "none" standing for the reference; an unknown one raises `ValueError`."""
        name = self.reference if name == REFERENCE else name
        if name not in self.memories:
            raise ValueError(f"memory must be one of {sorted({REFERENCE, *self.memories})}, got {name!r}")
        return name

    def choice(self, name: str) -> MemoryChoice:
        return self.memories[self.memory_name(name)]

    def title(self, name: str) -> str:
        """A memory's name in tables."""
        return self.choice(name).title or self.memory_name(name)

    def read_options(self, given: Mapping[str, Any]) -> Any:
        """The system's own env keywords; an unknown one raises `TypeError`."""
        known = [f.name for f in fields(self.options)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            have = f"knows {', '.join(known)}" if known else "has no keywords of its own"
            raise TypeError(f"unexpected keyword {unknown[0]!r}: system {self.name!r} {have}")
        return self.options(**given)

    def settings(self, network: Network, config: Any, options: Any = None, *, loss: WindowLoss | None = None) -> Settings:
        """How a network of this system runs by its config: memories on the network's device, sampler, pose source."""
        options = self.options() if options is None else options
        device = next(network.parameters()).device  # type: ignore[attr-defined]  # a Network is a module
        memories = self.choice(config.memory).build(MemoryHost(network, config, options, loss, device))
        return Settings(memories, config.sampler, config.pose_source, config.through_pixels, options)

    def settings_of(self, model: WorldModel, config: Any, options: Any = None) -> Settings:
        """The same for a whole model, whose loss fits adapters."""
        loss = self.window_loss(model) if self.window_loss is not None else None
        return self.settings(model.net, config, options, loss=loss)
