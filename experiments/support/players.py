"""Who acts in an episode of `wmgym plan`: random actions, a scripted rule, or a planner with a model. All act frame by frame."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from wmgym.agents.mpc import PlannerConfig, PlanningAgent
from wmgym.settings import Setting, memory_maze, minecraft
from wmgym.tasks import Navigate, Targets, Task, compass

Rule = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # frames [B, H, W, 3], poses [B, 5], goals [B, 5] -> actions [B]


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


class Scripted:
    """A rule that looks at the newest frame, pose and goal of each lane only."""

    def __init__(self, rule: Rule, frames: np.ndarray, poses: np.ndarray, goals: np.ndarray) -> None:
        self.ms: list[float] = []
        self._rule, self._frames, self._poses, self._goals = rule, frames, poses, goals

    def act(self) -> np.ndarray:
        return self._rule(self._frames, self._poses, self._goals)

    def keep(self, lanes: np.ndarray) -> None:
        self._goals = self._goals[lanes]

    def look(self, frames: np.ndarray, actions: np.ndarray, poses: np.ndarray) -> None:
        self._frames, self._poses = frames, poses

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


# -- rules ------------------------------------------------------------------------------------------------------------------------------


def rule_for(task: Task, setting: Setting) -> Rule:
    """The best simple rule for a task. ValueError if there is none."""
    if isinstance(task, Navigate) and setting.name == "minecraft":
        return follow_compass
    if isinstance(task, Targets) and setting.name == "memory_maze":
        return seek_target
    raise ValueError(f"task {task.name!r} of setting {setting.name!r} has no scripted rule: leave 'scripted' out of --models")


def follow_compass(frames: np.ndarray, poses: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Turn to the goal, then walk and jump towards it."""
    ahead, left = np.moveaxis(compass(poses, goals), -1, 0)
    angle = np.arctan2(left, ahead)
    left_turn, right_turn, walk = (minecraft.ACTIONS.index(name) for name in ("turn left", "turn right", "forward + jump"))
    return np.where(np.abs(angle) <= minecraft.TURN / 2, walk, np.where(angle > 0, left_turn, right_turn))


def seek_target(frames: np.ndarray, poses: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """Turn to the target that is asked for and roll towards it if it is in view, else turn left."""
    names = ("forward", "turn left", "turn right", "forward + left", "forward + right")
    forward, left, right, ahead_left, ahead_right = (memory_maze.ACTIONS.index(name) for name in names)
    actions = []
    for frame in frames:
        aside = offset_of_target(frame)
        if aside is None or aside < -0.5:
            actions.append(left)
        elif abs(aside) <= 0.25:
            actions.append(forward)
        else:
            actions.append(right if aside > 0.5 else ahead_right if aside > 0 else ahead_left)
    return np.array(actions, np.int64)


def offset_of_target(frame: np.ndarray) -> float | None:
    """Where in a frame uint8 [H, W, 3] the target with the border's colour is: -1 at the left edge, 1 at the right; None if out of view.

    The border has 0.7 of the target's colour. Walls can have the same hue but are darker than the lit upper part of a target.
    """
    pixels = frame.astype(np.float32)
    colour = pixels[0, 0] / 0.7
    length, full = np.linalg.norm(pixels, axis=-1), float(np.linalg.norm(colour))
    found = (pixels @ colour > 0.99 * full * length) & (length > 0.75 * full)  # the border itself is darker
    if found.sum() < 3:  # single pixels occur on the edges of walls
        return None
    return float(2 * np.median(np.nonzero(found)[1]) / (frame.shape[1] - 1) - 1)
