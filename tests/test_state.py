"""A running env is a value: saved, loaded and branched it goes on bit for bit, and nobody's past is edited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from safetensors.torch import load_file, save_file
from standins import StandInWorld, assert_same, clip, single, vector

import wmgym
from wmgym import tree

ACTIONS = np.random.default_rng(0).integers(10, size=40)


def walk(env: Any, actions: Any) -> list[Any]:
    """What an env shows along actions, over the ends of episodes."""
    shown = []
    for action in actions:
        step = env.step(action)
        shown.append(step)
        if np.ndim(step[2]) == 0 and (step[2] or step[3]):
            shown.append(env.reset())
    return shown


def test_a_loaded_state_goes_on_bit_for_bit_also_over_the_next_reset() -> None:
    env = single(horizon=7)
    env.reset(seed=1)
    walk(env, ACTIONS[:4])
    state = env.save_state()
    expected = walk(env, ACTIONS[4:24])  # over several resets: np_random and elapsed steps are in the state
    env.load_state(state)
    assert_same(walk(env, ACTIONS[4:24]), expected)
    other = single(horizon=7)
    other.reset(seed=99)
    other.load_state(state)
    assert_same(walk(other, ACTIONS[4:24]), expected)


@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_a_vector_env_too(mode: str, chunk: int) -> None:
    vec = vector(2, StandInWorld(chunk=chunk), horizon=5, autoreset_mode=mode, hold_action=True)
    vec.reset(seed=1)
    actions = ACTIONS.reshape(20, 2)
    walk(vec, actions[:3])
    state = vec.save_state()
    expected = walk(vec, actions[3:12])
    other = vector(2, StandInWorld(chunk=chunk), horizon=5, autoreset_mode=mode, hold_action=True)
    other.load_state(state)
    assert other.np_random_seed == vec.np_random_seed == (1, 2)
    assert_same(walk(other, actions[3:12]), expected)


def test_a_saved_state_is_not_touched_by_what_follows() -> None:
    env = single(horizon=7)
    env.reset(seed=1)
    walk(env, ACTIONS[:4])
    state = env.save_state()
    copies = {name: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for name, leaf in tree.leaves(state).items()}
    walk(env, ACTIONS)
    env.observe(**clip(4))
    env.branch(3, seeds=0).step([1, 2, 3])
    assert_same(_arrays(tree.leaves(state)), _arrays(copies))


def test_branches_keep_the_parents_noise_and_leave_it_untouched() -> None:
    env, undisturbed = single(horizon=30), single(horizon=30)
    for each in (env, undisturbed):
        each.reset(seed=2)
        walk(each, ACTIONS[:5])
    branches = env.branch(3)
    futures = walk(branches, np.repeat(ACTIONS[5:15, None], 3, 1))
    expected = walk(undisturbed, ACTIONS[5:15])
    for (seen, rewards, *_), (alone, reward, *_) in zip(futures, expected, strict=True):
        for lane in range(3):
            np.testing.assert_array_equal(seen["pov"][lane], alone["pov"])
            assert rewards[lane] == reward
    assert_same(walk(env, ACTIONS[5:15]), expected)


def test_branches_with_seeds_have_noise_of_their_own() -> None:
    env = single()
    env.reset(seed=2)
    by_list, by_int = env.branch(2, seeds=[4, 5]), env.branch(2, seeds=4)
    a, b, parent = by_list.step([1, 1])[0]["pov"], by_int.step([1, 1])[0]["pov"], env.step(1)[0]["pov"]
    np.testing.assert_array_equal(a, b)
    assert (a[0] != a[1]).any() and (a[0] != parent).any()
    with pytest.raises(ValueError, match="seeds"):
        env.branch(3, seeds=[1, 2])


def test_branches_share_memory_until_it_is_written() -> None:
    env = single()
    env.reset(seed=2)
    branches = env.branch(50)
    ours, theirs = env.save_state().state.world.memories[0].colours, branches.save_state().state.world.memories[0].colours
    assert theirs.data.data_ptr() == ours.data.data_ptr()
    assert theirs.rows.tolist() == [0] * 50


def test_branches_never_reset_by_themselves() -> None:
    env = single(horizon=3)
    env.reset(seed=2)
    branches = env.branch(2)
    cut = [branches.step([0, 0])[3].tolist() for _ in range(5)]
    assert cut == [[False] * 2] * 2 + [[True] * 2] * 3
    assert not env.step(0)[3]


def test_a_vector_env_branches_each_lane() -> None:
    vec = vector(2)
    vec.reset(seed=2)
    branches = vec.branch(2)
    assert branches.num_envs == 4
    futures, parents = branches.step([1, 1, 2, 2])[0]["pov"], vec.step([1, 2])[0]["pov"]
    np.testing.assert_array_equal(futures, parents[[0, 0, 1, 1]])


def test_some_lanes_go_on_alike_as_an_env_of_their_own() -> None:
    vec, same = vector(3), vector(3)
    for env in (vec, same):
        env.reset(seed=2)
        env.step([1, 2, 3])
    some = vec.select([2, 0])
    futures = walk(some, np.repeat(ACTIONS[:5, None], 2, 1))
    rest = walk(vec, np.repeat(ACTIONS[:5, None], 3, 1))
    assert_same(rest, walk(same, np.repeat(ACTIONS[:5, None], 3, 1)))
    for few, all_of in zip(futures, rest, strict=True):
        np.testing.assert_array_equal(few[0]["pov"], all_of[0]["pov"][[2, 0]])
    for wrong in ([], [3], [-1]):
        with pytest.raises(ValueError, match="from 0 to 2"):
            vec.select(wrong)


def test_branches_outlive_a_reset_and_can_be_reset_themselves() -> None:
    env = single()
    env.reset(seed=2)
    branches = env.branch(2)
    env.reset(seed=3)
    branches.close()
    env.reset(seed=3)
    seen, _ = branches.reset(seed=3)
    np.testing.assert_array_equal(seen["pov"][0], single().reset(seed=3)[0]["pov"])


def test_observed_frames_are_remembered_and_cost_no_steps() -> None:
    """Opening on a whole clip, or on its beginning and being shown the rest: the same world but for its noise."""
    whole = clip(9)
    head, tail = ({key: value[part] for key, value in whole.items()} for part in (slice(4), slice(4, None)))
    one, two = (single(StandInWorld(noise=0), task="free", horizon=2) for _ in range(2))
    seen, info = one.reset(seed=0, options={"opening": whole})
    two.reset(seed=0, options={"opening": head})
    shown, shown_info = two.observe(**tail)
    np.testing.assert_array_equal(shown, seen)
    assert_same(shown_info, info)
    assert_same(walk(two, [1, 2]), walk(one, [1, 2]))


def test_a_vector_env_observes_clips_of_different_lengths() -> None:
    clips = [clip(2), clip(6, x=3)]
    vec, envs = vector(2), [single(), single()]
    vec.reset(seed=4)
    batch, _ = vec.observe(*([each[key] for each in clips] for key in ("frames", "actions", "poses")))
    for lane, env in enumerate(envs):
        env.reset(seed=4 + lane)
        alone, _ = env.observe(**clips[lane])
        np.testing.assert_array_equal(batch["compass"][lane], alone["compass"])
    batch, *_ = vec.step([1, 2])
    for lane, env in enumerate(envs):
        np.testing.assert_array_equal(batch["pov"][lane], env.step(lane + 1)[0]["pov"])


@pytest.mark.parametrize("make", [lambda: single(horizon=7), lambda: vector(2, StandInWorld(chunk=3), horizon=7)], ids=["single", "vector"])
def test_a_state_on_disk_comes_back_bit_for_bit(make: Any, tmp_path: Path) -> None:
    env, fresh = make(), make()
    env.reset(seed=1)
    actions = [env.action_space.sample() for _ in range(12)]
    walk(env, actions[:3])
    path = tmp_path / "state.safetensors"
    wmgym.save_state_file(env.save_state(), path)
    expected = walk(env, actions[3:])
    fresh.reset(seed=50)
    fresh.load_state(wmgym.load_state_file(path, fresh))
    assert_same(walk(fresh, actions[3:]), expected)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # no drafts left


def test_bad_state_files_raise_one_error_that_names_them(tmp_path: Path) -> None:
    env = single()
    env.reset(seed=1)
    good = tmp_path / "good.safetensors"
    wmgym.save_state_file(env.save_state(), good)
    cut, foreign, other = (tmp_path / name for name in ("cut", "foreign", "other"))
    cut.write_bytes(good.read_bytes()[:-100])
    save_file(load_file(good), foreign)
    wmgym.save_state_file({"elapsed": 3, "pose": np.zeros(5)}, other)
    for path in (cut, foreign, other):
        with pytest.raises(ValueError, match=str(path)):
            wmgym.load_state_file(path, env)
    with pytest.raises(FileNotFoundError):
        wmgym.load_state_file(tmp_path / "nothing", env)


def test_a_plain_dict_state_of_a_ground_truth_goes_to_disk_too(tmp_path: Path) -> None:
    state = {"np_random": np.random.default_rng(3).bit_generator.state, "pose": np.arange(5, dtype=np.float32), "goal": None, "elapsed": 4}

    class Truth:
        unwrapped = property(lambda self: self)

        def save_state(self) -> dict[str, Any]:
            return state

    wmgym.save_state_file(state, tmp_path / "truth")
    back = wmgym.load_state_file(tmp_path / "truth", Truth())
    assert_same(back, state)
    np.random.default_rng().bit_generator.state = back["np_random"]


def test_a_state_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    wmgym.save_state_file({"elapsed": 1}, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="backend"):
        wmgym.save_state_file({"backend": object()}, path)
    assert path.read_bytes() == before


def test_states_of_other_envs_are_refused() -> None:
    env, vec, chunked = single(), vector(2), single(StandInWorld(chunk=3))
    for each in (env, vec, chunked):
        each.reset(seed=0)
    for state in (vec.save_state(), chunked.save_state(), {"elapsed": 1}):
        with pytest.raises(ValueError):
            env.load_state(state)
    with pytest.raises(ResetNeeded):
        single().save_state()


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        ({"task": "free", "horizon": 9}, {"horizon": 9}, "another env: task is 'free' there and 'navigate' here"),
        ({"horizon": 7}, {"horizon": 500}, "another env: horizon is 7 there and 500 here"),
        ({"world": StandInWorld(chunk=3)}, {}, "another env: chunk is 3 there and 1 here"),
        ({"world": StandInWorld(size=20)}, {}, r"frames \[1, 1, 20, 20, 3\], this env \[1, 1, 16, 16, 3\]"),
    ],
)
def test_a_state_of_another_env_is_refused_with_both_sides_named(theirs: Any, ours: Any, message: str, tmp_path: Path) -> None:
    there, here = single(**theirs), single(**ours)
    for env in (there, here):
        env.reset(seed=1)
    before, state = here.save_state(), there.save_state()
    wmgym.save_state_file(state, tmp_path / "state")
    for foreign in (state, wmgym.load_state_file(tmp_path / "state", here)):
        with pytest.raises(ValueError, match=message):
            here.load_state(foreign)
    assert here.save_state().state is before.state


def test_a_state_goes_to_envs_of_its_own_id_only() -> None:
    keywords = {"checkpoint": StandInWorld(), "setting": "minecraft", "opening": clip()}
    one, same = (gym.make("NWM-Minecraft-v0", memory=None, **keywords).unwrapped for _ in range(2))
    other = gym.make("WorldPack-Minecraft-v0", memory=None, **keywords).unwrapped
    for env in (one, same, other):
        env.reset(seed=1)
    same.load_state(one.save_state())
    with pytest.raises(ValueError, match="id is 'NWM-Minecraft-v0' there and 'WorldPack-Minecraft-v0' here"):
        other.load_state(one.save_state())
    assert one.branch(2).identity == one.identity


def _arrays(leaves: dict[str, Any]) -> dict[str, Any]:
    return {name: leaf.numpy() if isinstance(leaf, torch.Tensor) else leaf for name, leaf in leaves.items()}
