"""Many tables of cards behind Gymnasium's vector API: one call moves all cursors, one call draws all tables.

After `reset(seed=s)` lane i equals the single env that was reset with seed s + i, bit for bit, also across autoresets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from wmgym.envs.checks import check_state_keys
from wmgym.envs.memory_cards import env as single
from wmgym.envs.memory_cards import table as cards
from wmgym.envs.memory_cards.env import Rules
from wmgym.envs.memory_cards.table import CELLS, Table
from wmgym.settings import memory_cards as setting
from wmgym.vectors import LanesEnv, Mask, VectorConfig, as_tensors, check_actions, check_count, info_batch, lane_seeds, load_generator


class MemoryCardsVectorEnv(LanesEnv):
    """N tables of cards. A step does not loop over lanes; a reset does, since each lane has its own generator.

    The keywords of `MemoryCardsEnv`, and:
    autoreset_mode: "next_step", "same_step" or "disabled" (an ended lane rests, with its flags set, until it is reset).
    obs_type: "numpy", or "torch" for tensors on the CPU.
    max_episode_steps: another name of `horizon`, used by `gymnasium.make_vec`.
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
        config = VectorConfig.read(num_envs, autoreset_mode, obs_type, horizon, max_episode_steps)
        horizon = setting.HORIZON if config.horizon is None else config.horizon
        self.rules = Rules(task, deck, cover, cursor, size, render_size, horizon, render_mode)
        self.horizon = int(horizon)
        self._prepare(config, (self.rules.observation_space, spaces.Discrete(len(setting.ACTIONS))), self.metadata, render_mode)
        empty = np.zeros((self.num_envs, CELLS), np.int64)
        self._table = Table(empty, empty > 0, empty[:, 0])
        self._elapsed = np.zeros(self.num_envs, np.int64)
        self._truncated = np.zeros(self.num_envs, bool)  # no episode terminates

    # ---- lanes ----

    def _read_options(self, options: Any) -> int | None:
        return single.check_options(options)

    def _is_per_lane(self, key: str, value: Any) -> bool:
        return key == "start" and np.ndim(value) == 2

    def _open(self, mask: Mask, seeds: Sequence[int | None], options: Sequence[int | None]) -> None:
        objects, is_open, cursor = self._table.objects.copy(), self._table.is_open.copy(), self._table.cursor.copy()
        for lane in np.flatnonzero(mask).tolist():
            self._seed(lane, seeds[lane])
            objects[lane], is_open[lane], cursor[lane] = self.rules.open(self.np_random[lane], options[lane])
        self._table = Table(objects, is_open, cursor)
        self._elapsed, self._truncated = np.where(mask, 0, self._elapsed), self._truncated & ~mask

    def _advance(self, actions: Any, moving: Mask) -> NDArray[np.float64]:
        self._table = cards.move(self._table, np.where(moving, check_actions(actions, self.single_action_space, self.num_envs), cards.REST))
        self._elapsed = self._elapsed + moving
        self._truncated = self._elapsed >= self.horizon
        return np.zeros(self.num_envs)

    def _flags(self) -> tuple[Mask, Mask]:
        return np.zeros(self.num_envs, bool), self._truncated.copy()

    def _observe(self) -> Any:
        frames = self.rules.draw(self._table)
        return as_tensors(frames) if self.obs_type == "torch" else frames

    def _info(self, lanes: Mask) -> dict[str, Any]:
        return info_batch({"pose": (cards.poses(self._table), np.ones(self.num_envs, bool))}, lanes)

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """One frame per lane."""
        self._check_running()
        return tuple(self.rules.render(self._table)) if self.render_mode == "rgb_array" else None

    def close_extras(self, **kwargs: Any) -> None:
        self._is_running = False

    # ---- more than Gymnasium asks ----

    def save_state(self) -> dict[str, Any]:
        """Everything that the future depends on, as a value. `state["lanes"][i]` is a state of the single env."""
        self._check_running()
        lanes = zip(self._elapsed.tolist(), self.np_random, self.np_random_seed, strict=True)
        states = tuple(single.state_of(self._table, i, self.horizon, *lane) for i, lane in enumerate(lanes))
        return {"lanes": states, "truncated": self._truncated.copy()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a value of `save_state`, bit for bit. ValueError if it is not one, or has another number of lanes."""
        check_state_keys(state, ("lanes", "truncated"))
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
        """n futures of each lane, next to each other, as a vector env that never resets by itself. This env is untouched.

        Branches keep the generators of their lanes, or get new ones from `seeds`: either one number, to which the branch's index is
        added, or one number per branch.
        """
        state = self.save_state()
        return branched(self.rules, state["lanes"], state["truncated"], n, seeds, self.obs_type)

    def get_action_meanings(self) -> list[str]:
        """What each action does, in words."""
        return list(setting.ACTIONS)


def branched(
    rules: Rules, lanes: Sequence[Mapping[str, Any]], truncated: Mask, n: int, seeds: int | Sequence[int] | None, obs_type: str
) -> MemoryCardsVectorEnv:
    """n futures of each saved lane, next to each other."""
    states = tuple(lane for lane in lanes for _ in range(check_count("n", n)))
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
