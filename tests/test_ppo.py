"""PPO learns what can be learned, goes on where it was, and its files hold numbers only."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from safetensors import safe_open
from tiny import tiny_checkpoint

from wmgym.cli import main

sb3 = pytest.importorskip("wmgym.integrations.sb3")
ppo = pytest.importorskip("wmgym.agents.ppo")

QUICK = ppo.PPOConfig(n_steps=32, batch_size=64, n_epochs=4, learning_rate=1e-2, gamma=0.5, reward_scale=1.0, stretch=2, hidden=8)


class TwoStates(gym.Env):
    """A light is on or off; the action that names it earns 1. Sixteen steps; the light is a picture or a pair of numbers."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, picture: bool = False) -> None:
        self.picture = picture
        frame = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
        self.observation_space = frame if picture else gym.spaces.Box(0, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.elapsed, self.light = 0, int(self.np_random.integers(2))
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        reward = float(action == self.light)
        self.elapsed, self.light = self.elapsed + 1, int(self.np_random.integers(2))
        return self._seen(), reward, False, self.elapsed == 16, {}

    def _seen(self) -> np.ndarray:
        if self.picture:
            return np.full((16, 16, 3), 250 * self.light, np.uint8)
        return np.eye(2, dtype=np.float32)[self.light]


def lanes(mode: AutoresetMode, picture: bool = False) -> Any:
    return SyncVectorEnv([lambda: TwoStates(picture)] * 4, autoreset_mode=mode)


def vec(picture: bool = False) -> Any:
    return sb3.adapt(lanes(AutoresetMode.SAME_STEP, picture))


def mean_return(act: Any, picture: bool = False) -> float:
    rows = ppo.evaluate(act, lanes(AutoresetMode.DISABLED, picture), seeds=range(10))
    assert [row["seed"] for row in rows] == list(range(10))
    assert {row["length"] for row in rows} == {16}
    return float(np.mean([row["return"] for row in rows]))


@pytest.mark.parametrize("picture", [False, True])
def test_ppo_learns_a_world_of_two_states(picture: bool, tmp_path: Path) -> None:
    learned = ppo.train(vec(picture), QUICK, 2048, seed=0, file=tmp_path / "agent.safetensors")
    assert mean_return(ppo.policy_of(learned.model, deterministic=True), picture) > 15
    assert 6 < mean_return(ppo.random_policy(lanes(AutoresetMode.DISABLED, picture), 0), picture) < 10
    assert learned.returns[-1][1] > learned.returns[0][1]  # unscaled, whatever it learned from


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = ppo.train(vec(), QUICK, 768, seed=3, file=tmp_path / "whole.safetensors")
    ppo.train(vec(), QUICK, 256, seed=3, file=tmp_path / "killed.safetensors")
    resumed = ppo.train(vec(), QUICK, 768, seed=3, file=tmp_path / "killed.safetensors")
    assert whole.returns == resumed.returns and whole.opened == resumed.opened
    for name, value in whole.model.policy.state_dict().items():
        assert torch.equal(value, resumed.model.policy.state_dict()[name]), name
    again = ppo.train(vec(), QUICK, 768, seed=3, file=tmp_path / "killed.safetensors")  # nothing is left to do
    assert again.model.num_timesteps == 768


def test_episodes_begun_are_counted(tmp_path: Path) -> None:
    """2 updates of 32 steps are a stretch: 4 episodes of 16 steps end in each of 4 lanes, and each end begins another."""
    found = ppo.train(vec(), QUICK, 512, seed=0, file=tmp_path / "agent.safetensors")
    assert len(found.returns) == 2 * 4 * 4
    assert found.opened == 2 * (4 + 4 * 4)


def test_an_agent_comes_back_as_it_was_and_holds_no_pickle(tmp_path: Path) -> None:
    file = tmp_path / "agent.safetensors"
    learned = ppo.train(vec(), QUICK, 256, seed=0, file=file)
    loaded = ppo.load(file, vec())
    seen = np.eye(2, dtype=np.float32)
    np.testing.assert_array_equal(loaded.predict(seen, deterministic=True)[0], learned.model.predict(seen, deterministic=True)[0])
    with safe_open(str(file), "pt") as held:
        assert json.loads(held.metadata()["agent"])["steps"] == 256
    assert all(other.suffix == ".safetensors" for other in tmp_path.iterdir())


def test_what_is_no_agent_of_this_env_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "agent.safetensors"
    ppo.train(vec(), QUICK, 256, seed=0, file=file)
    with pytest.raises(ValueError, match="other spaces"):
        ppo.load(file, vec(picture=True))
    with pytest.raises(ValueError, match="use another folder"):
        ppo.train(vec(), QUICK, 512, seed=1, file=file)
    (tmp_path / "bad.safetensors").write_bytes(pickle.dumps({"policy": 1}))
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        ppo.load(tmp_path / "bad.safetensors", vec())
    with pytest.raises(ValueError, match="disabled"):
        ppo.evaluate(lambda seen: seen, lanes(AutoresetMode.SAME_STEP), [0])


def test_train_ppo_learns_in_the_dream_and_is_judged_in_the_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ppo"
    given = "--task navigate-near --horizon 4 --steps 16 --lanes 2 --episodes 3 --ppo.n-steps 8 --ppo.batch-size 8 --json"
    words = ["train", "ppo", "WorldPack-Minecraft-v0", *given.split(), "--checkpoint", tiny_checkpoint(tmp_path), "--out", str(out)]
    assert main(words) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert [line["agent"] for line in found["agents"]] == ["learned in the dream", "learned in the truth", "random"]
    opened = 2 + 16 // 4  # lanes, and an end every four steps of each lane
    assert found["agents"][0]["truth_frames"] == opened * 25  # a look around in the truth opens each dream
    assert found["agents"][1]["truth_frames"] == opened + 16
    for line in found["agents"]:
        assert line["gap"] == pytest.approx(line["imagined_return"] - line["true_return"], abs=1e-6)
    for name in ("args.json", "result.json", "learning.png", "dream/agent.safetensors", "truth/agent.safetensors"):
        assert (out / name).is_file(), name
    assert list((out / "tb" / "dream").rglob("events*"))
    assert main(words) == 0  # all is there already
    assert json.loads(capsys.readouterr().out) == found


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, said in (
        (["Minecraft-v0"], "has no twin"),
        (["WorldPack-Minecraft-v0", "--seed", "100"], "seed must be from 0 to 99"),
        (["WorldPack-Minecraft-v0", "--learn-in", "sleep"], "learn_in must be of"),
    ):
        assert main(["train", "ppo", *words, "--out", str(tmp_path)]) == 1
        assert said in capsys.readouterr().err
