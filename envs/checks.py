"""What every ground truth asks of its keywords and of `reset`'s options: the value if it is sound, a ValueError that names it if not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_reset_options(options: Any, known: Sequence[str]) -> dict[str, Any]:
    """The options that `reset` was told, as a dict of known ones."""
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"options must be a dict, got {type(options).__name__}")
    given = dict(options or {})
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ValueError(f"unknown reset option {unknown[0]!r}; available: {', '.join(map(repr, known))}")
    return given


def check_pose(name: str, value: Any, lengths: tuple[int, ...] = (5,)) -> NDArray[np.float32]:
    """`value` as float32; ValueError unless it is a finite row of an allowed length."""
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
    if not _is_side(size):
        raise ValueError(f"size must be a side from 8 to 2048 pixels, got {size!r}")
    return int(size)


def check_render_size(render_size: Any, size: int) -> tuple[int, int]:
    """(height, width) from a side or a pair, or from the size of the frames observed."""
    given = size if render_size is None else render_size
    pair = given if isinstance(given, (list, tuple)) else (given, given)
    if len(pair) != 2 or not all(_is_side(side) for side in pair):
        raise ValueError(f"render_size must be a side or (height, width) from 8 to 2048 pixels, got {render_size!r}")
    return int(pair[0]), int(pair[1])


def _is_side(side: Any) -> bool:
    return isinstance(side, (int, np.integer)) and not isinstance(side, bool) and bool(8 <= side <= 2048)


def check_render_mode(render_mode: str | None) -> str | None:
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"unknown render_mode {render_mode!r}; available: None, 'rgb_array'")
    return render_mode
