"""Stable-Baselines3: `make_vec("WorldPack-Minecraft-v0", 8)` is a `VecEnv` with one forward pass for all lanes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from wmgym.extras import install

try:
    from stable_baselines3.common.vec_env import VecEnv, VecMonitor
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices
except ImportError as error:
    raise ImportError(f"wmgym.integrations.sb3 needs stable-baselines3: {install('rl')}") from error


def make_vec(id: str, n: int, *, monitor: bool = True, **keywords: Any) -> VecEnv:
    """n lanes of an id for Stable-Baselines3. monitor: add the episode returns that it logs. Other keywords are those of the id."""
    if "autoreset_mode" in keywords:
        raise ValueError("Stable-Baselines3 needs autoreset_mode='same_step': autoreset_mode must not be given")
    return adapt(gym.make_vec(id, num_envs=n, autoreset_mode="same_step", **keywords), monitor=monitor)


def adapt(env: VectorEnv, *, monitor: bool = True) -> VecEnv:
    """A Gymnasium vector env with autoreset mode "same_step" as a `VecEnv`."""
    adapted = BatchedVecEnv(env)
    return VecMonitor(adapted) if monitor else adapted


class BatchedVecEnv(VecEnv):
    """A batched vector env with Stable-Baselines3's interface: a list of infos, which hold the last observation of an ended episode.

    Lanes have no env objects of their own, so attributes and methods are those of the whole env. If a value is a tuple with one entry per
    lane, each lane gets its entry; otherwise all lanes get the value.
    """

    def __init__(self, env: VectorEnv) -> None:
        if env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise ValueError(f"the vector env must be made with autoreset_mode='same_step', got {env.metadata.get('autoreset_mode')}")
        self.env = env
        self._actions: Any = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = env.metadata

    def reset(self) -> Any:
        options = list(self._options) if any(self._options) else None
        seeds = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        observation, info = self.env.reset(seed=seeds, options=options)  # type: ignore[arg-type]  # a list is Gymnasium's practice
        self.reset_infos = [lane_info(info, lane) for lane in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        observation, rewards, terminated, truncated, batch = self.env.step(self._actions)
        done = terminated | truncated
        infos = []
        for lane in range(self.num_envs):
            info = lane_info(batch, lane)
            if done[lane]:
                last, final = info.pop("final_obs"), info.pop("final_info")
                self.reset_infos[lane] = info
                info = {**final, "terminal_observation": last}
            info["TimeLimit.truncated"] = bool(truncated[lane] and not terminated[lane])
            infos.append(info)
        return observation, rewards.astype(np.float32), done, infos

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        frames: Any = self.env.render()  # one per lane
        return [None] * self.num_envs if frames is None else list(frames)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return self._per_lane(getattr(self._owner(attr_name), attr_name), indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise ValueError(f"the lanes are one env: {attr_name} can only be set for all lanes")
        setattr(self.env.unwrapped, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        return self._per_lane(getattr(self._owner(method_name), method_name)(*method_args, **method_kwargs), indices)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def _owner(self, name: str) -> Any:
        return self.env if hasattr(self.env, name) else self.env.unwrapped

    def _per_lane(self, value: Any, indices: VecEnvIndices) -> list[Any]:
        each = isinstance(value, tuple) and len(value) == self.num_envs
        return [value[lane] if each else value for lane in self._get_indices(indices)]


def lane_info(batch: dict[str, Any], lane: int) -> dict[str, Any]:
    """The info of one lane from Gymnasium's batched info."""
    out: dict[str, Any] = {}
    for key, value in batch.items():
        if f"_{key}" not in batch or not batch[f"_{key}"][lane]:
            continue
        if isinstance(value, dict):
            out[key] = lane_info(value, lane)
        else:
            entry = value[lane]
            out[key] = entry.item() if isinstance(entry, np.generic) else entry
    return out
