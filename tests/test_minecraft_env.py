"""The ground truth `Minecraft-v0` keeps its contract: its physics, its pictures, its tasks, its state."""

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from wmgym import tasks
from wmgym.envs.minecraft import MinecraftEnv, way_out
from wmgym.envs.minecraft.vector_env import MinecraftVectorEnv
from wmgym.envs.minecraft.voxel import engine, physics, render, world
from wmgym.envs.minecraft.voxel.blocks import NUMBER, WATER

NOOP, FORWARD, BACK, STRAFE_LEFT, STRAFE_RIGHT, FORWARD_JUMP, TURN_LEFT, TURN_RIGHT, LOOK_UP, LOOK_DOWN = range(10)
STONE, RED, BLUE = NUMBER["stone"], NUMBER["red"], NUMBER["blue"]


def flat_world() -> np.ndarray:
    """Stone up to height 10, and to 11 from x = 20 on."""
    grid = np.zeros((64, 64, 64), np.uint8)
    grid[:, :, :10] = grid[20:, :, 10] = 2
    world.distance(grid, world.FAR, True)
    return grid


def body_in(blocks: np.ndarray, pose: tuple[float, ...]) -> engine.VoxelBackend:
    """An engine in a world of these blocks, 0 for air, in even light."""
    grid, above = blocks.copy(), blocks.copy()
    world.distance(grid, world.FAR, True)
    world.distance(above, world.FAR, False)
    made = world.VoxelWorld(-1, grid, above, np.full_like(grid, 255), np.zeros((0, 3), np.int32), np.ones(grid.shape[:2], bool))
    body = engine.VoxelBackend(physics.body_at(np.array(pose)))
    body._world = made
    return body


@pytest.fixture(scope="module")
def free() -> MinecraftEnv:
    return MinecraftEnv(task="free")


@pytest.fixture(scope="module")
def navigate() -> MinecraftEnv:
    return MinecraftEnv()


# ---- Gymnasium and Stable-Baselines3 ----


@pytest.mark.filterwarnings("ignore:.*spec.*")
@pytest.mark.parametrize("task", ["navigate", "revisit", "free"])
def test_gymnasium_accepts_it(task: str) -> None:
    check_env(MinecraftEnv(task=task, render_mode="rgb_array"))


@pytest.mark.parametrize("task", ["navigate", "revisit", "free"])
def test_stable_baselines_accepts_it(task: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(MinecraftEnv(task=task), warn=True)


# ---- physics ----


def test_one_step_walks_what_minecraft_walks_in_a_fifth_of_a_second() -> None:
    grid = flat_world()
    for action, (dx, dy) in {FORWARD: (1, 0), BACK: (-1, 0), STRAFE_LEFT: (0, 1), STRAFE_RIGHT: (0, -1)}.items():
        body = physics.body_at(np.array([5.5, 30.5, 10, 0, 0]))
        physics.step(grid, body, action)
        assert body[:3] - (5.5, 30.5, 10) == pytest.approx((0.8634 * dx, 0.8634 * dy, 0), abs=1e-9)


@pytest.mark.parametrize("gap", np.arange(0.0, 1.6, 0.1))
def test_two_steps_of_forward_and_jump_climb_a_block(gap: float) -> None:
    grid, body = flat_world(), physics.body_at(np.array([19.6999 - gap, 30.5, 10, 0, 0]))
    for action in (FORWARD_JUMP, FORWARD_JUMP, NOOP, NOOP, NOOP):
        physics.step(grid, body, action)
    assert body[2] == 11


def test_a_jump_lifts_the_feet_as_high_as_in_minecraft() -> None:
    grid, body = flat_world(), physics.body_at(np.array([5.5, 30.5, 10, 0, 0]))
    heights = []
    for tick in range(20):
        physics._tick(grid, body, 0.0, 0.0, tick == 0)
        heights.append(body[2] - 10)
    assert max(heights) == pytest.approx(1.2522, abs=1e-4) and heights[-1] == 0


def test_a_fall_goes_on_from_step_to_step() -> None:
    grid, body = flat_world(), physics.body_at(np.array([5.5, 30.5, 30, 0, 0]))
    height, speed = 30.0, 0.0
    for _ in range(6):
        physics.step(grid, body, NOOP)
        for _ in range(physics.TICKS):
            height, speed = height + speed, (speed - 0.08) * 0.98
        assert body[2] == pytest.approx(height)
    for _ in range(6):
        physics.step(grid, body, NOOP)
    assert body[2] == 10  # and ends on the ground


def test_a_swimmer_gets_out_of_deep_water() -> None:
    blocks = np.zeros((64, 64, 64), np.uint8)
    blocks[:, :, :10] = STONE
    blocks[10:20, 20:40, 4:10] = WATER
    body = body_in(blocks, (15.5, 30.5, 5, 0, 0))
    for _ in range(30):
        pose = body.step(FORWARD_JUMP)
    assert pose[0] > 20.3 and pose[2] >= 10


def test_no_body_is_ever_in_a_block() -> None:
    lanes = engine.VoxelLanes(16)
    for lane, body in enumerate(lanes.engines):
        body.reset(lane % 2, None)
    rng = np.random.default_rng(3)
    for _ in range(150):
        poses = lanes.step(rng.choice(10, 16, p=[0.02, 0.3, 0.05, 0.08, 0.08, 0.27, 0.1, 0.1, 0, 0]))
        for body, pose in zip(lanes.engines, poses):
            assert not physics.blocked(body.world.grid, float(pose[0]), float(pose[1]), float(pose[2]))


def test_looking_up_and_down_ends_at_the_poles(free: MinecraftEnv) -> None:
    free.reset(seed=0)
    up = [free.step(LOOK_UP)[-1]["pose"][4] for _ in range(8)]
    assert up[:6] == pytest.approx([math.radians(15 * n) for n in range(1, 7)], abs=1e-6)
    assert up[6:] == pytest.approx([math.pi / 2] * 2)
    down = [free.step(LOOK_DOWN)[-1]["pose"][4] for _ in range(14)]
    assert down[-2:] == pytest.approx([-math.pi / 2] * 2)


def test_yaw_grows_to_the_left_and_stays_in_its_interval(free: MinecraftEnv) -> None:
    before = float(free.reset(seed=0)[1]["pose"][3])
    for turns in range(1, 25):
        yaw = free.step(TURN_LEFT)[-1]["pose"][3]
        assert -np.float32(math.pi) <= yaw < np.float32(math.pi)
        assert math.remainder(float(yaw) - before - turns * math.radians(15), 2 * math.pi) == pytest.approx(0, abs=1e-5)


# ---- pictures ----


def reddish(frame: np.ndarray) -> np.ndarray:
    return (frame[..., 0] > 90) & (frame[..., 1] < 80) & (frame[..., 2] < 80)


def bluish(frame: np.ndarray) -> np.ndarray:
    return (frame[..., 2] > 80) & (frame[..., 0] < 70) & (frame[..., 1] < 80)


@pytest.mark.parametrize(("distance", "height", "width"), [(4.0, 64, 64), (7.5, 64, 64), (9.25, 90, 160)])
def test_a_wall_is_seen_where_geometry_puts_it(distance: float, height: int, width: int) -> None:
    blocks = np.zeros((64, 64, 64), np.uint8)
    blocks[:, :, :10] = STONE
    blocks[30, 29:34, 10:13] = RED  # 5 wide, 3 high; its right edge is at y = 29, its left one at y = 34
    frame = body_in(blocks, (30 - distance, 31.25, 10, 0, 0)).render(height, width)
    seen = reddish(frame)
    focus = height / 2 / math.tan(render.FIELD_OF_VIEW / 2)  # pixels per unit of slope
    top, bottom = (height / 2 - focus * (z - 10 - physics.EYES) / distance for z in (13, 10))
    left, right = (width / 2 + focus * (31.25 - y) / distance for y in (34, 29))
    middle_of = np.arange(max(height, width)) + 0.5
    rows, columns = (middle_of > top) & (middle_of < bottom), (middle_of > left) & (middle_of < right)
    assert np.array_equal(seen.any(1), rows[:height]) and np.array_equal(seen.any(0), columns[:width])
    assert seen.sum() == rows[:height].sum() * columns[:width].sum()


def test_left_is_left_and_up_is_up() -> None:
    """Yaw 0 looks along +x with +y to the left; turning left moves the picture to the right, looking up moves it down."""
    blocks = np.zeros((64, 64, 64), np.uint8)
    blocks[:, :, :10] = STONE
    blocks[30, 33, 11], blocks[30, 29, 11] = RED, BLUE
    body = body_in(blocks, (24.5, 31.5, 10, 0, 0))

    def centre(of: Any) -> np.ndarray:
        return np.argwhere(of(body.render(64, 64))).mean(0)

    red, blue = centre(reddish), centre(bluish)
    assert red[1] < 31.5 < blue[1]
    body.step(TURN_LEFT)
    assert centre(reddish)[1] > red[1] + 5
    body.step(TURN_RIGHT)
    body.step(LOOK_UP)
    assert centre(reddish)[0] > red[0] + 5


# ---- tasks ----


def test_the_compass_is_the_bearing_of_the_goal_minus_yaw(navigate: MinecraftEnv) -> None:
    observation, info = navigate.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(10):
        x, y, _, yaw, _ = info["pose"]
        bearing = math.atan2(info["goal"][1] - y, info["goal"][0] - x) - yaw
        assert observation["compass"] == pytest.approx([math.cos(bearing), math.sin(bearing)], abs=1e-5)
        observation, *_, info = navigate.step(rng.integers(10))


def test_rewards_add_up_to_the_way_gained(navigate: MinecraftEnv) -> None:
    _, info = navigate.reset(seed=0)
    begun, total = info["goal_distance"], 0.0
    rng = np.random.default_rng(1)
    for _ in range(20):
        _, reward, terminated, _, info = navigate.step(rng.integers(6))
        total += reward
        assert not terminated
    assert total == pytest.approx(begun - info["goal_distance"], abs=1e-3) and total != 0


def test_arrival_is_worth_a_hundred_and_ends_the_episode(navigate: MinecraftEnv) -> None:
    x, y = navigate.reset(seed=0)[1]["pose"][:2]
    for distance, arrived in ((1.99, True), (2.01, False)):
        _, info = navigate.reset(seed=0, options={"goal": (x + distance, y)})
        assert info["goal"][2] == info["pose"][2]
        _, reward, terminated, truncated, _ = navigate.step(NOOP)
        assert (terminated, truncated) == (arrived, False) and reward == (100 if arrived else 0)
        with pytest.raises(ResetNeeded, match="the episode is over") if arrived else nullcontext():
            navigate.step(NOOP)
    assert tasks.navigate_arrived(np.zeros(5), np.array([2, 0, 9, 0, 0]))  # height does not count


def test_goals_are_drawn_within_reach(navigate: MinecraftEnv) -> None:
    distances = []
    for _ in range(3):
        _, info = navigate.reset(seed=1) if not distances else navigate.reset(options={"start": None})
        distances.append(info["goal_distance"])
        assert navigate._engine.reachable(*map(float, info["goal"][:2]))
    assert all(8 <= d <= 32 for d in distances) and len(set(distances)) == 3


def test_the_horizon_cuts_an_episode_off() -> None:
    env = MinecraftEnv(task="free", horizon=3)
    env.reset(seed=0)
    assert [env.step(NOOP)[1:4] for _ in range(3)] == [(0.0, False, False), (0.0, False, False), (0.0, False, True)]


# ---- reset ----


def test_a_start_is_taken_as_it_is(navigate: MinecraftEnv) -> None:
    pose = navigate.reset(seed=0)[1]["pose"]
    asked = pose + np.float32([0, 0, 0, 0.1, 0.2])
    _, info = navigate.reset(seed=0, options={"start": asked, "goal": [*pose[:2], 3.0, 0.0, 0.0]})
    assert np.array_equal(info["pose"], asked) and info["goal"].tolist() == [*pose[:2], 3, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin": 1}, "unknown reset option 'begin'"),
        ([1], "options must be a dict"),
        ({"start": [1, 2]}, "start must be a pose of 5 numbers"),
        ({"start": [-1, 2, 30, 0, 0]}, "start must lie within the world"),
        ({"start": [128, 128, 3, 0, 0]}, "room for a body"),
        ({"start": [128, 128, 60, 0, 2]}, "pitch within"),
        ({"start": [128, math.nan, 60, 0, 0]}, "start must be finite"),
        ({"goal": [1, 2, 3]}, "goal must be a pose of 2 or 5 numbers"),
        ({"goal": "there"}, "goal must be a pose"),
        ({"goal": [300, 2]}, "goal must lie within the world"),
    ],
)
def test_a_wrong_option_is_named(navigate: MinecraftEnv, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        navigate.reset(seed=0, options=options)


def test_the_task_free_knows_no_goal(free: MinecraftEnv) -> None:
    with pytest.raises(ValueError, match="belongs to the task 'navigate'"):
        free.reset(options={"goal": (1, 1)})
    assert set(free.reset(seed=0)[1]) == {"pose"}


@pytest.mark.parametrize(
    "keywords",
    [
        {"task": "fly"},
        {"backend": "x"},
        {"size": 4},
        {"size": (64, 64)},
        {"render_size": (9, 9, 9)},
        {"horizon": 0},
        {"render_mode": "human"},
    ],
)
def test_a_wrong_keyword_is_named(keywords: dict[str, Any]) -> None:
    (value,) = keywords.values()
    with pytest.raises(ValueError) as caught:
        MinecraftEnv(**keywords)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("action", [-1, 10, 1.0, "forward"])
def test_a_wrong_action_is_named(free: MinecraftEnv, action: Any) -> None:
    free.reset(seed=0)
    with pytest.raises(ValueError, match="action must be an integer from 0 to 9"):
        free.step(action)


# ---- state ----


def test_a_seed_repeats_and_a_saved_state_continues_bit_for_bit() -> None:
    one, two = MinecraftEnv(horizon=60), MinecraftEnv()
    one.reset(seed=5), two.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 10, 30)
    for action in actions[:10]:
        one.step(action)
    two.load_state(one.save_state())
    for action in actions[10:]:
        (a, *rest_a, info_a), (b, *rest_b, info_b) = one.step(action), two.step(action)
        assert np.array_equal(a["pov"], b["pov"]) and np.array_equal(a["compass"], b["compass"])
        assert rest_a == rest_b and np.array_equal(info_a["pose"], info_b["pose"])
    assert one.np_random_seed == two.np_random_seed == 5 and one.horizon == two.horizon
    assert np.array_equal(one.reset()[0]["pov"], two.reset()[0]["pov"])


def test_a_state_of_something_else_is_refused(navigate: MinecraftEnv, free: MinecraftEnv) -> None:
    navigate.reset(seed=0)
    with pytest.raises(ValueError, match="'navigate'"):
        free.load_state(navigate.save_state())
    with pytest.raises(ValueError, match="what save_state gave"):
        free.load_state({"pose": 1})


def test_branches_are_futures_of_this_moment(navigate: MinecraftEnv) -> None:
    navigate.reset(seed=0)
    navigate.step(FORWARD)
    navigate.horizon = 4
    here = navigate.save_state()
    branches = navigate.branch(3)
    ways = np.array([[FORWARD, TURN_LEFT, FORWARD_JUMP], [BACK, TURN_RIGHT, FORWARD], [NOOP, LOOK_UP, NOOP]])
    seen = [branches.step(actions) for actions in ways.T]
    for lane, way in enumerate(ways):
        navigate.load_state(here)
        for step, action in enumerate(way):
            observation, *rest, info = navigate.step(action)
            there, *rest_there, info_there = seen[step]
            assert np.array_equal(observation["pov"], there["pov"][lane]) and rest == [r[lane] for r in rest_there]
            assert np.array_equal(info["pose"], info_there["pose"][lane])
    assert seen[-1][3].all()  # at their horizon, where they rest
    again = branches.step([FORWARD] * 3)
    assert np.array_equal(again[0]["pov"], seen[-1][0]["pov"]) and again[3].all() and not again[1].any()
    navigate.load_state(here)
    assert [g.bit_generator.state for g in branches.np_random] == [here["np_random"]] * 3
    assert navigate.branch(2, seeds=7).np_random_seed == (7, 8) and navigate.branch(2, seeds=[3, 1]).np_random_seed == (3, 1)
    assert navigate.save_state()["np_random"] == here["np_random"]
    with pytest.raises(ValueError, match="n must be a whole number"):
        navigate.branch(0)
    navigate.horizon = tasks.NAVIGATE_HORIZON


# ---- the task "revisit" ----


def test_an_episode_of_revisit_begins_a_walk_away_from_the_view_that_it_shows() -> None:
    env = MinecraftEnv("revisit", size=16)
    for seed in range(3):
        seen, info = env.reset(seed=seed)
        walked = {name: values.copy() for name, values in env.walked.items()}
        assert 3 <= info["goal_distance"] <= 8 and len(walked["frames"]) == way_out.STEPS + 1
        np.testing.assert_array_equal(seen["goal"], walked["frames"][0])
        np.testing.assert_array_equal(seen["pov"], walked["frames"][-1])
        np.testing.assert_array_equal(info["goal"], walked["poses"][0])
        np.testing.assert_array_equal(info["pose"], walked["poses"][-1])
        again, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(again["pov"], seen["pov"])
        free = MinecraftEnv("free", size=16)  # the same seed opens the same world, and the same actions lead to the same frames
        free.reset(seed=seed)
        for t, action in enumerate(walked["actions"][1:], 1):
            frame, *_, opened = free.step(int(action))
            np.testing.assert_array_equal(opened["pose"], walked["poses"][t])
            np.testing.assert_array_equal(frame, walked["frames"][t])


def test_revisit_ends_where_the_view_is_the_first_again() -> None:
    """Within 2 blocks and 30 degrees. The rewards on the way are the blocks and radians gained."""
    env, goal = MinecraftEnv("revisit", size=16), None
    for seed in range(20):  # one where nothing is in the way back
        _, info = env.reset(seed=seed)
        goal, first, total, ended = info["goal"], info["pose"], 0.0, False
        while not ended and env._elapsed < 60:
            if tasks.horizontal_distance(info["pose"], goal) > 1:
                bearing = math.atan2(goal[1] - info["pose"][1], goal[0] - info["pose"][0])
                turn = math.remainder(bearing - info["pose"][3], math.tau)
                action = FORWARD_JUMP if abs(turn) < 0.14 else TURN_LEFT if turn > 0 else TURN_RIGHT
            else:
                action = TURN_LEFT if math.remainder(goal[3] - info["pose"][3], math.tau) > 0 else TURN_RIGHT
            _, reward, ended, _, info = env.step(action)
            total += reward
            near = info["goal_distance"] <= 2 and tasks.view_angle(info["pose"], goal) <= math.radians(30)
            assert ended == near
        if ended:
            break
    assert ended
    gained = tasks.horizontal_distance(first, goal) - info["goal_distance"]
    turned = tasks.view_angle(first, goal) - tasks.view_angle(info["pose"], goal)
    assert total == pytest.approx(100 + gained + turned, abs=1e-3)
    with pytest.raises(ResetNeeded):
        env.step(NOOP)


def test_the_angle_between_views() -> None:
    level = np.zeros(5, np.float32)
    for yaw, pitch, expected in ((0, 0, 0), (90, 0, 90), (-30, 0, 30), (0, 45, 45), (180, 90, 90), (350, 0, 10)):
        other = np.array([7, 8, 9, math.radians(yaw), math.radians(pitch)])
        assert math.degrees(tasks.view_angle(level, other)) == pytest.approx(expected, abs=0.05)


def test_lanes_and_states_of_revisit_are_those_of_single_envs() -> None:
    env, lanes = MinecraftEnv("revisit", size=16), MinecraftVectorEnv(2, "revisit", size=16, horizon=3)
    seen, info = lanes.reset(seed=5)
    for lane in range(2):
        alone, its_info = env.reset(seed=5 + lane)
        for name in alone:
            np.testing.assert_array_equal(seen[name][lane], alone[name])
        np.testing.assert_array_equal(info["goal"][lane], its_info["goal"])
    other = MinecraftEnv("revisit", size=16)
    other.load_state(env.save_state())
    branches = env.branch(2)
    for _ in range(2):
        (one, reward, *_), (two, again, *_) = env.step(FORWARD), other.step(FORWARD)
        both, rewards, *_ = branches.step([FORWARD] * 2)
        _, in_lanes, *_ = lanes.step([FORWARD] * 2)
        assert reward == again == rewards[0] == rewards[1] and in_lanes[1] == reward
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
            np.testing.assert_array_equal(both[name][1], one[name])
    ended, *_ = lanes.step([NOOP] * 2)  # the horizon; then another world with another goal
    fresh, *_ = lanes.step([NOOP] * 2)
    assert (fresh["goal"] != ended["goal"]).any()
    with pytest.raises(ValueError, match="16 x 16 pixels, this env has size=8"):
        MinecraftEnv("revisit", size=8).load_state(env.save_state())
    with pytest.raises(ValueError, match="is the first view of the opening"):
        env.reset(options={"goal": [0.0, 0.0]})
    for each in (lanes, branches):
        each.close()


def test_a_start_without_a_way_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    env = MinecraftEnv("revisit", size=8)
    env.reset(seed=0)
    monkeypatch.setattr(way_out, "WORLDS", 2)
    monkeypatch.setattr(way_out, "WALK", TURN_LEFT)  # nothing leads away
    with pytest.raises(ValueError, match="no walk leads 3 to 8 blocks away"):
        env.reset(seed=1)
    with pytest.raises(ResetNeeded):
        env.step(NOOP)
