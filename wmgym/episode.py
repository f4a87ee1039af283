"""The state of N lanes of a dream, as a value, and the operations on its rows.

`EnvState` is all that the next step depends on; `SavedState` adds the random generators and says which env it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmgym import rng, tree

NO_GOAL, POSE_GOAL, FRAME_GOAL = range(3)


@dataclass(frozen=True)
class EpisodeStatus:
    """How each lane's episode stands: small tensors on the CPU, whatever device the world is on."""

    poses: Tensor  # float32 [N, 5]
    goals: Tensor  # float32 [N, 5]
    goal_kinds: Tensor  # int64 [N]: NO_GOAL, POSE_GOAL or FRAME_GOAL
    goal_frames: Tensor  # uint8 [N, H, W, 3]: black without a goal frame
    elapsed: Tensor  # int64 [N]: frames since the opening
    terminated: Tensor  # bool [N]
    truncated: Tensor  # bool [N]


@dataclass(frozen=True)
class EnvState:
    """All that the next step of N lanes depends on."""

    world: Any  # the world's own state, N rows
    frames: Tensor  # uint8 [N, F, H, W, 3], on the world's device: the newest chunk
    status: EpisodeStatus

    @property
    def num_lanes(self) -> int:
        return len(self.status.elapsed)

    @property
    def over(self) -> np.ndarray:
        """bool [N]: lanes whose episode has ended."""
        return (self.status.terminated | self.status.truncated).numpy()


@dataclass(frozen=True)
class Identity:
    """What a saved state belongs to. An env that differs in any of these refuses it."""

    id: str
    system: str
    weights: str  # SHA-256; "" for a world of the user's own
    setting: str
    task: str
    memory: str
    settings: str  # memory budget, sampler, pose source and the system's own keywords
    dtype: str
    chunk: int
    horizon: int
    format: str = "wmgym state 2"


@dataclass(frozen=True)
class SavedState:
    """What `save_state` gives: a state, each lane's `np_random` as it stood, and what it belongs to."""

    belongs_to: Identity
    state: EnvState
    generators: tuple[dict[str, Any], ...]
    seeds: tuple[int | None, ...]


def check_identity(saved: Identity, own: Identity) -> None:
    """Refuse a state of another env with a `ValueError` that names both sides of each difference."""
    pairs = {f.name: (getattr(saved, f.name), getattr(own, f.name)) for f in fields(Identity)}
    different = [f"{name} is {theirs!r} there and {ours!r} here" for name, (theirs, ours) in pairs.items() if theirs != ours]
    if different:
        raise ValueError(f"the saved state belongs to another env: {'; '.join(different)}")


# ---- rows ----


def where(mask: np.ndarray, new: EnvState, old: EnvState) -> EnvState:
    """Lanes of `new` where `mask` (bool [N]) is set, lanes of `old` elsewhere."""
    rows = torch.from_numpy(np.asarray(mask, bool))
    world, frames = tree.where(rows.to(old.frames.device), (new.world, new.frames), (old.world, old.frames))
    return EnvState(world, frames, tree.where(rows, new.status, old.status))


def scatter(few: EnvState, mask: np.ndarray) -> EnvState:
    """A state whose lanes are those set in `mask`, laid out over all lanes (the others hold copies of the first)."""
    return select(few, torch.from_numpy(np.where(mask, np.cumsum(mask) - 1, 0)))


def select(state: EnvState, index: Tensor) -> EnvState:
    """Lanes `index` (int64 [n]) of a state, in that order."""
    world, frames = tree.select((state.world, state.frames), index.to(state.frames.device))
    return EnvState(world, frames, tree.select(state.status, index))


def repeat(state: EnvState, n: int) -> EnvState:
    """Each lane n times, next to each other."""
    return tree.repeat(state, n)


def reseed(state: EnvState, generators: Sequence[np.random.Generator]) -> EnvState:
    """The same state with other noise to come: each lane's from its generator."""
    keys = rng.make_keys([noise_seed(generator) for generator in generators], state.frames.device)
    return replace(state, world=replace(state.world, keys=keys))


def noise_seed(generator: np.random.Generator) -> int:
    """The seed of a lane's noise: the first number that an episode draws from `np_random`."""
    return int(generator.integers(2**64, dtype=np.uint64))
