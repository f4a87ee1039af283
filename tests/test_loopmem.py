"""LoopMem: paths return to the views that were commanded, scores know a frozen film, and the program resumes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from mazes import needs_maze
from tiny import tiny_checkpoint

from wmgym import settings
from wmgym.agents import paths
from wmgym.agents.collect import record
from wmgym.agents.paths import Motions, is_free, motions_of, path_program
from wmgym.agents.scripted import make_walker
from wmgym.benchmarks import loopmem
from wmgym.benchmarks.loopmem import Tolerance
from wmgym.benchmarks.revisit import first_seen, last_seen
from wmgym.benchmarks.rollout import Walk
from wmgym.experiments.loopmem import LoopMemArgs, evaluate
from wmgym.experiments.support import rows
from wmgym.experiments.support.camera_walks import returned, views_again
from wmgym.experiments.support.rows import parse_world
from wmgym.metrics import clip

MOVES = settings.get("minecraft").kinematics
SAME = Tolerance(*motions_of("minecraft").tolerances)


# -- paths ------------------------------------------------------------------------------------------------------------------------------


def test_motions_are_read_from_a_settings_kinematics() -> None:
    assert motions_of("minecraft") == Motions(1, 2, 6, 7, pytest.approx(0.8634), pytest.approx(math.radians(15)), False)
    maze = motions_of("memory_maze")
    assert (maze.forward, maze.back, maze.left, maze.right, maze.inertia) == (1, None, 2, 3, True)
    for name in ("memory_cards", "recon", "nowhere"):
        with pytest.raises(ValueError, match=f"paths need actions that step forward and turn to both sides, setting '{name}' has none"):
            motions_of(name)


def along(actions: list[int], setting: str = "minecraft") -> np.ndarray:
    """Commanded poses of a walk that begins at the origin."""
    actions = [0, *actions]
    walk = Walk(np.zeros((len(actions), 8, 8, 3), np.uint8), np.array(actions), np.zeros((len(actions), 5), np.float32), 1, 0)
    return loopmem.commanded(walk, settings.get(setting).kinematics)


@pytest.mark.parametrize("setting", ["minecraft", "memory_maze"])
def test_the_way_back_leads_back(setting: str) -> None:
    motions = motions_of(setting)
    way = [motions.forward] * 3 + [motions.left] * 2 + [motions.forward] * 5 + [motions.right] * 3
    poses = along(way + motions.reverse(way), setting)
    apart = poses[-1] - poses[0]
    assert np.linalg.norm(apart[:2]) < (1e-4 if motions.back else 0.6)  # ten turns of 18.4 degrees are no half turn
    assert abs(math.remainder(float(apart[3]), math.tau)) < (1e-4 if motions.back else 0.15)
    if motions.back:  # frame by frame
        np.testing.assert_allclose(poses[len(way) :, :2], poses[: len(way) + 1][::-1, :2], atol=1e-4)


def test_turns_come_nearest_to_an_angle() -> None:
    motions = motions_of("minecraft")
    assert motions.turns(math.pi) == [6] * 12 and motions.turns(-math.radians(50)) == [7] * 3


@pytest.mark.parametrize("name", ["aba", "aba-0", "aba-2-3", "polygon-2-4", "polygon-3", "star-4", "aba-x", ""])
def test_unknown_paths_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown path {name!r}; known: aba-N, ababa-N, polygon-K-N, pan-D, wander-N, stroll-N"):
        path_program(name, "minecraft")


@pytest.fixture(scope="module")
def world() -> gym.Env:
    return gym.make("Minecraft-v0", task="free", size=16, disable_env_checker=True)


LENGTHS = {"aba-2": 16, "ababa-1": 16, "pan-90": 12, "pan-360": 48, "polygon-3-1": 72, "wander-3": 24}  # frames dreamed


@pytest.mark.parametrize(("name", "length"), LENGTHS.items())
def test_walks_return_to_the_views_that_were_commanded(world: gym.Env, name: str, length: int) -> None:
    episode = record(world, f"path-{name}", 100_000_003, np.random.default_rng(0), 1000)
    assert episode.meta.outcome == "done"
    walk = loopmem.walk_of(episode, paths.PATH)
    assert walk.split == loopmem.OPENING and walk.leg == length
    pairs, there = loopmem.revisits(walk, MOVES, SAME)
    assert len(pairs) >= (length // 2 - 1 if name != "pan-360" else 24) and there.all()
    again, first = pairs.T
    assert (again >= walk.split).all() and (first < again).all()
    np.testing.assert_array_equal(walk.frames[again[-1]], walk.frames[first[-1]])  # the same view, pixel by pixel
    assert loopmem.is_walked(walk, MOVES, SAME)


def test_strolls_have_no_way_back(world: gym.Env) -> None:
    episode = record(world, "path-stroll-6", 100_000_003, np.random.default_rng(0), 1000)
    walk = loopmem.walk_of(episode, paths.PATH)
    assert walk.leg == 24 and episode.return_first is None
    commanded = loopmem.commanded(walk, MOVES)
    assert np.abs(commanded[:, :3] - walk.poses[:, :3]).max() < 0.2  # it walks only where nothing blocks


def test_trying_a_way_leaves_the_state_as_it_is(world: gym.Env) -> None:
    _, info = world.reset(seed=100_000_003)
    walker = make_walker("path-aba-2", world, np.random.default_rng(0))
    walker.pose = np.asarray(info["pose"], np.float64)
    before = world.unwrapped.save_state()
    assert is_free(walker, [6, 7, 6]) and is_free(walker, [])
    assert not is_free(walker, [1] * 400)  # somewhere there is a wall, or a step
    assert not is_free(walker, [6], closes=True)
    np.testing.assert_equal(world.unwrapped.save_state(), before)


def test_a_start_without_a_free_heading_is_given_up(world: gym.Env) -> None:
    world.reset(seed=100_000_003)
    walker = make_walker("path-aba-200", world, np.random.default_rng(0))
    pose = np.zeros(5)
    while (action := walker.act(pose)) is not None:
        pose = world.step(action)[-1]["pose"]
    assert walker.outcome == "aborted: the path is blocked in all directions" and walker.actions == paths.HEADINGS


@needs_maze
def test_a_ball_that_cannot_step_back_turns_about() -> None:
    """It turns later than commanded, so views are compared where the truth returns, not where it was commanded to."""
    env = gym.make("MemoryMaze-9x9-v0", task="free", size=16, disable_env_checker=True)
    moves, same = settings.get("memory_maze").kinematics, Tolerance(*motions_of("memory_maze").tolerances)
    for name, leg, least in (("pan-90", 10, 4), ("pan-360", 40, 10)):
        walk = loopmem.walk_of(record(env, f"path-{name}", 100_000_001, np.random.default_rng(0), 1000), paths.PATH)
        assert walk.leg == leg and not loopmem.is_walked(walk, moves, same) and returned(walk, "memory_maze")
        pairs, there = views_again(walk, "memory_maze")
        assert len(pairs) >= least and there.all()
    env.close()


# -- scores -----------------------------------------------------------------------------------------------------------------------------


def test_the_first_sight_of_a_view_and_the_last() -> None:
    yaw = np.radians([0, 15, 30, 15, 0, 15, 30])
    poses = np.zeros((7, 5))
    poses[:, 3] = yaw
    assert first_seen(poses).tolist() == [-1, -1, -1, 1, 0, 1, 2]
    assert last_seen(poses).tolist() == [-1, -1, -1, 1, 0, 3, 2]


@pytest.fixture(scope="module")
def panned() -> Walk:
    """A pan of 6 turns and back over a random panorama; the opening looks straight ahead."""
    rng = np.random.default_rng(0)
    strip = rng.integers(0, 256, (16, 16 + 7 * 4, 3), np.uint8)
    turns = [0] * 16 + [6] * 6 + [7] * 6
    turned = np.cumsum([{6: 1, 7: -1}.get(a, 0) for a in turns])
    poses = np.zeros((len(turns), 5), np.float32)
    poses[:, 3] = turned * math.radians(15)
    frames = np.stack([strip[:, 4 * k : 4 * k + 16] for k in turned])
    return Walk(frames, np.array(turns), poses, 16, 0)


def flat(frames: np.ndarray) -> np.ndarray:
    return frames.reshape(len(frames), -1).astype(np.float64) - 127.5


def scores_of(shown: np.ndarray, walk: Walk) -> dict[str, Any]:
    pairs, there = loopmem.revisits(walk, MOVES, SAME)
    assert there.all() and pairs.tolist() == [[22, 20], [23, 19], [24, 18], [25, 17], [26, 16], [27, 0]]
    return loopmem.score(shown, walk, pairs, {"": flat})


def test_the_truth_agrees_with_itself_and_a_frozen_film_is_found_out(panned: Walk) -> None:
    truth = scores_of(panned.frames, panned)
    assert truth["pac"] == pytest.approx(1) and truth["again_psnr"] == 60 and truth["psnr"] == 60
    assert truth["motion"] == truth["truth_motion"] > 1 and truth["scene_drift"] > 0.5
    frozen = scores_of(np.repeat(panned.frames[:1], len(panned.frames), 0), panned)
    assert frozen["pac"] == pytest.approx(1) and frozen["temp_ssim"] == pytest.approx(1) and frozen["motion"] == 0
    assert frozen["scene_drift"] == pytest.approx(0) and frozen["psnr"] < 30
    noise = scores_of(np.random.default_rng(1).integers(0, 256, panned.frames.shape, np.uint8), panned)
    assert abs(noise["pac"]) < 0.1 and noise["again_psnr"] < 12
    table = loopmem.summarise({"pan-90": {"truth": [truth] * 3, "frozen": [frozen] * 3, "noise": [noise] * 3}}, [("truth", "noise")])
    assert [row["valid"] for row in table["scores"]] == ["yes", "no: stands still", "yes"]
    (gap,) = table["differences"]
    assert gap["pac"] == pytest.approx(truth["pac"] - noise["pac"]) and gap["pac_low"] <= gap["pac"] <= gap["pac_high"]
    assert "| pan-90 | frozen |" in loopmem.markdown(table, "pixels")


def test_views_to_which_the_truth_did_not_return_are_left_out(panned: Walk) -> None:
    poses = panned.poses.copy()
    poses[22:25, 0] += 1  # pushed aside
    moved = replace(panned, poses=poses)
    pairs, there = loopmem.revisits(moved, MOVES, SAME)
    assert len(pairs) == 6 and there.tolist() == [False, False, False, True, True, True]
    assert not loopmem.is_walked(moved, MOVES, SAME) and loopmem.is_walked(panned, MOVES, SAME)


def test_coherence_is_told_by_horizons() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (16 + 8 * 32 + 3, 16, 16, 3), np.uint8)
    walk = Walk(frames, np.zeros(len(frames), np.int64), np.zeros((len(frames), 5), np.float32), 16, 0)
    shown = frames.copy()
    shown[16 + 7 * 32 :] = shown[16 + 7 * 32]  # stands still in the last horizon
    scores = loopmem.score(shown, walk, np.zeros((0, 2), int), {"": flat})
    assert len(scores["horizons"]["motion"]) == 8 and "pac" not in scores
    (row,) = loopmem.summarise({"stroll-64": {"it": [scores] * 2}}, [])["coherence"]
    assert row["horizons"] == 8 and row["temp_ssim"] > 0.9 and row["valid"].startswith("no")


def test_an_episode_without_an_opening_is_refused(world: gym.Env) -> None:
    episode = record(world, "turn-loop", 100_000_003, np.random.default_rng(0), 100)
    with pytest.raises(ValueError, match=r"walker 'turn-loop' has no 16 frames before a segment 'path'"):
        loopmem.walk_of(episode, paths.PATH)


# -- the program ------------------------------------------------------------------------------------------------------------------------


def test_worlds_are_named_with_system_and_memories() -> None:
    assert parse_world("a/b.safetensors") == (None, "a/b.safetensors", None)
    assert parse_world("worldpack-minecraft=none,worldpack") == (None, "worldpack-minecraft", ("none", "worldpack"))
    assert parse_world("worldtrace@x.safetensors=landmark") == ("worldtrace", "x.safetensors", ("landmark",))
    assert parse_world("hub:me@home") == (None, "hub:me@home", None)
    for wrong in ("", "=none", "x=", "x=none,"):
        with pytest.raises(ValueError, match="a world is CHECKPOINT or SYSTEM@CHECKPOINT"):
            parse_world(wrong)


def test_the_program_makes_its_table_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # walks are collected in this process
    args = LoopMemArgs(
        (f"{tiny_checkpoint(tmp_path)}=none,worldpack",), ("aba-1", "pan-90"), walks=2, env_kwargs='{"size": 16}', device="cpu",
        dtype="float32", out=tmp_path / "out",
    )  # fmt: skip
    report = evaluate(args, progress=False)
    assert [row["row"] for row in report["scores"]] == 2 * ["truth", "frozen", "worldpack-none", "worldpack-worldpack", "untrained"]
    truth = report["scores"][0]
    assert truth["psnr"] == 60 and truth["pac"] > 0.99 and truth["frames"] == 8
    assert {row["difference"] for row in report["differences"]} == {"worldpack-worldpack - worldpack-none"}
    assert (tmp_path / "out" / "strips.png").exists() and "| aba-1 | frozen |" in (tmp_path / "out" / "table.md").read_text()
    (tmp_path / "out" / "cells" / "pan-90-untrained.json").unlink()
    dreamt: list[int] = []
    real = rows.dream_legs

    def counted(world: Any, walks: Any, *rest: Any) -> Any:
        dreamt.append(len(walks))
        return real(world, walks, *rest)

    monkeypatch.setattr(rows, "dream_legs", counted)
    again = evaluate(replace(args, lanes=1), progress=False)
    assert dreamt == [2]  # only the cell that was missing
    assert json.loads(json.dumps(again["differences"])) == json.loads(json.dumps(report["differences"]))


def test_bad_arguments_are_refused_before_any_work(tmp_path: Path) -> None:
    tiny = tiny_checkpoint(tmp_path)
    for changes, words in (
        ({"paths": ("spiral-3",)}, "unknown path 'spiral-3'"),
        ({"worlds": (f"{tiny}=nothing",)}, "nothing"),
        ({"clip": "ViT-B-32"}, "clip must be a folder"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate(replace(LoopMemArgs((tiny,), out=tmp_path / "out", device="cpu"), **changes), progress=False)
    assert not (tmp_path / "out").exists()


# -- CLIP -------------------------------------------------------------------------------------------------------------------------------


def test_clip_features_come_from_a_folder_of_the_users(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(**size, image_size=32, patch_size=16, projection_dim=24)
    torch.manual_seed(0)
    model = transformers.CLIPVisionModelWithProjection(config)
    model.save_pretrained(tmp_path / "tiny")
    features = clip.load(str(tmp_path / "tiny"))
    frames = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), np.uint8)
    found = features(frames)
    assert found.shape == (70, 24) and found.dtype == np.float32
    np.testing.assert_allclose(features(frames[66:]), found[66:], atol=1e-5)
    mean, std = (torch.tensor(x)[:, None, None] for x in (clip.MEAN, clip.STD))
    with torch.no_grad():
        expected = model.eval()((torch.from_numpy(frames[:2]).permute(0, 3, 1, 2) / 255 - mean) / std).image_embeds
    np.testing.assert_allclose(found[:2], expected, atol=1e-4)  # 32 pixels need no scaling
    (tmp_path / "tiny" / "model.safetensors").rename(tmp_path / "tiny" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"clip must be a folder with config.json and model.safetensors"):
        clip.load(str(tmp_path / "tiny"))
