"""The table of systems: what a checkpoint's config names, and what everything else looks up here.

`get` finds a system by name, `register` adds one of your own (docs/bring_your_own.md).
"""

from __future__ import annotations

from importlib import import_module

from wmgym.registration import SYSTEMS
from wmgym.systems.system import REFERENCE, Loader, MemoryChoice, MemoryHost, NoOptions, System

__all__ = ["REFERENCE", "Loader", "MemoryChoice", "MemoryHost", "NoOptions", "System", "get", "loader_of", "names", "register"]

TABLE: dict[str, System] = {}  # those that were used so far, and the user's own


def names() -> list[str]:
    """All systems that can be had."""
    return sorted({*SYSTEMS, *TABLE})


def get(name: str) -> System:
    """The system of a name; an unknown one raises `ValueError`."""
    if name not in TABLE:
        if name not in SYSTEMS:
            raise ValueError(f"system must be one of {names()}, got {name!r}")
        register(import_module(SYSTEMS[name].module).SYSTEM)
    return TABLE[name]


def register(system: System) -> System:
    """Make a system known by its name."""
    if TABLE.get(system.name, system) is not system:
        raise ValueError(f"a system called {system.name!r} is registered already")
    TABLE[system.name] = system
    return system


def loader_of(checkpoint: str) -> tuple[System, Loader] | None:
    """The system whose prefix a checkpoint's name has, with its loader; None for files of our own format."""
    for name in names() if ":" in checkpoint else ():
        loader = get(name).loader
        if loader is not None and checkpoint.startswith(loader.prefix):
            return get(name), loader
    return None
