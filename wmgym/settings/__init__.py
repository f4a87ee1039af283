"""One file per kind of world, with everything that is fixed about it. `get` finds a setting by name; `register` adds one."""

from __future__ import annotations

from wmgym.kinematics import Displacement, Kinematics
from wmgym.settings import memory_cards, memory_maze, minecraft, recon
from wmgym.settings.setting import Setting, Truth

__all__ = ["TABLE", "Setting", "Truth", "get", "kinematics", "of_truth", "register"]

TABLE: dict[str, Setting] = {s.name: s for s in (minecraft.SETTING, memory_maze.SETTING, memory_cards.SETTING, recon.SETTING)}


def get(name: str) -> Setting:
    """The setting of this name. An unknown name raises `ValueError`."""
    if name not in TABLE:
        raise ValueError(f"setting must be one of {sorted(TABLE)}, got {name!r}")
    return TABLE[name]


def of_truth(id: str) -> Setting | None:
    """The setting of a ground-truth id (with or without a module prefix); None for an unknown id."""
    name = id.rpartition(":")[2]
    return next((setting for setting in TABLE.values() for truth in setting.truths if truth.id == name), None)


def kinematics(name: str, displacement: Displacement) -> Kinematics:
    """Kinematics of a setting. If they depend on the data (`needs_data`), `displacement`."""
    setting = get(name)
    if setting.needs_data:
        return displacement
    if setting.kinematics is None:
        raise ValueError(f"setting {name!r} has no kinematics")
    return setting.kinematics


def register(setting: Setting) -> Setting:
    """Add a setting to the table, for systems, checkpoints and envs."""
    if TABLE.get(setting.name, setting) != setting:
        raise ValueError(f"a setting called {setting.name!r} is registered already")
    TABLE[setting.name] = setting
    return setting
