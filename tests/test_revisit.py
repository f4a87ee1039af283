"""Task `revisit` in dreams: the goal is the first view of the opening, in single and vector envs, in states and branches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from standins import StandInWorld, assert_same, clip

import wmgym

SIZE, FORWARD = 16, 1


def dream(**keywords: Any) -> Any:
    given = {"task": "revisit", "setting": "minecraft", "twin": "Minecraft-v0", **keywords}
    return wmgym.make_env(StandInWorld(SIZE), **given)


def away(x: float = 0.0) -> dict[str, np.ndarray]:
    """An opening that leads 4 blocks along +x."""
    return clip(9, SIZE, x)


def test_a_dream_and_its_twin_begin_alike_with_one_goal() -> None:
    imagined, truth = wmgym.twin("WorldPack-Minecraft-v0", task="revisit", denoise_steps=1)
    for seed in (3, None):
        (seen, info), (real, real_info) = imagined.reset(seed=seed), truth.reset(seed=seed)
        assert_same(seen, real)
        for key in ("pose", "goal", "goal_distance"):
            np.testing.assert_array_equal(info[key], real_info[key])
        assert 3 <= info["goal_distance"] <= 8
        assert imagined.unwrapped.save_state().state.world.times.item() == 60  # the whole walk was seen
    assert truth.unwrapped.horizon == imagined.unwrapped.horizon == 100
    for env in (imagined, truth):
        env.close()


def test_the_first_view_of_a_given_opening_is_the_goal_until_it_is_seen_again() -> None:
    env, opening = dream(), away()
    seen, info = env.reset(seed=0, options={"opening": opening})
    np.testing.assert_array_equal(seen["goal"], opening["frames"][0])
    np.testing.assert_array_equal(info["goal"], opening["poses"][0])
    ended, steps = False, 0
    while not ended:
        seen, reward, ended, _, info = env.step(2)  # back, by 0.86 blocks, looking as at the start
        np.testing.assert_array_equal(seen["goal"], opening["frames"][0])
        steps += 1
    assert steps == 3 and info["goal_distance"] <= 2 and reward == pytest.approx(100.86, abs=0.01)


def test_lanes_states_and_branches_keep_their_goals() -> None:
    lanes, one, other = dream(num_envs=2, autoreset_mode="disabled"), dream(), dream()
    openings = [away(), away(7.0)]
    seen, _ = lanes.reset(seed=4, options={"opening": openings})
    alone, _ = one.reset(seed=5, options={"opening": openings[1]})
    np.testing.assert_array_equal(seen["goal"], np.stack([each["frames"][0] for each in openings]))
    np.testing.assert_array_equal(seen["goal"][1], alone["goal"])
    other.load_state(one.save_state())
    branches = lanes.branch(2)
    stepped, rewards, *_ = branches.step(np.full(4, FORWARD))
    np.testing.assert_array_equal(stepped["goal"], seen["goal"].repeat(2, 0))
    here, there = one.step(FORWARD), other.step(FORWARD)
    assert_same(here, there)
    assert rewards[3] == pytest.approx(here[1])
    tensors = dream(num_envs=2, obs_type="torch").reset(seed=4, options={"opening": openings})[0]
    assert isinstance(tensors["goal"], torch.Tensor) and tensors["goal"].dtype == torch.uint8


def test_openings_and_goals_that_do_not_fit_are_refused() -> None:
    env = dream()
    with pytest.raises(ValueError, match=r"leads 3 to 8 blocks away, this one leads 1\.0"):
        env.reset(options={"opening": clip(3, SIZE)})
    with pytest.raises(ValueError, match="is the first view of the opening"):
        env.reset(options={"opening": away(), "goal": [1.0, 2.0]})
