"""Whatever is given to `reset` and `step`, nothing but documented errors is raised, and an error leaves the env as it was.

Dreams run on tiny weights. `make test` tries few sequences of calls per id, `make test-slow` many.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mazes import needs_maze
from standins import assert_same, clip
from tiny import CONFIG

from wmgym import tree
from wmgym.checkpoint import save
from wmgym.kinematics import Displacement
from wmgym.systems.worldpack import build

DOCUMENTED = (ValueError, TypeError, gym.error.Error)  # ResetNeeded is a gym.error.Error
IDS = [
    "Minecraft-v0", "MemoryCards-v0", pytest.param("MemoryMaze-9x9-v0", marks=needs_maze),
    pytest.param("MemoryMaze-11x11-ExtraObs-v0", marks=needs_maze), "WorldPack-Minecraft-v0", "NWM-Minecraft-v0",
    "WorldPack-MemoryMaze-v0", "WorldPack-Recon-v0",
]  # fmt: skip
FEW, MANY = 6, 250  # sequences of up to 8 calls per test: some 200 and 10,000 calls in all

# -- what is given ----------------------------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.integers(-3, 12), st.floats(), st.booleans(), st.integers(), st.complex_numbers())
DTYPES = st.sampled_from([np.int64, np.uint8, np.float32, np.float64, np.bool_, np.complex64, np.dtype("<U3"), object, np.float16])
ARRAYS = st.builds(
    lambda shape, dtype, value: np.full(shape, value % 9).astype(dtype),
    st.lists(st.integers(0, 4), max_size=4),
    DTYPES,
    st.integers(-3, 300),
)
TENSORS = st.builds(
    lambda shape, dtype, value: torch.full(shape, value % 9).to(dtype), st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.int64, torch.float32, torch.bfloat16, torch.bool, torch.complex64]), st.integers(-3, 300),
)  # fmt: skip
LEAVES = st.one_of(NUMBERS, st.none(), st.text(max_size=3), st.binary(max_size=3), ARRAYS, TENSORS)
THINGS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6
)
ACTIONS = st.one_of(st.integers(0, 5), st.integers(0, 5), THINGS)  # most are good, so that episodes go on
POSES = st.lists(st.floats(width=32), min_size=0, max_size=6) | st.builds(
    lambda x, y: [x, y, 64.0, 0.0, 0.0], st.floats(-9, 9), st.floats(-9, 9)
)
CLIPS = st.fixed_dictionaries({}, optional={"frames": THINGS, "actions": THINGS, "poses": THINGS | POSES}) | st.builds(
    clip, st.integers(0, 3)
)
OPTIONS = (
    st.none()
    | THINGS
    | st.fixed_dictionaries(
        {}, optional={"start": THINGS | POSES, "goal": THINGS | POSES, "opening": THINGS | CLIPS, "reset_mask": THINGS, "speed": THINGS}
    )
)
SEEDS = st.none() | st.integers(0, 3) | st.integers(-1, 2**70)
CALLS = st.lists(st.tuples(st.just("step"), ACTIONS) | st.tuples(st.just("reset"), st.tuples(SEEDS, OPTIONS)), min_size=1, max_size=8)


# -- to what --------------------------------------------------------------------------------------------------------------------------


def keywords_of(id: str, folder: Path) -> dict[str, Any]:
    """What makes an id small."""
    if "twin" not in gym.spec(id).kwargs:
        return {"horizon": 5}
    config, opening = CONFIG, clip()
    if "MemoryMaze" in id:
        config = replace(CONFIG, setting="memory_maze", net=replace(CONFIG.net, num_actions=6))
    if "Recon" in id:
        moves = Displacement(spacing=0.25, rate=4)
        config = replace(CONFIG, setting="recon", displacement=moves, net=replace(CONFIG.net, num_actions=0, action_size=3))
        opening = {**opening, "actions": np.zeros((len(opening["frames"]), 3), np.float32)}
    path = folder / f"{config.setting}.safetensors"
    if not path.is_file():
        torch.manual_seed(0)
        save(path, build(config).eval(), config)
    data = {"data": str(folder / "nothing")} if "Recon" in id else {}
    return {"checkpoint": str(path), "device": "cpu", "opening": opening, "horizon": 5, **data}


def attack(env: Any, calls: list[tuple[str, Any]], observe: Callable[[Any], bool]) -> None:
    """Make the calls; what they raise must be documented and change nothing."""
    for name, given_ in calls:
        before = state_of(env)
        call = partial(env.step, given_) if name == "step" else partial(env.reset, seed=given_[0], options=given_[1])
        seen, error = outcome(call)
        if error is None:
            assert observe(seen[0])
        else:
            assert str(error).strip(), f"{error!r} says nothing"
            assert_same(state_of(env), before)


def outcome(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return call(), None
    except DOCUMENTED as error:
        return None, error


def state_of(env: Any) -> dict[str, Any]:
    """All that the future depends on, flat; empty before the first reset."""
    try:
        return tree.leaves(env.save_state())
    except gym.error.ResetNeeded:
        return {}


def fuzzed(id: str, folder: Path, examples: int, lanes: int | None) -> None:
    made = gym.make(id, **keywords_of(id, folder)).unwrapped if lanes is None else gym.make_vec(id, lanes, **keywords_of(id, folder))
    try:

        @settings(max_examples=examples, suppress_health_check=list(HealthCheck), database=None)
        @given(CALLS)
        def run(calls: list[tuple[str, Any]]) -> None:
            attack(made, calls, made.observation_space.contains)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run()
    finally:
        made.close()


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("id", IDS)
def test_a_single_env_raises_nothing_but_documented_errors(id: str, examples: int, tmp_path: Path) -> None:
    fuzzed(id, tmp_path, examples, None)


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("id", ["Minecraft-v0", "MemoryCards-v0", "WorldPack-Minecraft-v0"])
def test_lanes_raise_nothing_but_documented_errors(id: str, examples: int, tmp_path: Path) -> None:
    fuzzed(id, tmp_path, examples, 2)
