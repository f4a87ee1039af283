"""numba's `njit`, with a cache of compiled functions wherever one can be kept.

`numba.njit(cache=True)` keeps compiled functions in NUMBA_CACHE_DIR, in `__pycache__` beside the source, or in the user's cache folder. It
raises RuntimeError if it can write to none of them, for example in a container with a read-only root, or under a user without a home.
The `njit` of this module then keeps them in a private folder under the temporary folder, or compiles them in each process.
"""

from __future__ import annotations

import os
import stat
import tempfile
import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

_CONFIG: Any = numba.config  # its attributes are made at run time
_CHANGES_CONFIG = threading.Lock()


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit(**options)`. With `cache=True` a machine on which numba finds no place for its cache is no error."""

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(**options)(function)
        except RuntimeError:  # numba looks for a place when it decorates
            if not options.get("cache"):
                raise
            return _cached_in_temporary_folder(function, options) or _uncached(function, options)

    return compiled


def _cached_in_temporary_folder(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """None if nothing can be kept there either."""
    folder = temporary_folder()
    if folder is None:
        return None
    with _CHANGES_CONFIG:
        before, _CONFIG.CACHE_DIR = _CONFIG.CACHE_DIR, str(folder)  # numba reads it now; the function keeps its place
        try:
            return numba.njit(**options)(function)
        except RuntimeError:
            return None
        finally:
            _CONFIG.CACHE_DIR = before


def _uncached(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    _warn_uncached()
    return numba.njit(**{**options, "cache": False})(function)


@cache
def _warn_uncached() -> None:
    remedy = "set NUMBA_CACHE_DIR to a folder that can be written"
    warnings.warn(f"numba cannot keep compiled functions here, so every process compiles them again: {remedy}", stacklevel=5)


def temporary_folder() -> Path | None:
    """This user's folder for compiled functions under the temporary folder; None if it cannot be made, or may hold files of other users.

    numba unpickles what it finds in its cache, so a folder that others can write to must not be used.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"wmgym-numba-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    if not stat.S_ISDIR(found.st_mode):
        return None
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        return None
    return folder
