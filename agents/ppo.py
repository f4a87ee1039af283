"""PPO (Schulman et al. 2017) with Stable-Baselines3, in dreams and in ground truths.

    env = sb3.make_vec("WorldPack-Minecraft-v0", 16, task="navigate-near")
    model = train(env, PPOConfig(), steps=40_000, seed=0, file=Path("agent.safetensors"))
    rows = evaluate(policy_of(model), gym.make_vec("Minecraft-v0", 16, autoreset_mode="disabled"), seeds)

An agent is saved as safetensors with its settings in the header, not as Stable-Baselines3's zip, which contains pickles. Training
proceeds in stretches, each followed by a save. A stretch begins with new episodes, and its random numbers depend only on the seed and the
steps so far, so an interrupted run continues from its last save with the same result.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from wmgym.checkpoint import read_file, write_tensors
from wmgym.extras import install
from wmgym.train.loop import optimiser_tensors, restore_optimiser

try:
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.utils import set_random_seed
    from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
except ImportError as error:
    raise ImportError(f"wmgym.agents.ppo needs stable-baselines3: {install('rl')}") from error

Act = Callable[[Any], Any]  # batched observations -> one action per lane


@dataclass(frozen=True)
class PPOConfig:
    """Settings, by Stable-Baselines3's names. The defaults learn `navigate-near` in tens of thousands of steps."""

    n_steps: int = 64  # per lane, between two updates
    batch_size: int = 256
    n_epochs: int = 6
    learning_rate: float = 1e-3
    gamma: float = 0.97
    gae_lambda: float = 0.95
    ent_coef: float = 0.01
    clip_range: float = 0.2
    features: int = 64  # width of the frame's features
    hidden: int = 64
    reward_scale: float = 0.05  # rewards reach 100, and values of that size learn slowly; reported returns are not scaled
    stretch: int = 8  # updates between two saves

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_size", "n_epochs", "features", "hidden", "stretch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class SmallFeatures(BaseFeaturesExtractor):
    """Features of an observation: two small convolutions over each image, scaled to 16 x 16 pixels, and all other entries unchanged.

    It needs a tenth of the computation of Stable-Baselines3's default network.
    """

    def __init__(self, space: spaces.Space, features: int = 64) -> None:
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        pictures = {name: part for name, part in parts.items() if is_image_space(part)}
        sizes = {name: features if name in pictures else get_flattened_obs_dim(part) for name, part in parts.items()}
        super().__init__(space, sum(sizes.values()))
        self.is_dict = isinstance(space, spaces.Dict)
        self.pictures = nn.ModuleDict({name or "frame": _image_features(part, features) for name, part in pictures.items()})
        self.names = [(name, name or "frame") for name in parts]

    def forward(self, observations: Any) -> Tensor:
        given = observations if self.is_dict else {"": observations}
        parts = [self.pictures[key](given[name]) if key in self.pictures else given[name].flatten(1) for name, key in self.names]
        return torch.cat(parts, 1)


def _image_features(space: spaces.Space, features: int) -> nn.Module:
    assert isinstance(space, spaces.Box)  # Stable-Baselines3 has moved the channels to the front
    convolutions = (nn.Conv2d(space.shape[0], 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
    return nn.Sequential(nn.AdaptiveAvgPool2d(16), *convolutions, nn.Flatten(), nn.Linear(32 * 4 * 4, features), nn.ReLU())


@dataclass
class Counter(BaseCallback):
    """Counts finished episodes and records (steps so far, return) of each."""

    episodes: int = 0
    returns: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        BaseCallback.__init__(self)

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.episodes += 1
                self.returns.append((int(self.num_timesteps), float(info["episode"]["r"])))
        return True


class ScaledReward(VecEnvWrapper):
    """Multiplies rewards by a constant. A monitor inside it still reports unscaled returns."""

    def __init__(self, env: VecEnv, scale: float) -> None:
        super().__init__(env)
        self._scale = np.float32(scale)

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observation, rewards, done, infos = self.venv.step_wait()
        return observation, rewards * self._scale, done, infos


@dataclass(frozen=True)
class Trained:
    """The result of training."""

    model: PPO
    opened: int  # episodes begun, including those that the end of a stretch interrupted
    returns: list[tuple[int, float]]  # (steps so far, return) of each finished episode


def build(env: VecEnv, config: PPOConfig, seed: int, device: str = "cpu", tensorboard: Path | None = None) -> PPO:
    """An untrained learner. tensorboard: folder for logs, if TensorBoard is installed."""
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    if policy == "MlpPolicy" and is_image_space(env.observation_space):
        policy = "CnnPolicy"
    names = ("n_steps", "batch_size", "n_epochs", "learning_rate", "gamma", "gae_lambda", "ent_coef", "clip_range")
    logs = str(tensorboard) if tensorboard is not None and importlib.util.find_spec("tensorboard") else None
    layers = {"pi": [config.hidden], "vf": [config.hidden]}
    kwargs = {"net_arch": layers, "features_extractor_class": SmallFeatures, "features_extractor_kwargs": {"features": config.features}}
    settings: dict[str, Any] = {name: getattr(config, name) for name in names}
    scaled = ScaledReward(env, config.reward_scale)
    return PPO(policy, scaled, policy_kwargs=kwargs, seed=seed, device=device, tensorboard_log=logs, **settings)


def train(
    env: VecEnv,
    config: PPOConfig,
    steps: int,
    seed: int,
    file: Path,
    *,
    device: str = "cpu",
    tensorboard: Path | None = None,
    progress: Callable[[int], None] = lambda steps: None,
) -> Trained:
    """Train for `steps` steps, summed over lanes, or continue the training of `file` if it exists. `file` is written after each stretch.

    env: has a monitor (`sb3.make_vec` adds one). steps: rounded up to whole updates of `n_steps` per lane. progress: called with the steps
    so far. ValueError if `file` was trained with other settings, or for more steps.
    """
    if steps < 1:
        raise ValueError(f"steps must be positive, got {steps}")
    model = build(env, config, seed, device, tensorboard)
    header: dict[str, Any] = {"settings": {**asdict(config), "seed": seed, "lanes": env.num_envs}, "steps": 0, "opened": 0, "returns": []}
    if file.is_file():
        found = _restore(file, model)
        if found["settings"] != header["settings"]:
            raise ValueError(f"{file} was trained with {found['settings']}, not {header['settings']}; use another folder")
        header, model.num_timesteps = found, found["steps"]
    update = config.n_steps * env.num_envs
    if model.num_timesteps >= steps + update:
        done = model.num_timesteps
        raise ValueError(f"{file} has learned for {done} steps, more than {steps}: raise steps to at least {done}, or use another folder")
    while model.num_timesteps < steps:
        progress(model.num_timesteps)
        set_random_seed(seed + model.num_timesteps)
        env.seed(1_000_000 * seed + model.num_timesteps)
        model._last_obs = None  # Stable-Baselines3 resets the env if there is none
        counter = Counter()
        stretch = min(config.stretch * update, -(-(steps - model.num_timesteps) // update) * update)
        model.learn(stretch, callback=counter, reset_num_timesteps=False, tb_log_name="ppo")
        header = {
            **header,
            "steps": model.num_timesteps,
            "opened": header["opened"] + env.num_envs + counter.episodes,
            "returns": [*header["returns"], *counter.returns],
        }
        save(file, model, header)
    progress(model.num_timesteps)
    return Trained(model, header["opened"], [(int(at), float(value)) for at, value in header["returns"]])


def save(file: Path, model: PPO, header: dict[str, Any]) -> None:
    """Write the weights and the optimiser's state as safetensors, with `header` as JSON."""
    tensors: dict[str, Tensor] = {f"policy/{name}": value.detach().cpu().clone() for name, value in model.policy.state_dict().items()}
    tensors |= {f"optimiser/{name}": value.cpu() for name, value in optimiser_tensors(model.policy.optimizer).items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(file, tensors, {"agent": json.dumps(header)})


def load(file: Path, env: VecEnv, *, device: str = "cpu") -> PPO:
    """Read an agent for an env. ValueError if the file is not an agent, or was trained with other spaces."""
    _, header = _read(file)
    settings = dict(header["settings"])
    seed = settings.pop("seed")
    settings.pop("lanes")
    model = build(env, PPOConfig(**settings), seed, device)
    _restore(file, model)
    return model


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, header = read_file(file)
    if "agent" not in header:
        raise ValueError(f"{file} is a wmgym file but does not hold an agent")
    return tensors, json.loads(header["agent"])


def _restore(file: Path, model: PPO) -> dict[str, Any]:
    tensors, header = _read(file)
    try:
        model.policy.load_state_dict({k.removeprefix("policy/"): v for k, v in tensors.items() if k.startswith("policy/")})
    except RuntimeError as error:
        raise ValueError(f"{file} holds an agent for other spaces: {' '.join(str(error).split())[:200]}") from error
    restore_optimiser(model.policy.optimizer, {k.removeprefix("optimiser/"): v for k, v in tensors.items() if k.startswith("optimiser/")})
    return header


# -- evaluation -------------------------------------------------------------------------------------------------------------------------


def policy_of(model: PPO, deterministic: bool = False) -> Act:
    """The agent as a function. By default actions are sampled: the most likely ones tend to get stuck in corners."""
    return lambda observation: model.predict(observation, deterministic=deterministic)[0]


def random_policy(env: VectorEnv, seed: int) -> Act:
    """Uniform actions."""
    env.action_space.seed(seed)
    return lambda observation: env.action_space.sample()


def evaluate(act: Act, env: VectorEnv, seeds: Sequence[int], seed: int = 0) -> list[dict[str, Any]]:
    """Run one episode per seed, in parallel over the env's lanes. The env must be made with autoreset_mode="disabled".

    Returns one row per episode: seed, return, length, and whether it terminated (`success`).
    """
    if env.metadata["autoreset_mode"].value != "Disabled":
        raise ValueError("evaluate needs an env with autoreset_mode='disabled', whose ended lanes rest")
    set_random_seed(seed)
    rows: list[dict[str, Any]] = []
    for first in range(0, len(seeds), env.num_envs):
        batch = list(seeds[first : first + env.num_envs])
        padded = batch + [batch[-1]] * (env.num_envs - len(batch))
        observation, _ = env.reset(seed=padded)  # type: ignore[arg-type]  # a list is Gymnasium's practice
        total, length = np.zeros(env.num_envs), np.zeros(env.num_envs, int)
        over = ended = np.zeros(env.num_envs, bool)
        while not over.all():
            observation, rewards, ended, truncated, _ = env.step(act(observation))
            total += np.where(over, 0, rewards)
            length += ~over
            over = ended | truncated
        figures = zip(batch, total, length, ended, strict=False)
        rows += [{"seed": s, "return": float(r), "length": int(n), "success": bool(e)} for s, r, n, e in figures]
    return rows
