"""The ground truth `Minecraft-v0` keeps its contract."""

import math

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from wmgym.envs.minecraft import MinecraftEnv
from wmgym.envs.minecraft.voxel import physics, world

FORWARD, STRAFE_LEFT, FORWARD_JUMP, TURN_LEFT = 1, 3, 5, 6


def flat_world() -> np.ndarray:
    """Stone up to height 10, and to 11 from x = 20 on."""
    grid = np.zeros((64, 64, 64), np.uint8)
    grid[:, :, :10] = grid[20:, :, 10] = 2
    world.distance(grid, world.FAR, True)
    return grid


@pytest.mark.filterwarnings("ignore:.*spec.*")
@pytest.mark.parametrize("task", ["navigate", "free"])
def test_gymnasium_accepts_it(task):
    check_env(MinecraftEnv(task=task, render_mode="rgb_array"))


def test_one_step_walks_what_minecraft_walks_in_a_fifth_of_a_second():
    grid = flat_world()
    for action, (dx, dy) in {FORWARD: (1, 0), STRAFE_LEFT: (0, 1)}.items():
        body = physics.body_at(np.array([5.5, 30.5, 10, 0, 0]))
        physics.step(grid, body, action)
        assert body[:3] - (5.5, 30.5, 10) == pytest.approx((0.8634 * dx, 0.8634 * dy, 0), abs=1e-9)


@pytest.mark.parametrize("gap", np.arange(0.0, 1.6, 0.1))
def test_two_steps_of_forward_and_jump_climb_a_block(gap):
    grid, body = flat_world(), physics.body_at(np.array([19.6999 - gap, 30.5, 10, 0, 0]))
    for action in (FORWARD_JUMP, FORWARD_JUMP, 0, 0, 0):
        physics.step(grid, body, action)
    assert body[2] == 11


def test_turning_left_increases_yaw():
    env = MinecraftEnv(task="free")
    before = env.reset(seed=0)[1]["pose"]
    after = env.step(TURN_LEFT)[-1]["pose"]
    assert (after[3] - before[3]) % (2 * math.pi) == pytest.approx(math.radians(15), abs=1e-6)


def test_a_seed_repeats_and_a_saved_state_continues_bit_for_bit():
    one, two = MinecraftEnv(), MinecraftEnv()
    one.reset(seed=5), two.reset(seed=5)
    actions = np.random.default_rng(0).integers(0, 10, 30)
    for action in actions[:10]:
        one.step(action)
    two.load_state(one.save_state())
    for action in actions[10:]:
        (a, *rest_a, info_a), (b, *rest_b, info_b) = one.step(action), two.step(action)
        assert np.array_equal(a["pov"], b["pov"]) and np.array_equal(a["compass"], b["compass"])
        assert rest_a == rest_b and np.array_equal(info_a["pose"], info_b["pose"])
    assert np.array_equal(one.reset()[0]["pov"], two.reset()[0]["pov"])
