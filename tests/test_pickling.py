"""A running env survives `pickle` and `copy.deepcopy`: both copies go on as the original does, bit for bit, across a reset."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from mazes import needs_maze
from standins import assert_same
from tiny import tiny_checkpoint

from wmgym.registration import TABLE

MAZES = [pytest.param(row.id, marks=needs_maze) for row in TABLE if row.id in ("MemoryMaze-9x9-v0", "MemoryMaze-11x11-ExtraObs-v0")]
COPIES: dict[str, Callable[[Any], Any]] = {"pickle": lambda env: pickle.loads(pickle.dumps(env)), "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("id", ["Minecraft-v0", "MemoryCards-v0", "WorldPack-Minecraft-v0", *MAZES])
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_running_env_goes_on_as_it_does(id: str, how: str, tmp_path: Path) -> None:
    keywords = {"checkpoint": tiny_checkpoint(tmp_path), "device": "cpu"} if "WorldPack" in id else {}
    env = gym.make(id, horizon=4, render_mode="rgb_array", **keywords)
    env.reset(seed=5)
    env.step(1)
    other = COPIES[how](env)
    assert other.spec == env.spec and other.unwrapped is not env.unwrapped
    assert_same(other.render(), env.render())
    for action in (1, 2, 1):
        assert_same(other.step(action), env.step(action))
    assert_same(other.reset(), env.reset())  # the generator goes on too
    for each in (env, other):
        each.close()


@pytest.mark.parametrize("id", MAZES)
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_made_before_the_first_reset_can_be_reset(id: str, how: str) -> None:
    env = gym.make(id)
    other = COPIES[how](env)
    assert_same(other.reset(seed=1), env.reset(seed=1))
