"""Many dreams at once: one forward pass of the network for all lanes.

After `reset(seed=s)` lane i has the noise and the memory decisions of the single env that was reset with seed s + i, also across
autoresets. Frames agree up to the rounding of batched matrix products (float32: within one grey level).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.logger import warn
from gymnasium.vector import AutoresetMode

from wmgym import episode, tree
from wmgym.core import World
from wmgym.episode import EnvState, Identity, SavedState, check_identity
from wmgym.make import make_shell
from wmgym.openings import Opening
from wmgym.shell import ResetOptions, Shell, to_numpy
from wmgym.vectors import (
    AUTORESET,
    LanesEnv,
    Mask,
    VectorConfig,
    check_count,
    info_batch,
    lane_seeds,
    load_generator,
    new_generators,
    save_generators,
)


class DreamFacts:
    """What the single and the vector env say of themselves in the same way."""

    shell: Shell
    spec: Any
    _state: EnvState | None
    _id = ""  # of the env that this one was branched from, in saved states

    @property
    def perf(self) -> dict[str, float]:
        """Times and counts of the latest step and reset, for all lanes together."""
        return dict(self.shell.perf)

    @property
    def horizon(self) -> int:
        """Frames after which an episode is truncated."""
        return self.shell.horizon

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the weights; "" for a world of your own."""
        return self.shell.identity.weights

    @property
    def identity(self) -> Identity:
        """The identity of this env in its saved states."""
        return replace(self.shell.identity, id=self.spec.id if self.spec is not None else self._id)

    def get_action_meanings(self) -> list[str]:
        """What each action does, in words."""
        return list(self.shell.setting.actions)

    def _running(self) -> EnvState:
        if self._state is None:
            raise ResetNeeded("reset() must be called first")
        return self._state


class WorldModelVectorEnv(DreamFacts, LanesEnv):
    """N dreams of one world behind Gymnasium's vector API.

    autoreset_mode  "next_step", "same_step" or "disabled" (an ended lane rests, with its flags set, until it is reset)
    obs_type        "numpy", or "torch" for tensors that stay on the device
    The other keywords are those of `WorldModelEnv`. In `reset(options=...)`, `opening` may be a list and `goal` an array with one entry
    per lane.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "rgb_array_list"]}  # noqa: RUF012  # Gymnasium's own form

    def __init__(
        self,
        checkpoint: str | World | None = None,
        num_envs: int = 1,
        *,
        horizon: int | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = "next_step",
        obs_type: str = "numpy",
        **keywords: Any,
    ) -> None:
        config = VectorConfig.read(num_envs, autoreset_mode, obs_type, horizon, max_episode_steps)
        self._set_up(make_shell({"checkpoint": checkpoint, "horizon": config.horizon, **keywords}), config, render_mode, owns_shell=True)

    def _set_up(self, shell: Shell, config: VectorConfig, render_mode: str | None, *, owns_shell: bool) -> None:
        self._prepare(config, (shell.observation_space, shell.action_space), render_metadata(shell, render_mode), render_mode)
        self.shell, self._owns_shell = shell, owns_shell
        self._state: EnvState | None = None

    @classmethod
    def from_state(cls, shell: Shell, saved: SavedState, *, obs_type: str, render_mode: str | None) -> WorldModelVectorEnv:
        """An env that continues from a saved state, shares the given shell and never resets by itself."""
        env = cls.__new__(cls)
        env._set_up(shell, VectorConfig(saved.state.num_lanes, AUTORESET["disabled"], obs_type, None), render_mode, owns_shell=False)
        env._id = saved.belongs_to.id
        env.load_state(saved)
        return env

    # ---- lanes ----

    def _open(self, mask: Mask, seeds: Sequence[int | None], options: Sequence[ResetOptions]) -> None:
        generators, used = list(self.np_random), list(self.np_random_seed)
        chosen = np.flatnonzero(mask).tolist()
        for lane in chosen:
            if seeds[lane] is not None:
                (generators[lane],), (used[lane],) = new_generators([seeds[lane]])
            else:
                generators[lane] = deepcopy(generators[lane])  # a copy, so that the old one is unchanged if an error occurs
        fresh = self.shell.open([generators[i] for i in chosen], [seeds[i] for i in chosen], [options[i] for i in chosen])
        self._state = fresh if mask.all() else episode.where(mask, episode.scatter(fresh, mask), self._running())
        self._generators, self._seeds = generators, used

    def _advance(self, actions: Any, moving: Mask) -> np.ndarray:
        before = self._running()
        state, rewards = self.shell.step(before, self.shell.decode(actions, self.num_envs))
        if not moving.all():
            rewards = np.where(moving, rewards, 0.0)
            if self.autoreset_mode is AutoresetMode.DISABLED:  # in the other modes the resting lanes are reset next
                state = episode.where(moving, state, before)
        self._state = state
        return rewards

    def _flags(self) -> tuple[Mask, Mask]:
        status = self._running().status
        return status.terminated.numpy().copy(), status.truncated.numpy().copy()

    def _observe(self) -> Any:
        return self.shell.observation(self._running(), tensors=self.obs_type == "torch")

    def _info(self, lanes: Mask) -> dict[str, Any]:
        return info_batch(self.shell.info(self._running()), lanes)

    def _read_options(self, options: Any) -> ResetOptions:
        return self.shell.read_options(options)

    def _is_per_lane(self, key: str, value: Any) -> bool:
        return isinstance(value, (list, tuple)) if key in ("opening", "context") else key == "goal" and np.ndim(value) in (2, 4)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, Mask, Mask, dict[str, Any]]:
        """One step in every lane with batched forward passes. On an error no lane changes."""
        before = self._state, self._generators
        try:
            return super().step(actions)
        except BaseException:
            self._state, self._generators = before
            raise

    def render(self) -> tuple[Any, ...] | None:
        """One frame per lane, or one list of the chunk's frames per lane."""
        if self.render_mode is None:
            warn("render() shows nothing: no render_mode was given when the env was made")
            return None
        return tuple(rendered(row, self.render_mode) for row in to_numpy(self._running().frames))

    def close_extras(self, **kwargs: Any) -> None:
        if self._owns_shell:
            self.shell.close()

    # ---- more than Gymnasium asks ----

    def save_state(self) -> SavedState:
        """Everything that the future depends on, as a value."""
        return SavedState(self.identity, self._running(), save_generators(self.np_random), self.np_random_seed)

    def load_state(self, state: SavedState) -> None:
        """Continue from a saved state, bit for bit. A state of another env raises `ValueError`."""
        self._state = checked_state(state, self.shell, self.identity, self.num_envs)
        self._generators = [load_generator(generator) for generator in state.generators]
        self._seeds, self._is_running = list(state.seeds), True

    def branch(self, n: int, seeds: int | Sequence[int] | None = None) -> WorldModelVectorEnv:
        """n futures of each lane, next to each other, as a vector env that never resets by itself. This env is untouched.

        Branches keep the noise of their lanes, or get new noise from `seeds`: either one number, to which the branch's index is added, or
        one number per branch. Frames agree with this env's up to the rounding of batched matrix products.
        """
        return branched(self.shell, self.save_state(), n, seeds, obs_type=self.obs_type, render_mode=self.render_mode)

    def select(self, index: Sequence[int]) -> WorldModelVectorEnv:
        """Some lanes of the present state, in the given order, as a vector env that never resets by itself. This env is untouched."""
        saved, chosen = self.save_state(), [int(lane) for lane in index]
        if not chosen or not all(0 <= lane < self.num_envs for lane in chosen):
            raise ValueError(f"index must hold lanes from 0 to {self.num_envs - 1}, at least one, got {chosen}")
        some = replace(
            saved,
            state=episode.select(saved.state, torch.tensor(chosen)),
            generators=tuple(saved.generators[lane] for lane in chosen),
            seeds=tuple(saved.seeds[lane] for lane in chosen),
        )
        return self.from_state(self.shell, some, obs_type=self.obs_type, render_mode=self.render_mode)

    def observe(self, frames: Any, actions: Any, poses: Any) -> tuple[Any, dict[str, Any]]:
        """Add real frames to the memory of every lane: arrays `[N, T, ...]`, or lists with one clip per lane. It takes no env steps."""
        for name, value in (("frames", frames), ("actions", actions), ("poses", poses)):
            if len(value) != self.num_envs:
                raise ValueError(f"{name} must have one entry for each of {self.num_envs} lanes, got {len(value)}")
        seen: list[Opening] = [
            self.shell.check_opening({"frames": f, "actions": a, "poses": p}, f"lane {i}:")
            for i, (f, a, p) in enumerate(zip(frames, actions, poses, strict=True))
        ]
        self._state = self.shell.observe(self._running(), seen)
        return self._observe(), self._info(np.ones(self.num_envs, bool))


# ---- shared with the single env ----


def rendered(frames: np.ndarray, render_mode: str) -> Any:
    """The result of `render` for a chunk uint8 [F, H, W, 3]: its last frame, or a list of all frames."""
    return list(frames) if render_mode == "rgb_array_list" else frames[-1]


def render_metadata(shell: Shell, render_mode: str | None) -> dict[str, Any]:
    """Metadata with the render modes for this chunk size. Another `render_mode` raises `ValueError`."""
    modes = ["rgb_array", "rgb_array_list"] if shell.chunk > 1 else ["rgb_array"]
    if render_mode is not None and render_mode not in modes:
        raise ValueError(f"render_mode must be one of {modes} or None, got {render_mode!r}")
    return {"render_modes": modes, "render_fps": shell.setting.fps}


def checked_state(saved: Any, shell: Shell, own: Identity, num_envs: int) -> EnvState:
    """A saved state, moved to this world's device. A state of another env raises `ValueError`."""
    if not isinstance(saved, SavedState):
        raise ValueError(f"load_state needs what save_state gave, got {type(saved).__name__}")
    check_identity(saved.belongs_to, own)
    state = saved.state
    if state.num_lanes != num_envs:
        raise ValueError(f"the saved state has {state.num_lanes} lanes, this env has {num_envs}")
    shape = (num_envs, shell.chunk, *shell.world.frame_shape)
    if tuple(state.frames.shape) != shape:  # possible for worlds of the user's own, whose identity has no hash of the weights
        raise ValueError(f"the saved state has frames {list(state.frames.shape)}, this env {list(shape)}")
    device = shell.world.device
    return EnvState(tree.to(state.world, device), state.frames.to(device), tree.to(state.status, "cpu"))


def branched(
    shell: Shell, saved: SavedState, n: int, seeds: int | Sequence[int] | None, *, obs_type: str, render_mode: str | None
) -> WorldModelVectorEnv:
    """n futures of each lane of a state."""
    state = episode.repeat(saved.state, check_count("n", n))
    generators = tuple(generator for generator in saved.generators for _ in range(n))
    used = tuple(seed for seed in saved.seeds for _ in range(n))
    if seeds is not None:
        if not isinstance(seeds, (int, np.integer)) and len(seeds) != state.num_lanes:
            raise ValueError(f"{len(seeds)} seeds were given for {state.num_lanes} branches")
        fresh, given = new_generators(lane_seeds(seeds, state.num_lanes))
        state = episode.reseed(state, fresh)
        generators, used = save_generators(fresh), tuple(given)
    many = replace(saved, state=state, generators=generators, seeds=used)
    return WorldModelVectorEnv.from_state(shell, many, obs_type=obs_type, render_mode=render_mode)
