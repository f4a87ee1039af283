"""Lane i of the vector env is the single env of seed + i, bit for bit, whatever ends and is reset on the way.

Held to it are the batched env, and the one whose lanes run in processes (or one after the other), round the same single env.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from tiny import tiny_checkpoint

import wmgym  # registers the id
from wmgym.envs.memory_cards import MemoryCardsEnv, MemoryCardsVectorEnv
from wmgym.envs.minecraft import MinecraftEnv, MinecraftVectorEnv
from wmgym.envs.process_vector import ProcessVectorEnv

assert wmgym.__version__

LANES, HORIZON, SIZE = 3, 4, 24
NOOP = [0] * 3


class Truth(NamedTuple):
    """A ground truth, alone and in lanes."""

    single: Any
    vector: Any
    actions: np.ndarray  # [11, LANES]


RANDOM = np.random.default_rng(1)
TRUTHS = {
    "minecraft": Truth(MinecraftEnv, MinecraftVectorEnv, RANDOM.integers(0, 10, (11, LANES))),
    "memory_cards": Truth(MemoryCardsEnv, MemoryCardsVectorEnv, RANDOM.integers(0, 5, (11, LANES))),
}


def in_processes(count: int) -> Callable[[Truth], Callable[..., ProcessVectorEnv]]:
    def of(truth: Truth) -> Callable[..., ProcessVectorEnv]:
        def make(num_envs: int, autoreset_mode: Any = "next_step", **kwargs: Any) -> ProcessVectorEnv:
            single = f"{truth.single.__module__}:{truth.single.__qualname__}"
            return ProcessVectorEnv(single, kwargs, num_envs, processes=count, autoreset_mode=autoreset_mode)

        return make

    return of


KINDS: dict[str, Callable[[Truth], Callable[..., Any]]] = {
    "batched": lambda truth: truth.vector,
    "in turn": in_processes(0),
    "processes": in_processes(2),
}


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


@pytest.fixture(scope="module", params=KINDS)
def envs(request: pytest.FixtureRequest) -> Iterator[Any]:
    vec = KINDS[request.param](TRUTHS["minecraft"])(LANES, size=SIZE, horizon=HORIZON)
    yield vec
    vec.close()


@pytest.fixture(scope="module", params=TRUTHS)
def truth(request: pytest.FixtureRequest) -> Truth:
    return TRUTHS[request.param]


@pytest.fixture(scope="module")
def episodes(truth: Truth) -> Iterator[list[list[tuple]]]:
    """What single envs give when they are reset after each end: per lane, (observation, reward, terminated, truncated, info)."""
    lanes, worlds = [], []
    for lane in range(LANES):
        env = truth.single(size=SIZE, horizon=HORIZON)
        told = [(*env.reset(seed=5 + lane), None)]
        for action in truth.actions[:, lane]:
            told.append(env.step(action))
            if told[-1][2] or told[-1][3]:
                told.append((*env.reset(), None))
                worlds.append(getattr(env, "_engine", None) and env._engine.world)
        lanes.append(told)
    yield lanes
    del worlds  # kept until here, so that they need not be made again


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["next_step", "same_step", AutoresetMode.DISABLED])
def test_each_lane_is_the_single_env_across_resets(mode: Any, kind: str, truth: Truth, episodes: list[list[tuple]]) -> None:
    vec = KINDS[kind](truth)(LANES, size=SIZE, horizon=HORIZON, autoreset_mode=mode)
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
        actions = truth.actions[taken, np.arange(LANES)]
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
    vec.close()


def test_only_the_lanes_of_the_mask_are_reset(envs: Any) -> None:
    first, _ = envs.reset(seed=0)
    envs.step([1, 1, 1])
    options = {"reset_mask": np.array([True, False, True])}
    observation, info = envs.reset(seed=[0, 0, 1], options=options)
    assert list(options) == ["reset_mask"]  # the caller's dict is not touched
    assert info["_pose"].tolist() == [True, False, True] and not info["pose"][1].any()
    assert np.array_equal(observation["pov"][0], first["pov"][0]) and np.array_equal(observation["pov"][2], first["pov"][1])
    assert not np.array_equal(observation["pov"][1], first["pov"][1])
    assert [lane["elapsed"] for lane in envs.save_state()["lanes"]] == [0, 1, 0]
    assert envs.np_random_seed == (0, 1, 1)


def test_each_lane_has_its_own_options(envs: Any) -> None:
    _, info = envs.reset(seed=0)
    poses, goals = info["pose"] + np.float32([0, 0, 0, 0.5, 0.1]), info["pose"][:, :2] + [[5, 0], [0, 5], [-5, 0]]
    _, one = envs.reset(seed=0, options=[{"start": poses[0]}, None, {"goal": goals[2]}])
    assert np.array_equal(one["pose"], [poses[0], info["pose"][1], info["pose"][2]])
    assert np.array_equal(one["goal"][2, :2], goals[2].astype(np.float32)) and np.array_equal(one["goal"][1], info["goal"][1])
    _, rows = envs.reset(seed=0, options={"start": poses, "goal": goals})
    assert np.array_equal(rows["pose"], poses) and np.array_equal(rows["goal"][:, :2], goals.astype(np.float32))
    _, shared = envs.reset(seed=[0, 0, 0], options={"start": poses[0]})
    assert np.array_equal(shared["pose"], [poses[0]] * LANES)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"options": [{}]}, "one dict for each of 3 lanes"),
        ({"options": {"goal": np.zeros((2, 2))}}, "goal must have one entry for each of 3 lanes"),
        ({"options": {"reset_mask": [True, False, True]}}, "numpy bool array"),
        ({"options": {"reset_mask": np.zeros(3, bool)}}, "selects no lane"),
        ({"options": {"begin": 1}}, "unknown reset option 'begin'"),
        ({"seed": [1, 2]}, "2 seeds were given for 3 lanes"),
        ({"seed": 1, "options": [{}, {}, {"start": [128, 128, 3, 0, 0]}]}, "room for a body"),
    ],
)
def test_a_reset_that_fails_changes_nothing(envs: Any, keywords: dict[str, Any], message: str) -> None:
    envs.reset(seed=0)
    before = envs.save_state()
    with pytest.raises(ValueError, match=message):
        envs.reset(**keywords)
    after = envs.save_state()
    assert after["lanes"][0]["np_random"] == before["lanes"][0]["np_random"] and envs.np_random_seed == (0, 1, 2)
    assert all(np.array_equal(a["backend"]["body"], b["backend"]["body"]) for a, b in zip(after["lanes"], before["lanes"]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_that_no_lane_can_have_changes_nothing(kind: str, truth: Truth) -> None:
    envs, untouched = (KINDS[kind](truth)(LANES, size=SIZE, horizon=1, task="free") for _ in range(2))
    for each in (envs, untouched):
        each.reset(seed=0)
    with pytest.raises(gym.error.Error, match="-1"):
        envs.reset(seed=[4, -1, 5])
    assert envs.np_random_seed == (0, 1, 2)
    for actions in truth.actions[:3]:  # also over a reset: the generators are as they were
        assert same(envs.step(actions)[0], untouched.step(actions)[0])
    for each in (envs, untouched):
        each.close()


@pytest.mark.parametrize("actions", [[0, 0], [0, 0, 10], [0, 0, -1], [0.0, 0.0, 0.0], 1])
def test_wrong_actions_are_named(envs: Any, actions: Any) -> None:
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="actions must"):
        envs.step(actions)


def test_a_saved_state_continues_bit_for_bit(envs: Any) -> None:
    envs.reset(seed=0)
    envs.step([1, 2, 3])
    state = envs.save_state()
    other = MinecraftVectorEnv(LANES, size=SIZE)
    other.load_state(state)
    for _ in range(HORIZON):  # the last one resets
        (a, *rest_a, _), (b, *rest_b, _) = envs.step([5, 6, 8]), other.step([5, 6, 8])
        assert same(a, b) and all(same(x, y) for x, y in zip(rest_a, rest_b))
    lone = MinecraftEnv(size=SIZE)
    lone.load_state(state["lanes"][1])
    envs.load_state(state)
    assert same(lone.step(2)[0], lane_of(envs.step([0, 2, 0])[0], 1))
    with pytest.raises(ValueError, match="has 3 lanes, this env has 1"):
        MinecraftVectorEnv(1).load_state(state)


def test_a_single_env_must_be_reset_after_its_episode(truth: Truth) -> None:
    env = truth.single(size=SIZE, horizon=2, task="free")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    env.step(1)
    assert env.step(1)[3]
    state = env.save_state()
    with pytest.raises(gym.error.ResetNeeded, match="the episode is over"):
        env.step(1)
    assert same(state, env.save_state())  # the refused step changed nothing
    env.reset(seed=0)
    env.step(1)


@pytest.mark.parametrize("kind", KINDS)
def test_branches_of_an_ended_lane_show_its_last_frame_and_rest(kind: str, truth: Truth) -> None:
    """Lane 0 ends; lane 1 is reset and goes on."""
    envs = KINDS[kind](truth)(2, size=SIZE, horizon=2, autoreset_mode="disabled", task="free")
    envs.reset(seed=3)
    envs.step([1, 1])
    last, *_, shown = envs.step([1, 1])
    envs.reset(options={"reset_mask": np.array([False, True])})
    branches = envs.branch(2)
    for env, lanes in ((envs, 1), (branches, 2)):
        observation, rewards, terminated, truncated, info = env.step([2] * 2 * lanes)
        assert last[0].any() and all(same(frame, last[0]) for frame in observation[:lanes])
        assert all(same(pose, shown["pose"][0]) for pose in info["pose"][:lanes])
        assert truncated.tolist() == [True] * lanes + [False] * lanes and not rewards.any() and not terminated.any()
        assert not same(observation[lanes], last[0])
        env.close()


def test_branches_of_an_ended_single_env_rest(truth: Truth) -> None:
    env = truth.single(size=SIZE, horizon=1, task="free")
    env.reset(seed=0)
    last, *_ = env.step(1)
    observation, _, _, truncated, _ = env.branch(3).step([1, 2, 3])
    assert truncated.all() and last.any() and all(same(frame, last) for frame in observation)


@pytest.mark.parametrize("kind", list(KINDS)[:2])
def test_an_ended_lane_rests_when_nobody_resets_it(kind: str, truth: Truth) -> None:
    envs = KINDS[kind](truth)(LANES, size=SIZE, horizon=1, autoreset_mode="disabled", task="free")
    envs.reset(seed=0)
    last = envs.step([1, 3, 4])
    again = envs.step([1, 1, 1])
    assert same(last[0], again[0]) and last[3].all() and again[3].all() and not again[1].any()


def test_a_vector_state_is_gone_on_from_bit_for_bit(truth: Truth) -> None:
    envs, other = (truth.vector(LANES, size=SIZE, horizon=HORIZON, task="free") for _ in range(2))
    envs.reset(seed=0)
    envs.step(truth.actions[0])
    state = envs.save_state()
    other.reset(seed=9)
    other.load_state(state)
    for actions in truth.actions[1 : HORIZON + 3]:  # one of them resets
        for a, b in zip(envs.step(actions)[:4], other.step(actions)[:4], strict=True):
            assert same(a, b)
    lone = truth.single(size=SIZE, task="free")
    lone.load_state(state["lanes"][1])
    envs.load_state(state)
    assert same(lone.step(truth.actions[0, 1])[0], envs.step(truth.actions[0])[0][1])


def test_only_the_lanes_of_a_mask_are_opened_anew(truth: Truth) -> None:
    envs = truth.vector(LANES, size=SIZE, task="free")
    first, _ = envs.reset(seed=0)
    moved = envs.step([1, 1, 4])[0]
    observation, info = envs.reset(seed=[0, 0, 1], options={"reset_mask": np.array([True, False, True])})
    assert same(observation[0], first[0]) and same(observation[1], moved[1]) and same(observation[2], first[1])
    assert info["_pose"].tolist() == [True, False, True] and not info["pose"][1].any() and envs.np_random_seed == (0, 1, 1)


def test_what_a_vector_env_showed_is_the_callers_own(truth: Truth) -> None:
    envs, other = (truth.vector(LANES, size=SIZE, task="free") for _ in range(2))
    (observation, info), _ = envs.reset(seed=0), other.reset(seed=0)
    kept, pose = observation.copy(), info["pose"].copy()
    assert same(envs.step([1, 3, 4])[0], other.step([1, 3, 4])[0])
    assert np.array_equal(observation, kept) and np.array_equal(info["pose"], pose)
    info["pose"][:] = 7
    observation[:] = 7
    (a, *_, told), (b, *_, expected) = envs.step([1, 3, 4]), other.step([1, 3, 4])
    assert same(a, b) and same(told["pose"], expected["pose"])


def test_tensors_are_what_the_arrays_are(truth: Truth) -> None:
    plain, tensors = (truth.vector(1, size=SIZE, task="free", obs_type=kind) for kind in ("numpy", "torch"))
    (a, _), (b, _) = plain.reset(seed=0), tensors.reset(seed=0)
    assert isinstance(b, torch.Tensor) and np.array_equal(a, b.numpy())


def test_branches_of_lanes_lie_side_by_side_and_keep_or_change_their_generators(truth: Truth) -> None:
    envs = truth.vector(2, size=SIZE, task="free")
    envs.reset(seed=0)
    state = envs.save_state()
    branches = envs.branch(2)
    frames = branches.step([1, 3, 1, 3])[0]
    assert np.array_equal(frames[::2], envs.step([1, 1])[0])
    envs.load_state(state)
    assert np.array_equal(frames[1::2], envs.step([3, 3])[0])
    assert branches.np_random_seed == (0, 0, 1, 1) and envs.branch(2, seeds=[5, 6, 7, 8]).np_random_seed == (5, 6, 7, 8)


def test_observations_and_info_are_the_callers_own(envs: Any) -> None:
    observation, info = envs.reset(seed=0)
    kept, pose = observation["pov"].copy(), info["pose"].copy()
    envs.step([5, 5, 5])
    assert np.array_equal(observation["pov"], kept) and np.array_equal(info["pose"], pose)
    info["pose"][:] = 0
    assert envs.step(NOOP)[-1]["pose"].all(0)[:3].all()


def test_torch_observations_are_the_numpy_ones() -> None:
    plain, tensors = (MinecraftVectorEnv(1, size=SIZE, obs_type=kind) for kind in ("numpy", "torch"))
    (a, _), (b, _) = plain.reset(seed=0), tensors.reset(seed=0)
    assert isinstance(b["pov"], torch.Tensor) and isinstance(b["compass"], torch.Tensor)
    assert all(np.array_equal(a[key], b[key].numpy()) for key in a)


def test_make_vec_makes_it_and_its_spec_is_json() -> None:
    envs = gym.make_vec(
        "Minecraft-v0",
        num_envs=2,
        max_episode_steps=2,
        autoreset_mode=AutoresetMode.SAME_STEP,
        render_mode="rgb_array",
        render_size=[16, 24],
    )
    assert isinstance(envs, MinecraftVectorEnv) and envs.horizon == 2
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert json.loads(envs.spec.to_json())["kwargs"]["autoreset_mode"] == "same_step"
    counted = RecordEpisodeStatistics(envs)
    observation, _ = counted.reset(seed=0)
    assert counted.observation_space.contains(observation)
    frames = envs.render()
    assert isinstance(frames, tuple) and [frame.shape for frame in frames] == [(16, 24, 3)] * 2
    counted.step([1, 1])
    *_, truncated, info = counted.step([1, 1])
    assert truncated.all() and info["episode"]["l"].tolist() == [2, 2]
    assert MinecraftVectorEnv(1).render_mode is None


@pytest.mark.parametrize(
    "keywords",
    [{"autoreset_mode": "never"}, {"obs_type": "jax"}, {"num_envs": 0}, {"horizon": 5, "max_episode_steps": 7}, {"task": "fly"}],
)
def test_a_wrong_keyword_is_named(keywords: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        MinecraftVectorEnv(**keywords)
    assert all(repr(value) in str(caught.value) for value in keywords.values())


def test_it_must_be_reset_first() -> None:
    envs = MinecraftVectorEnv(2)
    for call in (lambda: envs.step([0, 0]), envs.save_state, envs.render):
        with pytest.raises(gym.error.ResetNeeded):
            call()
    with pytest.raises(gym.error.ResetNeeded):
        envs.reset(options={"reset_mask": np.array([True, False])})


@pytest.mark.slow
def test_the_benchmark_gives_a_figure_for_each_thing() -> None:
    from wmgym.envs.minecraft.bench import LANES, SIZES, bench

    result = bench(seconds=0.05)
    assert len(result) == len(SIZES) + len(LANES) + 3 and all(value > 0 for value in result.values())


def test_near_goals_are_near_in_single_and_vector_envs_and_in_dreams(tmp_path: Path) -> None:
    vec = gym.make_vec("Minecraft-v0", num_envs=4, task="navigate-near", size=8)
    _, batch = vec.reset(seed=50)
    assert bool(((batch["goal_distance"] >= 4) & (batch["goal_distance"] <= 10)).all())
    dream, truth = wmgym.twin("WorldPack-Minecraft-v0", task="navigate-near", checkpoint=tiny_checkpoint(tmp_path))
    for lane in range(2):
        for env in (dream, truth):
            _, info = env.reset(seed=50 + lane)
            np.testing.assert_array_equal(info["goal"], batch["goal"][lane])
    assert truth.unwrapped.horizon == 100 + 24  # type: ignore[attr-defined]  # and the look around
    assert dream.unwrapped.horizon == 100  # type: ignore[attr-defined]
