"""The Stable-Baselines3 adapter: what it hands over is what the vector env showed, and PPO runs on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from standins import StandInWorld, assert_same, clip, vector

sb3 = pytest.importorskip("wmgym.integrations.sb3")


def pair(**keywords: Any) -> tuple[Any, Any]:
    """The adapter, and the same vector env to compare it with."""
    made = [vector(2, autoreset_mode="same_step", horizon=3, **keywords) for _ in range(2)]
    return sb3.adapt(made[0], monitor=False), made[1]


def test_it_shows_what_the_vector_env_shows_and_the_last_observation_in_the_info() -> None:
    adapted, vec = pair()
    adapted.seed(4)
    seen, (expected, expected_info) = adapted.reset(), vec.reset(seed=4)
    assert_same(seen, expected)
    np.testing.assert_array_equal(adapted.reset_infos[1]["pose"], expected_info["pose"][1])
    for step in range(1, 8):
        actions = np.array([step % 10, 1])
        seen, rewards, done, infos = adapted.step(actions)
        expected, expected_rewards, _, _, batch = vec.step(actions)
        assert_same(seen, expected)
        assert rewards.dtype == np.float32
        np.testing.assert_array_equal(rewards, expected_rewards.astype(np.float32))
        assert done.tolist() == [step % 3 == 0] * 2
        for lane, info in enumerate(infos):
            assert info["TimeLimit.truncated"] == (step % 3 == 0)
            assert ("terminal_observation" in info) == (step % 3 == 0)
            told = batch["final_info"] if step % 3 == 0 else batch
            np.testing.assert_array_equal(info["pose"], told["pose"][lane])
            np.testing.assert_array_equal(info["memory_retrieved"], told["memory_retrieved"][lane])
            if step % 3 == 0:
                assert_same(info["terminal_observation"], batch["final_obs"][lane])
                np.testing.assert_array_equal(adapted.reset_infos[lane]["pose"], batch["pose"][lane])


def test_an_arrival_is_no_time_limit() -> None:
    adapted, _ = pair()
    adapted.set_options({"goal": [0.5, 0], "opening": clip(1)})
    adapted.reset()
    _, rewards, done, infos = adapted.step(np.array([1, 1]))
    assert done.all()
    assert not infos[0]["TimeLimit.truncated"]
    assert rewards[0] > 99


def test_seeds_and_options_are_used_once() -> None:
    adapted, _ = pair()
    adapted.seed(4)
    first = adapted.reset()
    second = adapted.reset()
    assert (first["pov"] != second["pov"]).any()
    adapted.seed(4)
    assert_same(adapted.reset(), first)


def test_attributes_methods_and_images() -> None:
    adapted, vec = pair(render_mode="rgb_array")
    adapted.reset()
    assert adapted.get_attr("horizon") == [3, 3]
    assert adapted.get_attr("np_random_seed", indices=[1]) == [adapted.env.np_random_seed[1]]
    assert adapted.env_method("get_action_meanings", indices=0) == [vec.get_action_meanings()]
    assert adapted.env_is_wrapped(object) == [False, False]
    adapted.set_attr("label", 9)
    assert adapted.get_attr("label") == [9, 9]
    with pytest.raises(ValueError, match="one env"):
        adapted.set_attr("label", 9, indices=[0])
    with pytest.raises(AttributeError, match="horizon"):  # it is part of what names the env in its saved states
        adapted.set_attr("horizon", 9)
    assert [image.shape for image in adapted.get_images()] == [(16, 16, 3)] * 2
    assert adapted.render().shape == (32, 16, 3)
    assert not adapted.has_attr("nonsense")
    adapted.close()


def test_another_way_to_reset_is_refused() -> None:
    with pytest.raises(ValueError, match="same_step"):
        sb3.adapt(vector(2))
    with pytest.raises(ValueError, match="autoreset_mode"):
        sb3.make_vec("WorldPack-Minecraft-v0", 2, autoreset_mode="disabled")


def test_ppo_runs_a_thousand_steps_and_counts_the_episodes() -> None:
    from stable_baselines3 import PPO

    env = sb3.adapt(vector(4, StandInWorld(size=36), horizon=50, autoreset_mode="same_step"))
    model = PPO("MultiInputPolicy", env, n_steps=125, batch_size=125, n_epochs=1, seed=0, device="cpu")
    model.learn(1000)
    assert model.num_timesteps == 1000
    assert len(model.ep_info_buffer) >= 16
    assert max(episode["l"] for episode in model.ep_info_buffer) == 50
