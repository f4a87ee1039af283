"""Extras of the installation, and checks for them before any work starts."""

from __future__ import annotations

import importlib.util

# Extra of wmgym -> modules that it installs
EXTRAS = {
    "clip": ("transformers",),
    "diffusers": ("diffusers",),
    "eval": ("matplotlib",),
    "hub": ("huggingface_hub",),
    "maze": ("memory_maze", "dm_control", "mujoco"),
    "play": ("pygame",),
    "recon": ("h5py",),
    "rl": ("stable_baselines3",),
}


def need(extra: str, who: str) -> None:
    """ImportError with the installation command if an extra is missing. `who` starts the message: "plots need"."""
    missing = [module for module in EXTRAS[extra] if not is_here(module)]
    if missing:
        raise ImportError(f"{who} {', '.join(missing)}: {install(extra)}")


def is_here(module: str) -> bool:
    """Whether a top-level module can be found. It is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it is already imported, and has no spec
        return True


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'wmgym[{extra}]'"
