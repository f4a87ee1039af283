"""N lanes are N single envs: in every autoreset mode, across resets, whatever the other lanes do."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import standins
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from standins import StandInWorld, assert_same, clip, single, vector

LANES, SEED, STEPS = 3, 5, 14


def lane_of(batch: Any, lane: int) -> Any:
    return {key: value[lane] for key, value in batch.items()} if isinstance(batch, dict) else batch[lane]


def lane_info(info: dict[str, Any], lane: int) -> dict[str, Any]:
    """What Gymnasium's batched info says of one lane."""
    told = {key: value for key, value in info.items() if not key.startswith("_") and info[f"_{key}"][lane]}
    return {key: lane_info(value, lane) if isinstance(value, dict) else value[lane] for key, value in told.items()}


def plans(rng_seed: int = 0, chunk: int = 1) -> np.ndarray:
    shape = (STEPS, LANES) if chunk == 1 else (STEPS, LANES, chunk)
    return np.random.default_rng(rng_seed).integers(10, size=shape)


def singles(**keywords: Any) -> list[gym.Env]:
    return [single(**keywords) for _ in range(LANES)]


def begin(vec: Any, envs: list[gym.Env]) -> None:
    seen, info = vec.reset(seed=SEED)
    for lane, env in enumerate(envs):
        alone, alone_info = env.reset(seed=SEED + lane)
        assert_same(lane_of(seen, lane), alone)
        assert_same(lane_info(info, lane), alone_info)


@pytest.mark.parametrize("task", ["navigate", "free"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_next_step_lanes_are_single_envs_across_resets(task: str, chunk: int) -> None:
    vec = vector(LANES, StandInWorld(chunk=chunk), task=task, horizon=5)
    envs = singles(world=StandInWorld(chunk=chunk), task=task, horizon=5)
    begin(vec, envs)
    over = np.zeros(LANES, bool)
    ends = 0
    for actions in plans(chunk=chunk):
        seen, rewards, terminated, truncated, info = vec.step(actions)
        for lane, env in enumerate(envs):
            if over[lane]:
                expected = (*env.reset(), 0.0, False, False)
            else:
                alone, reward, end, cut, alone_info = env.step(actions[lane])
                expected = (alone, alone_info, reward, end, cut)
            assert_same(lane_of(seen, lane), expected[0])
            assert_same(lane_info(info, lane), expected[1])
            assert (rewards[lane], terminated[lane], truncated[lane]) == expected[2:]
        over = terminated | truncated
        ends += over.sum()
    assert ends >= 2 * LANES


def test_same_step_lanes_are_single_envs_across_resets() -> None:
    vec, envs = vector(LANES, horizon=4, autoreset_mode="same_step"), singles(horizon=4)
    begin(vec, envs)
    ends = 0
    for actions in plans():
        seen, rewards, terminated, truncated, info = vec.step(actions)
        for lane, env in enumerate(envs):
            alone, reward, end, cut, alone_info = env.step(actions[lane])
            assert (rewards[lane], terminated[lane], truncated[lane]) == (reward, end, cut)
            assert ("final_obs" in info and info["_final_obs"][lane]) == (end or cut)
            if end or cut:
                ends += 1
                assert_same(info["final_obs"][lane], alone)
                assert_same(lane_info(info["final_info"], lane), alone_info)
                alone, alone_info = env.reset()
            assert_same(lane_of(seen, lane), alone)
            told = {key: value for key, value in lane_info(info, lane).items() if not key.startswith("final")}
            assert_same(told, alone_info)
    assert ends >= 2 * LANES


@pytest.mark.parametrize("task", ["navigate", "free"])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_it_says_all_that_gymnasiums_own_vector_env_says(mode: AutoresetMode, task: str) -> None:
    """Observations, rewards, flags and infos with their masks, final ones included."""
    keywords = {"task": task, "horizon": 3}
    vec = vector(LANES, autoreset_mode=mode, **keywords)
    theirs = gym.vector.SyncVectorEnv([lambda: single(**keywords)] * LANES, autoreset_mode=mode)
    assert vec.observation_space == theirs.observation_space
    assert vec.action_space == theirs.action_space
    assert_same(vec.reset(seed=SEED), theirs.reset(seed=SEED))
    goals = np.array([[3.0, 0], [0.0, 3], [-3.0, 0]])  # so that lanes end at different times
    per_lane = [{"goal": goals[lane], "opening": clip(1)} for lane in range(LANES)]
    vec.reset(seed=SEED, options=per_lane)
    for lane, env in enumerate(theirs.envs):
        env.reset(seed=SEED + lane, options=per_lane[lane])
    for actions in np.ones((STEPS, LANES), np.int64):
        assert_same(vec.step(actions), theirs.step(actions))


def test_disabled_lanes_rest_until_they_are_reset_by_mask() -> None:
    vec = vector(LANES, horizon=3, autoreset_mode="disabled")
    envs = singles(horizon=3)
    begin(vec, envs)
    only = np.array([False, True, False])
    vec.step(plans()[0])
    vec.reset(seed=[None, 77, None], options={"reset_mask": only})  # lane 1 begins anew, the others go on
    alone, _ = envs[1].reset(seed=77)
    for step in (1, 2):
        seen, _, _, truncated, _ = vec.step(plans()[step])
        alone, _, _, cut, _ = envs[1].step(plans()[step][1])
        assert_same(lane_of(seen, 1), alone)
        assert not cut
    assert truncated.tolist() == [True, False, True]

    seen, _, _, truncated, info = vec.step(plans()[3])
    resting, at_rest_rewards, _, still, resting_info = vec.step(plans()[4])
    assert truncated.tolist() == still.tolist() == [True, True, True]
    assert at_rest_rewards.tolist() == [0, 0, 0]
    assert_same(seen, resting)
    assert_same(info, resting_info)


def test_a_masked_reset_tells_only_its_lanes_and_leaves_the_callers_options_alone() -> None:
    vec = vector(LANES)
    before, _ = vec.reset(seed=1)
    mask = np.array([True, False, True])
    options = {"reset_mask": mask}
    seen, info = vec.reset(seed=9, options=options)
    assert options == {"reset_mask": mask}
    assert info["_pose"].tolist() == mask.tolist()
    assert (info["pose"][1] == 0).all()
    assert_same(lane_of(seen, 1), lane_of(before, 1))
    assert_same(lane_of(seen, 2), single().reset(seed=11)[0])


def test_a_lane_does_not_know_its_neighbours() -> None:
    """Other seeds, other actions, other openings and another number of lanes beside it: the same lane."""
    one, many = vector(1), vector(4)
    one.reset(seed=[8])
    many.reset(seed=[3, 8, 99, 0], options=[{"opening": clip(7)}, {}, {"opening": clip(40, x=2)}, {"goal": [1, 2]}])
    for actions in np.random.default_rng(1).integers(10, size=(8, 4)):
        alone = one.step(actions[1:2])
        among = many.step(actions)
        assert_same(lane_of(alone[0], 0), lane_of(among[0], 1))
        assert alone[1][0] == among[1][1]


def test_all_lanes_cost_one_forward_pass_a_step() -> None:
    world = StandInWorld()
    vec = vector(5, world, horizon=3)
    vec.reset(seed=0)
    for step in range(1, 8):
        vec.step(np.full(5, 1))
        assert world.steps == step
    assert vec.perf["network_evaluations"] == 1
    assert vec.perf["step_ms"] > 0


def test_unseeded_lanes_differ_and_a_seed_list_is_per_lane() -> None:
    vec = vector(2)
    first, _ = vec.reset()
    assert (first["pov"][0] != first["pov"][1]).any()
    again, _ = vec.reset(seed=[4, 4])
    assert_same(lane_of(again, 0), lane_of(again, 1))
    assert vec.np_random_seed == (4, 4)


def test_torch_observations_hold_the_same_and_are_the_callers_own() -> None:
    arrays, tensors = vector(2), vector(2, obs_type="torch")
    a, _ = arrays.reset(seed=3)
    b, _ = tensors.reset(seed=3)
    assert b["pov"].dtype == torch.uint8
    frames = tensors.save_state().state.frames.clone()
    b["pov"].zero_()
    assert_same(tensors.save_state().state.frames, frames)
    for actions in plans()[:, :2]:
        a, *_ = arrays.step(actions)
        b, *_ = tensors.step(torch.from_numpy(actions))
        assert_same(a, {key: value.numpy() for key, value in b.items()})


def test_arrays_given_out_are_never_written_again() -> None:
    vec = vector(2)
    kept = [vec.reset(seed=0)] + [vec.step([1, 2]) for _ in range(3)]
    copies = [np.copy(entry[0]["pov"]) for entry in kept]
    kept[1][0]["pov"][:] = 0
    kept[1][-1]["pose"][:] = np.nan
    again = vector(2)
    again.reset(seed=0)
    for _ in range(3):
        seen, *_ = again.step([1, 2])
    assert_same(seen["pov"], copies[-1])
    assert_same(vec.step([1, 2])[0], again.step([1, 2])[0])


def test_options_can_differ_by_lane_in_a_dict_too() -> None:
    vec = vector(2, task="free")
    contexts = [clip(2), clip(5, x=1)]
    seen, info = vec.reset(options={"opening": contexts, "goal": np.array([[1.0, 2.0], [3.0, 4.0]])})
    assert_same(seen, np.stack([context["frames"][-1] for context in contexts]))
    assert_same(info["goal"][:, :2], [[1, 2], [3, 4]])
    assert_same(info["memory_frames"], [2, 5])
    assert_same(info["goal_distance"][0], np.float64(np.float32(np.hypot(0.5, 2))))


@pytest.mark.parametrize(
    "options",
    [
        {"reset_mask": [True, False]},
        {"reset_mask": np.array([True])},
        {"reset_mask": np.array([1, 0])},
        {"reset_mask": np.array([False, False])},
        {"nonsense": 1},
        {"opening": [clip()]},
        {"opening": clip(), "context": clip()},
        {"goal": np.zeros((3, 2))},
        [{}],
        [{}, {"goal": "home"}],
        [{}, {"goal": clip()["frames"][0]}],  # the task needs a pose
        "context",
    ],
    ids=str,
)
def test_bad_options_raise_and_change_nothing(options: Any) -> None:
    vec, untouched = vector(2, horizon=1), vector(2, horizon=1)
    vec.reset(seed=0)
    untouched.reset(seed=0)
    with pytest.raises(ValueError):
        vec.reset(options=options)
    for _ in range(3):  # also over a reset: the generators are as they were
        assert_same(vec.step([1, 1])[0], untouched.step([1, 1])[0])


def test_the_old_name_of_the_option_means_the_same() -> None:
    new, old = vector(2, task="free"), vector(2, task="free")
    clips = [clip(2), clip(5, x=1)]
    assert_same(new.reset(seed=0, options={"opening": clips}), old.reset(seed=0, options={"context": clips}))
    assert_same(new.reset(seed=0, options={"opening": clip(4)}), old.reset(seed=0, options=[{"context": clip(4)}] * 2))


def test_a_seed_that_no_lane_can_have_changes_nothing() -> None:
    vec, untouched = vector(2, horizon=1), vector(2, horizon=1)
    vec.reset(seed=0)
    untouched.reset(seed=0)
    with pytest.raises(gym.error.Error, match="-3"):
        vec.reset(seed=[4, -3])
    assert vec.np_random_seed == (0, 1)
    for _ in range(3):
        assert_same(vec.step([1, 1])[0], untouched.step([1, 1])[0])


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_a_step_whose_reset_fails_changes_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step can be taken again when the truth opens again."""
    vec, untouched = (vector(2, horizon=2, autoreset_mode=mode) for _ in range(2))
    for env in (vec, untouched):
        env.reset(seed=0)
        for _ in range(2 if mode == "next_step" else 1):
            env.step([1, 2])

    def fail(plan: Any) -> Any:
        raise RuntimeError("no truth today")

    with monkeypatch.context() as patch:
        patch.setattr(vec.shell.openings, "show", fail)
        before = vec.save_state().state
        with pytest.raises(RuntimeError, match="no truth"):
            vec.step([3, 4])
        assert vec.save_state().state is before
    for actions in plans()[:6, :2]:
        assert_same(vec.step(actions), untouched.step(actions))


def test_a_mask_or_a_step_before_the_first_reset_is_refused() -> None:
    vec = vector(2)
    with pytest.raises(ResetNeeded):
        vec.step([0, 0])
    with pytest.raises(ResetNeeded):
        vec.reset(options={"reset_mask": np.array([True, False])})


@pytest.mark.parametrize(("given", "mode"), [("same_step", AutoresetMode.SAME_STEP), (AutoresetMode.DISABLED, AutoresetMode.DISABLED)])
def test_the_autoreset_mode_is_declared(given: Any, mode: AutoresetMode) -> None:
    vec = vector(2, autoreset_mode=given)
    assert vec.metadata["autoreset_mode"] is vec.autoreset_mode is mode
    assert vector(2).metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


@pytest.mark.parametrize("wrapper", ["RecordEpisodeStatistics", "NormalizeObservation", "ClipReward"])
def test_gymnasiums_vector_wrappers_accept_it(wrapper: str) -> None:
    limits = {"min_reward": -1, "max_reward": 1} if wrapper == "ClipReward" else {}
    vec = getattr(gym.wrappers.vector, wrapper)(vector(2, task="free", horizon=3), **limits)
    vec.reset(seed=0)
    for _ in range(6):
        *_, info = vec.step(vec.action_space.sample())
    assert standins.SLOTS >= info["memory_frames"].max() > 25


def test_a_world_that_ends_by_itself_ends_its_lane_and_pays() -> None:
    """Rewards and ends from the world's own head come on top of the task's."""
    vec = vector(2, StandInWorld(ends_at=27), task="free", autoreset_mode="disabled")  # the opening is frames 0 to 24
    vec.reset(seed=0)
    told = [vec.step([0, 0])[1:3] for _ in range(4)]
    assert [rewards.tolist() for rewards, _ in told] == [[0, 0], [0, 0], [10, 10], [0, 0]]
    assert [terminated.tolist() for _, terminated in told] == [[False] * 2, [False] * 2, [True] * 2, [True] * 2]
