"""`wmgym plan` from end to end, at its tiny preset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from tiny import tiny_checkpoint

from wmgym.checkpoint import load
from wmgym.cli import main
from wmgym.experiments import plan as program
from wmgym.experiments.plan import walked_goal
from wmgym.tasks import ARRIVAL_DISTANCE, horizontal_distance

TINY = "--episodes 3 --lanes 2 --max-steps 6 --horizon 2 --samples 6 --elites 2 --iterations 1 --json".split()


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code = main(["plan", "WorldPack-Minecraft-v0", *TINY, *words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return tiny_checkpoint(tmp_path)


def test_plan_writes_its_report_and_goes_on_where_it_was(tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan"
    words = ["--checkpoint", checkpoint, "--task", "navigate-near", "--out", str(out)]
    found = planned(capsys, *words)
    assert [line["model"] for line in found["models"]] == ["dream", "truth", "random"]
    assert all(line["episodes"] == 3 and 0 <= line["spl"] <= line["success"] <= 1 for line in found["models"])
    for name in ("args.json", "result.json", "paths.png", "dream.mp4", "truth.mp4"):
        assert (out / name).stat().st_size > 100, name
    assert json.loads((out / "args.json").read_text())["weights"] == load(checkpoint).model.provenance.weights
    (out / "cells" / "dream-0002.json").unlink()  # a killed run: its last batch is made again, alike
    again = planned(capsys, *words)
    for old, new in zip(found["models"], again["models"], strict=True):
        assert {k: v for k, v in old.items() if k != "plan_ms"} == {k: v for k, v in new.items() if k != "plan_ms"}
    tiny_checkpoint(tmp_path, seed=1)  # other weights at the same path: these cells are not theirs
    assert main(["plan", "WorldPack-Minecraft-v0", *TINY, *words]) == 1
    said = capsys.readouterr().err
    assert f"{out} was begun with weights=" in said and "use another folder" in said


def test_what_it_costs_is_said_before_it_begins(tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--checkpoint", checkpoint, "--task", "navigate-near", "--models", "dream", "--no-film", "--out", str(tmp_path / "plan")]
    assert main(["plan", "WorldPack-Minecraft-v0", *TINY, *words]) == 0
    said = capsys.readouterr().err.splitlines()[0]  # 6 samples x 2 steps, a decision every 2 steps, 3 episodes of 6 steps
    assert "dreams 12 frames" in said and "at most 3 decisions" in said and "at most 108 frames" in said


@pytest.mark.parametrize("model", ["dream", "truth"])
def test_the_defaults_arrive_and_ended_episodes_are_planned_for_no_more(
    model: str, tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny dream's poses are those of the kinematics: it plans as well as the truth where nothing is in the way."""
    agents: list[program.PlanningAgent] = []
    make = program.PlanningAgent
    monkeypatch.setattr(program, "PlanningAgent", lambda *given: agents.append(make(*given)) or agents[-1])
    args = program.PlanArgs("WorldPack-Minecraft-v0", task="navigate-near", checkpoint=checkpoint, lanes=3, episodes=3, out=tmp_path)
    stage = program.Stage(args, {"task": args.task, "checkpoint": checkpoint})
    rows = stage.run(model, [100_000_000, 100_000_001, 100_000_002], film=False)["episodes"]
    stage.close()
    assert [row["success"] for row in rows] == [True] * 3
    steps = [row["steps"] for row in rows]
    assert len({-(-n // 4) for n in steps}) > 1, steps  # they end after different numbers of decisions
    (agent,) = agents
    assert agent.dreamed == stage.config.frames * sum(-(-n // 4) for n in steps)
    assert model == "truth" or agent.models[0].obs_type == "torch"  # frames stay where they were dreamed


def test_a_goal_image_is_planned_for(tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--checkpoint", checkpoint, "--task", "free", "--models", "dream", "--no-film", "--out", str(tmp_path / "plan")]
    for objective in ("ssim", "latent"):
        found = planned(capsys, *words[:-1], str(tmp_path / objective), "--objective", objective, "--planner", "nwm")
        assert found["planner"]["answer"] == "mean" and found["planner"]["repeats"] == 3
        assert found["models"][0]["final_distance"] > 0


def test_a_walked_goal_is_away_from_the_start_and_leaves_the_truth_as_it_was() -> None:
    env = gym.make("wmgym:Minecraft-v0", task="free", size=16)
    seen, info = env.reset(seed=101_000_000)
    frame, pose = walked_goal(env, info["pose"], np.random.default_rng(0), steps=12)
    assert horizontal_distance(info["pose"], pose) > ARRIVAL_DISTANCE
    assert (frame != seen).any()
    _, *_, after = env.step(0)
    np.testing.assert_allclose(after["pose"][:2], info["pose"][:2])


def test_walks_that_end_near_the_start_are_drawn_anew_and_longer() -> None:
    """One step leads 0.9 blocks away at most, and two are needed."""
    env = gym.make("wmgym:Minecraft-v0", task="free", size=16)
    _, info = env.reset(seed=101_000_000)
    assert horizontal_distance(info["pose"], walked_goal(env, info["pose"], np.random.default_rng(0), steps=1)[1]) > ARRIVAL_DISTANCE


def test_a_goal_where_one_stands_already_is_never_taken() -> None:
    env = gym.make("wmgym:Minecraft-v0", task="free", size=16)
    _, info = env.reset(seed=101_000_000)
    env.unwrapped.action_space = gym.spaces.Discrete(1)  # nothing can be done but to stand
    with pytest.raises(ValueError, match=r"none of 80 random walks of 2 to 16 steps .* more --goal-steps"):
        walked_goal(env, info["pose"], np.random.default_rng(0), steps=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--models", "oracle"], "models must be of"),
        (["--planner", "dreamer"], "planner must be of"),
        (["--objective", "ssim", "--task", "navigate"], "needs a goal image"),
        (["--task", "free", "--goal", "task"], "no goal of its own"),
        (["--planner", "mppi", "--task", "navigate"], "MPPI plans continuous"),
        (["--episodes", "0"], "episodes must be positive"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "WorldPack-Minecraft-v0", "--checkpoint", checkpoint, "--out", str(tmp_path / "plan"), *words]) == 1
    err = capsys.readouterr().err.strip().splitlines()
    assert said in err[-1]
