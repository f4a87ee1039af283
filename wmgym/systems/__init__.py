"""The table of systems. A checkpoint's config names its system; all other files look it up here.

`get` finds a system by name; `register` adds one (docs/bring_your_own.md).
"""

from __future__ import annotations

from importlib import import_module

from wmgym.registration import SYSTEMS
from wmgym.systems.system import REFERENCE, Loader, MemoryChoice, MemoryHost, NoOptions, System

__all__ = ["REFERENCE", "Loader", "MemoryChoice", "MemoryHost", "NoOptions", "System", "get", "loader_of", "names", "register"]

TABLE: dict[str, System] = {}  # systems used so far, and registered ones


def names() -> list[str]:
    """Names of all systems."""
    return sorted({*SYSTEMS, *TABLE})


def get(name: str) -> System:
    """The system of this name. An unknown name raises `ValueError`."""
    if name not in TABLE:
        if name not in SYSTEMS:
            raise ValueError(f"system must be one of {names()}, got {name!r}")
        register(import_module(SYSTEMS[name].module).SYSTEM)
    return TABLE[name]


def register(system: System) -> System:
    """Add a system to the table."""
    if TABLE.get(system.name, system) is not system:
        raise ValueError(f"a system called {system.name!r} is registered already")
    TABLE[system.name] = system
    return system


def loader_of(checkpoint: str) -> tuple[System, Loader] | None:
    """The system and loader for a checkpoint name with a prefix such as "nwm:"; None for wmgym's own format."""
    for name in names() if ":" in checkpoint else ():
        loader = get(name).loader
        if loader is not None and checkpoint.startswith(loader.prefix):
            return get(name), loader
    return None
