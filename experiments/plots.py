"""Matplotlib, loaded when something is drawn."""

from __future__ import annotations

from typing import Any


def pyplot() -> Any:
    """`matplotlib.pyplot` without a window."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'wmgym[eval]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
