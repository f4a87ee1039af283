"""A dream and the ground truth that it imagines, side by side.

    imagined, truth = wmgym.twin("WorldPack-Minecraft-v0", task="free")
    imagined.reset(seed=3), truth.reset(seed=3)     # the same frame, pose and goal
"""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

from wmgym.env import WorldModelEnv
from wmgym.openings import Openings, frame_of, plan_opening, walk
from wmgym.shell import chunk_space

TRUTH_ONLY = ("backend", "render_size")


def twin(id: str, **keywords: Any) -> tuple[gym.Env, gym.Env]:
    """The imagined env of this id, and its ground truth, with the same spaces, tasks and openings.

    `task`, `horizon` and `render_mode` go to both; `backend` and `render_size` to the ground truth (the dream walks that
    backend for its opening); the rest to the dream. The truth's frames have the size of the dream's.
    """
    module, _, name = id.rpartition(":")
    if module:
        importlib.import_module(module)
    known = gym.spec(name).kwargs
    truth_id = keywords.get("twin", known.get("twin"))
    if truth_id is None:
        raise ValueError(f"{id} has no twin: it is a ground truth itself, or there is none of its world")
    for_truth = {key: keywords.pop(key) for key in TRUTH_ONLY if key in keywords}
    for_truth = {**known.get("twin_kwargs", {}), **keywords.get("twin_kwargs", {}), **for_truth}
    keywords["twin_kwargs"] = {key: value for key, value in for_truth.items() if key != "render_size"}
    imagined = gym.make(name, **keywords)
    dream = imagined.unwrapped
    assert isinstance(dream, WorldModelEnv)
    shell = dream.shell
    if shell.openings is None:
        raise ValueError(f"{id} has nothing to open with, so its truth cannot either")
    render_mode = dream.render_mode and "rgb_array"
    truth: gym.Env = gym.make(truth_id, render_mode=render_mode, **shell.truth_keywords(), **for_truth)
    truth = StartsAtOpening(truth, shell.openings, shell.horizon)
    if shell.chunk > 1:
        truth = Chunked(truth, shell.chunk, hold_action=shell.hold_action, render_mode=dream.render_mode)
    for kind in ("observation_space", "action_space"):
        if getattr(truth, kind) != getattr(imagined, kind):
            raise ValueError(f"{id} and {truth_id} differ in {kind}: {getattr(imagined, kind)} and {getattr(truth, kind)}")
    return imagined, truth


class StartsAtOpening(gym.Wrapper):
    """A ground truth that walks its dream's opening after each reset. The opening costs no steps.

    It draws what the dream draws, so that the two open alike after a common seed, and after each reset that follows.
    """

    def __init__(self, env: gym.Env, openings: Openings, horizon: int) -> None:
        super().__init__(env)
        self._openings, self._horizon = openings, horizon
        self._generator, _ = seeding.np_random()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._generator, _ = seeding.np_random(seed)
        _, plan = plan_opening(self._openings, self._generator, seed)
        assert plan is not None
        self.unwrapped.horizon = self._horizon + len(plan.actions)  # type: ignore[attr-defined]  # part of every truth's state
        _, observation, info = walk(self.env, plan, options)
        return observation, info


class Chunked(gym.Wrapper):
    """F steps of a ground truth as one, as its dream makes them: rewards are summed, and after an end the last frame repeats."""

    def __init__(self, env: gym.Env, chunk: int, *, hold_action: bool, render_mode: str | None) -> None:
        super().__init__(env)
        self.action_space = chunk_space(env.action_space, chunk, hold_action)
        self.metadata = {**env.metadata, "render_modes": ["rgb_array", "rgb_array_list"]}
        self._chunk, self._hold, self._mode = chunk, hold_action, render_mode
        self._rendered: list[Any] = []

    @property
    def render_mode(self) -> str | None:  # type: ignore[override]  # as in Gymnasium's own wrappers
        """One frame, or the chunk's frames as a list."""
        return self._mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._rendered = [self.env.render()] * self._chunk if self._mode else []
        return observation, {**info, "frames": np.stack([frame_of(observation)] * self._chunk)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        actions = [action] * self._chunk if self._hold else list(action)
        if len(actions) != self._chunk:
            raise ValueError(f"a chunk is {self._chunk} actions, got {len(actions)}")
        frames: list[Any] = []
        rendered: list[Any] = []
        total = 0.0
        for one in actions:
            observation, reward, terminated, truncated, info = self.env.step(one)
            frames.append(frame_of(observation))
            rendered.append(self.env.render() if self._mode else None)
            total += float(reward)
            if terminated or truncated:
                break
        missing = self._chunk - len(frames)
        self._rendered = rendered + rendered[-1:] * missing
        info = {**info, "frames": np.stack(frames + frames[-1:] * missing)}
        return observation, total, terminated, truncated, info

    def render(self) -> Any:
        return list(self._rendered) if self._mode == "rgb_array_list" else self.env.render()
