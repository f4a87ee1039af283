"""The state of N lanes of a dream, as a value, and the operations on its rows.

`EnvState` is everything that the next step depends on. `SavedState` adds the random number generators and the env's identity.
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
    """Pose, goal, time and flags of each lane: small tensors, always on the CPU."""

    poses: Tensor  # float32 [N, 5]
    goals: Tensor  # float32 [N, 5]
    goal_kinds: Tensor  # int64 [N]: NO_GOAL, POSE_GOAL or FRAME_GOAL
    goal_frames: Tensor  # uint8 [N, H, W, 3]: zeros without a goal frame
    elapsed: Tensor  # int64 [N]: frames since the opening
    terminated: Tensor  # bool [N]
    truncated: Tensor  # bool [N]


@dataclass(frozen=True)
class EnvState:
    """Everything that the next step of N lanes depends on."""

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
    """The env that a saved state belongs to. An env that differs in any field refuses the state."""

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
    """The value of `save_state`: the state, the state of each lane's `np_random`, and the identity of the env."""

    belongs_to: Identity
    state: EnvState
    generators: tuple[dict[str, Any], ...]
    seeds: tuple[int | None, ...]


def check_identity(saved: Identity, own: Identity) -> None:
    """ValueError if the state is of another env. It names both values of each field that differs."""
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
    """Distribute the lanes of `few` over the lanes set in `mask` (bool [N]). The other lanes hold copies of the first."""
    return select(few, torch.from_numpy(np.where(mask, np.cumsum(mask) - 1, 0)))


def select(state: EnvState, index: Tensor) -> EnvState:
    """Lanes `index` (int64 [n]) of a state, in that order."""
    world, frames = tree.select((state.world, state.frames), index.to(state.frames.device))
    return EnvState(world, frames, tree.select(state.status, index))


def repeat(state: EnvState, n: int) -> EnvState:
    """Each lane n times, consecutively."""
    return tree.repeat(state, n)


def reseed(state: EnvState, generators: Sequence[np.random.Generator]) -> EnvState:
    """The same state with new noise keys, each drawn from the lane's generator."""
    keys = rng.make_keys([noise_seed(generator) for generator in generators], state.frames.device)
    return replace(state, world=replace(state.world, keys=keys))


def noise_seed(generator: np.random.Generator) -> int:
    """The seed of a lane's noise: the first number that an episode draws from `np_random`."""
    return int(generator.integers(2**64, dtype=np.uint64))
