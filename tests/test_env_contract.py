"""What every dream promises to Gymnasium and to its user, held against a stand-in world and every id that has weights."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from mazes import needs_maze
from standins import TRUTH, StandInTruth, StandInWorld, assert_same, clip, single, vector

import wmgym
from wmgym import make, tasks
from wmgym.listing import weights_of
from wmgym.openings import OpeningPlan, walk, write_clips
from wmgym.registration import TABLE, row_of

DREAM = "StandInDream-v0"
SIZE = 36  # the smallest that Stable-Baselines3's network for images takes
DREAM_KEYWORDS = {"checkpoint": "standin", "setting": "minecraft", "opening": "live", "twin": TRUTH}
gym.register(DREAM, "wmgym.env:WorldModelEnv", vector_entry_point="wmgym.vector_env:WorldModelVectorEnv", kwargs=DREAM_KEYWORDS)
gym.register(
    "StandInChunks-v0", "wmgym.env:WorldModelChunkEnv", vector_entry_point="wmgym.vector_env:WorldModelVectorEnv",
    kwargs=DREAM_KEYWORDS | {"checkpoint": "standin-chunks"},
)  # fmt: skip
gym.register(
    "StandInMaze-v0", "wmgym.env:WorldModelEnv", vector_entry_point="wmgym.vector_env:WorldModelVectorEnv",
    kwargs=DREAM_KEYWORDS | {"setting": "memory_maze", "twin": "MemoryMaze-9x9-v0"},
)  # fmt: skip
ROWS = [row for row in TABLE if "setting" not in row.kwargs or weights_of(row.kwargs.get("checkpoint")) == "bundled"]
MADE = [row.id for row in ROWS if "cells" not in row.kwargs]
MAZES = ["MemoryMaze-9x9-v0", "MemoryMaze-11x11-ExtraObs-v0"]  # a frame, a Dict; test_memory_maze.py has all
NAMES = [DREAM, "StandInChunks-v0", *MADE]
IDS = [*NAMES, *(pytest.param(id, marks=needs_maze) for id in MAZES)]
TASKED = [(id, task) for id in NAMES for task in (row_of(id).setting.tasks if id in MADE else ("navigate", "free"))]
TASKED += [pytest.param(id, task, marks=needs_maze) for id in MAZES for task in row_of(id).setting.tasks]
DREAMS = [id for id in NAMES if "twin" in gym.spec(id).kwargs]


@pytest.fixture(autouse=True)
def _checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins' names load stand-ins; all other names what they name, with one denoising step, which is fast."""
    real = make._world

    def load(config: make.DreamConfig, options: Any) -> Any:
        names = {"standin": StandInWorld(SIZE), "standin-chunks": StandInWorld(SIZE, chunk=3)}
        name = config.checkpoint
        if not isinstance(name, str):
            return real(config, options)
        return names[name] if name in names else real(replace(config, denoise_steps=config.denoise_steps or 1), options)

    monkeypatch.setattr(make, "_world", load)


# ---- Gymnasium ----


@pytest.mark.parametrize("id", IDS)
def test_gymnasiums_checker_has_nothing_to_say(id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(id)
        check_env(env.unwrapped)
        env.close()


@pytest.mark.parametrize(("id", "task"), TASKED)
def test_stable_baselines_checker_has_nothing_to_say(id: str, task: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Your observation (targets|maze).*unconventional shape")  # upstream's [n, 2] and [y, x]
        env = gym.make(id, task=task)
        checker.check_env(env)
        env.close()


@pytest.mark.parametrize("id", IDS)
def test_a_spec_goes_through_json_and_makes_the_same_env(id: str) -> None:
    env = gym.make(id, task="free", horizon=4)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert_same(env.reset(seed=3), again.reset(seed=3))
    forward = env.action_space.sample() * 0 + 1
    truncated = False
    while not truncated:
        step, step_again = env.step(forward), again.step(forward)
        assert_same(step, step_again)
        truncated = step[3]
    assert env.unwrapped.horizon == again.unwrapped.horizon == 4


@pytest.mark.parametrize("mode", ["same_step", AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("id", IDS)
def test_a_vector_spec_goes_through_json(id: str, mode: Any) -> None:
    vec = gym.make_vec(id, num_envs=2, autoreset_mode=mode, task="free")
    spec = json.loads(vec.spec.to_json())
    assert spec["kwargs"]["autoreset_mode"] == "same_step"
    again = gym.make_vec(gym.envs.registration.EnvSpec.from_json(vec.spec.to_json()))
    assert again.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert again.num_envs == 2
    assert_same(vec.reset(seed=1), again.reset(seed=1))


@pytest.mark.parametrize("id", IDS)
def test_the_vector_env_is_the_batched_one_and_takes_max_episode_steps_as_horizon(id: str) -> None:
    vec = gym.make_vec(id, num_envs=2, max_episode_steps=3, task="free")
    assert not isinstance(vec, gym.vector.SyncVectorEnv)
    vec.reset(seed=0)
    noop = np.zeros_like(vec.action_space.sample())
    frames_a_step = 1 if vec.single_action_space.shape == () else vec.single_action_space.shape[0]
    cut = [vec.step(noop)[3].all() for _ in range(-(-3 // frames_a_step))]
    assert cut[-1] and not any(cut[:-1])


@pytest.mark.parametrize("id", IDS)
def test_close_can_be_called_twice_and_play_knows_what_to_press(id: str) -> None:
    env = gym.make(id)
    meanings, keys = env.unwrapped.get_action_meanings(), env.unwrapped.get_keys_to_action()
    space = env.action_space
    assert len(meanings) == (space.n if isinstance(space, spaces.Discrete) else space.nvec[0])
    assert all(env.action_space.contains(action) for action in keys.values())
    env.close()
    env.close()


# ---- determinism ----


@pytest.mark.parametrize("id", IDS)
def test_same_seed_and_actions_give_the_same_bits(id: str) -> None:
    def shown() -> list[Any]:
        env = gym.make(id)
        env.action_space.seed(0)
        out = [env.reset(seed=6)]
        out += [env.step(env.action_space.sample()) for _ in range(5)]
        return [*out, env.reset()]

    assert_same(shown(), shown())


def test_another_seed_is_another_dream_of_another_place() -> None:
    env = single()
    (one, info), (two, other) = env.reset(seed=1), env.reset(seed=2)
    assert (one["pov"] != two["pov"]).any() and (info["pose"] != other["pose"]).any()
    context = clip()
    noise = []
    for seed in (1, 2):
        env.reset(seed=seed, options={"opening": context, "goal": [9, 9]})
        noise.append(env.step(0)[0]["pov"])
    assert (noise[0] != noise[1]).any()


# ---- what an episode is ----


def test_the_opening_is_a_look_around_in_the_truth() -> None:
    env, truth = single(StandInWorld(noise=0)), StandInTruth()
    seen, info = env.reset(seed=4)
    there, truth_info = truth.reset(seed=4)
    assert info["memory_frames"] == 25
    np.testing.assert_allclose(info["pose"], truth_info["pose"], atol=1e-5)  # once round, and facing the same way
    np.testing.assert_array_equal(info["goal"], truth_info["goal"])
    assert np.abs(seen["pov"].astype(int) - there["pov"]).max() <= 1
    np.testing.assert_allclose(seen["compass"], there["compass"], atol=1e-5)


def test_one_truth_is_opened_again_for_every_episode_and_lane() -> None:
    vec = vector(3, horizon=2)
    vec.reset(seed=0)
    walked = vec.shell.openings._env
    for _ in range(4):
        vec.step([0, 0, 0])
    assert vec.shell.openings._env is walked
    assert walked.unwrapped.opened == 6


def test_rewards_are_blocks_gained_and_arrival_ends() -> None:
    env = single()
    env.reset(seed=0, options={"opening": clip(1), "goal": [4, 0]})
    seen, reward, terminated, truncated, info = env.step(1)
    np.testing.assert_array_equal(seen["compass"], [1, 0])
    assert reward == pytest.approx(0.8634, abs=1e-5)  # 4.317 blocks/s for 0.2 s
    assert info["goal_distance"] == pytest.approx(4 - 0.8634, abs=1e-5)
    assert not terminated
    env.step(1)
    _, reward, terminated, truncated, info = env.step(1)
    assert reward == pytest.approx(100.8634, abs=1e-4)
    assert terminated and not truncated
    with pytest.raises(ResetNeeded):
        env.step(1)


def test_the_env_truncates_at_its_horizon() -> None:
    env = single(task="free", horizon=3)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(3)] == [False, False, True]
    env.reset()
    assert not env.step(0)[3]
    assert single().horizon == tasks.NAVIGATE_HORIZON
    assert single(task="free").horizon == tasks.FREE_HORIZON


def test_info_holds_no_times_and_perf_does() -> None:
    env = single()
    env.reset(seed=0)
    *_, info = env.step(0)
    memory = {"memory_frames", "memory_bytes", "memory_retrieved", "memory_scores"}
    assert info.keys() == {"pose", "goal", "goal_distance", *memory}
    assert info["memory_retrieved"].dtype == np.int64 and info["memory_scores"].dtype == np.float32
    assert env.perf.keys() == {"reset_ms", "step_ms", "network_evaluations"}


def test_a_goal_frame_is_kept_for_planners_where_no_pose_is_needed() -> None:
    goal = clip(1, x=7)["frames"][0]
    env = single(task="free")
    env.reset(seed=0, options={"goal": goal})
    *_, info = env.step(0)
    np.testing.assert_array_equal(info["goal_frame"], goal)
    assert "goal" not in info
    with pytest.raises(ValueError, match="pose"):
        single().reset(options={"goal": goal})


def test_openings_may_be_given_at_making_and_are_drawn_from() -> None:
    clips = [clip(1, x=x) for x in range(8)]
    env = single(opening=clips, task="free")
    places = {env.reset(seed=seed)[1]["pose"][0] for seed in range(30)}
    assert places <= set(range(8)) and len(places) > 3
    assert env.reset(seed=3)[1]["pose"][0] == env.reset(seed=3)[1]["pose"][0]


def test_a_world_without_any_opening_asks_for_one() -> None:
    env = wmgym.make_env(StandInWorld(), num_actions=4)
    assert env.action_space == spaces.Discrete(4)
    with pytest.raises(ValueError, match="opening"):
        env.reset()
    env.reset(options={"opening": clip()})
    assert env.step(3)[1] == 0


def test_the_old_name_context_means_opening() -> None:
    """As a keyword and as a reset option."""
    clips = [clip(1, x=x) for x in range(8)]
    new, old = single(opening=clips, task="free"), wmgym.make_env(StandInWorld(), "free", setting="minecraft", context=clips)
    for seed in (3, None, None):
        assert_same(old.reset(seed=seed), new.reset(seed=seed))
    assert_same(old.reset(seed=1, options={"context": clip()}), new.reset(seed=1, options={"opening": clip()}))
    assert_same(wmgym.twin(DREAM, opening=None, context="live")[0].reset(seed=3), gym.make(DREAM).reset(seed=3))
    with pytest.raises(ValueError, match="opening and context are two names of one keyword"):
        single(opening=clips, context=clips)
    with pytest.raises(ValueError, match="opening and context are two names of one keyword"):
        gym.make(DREAM, context=clips)  # the id brings an opening
    with pytest.raises(ValueError, match="opening and context are two names of one option"):
        new.reset(options={"opening": clip(), "context": clip()})


# ---- what names an env ----


@pytest.mark.parametrize("id", DREAMS)
def test_the_weights_hash_is_a_checksum_and_empty_for_a_world_of_ones_own(id: str) -> None:
    env, vec = gym.make(id), gym.make_vec(id, num_envs=1)
    known = env.unwrapped.weights_hash
    assert vec.unwrapped.weights_hash == known
    assert re.fullmatch("[0-9a-f]{64}", known) if id in MADE else known == ""
    assert env.unwrapped.identity == vec.unwrapped.identity and env.unwrapped.identity.id == id


# ---- chunks ----


def test_a_chunk_is_its_frames_one_by_one() -> None:
    one = single(StandInWorld(noise=0), task="free")
    three = single(StandInWorld(chunk=3, noise=0), task="free", render_mode="rgb_array_list")
    one.reset(seed=1)
    three.reset(seed=1)
    assert three.action_space == spaces.MultiDiscrete([10] * 3)
    seen, _, _, _, info = three.step([1, 6, 1])
    poses = [one.step(action)[-1]["pose"] for action in (1, 6, 1)]
    np.testing.assert_array_equal(info["pose"], poses[-1])
    assert info["frames"].shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(info["frames"][-1], seen)
    np.testing.assert_array_equal(three.render(), info["frames"])


def test_rewards_of_a_chunk_are_summed_and_after_an_end_the_last_frame_repeats() -> None:
    env = single(StandInWorld(chunk=4))
    env.reset(seed=0, options={"opening": clip(1), "goal": [3, 0]})
    seen, reward, terminated, _, info = env.step([1, 1, 1, 1])  # arrives with the second
    assert reward == pytest.approx(100 + 2 * 0.8634, abs=1e-4)
    assert terminated
    np.testing.assert_allclose(info["pose"][0], 2 * 0.8634, rtol=1e-6)
    np.testing.assert_array_equal(info["frames"][1], seen["pov"])
    for later in info["frames"][2:]:
        np.testing.assert_array_equal(later, seen["pov"])
    assert (info["frames"][0] != seen["pov"]).any()


def test_the_horizon_counts_frames_inside_chunks() -> None:
    env = single(StandInWorld(chunk=3), task="free", horizon=5, hold_action=True)
    assert env.action_space == spaces.Discrete(10)
    env.reset(seed=0)
    assert not env.step(1)[3]
    _, _, _, truncated, info = env.step(1)
    assert truncated
    np.testing.assert_array_equal(info["frames"][1], info["frames"][2])


def test_a_held_action_is_the_same_as_repeating_it() -> None:
    held, given = (single(StandInWorld(chunk=3), hold_action=hold) for hold in (True, False))
    held.reset(seed=0)
    given.reset(seed=0)
    assert_same(held.step(5), given.step([5, 5, 5]))


def test_continuous_actions_reach_the_world_as_they_are() -> None:
    class Slider(StandInWorld):
        def step(self, state: Any, actions: torch.Tensor) -> Any:
            assert actions.dtype == torch.float32 and actions.shape == (1, self.chunk, 3)
            self.told = actions
            return super().step(state, torch.zeros(actions.shape[:2], dtype=torch.int64))

    space = spaces.Box(-1, 1, (3,), np.float32)
    for chunk in (1, 2):
        world = Slider(chunk=chunk)
        context = clip() | {"actions": np.zeros((3, 3), np.float32)}
        env = wmgym.make_env(world, action_space=space, opening=context)
        assert env.action_space.shape == ((3,) if chunk == 1 else (2, 3))
        env.reset(seed=0)
        action = env.action_space.sample()
        env.step(action)
        np.testing.assert_array_equal(world.told[0].numpy().reshape(action.shape), action)
        for bad in (action * 0 + 2, action * np.nan):
            with pytest.raises(ValueError, match="must lie in"):
                env.step(bad)


# ---- twins ----


@pytest.mark.parametrize(("id", "task"), [each for each in TASKED if isinstance(each, tuple) and each[0] in DREAMS])
def test_twins_open_alike_and_have_the_same_spaces(id: str, task: str) -> None:
    imagined, truth = wmgym.twin(id, task=task, horizon=6)
    for seed in (3, None, None):  # also the episodes after the seeded one
        (seen, info), (real, real_info) = imagined.reset(seed=seed), truth.reset(seed=seed)
        assert_same(seen, real)
        np.testing.assert_array_equal(info["pose"], real_info["pose"])
        if task == "navigate":
            np.testing.assert_array_equal(info["goal"], real_info["goal"])
    assert imagined.observation_space == truth.observation_space
    assert imagined.action_space == truth.action_space
    noop = imagined.action_space.sample() * 0
    for _ in range(7):  # the opening costs the truth no steps either
        dreamed, real = imagined.step(noop), truth.step(noop)
        assert dreamed[3] == real[3]
        if real[3]:
            break
    assert real[3]
    assert set(real[4]) <= set(dreamed[4])


@needs_maze
@pytest.mark.parametrize("task", ["targets", "targets-near", "targets-behind", "free"])
def test_a_dream_of_a_maze_opens_as_the_maze_does(task: str) -> None:
    imagined, truth = wmgym.twin("StandInMaze-v0", task=task, horizon=3)
    for seed in (3, None):
        (seen, info), (real, real_info) = imagined.reset(seed=seed), truth.reset(seed=seed)
        assert_same(seen, real)
        np.testing.assert_array_equal(info["pose"], real_info["pose"])
        assert imagined.unwrapped.save_state().state.world.memories[0].times.max() == 20  # a look around was remembered
    assert imagined.observation_space == truth.observation_space and imagined.action_space == truth.action_space
    assert [truth.step(1)[3] for _ in range(3)] == [imagined.step(1)[3] for _ in range(3)] == [False, False, True]


def test_a_twins_chunk_repeats_its_last_frame_after_an_end_as_the_dream_does() -> None:
    imagined, truth = wmgym.twin("StandInChunks-v0", task="free", horizon=4, render_mode="rgb_array_list")
    for env in (imagined, truth):
        env.reset(seed=0)
        env.step([1, 1, 1])
        _, _, _, truncated, info = env.step([1, 1, 1])
        assert truncated
        np.testing.assert_array_equal(info["frames"][0], info["frames"][2])
        np.testing.assert_array_equal(env.render(), info["frames"])


def test_the_dream_opens_in_the_backend_that_its_twin_is_given() -> None:
    imagined, truth = wmgym.twin(DREAM, backend="far")
    (seen, info), (real, _) = imagined.reset(seed=3), truth.reset(seed=3)
    assert_same(seen, real)
    assert info["pose"][0] > 50
    assert imagined.spec.kwargs["twin_kwargs"] == {"backend": "far"}


def test_what_has_no_twin_says_so() -> None:
    with pytest.raises(ValueError, match="no twin"):
        wmgym.twin(TRUTH)


# ---- bad input ----


@pytest.mark.parametrize(
    "keywords",
    [
        {"task": "fly"},
        {"horizon": 0},
        {"horizon": 2.5},
        {"horizon": True},
        {"opening": "dead"},
        {"opening": "live", "twin": None},
        {"hold_action": "yes"},
        {"render_mode": "ascii"},
        {"render_mode": "rgb_array_list"},
        {"setting": "moon"},
        {"num_actions": 3},
        {"setting": None},
        {"setting": None, "num_actions": 0},
        {"setting": None, "action_space": spaces.MultiBinary(3)},
        {"memory": "worldpack"},
        {"memory_budget": -1},
        {"denoise_steps": "4"},
        {"twin_kwargs": {"size": 64}},
    ],
    ids=str,
)
def test_a_wrong_keyword_is_one_clear_value_error(keywords: dict[str, Any]) -> None:
    for make_one in (single, lambda **given: vector(2, **given)):
        with pytest.raises(ValueError):
            make_one(**keywords)


def test_an_unknown_keyword_is_a_type_error_that_names_those_there_are() -> None:
    for make_one in (single, lambda **given: vector(2, **given)):
        with pytest.raises(TypeError, match=r"'speed'.* takes .*hold_action, horizon, opening"):
            make_one(speed=3)
    for make_one in (gym.make, lambda id, **given: gym.make_vec(id, num_envs=2, **given)):
        with pytest.raises(TypeError, match=r"'speed': system 'worldpack' knows retrieval, suppression"):
            make_one("WorldPack-Minecraft-v0", speed=3)


def test_wrong_keywords_of_the_vector_env() -> None:
    for keywords in ({"autoreset_mode": "sometimes"}, {"obs_type": "jax"}, {"horizon": 3, "max_episode_steps": 3}):
        with pytest.raises(ValueError):
            vector(2, **keywords)
    with pytest.raises(ValueError, match="num_envs"):
        vector(0)


def test_bundled_openings_that_are_not_there_are_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "minecraft-openings.npz"))):
        single(opening="bundled")


@needs_maze
def test_clips_are_not_taken_for_a_task_that_they_were_not_made_for() -> None:
    def made(task: str, opening: str | None = None) -> Any:
        return wmgym.make_env(StandInWorld(size=64), setting="memory_maze", twin="MemoryMaze-9x9-v0", task=task, opening=opening)

    frames = {task: made(task).reset(seed=1)[1]["memory_frames"] for task in ("targets", "targets-near", "free")}
    assert frames == {"targets": 32, "targets-near": 21, "free": 32}  # of shipped clips as much as it remembers; of a look around, all
    with pytest.raises(ValueError, match="'targets-near': give opening='live'"):
        made("targets-near", "bundled")


def test_bundled_openings_carry_goal_and_seed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = gym.make(TRUTH, size=SIZE)
    walks = [walk(truth, OpeningPlan(seed, [np.int64(1)] * 3))[0] for seed in (40, 41)]
    write_clips(tmp_path / "minecraft-openings.npz", walks)
    monkeypatch.setattr(make, "WEIGHTS", tmp_path)
    imagined, truth = wmgym.twin(DREAM, opening="bundled")
    for seed in range(6):
        (seen, info), (real, real_info) = imagined.reset(seed=seed), truth.reset(seed=seed)
        assert_same(seen, real)
        np.testing.assert_array_equal(info["goal"], real_info["goal"])
        assert any((info["goal"] == each.goal).all() for each in walks)
    with pytest.raises(ValueError, match="frames must be"):
        single(opening="bundled").reset()  # a world of another frame size


GOOD = clip(3)


@pytest.mark.parametrize(
    "change",
    [
        {"frames": GOOD["frames"].astype(np.float32)},
        {"frames": GOOD["frames"][:, :8]},
        {"frames": GOOD["frames"][0]},
        {"frames": GOOD["frames"][:0]},
        {"frames": GOOD["frames"][:2]},
        {"actions": GOOD["actions"][:2]},
        {"actions": GOOD["actions"] * 1.0},
        {"actions": GOOD["actions"] + 9},
        {"actions": GOOD["actions"] - 2},
        {"poses": GOOD["poses"][:2]},
        {"poses": GOOD["poses"][:, :4]},
        {"poses": GOOD["poses"] * np.nan},
        {"poses": np.full((3, 5), "north")},
    ],
)
def test_a_wrong_opening_is_one_clear_value_error_and_changes_nothing(change: dict[str, Any]) -> None:
    env = single()
    env.reset(seed=0)
    before = env.save_state()
    with pytest.raises(ValueError, match="opening"):
        env.reset(options={"opening": GOOD | change})
    with pytest.raises(ValueError, match="observed"):
        env.observe(**(GOOD | change))
    assert env.save_state().state is before.state


@pytest.mark.parametrize(
    "options",
    [
        {"opening": {"frames": GOOD["frames"]}},
        {"opening": 3},
        {"goal": [1]},
        {"goal": "home"},
        {"goal": [np.nan, 0]},
        {"start": [0] * 5},
        {"speed": 1},
        3,
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        single().reset(options=options)


@pytest.mark.parametrize("action", [10, -1, 1.0, True, None, "forward", [1, 2], np.nan])
def test_an_action_outside_the_space_is_refused_and_nothing_moves(action: Any) -> None:
    env = single()
    env.reset(seed=0)
    before = env.save_state().state
    with pytest.raises(ValueError, match="action must"):
        env.step(action)
    assert env.save_state().state is before


def test_actions_of_any_whole_number_type_are_the_same() -> None:
    frames = []
    for action in (1, np.int32(1), np.array(1), torch.tensor(1)):
        env = single()
        env.reset(seed=0)
        frames.append(env.step(action)[0]["pov"])
    for frame in frames[1:]:
        np.testing.assert_array_equal(frame, frames[0])


def test_a_pose_that_is_not_a_number_stops_the_dream() -> None:
    class Broken(StandInWorld):
        def step(self, state: Any, actions: torch.Tensor) -> Any:
            state, frames = super().step(state, actions)
            frames.poses[1] = torch.nan
            return state, frames

    vec = vector(2, Broken())
    vec.reset(seed=0)
    with pytest.raises(FloatingPointError, match=r"\[1\]"):
        vec.step([0, 0])


def test_stepping_or_rendering_before_reset_is_refused() -> None:
    env = single(render_mode="rgb_array")
    for call in (lambda: env.step(0), env.render, lambda: env.branch(2)):
        with pytest.raises(ResetNeeded):
            call()


def test_rendering_gives_the_frame() -> None:
    env = single(render_mode="rgb_array")
    seen, _ = env.reset(seed=0)
    frame = env.render()
    np.testing.assert_array_equal(frame, seen["pov"])
    frame[:] = 0
    np.testing.assert_array_equal(env.render(), seen["pov"])
    assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": 5}
