"""Checks of keywords, reset options and states that all ground truths share. A check returns the value, or raises a ValueError that
names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray


def check_reset_options(options: Any, known: Sequence[str]) -> dict[str, Any]:
    """The options of `reset` as a dict, in which only `known` names may occur."""
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"options must be a dict, got {type(options).__name__}")
    given = dict(options or {})
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ValueError(f"unknown reset option {unknown[0]!r}; available: {', '.join(map(repr, known))}")
    return given


def check_pose(name: str, value: Any, lengths: tuple[int, ...] = (5,)) -> NDArray[np.float32]:
    """`value` as float32. ValueError unless it is a finite vector of an allowed length."""
    try:
        pose = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a pose of {' or '.join(map(str, lengths))} numbers, got {value!r}") from None
    if pose.ndim != 1 or len(pose) not in lengths:
        raise ValueError(f"{name} must be a pose of {' or '.join(map(str, lengths))} numbers, got shape {pose.shape}")
    if not np.isfinite(pose).all():
        raise ValueError(f"{name} must be finite, got {pose.tolist()}")
    return pose


def check_size(size: Any) -> int:
    """The side of the frames observed, in pixels."""
    if not _is_side(size):
        raise ValueError(f"size must be a side from 8 to 2048 pixels, got {size!r}")
    return int(size)


def check_render_size(render_size: Any, size: int) -> tuple[int, int]:
    """(height, width) in pixels from a side or a pair; None: `size`, the side of the frames observed."""
    given = size if render_size is None else render_size
    pair = given if isinstance(given, (list, tuple)) else (given, given)
    if len(pair) != 2 or not all(_is_side(side) for side in pair):
        raise ValueError(f"render_size must be a side or (height, width) from 8 to 2048 pixels, got {render_size!r}")
    return int(pair[0]), int(pair[1])


def _is_side(side: Any) -> bool:
    return isinstance(side, (int, np.integer)) and not isinstance(side, bool) and bool(8 <= side <= 2048)


def check_state_keys(state: Any, keys: Sequence[str]) -> None:
    """ValueError unless `state` has all keys of a state that `save_state` gives."""
    if not isinstance(state, Mapping):
        raise ValueError(f"load_state needs what save_state gave, got {type(state).__name__}")
    missing = [key for key in keys if key not in state]
    if missing:
        raise ValueError(f"load_state needs what save_state gave; this state has no {missing[0]!r}")


def check_not_over(*flags: bool) -> None:
    """ResetNeeded if the episode of a single env has ended. (An ended lane of a vector env rests instead.)"""
    if any(flags):
        raise gym.error.ResetNeeded("the episode is over: call reset() before the next step")


def check_render_mode(render_mode: str | None) -> str | None:
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"unknown render_mode {render_mode!r}; available: None, 'rgb_array'")
    return render_mode
