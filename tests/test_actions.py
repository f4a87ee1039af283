"""Truths and dreams, single and vector, accept and refuse the same actions; no step follows the end of an episode."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from mazes import needs_maze
from standins import assert_same
from tiny import tiny_checkpoint

from wmgym.vectors import check_actions

MAZES = [pytest.param(id, marks=needs_maze) for id in ("MemoryMaze-9x9-v0", "MemoryMaze-11x11-ExtraObs-v0")]
KINDS = ["Minecraft-v0", "MemoryCards-v0", MAZES[0], "WorldPack-Minecraft-v0"]
ALLOWED: list[Callable[[Any], Any]] = [int, np.int8, np.uint64, np.array, torch.tensor, lambda a: torch.tensor(a, dtype=torch.int16)]
REFUSED: list[tuple[Any, str]] = [
    (True, "got True"),
    (np.bool_(True), "got np.True_"),
    (np.array(True), re.escape("got array(True)")),
    (torch.tensor(True), re.escape("got tensor(True)")),
    (1.0, "got 1.0"),
    (np.float32(1), re.escape("got np.float32(1.0)")),
    (torch.tensor(1.0), re.escape("got tensor(1.)")),
    (np.nan, "got nan"),
    (None, "got None"),
    ("forward", "got 'forward'"),
    ({"action": 1}, "got {'action': 1}"),
    ([[1], [1, 2]], re.escape("got [[1], [1, 2]]")),
    (10**30, "got 1000"),
    (-1, "got -1"),
    (99, "got 99"),
    ([1], re.escape("shape [] (Discrete(") + r"\d+" + re.escape(")), got [1]")),
    (np.ones(1, int), re.escape("got [1]")),
    (torch.ones(1, dtype=torch.int64), re.escape("got [1]")),
    (np.ones((1, 1), int), re.escape("got [1, 1]")),
    ([], re.escape("got []")),
]


@pytest.fixture
def keywords(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    return lambda id: {"checkpoint": tiny_checkpoint(tmp_path), "device": "cpu"} if "WorldPack" in id else {}


@pytest.mark.parametrize("id", KINDS)
def test_one_action_is_understood_in_every_form_of_a_number(id: str, keywords: Any) -> None:
    shown = []
    for form in ALLOWED:
        env = gym.make(id, **keywords(id)).unwrapped
        env.reset(seed=0)
        shown.append(env.step(form(1)))
        env.close()
    for other in shown[1:]:
        assert_same(other, shown[0])


@pytest.mark.parametrize("id", KINDS)
def test_what_is_not_an_action_is_named_and_nothing_moves(id: str, keywords: Any) -> None:
    env, untouched = (gym.make(id, **keywords(id)).unwrapped for _ in range(2))
    for each in (env, untouched):
        each.reset(seed=0)
    for action, said in REFUSED:
        with pytest.raises(ValueError, match=rf"^action must.*{said}"):
            env.step(action)
    assert_same(env.step(1), untouched.step(1))
    for each in (env, untouched):
        each.close()


@pytest.mark.parametrize("id", KINDS)
def test_lanes_take_the_same_forms_and_refuse_the_same(id: str, keywords: Any) -> None:
    env, untouched = (gym.make_vec(id, num_envs=2, **keywords(id)) for _ in range(2))
    for each in (env, untouched):
        each.reset(seed=0)
    for action, _ in REFUSED:
        for each in (action, [action, action]):
            with pytest.raises(ValueError, match=r"^actions must (be integers from 0 to \d+, got|have the shape \[2\] \(Discrete)"):
                env.step(each)
    with pytest.raises(ValueError, match=re.escape("in each lane), got [2, 1]")):
        env.step(np.ones((2, 1), int))
    for form in (list, tuple, np.array, torch.tensor, lambda pair: [torch.tensor(each) for each in pair], lambda pair: np.uint8(pair)):
        assert_same(env.step(form([1, 2])), untouched.step([1, 2]))
    for each in (env, untouched):
        each.close()


@pytest.mark.parametrize("lanes", [None, 2])
def test_numbers_in_a_box(lanes: int | None) -> None:
    space = spaces.Box(-1, 1, (3,), np.float32)
    shape = (3,) if lanes is None else (lanes, 3)
    good = np.full(shape, 0.5)
    tensor = torch.tensor(good)
    for form in (good, good.astype(np.float16), good.tolist(), tensor, tensor.clone().requires_grad_(), tensor.bfloat16()):
        checked = check_actions(form, space, lanes)
        assert checked.dtype == np.float32 and np.array_equal(checked, good)
    assert np.array_equal(check_actions(np.ones(shape, int), space, lanes), np.ones(shape))
    word = "action" if lanes is None else "actions"
    for bad in (good > 0, good * 3, good * np.nan, good * 1e300, good + 1j, "far", None):
        with pytest.raises(ValueError, match=f"^{word} must (lie|be)"):
            check_actions(bad, space, lanes)
    with pytest.raises(ValueError, match=re.escape(f"{word} must have the shape {list(shape)} ({space}") + r".*, got \[1, ") as _:
        check_actions(good[None], space, lanes)


def test_chunks_of_integers() -> None:
    space = spaces.MultiDiscrete([4, 4, 4])
    for form in ([0, 1, 3], torch.tensor([0, 1, 3]), np.array([0, 1, 3], np.uint8)):
        assert check_actions(form, space).tolist() == [0, 1, 3]
    for bad, said in (([0, 1, 4], "integers in MultiDiscrete"), (1, r"shape \[3\].*, got \[\]"), ([0.0, 1, 2], "integers in")):
        with pytest.raises(ValueError, match=said):
            check_actions(bad, space)


@pytest.mark.parametrize("id", ["Minecraft-v0", "MemoryCards-v0", *MAZES, "WorldPack-Minecraft-v0"])
def test_a_step_after_the_end_needs_a_reset(id: str, keywords: Any) -> None:
    env = gym.make(id, horizon=2, **keywords(id)).unwrapped
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    assert not any(env.step(0)[2:4]) and env.step(0)[3]
    for _ in range(2):
        with pytest.raises(ResetNeeded, match="the episode is over"):
            env.step(0)
    env.reset()
    env.step(0)
    env.close()
