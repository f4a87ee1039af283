"""Many tables of cards behind Gymnasium's vector API: one call moves all cursors, one draws all tables.

Lane i of an env that was reset with seed s is the single env that was reset with seed s + i, bit for bit, across autoresets too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from wmgym import tasks
from wmgym.envs.memory_cards import env as single
from wmgym.envs.memory_cards import table as cards
from wmgym.envs.memory_cards.env import Rules
from wmgym.envs.memory_cards.table import CELLS, Table
from wmgym.vectors import AUTORESET, OBS_TYPES, LanesEnv, autoreset_name, lane_options, lane_seeds, load_generator, reset_mask

Mask = NDArray[np.bool_]  # [N], one per lane


class MemoryCardsVectorEnv(LanesEnv):
    """N tables of cards. No step loops over lanes; only a new episode does, since each lane has a generator of its own.

    autoreset_mode: "next_step", "same_step" or "disabled" (then an ended lane rests, with its flags set, until it is reset).
    obs_type: "numpy", or "torch": observations are tensors on the CPU. max_episode_steps: another name of `horizon`, as
    `gymnasium.make_vec` gives it. The rest is as in `MemoryCardsEnv`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012  # Gymnasium's own form

    def __init__(
        self,
        num_envs: int = 1,
        task: str = "free",
        deck: str = "pairs",
        cover: str = "all",
        cursor: bool = True,
        size: int = 48,
        render_size: int | None = None,
        horizon: int | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = "next_step",
        obs_type: str = "numpy",
    ) -> None:
        if horizon is not None and max_episode_steps is not None:
            raise ValueError(f"max_episode_steps={max_episode_steps} is the horizon here, and horizon={horizon} is given too")
        if obs_type not in OBS_TYPES:
            raise ValueError(f"obs_type must be one of {list(OBS_TYPES)}, got {obs_type!r}")
        horizon = next((h for h in (horizon, max_episode_steps) if h is not None), tasks.CARDS_HORIZON)
        self.num_envs = _count("num_envs", num_envs)
        self.autoreset_mode, self.obs_type = AUTORESET[autoreset_name(autoreset_mode)], obs_type
        self.rules = Rules(task, deck, cover, cursor, size, render_size, horizon, render_mode)
        self.horizon, self.render_mode = int(horizon), render_mode
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = self.rules.observation_space
        self.single_action_space = spaces.Discrete(len(tasks.CARDS_ACTIONS))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        empty = np.zeros((self.num_envs, CELLS), np.int64)
        self._table = Table(empty, empty > 0, empty[:, 0])
        self._generators, self._seeds = None, []
        self._is_running = False
        self._elapsed = np.zeros(self.num_envs, np.int64)
        self._truncated = np.zeros(self.num_envs, bool)  # nothing here terminates an episode

    # ---- Gymnasium ----

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes in all lanes, or in those of `options["reset_mask"]`.

        `options` is a dict for all lanes, in which `start` may have a row per lane, or a list of dicts, one per lane.
        """
        seeds, mask = lane_seeds(seed, self.num_envs), reset_mask(options, self.num_envs)
        per_lane = lane_options(options, self.num_envs, lambda key, value: key == "start" and np.ndim(value) == 2)
        if not self._is_running and not mask.all():
            raise gym.error.ResetNeeded("a reset_mask needs lanes that are running: reset all of them first")
        starts = [single.check_options(each) for each in per_lane]
        for lane in np.flatnonzero(mask).tolist():
            self._seed(lane, seeds[lane])
        self._open(mask, starts)
        self._is_running = True
        return self._observe(self.rules.draw(self._table)), self._info(mask)

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], Mask, Mask, dict[str, Any]]:
        """One step in every lane; a lane that has ended is reset, or rests."""
        self._check_running()
        told, over = self._check_actions(actions), self._truncated
        self._table = cards.move(self._table, np.where(over, cards.REST, told))
        self._elapsed = self._elapsed + ~over
        self._truncated = self._elapsed >= self.horizon
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._open(over)
        truncated, final = self._truncated.copy(), {}
        frames = self.rules.draw(self._table)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and truncated.any():
            final = self._final(frames, truncated)
            self._open(truncated)
            frames = self.rules.draw(self._table)
        terminated, everywhere = np.zeros(self.num_envs, bool), np.ones(self.num_envs, bool)
        return self._observe(frames), np.zeros(self.num_envs), terminated, truncated, final | self._info(everywhere)

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """One frame per lane."""
        self._check_running()
        return tuple(self.rules.render(self._table)) if self.render_mode == "rgb_array" else None

    def close_extras(self, **kwargs: Any) -> None:
        self._is_running = False

    # ---- more than Gymnasium asks ----

    def save_state(self) -> dict[str, Any]:
        """All that the future depends on. `state["lanes"][i]` is what the single env's `load_state` takes."""
        self._check_running()
        lanes = zip(self._elapsed.tolist(), self.np_random, self.np_random_seed, strict=True)
        states = tuple(single.state_of(self._table, i, self.horizon, *lane) for i, lane in enumerate(lanes))
        return {"lanes": states, "truncated": self._truncated.copy()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a value of `save_state`, bit for bit."""
        if not isinstance(state, Mapping) or "lanes" not in state:
            raise ValueError("load_state takes what the save_state of a vector env gave")
        lanes = state["lanes"]
        if len(lanes) != self.num_envs:
            raise ValueError(f"the saved state has {len(lanes)} lanes, this env has {self.num_envs}")
        for lane in lanes:
            single.check_state(lane)
        self._table = single.table_of(lanes)
        self._generators, self._seeds = [load_generator(lane["np_random"]) for lane in lanes], [lane["seed"] for lane in lanes]
        self._elapsed = np.array([lane["elapsed"] for lane in lanes])
        self.horizon = int(lanes[0]["horizon"])
        self._truncated, self._is_running = np.array(state["truncated"], bool), True

    def branch(self, n: int, seeds: int | Sequence[int] | None = None) -> MemoryCardsVectorEnv:
        """n futures of each lane, next to each other, as a vector env that never resets by itself; this env is untouched.

        They keep the generators of their lanes, or get new ones from `seeds`: one number, to which the branch's number is added,
        or one per branch.
        """
        state = self.save_state()
        return branched(self.rules, state["lanes"], state["truncated"], n, seeds, self.obs_type)

    def get_action_meanings(self) -> list[str]:
        """What each action does, in words."""
        return list(tasks.CARDS_ACTIONS)

    # ---- parts ----

    def _check_running(self) -> None:
        if not self._is_running:
            raise gym.error.ResetNeeded("reset() must be called first")

    def _open(self, mask: Mask, starts: Sequence[int | None] | None = None) -> None:
        """Begin an episode in the lanes of a mask, as the single env's reset does."""
        if not mask.any():
            return
        objects, is_open, cursor = self._table.objects.copy(), self._table.is_open.copy(), self._table.cursor.copy()
        for lane in np.flatnonzero(mask).tolist():
            start = None if starts is None else starts[lane]
            objects[lane], is_open[lane], cursor[lane] = self.rules.open(self.np_random[lane], start)
        self._table = Table(objects, is_open, cursor)
        self._elapsed, self._truncated = np.where(mask, 0, self._elapsed), self._truncated & ~mask

    def _observe(self, frames: NDArray[np.uint8]) -> Any:
        if self.obs_type == "torch":
            import torch  # here, so that a ground truth alone loads none

            return torch.from_numpy(frames)
        return frames

    def _info(self, lanes: Mask) -> dict[str, Any]:
        """Gymnasium's batched info: the poses beside a mask of the lanes that are told."""
        return {"pose": cards.poses(self._table) * lanes[:, None], "_pose": lanes.copy()}

    def _final(self, frames: NDArray[np.uint8], over: Mask) -> dict[str, Any]:
        """What the ended lanes showed last, as Gymnasium wants it in the info of a same-step reset."""
        batch, last = self._observe(frames), np.full(self.num_envs, None, object)
        for lane in np.flatnonzero(over):
            last[lane] = batch[lane]
        return {"final_obs": last, "_final_obs": over.copy(), "final_info": self._info(over), "_final_info": over.copy()}

    def _check_actions(self, actions: Any) -> NDArray[np.int64]:
        told = np.asarray(actions)
        if told.shape != (self.num_envs,):
            raise ValueError(f"actions must have the shape {[self.num_envs]}, got {list(told.shape)}")
        count = len(tasks.CARDS_ACTIONS)
        if not np.issubdtype(told.dtype, np.integer) or (told < 0).any() or (told >= count).any():
            raise ValueError(f"actions must be integers from 0 to {count - 1}, got {actions!r}")
        return told.astype(np.int64)


def branched(
    rules: Rules, lanes: Sequence[Mapping[str, Any]], truncated: Mask, n: int, seeds: int | Sequence[int] | None, obs_type: str
) -> MemoryCardsVectorEnv:
    """n futures of each saved lane, next to each other."""
    states = tuple(lane for lane in lanes for _ in range(_count("n", n)))
    branches = MemoryCardsVectorEnv(
        len(states),
        deck=rules.deck,
        cover=rules.cover,
        cursor=rules.cursor,
        size=rules.size,
        render_size=rules.render_size,
        render_mode=rules.render_mode,
        autoreset_mode="disabled",
        obs_type=obs_type,
    )
    branches.load_state({"lanes": states, "truncated": np.repeat(truncated, n)})
    for lane, seed in enumerate(lane_seeds(seeds, branches.num_envs)):
        branches._seed(lane, seed)
    return branches


def _count(name: str, count: Any) -> int:
    if not single.is_whole(count) or count < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}")
    return int(count)
