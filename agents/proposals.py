"""Path planning for a robot in imagination: CEM over straight lines (NWM's planner), and ranking of paths that a policy proposes.

A path is poses float32 [..., T, 5] relative to its start. A proposer is any object that gives N paths for recent frames and a goal image:
GNM, NoMaD, or the small policy in `policy.py`.

    found = plan_line(world, state, objective, prior, NWM_CEM)          # NWM
    ranked = rank(world, state, objective, policy.propose(view, 16))    # "NWM + policy x16"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from wmgym import rng, tree
from wmgym.agents.cem import NWM_BOUNDS, NWM_REPEATS, CEMConfig, Gaussian, cem, straight_line
from wmgym.agents.objectives import Futures, Objective
from wmgym.core import WorldState
from wmgym.geometry import relative_pose, wrap_angle
from wmgym.kinematics import Displacement
from wmgym.world_model import WorldModel

_DREAMS = 0x647265  # fold of the keys for the noise of dreams; a search uses the folds 0, 1, ... for its candidates


@dataclass(frozen=True)
class View:
    """The input of a policy, one row per problem."""

    frames: np.ndarray  # uint8 [B, n, H, W, 3], oldest first; rows with fewer frames repeat their first
    goals: np.ndarray  # uint8 [B, H, W, 3]
    keys: Tensor  # int64 [B, 2]: random key of each row


class Proposer(Protocol):
    """Proposes paths to a goal image."""

    context: int  # frames that it needs

    def propose(self, view: View, count: int) -> Tensor:
        """`count` paths per row, the most likely first: poses float32 [B, count, T, 5] relative to the last frame's pose."""
        ...


@dataclass(frozen=True)
class Chosen:
    """The best path of each row, and the last frame of its dream."""

    paths: Tensor  # float32 [B, T, 5]
    frames: Tensor  # uint8 [B, H, W, 3]
    costs: Tensor  # float32 [B]


@dataclass(frozen=True)
class DreamConfig:
    """How paths are imagined."""

    repeats: int = 1  # dreams per path with different noise, whose costs are averaged
    at_once: int = 512  # paths in one batch
    as_released: bool = False  # see `actions_along`
    tick: Callable[[int], None] = lambda frames: None  # called after each step of a batch with the number of its frames

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.at_once < 1:
            raise ValueError(f"repeats and at_once must be positive, got {self.repeats} and {self.at_once}")


def rank(world: WorldModel, state: WorldState, objective: Objective, paths: Tensor, config: DreamConfig = DreamConfig()) -> Chosen:
    """Imagine each of the proposed paths [B, N, T, 5] and choose the one with the lowest cost per row."""
    costs, frames = score(world, state, objective, paths, config)
    best = torch.where(costs.isfinite(), costs, torch.inf).argmin(1)  # the first path if no cost is finite
    rows = torch.arange(len(best))
    return Chosen(paths[rows, best], frames.cpu()[rows, best], costs[rows, best])


def plan_line(
    world: WorldModel,
    state: WorldState,
    objective: Objective,
    prior: Gaussian,
    search: CEMConfig,
    horizon: int = 8,
    config: DreamConfig = DreamConfig(repeats=NWM_REPEATS),
) -> Chosen:
    """NWM's planner: CEM over straight lines at constant speed with a turn at the end. prior: mean and std [1, 3] or [B, 3]."""
    moves = moves_of(world)
    rows = len(state.times)

    def cost(samples: Tensor) -> Tensor:
        return score(world, state, objective, line_paths(samples, horizon, moves), config)[0]

    mean, std = (part.expand(rows, 3) for part in prior)
    found = cem(cost, mean, std, state.keys.cpu(), NWM_BOUNDS, search)
    path = line_paths(found.plan, horizon, moves)
    return Chosen(path, dream(world, state, path[:, None], config).frames[:, 0].cpu(), found.cost)


def rank_frames(count: int, steps: int, config: DreamConfig) -> int:
    """Frames that `rank` imagines per row with `count` proposals of `steps` poses."""
    return count * config.repeats * steps


def line_frames(search: CEMConfig, horizon: int, config: DreamConfig) -> int:
    """Frames that `plan_line` imagines per row: for all candidates, for the mean if it is the answer, and for the plan."""
    scored = search.samples * search.iterations + (search.answer == "mean")
    return rank_frames(scored, horizon, config) + horizon


def line_paths(samples: Tensor, horizon: int, moves: Displacement) -> Tensor:
    """Straight lines [..., 3] (`cem.straight_line`) as paths [..., horizon, 5]."""
    steps = straight_line(samples, horizon, lambda xy: _metres(xy, moves) / moves.spacing)
    places = _metres(steps[..., :2], moves).cumsum(-2)
    still = torch.zeros_like(steps[..., :1])
    return torch.cat([places, still, wrap_angle(steps[..., 2:].cumsum(-2)), still], -1)


def actions_along(paths: Tensor, moves: Displacement, *, as_released: bool = False) -> Tensor:
    """The actions that follow paths [..., T, 5]: float32 [..., T, 3], each in the frame of the pose before it.

    With `as_released` displacements stay in the frame of the path's start, as in NWM's released planner. Turns do not change.
    """
    start = torch.zeros_like(paths[..., :1, :])
    before = torch.cat([start, paths[..., :-1, :]], -2)
    if as_released:
        before = torch.cat([before[..., :3], torch.zeros_like(before[..., 3:])], -1)
        turns = wrap_angle(paths[..., 3:4] - torch.cat([start, paths[..., :-1, :]], -2)[..., 3:4])
        return torch.cat([moves.action(relative_pose(paths, before))[..., :2], turns / torch.pi], -1)
    return moves.action(relative_pose(paths, before))


def score(world: WorldModel, state: WorldState, objective: Objective, paths: Tensor, config: DreamConfig) -> tuple[Tensor, Tensor]:
    """Costs [B, K] of paths [B, K, T, 5], and the last frames of the first dreams."""
    costs: list[Tensor] = []
    shown: list[Tensor] = []
    for repeat in range(config.repeats):
        futures = dream(world, state, paths, config, repeat)
        costs.append(objective(futures).cpu())
        shown = shown or [futures.frames]
    return torch.stack(costs).mean(0), shown[0]


@torch.no_grad()
def dream(world: WorldModel, state: WorldState, paths: Tensor, config: DreamConfig = DreamConfig(), repeat: int = 0) -> Futures:
    """Imagine paths [B, K, T, 5] from a state of B rows. The paths of a row share its memory and its noise, so only their actions differ.

    Frames stay on the world's device; poses and rewards (0) are on the CPU.
    """
    rows, count, steps = paths.shape[:3]
    actions = actions_along(paths, moves_of(world), as_released=config.as_released).to(state.poses.device)
    start = replace(state, keys=rng.fold(rng.fold(state.keys, _DREAMS), repeat))
    part = max(1, config.at_once // rows)
    frames, poses = [], []
    for first in range(0, count, part):
        these = actions[:, first : first + part]
        width = these.shape[1]
        running = tree.repeat(start, width)
        walked = []
        for t in range(steps):
            running, shown = world.step(running, these[:, :, t].reshape(rows * width, 1, -1))
            walked.append(shown.poses[:, -1])
            config.tick(rows * width)
        shown.check()  # once per part, and enough: a pose that is not finite stays so, and only the last frames are used
        frames.append(shown.pixels[:, -1].unflatten(0, (rows, width)))
        poses.append(torch.stack(walked, 1).unflatten(0, (rows, width)).cpu())
    together = torch.cat(poses, 1)
    return Futures(torch.cat(frames, 1), together, together.new_zeros(together.shape[:-1]))


def moves_of(world: WorldModel) -> Displacement:
    """The kinematics of a world. ValueError if its actions are not displacements."""
    if not isinstance(world.kinematics, Displacement):
        kind = type(world.kinematics).__name__
        raise ValueError(f"planning along paths needs a world whose actions are displacements, this one has {kind}")
    return world.kinematics


def _metres(xy: Tensor, moves: Displacement) -> Tensor:
    """Normalised displacements [..., 2] in metres."""
    return moves.motion(torch.cat([xy, torch.zeros_like(xy[..., :1])], -1))[..., :2]
