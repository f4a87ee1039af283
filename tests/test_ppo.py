"""PPO learns what can be learned, goes on where it was, and its files hold numbers only."""

from __future__ import annotations

import contextlib
import json
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from mazes import needs_maze
from safetensors import safe_open
from tiny import tiny_checkpoint

from wmgym.cli import main

sb3 = pytest.importorskip("wmgym.integrations.sb3")
ppo = pytest.importorskip("wmgym.agents.ppo")
program = pytest.importorskip("wmgym.experiments.ppo")

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


def test_an_agent_that_has_learned_for_longer_is_not_passed_off_as_one_of_fewer_steps(tmp_path: Path) -> None:
    file = tmp_path / "agent.safetensors"
    assert ppo.train(vec(), QUICK, 500, seed=0, file=file).model.num_timesteps == 512  # whole updates of 4 x 32
    assert ppo.train(vec(), QUICK, 400, seed=0, file=file).model.num_timesteps == 512  # 400 are as many updates
    with pytest.raises(ValueError, match=r"agent\.safetensors has learned for 512 steps, more than 384"):
        ppo.train(vec(), QUICK, 384, seed=0, file=file)


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
    given = "--task navigate-near --horizon 4 --steps 10 --lanes 2 --episodes 3 --ppo.n-steps 8 --ppo.batch-size 8 --json"
    words = ["train", "ppo", "WorldPack-Minecraft-v0", *given.split(), "--checkpoint", tiny_checkpoint(tmp_path), "--out", str(out)]
    assert main(words) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert [line["agent"] for line in found["agents"]] == ["learned in the dream", "learned in the truth", "random"]
    assert [line["steps"] for line in found["agents"]] == [16, 16, 0]  # 10, in whole updates of 2 x 8
    opened = 2 + 16 // 4  # lanes, and an end every four steps of each lane
    assert found["agents"][0]["truth_frames"] == opened * 25  # a look around in the truth opens each dream
    assert found["agents"][1]["truth_frames"] == opened + 16
    for line in found["agents"]:
        assert line["gap"] == pytest.approx(line["imagined_return"] - line["true_return"], abs=1e-6)
    for name in ("args.json", "result.json", "learning.png", "dream/agent.safetensors", "truth/agent.safetensors"):
        assert (out / name).is_file(), name
    assert list((out / "tb" / "dream").rglob("events*"))
    env = sb3.make_vec("Minecraft-v0", 1, task="navigate-near", size=16)  # to watch it, as README says
    assert np.shape(ppo.policy_of(ppo.load(out / "dream" / "agent.safetensors", env))(env.reset())) == (1,)
    assert main(words) == 0  # all is there already
    assert json.loads(capsys.readouterr().out) == found
    assert "true_success" in found["agents"][0]
    tiny_checkpoint(tmp_path, seed=1)  # other weights at the same path
    assert main(words) == 1
    said = capsys.readouterr().err
    assert f"{out} was begun with weights=" in said and "use another folder" in said


@needs_maze
def test_the_truth_is_judged_where_the_dream_opens(tmp_path: Path) -> None:
    """Lane by lane the same maze and the same pose after the opening, which is not quite once round; and as many steps from there."""
    given = {"task": "targets-near", "horizon": 3, "lanes": 2, "episodes": 2, "checkpoint": tiny_checkpoint(tmp_path)}
    stage = program.Stage(program.PPOArgs("WorldPack-MemoryMaze-v0", **given))
    shown = []
    for place in ("dream", "truth"):
        with contextlib.closing(stage.make(place)) as env:
            seen, info = env.reset(seed=[100_000_000, 100_000_001])
            ends = [env.step(env.action_space.sample())[2:4] for _ in range(3)]
        shown.append((seen, info["pose"]))
        assert [(bool(over.any()), late.tolist()) for over, late in ends] == [(False, [False] * 2)] * 2 + [(False, [True] * 2)], place
    for dreamed, true in zip(*shown, strict=True):
        np.testing.assert_array_equal(dreamed, true)
    assert not stage.can_succeed


@needs_maze
def test_tasks_that_open_with_shipped_clips_are_refused_and_can_open_live(tmp_path: Path) -> None:
    given = {"lanes": 1, "episodes": 1, "checkpoint": tiny_checkpoint(tmp_path)}
    with pytest.raises(ValueError, match=r"'targets' opens with a few shipped clips: .* give --opening live"):
        program.Stage(program.PPOArgs("WorldPack-MemoryMaze-v0", **given))
    assert len(program.Stage(program.PPOArgs("WorldPack-MemoryMaze-v0", opening="live", **given)).opening) == 20


def test_success_is_told_only_where_something_can_succeed() -> None:
    rows = [{"return": 1.0, "success": False}] * 2
    judged = {(name, place): rows for name in ("learned in the dream", "random") for place in ("dream", "truth")}
    for can_succeed in (True, False):
        (line, _) = program.summarise(judged, ["learned in the dream", "random"], {"dream": 8}, {"dream": 8}, can_succeed)["agents"]
        assert ("true_success" in line) == ("imagined_success" in line) == can_succeed
        assert line["true_return"] == 1 and line["steps"] == 8


def test_what_was_learned_in_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    make = program.sb3.adapt
    monkeypatch.setattr(program.sb3, "adapt", lambda *words, **given: made.append(make(*words, **given)) or made[-1])
    given = {"task": "navigate-near", "horizon": 4, "steps": 8, "lanes": 2, "ppo": ppo.PPOConfig(n_steps=4, batch_size=4)}
    stage = program.Stage(program.PPOArgs("WorldPack-Minecraft-v0", checkpoint=tiny_checkpoint(tmp_path), out=tmp_path, **given))
    found = stage.learn("truth", lambda steps: None)
    assert [env.unwrapped.env.closed for env in made] == [True]
    with contextlib.closing(stage.make("truth")) as env:  # and the agent acts without it
        assert np.shape(ppo.policy_of(found.model)(env.reset(seed=0)[0])) == (2,)


def test_a_view_to_return_to_is_seen_beside_the_frame(tmp_path: Path) -> None:
    """Task `revisit`: two images, and openings that the truth walks itself."""
    given = {"task": "revisit", "horizon": 4, "steps": 8, "lanes": 2, "episodes": 2, "ppo": ppo.PPOConfig(n_steps=4, batch_size=4)}
    stage = program.Stage(program.PPOArgs("WorldPack-Minecraft-v0", checkpoint=tiny_checkpoint(tmp_path), out=tmp_path, **given))
    assert stage.can_succeed and stage.opening_frames == {"dream": 61, "truth": 61} and not stage.opening
    shown = []
    for place in ("dream", "truth"):
        with contextlib.closing(stage.make(place)) as env:
            shown.append(env.reset(seed=[100_000_000, 100_000_001]))
        found = stage.learn(place, lambda steps: None)
        assert sorted(found.model.policy.features_extractor.pictures) == ["goal", "pov"]
        assert stage.truth_frames(place, 4, 8) == 4 * 61 + (8 if place == "truth" else 0)
        rows = stage.judge(f"learned in the {place}", "truth", {place: found})
        assert len(rows) == 2 and all(row["length"] <= 4 for row in rows)
    (dreamed, info), (true, true_info) = shown
    for name in ("pov", "goal"):
        np.testing.assert_array_equal(dreamed[name], true[name])
    np.testing.assert_array_equal(info["goal"], true_info["goal"])


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, said in (
        (["Minecraft-v0"], "has no twin"),
        (["WorldPack-Minecraft-v0", "--seed", "100"], "seed must be from 0 to 99"),
        (["WorldPack-Minecraft-v0", "--learn-in", "sleep"], "learn_in must be of"),
    ):
        assert main(["train", "ppo", *words, "--out", str(tmp_path)]) == 1
        assert said in capsys.readouterr().err
