"""Model predictive control: branch a model, imagine K futures, take the first actions of the best plan, observe, and plan again.

    agent = PlanningAgent([dream], make_objective("pose", goal_poses=goals), PRESETS["cem"], seed=0)
    action = agent.act()                       # of every lane: [B, *action_space.shape]
    dream.observe([frame], [action], [pose])   # the real outcome; then act again

A model is any env with `branch` (docs/contract.md): a dream, or the ground truth itself as a perfect model. All candidates of all lanes
are imagined in one batch of at most `at_once` rows, and share the memory of their lane.
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
    """Settings of a planner. The names that `CEMConfig` and `MPPIConfig` also have mean the same. A wrong value raises `ValueError`."""

    method: str = "cem"  # or "mppi"
    line: bool = False  # straight lines with a final turn (NWM; continuous actions only) instead of free sequences
    horizon: int = 8  # env steps that a plan covers
    hold: int = 1  # steps for which a decision is held, in imagination and in the env; a new plan follows each decision
    samples: int = 64
    elites: int = 8
    iterations: int = 3
    repeats: int = 1  # futures per candidate with different noise, whose costs are averaged
    spread: float = 0.5  # std of the first Gaussian, as a share of half the action's range
    min_std: float = 0.05
    temperature: float = 0.5  # of MPPI, in units of the cost
    answer: str = "best"
    with_mean: bool = True
    warm_start: float = 0.8  # weight of the last distribution, shifted by one decision, in the first one of the next search
    at_once: int = 512  # rows imagined in one batch

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
        """Decisions in one plan."""
        return self.horizon // self.hold

    @property
    def frames(self) -> int:
        """Frames imagined per plan and lane."""
        return (self.samples * self.iterations + (self.answer == "mean")) * self.repeats * self.horizon

    @property
    def cem(self) -> CEMConfig:
        """The settings of the CEM search."""
        names = ("samples", "elites", "iterations", "min_std", "answer", "with_mean")
        return CEMConfig(**{name: getattr(self, name) for name in names})

    @property
    def mppi(self) -> MPPIConfig:
        """The settings of the MPPI search."""
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
    # Enough for `navigate-near` with the truth as the model, and cheap enough for two cores: 256 frames per plan, a plan every 4 steps.
    "cem": PlannerConfig(hold=4, samples=16, elites=4, iterations=2),
    "mppi": PlannerConfig(method="mppi", answer="mean"),
}


@dataclass(frozen=True)
class Parametrisation:
    """The variables that a search optimises, and the env actions that they stand for."""

    prior: Any  # of one lane: a `Gaussian` [*shape], or probabilities [*shape, A]
    expand: Callable[[Tensor], Tensor]  # plans [B, K, *shape] -> env actions [B, K, horizon, *action_space.shape]
    bounds: tuple[Tensor, Tensor] | None = None  # of continuous plans, [*shape]
    is_sequence: bool = True  # the first axis of a plan is time, so that a plan can be shifted by one decision


def free_sequence(space: gym.Space, config: PlannerConfig) -> Parametrisation:
    """A free choice of action at each decision. ValueError for an action space that this cannot plan in."""

    def held(plans: Tensor) -> Tensor:
        return plans.repeat_interleave(config.hold, 2)

    if isinstance(space, spaces.Discrete):
        return Parametrisation(torch.full((config.decisions, int(space.n)), 1 / int(space.n)), held)
    if isinstance(space, spaces.MultiDiscrete):
        num = int(space.nvec.max())
        if (space.nvec != num).any():
            raise ValueError(f"planning needs the same number of categories in each place, got {space}")
        return Parametrisation(torch.full((config.decisions, *space.shape, num), 1 / num), held)
    if isinstance(space, spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all():
        low, high = (torch.from_numpy(bound).float().expand(config.decisions, *space.shape) for bound in (space.low, space.high))
        prior = Gaussian((low + high) / 2, config.spread * (high - low) / 2)
        return Parametrisation(prior, held, (low, high))
    raise ValueError(f"planning needs Discrete, MultiDiscrete or bounded Box actions, got {space}")


def straight_lines(config: PlannerConfig, prior: Gaussian, moves: Displacement) -> Parametrisation:
    """NWM's candidates, for envs whose action is a displacement in the frame of the pose before it (`*-Recon-v0`).

    prior: mean and std [3], from `cem.NWM_PRIORS`, or from `cem.straight_line_prior` of a data set. moves: the env's kinematics.
    """

    def expand(plans: Tensor) -> Tensor:
        return actions_along(line_paths(plans, config.horizon, moves), moves).clamp(-1, 1)

    low, high = (torch.full((3,), bound) for bound in search.NWM_BOUNDS)
    return Parametrisation(prior, expand, (low, high), is_sequence=False)


class PlanningAgent:
    """Plans for all lanes of its models at once.

    models: single or vector envs with `branch`, all with the same action space; their lanes are concatenated in order.
    objective: the cost of imagined futures; its tensors have one row per lane.
    seed: lane i draws its candidates and its futures' noise from seed + i.
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
        self.found: Found | None = None  # result of the newest search
        self.dreamed = 0  # frames imagined so far
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
            self._start = self._next_start(self.found.distribution)
        return self._queue.pop(0)

    def plan(self) -> Found:
        """Search once from the models' present states."""
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
        """Continue with these lanes only, in this order, when the episodes of the others are over. Their plans do not change by it.

        A vector model that loses lanes is replaced by the result of its `select`.
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

    def _next_start(self, distribution: Any) -> Any:
        """The next search's first distribution: this one without its first decision, then the prior. Of a Gaussian only the mean is kept,
        since a search with a narrow first distribution cannot leave its plan."""
        prior, share = self._prior(), self.config.warm_start
        if not self.parametrisation.is_sequence:
            return prior
        if isinstance(prior, Gaussian):
            left = torch.cat([distribution.mean[:, 1:], prior.mean[:, -1:]], 1)
            return Gaussian(torch.lerp(prior.mean, left, share), prior.std)
        return torch.lerp(prior, torch.cat([distribution[:, 1:], prior[:, -1:]], 1), share)


def imagine(model: Any, actions: np.ndarray, seeds: Sequence[int], at_once: int = 512) -> Futures:
    """Futures of the model's B lanes under actions [B, K, T, *shape].

    seeds: one per lane. All futures of a lane share the noise of its seed, so that they differ by their actions alone. A future that has
    ended earns nothing more. At most `at_once` rows are stepped together.

    Only the last frames are used, but every step decodes its frames: `core.World` has no step that stays in latent space
    (`WorldModel.imagine` does). The frames stay on the model's device if the model was made with obs_type="torch".
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
    """Noise seeds of each lane's futures, int64 [B, repeats]."""
    words = rng.bits(rng.fold(keys, 0x64726561), repeats)
    return (words[..., 0] << 31) ^ words[..., 1]


def num_lanes(env: Any) -> int:
    return env.num_envs if isinstance(env, VectorEnv) else 1


def action_space(env: Any) -> gym.Space:
    """The action space of one lane."""
    return env.single_action_space if isinstance(env, VectorEnv) else env.action_space


def preset(name: str, **changes: Any) -> PlannerConfig:
    """A planner by name, with some of its settings replaced; a change of None keeps the planner's own value.

    If only `samples` is given, `elites` is at most `samples`. If only `horizon` is given, `hold` becomes a divisor of it.
    """
    if name not in PRESETS:
        raise ValueError(f"planner must be one of {', '.join(PRESETS)}, got {name!r}")
    given = {key: value for key, value in changes.items() if value is not None}
    if "samples" in given and "elites" not in given:
        given["elites"] = min(PRESETS[name].elites, given["samples"])
    if "horizon" in given and "hold" not in given:
        given["hold"] = math.gcd(PRESETS[name].hold, given["horizon"])
    return replace(PRESETS[name], **given)
