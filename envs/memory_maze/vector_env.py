"""Many mazes behind Gymnasium's vector API, in worker processes, since physics and software rendering keep one core busy per maze."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymnasium.vector import AutoresetMode

from wmgym.envs.memory_maze.upstream import check_installed
from wmgym.envs.process_vector import ProcessVectorEnv

SINGLE = "wmgym.envs.memory_maze.env:MemoryMazeEnv"


class MemoryMazeVectorEnv(ProcessVectorEnv):
    """N mazes. The keywords of `MemoryMazeEnv` and of `ProcessVectorEnv`."""

    def __init__(
        self,
        num_envs: int = 1,
        cells: int = 9,
        variant: str = "",
        task: str = "targets",
        backend: str = "mujoco",
        size: int | None = None,
        render_size: int | Sequence[int] | None = None,
        horizon: int | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = "next_step",
        obs_type: str = "numpy",
        processes: int | None = None,
    ) -> None:
        kwargs: dict[str, Any] = {
            "cells": cells, "variant": variant, "task": task, "backend": backend, "size": size, "render_size": render_size,
            "horizon": horizon, "render_mode": render_mode,
        }  # fmt: skip
        check_installed()  # once, not in each worker
        super().__init__(
            SINGLE, kwargs, num_envs, processes=processes, max_episode_steps=max_episode_steps,
            autoreset_mode=autoreset_mode, obs_type=obs_type,
        )  # fmt: skip
