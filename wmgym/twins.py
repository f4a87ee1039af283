"""A dream and its twin, the ground truth that it imagines.

imagined, truth = wmgym.twin("WorldPack-Minecraft-v0", task="free")
imagined.reset(seed=3), truth.reset(seed=3)     # the same frame, pose and goal
"""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from wmgym.env import WorldModelEnv
from wmgym.openings import Openings, frame_of, plan_opening, walk
from wmgym.settings.setting import chunk_space
from wmgym.vectors import final_info

TRUTH_ONLY = ("backend", "render_size")


def twin(id: str, **keywords: Any) -> tuple[gym.Env, gym.Env]:
    """The imagined env of an id and its ground truth, with the same spaces, tasks, openings and frame size.

    Both get `task`, `horizon` and `render_mode`. The ground truth gets `backend` and `render_size`; live openings use this backend too.
    The dream gets all other keywords.
    """
    module, _, name = id.rpartition(":")
    if module:
        importlib.import_module(module)
    known = gym.spec(name).kwargs
    truth_id = keywords.get("twin", known.get("twin"))
    if truth_id is None:
        raise ValueError(f"{id} has no twin: it is a ground truth itself, or its world has no ground truth")
    for_truth = {key: keywords.pop(key) for key in TRUTH_ONLY if key in keywords}
    for_truth = {**known.get("twin_kwargs", {}), **keywords.get("twin_kwargs", {}), **for_truth}
    keywords["twin_kwargs"] = {key: value for key, value in for_truth.items() if key != "render_size"}
    imagined = gym.make(name, **keywords)
    dream = imagined.unwrapped
    assert isinstance(dream, WorldModelEnv)
    shell = dream.shell
    if shell.openings is None:
        raise ValueError(f"{id} has no source of openings, so its ground truth cannot start at one: give opening=")
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
    """A ground truth that steps through its dream's opening after each reset. These steps do not count towards the horizon.

    It draws the same random numbers as the dream. So after a common seed both have the same opening in each episode.
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
        self.unwrapped.horizon = self._horizon + len(plan.actions)  # type: ignore[attr-defined]  # in every truth's state
        _, observation, info = walk(self.env, plan, options)
        return observation, info


class Chunked(gym.Wrapper):
    """F steps of a ground truth as one step, as in its dream. Rewards are summed; after an end the last frame is repeated."""

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
            raise ValueError(f"an action must be a chunk of {self._chunk} actions, got {len(actions)}")
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


class ChunkedLanes(VectorWrapper):
    """The same for a batched ground truth, in autoreset mode "disabled" or "same_step".

    env: made with autoreset_mode="disabled". A lane whose episode ends inside a chunk rests for the remaining frames.
    """

    def __init__(self, env: VectorEnv, chunk: int, *, hold_action: bool, autoreset_mode: str = "disabled") -> None:
        super().__init__(env)
        if env.metadata["autoreset_mode"] is not AutoresetMode.DISABLED:
            raise ValueError(f"the lanes must be made with autoreset_mode='disabled', got {env.metadata['autoreset_mode']}")
        if autoreset_mode not in ("disabled", "same_step"):
            raise ValueError(f"autoreset_mode must be 'disabled' or 'same_step', got {autoreset_mode!r}")
        self._chunk, self._hold, self._resets = chunk, hold_action, autoreset_mode == "same_step"
        self.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.SAME_STEP if self._resets else AutoresetMode.DISABLED}
        self.single_action_space = chunk_space(env.single_action_space, chunk, hold_action)
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Actions [N], each held for the chunk, or [N, F]. Rewards are summed over the chunk."""
        given = np.asarray(actions)
        wanted = (self.num_envs,) if self._hold else (self.num_envs, self._chunk)
        if given.shape[: len(wanted)] != wanted:
            raise ValueError(f"actions must have the shape {list(wanted)}, got {list(given.shape)}")
        total = np.zeros(self.num_envs)
        for f in range(self._chunk):
            observation, rewards, terminated, truncated, info = self.env.step(given if self._hold else given[:, f])
            total += rewards
        ended = terminated | truncated
        if not (self._resets and ended.any()):
            return observation, total, terminated, truncated, info
        final = final_info(observation, info, ended)
        observation, fresh = self.env.reset(options={"reset_mask": ended})
        return observation, total, terminated, truncated, final | _merged(info, fresh, ended)


def _merged(info: dict[str, Any], fresh: dict[str, Any], lanes: np.ndarray) -> dict[str, Any]:
    """Gymnasium's batched info with the entries of some lanes replaced."""
    out = {}
    for key in dict.fromkeys((*info, *fresh)):
        a, b = info.get(key), fresh.get(key)
        known = next(value for value in (a, b) if value is not None)
        a, b = (np.zeros_like(known) if value is None else value for value in (a, b))
        out[key] = np.where(lanes.reshape(-1, *[1] * (known.ndim - 1)), b, a)
    return out
