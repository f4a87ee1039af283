"""Shared parts of all vector envs, of truths and dreams: keywords, autoreset, final observations, seeds, masks, options and actions.

A vector env subclasses `LanesEnv` and defines how its lanes open and advance. `reset` and `step` are implemented once, here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
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
    horizon: int | None  # None: the task's default

    @classmethod
    def read(cls, num_envs: Any, autoreset_mode: Any, obs_type: Any, horizon: Any, max_episode_steps: Any) -> VectorConfig:
        """Check the keywords. `max_episode_steps` is the horizon's name in `gymnasium.make_vec`. A wrong value raises `ValueError`."""
        if horizon is not None and max_episode_steps is not None:
            raise ValueError(f"max_episode_steps={max_episode_steps} and horizon={horizon} are two names of one keyword: give one of them")
        if obs_type not in OBS_TYPES:
            raise ValueError(f"obs_type must be one of {list(OBS_TYPES)}, got {obs_type!r}")
        count, horizon = check_count("num_envs", num_envs), horizon if max_episode_steps is None else max_episode_steps
        return cls(count, AUTORESET[autoreset_name(autoreset_mode)], obs_type, horizon)


def check_count(name: str, value: Any) -> int:
    """`value` as an int. ValueError unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def autoreset_name(mode: str | AutoresetMode) -> str:
    """The string form of an autoreset mode."""
    for name, member in AUTORESET.items():
        if mode in (name, member):
            return name
    raise ValueError(f"autoreset_mode must be one of {list(AUTORESET)}, got {mode!r}")


def storable(spec: Any) -> Any:
    """A spec whose autoreset mode is a string, so that it can be converted to JSON."""
    if spec is not None and "autoreset_mode" in spec.kwargs:
        spec.kwargs["autoreset_mode"] = autoreset_name(spec.kwargs["autoreset_mode"])
    return spec


# -- the env --------------------------------------------------------------------------------------------------------------------------


class LanesEnv(VectorEnv):
    """N lanes behind Gymnasium's vector API, in all three autoreset modes.

    A subclass calls `_prepare` in its constructor and defines `_open`, `_advance`, `_flags`, `_observe` and `_info`; also `_read_options`
    and `_is_per_lane` if its `reset` takes options.
    """

    _generators: list[np.random.Generator] | None  # one per lane; None: not created yet
    _seeds: list[int | None]
    _is_running: bool  # whether all lanes have been reset

    def _prepare(
        self, config: VectorConfig, single: tuple[gym.Space, gym.Space], metadata: Mapping[str, Any], render_mode: str | None
    ) -> None:
        """Set the attributes that Gymnasium requires. `single` is the observation and action space of one lane."""
        self.num_envs, self.autoreset_mode, self.obs_type = config.num_envs, config.autoreset_mode, config.obs_type
        self.metadata = {**metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self.single_observation_space, self.single_action_space = single
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._generators, self._seeds, self._is_running = None, [], False

    # ---- defined by subclasses ----

    def _open(self, mask: Mask, seeds: Sequence[int | None], options: Sequence[Any]) -> None:
        """Begin new episodes in the lanes of a mask. On an error no lane changes."""
        raise NotImplementedError

    def _advance(self, actions: Any, moving: Mask) -> NDArray[np.float64]:
        """Step the lanes in `moving`; the others rest. Returns rewards [N], 0 for resting lanes."""
        raise NotImplementedError

    def _flags(self) -> tuple[Mask, Mask]:
        """Which lanes are terminated and which are truncated, as copies."""
        raise NotImplementedError

    def _observe(self) -> Any:
        """The present observation of all lanes, as a copy."""
        raise NotImplementedError

    def _info(self, lanes: Mask) -> dict[str, Any]:
        """Gymnasium's batched info of some lanes."""
        raise NotImplementedError

    def _read_options(self, options: Any) -> Any:
        """Check the reset options of one lane."""
        return options

    def _is_per_lane(self, key: str, value: Any) -> bool:
        """Whether the value of a shared option has one entry per lane."""
        return False

    # ---- Gymnasium ----

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes in all lanes, or in those of `options["reset_mask"]` (bool [N]).

        seed: s seeds the lanes with s, s + 1, ...; a list has one seed per lane. options: a dict for all lanes, in which some values may
        have one entry per lane, or a list with one dict per lane. On an error no lane is reset.
        """
        seeds, mask = lane_seeds(seed, self.num_envs), reset_mask(options, self.num_envs)
        wanted = [self._read_options(each) for each in lane_options(options, self.num_envs, self._is_per_lane)]
        if not self._is_running and not mask.all():
            raise gym.error.ResetNeeded("reset_mask needs running lanes: reset all lanes first")
        self._open(mask, seeds, wanted)
        self._is_running = True
        return self._observe(), self._info(mask)

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], Mask, Mask, dict[str, Any]]:
        """One step in every lane. An ended lane is reset; in mode "disabled" it rests, with its flags set, until it is reset."""
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
        """Begin the next episodes of some lanes. They keep their generators."""
        self._open(mask, [None] * self.num_envs, [self._read_options({})] * self.num_envs)

    def _check_running(self) -> None:
        if not self._is_running:
            raise gym.error.ResetNeeded("reset() must be called first")

    # ---- spec and random numbers ----

    @property
    def spec(self) -> Any:
        """The spec that this env was made from; it can be converted to JSON."""
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
        """The seed of each lane's generator."""
        _ = self.np_random
        return tuple(self._seeds)

    def _seed(self, lane: int, seed: int | None) -> None:
        """Give a lane a new generator, unless `seed` is None."""
        _ = self.np_random
        if seed is not None:
            assert self._generators is not None
            self._generators[lane], self._seeds[lane] = seeding.np_random(seed)


# -- info -----------------------------------------------------------------------------------------------------------------------------

Info = dict[str, tuple[NDArray[Any], Mask]]  # key -> values [N, ...], and which lanes have a value


def info_row(info: Info, lane: int) -> dict[str, Any]:
    """Info of one lane in the form of a single env: plain numbers and small arrays."""
    values = {key: values[lane] for key, (values, has) in info.items() if has[lane]}
    return {key: value.item() if value.ndim == 0 else value for key, value in values.items()}


def info_batch(info: Info, lanes: Mask) -> dict[str, Any]:
    """Gymnasium's batched info of `lanes` (bool [N]): each key has a mask `_key` of the lanes with a value."""
    out: dict[str, Any] = {}
    for key, (values, has) in info.items():
        present = has & lanes
        if present.any():
            blank = np.zeros((), values.dtype)
            out[key], out[f"_{key}"] = np.where(present.reshape(-1, *[1] * (values.ndim - 1)), values, blank), present
    return out


def final_info(observation: Any, info: dict[str, Any], ended: Mask) -> dict[str, Any]:
    """Last observations and info of the ended lanes, in Gymnasium's form for same-step resets."""
    last = np.full(len(ended), None, object)
    for lane in np.flatnonzero(ended):
        last[lane] = {key: value[lane] for key, value in observation.items()} if isinstance(observation, dict) else observation[lane]
    return {"final_obs": last, "_final_obs": ended.copy(), "final_info": info, "_final_info": ended.copy()}


def as_tensors(observation: Any) -> Any:
    """An observation of arrays as tensors on the CPU that share its memory."""
    import torch  # here, so that ground truths work without loading torch

    return {k: torch.from_numpy(v) for k, v in observation.items()} if isinstance(observation, dict) else torch.from_numpy(observation)


# -- lanes' seeds and options ---------------------------------------------------------------------------------------------------------


def new_generators(seeds: Sequence[int | None]) -> tuple[list[np.random.Generator], list[int | None]]:
    """One generator per seed, made by Gymnasium's `np_random`."""
    pairs = [seeding.np_random(seed) for seed in seeds]
    return [generator for generator, _ in pairs], [seed for _, seed in pairs]


def lane_seeds(seed: int | Sequence[int | None] | None, lanes: int) -> list[int | None]:
    """The seed of each lane; a single seed s gives s, s + 1, ..."""
    if seed is None or isinstance(seed, (int, np.integer)):
        seeds = [None if seed is None else int(seed) + i for i in range(lanes)]
    elif len(seed) != lanes:
        raise ValueError(f"{len(seed)} seeds were given for {lanes} lanes")
    else:
        seeds = [None if s is None else int(s) for s in seed]
    for each in seeds:
        if each is not None and each < 0:  # the error of `seeding.np_random`, raised before any lane changes
            raise gym.error.Error(f"Seed must be greater or equal to zero, actual value: {each}")
    return seeds


def reset_mask(options: Any, lanes: int) -> Mask:
    """The lanes to reset: bool [lanes], a copy."""
    mask = options.get("reset_mask") if isinstance(options, Mapping) else None
    if mask is None:
        return np.ones(lanes, bool)
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != (lanes,):
        raise ValueError(f"reset_mask must be a numpy bool array [{lanes}], got {mask!r}")
    if not mask.any():
        raise ValueError("reset_mask selects no lane")
    return mask.copy()


def lane_options(options: Any, lanes: int, is_per_lane: Callable[[str, Any], bool]) -> list[dict[str, Any]]:
    """The options of each lane, from a list with one dict per lane, or from a single dict. In a single dict a value is shared by all lanes,
    or has one entry per lane if `is_per_lane(key, value)`."""
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


# -- actions --------------------------------------------------------------------------------------------------------------------------


def check_actions(actions: Any, space: gym.Space, lanes: int | None = None) -> NDArray[Any]:
    """One action of a space of numbers, or with `lanes` one for each lane: int64, or float32 for a Box.

    Python numbers, arrays and tensors of the space's shape are equivalent. Booleans, other shapes and other values raise `ValueError`.
    """
    assert isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box)), space
    given, shape = _as_array(actions), (*(() if lanes is None else (lanes,)), *(space.shape or ()))
    name, integers = ("action", "an integer") if lanes is None else ("actions", "integers")
    if isinstance(space, spaces.Discrete):
        low, high = space.start, space.start + space.n - 1
        wanted = f"{integers} from {low} to {high}"
    elif isinstance(space, spaces.MultiDiscrete):
        low, high, wanted = space.start, space.start + space.nvec - 1, f"integers in {space}"
    elif isinstance(space, spaces.MultiBinary):
        low, high, wanted = 0, 1, f"integers in {space}"
    else:
        low, high, wanted = space.low, space.high, f"numbers in {space}"
    is_box = isinstance(space, spaces.Box)
    if given.dtype.kind not in ("iuf" if is_box else "iu"):
        raise ValueError(f"{name} must be {wanted}, got {actions!r}")
    if given.shape != shape:
        where = str(space) if lanes is None else f"{space} in each lane"
        raise ValueError(f"{name} must have the shape {list(shape)} ({where}), got {list(given.shape)}")
    with np.errstate(over="ignore"):  # a value too large for float32 becomes infinite, which no bounded interval contains
        given = given.astype(np.float32) if is_box else given
    if not ((given >= low) & (given <= high)).all():  # a NaN is in no interval
        raise ValueError(f"{name} must lie in {space}, got {actions!r}" if is_box else f"{name} must be {wanted}, got {actions!r}")
    return given if is_box else given.astype(np.int64)


def _as_array(actions: Any) -> NDArray[Any]:
    """A tensor or another value as an array. What numpy cannot convert becomes an array of dtype object."""
    if type(actions).__module__.partition(".")[0] == "torch":  # a name, because a ground truth loads no torch
        actions = actions.detach().cpu()
        actions = actions.double() if actions.is_floating_point() else actions  # numpy has no bfloat16
    try:
        return np.asarray(actions)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, objects that refuse
        return np.full((), None)


# -- random generators ----------------------------------------------------------------------------------------------------------------


def save_generators(generators: Sequence[np.random.Generator]) -> tuple[dict[str, Any], ...]:
    """The states of generators, for `load_generator`."""
    return tuple(dict(generator.bit_generator.state) for generator in generators)


def load_generator(state: Mapping[str, Any]) -> np.random.Generator:
    """A new generator that continues from a saved state."""
    kind = getattr(np.random, str(state["bit_generator"]), None)
    if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
        raise ValueError(f"unknown bit generator {state['bit_generator']!r}")
    bits = kind()
    bits.state = dict(state)
    return np.random.Generator(bits)
