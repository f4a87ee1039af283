"""Whether Memory Maze can be drawn here; its tests say why where they are skipped."""

import importlib.util

import pytest

from wmgym.envs.memory_maze import gl


def why_not() -> str:
    """Nothing where it can be drawn."""
    if importlib.util.find_spec("memory_maze") is None:
        return "Memory Maze is not installed: pip install 'wmgym[maze]'"
    try:
        gl.renderer()
    except ImportError as error:
        return str(error)
    return ""


needs_maze = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be drawn here")
