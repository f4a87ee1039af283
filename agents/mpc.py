"""An agent that plans in imagination: branch the world it knows, dream K futures, act on the best plan, look, and plan again.

    agent = PlanningAgent([dream], make_objective("pose", goal_poses=goals), PRESETS["cem"], seed=0)
    action = agent.act()                       # of every lane: [B, *action_space.shape]
    dream.observe([frame], [action], [pose])   # what really came of it; then act again

A model is any env with `branch` (contract.md): a dream that is shown real frames, or the truth itself as the best model there can be.
All candidates of all lanes are dreamed in one batch, split only beyond `at_once` rows, and share what is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor

from wmgym import rng, tree
from wmgym.agents import cem as search
from wmgym.agents.cem import CEMConfig, Found, Gaussian, MPPIConfig
from wmgym.agents.objectives import Futures, Objective
from wmgym.agents.proposals import actions_along, line_paths
from wmgym.kinematics import Displacement


@dataclass(frozen=True)
class PlannerConfig:
    """How far one looks ahead, and how one searches."""

    method: str = "cem"  # or "mppi"
    line: bool = False  # straight lines with a final turn (NWM; continuous actions only) instead of free sequences
    horizon: int = 8  # env steps looked ahead
    hold: int = 1  # steps that one decision lasts: both in the dream and before planning again
    samples: int = 64
    elites: int = 8
    iterations: int = 3
    repeats: int = 1  # dreams of each candidate with different noise, whose costs are averaged
    spread: float = 0.5  # std of the first Gaussian, as a share of half the action's range
    min_std: float = 0.05
    temperature: float = 0.5  # of MPPI, in units of the cost
    answer: str = "best"
    with_mean: bool = True
    warm_start: float = 0.8  # share of the last distribution, moved on by one decision, in the next first one
    at_once: int = 512  # rows dreamed in one batch

    def __post_init__(self) -> None:
        if self.method not in ("cem", "mppi"):
            raise ValueError(f"method must be 'cem' or 'mppi', got {self.method!r}")
        for name in ("horizon", "hold", "repeats", "at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.horizon % self.hold:
            raise ValueError(f"horizon must be a multiple of hold={self.hold}, got {self.horizon}")
        if not 0 <= self.warm_start <= 1:
            raise ValueError(f"warm_start must be in [0, 1], got {self.warm_start}")
        _ = (self.cem, self.mppi)

    @property
    def decisions(self) -> int:
        return self.horizon // self.hold

    @property
    def frames(self) -> int:
        """Frames that are dreamed for one plan of one lane."""
        return (self.samples * self.iterations + (self.answer == "mean")) * self.repeats * self.horizon

    @property
    def cem(self) -> CEMConfig:
        names = ("samples", "elites", "iterations", "min_std", "answer", "with_mean")
        return CEMConfig(**{name: getattr(self, name) for name in names})

    @property
    def mppi(self) -> MPPIConfig:
        return MPPIConfig(self.samples, self.iterations, self.temperature, self.with_mean, self.answer)


PRESETS = {
    "nwm": PlannerConfig(
        line=True,
        horizon=search.NWM_HORIZON,
        samples=search.NWM_CEM.samples,
        elites=search.NWM_CEM.elites,
        iterations=search.NWM_CEM.iterations,
        repeats=search.NWM_REPEATS,
        min_std=search.NWM_CEM.min_std,
        answer=search.NWM_CEM.answer,
        with_mean=False,
        warm_start=0.0,
    ),
    # Enough for `navigate-near` with the truth as the model, and cheap enough for two cores: 256 frames a plan, a plan every 4 steps.
    "cem": PlannerConfig(hold=4, samples=16, elites=4, iterations=2),
    "mppi": PlannerConfig(method="mppi", answer="mean"),
}


@dataclass(frozen=True)
class Parametrisation:
    """What a plan is made of, and the env actions that it stands for."""

    prior: Any  # one lane's `Gaussian` [*shape], or chances [*shape, A]
    expand: Callable[[Tensor], Tensor]  # plans [B, K, *shape] -> env actions [B, K, horizon, *action_space.shape]
    bounds: tuple[Tensor, Tensor] | None = None  # of continuous plans, [*shape]
    is_sequence: bool = True  # one decision after the other, so that a plan can be moved on in time


def free_sequence(space: gym.Space, config: PlannerConfig) -> Parametrisation:
    """Any action at each decision."""

    def held(plans: Tensor) -> Tensor:
        return plans.repeat_interleave(config.hold, 2)

    if isinstance(space, spaces.Discrete):
        return Parametrisation(torch.full((config.decisions, int(space.n)), 1 / int(space.n)), held)
    if isinstance(space, spaces.MultiDiscrete):
        num = int(space.nvec.max())
        if (space.nvec != num).any():
            raise ValueError(f"planning needs as many categories in each place, got {space}")
        return Parametrisation(torch.full((config.decisions, *space.shape, num), 1 / num), held)
    if isinstance(space, spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all():
        low, high = (torch.from_numpy(bound).float().expand(config.decisions, *space.shape) for bound in (space.low, space.high))
        prior = Gaussian((low + high) / 2, config.spread * (high - low) / 2)
        return Parametrisation(prior, held, (low, high))
    raise ValueError(f"planning needs Discrete, MultiDiscrete or bounded Box actions, got {space}")


def straight_lines(config: PlannerConfig, prior: Gaussian, moves: Displacement) -> Parametrisation:
    """NWM's candidates for envs whose action is a displacement in the frame of the pose it starts from (`*-Recon-v0`).

    prior: mean and std [3] (`cem.NWM_PRIORS`, or `cem.straight_line_prior` of the data at hand). moves: what the actions mean.
    """

    def expand(plans: Tensor) -> Tensor:
        return actions_along(line_paths(plans, config.horizon, moves), moves).clamp(-1, 1)

    low, high = (torch.full((3,), bound) for bound in search.NWM_BOUNDS)
    return Parametrisation(prior, expand, (low, high), is_sequence=False)


class PlanningAgent:
    """Plans for all lanes of its models at once.

    models: envs with `branch`, vector or single, whose lanes follow one another; all have one action space.
    """

    def __init__(
        self,
        models: Sequence[Any],
        objective: Objective,
        config: PlannerConfig,
        seed: int,
        parametrisation: Parametrisation | None = None,
    ) -> None:
        self.models, self.objective, self.config = list(models), objective, config
        self.space = action_space(self.models[0])
        self.lanes = sum(num_lanes(model) for model in self.models)
        if parametrisation is None:
            if config.line:
                raise ValueError("straight lines need their prior and units: give parametrisation=straight_lines(...)")
            parametrisation = free_sequence(self.space, config)
        if config.method == "mppi" and parametrisation.bounds is None:
            raise ValueError(f"MPPI plans continuous actions, and these are {self.space}: use method 'cem'")
        self.parametrisation = parametrisation
        self.found: Found | None = None  # the newest plan
        self.dreamed = 0  # frames dreamed so far
        self._keys = rng.make_keys([seed + lane for lane in range(self.lanes)])
        self._decision = 0
        self._start: Any = None
        self._queue: list[np.ndarray] = []

    def act(self) -> np.ndarray:
        """The next action of each lane, [B, *action_space.shape]; a new plan every `hold` steps."""
        if not self._queue:
            self.found = self.plan()
            steps = self.parametrisation.expand(self.found.plan[:, None])[:, 0].numpy()
            self._queue = list(np.moveaxis(steps[:, : self.config.hold], 1, 0))
            self._start = self._moved_on(self.found.distribution)
        return self._queue.pop(0)

    def plan(self) -> Found:
        """Search once from where the models stand."""
        keys = rng.fold(self._keys, self._decision)
        self._decision += 1
        seeds = noise_seeds(keys, self.config.repeats)
        start = self._prior() if self._start is None else self._start

        def cost(plans: Tensor) -> Tensor:
            actions = self.parametrisation.expand(plans)
            costs = [self.objective(self._imagine(actions, seeds[:, r].tolist())).cpu() for r in range(self.config.repeats)]
            return torch.stack(costs).mean(0)

        if self.parametrisation.bounds is None:
            return search.categorical_cem(cost, start, keys, self.config.cem)
        if self.config.method == "mppi":
            return search.mppi(cost, start.mean, start.std, keys, self.parametrisation.bounds, self.config.mppi)
        return search.cem(cost, start.mean, start.std, keys, self.parametrisation.bounds, self.config.cem)

    def keep(self, lanes: Sequence[int]) -> None:
        """Go on with these lanes only, in order: the episodes of the others are over. A lane's plans do not depend on the others.

        A vector model that loses lanes is replaced by what its `select` gives. Tensors of the objective must have a row for each lane.
        """
        index, models, first = torch.tensor([int(lane) for lane in lanes]), [], 0
        for model in self.models:
            count = num_lanes(model)
            kept = [int(lane) - first for lane in lanes if first <= lane < first + count]
            if kept:
                models.append(model if len(kept) == count else model.select(kept))
            first += count
        start = self._start
        self._start = Gaussian(*tree.select(tuple(start), index)) if isinstance(start, Gaussian) else tree.select(start, index)
        self._queue = [actions[index.numpy()] for actions in self._queue]
        self.models, self.lanes, self._keys = models, len(index), self._keys[index]
        self.objective = tree.select(self.objective, index)

    def _imagine(self, actions: Tensor, seeds: Sequence[int]) -> Futures:
        self.dreamed += actions.shape[0] * actions.shape[1] * actions.shape[2]
        parts, first = [], 0
        for model in self.models:
            lanes = slice(first, first + num_lanes(model))
            parts.append(imagine(model, actions[lanes].numpy(), seeds[lanes], self.config.at_once))
            first = lanes.stop
        return Futures(*(torch.cat([getattr(part, name) for part in parts]) for name in ("frames", "poses", "rewards")))

    def _prior(self) -> Any:
        prior = self.parametrisation.prior
        if isinstance(prior, Gaussian):
            return Gaussian(*(part.expand(self.lanes, *part.shape) for part in prior))
        return prior.expand(self.lanes, *prior.shape)

    def _moved_on(self, distribution: Any) -> Any:
        """Where the next search begins: what is left of this one, then the prior. Only the means are kept of a Gaussian: a
        search that begins narrow cannot leave its plan."""
        prior, share = self._prior(), self.config.warm_start
        if not self.parametrisation.is_sequence:
            return prior
        if isinstance(prior, Gaussian):
            left = torch.cat([distribution.mean[:, 1:], prior.mean[:, -1:]], 1)
            return Gaussian(torch.lerp(prior.mean, left, share), prior.std)
        return torch.lerp(prior, torch.cat([distribution[:, 1:], prior[:, -1:]], 1), share)


def imagine(model: Any, actions: np.ndarray, seeds: Sequence[int], at_once: int = 512) -> Futures:
    """Take actions [B, K, T, *shape] in branches of the model's B lanes; a lane's futures share the noise of its seed, so that they differ
    by their actions alone. A future that has ended rests: it earns nothing more. At most `at_once` rows are dreamed together.

    Only the last frames are read. With a model made with obs_type="torch" they stay on its device; but every step decodes its frames, since
    `core.World` has no step that stays in latent space (`WorldModel.imagine` is one).
    """
    lanes, count, steps = actions.shape[:3]
    part = max(1, at_once // lanes)
    results = []
    for first in range(0, count, part):
        these = actions[:, first : first + part]
        rows = these.shape[1]
        futures = model.branch(rows, seeds=[seed for seed in seeds for _ in range(rows)])
        poses, rewards = [], []
        for t in range(steps):
            observation, reward, _, _, info = futures.step(these[:, :, t].reshape(lanes * rows, *actions.shape[3:]))
            poses.append(np.asarray(info["pose"], np.float32))
            rewards.append(np.asarray(reward, np.float32))
        frames = observation["pov"] if isinstance(observation, dict) else observation
        columns = (torch.as_tensor(frames), torch.from_numpy(np.stack(poses, 1)), torch.from_numpy(np.stack(rewards, 1)))
        results.append(Futures(*(column.unflatten(0, (lanes, rows)) for column in columns)))
    return Futures(*(torch.cat([getattr(result, name) for result in results], 1) for name in ("frames", "poses", "rewards")))


def noise_seeds(keys: Tensor, repeats: int) -> Tensor:
    """Seeds of the dreams of each lane, int64 [B, repeats]."""
    words = rng.bits(rng.fold(keys, 0x64726561), repeats)
    return (words[..., 0] << 31) ^ words[..., 1]


def num_lanes(env: Any) -> int:
    return env.num_envs if isinstance(env, VectorEnv) else 1


def action_space(env: Any) -> gym.Space:
    """What one lane is told."""
    return env.single_action_space if isinstance(env, VectorEnv) else env.action_space


def preset(name: str, **changes: Any) -> PlannerConfig:
    """A planner by name, with some of its settings changed (those that are None are not). A horizon of another length or other samples
    take the planner's hold and elites with them, unless these are given too."""
    if name not in PRESETS:
        raise ValueError(f"planner must be one of {', '.join(PRESETS)}, got {name!r}")
    given = {key: value for key, value in changes.items() if value is not None}
    if "samples" in given and "elites" not in given:
        given["elites"] = min(PRESETS[name].elites, given["samples"])
    if "horizon" in given and "hold" not in given:
        given["hold"] = math.gcd(PRESETS[name].hold, given["horizon"])
    return replace(PRESETS[name], **given)
