"""`System`: a network with its memories, env keywords and training."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from wmgym.core import Memory, Network
from wmgym.world_model import Settings, WorldModel

REFERENCE = "none"  # memory name that every system accepts: the baseline of comparisons


@dataclass(frozen=True)
class NoOptions:
    """A system without env keywords of its own."""


@dataclass(frozen=True)
class MemoryHost:
    """What a memory's factory gets."""

    network: Network
    config: Any  # the system's config: sizes, memory budget and so on
    options: Any  # the system's env keywords
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class MemoryChoice:
    """One value of the keyword `memory`."""

    build: Callable[[MemoryHost], tuple[Memory[Any], ...]]
    deltas: tuple[str, ...] = ()  # checkpoints SYSTEM-DELTA-SETTING that it needs on top of the base
    title: str = ""  # name in tables, if it differs


@dataclass(frozen=True)
class Loader:
    """Opens weights that were published in another format, by a checkpoint name with a prefix."""

    prefix: str  # "nwm:"
    usage: str  # for messages: "'nwm:PATH' (published NWM weights)"
    stamp: Callable[[str], Hashable]  # a value that changes when the files change
    load: Callable[[str], tuple[WorldModel, Any, str]]  # name -> model on the CPU, config, SHA-256 of the weights


@dataclass(frozen=True)
class System:
    """Everything that the rest of wmgym needs of a system. `systems.register` adds one."""

    name: str
    config: type  # frozen dataclass with system, setting, memory, memory_budget, pose_source, through_pixels and sampler
    build: Callable[[Any], WorldModel] | None  # config -> a model with new weights; None: only its loader makes models
    memories: Mapping[str, MemoryChoice]
    default_memory: str
    reference: str = REFERENCE
    preset: Callable[[str, str], Any] | None = None  # (size, setting) -> config of a network of that size
    options: type = NoOptions  # frozen dataclass of the system's own env keywords
    comparisons: tuple[tuple[str, str], ...] = ()  # pairs of memories whose differences are tabulated
    context_cost: Callable[[WorldModel], dict[str, Any]] | None = None  # size of the context that a world's memory gives, in frames
    train: str | None = None  # "module:Options:function" of `wmgym train NAME`
    synthetic: str | None = None  # "module:function", (size, batch, device, compile) -> loop.Training on random latents
    denoising: str | None = None  # "module:function", its training's batches for `wmgym distil` (`train/distil.py`)
    train_delta: str = ""  # the command that trains a delta, with {delta} and {setting}
    base: str | None = None  # the system whose checkpoints its deltas are based on
    on_base: Callable[[Any, tuple[str, ...]], Any] | None = None  # (the base's config, deltas) -> this system's config
    base_name: Callable[[str], str] = str  # a tensor's name in the base -> its name in this system; unchanged by default
    renamed: Mapping[str, str] = field(default_factory=dict)  # fields of older configs
    loader: Loader | None = None

    def memory_name(self, name: str) -> str:
        """The name of a memory; "none" is the reference. An unknown name raises `ValueError`."""
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
        """The system's own env keywords. An unknown one raises `TypeError`."""
        known = [f.name for f in fields(self.options)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            have = f"knows {', '.join(known)}" if known else "has no keywords of its own"
            raise TypeError(f"unexpected keyword argument {unknown[0]!r}: system {self.name!r} {have}")
        return self.options(**given)

    def settings(self, network: Network, config: Any, options: Any = None) -> Settings:
        """Settings of a network from a config: memories on the network's device, sampler, pose source."""
        options = self.options() if options is None else options
        device = next(network.parameters()).device  # type: ignore[attr-defined]  # a Network is a module
        memories = self.choice(config.memory).build(MemoryHost(network, config, options, device))
        return Settings(memories, config.sampler, config.pose_source, config.through_pixels, options)
