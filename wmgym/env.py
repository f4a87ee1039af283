"""The single dream env. One class serves all systems and settings; keywords select them.

env = gym.make("wmgym:WorldPack-Minecraft-v0")      # an id, with its bundled weights
env = wmgym.make_env(world, "free", num_actions=4)  # a `core.World` of your own
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.logger import warn

from wmgym.core import World
from wmgym.episode import EnvState, SavedState
from wmgym.make import make_shell
from wmgym.shell import to_numpy
from wmgym.tasks import Task
from wmgym.vector_env import DreamFacts, WorldModelVectorEnv, branched, checked_state, render_metadata, rendered
from wmgym.vectors import info_row, load_generator, save_generators


class WorldModelEnv(DreamFacts, gym.Env):
    """A dream. The keywords are those of `make.DreamConfig` and of the checkpoint's system; a wrong value raises `ValueError`, an
    unknown keyword `TypeError`.

    `env.unwrapped.weights_hash` is the SHA-256 of the weights. `env.unwrapped.perf` has times and counts of the latest step and reset.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012  # Gymnasium's own form

    def __init__(self, checkpoint: str | World | None = None, *, render_mode: str | None = None, **keywords: Any) -> None:
        self.shell = make_shell({"checkpoint": checkpoint, **keywords})
        self.metadata = render_metadata(self.shell, render_mode)
        self.render_mode = render_mode
        self.observation_space, self.action_space = self.shell.observation_space, self.shell.action_space
        self._state: EnvState | None = None

    # ---- Gymnasium ----

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode. `options`: `opening` (a dict of frames, actions and poses) and `goal` ((x, y), a pose, or a frame)."""
        given = self.shell.read_options(options or {})
        before = deepcopy(self._np_random), self._np_random_seed
        super().reset(seed=seed)
        try:
            self._state = self.shell.open([self.np_random], [seed], [given])
        except BaseException:  # nothing has begun, so nothing was drawn
            self._np_random, self._np_random_seed = before
            raise
        return self._shown(self._state)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One action, or one chunk of actions. After the end of an episode it raises `ResetNeeded`."""
        before = self._running()
        if before.over[0]:
            raise ResetNeeded("the episode is over: call reset() before the next step")
        self._state, rewards = self.shell.step(before, self.shell.decode(action, None))
        status = self._state.status
        seen, info = self._shown(self._state)
        return seen, float(rewards[0]), bool(status.terminated[0]), bool(status.truncated[0]), info

    def render(self) -> Any:
        """The newest frame, or the newest chunk as a list."""
        if self.render_mode is None:
            warn("render() shows nothing: no render_mode was given when the env was made")
            return None
        return rendered(to_numpy(self._running().frames)[0], self.render_mode)

    def close(self) -> None:
        self.shell.close()

    # ---- more than Gymnasium asks ----

    def save_state(self) -> SavedState:
        """Everything that the future depends on, as a value. `load_state` of an equal env continues from it bit for bit."""
        return SavedState(self.identity, self._running(), save_generators([self.np_random]), (int(self.np_random_seed or 0),))

    def load_state(self, state: SavedState) -> None:
        """Continue from a saved state, bit for bit. A state of another env raises `ValueError`."""
        self._state = checked_state(state, self.shell, self.identity, 1)
        self._np_random, self._np_random_seed = load_generator(state.generators[0]), state.seeds[0]

    def branch(self, n: int, seeds: int | Sequence[int] | None = None) -> WorldModelVectorEnv:
        """n futures of the present state, as a vector env that never resets by itself. This env is untouched.

        Branches share memory until they write to it. They keep this env's noise, or get new noise from `seeds`: either one number, to
        which the branch's index is added, or one number per branch. Frames agree with this env's up to the rounding of batched matrix
        products.
        """
        return branched(self.shell, self.save_state(), n, seeds, obs_type="numpy", render_mode=self.render_mode)

    def observe(self, frames: Any, actions: Any, poses: Any) -> tuple[Any, dict[str, Any]]:
        """Add real frames to the memory: frame t was observed after action t. It takes no env steps. Returns observation and info."""
        seen = self.shell.check_opening({"frames": frames, "actions": actions, "poses": poses}, "observed")
        self._state = self.shell.observe(self._running(), [seen])
        return self._shown(self._state)

    def get_keys_to_action(self) -> dict[Any, Any]:
        """The keys of `gymnasium.utils.play`. A key sets all actions of a chunk."""
        held = self.shell.chunk == 1 or self.shell.hold_action
        return {key: action if held else np.full(self.shell.chunk, action) for key, action in self.shell.setting.keys.items()}

    # ---- parts ----

    def _shown(self, state: EnvState) -> tuple[Any, dict[str, Any]]:
        seen = self.shell.observation(state)
        first = {key: value[0] for key, value in seen.items()} if isinstance(seen, dict) else seen[0]
        return first, info_row(self.shell.info(state), 0)


class WorldModelChunkEnv(WorldModelEnv):
    """The same env for worlds with several frames per step. Its metadata declares `rgb_array_list`, which `gym.make` checks."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "rgb_array_list"], "render_fps": 5}  # noqa: RUF012


def make_env(
    world: World, task: str | Task = "free", *, num_envs: int | None = None, **keywords: Any
) -> WorldModelEnv | WorldModelVectorEnv:
    """An env of a world of your own, or a vector env with `num_envs`. It needs `setting`, `num_actions` or `action_space`.

    opening: how episodes start: a dict of frames, actions and poses, or a list of dicts to draw from. Without it every reset needs
    `options={"opening": ...}`. The other keywords are those of `make.DreamConfig`.
    """
    if num_envs is None:
        return WorldModelEnv(world, task=task, **keywords)
    return WorldModelVectorEnv(world, num_envs, task=task, **keywords)
