"""`wmgym plan` from end to end, at its tiny preset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from mazes import needs_maze
from tiny import tiny_checkpoint

from wmgym.checkpoint import load
from wmgym.cli import main
from wmgym.experiments import plan as program
from wmgym.experiments.plan import walked_goal
from wmgym.experiments.support.players import Scripted, follow_compass, offset_of_target, rule_for
from wmgym.metrics.statistics import wilson_interval
from wmgym.settings.memory_maze import SETTING
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


def test_every_row_of_a_table_acts(tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--checkpoint", checkpoint, "--task", "navigate-near", "--no-film", "--out", str(tmp_path / "plan")]
    words += ["--models", *program.MODELS]
    found = planned(capsys, *words)
    assert [line["model"] for line in found["models"]] == list(program.MODELS) and found["goal"] == "task"
    for line in found["models"]:
        expected = wilson_interval([1] * round(3 * line["success"]) + [0] * round(3 - 3 * line["success"]))
        assert (line["success_low"], line["success_high"]) == pytest.approx((expected.low, expected.high))


def test_the_rows_of_dreams_differ_in_memory_and_weights(tmp_path: Path, checkpoint: str) -> None:
    stage = program.Stage(program.PlanArgs("WorldPack-Minecraft-v0", checkpoint=checkpoint, out=tmp_path), {"checkpoint": checkpoint})
    dreams: dict[str, Any] = {name: stage._dream(name, 2) for name in ("dream", "none", "untrained")}
    worlds = {name: dream.shell.world for name, dream in dreams.items()}
    stage.close()
    assert [worlds[name].provenance.memory for name in ("dream", "none")] == ["worldpack", "none"]
    kept, fresh = worlds["dream"].state_dict(), worlds["untrained"].state_dict()
    same = {name: torch.equal(kept[name], fresh[name]) for name in kept if kept[name].numel() > 1}
    assert all(equal for name, equal in same.items() if name.startswith("autoencoder."))
    assert not all(equal for name, equal in same.items() if name.startswith("net."))
    assert worlds["untrained"].settings.pose_source == "actions"
    assert worlds["untrained"].settings.memories == worlds["dream"].settings.memories
    for dream in dreams.values():
        assert dream.observation_space == dreams["dream"].observation_space
        dream.close()


@needs_maze
def test_a_task_without_a_goal_succeeds_by_its_reward(tmp_path: Path) -> None:
    given = {"task": "targets-behind", "checkpoint": tiny_checkpoint(tmp_path)}
    args = program.PlanArgs("WorldPack-MemoryMaze-v0", objective="reward", models=("scripted", "random"), lanes=2, out=tmp_path, **given)
    stage = program.Stage(args, given)
    assert stage.goal == "reward"
    assert all(truth.unwrapped.task == "targets-behind" for _, truth in stage.pairs)
    rows = stage.run("random", [100_000_000, 100_000_001], film=False)["episodes"]
    stage.close()
    for row in rows:
        assert row["success"] == (row["return"] > 0) and "spl" not in row and "goal" not in row
        assert row["steps"] == 40 or row["success"]
    (line,) = program.summarise({"random": rows})["models"]
    assert "success_low" in line and "final_distance" not in line
    program.draw_paths(tmp_path / "paths.png", {"random": rows})


@needs_maze
def test_the_rule_finds_targets() -> None:
    env = gym.make("wmgym:MemoryMaze-9x9-v0", task="targets-near")
    total = 0.0
    for seed in range(3):
        frame, info = env.reset(seed=seed)
        rule = rule_for(SETTING.tasks["targets-near"], SETTING)
        player = Scripted(rule, frame[None], info["pose"][None], np.zeros((1, 5)))
        for _ in range(30):
            action = player.act()
            frame, reward, *_, info = env.step(int(action[0]))
            player.look(frame[None], action, info["pose"][None])
            total += float(reward)
    env.close()
    assert total >= 3


def test_the_rule_sees_a_lit_target_in_the_colour_of_the_border() -> None:
    frame = np.full((64, 64, 3), 60, np.uint8)
    colour = np.array([45, 160, 250])
    frame[[0, 1, -2, -1]] = frame[:, [0, 1, -2, -1]] = (0.7 * colour).astype(np.uint8)
    frame[30:40, 4:20] = (0.68 * colour).astype(np.uint8)  # a wall of that hue
    assert offset_of_target(frame) is None
    frame[40:44, 46:50] = (0.95 * colour).astype(np.uint8)
    assert offset_of_target(frame) == pytest.approx(2 * 47.5 / 63 - 1)


def test_the_rule_for_a_compass_arrives(tmp_path: Path) -> None:
    env = gym.make("wmgym:Minecraft-v0", task="navigate-near", size=16)
    arrived = []
    for seed in range(101_000_000, 101_000_004):
        _, info = env.reset(seed=seed)
        over = False
        while not over:
            (action,) = follow_compass(np.zeros((1, 1)), info["pose"][None], info["goal"][None])
            _, _, terminated, truncated, info = env.step(int(action))
            over = terminated or truncated
        arrived.append(terminated)
    assert sum(arrived) >= 3


def test_a_view_of_the_opening_is_planned_for(tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Task `revisit` has a goal image of its own; success is the task's, view and all."""
    words = ["--checkpoint", checkpoint, "--task", "revisit", "--objective", "ssim", "--out", str(tmp_path / "plan")]
    found = planned(capsys, *words, "--models", "dream", "untrained", "truth")
    assert found["goal"] == "task" and [line["steps"] for line in found["models"]] == [6] * 3
    given = {"task": "revisit", "checkpoint": checkpoint}
    stage = program.Stage(program.PlanArgs("WorldPack-Minecraft-v0", out=tmp_path, **given), given)
    goal = np.array([1, 2, 0, 0.5, 0], np.float32)
    for pose, expected in (([1, 3, 0, 0.6, 0], True), ([1, 3, 0, 1.1, 0], False), ([1, 4.1, 0, 0.5, 0], False)):
        assert stage._succeeds(np.array(pose, np.float32), goal, 0.0) == expected
    stage.close()


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
        (["--task", "free", "--models", "scripted"], "task 'free' of setting 'minecraft' has no scripted rule"),
        (["--task", "navigate", "--models", "scripted", "--goal", "walk"], "does not know the goal of --goal walk"),
        (["--task", "navigate", "--goal", "reward"], "--goal reward needs --objective reward"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "WorldPack-Minecraft-v0", "--checkpoint", checkpoint, "--out", str(tmp_path / "plan"), *words]) == 1
    err = capsys.readouterr().err.strip().splitlines()
    assert said in err[-1]
