"""The shells round the real world model (untrained, tiny): its memories branch, reset and travel as the stand-in's do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from standins import TRUTH, StandInWorld, assert_same, clip
from tiny import tiny_checkpoint

import wmgym
from wmgym.systems import worldpack
from wmgym.world_model import WorldModel

KEYWORDS = {"setting": "minecraft", "task": "navigate", "twin": TRUTH, "horizon": 3}


@pytest.fixture(scope="module", params=["none", "worldpack"])
def world(request: pytest.FixtureRequest) -> WorldModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = worldpack.build(worldpack.WorldPackConfig(memory=request.param)).eval()
        for weight in model.parameters():
            if not weight.detach().any():  # gates that begin at zero would hide the memory
                torch.nn.init.normal_(weight, std=0.02)
    return model


def test_lanes_dream_what_single_envs_dream_across_resets(world: WorldModel) -> None:
    vec: Any = wmgym.make_env(world, num_envs=2, **KEYWORDS)
    envs: list[Any] = [wmgym.make_env(world, **KEYWORDS) for _ in range(2)]
    vec.reset(seed=5)
    for lane, env in enumerate(envs):
        env.reset(seed=5 + lane)
    over = np.zeros(2, bool)
    for actions in ([6, 1], [7, 1], [1, 7], [0, 0], [1, 6], [2, 3]):
        seen, _, terminated, truncated, info = vec.step(actions)
        for lane, env in enumerate(envs):
            alone, alone_info = env.reset() if over[lane] else env.step(actions[lane])[::4]
            assert np.abs(seen["pov"][lane].astype(int) - alone["pov"]).max() <= 1
            np.testing.assert_allclose(info["pose"][lane], alone_info["pose"], atol=1e-4)
            np.testing.assert_array_equal(info["memory_retrieved"][lane], alone_info["memory_retrieved"])
            np.testing.assert_array_equal(info["memory_bytes"][lane], alone_info["memory_bytes"])
        over = terminated | truncated
    assert truncated.shape == (2,)


def test_a_state_from_disk_and_a_branch_go_on_as_the_env_does(world: WorldModel, tmp_path: Path) -> None:
    env: Any = wmgym.make_env(world, **KEYWORDS)
    other: Any = wmgym.make_env(world, **KEYWORDS)
    env.reset(seed=1)
    other.reset(seed=2)
    env.step(6)
    wmgym.save_state_file(env.save_state(), tmp_path / "state")
    branches = env.branch(2)
    expected = env.step(1)
    other.load_state(wmgym.load_state_file(tmp_path / "state", other))
    assert_same(other.step(1), expected)
    futures = branches.step([1, 1])
    for lane in range(2):
        assert np.abs(futures[0]["pov"][lane].astype(int) - expected[0]["pov"]).max() <= 1


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({"memory": "none"}, "memory is 'none' there and 'worldpack' here"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16' there and 'float32' here"),
        ({"memory_budget": 100}, 'settings is .*"budget": 100.* there and .*"budget": 512.* here'),
        ({"denoise_steps": 2}, 'settings is .*"denoise_steps": 2.* there and .*"denoise_steps": 1.* here'),
        ({"checkpoint": "other"}, "weights is '[0-9a-f]{64}' there and '[0-9a-f]{64}' here"),
    ],
)
def test_a_state_of_other_weights_memory_or_numbers_is_refused(there: dict[str, Any], message: str, tmp_path: Path) -> None:
    files = {}
    for seed, name in enumerate(("own", "other")):
        (tmp_path / name).mkdir()
        files[name] = tiny_checkpoint(tmp_path / name, seed=seed)

    def opened(checkpoint: str = "own", **keywords: Any) -> Any:
        given = {"memory": "worldpack", "dtype": "float32", "device": "cpu", "opening": clip(), **keywords}
        env = gym.make("WorldPack-Minecraft-v0", checkpoint=files[checkpoint], **given).unwrapped
        env.reset(seed=1)
        return env

    theirs, ours, same = opened(**there), opened(), opened()
    with pytest.raises(ValueError, match=message):
        ours.load_state(theirs.save_state())
    ours.load_state(same.save_state())


@pytest.mark.parametrize(("task", "earned"), [("targets", 10.0), ("free", 0.0)])
def test_what_the_world_itself_gives_counts_only_where_the_task_says_so(task: str, earned: float) -> None:
    """A maze's task "free" pays nothing in its truth, so its dream must not pay what a reward head sees."""
    env: Any = wmgym.make_env(StandInWorld(size=64, ends_at=65), setting="memory_maze", task=task, opening="bundled")
    env.reset(seed=0)
    outcomes = [env.step(0) for _ in range(2)]
    assert [outcome[1] for outcome in outcomes] == [0.0, earned] and outcomes[-1][2] == bool(earned)
