"""MineRL as a backend: the original Minecraft, in Java. docs/settings/minerl.md describes the installation.

MineRL needs an old gym, an old NumPy and Java 8, so it runs in a separate Python (worker.py), given by `python=` or
$WMGYM_MINERL_PYTHON. It exports neither its blocks nor its state: walkers that plan, and saved states, need another backend.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wmgym.envs.minecraft.process import EngineProcess
from wmgym.envs.minecraft.remote import RemoteBackend, RemoteLanes

VARIABLE = "WMGYM_MINERL_PYTHON"
WORKER = Path(__file__).with_name("worker.py")
FIELD_OF_VIEW = math.radians(70)  # vertical, Minecraft's default
FAMILIES = {"1.0": (360, 640), "0.4": (64, 64)}  # family -> its default height and width
START_TIMEOUT = 900.0  # seconds; Java and Minecraft may take minutes to start
MINERL = "MineRL's process"


class MineRLBackend(RemoteBackend):
    """A player in MineRL: family "1.0" (Minecraft 1.16.5, as HumanSurvival) or "0.4" (1.11.2, as Navigate)."""

    def __init__(
        self, python: str | None = None, family: str = "1.0", resolution: Sequence[int] | None = None, timeout: float = 600.0
    ) -> None:
        """python: the interpreter of an environment that has MineRL; default $WMGYM_MINERL_PYTHON.
        family: "1.0", "0.4", or "module:function" of a function that returns a simulator with MineRL's interface.
        resolution: (height, width) that MineRL draws; frames are scaled from it.
        timeout: seconds for one request; a reset may generate a world."""
        if family not in FAMILIES and ":" not in family:
            raise ValueError(f"family must be {' or '.join(map(repr, FAMILIES))} (or 'module:function'), got {family!r}")
        height, width = check_resolution(FAMILIES.get(family, (64, 64)) if resolution is None else resolution)
        config = {"family": family, "resolution": [height, width]}

        def start() -> EngineProcess:
            program = find_python(python)
            display = [] if os.environ.get("DISPLAY") or shutil.which("xvfb-run") is None else ["xvfb-run", "-a"]
            return EngineProcess(
                MINERL,
                lambda socket, frames: [
                    *display,
                    program,
                    str(WORKER),
                    json.dumps({**config, "socket": socket, "frames": frames, "owner": os.getpid()}),
                ],
                start_timeout=START_TIMEOUT,
            )

        super().__init__(MINERL, start, FIELD_OF_VIEW, timeout, native=(height, width))

    def solid(self, low: tuple[int, int, int], high: tuple[int, int, int]) -> NDArray[np.bool_]:
        raise NotImplementedError("MineRL does not report which blocks are solid: use the walkers 'random', 'look-around' or 'turn-loop'")

    def reachable(self, x: float, y: float) -> bool:
        return True  # MineRL does not report its blocks


class MineRLLanes(RemoteLanes):
    """N players, each in its own MineRL process."""

    def __init__(self, num_lanes: int, **options: Any) -> None:
        super().__init__(num_lanes, lambda: MineRLBackend(**options))


def find_python(python: str | None = None) -> str:
    """The Python that has MineRL. ImportError, with the remedy, if none is given or it does not exist."""
    given = python or os.environ.get(VARIABLE)
    if not given:
        raise ImportError(f"backend 'minerl' needs a Python that has MineRL: give python=PATH or set ${VARIABLE} (docs/settings/minerl.md)")
    found = shutil.which(str(Path(given).expanduser()))
    if found is None:
        raise ImportError(f"backend 'minerl' needs a Python that has MineRL, but {given} is no program (docs/settings/minerl.md)")
    return found


def check_resolution(resolution: Sequence[int]) -> tuple[int, int]:
    """(height, width) in pixels, or ValueError."""
    sides = list(resolution) if isinstance(resolution, (list, tuple)) else []
    if len(sides) != 2 or not all(isinstance(side, (int, np.integer)) and 16 <= side <= 2048 for side in sides):
        raise ValueError(f"resolution must be (height, width) from 16 to 2048 pixels, got {resolution!r}")
    return int(sides[0]), int(sides[1])
