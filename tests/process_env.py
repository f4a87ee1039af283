"""A single env that counts, and fails when told to: what the vector env over processes is tested with."""

from __future__ import annotations

import os
import signal
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

DIE, STUMBLE, ODD = 7, 8, 9


class OddError(Exception):
    """One that cannot be sent to another process."""

    def __init__(self, lock: Any, text: str) -> None:
        super().__init__(lock, text)
        self.lock = open(os.devnull)  # noqa: SIM115


class CountingEnv(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012
    observation_space = spaces.Dict(count=spaces.Box(0, 1e9, (2,), np.int64), noise=spaces.Box(0, 1, (), np.float32))
    action_space = spaces.Discrete(10)
    render_mode = None

    def __init__(self, horizon: int = 5, broken: bool = False, only_in: int | None = None) -> None:
        if only_in not in (None, os.getpid()):
            raise OSError("no room in this process")
        self.horizon, self.broken, self.count = horizon, broken, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self.broken:
            raise RuntimeError("no world today")
        self.count = 0
        return self._seen(), {"pid": os.getpid()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if action == STUMBLE:
            raise ValueError("stumbled")
        if action == ODD:
            raise OddError(None, "odd")
        self.count += 1
        return self._seen(), float(self.count), False, self.count >= self.horizon, {"pid": os.getpid()}

    def _seen(self) -> dict[str, np.ndarray]:
        return {"count": np.array([self.count, int(self.np_random_seed or 0) % 2**31]), "noise": np.float32(self.np_random.random())}
