"""Lane i of the vector env is the single env of seed + i, bit for bit, whatever ends and is reset on the way."""

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from wmgym.envs.minecraft import MinecraftEnv, MinecraftVectorEnv

LANES, HORIZON, SIZE = 3, 4, 24
ACTIONS = np.random.default_rng(1).integers(0, 10, (11, LANES))


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, types included."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and one == other


def lane_of(batch: Any, lane: int) -> Any:
    """One lane of a batched observation or info, as a single env would give it."""
    if not isinstance(batch, dict):
        return batch[lane]
    keys = [key for key in batch if f"_{key}" not in batch or batch[f"_{key}"][lane]]
    row = {key: lane_of(batch[key], lane) for key in keys if not key.startswith("_")}
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in row.items()}


@pytest.fixture
def envs() -> MinecraftVectorEnv:
    return MinecraftVectorEnv(LANES, size=SIZE, horizon=HORIZON)


@pytest.fixture(scope="module")
def episodes() -> list[list[tuple]]:
    """What single envs give when they are reset after each end: per lane, (observation, reward, terminated, truncated, info)."""
    lanes = []
    for lane in range(LANES):
        env = MinecraftEnv(size=SIZE, horizon=HORIZON)
        told = [(*env.reset(seed=5 + lane), None)]
        for action in ACTIONS[:, lane]:
            told.append(env.step(action))
            if told[-1][2] or told[-1][3]:
                told.append((*env.reset(), None))
        lanes.append(told)
    return lanes


@pytest.mark.parametrize("mode", ["next_step", "same_step", AutoresetMode.DISABLED])
def test_each_lane_is_the_single_env_across_resets(mode: Any, episodes: list[list[tuple]]) -> None:
    vec = MinecraftVectorEnv(LANES, size=SIZE, horizon=HORIZON, autoreset_mode=mode)
    observation, info = vec.reset(seed=5)
    expected = [iter(lane) for lane in episodes]
    for lane in range(LANES):
        first = next(expected[lane])
        assert same(lane_of(observation, lane), first[0]) and same(lane_of(info, lane), first[1])
    ended, taken = np.zeros(LANES, bool), np.zeros(LANES, int)
    for _ in range(10):
        if mode is AutoresetMode.DISABLED and ended.any():
            observation, info = vec.reset(options={"reset_mask": ended})
            for lane in np.flatnonzero(ended):
                told = next(expected[lane])
                assert same(lane_of(observation, lane), told[0]) and same(lane_of(info, lane), told[1])
            ended[:] = False
        actions = ACTIONS[taken, np.arange(LANES)]
        observation, reward, terminated, truncated, info = vec.step(actions)
        for lane in range(LANES):
            told = next(expected[lane])
            if mode == "next_step" and ended[lane]:  # this step was the reset
                assert (reward[lane], terminated[lane], truncated[lane]) == (0, False, False)
                assert same(lane_of(observation, lane), told[0]) and same(lane_of(info, lane), told[1])
                continue
            taken[lane] += 1
            assert (reward[lane], terminated[lane], truncated[lane]) == told[1:4]
            if mode == "same_step" and (told[2] or told[3]):
                assert same(info["final_obs"][lane], told[0]) and same(lane_of(info["final_info"], lane), told[4])
                told = next(expected[lane])
                assert same(lane_of(observation, lane), told[0])
                assert same({key: value for key, value in lane_of(info, lane).items() if not key.startswith("final")}, told[1])
            else:
                assert same(lane_of(observation, lane), told[0]) and same(lane_of(info, lane), told[4])
        ended = terminated | truncated
    assert (taken > HORIZON).all()
