"""One dream behind Gymnasium's API: every system and every world, told apart by keywords.

    env = gym.make("wmgym:WorldPack-Minecraft-v0")      # by name, with the weights it came with
    env = wmgym.make_env(world, "free", num_actions=4)  # any `core.World` of your own
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.logger import warn

from wmgym import shell as lanes
from wmgym.core import World
from wmgym.shell import Moment, SavedState
from wmgym.tasks import Task
from wmgym.vector_env import WorldModelVectorEnv, branched, check_options, checked, observation, render_metadata, rendered
from wmgym.vectors import load_generator


class WorldModelEnv(gym.Env):
    """A dream of one world.

    checkpoint     bundled name, path or hub name; or a `core.World` of your own, and then `setting`, `num_actions` or `action_space`
    setting        where it plays, which says what actions, tasks and opening there are ("minecraft")
    task           "navigate", "free" and what else the world has
    memory, memory_budget, denoise_steps, device, dtype   how the checkpoint is loaded
    hold_action    worlds that make F frames a step: one action for all of them instead of F
    horizon        frames after which the env itself truncates
    context        "live" (the twin is walked for the opening frames), "bundled" (shipped clips), or frames, actions, poses; by default
                   bundled where clips of the task are shipped, else live
    data           setting "recon": folder of recorded drives, which episodes open with
    twin, twin_kwargs   the id of the ground truth, and what it is made with
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012  # Gymnasium's own form

    def __init__(
        self,
        checkpoint: str | World | None = None,
        *,
        setting: str | None = None,
        num_actions: int | None = None,
        action_space: gym.Space | None = None,
        task: str | Task | None = None,
        memory: str | None = None,
        memory_budget: int | None = None,
        denoise_steps: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        hold_action: bool = False,
        horizon: int | None = None,
        context: Any = None,
        data: str | None = None,
        twin: str | None = None,
        twin_kwargs: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.shell = lanes.make_shell(
            checkpoint,
            setting=setting,
            num_actions=num_actions,
            action_space=action_space,
            task=task,
            memory=memory,
            memory_budget=memory_budget,
            denoise_steps=denoise_steps,
            device=device,
            dtype=dtype,
            hold_action=hold_action,
            horizon=horizon,
            context=context,
            data=data,
            twin=twin,
            twin_kwargs=twin_kwargs,
        )
        self.metadata = render_metadata(self.shell, render_mode)
        self.render_mode = render_mode
        self.observation_space, self.action_space = self.shell.observation_space, self.shell.action_space
        self.horizon = self.shell.horizon  # frames after which an episode is cut off
        self._moment: Moment | None = None

    # ---- Gymnasium ----

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode. `options`: `context` (frames, actions, poses) and `goal` (x, y, a pose, or a frame)."""
        given = check_options(options or {})
        super().reset(seed=seed)
        self._moment = self.shell.open([self.np_random], [seed], [given], self.horizon)
        return self._shown(self._moment)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One action, or one chunk of them."""
        before = self._running()
        if before.over[0]:
            raise ResetNeeded("the episode is over: call reset() before the next step")
        self._moment, rewards = self.shell.step(before, self.shell.decode(np.asarray(action)[None], 1))
        ledger = self._moment.ledger
        seen, info = self._shown(self._moment)
        return seen, float(rewards[0]), bool(ledger.terminated[0]), bool(ledger.truncated[0]), info

    def render(self) -> Any:
        """The newest frame, or the newest chunk as a list."""
        if self.render_mode is None:
            warn("render() shows nothing: no render_mode was given when the env was made")
            return None
        return rendered(lanes.to_numpy(self._running().frames)[0], self.render_mode)

    def close(self) -> None:
        self.shell.close()

    # ---- more than Gymnasium asks ----

    @property
    def perf(self) -> dict[str, float]:
        """Times and counts of the newest step and reset."""
        return dict(self.shell.perf)

    def save_state(self) -> SavedState:
        """All that the future depends on, as a value; `load_state` of an env like this one goes on from it bit for bit."""
        return SavedState(self._running(), lanes.save_generators([self.np_random]), (int(self.np_random_seed or 0),))

    def load_state(self, state: SavedState) -> None:
        """Go on, bit for bit, from a saved state of an env like this one."""
        self._moment = checked(state, self.shell, 1, self._moment)
        self.horizon = int(self._moment.ledger.horizons[0])
        self._np_random, self._np_random_seed = load_generator(state.generators[0]), state.seeds[0]

    def branch(self, n: int, seeds: int | Sequence[int] | None = None) -> WorldModelVectorEnv:
        """n futures of this moment as a vector env that never resets by itself; this env is untouched.

        They share what is remembered until it is written, and this env's noise to come; with `seeds` each has its own.
        """
        return branched(self.shell, self.save_state(), n, seeds, obs_type="numpy", render_mode=self.render_mode)

    def observe(self, frames: Any, actions: Any, poses: Any) -> tuple[Any, dict[str, Any]]:
        """Show real frames: frame t is what was seen after action t. Costs no steps; gives observation and info."""
        seen = self.shell.check_context({"frames": frames, "actions": actions, "poses": poses}, "observed")
        self._moment = self.shell.observe(self._running(), [seen])
        return self._shown(self._moment)

    def get_action_meanings(self) -> list[str]:
        """What each action does, in words."""
        return list(self.shell.setting.actions)

    def get_keys_to_action(self) -> dict[Any, Any]:
        """The keys of `gymnasium.utils.play`. A key is held for the whole chunk."""
        held = self.shell.chunk == 1 or self.shell.hold_action
        return {key: action if held else np.full(self.shell.chunk, action) for key, action in self.shell.setting.keys.items()}

    # ---- parts ----

    def _running(self) -> Moment:
        if self._moment is None:
            raise ResetNeeded("call reset() first")
        return self._moment

    def _shown(self, moment: Moment) -> tuple[Any, dict[str, Any]]:
        seen = observation(self.shell, moment, None)
        first = {key: value[0] for key, value in seen.items()} if isinstance(seen, dict) else seen[0]
        return first, lanes.info_row(self.shell.info(moment), 0)


class WorldModelChunkEnv(WorldModelEnv):
    """The same env for worlds that make several frames a step: tells `gym.make` that it renders lists by itself."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "rgb_array_list"], "render_fps": 5}  # noqa: RUF012


def make_env(
    world: World, task: str | Task = "free", *, num_envs: int | None = None, **keywords: Any
) -> WorldModelEnv | WorldModelVectorEnv:
    """An env round a world of your own; with `num_envs` a vector env. Needs `setting`, `num_actions` or `action_space`.

    Episodes open with `context` (a dict of frames, actions and poses, or a list of them to draw from), or with what
    `reset(options={"context": ...})` gives. The other keywords are those of `WorldModelEnv`.
    """
    if num_envs is None:
        return WorldModelEnv(world, task=task, **keywords)
    return WorldModelVectorEnv(world, num_envs, task=task, **keywords)
