"""TorchRL drives truths and dreams: single and vector envs in both autoreset modes that it accepts, a collector, a replay buffer, PPO."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from standins import clip
from tiny import tiny_checkpoint
from torch import nn

import wmgym  # noqa: F401  # registers the ids

DREAM = "WorldPack-Minecraft-v0"
MODES = ("same_step", "disabled")  # TorchRL refuses "next_step", see below
HORIZON = 4


@pytest.fixture(scope="module", autouse=True)
def _start_method() -> Iterator[None]:
    """TorchRL changes how processes are started when it is imported; other tests must not notice."""
    before = multiprocessing.get_start_method(allow_none=True)
    pytest.importorskip("torchrl")
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.fixture
def dream(tmp_path: Path) -> dict[str, Any]:
    return {"checkpoint": tiny_checkpoint(tmp_path), "device": "cpu", "horizon": HORIZON, "task": "free", "opening": clip()}


def keywords_of(id: str, dream: dict[str, Any]) -> dict[str, Any]:
    return dream if id == DREAM else {"horizon": HORIZON}


@pytest.mark.parametrize("id", [DREAM, "MemoryCards-v0", "Minecraft-v0"])
def test_a_single_env_fits_its_specs_and_ends_on_time(id: str, dream: dict[str, Any]) -> None:
    from torchrl.envs import GymEnv
    from torchrl.envs.utils import check_env_specs

    env = GymEnv(id, **keywords_of(id, dream))
    check_env_specs(env, seed=0)
    done = env.rollout(2 * HORIZON, break_when_any_done=False)["next", "done"][:, 0]
    assert done.nonzero().flatten().tolist() == [HORIZON - 1, 2 * HORIZON - 1]
    env.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("id", [DREAM, "MemoryCards-v0", "Minecraft-v0"])
def test_lanes_fit_their_specs_and_end_on_time(id: str, mode: str, dream: dict[str, Any]) -> None:
    from torchrl.envs import GymWrapper
    from torchrl.envs.utils import check_env_specs

    env = GymWrapper(gym.make_vec(id, num_envs=2, autoreset_mode=mode, **keywords_of(id, dream)))
    check_env_specs(env, seed=0)
    done = env.rollout(2 * HORIZON, break_when_any_done=False)["next", "done"][..., 0]
    for lane in done:
        assert lane.nonzero().flatten().tolist() == [HORIZON - 1, 2 * HORIZON - 1]
    env.close()


def test_the_last_frame_of_an_episode_is_not_the_first_of_the_next(dream: dict[str, Any]) -> None:
    """In mode "same_step" the last observation is in `final_obs`: TorchRL must find it there."""
    from torchrl.envs import GymWrapper

    shown = {}
    for mode in MODES:
        env = GymWrapper(gym.make_vec(DREAM, num_envs=2, autoreset_mode=mode, **dream))
        env.set_seed(0)
        shown[mode] = env.rollout(HORIZON, policy=_Forward(env), break_when_any_done=False)["next", "observation"]
        env.close()
    assert torch.equal(shown["same_step"], shown["disabled"])


def test_the_mode_that_torchrl_does_not_know_is_refused_by_torchrl(dream: dict[str, Any]) -> None:
    from torchrl.envs import GymWrapper

    with pytest.raises(RuntimeError, match="SAME_STEP or DISABLED"):
        GymWrapper(gym.make_vec(DREAM, num_envs=2, autoreset_mode="next_step", **dream))


@pytest.mark.parametrize("id", [f"wmgym:{DREAM}", "wmgym:MemoryCards-v0"])
def test_num_envs_starts_processes(id: str, dream: dict[str, Any]) -> None:
    """Each process begins with an empty registry, so the id must name the package."""
    from torchrl.envs import GymEnv

    assert "wmgym" in sys.modules
    env = GymEnv(id, num_envs=2, **keywords_of(id.removeprefix("wmgym:"), dream))
    rollout = env.rollout(HORIZON)
    assert rollout.batch_size == (2, HORIZON) and rollout["next", "done"][:, -1].all()
    env.close()


def test_a_collector_fills_a_replay_buffer_and_ppo_learns_from_it_for_256_steps(dream: dict[str, Any]) -> None:
    from tensordict.nn import TensorDictModule
    from torchrl.collectors import Collector
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
    from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
    from torchrl.envs import GymWrapper
    from torchrl.modules import OneHotCategorical, ProbabilisticActor, ValueOperator
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    env = GymWrapper(gym.make_vec(DREAM, num_envs=2, autoreset_mode="disabled", **dream))
    actor = ProbabilisticActor(
        TensorDictModule(_Eyes(10), in_keys=["observation"], out_keys=["logits"]),
        spec=env.full_action_spec["action"],
        in_keys=["logits"],
        distribution_class=OneHotCategorical,
        return_log_prob=True,
    )
    critic = ValueOperator(_Eyes(1), in_keys=["observation"])
    loss = ClipPPOLoss(actor, critic)
    advantage = GAE(gamma=0.9, lmbda=0.9, value_network=critic)
    adam = torch.optim.Adam(loss.parameters(), 1e-3)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(64), sampler=SamplerWithoutReplacement(), batch_size=32)
    before = [weights.detach().clone() for weights in actor.parameters()]
    seen = 0
    collector = Collector(env, actor, frames_per_batch=64, total_frames=256)
    for batch in collector:
        seen += batch.numel()
        buffer.extend(advantage(batch).reshape(-1))
        for _ in range(2):
            parts = loss(buffer.sample())
            total = sum(value for name, value in parts.items() if name.startswith("loss_"))
            assert torch.isfinite(total)
            adam.zero_grad()
            total.backward()
            adam.step()
    collector.shutdown()
    assert seen == 256 and len(buffer) == 64
    assert any(not torch.equal(a, b) for a, b in zip(before, actor.parameters()))


class _Eyes(nn.Module):
    """uint8 frames [..., H, W, 3] -> numbers [..., n]."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.head = nn.Linear(16 * 16 * 3, numbers)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.head(frames.flatten(-3).float() / 255)


class _Forward:
    """Always walks forward."""

    def __init__(self, env: Any) -> None:
        self._action = env.full_action_spec["action"].zero()
        self._action[..., 1] = 1

    def __call__(self, tensordict: Any) -> Any:
        return tensordict.set("action", self._action.clone())
