"""What the vector envs of truths and dreams share: autoreset, final observations, seeds, masks and options of lanes.

A vector env here is a `LanesEnv` that says how its lanes open and advance. `reset` and `step` are written once, here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

AUTORESET = {"next_step": AutoresetMode.NEXT_STEP, "same_step": AutoresetMode.SAME_STEP, "disabled": AutoresetMode.DISABLED}
OBS_TYPES = ("numpy", "torch")

Mask = NDArray[np.bool_]  # [N], one per lane


# -- keywords -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VectorConfig:
    """The keywords that all vector envs share, checked."""

    num_envs: int
    autoreset_mode: AutoresetMode
    obs_type: str
    horizon: int | None  # as it was given; None: the task's

    @classmethod
    def read(cls, num_envs: Any, autoreset_mode: Any, obs_type: Any, horizon: Any, max_episode_steps: Any) -> VectorConfig:
        """`max_episode_steps` is what `gymnasium.make_vec` calls the horizon. A wrong value raises `ValueError`."""
        if horizon is not None and max_episode_steps is not None:
            raise ValueError(f"max_episode_steps={max_episode_steps} is the horizon here, and horizon={horizon} is given too")
        if obs_type not in OBS_TYPES:
            raise ValueError(f"obs_type must be one of {list(OBS_TYPES)}, got {obs_type!r}")
        count, horizon = check_count("num_envs", num_envs), horizon if max_episode_steps is None else max_episode_steps
        return cls(count, AUTORESET[autoreset_name(autoreset_mode)], obs_type, horizon)


def check_count(name: str, value: Any) -> int:
    """A whole number of at least 1; anything else raises `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def autoreset_name(mode: str | AutoresetMode) -> str:
    """The mode as the string that is stored."""
    for name, member in AUTORESET.items():
        if mode in (name, member):
            return name
    raise ValueError(f"autoreset_mode must be one of {list(AUTORESET)}, got {mode!r}")


def storable(spec: Any) -> Any:
    """A spec whose autoreset mode is a string, so that it has a JSON form."""
    if spec is not None and "autoreset_mode" in spec.kwargs:
        spec.kwargs["autoreset_mode"] = autoreset_name(spec.kwargs["autoreset_mode"])
    return spec


# -- the env --------------------------------------------------------------------------------------------------------------------------


class LanesEnv(VectorEnv):
    """N lanes behind Gymnasium's vector API, in all three autoreset modes.

    A subclass calls `_prepare` when it is made and defines `_open`, `_advance`, `_flags`, `_observe` and `_info`; `_read_options` and
    `_is_per_lane` where its `reset` takes options.
    """

    _generators: list[np.random.Generator] | None  # of the lanes; None: not drawn yet
    _seeds: list[int | None]
    _is_running: bool  # whether all lanes have been reset

    def _prepare(
        self, config: VectorConfig, single: tuple[gym.Space, gym.Space], metadata: Mapping[str, Any], render_mode: str | None
    ) -> None:
        """Set what Gymnasium asks for; `single` are the observation and action space of one lane."""
        self.num_envs, self.autoreset_mode, self.obs_type = config.num_envs, config.autoreset_mode, config.obs_type
        self.metadata = {**metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self.single_observation_space, self.single_action_space = single
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._generators, self._seeds, self._is_running = None, [], False

    # ---- what a subclass defines ----

    def _open(self, mask: Mask, seeds: Sequence[int | None], wishes: Sequence[Any]) -> None:
        """Begin new episodes in the lanes of a mask. If one cannot begin as wished, nothing changes and the error is raised."""
        raise NotImplementedError

    def _advance(self, actions: Any, moving: Mask) -> NDArray[np.float64]:
        """One step of the lanes in `moving`; the others rest. Rewards [N], 0 where nothing moved."""
        raise NotImplementedError

    def _flags(self) -> tuple[Mask, Mask]:
        """Which lanes are terminated and which truncated; copies."""
        raise NotImplementedError

    def _observe(self) -> Any:
        """What all lanes see now, in memory that nobody else holds."""
        raise NotImplementedError

    def _info(self, lanes: Mask) -> dict[str, Any]:
        """Gymnasium's batched info of some lanes."""
        raise NotImplementedError

    def _read_options(self, options: Any) -> Any:
        """One lane's reset options, checked."""
        return options

    def _is_per_lane(self, key: str, value: Any) -> bool:
        """Whether an option given for all lanes holds an entry for each."""
        return False

    # ---- Gymnasium ----

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes in all lanes, or in those of `options["reset_mask"]` (bool [N]).

        `seed` s gives the lanes s, s + 1, ...; a list has one per lane. `options` is a dict for all lanes, in which some values may
        have an entry per lane, or a list of dicts, one per lane. If a lane cannot be reset as wished, no lane is.
        """
        seeds, mask = lane_seeds(seed, self.num_envs), reset_mask(options, self.num_envs)
        wishes = [self._read_options(each) for each in lane_options(options, self.num_envs, self._is_per_lane)]
        if not self._is_running and not mask.all():
            raise gym.error.ResetNeeded("a reset_mask needs lanes that are running: reset all of them first")
        self._open(mask, seeds, wishes)
        self._is_running = True
        return self._observe(), self._info(mask)

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], Mask, Mask, dict[str, Any]]:
        """One step in every lane. A lane that has ended is reset, or rests with its flags set until it is reset ("disabled")."""
        self._check_running()
        over = np.logical_or(*self._flags())
        rewards = self._advance(actions, ~over)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and over.any():
            self._reopen(over)
        terminated, truncated = self._flags()
        ended, final = terminated | truncated, {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and ended.any():
            final = final_info(self._observe(), self._info(ended), ended)
            self._reopen(ended)
        return self._observe(), rewards, terminated, truncated, final | self._info(np.ones(self.num_envs, bool))

    def _reopen(self, mask: Mask) -> None:
        """Begin the next episodes of some lanes, which go on with their generators."""
        self._open(mask, [None] * self.num_envs, [self._read_options({})] * self.num_envs)

    def _check_running(self) -> None:
        if not self._is_running:
            raise gym.error.ResetNeeded("reset() must be called first")

    # ---- spec and random numbers ----

    @property
    def spec(self) -> Any:
        """How this env was made; JSON-able."""
        return self.__dict__.get("spec")

    @spec.setter
    def spec(self, spec: Any) -> None:
        self.__dict__["spec"] = storable(spec)

    @property  # type: ignore[misc]  # one per lane, as in SyncVectorEnv
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The random number generator of each lane."""
        if self._generators is None:
            self._generators, self._seeds = new_generators([None] * self.num_envs)
        return tuple(self._generators)

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """What each lane's generator was seeded with."""
        _ = self.np_random
        return tuple(self._seeds)

    def _seed(self, lane: int, seed: int | None) -> None:
        """Give a lane a new generator; without a seed it keeps the one it has."""
        _ = self.np_random
        if seed is not None:
            assert self._generators is not None
            self._generators[lane], self._seeds[lane] = seeding.np_random(seed)


# -- info -----------------------------------------------------------------------------------------------------------------------------

Info = dict[str, tuple[NDArray[Any], Mask]]  # key -> values [N, ...], and which lanes have one


def info_row(info: Info, lane: int) -> dict[str, Any]:
    """One lane's info, as a single env gives it: plain numbers and small arrays."""
    values = {key: values[lane] for key, (values, has) in info.items() if has[lane]}
    return {key: value.item() if value.ndim == 0 else value for key, value in values.items()}


def info_batch(info: Info, lanes: Mask) -> dict[str, Any]:
    """Gymnasium's batched info: each key beside a mask `_key` of the lanes that have it; only `lanes` (bool [N]) are told."""
    out: dict[str, Any] = {}
    for key, (values, has) in info.items():
        told = has & lanes
        if told.any():
            blank = np.zeros((), values.dtype)
            out[key], out[f"_{key}"] = np.where(told.reshape(-1, *[1] * (values.ndim - 1)), values, blank), told
    return out


def final_info(observation: Any, info: dict[str, Any], ended: Mask) -> dict[str, Any]:
    """What the ended lanes showed last, as Gymnasium wants it in the info of a same-step reset."""
    last = np.full(len(ended), None, object)
    for lane in np.flatnonzero(ended):
        last[lane] = {key: value[lane] for key, value in observation.items()} if isinstance(observation, dict) else observation[lane]
    return {"final_obs": last, "_final_obs": ended.copy(), "final_info": info, "_final_info": ended.copy()}


def as_tensors(observation: Any) -> Any:
    """An observation of arrays as tensors on the CPU, in the same memory."""
    import torch  # here, so that a ground truth alone loads none

    return {k: torch.from_numpy(v) for k, v in observation.items()} if isinstance(observation, dict) else torch.from_numpy(observation)


# -- lanes' seeds and options ---------------------------------------------------------------------------------------------------------


def new_generators(seeds: Sequence[int | None]) -> tuple[list[np.random.Generator], list[int | None]]:
    """One generator per seed, as Gymnasium makes it."""
    pairs = [seeding.np_random(seed) for seed in seeds]
    return [generator for generator, _ in pairs], [seed for _, seed in pairs]


def lane_seeds(seed: int | Sequence[int | None] | None, lanes: int) -> list[int | None]:
    """The seed of each lane: s gives s, s + 1, ..."""
    if seed is None or isinstance(seed, (int, np.integer)):
        seeds = [None if seed is None else int(seed) + i for i in range(lanes)]
    elif len(seed) != lanes:
        raise ValueError(f"{len(seed)} seeds were given for {lanes} lanes")
    else:
        seeds = [None if s is None else int(s) for s in seed]
    for each in seeds:
        if each is not None and each < 0:  # as `seeding.np_random` says it, but before any lane has changed
            raise gym.error.Error(f"Seed must be greater or equal to zero, actual value: {each}")
    return seeds


def reset_mask(options: Any, lanes: int) -> Mask:
    """Which lanes `reset` is about: bool [lanes], a copy."""
    mask = options.get("reset_mask") if isinstance(options, Mapping) else None
    if mask is None:
        return np.ones(lanes, bool)
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != (lanes,):
        raise ValueError(f"reset_mask must be a numpy bool array [{lanes}], got {mask!r}")
    if not mask.any():
        raise ValueError("reset_mask chooses no lane")
    return mask.copy()


def lane_options(options: Any, lanes: int, is_per_lane: Callable[[str, Any], bool]) -> list[dict[str, Any]]:
    """The options of each lane, from a list with a dict per lane, or from one dict whose values are shared or, where
    `is_per_lane(key, value)` says so, hold an entry per lane."""
    if options is None:
        return [{} for _ in range(lanes)]
    if not isinstance(options, Mapping):
        if not isinstance(options, (list, tuple)) or len(options) != lanes:
            raise ValueError(f"options must be a dict, or a list with one dict for each of {lanes} lanes")
        return [{} if each is None else each for each in options]
    rows: list[dict[str, Any]] = [{} for _ in range(lanes)]
    for key, value in options.items():
        if key == "reset_mask":
            continue
        split = is_per_lane(key, value)
        if split and len(value) != lanes:
            raise ValueError(f"{key} must have one entry for each of {lanes} lanes, got {len(value)}")
        for lane in range(lanes):
            rows[lane][key] = value[lane] if split else value
    return rows


def save_generators(generators: Sequence[np.random.Generator]) -> tuple[dict[str, Any], ...]:
    """The states of generators, as `load_generator` takes them."""
    return tuple(dict(generator.bit_generator.state) for generator in generators)


def load_generator(state: Mapping[str, Any]) -> np.random.Generator:
    """A new generator that goes on where the saved one stood."""
    kind = getattr(np.random, str(state["bit_generator"]), None)
    if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
        raise ValueError(f"unknown bit generator {state['bit_generator']!r}")
    bits = kind()
    bits.state = dict(state)
    return np.random.Generator(bits)
