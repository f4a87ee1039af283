"""What the vector envs of truth and dream both take from Gymnasium's conventions: autoreset modes, seeds, masks and options of lanes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

AUTORESET = {"next_step": AutoresetMode.NEXT_STEP, "same_step": AutoresetMode.SAME_STEP, "disabled": AutoresetMode.DISABLED}
OBS_TYPES = ("numpy", "torch")


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


class LanesEnv(VectorEnv):
    """What each vector env here has: a spec with a JSON form, and a random number generator per lane."""

    _generators: list[np.random.Generator] | None  # set by those that keep their lanes' generators themselves
    _seeds: list[int | None]

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
        if self._generators is None:
            self._generators, self._seeds = new_generators([None] * self.num_envs)
        if seed is not None:
            self._generators[lane], self._seeds[lane] = seeding.np_random(seed)


def new_generators(seeds: Sequence[int | None]) -> tuple[list[np.random.Generator], list[int | None]]:
    """One generator per seed, as Gymnasium makes it."""
    pairs = [seeding.np_random(seed) for seed in seeds]
    return [generator for generator, _ in pairs], [seed for _, seed in pairs]


def lane_seeds(seed: int | Sequence[int | None] | None, lanes: int) -> list[int | None]:
    """The seed of each lane: s gives s, s + 1, ..."""
    if seed is None or isinstance(seed, (int, np.integer)):
        return [None if seed is None else int(seed) + i for i in range(lanes)]
    if len(seed) != lanes:
        raise ValueError(f"{len(seed)} seeds were given for {lanes} lanes")
    return [None if s is None else int(s) for s in seed]


def reset_mask(options: Any, lanes: int) -> NDArray[np.bool_]:
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


def load_generator(state: Mapping[str, Any]) -> np.random.Generator:
    """A new generator that goes on where the saved one stood."""
    kind = getattr(np.random, str(state["bit_generator"]), None)
    if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
        raise ValueError(f"unknown bit generator {state['bit_generator']!r}")
    bits = kind()
    bits.state = dict(state)
    return np.random.Generator(bits)
