"""What every backend of `Minecraft-v0` promises, held against all that are on this machine."""

from __future__ import annotations

import json
import math
import os
import subprocess
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from prismarine_here import needs_node

import wmgym  # noqa: F401  # registers
from wmgym.agents.collect import CollectArgs, collect
from wmgym.data.episode import list_episodes, load_episode
from wmgym.envs.minecraft.env import MinecraftEnv, minerl_action
from wmgym.envs.minecraft.prismarine.install import data_folder, find_node

HERE = ["voxel", pytest.param("prismarine", marks=needs_node)]


@pytest.mark.parametrize("backend", HERE)
def test_gymnasiums_checkers_have_nothing_to_say(backend: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("Minecraft-v0", backend=backend)
        check_env(env.unwrapped)
        sb3.check_env(env)
        env.close()
        env.close()


@needs_node
def test_gymnasiums_checker_has_nothing_to_say_of_hands() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*symmetric and normalized.*")  # degrees, as MineRL has them
        env = gym.make("Minecraft-v0", backend="prismarine", action_mode="minerl")
        check_env(env.unwrapped)
        assert env.metadata["render_fps"] == 20 and env.unwrapped.horizon == 2000
        assert env.unwrapped.get_action_meanings()[-1] == "camera"
        assert all(env.action_space.contains(action) for action in env.unwrapped.get_keys_to_action().values())
        env.close()


@pytest.mark.parametrize("backend", HERE)
def test_spaces_and_poses_are_those_of_every_backend(backend: str) -> None:
    env, voxel = (gym.make("Minecraft-v0", backend=name, render_mode="rgb_array", render_size=(60, 80)) for name in (backend, "voxel"))
    assert env.observation_space == voxel.observation_space and env.action_space == voxel.action_space
    _, info = env.reset(seed=3)
    assert info.keys() == {"pose", "goal", "goal_distance"} and info["pose"].dtype == np.float32
    start = info["pose"]
    frame = env.render()
    assert frame.shape == (60, 80, 3)
    assert env.unwrapped.field_of_view == voxel.unwrapped.field_of_view
    _, info = env.reset(seed=3, options={"start": [*start[:3], 1.0, 0.2], "goal": [start[0] + 4, start[1]]})
    np.testing.assert_allclose(info["pose"], [*start[:3], 1.0, 0.2], atol=1e-5)
    assert info["goal_distance"] == pytest.approx(4)
    for action, change in ((6, math.radians(15)), (7, -math.radians(15))):
        before = info["pose"][3]
        *_, info = env.step(action)
        assert info["pose"][3] - before == pytest.approx(change, abs=1e-5)
    *_, info = env.step(8)
    assert info["pose"][4] == pytest.approx(0.2 + math.radians(15), abs=1e-5)
    env.close()
    voxel.close()


@pytest.mark.parametrize("backend", HERE)
def test_specs_go_through_json(backend: str) -> None:
    env = gym.make("Minecraft-v0", backend=backend, task="free")
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    np.testing.assert_array_equal(env.reset(seed=3)[0], again.reset(seed=3)[0])
    env.close()
    again.close()
    vec = gym.make_vec("Minecraft-v0", num_envs=2, backend=backend)
    assert json.loads(vec.spec.to_json())["kwargs"]["backend"] == backend
    vec.close()


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("walker", ["explorer", "loop-ABA-5"])
def test_walkers_walk_and_episodes_are_stored(backend: str, walker: str, tmp_path: Path) -> None:
    keywords = json.dumps({"backend": backend})
    collect(CollectArgs(walker=walker, steps=40, episode_length=40, out=tmp_path, processes=1, env_kwargs=keywords), progress=False)
    episode = load_episode(list_episodes(tmp_path)[0])
    assert episode.meta.outcome == "done" and episode.meta.env_kwargs["backend"] == backend
    assert np.ptp(episode.poses[:, :2], 0).max() > 2
    if walker == "loop-ABA-5":
        assert math.dist(episode.poses[-1, :2], episode.poses[0, :2]) < 1.5


@needs_node
def test_hands_in_lanes_are_hands_alone() -> None:
    vec = gym.make_vec("Minecraft-v0", num_envs=2, backend="prismarine", action_mode="minerl", task="free")
    env = MinecraftEnv("free", "prismarine", action_mode="minerl")
    vec.reset(seed=4)
    env.reset(seed=5)
    for camera in ((0, 5), (3, -2)):
        told = minerl_action("forward", "jump", camera=camera)
        frames, *_, infos = vec.step({key: np.stack([minerl_action()[key], value]) for key, value in told.items()})
        frame, *_, info = env.step(told)
        np.testing.assert_array_equal(frames[1], frame)
        np.testing.assert_array_equal(infos["pose"][1], info["pose"])
    with pytest.raises(ValueError, match="action must be a dict of forward"):
        env.step({"forward": 2})
    with pytest.raises(ValueError, match="action must be a dict"):
        env.step(1)
    env.step({"forward": 1})  # keys left out are not held
    env.close()
    vec.close()


@needs_node
def test_a_saved_world_is_read_as_it_is(tmp_path: Path) -> None:
    modules = {**os.environ, "NODE_PATH": str(data_folder() / "node_modules")}
    script = str(Path(__file__).with_name("save_world.js"))
    subprocess.run([find_node(), script, str(tmp_path), "1.16.5"], env=modules, check=True, timeout=120, capture_output=True)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    env = MinecraftEnv("free", "prismarine", world=str(tmp_path))
    _, info = env.reset(seed=0)
    np.testing.assert_allclose(info["pose"][:3], [2.5, -3.5, 11])  # the save's spawn point
    pillar = env.solid((5, 2, 9), (6, 3, 16))[0, 0]
    assert pillar.tolist() == [False, True, True, True, True, False, False]  # stone at 10, gold at 11 to 13
    frame, _ = env.reset(seed=0, options={"start": [2.5, 2.5, 11, 0, 0]})  # looking at it
    gold = frame[16:48, 28:36].astype(int)
    assert (gold[..., 0] - gold[..., 2]).mean() > 60
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    env.close()
    with pytest.raises(ValueError, match="holds no saved world"):
        MinecraftEnv("free", "prismarine", world=str(Path(__file__).parent)).reset(seed=0)
