"""Dreams that make several frames a step: their truths act in chunks too, agents learn in both, and planners act frame by frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from tiny import tiny_checkpoint

import wmgym
from wmgym.agents.mpc import PlannerConfig
from wmgym.cli import main
from wmgym.experiments import plan, ppo
from wmgym.experiments.support.players import in_steps
from wmgym.integrations import sb3
from wmgym.twins import Chunked, ChunkedLanes

CHUNK = 4
KEYWORDS = {"task": "navigate-near", "size": 16}


def lanes(count: int, *, hold: bool = False, mode: str = "disabled", **keywords: Any) -> ChunkedLanes:
    env = gym.make_vec("Minecraft-v0", count, autoreset_mode="disabled", **KEYWORDS, **keywords)
    return ChunkedLanes(env, CHUNK, hold_action=hold, autoreset_mode=mode)


@pytest.mark.parametrize("hold", [False, True])
def test_lanes_step_as_single_twins_do(hold: bool) -> None:
    """Two lanes, one of which arrives or runs out of time inside a chunk."""
    many = lanes(2, hold=hold, horizon=10)
    singles = [Chunked(gym.make("Minecraft-v0", horizon=10, **KEYWORDS), CHUNK, hold_action=hold, render_mode=None) for _ in range(2)]
    assert many.single_action_space == singles[0].action_space
    observation, _ = many.reset(seed=[100_000_003, 100_000_004])
    for lane, env in enumerate(singles):
        env.reset(seed=100_000_003 + lane)
    rng = np.random.default_rng(0)
    for step in range(3):
        actions = rng.integers(10, size=(2,) if hold else (2, CHUNK))
        observation, rewards, terminated, truncated, info = many.step(actions)
        for lane, env in enumerate(singles):
            seen, reward, ended, cut, facts = env.step(actions[lane])
            np.testing.assert_array_equal(observation["pov"][lane], seen["pov"])
            np.testing.assert_array_equal(info["pose"][lane], facts["pose"])
            assert rewards[lane] == pytest.approx(reward) and (terminated[lane], truncated[lane]) == (ended, cut)
        assert truncated.all() == (step == 2)  # the tenth frame is in the third chunk
    assert (many.step(actions)[1] == 0).all()  # ended lanes rest


def test_lanes_reset_themselves_for_stable_baselines() -> None:
    many = lanes(2, mode="same_step", horizon=6)
    many.reset(seed=[100_000_003, 100_000_004])
    many.step(np.zeros((2, CHUNK), int))
    before = many.step(np.zeros((2, CHUNK), int))
    _, _, _, truncated, info = before
    assert truncated.all() and info["_final_obs"].all() and info["_pose"].all()
    assert (info["final_info"]["pose"] != info["pose"]).any() or (info["final_info"]["goal"] != info["goal"]).any()
    assert not many.step(np.zeros((2, CHUNK), int))[3].any()
    env = sb3.adapt(lanes(2, mode="same_step", horizon=6))
    env.reset()
    for _ in range(3):
        _, _, done, infos = env.step(np.zeros((2, CHUNK), int))
    assert not done.any() and "terminal_observation" not in infos[0]


def test_lanes_of_another_mode_and_actions_of_another_shape_are_refused() -> None:
    env = gym.make_vec("Minecraft-v0", 2, autoreset_mode="same_step", **KEYWORDS)
    with pytest.raises(ValueError, match="must be made with autoreset_mode='disabled'"):
        ChunkedLanes(env, CHUNK, hold_action=False)
    with pytest.raises(ValueError, match="must be 'disabled' or 'same_step', got 'next_step'"):
        lanes(2, mode="next_step")
    many = lanes(2)
    many.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must have the shape \[2, 4\], got \[2\]"):
        many.step(np.zeros(2, int))


@pytest.mark.parametrize("per", ["chunk", "frame"])
def test_ppo_learns_in_chunks_and_is_judged_in_the_truth(per: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--task navigate-near --steps 16 --lanes 2 --episodes 2 --horizon 10 --act-per {per} --ppo.n-steps 8 --ppo.batch-size 8 --json"
    code = main(["train", "ppo", "WorldPack-Minecraft-v0", "--checkpoint", tiny_checkpoint(tmp_path, chunk=CHUNK), *words.split(),
                 "--out", str(tmp_path / "out")])  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 0, err
    dream, truth, chance = json.loads(out)["agents"]
    assert dream["steps"] == truth["steps"] == 16 and chance["steps"] == 0
    assert truth["truth_frames"] > CHUNK * 16 > dream["truth_frames"] % 100
    rows = json.loads((tmp_path / "out" / "cells" / "random-0-in-truth-2.json").read_text())["episodes"]
    assert all(row["length"] <= 3 for row in rows)  # ten frames are three chunks


def test_a_discount_is_one_of_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    monkeypatch.setattr(ppo.ppo, "train", lambda env, config, *rest, **more: used.append((env, config)))
    stage = ppo.Stage(ppo.PPOArgs("WorldPack-Minecraft-v0", task="navigate-near", checkpoint=tiny_checkpoint(tmp_path, chunk=CHUNK)))
    stage.learn("truth", lambda steps: None)
    ((env, config),) = used
    assert config.gamma == pytest.approx(0.97**CHUNK) and config.gae_lambda == pytest.approx(0.95**CHUNK)
    assert env.action_space == gym.spaces.Discrete(10)  # one action a chunk


@pytest.mark.parametrize("hold", ["1", "4"])
def test_plan_acts_frame_by_frame(hold: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--task navigate-near --episodes 2 --lanes 2 --max-steps 6 --horizon 8 --hold {hold} --samples 4 --elites 2 --iterations 1"
    code = main(["plan", "WorldPack-Minecraft-v0", "--checkpoint", tiny_checkpoint(tmp_path, chunk=CHUNK), *words.split(),
                 "--no-film", "--json", "--out", str(tmp_path / "out")])  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 0, err
    assert [row["model"] for row in json.loads(out)["models"]] == ["dream", "truth", "random"]
    rows = json.loads((tmp_path / "out" / "cells" / "dream-0000.json").read_text())["episodes"]
    assert all(row["steps"] <= 6 and len(row["path"]) == row["steps"] + 1 for row in rows)  # frames, not chunks


def test_a_chunked_dream_plans_as_well_as_the_truth_where_nothing_is_in_the_way(tmp_path: Path) -> None:
    """The tiny dream's poses are those of the kinematics."""
    checkpoint = tiny_checkpoint(tmp_path, chunk=CHUNK)
    args = plan.PlanArgs("WorldPack-Minecraft-v0", task="navigate-near", checkpoint=checkpoint, lanes=3, episodes=3, out=tmp_path)
    stage = plan.Stage(args, {"task": args.task, "checkpoint": checkpoint})
    rows = stage.run("dream", [100_000_000, 100_000_001, 100_000_002], film=False)["episodes"]
    stage.close()
    assert [row["success"] for row in rows] == [True] * 3


@pytest.mark.parametrize(("horizon", "hold"), [(6, 1), (12, 6), (8, 2)])
def test_plans_that_end_inside_a_chunk_are_refused(horizon: int, hold: int) -> None:
    with pytest.raises(ValueError, match=rf"horizon must be a multiple of 4, and hold 1 or a multiple of 4, got horizon={horizon}"):
        in_steps(PlannerConfig(horizon=horizon, hold=hold), CHUNK)


def test_plans_in_steps_of_a_dream() -> None:
    config = PlannerConfig(horizon=16, hold=8)
    assert in_steps(config, 1) == (config, False)
    assert in_steps(config, CHUNK) == (PlannerConfig(horizon=4, hold=2), True)
    assert in_steps(PlannerConfig(horizon=16, hold=1), CHUNK) == (PlannerConfig(horizon=4, hold=1), False)


def test_twin_evaluates_chunked_dreams(tmp_path: Path) -> None:
    imagined, truth = wmgym.twin("WorldPack-Minecraft-v0", task="free", checkpoint=tiny_checkpoint(tmp_path, chunk=CHUNK))
    assert isinstance(truth, Chunked) and imagined.action_space == truth.action_space
