"""Many dreams at once: one forward pass of the network for all lanes.

Lane i of an env that was reset with seed s is the single env that was reset with seed s + i, across autoresets too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.logger import warn
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from wmgym import shell as lanes
from wmgym import tree
from wmgym.core import World
from wmgym.openings import Opening
from wmgym.shell import Moment, SavedState, Shell
from wmgym.tasks import Task
from wmgym.vectors import (
    AUTORESET,
    OBS_TYPES,
    LanesEnv,
    autoreset_name,
    lane_options,
    lane_seeds,
    load_generator,
    new_generators,
    reset_mask,
)


class WorldModelVectorEnv(LanesEnv):
    """N dreams of one world behind Gymnasium's vector API.

    autoreset_mode  "next_step", "same_step" or "disabled" (then an ended lane rests, with its flags set, until it is reset)
    obs_type        "numpy", or "torch": observations are tensors that stay on the device
    The rest is as in `WorldModelEnv`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "rgb_array_list"]}  # noqa: RUF012  # Gymnasium's own form

    def __init__(
        self,
        checkpoint: str | World | None = None,
        num_envs: int = 1,
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
        max_episode_steps: int | None = None,
        context: Any = None,
        data: str | None = None,
        twin: str | None = None,
        twin_kwargs: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = "next_step",
        obs_type: str = "numpy",
    ) -> None:
        if horizon is not None and max_episode_steps is not None:
            raise ValueError(f"max_episode_steps={max_episode_steps} is the horizon here, and horizon={horizon} is given too")
        lanes.check_positive(num_envs=num_envs, max_episode_steps=max_episode_steps)
        mode, kind = autoreset_name(autoreset_mode), _one_of("obs_type", obs_type, OBS_TYPES)
        shell = lanes.make_shell(
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
            horizon=max_episode_steps if horizon is None else horizon,
            context=context,
            data=data,
            twin=twin,
            twin_kwargs=twin_kwargs,
        )
        self._set_up(shell, num_envs, mode, kind, render_mode, owns_shell=True)

    def _set_up(self, shell: Shell, num_envs: int, mode: str, obs_type: str, render_mode: str | None, *, owns_shell: bool) -> None:
        self.num_envs = int(num_envs)
        self.autoreset_mode, self.obs_type, self.render_mode = AUTORESET[mode], obs_type, render_mode
        self.metadata = render_metadata(shell, render_mode) | {"autoreset_mode": self.autoreset_mode}
        self.single_observation_space, self.single_action_space = shell.observation_space, shell.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.shell, self._owns_shell = shell, owns_shell
        self.horizon = shell.horizon  # frames after which an episode is cut off
        self._moment: Moment | None = None
        self._generators, self._seeds = None, []

    @classmethod
    def branching(
        cls,
        shell: Shell,
        moment: Moment,
        generators: Sequence[np.random.Generator],
        seeds: Sequence[int | None],
        *,
        obs_type: str,
        render_mode: str | None,
    ) -> WorldModelVectorEnv:
        """Lanes that go on from `moment` and never reset by themselves. They share the shell that made the moment."""
        env = cls.__new__(cls)
        env._set_up(shell, moment.num_lanes, "disabled", obs_type, render_mode, owns_shell=False)
        env._moment, env._generators, env._seeds = moment, list(generators), list(seeds)
        env.horizon = int(moment.ledger.horizons[0])
        return env

    # ---- Gymnasium ----

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes in all lanes, or in those of `options["reset_mask"]`.

        `options` is a dict for all lanes (in which `context` may be a list, and `goal` an array, with one entry per lane), or
        a list of dicts, one per lane.
        """
        seeds, mask = lane_seeds(seed, self.num_envs), reset_mask(options, self.num_envs)
        per_lane = [check_options(each) for each in lane_options(options, self.num_envs, is_per_lane)]
        if self._moment is None and not mask.all():
            raise ResetNeeded("a reset_mask needs lanes that are running: reset all of them first")
        moment, generators, used = self._opened(mask, seeds, per_lane)
        self._moment, self._generators, self._seeds = moment, generators, used
        return self._observation(moment), lanes.info_batch(self.shell.info(moment), mask)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step in every lane, from one forward pass."""
        before = self._running()
        over = before.over
        moment, rewards = self.shell.step(before, self.shell.decode(actions, self.num_envs))
        every = np.ones(self.num_envs, bool)
        final: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            terminated, truncated = _flags(moment)
            over = moment.over
            if over.any():
                final = self._final(moment, over)
                moment = self._reopened(moment, over)
        else:
            if over.any():
                rewards = np.where(over, 0.0, rewards)
                rest = self.autoreset_mode is AutoresetMode.DISABLED
                moment = lanes.where(over, before, moment) if rest else self._reopened(moment, over)
            terminated, truncated = _flags(moment)
        self._moment = moment
        info = final | lanes.info_batch(self.shell.info(moment), every)
        return self._observation(moment), rewards, terminated, truncated, info

    def render(self) -> tuple[Any, ...] | None:
        """One frame per lane, or one list of the chunk's frames per lane."""
        if self.render_mode is None:
            warn("render() shows nothing: no render_mode was given when the env was made")
            return None
        return tuple(rendered(row, self.render_mode) for row in lanes.to_numpy(self._running().frames))

    def close_extras(self, **kwargs: Any) -> None:
        if self._owns_shell:
            self.shell.close()

    # ---- more than Gymnasium asks ----

    @property
    def perf(self) -> dict[str, float]:
        """Times and counts of the newest step and reset, for all lanes together."""
        return dict(self.shell.perf)

    def save_state(self) -> SavedState:
        """All that the future depends on, as a value."""
        return SavedState(self._running(), lanes.save_generators(self.np_random), self.np_random_seed)

    def load_state(self, state: SavedState) -> None:
        """Go on, bit for bit, from a saved state of an env like this one."""
        self._moment = checked(state, self.shell, self.num_envs, self._moment)
        self.horizon = int(self._moment.ledger.horizons[0])
        self._generators = [load_generator(generator) for generator in state.generators]
        self._seeds = list(state.seeds)

    def branch(self, n: int, seeds: int | Sequence[int] | None = None) -> WorldModelVectorEnv:
        """n futures of each lane, next to each other, as a vector env that never resets by itself; this env is untouched."""
        return branched(self.shell, self.save_state(), n, seeds, obs_type=self.obs_type, render_mode=self.render_mode)

    def select(self, index: Sequence[int]) -> WorldModelVectorEnv:
        """Some lanes of this moment, in that order, as a vector env that never resets by itself; this env is untouched."""
        state, chosen = self.save_state(), [int(lane) for lane in index]
        if not chosen or not all(0 <= lane < self.num_envs for lane in chosen):
            raise ValueError(f"lanes must be some from 0 to {self.num_envs - 1}, got {chosen}")
        moment = lanes.select(state.moment, torch.tensor(chosen))
        generators = [load_generator(state.generators[lane]) for lane in chosen]
        used = [state.seeds[lane] for lane in chosen]
        return self.branching(self.shell, moment, generators, used, obs_type=self.obs_type, render_mode=self.render_mode)

    def observe(self, frames: Any, actions: Any, poses: Any) -> tuple[Any, dict[str, Any]]:
        """Show real frames to every lane: `[N, T, ...]` each, or a list with one clip per lane. Costs no steps."""
        for name, value in (("frames", frames), ("actions", actions), ("poses", poses)):
            if len(value) != self.num_envs:
                raise ValueError(f"{name} must have one entry for each of {self.num_envs} lanes, got {len(value)}")
        seen = [
            self.shell.check_context({"frames": f, "actions": a, "poses": p}, f"lane {i}:")
            for i, (f, a, p) in enumerate(zip(frames, actions, poses, strict=True))
        ]
        return self._observed(seen)

    def get_action_meanings(self) -> list[str]:
        """What each action does, in words."""
        return list(self.shell.setting.actions)

    # ---- parts ----

    def _running(self) -> Moment:
        if self._moment is None:
            raise ResetNeeded("call reset() first")
        return self._moment

    def _observation(self, moment: Moment) -> Any:
        kind = self.shell.world.device if self.obs_type == "torch" else None
        return observation(self.shell, moment, kind)

    def _observed(self, seen: Sequence[Opening]) -> tuple[Any, dict[str, Any]]:
        self._moment = self.shell.observe(self._running(), seen)
        return self._observation(self._moment), lanes.info_batch(self.shell.info(self._moment), np.ones(self.num_envs, bool))

    def _opened(
        self, mask: np.ndarray, seeds: Sequence[int | None], options: Sequence[Mapping[str, Any]]
    ) -> tuple[Moment, list[np.random.Generator], list[int | None]]:
        """The lanes in `mask` opened anew, and every lane's generator and seed after that. Nothing changes if it fails."""
        generators, used = list(self.np_random), list(self.np_random_seed)
        chosen = np.flatnonzero(mask).tolist()
        for lane in chosen:
            if seeds[lane] is not None:
                (generators[lane],), (used[lane],) = new_generators([seeds[lane]])
        fresh = self.shell.open([generators[i] for i in chosen], [seeds[i] for i in chosen], [options[i] for i in chosen], self.horizon)
        if mask.all():
            return fresh, generators, used
        return lanes.where(mask, lanes.spread(fresh, mask), self._running()), generators, used

    def _reopened(self, moment: Moment, over: np.ndarray) -> Moment:
        """The same moment with the lanes in `over` opened anew by their own generators."""
        chosen = np.flatnonzero(over).tolist()
        fresh = self.shell.open([self.np_random[i] for i in chosen], [None] * len(chosen), [{}] * len(chosen), self.horizon)
        return lanes.where(over, lanes.spread(fresh, over), moment)

    def _final(self, moment: Moment, over: np.ndarray) -> dict[str, Any]:
        """What the ended lanes showed last, as Gymnasium wants it in the info of a same-step reset."""
        last = np.full(self.num_envs, None, object)
        batch = self._observation(moment)
        for lane in np.flatnonzero(over):
            last[lane] = {key: value[lane] for key, value in batch.items()} if isinstance(batch, dict) else batch[lane]
        info = lanes.info_batch(self.shell.info(moment), over)
        return {"final_obs": last, "_final_obs": over.copy(), "final_info": info, "_final_info": over.copy()}


# ---- what the single env uses too ----


def observation(shell: Shell, moment: Moment, device: Any) -> Any:
    """A batched observation: tensors on `device`, or numpy where it is None."""

    def convert(value: Any) -> Any:
        if device is None:
            return value.cpu().numpy() if isinstance(value, Tensor) else value
        return value if isinstance(value, Tensor) else torch.from_numpy(value).to(device)

    given = shell.observation(moment)
    return {key: convert(value) for key, value in given.items()} if isinstance(given, dict) else convert(given)


def rendered(frames: np.ndarray, render_mode: str) -> Any:
    """What `render` shows of a chunk uint8 [F, H, W, 3]: its last frame, or all of them."""
    return list(frames) if render_mode == "rgb_array_list" else frames[-1]


def render_metadata(shell: Shell, render_mode: str | None) -> dict[str, Any]:
    """The render modes that an env of this chunk size has; a `render_mode` beyond them raises `ValueError`."""
    modes = ["rgb_array", "rgb_array_list"] if shell.chunk > 1 else ["rgb_array"]
    if render_mode is not None and render_mode not in modes:
        raise ValueError(f"render_mode must be one of {modes} or None, got {render_mode!r}")
    return {"render_modes": modes, "render_fps": shell.setting.fps}


def is_per_lane(key: str, value: Any) -> bool:
    """Whether an option given for all lanes holds an entry for each: a list of contexts, an array of goals."""
    return isinstance(value, (list, tuple)) if key == "context" else key == "goal" and np.ndim(value) in (2, 4)


def check_options(options: Any) -> Mapping[str, Any]:
    """One lane's options; an unknown one raises `ValueError`."""
    if not isinstance(options, Mapping):
        raise ValueError(f"options must be a dict, got {type(options).__name__}")
    unknown = sorted(set(options) - set(lanes.OPTIONS))
    if unknown:
        raise ValueError(f"a dream's reset knows the options {', '.join(lanes.OPTIONS)}, got {', '.join(map(str, unknown))}")
    return options


def checked(state: Any, shell: Shell, num_envs: int, current: Moment | None) -> Moment:
    """The moment of a saved state, on this world's device. A state of another kind of env raises `ValueError`."""
    if not isinstance(state, SavedState):
        raise ValueError(f"load_state takes what save_state gave, got {type(state).__name__}")
    moment = state.moment
    if moment.num_lanes != num_envs:
        raise ValueError(f"the saved state has {moment.num_lanes} lanes, this env has {num_envs}")
    shape = (num_envs, shell.chunk, *shell.world.frame_shape)
    if tuple(moment.frames.shape) != shape:
        raise ValueError(f"the saved state has frames {list(moment.frames.shape)}, this env {list(shape)}")
    if current is not None:
        ours, theirs = tree.leaves(current.world).keys(), tree.leaves(moment.world).keys()
        if ours != theirs:
            raise ValueError(f"the saved state is of another kind of memory: they differ in {sorted(ours ^ theirs)}")
    device = shell.world.device
    return Moment(tree.to(moment.world, device), moment.frames.to(device), tree.to(moment.ledger, "cpu"))


def branched(
    shell: Shell, state: SavedState, n: int, seeds: int | Sequence[int] | None, *, obs_type: str, render_mode: str | None
) -> WorldModelVectorEnv:
    """n futures of each lane of a state."""
    lanes.check_positive(n=n)
    moment = lanes.repeat(state.moment, n)
    generators = [load_generator(generator) for generator in state.generators for _ in range(n)]
    used = [seed for seed in state.seeds for _ in range(n)]
    if seeds is not None:
        given = [int(seeds) + i for i in range(moment.num_lanes)] if isinstance(seeds, (int, np.integer)) else [int(s) for s in seeds]
        if len(given) != moment.num_lanes:
            raise ValueError(f"{len(given)} seeds were given for {moment.num_lanes} branches")
        generators, used = new_generators(given)
        moment = lanes.reseed(moment, generators)
    return WorldModelVectorEnv.branching(shell, moment, generators, used, obs_type=obs_type, render_mode=render_mode)


def _flags(moment: Moment) -> tuple[np.ndarray, np.ndarray]:
    return moment.ledger.terminated.numpy().copy(), moment.ledger.truncated.numpy().copy()


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}")
    return value
