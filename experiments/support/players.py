"""Who acts in an episode of `wmgym plan`: random actions, or a planner with a model. Both act frame by frame."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from wmgym.agents.mpc import PlannerConfig, PlanningAgent


class Random:
    """Uniform actions. A lane's actions do not depend on when other lanes end."""

    def __init__(self, space: gym.Space, lanes: int, seed: int) -> None:
        self.ms: list[float] = []
        self._space, self._all, self._lanes = space, range(lanes), np.arange(lanes)
        space.seed(seed)

    def act(self) -> np.ndarray:
        return np.stack([self._space.sample() for _ in self._all])[self._lanes]

    def keep(self, lanes: np.ndarray) -> None:
        self._lanes = self._lanes[lanes]

    def look(self, frames: np.ndarray, actions: np.ndarray, poses: np.ndarray) -> None:
        pass

    def close(self) -> None:
        pass


class Planner:
    """A planning agent, timed. If it plans in a dream, the dream is shown the true outcome of each action.

    A dream that makes chunks decides on F frames at once, and is shown F frames at once; in between its plan goes on.
    """

    def __init__(
        self, agent: PlanningAgent, decided: Callable[[], Any], dream: VectorEnv | None = None, chunk: int = 1, *, held: bool = False
    ) -> None:
        self.ms: list[float] = []  # time of each plan
        self.agent = agent
        self._decided, self._dream, self._chunk, self._held = decided, dream, chunk, held
        self._queue: list[np.ndarray] = []  # actions of the chunk's next frames, [B, ...] each
        self._seen: list[tuple[np.ndarray, ...]] = []  # frames, actions and poses of the chunk's past frames

    def act(self) -> np.ndarray:
        """The next frame's action of each lane, [B, ...]."""
        if not self._queue:
            begin, last = time.perf_counter(), self.agent.found
            actions = self.agent.act()
            if self.agent.found is not last:
                self.ms.append(1e3 * (time.perf_counter() - begin))
                self._decided()
            whole = self._chunk == 1 or self._held
            self._queue = [actions] * self._chunk if whole else list(np.moveaxis(actions, 1, 0))
        return self._queue.pop(0)

    def keep(self, lanes: np.ndarray) -> None:
        self.agent.keep(lanes.tolist())
        self._queue = [actions[lanes] for actions in self._queue]
        self._seen = [tuple(part[lanes] for part in parts) for parts in self._seen]

    def look(self, frames: np.ndarray, actions: np.ndarray, poses: np.ndarray) -> None:
        """What the remaining lanes saw and did: frames uint8 [B, H, W, 3], actions [B, ...], poses float32 [B, 5]."""
        if self._dream is None:
            return
        self._seen.append((frames, actions, poses))
        if len(self._seen) == self._chunk:
            self.agent.models[0].observe(*(np.stack(part, 1) for part in zip(*self._seen, strict=True)))
            self._seen = []

    def close(self) -> None:
        if self._dream is not None:
            self._dream.close()


def in_steps(config: PlannerConfig, chunk: int) -> tuple[PlannerConfig, bool]:
    """A planner's settings in steps of a dream that makes `chunk` frames a step, and whether a step's action is held for its frames.

    ValueError if the horizon is not whole chunks, or if decisions end inside a chunk (a decision for each frame is possible).
    """
    if chunk == 1:
        return config, False
    if config.horizon % chunk or (config.hold % chunk and config.hold != 1):
        raise ValueError(
            f"this dream makes {chunk} frames a step: horizon must be a multiple of {chunk}, and hold 1 or a multiple of {chunk}, "
            f"got horizon={config.horizon} and hold={config.hold}"
        )
    held = config.hold > 1
    return replace(config, horizon=config.horizon // chunk, hold=config.hold // chunk if held else 1), held
