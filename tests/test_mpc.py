"""Planning in imagination: branches are what steps give, and plans lead to the goal in the truth and in a dream that is shown it."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from standins import StandInWorld, single, vector

from wmgym.agents.cem import Gaussian
from wmgym.agents.mpc import PRESETS, PlanningAgent, imagine, preset, straight_lines
from wmgym.agents.objectives import Futures, make_objective
from wmgym.geometry import compose
from wmgym.kinematics import Displacement

FORWARD = 1


def truth(**keywords: Any) -> Any:
    return gym.make("wmgym:Minecraft-v0", **keywords).unwrapped


def test_imagined_futures_are_what_steps_give() -> None:
    env = vector(2, StandInWorld(size=36))
    env.reset(seed=3)
    actions = np.random.default_rng(0).integers(0, 10, (2, 3, 4))
    futures = imagine(env, actions, seeds=[5, 6])
    for k in range(3):
        alone = env.branch(1, seeds=[5, 6])
        for t in range(4):
            seen, rewards, *_, info = alone.step(actions[:, k, t])
            np.testing.assert_array_equal(futures.poses[:, k, t].numpy(), info["pose"])
            np.testing.assert_array_equal(futures.rewards[:, k, t].numpy(), rewards.astype(np.float32))
        np.testing.assert_array_equal(futures.frames[:, k].numpy(), seen["pov"])


def test_how_many_are_dreamed_at_once_changes_nothing() -> None:
    env = vector(2, StandInWorld(size=36))
    env.reset(seed=3)
    actions = np.random.default_rng(0).integers(0, 10, (2, 5, 3))
    whole, split = (imagine(env, actions, [1, 2], at_once) for at_once in (512, 3))
    for name in ("frames", "poses", "rewards"):
        assert torch.equal(getattr(whole, name), getattr(split, name))


def test_frames_that_stay_on_the_device_are_the_same() -> None:
    actions = np.random.default_rng(0).integers(0, 10, (2, 3, 2))
    shown = []
    for obs_type in ("numpy", "torch"):
        env = vector(2, StandInWorld(size=36), obs_type=obs_type)
        env.reset(seed=3)
        shown.append(imagine(env, actions, [1, 2]))
    for name in ("frames", "poses", "rewards"):
        assert torch.equal(*(getattr(futures, name) for futures in shown))


@pytest.mark.parametrize("name", ["cem", "nwm"])
def test_a_plan_dreams_as_many_frames_as_its_settings_say(name: str) -> None:
    env = vector(2, StandInWorld(size=36))
    env.reset(seed=3)
    config = preset(name, line=False)
    agent = PlanningAgent([env], make_objective("reward"), config, seed=0)
    agent.plan()
    assert agent.dreamed == 2 * config.frames
    assert config.frames == {"cem": 16 * 2 * 8, "nwm": (120 + 1) * 3 * 8}[name]


@pytest.mark.parametrize("apart", [False, True])
def test_lanes_whose_episode_is_over_are_planned_for_no_more_and_the_others_plan_alike(apart: bool) -> None:
    """In one vector model, or in a model for each lane; also in the middle of a decision that is held."""
    goals = torch.tensor([[5.0, 5, 0, 0, 0], [-5, 5, 0, 0, 0], [5, -5, 0, 0, 0]])
    config = preset("cem", horizon=4, hold=2, samples=8)

    def agent() -> PlanningAgent:
        models = [single(StandInWorld(size=36)) for _ in range(3)] if apart else [vector(3, StandInWorld(size=36))]
        for lane, model in enumerate(models):
            model.reset(seed=3 + lane)
        return PlanningAgent(models, make_objective("pose", goal_poses=goals), config, seed=0)

    def step(one: PlanningAgent, actions: np.ndarray) -> None:
        for model, told in zip(one.models, actions if apart else [actions], strict=True):
            model.step(told)

    whole, fewer = agent(), agent()
    step(whole, whole.act())
    step(fewer, fewer.act())
    fewer.keep([0, 2])
    before = fewer.dreamed
    for _ in range(4):
        expected, actions = whole.act(), fewer.act()
        np.testing.assert_array_equal(actions, expected[[0, 2]])
        step(whole, expected)
        step(fewer, actions)
    assert fewer.dreamed - before == 2 * 2 * config.frames  # two decisions of two lanes


def test_all_candidates_of_all_lanes_are_one_batch() -> None:
    world = StandInWorld(size=36)
    env = vector(2, world)
    env.reset(seed=3)
    before = world.steps
    agent = PlanningAgent([env], make_objective("reward"), preset("cem", horizon=4, samples=16, iterations=2), seed=0)
    assert agent.act().shape == (2,)
    assert world.steps - before == 2 * 4  # iterations x steps, whatever the number of lanes and candidates
    assert agent.dreamed == 2 * 2 * 16 * 4


def test_planning_changes_nothing_in_the_world_it_plans_in() -> None:
    env, other = single(StandInWorld(size=36)), single(StandInWorld(size=36))
    for each in (env, other):
        each.reset(seed=3)
    PlanningAgent([env], make_objective("reward"), preset("cem", horizon=4, samples=16), seed=0).act()
    seen, expected = env.step(FORWARD), other.step(FORWARD)
    np.testing.assert_array_equal(seen[0]["pov"], expected[0]["pov"])


def test_two_agents_with_one_seed_act_alike_and_remember_their_plans() -> None:
    def plans(seed: int) -> list[torch.Tensor]:
        env = vector(2, StandInWorld(size=36))
        env.reset(seed=3)
        agent = PlanningAgent([env], make_objective("pose", goal_poses=[[5.0, 5, 0, 0, 0]] * 2), preset("cem", horizon=4), seed)
        out = []
        for _ in range(2):
            env.step(agent.act())
            assert agent.found is not None
            out.append(agent.found.distribution)
        return out

    assert all(torch.equal(a, b) for a, b in zip(plans(1), plans(1), strict=True))
    assert not torch.equal(plans(1)[0], plans(2)[0])


def test_repeats_average_the_noise() -> None:
    """The stand-in's noise is in its frames: costs of one plan spread less when each is the mean of several dreams."""
    env = single(StandInWorld(size=36, noise=0.3))
    env.reset(seed=3)
    goal = np.full((1, 36, 36, 3), 128, np.uint8)

    def costs(repeats: int) -> float:
        found = []
        for seed in range(8):
            config = preset("cem", horizon=1, samples=1, iterations=1, repeats=repeats)
            agent = PlanningAgent([env], make_objective("ssim", goal_frames=goal), config, seed)
            found.append(float(agent.plan().cost))
        return float(np.std(found))

    assert costs(8) < 0.7 * costs(1)


@pytest.mark.parametrize("objective", ["pose", "reward"])
def test_planning_with_the_truth_as_the_model_reaches_the_goal(objective: str) -> None:
    env = truth(task="navigate", size=8)
    pose = env.reset(seed=101)[1]["pose"]
    behind = pose[:2] - 6 * np.array([math.cos(pose[3]), math.sin(pose[3])])  # one must turn round first
    _, info = env.reset(seed=101, options={"goal": behind})
    goals = make_objective(objective, goal_poses=[info["goal"]])
    agent = PlanningAgent([env], goals, preset("cem", horizon=16, hold=2, samples=96, elites=8, iterations=3), seed=0)
    terminated, steps = False, 0
    while not terminated and steps < 40:
        _, _, terminated, _, info = env.step(int(agent.act()[0]))
        steps += 1
    assert terminated, f"{info['goal_distance']:.1f} blocks are left"


def test_a_dream_that_is_shown_the_truth_leads_to_the_goal() -> None:
    """Model and truth are two envs; the truth's frames and poses are observed before each plan."""
    truth_env = gym.make("StandInTruth-v0", size=36, disable_env_checker=True).unwrapped
    seen, info = truth_env.reset(seed=4)
    goal = np.array([info["pose"][0] - 4, info["pose"][1] + 4, 0, 0, 0], np.float32)
    opening = {"frames": seen["pov"][None], "actions": [0], "poses": info["pose"][None]}
    dream = vector(1, StandInWorld(size=36), context=opening)
    dream.reset(seed=4, options={"goal": goal})
    agent = PlanningAgent([dream], make_objective("pose", goal_poses=goal[None]), preset("cem", horizon=8, hold=2, samples=96), seed=0)
    for _ in range(30):
        action = int(agent.act()[0])
        seen, _, _, _, info = truth_env.step(action)
        dream.observe(seen["pov"][None, None], np.array([[action]]), info["pose"][None, None])
        if np.hypot(*(info["pose"][:2] - goal[:2])) < 2:
            return
    pytest.fail(f"ended {np.hypot(*(info['pose'][:2] - goal[:2])):.1f} blocks away")


def test_chunks_are_planned_as_wholes() -> None:
    env = vector(2, StandInWorld(size=36, chunk=3))
    env.reset(seed=3)
    agent = PlanningAgent([env], make_objective("reward"), preset("cem", horizon=2, samples=8), seed=0)
    actions = agent.act()
    assert actions.shape == (2, 3)
    env.step(actions)


# -- continuous actions: a point that is pushed -----------------------------------------------------------------------------------------


MOVES = Displacement()


class Pushed(VectorEnv):
    """A point in the plane: an action moves and turns it by so much. Its lanes never end."""

    def __init__(self, poses: np.ndarray) -> None:
        self.poses, self.num_envs = poses, len(poses)
        self.single_action_space = gym.spaces.Box(np.float32([-0.5, -1, -1]), np.float32([1, 0.25, 1]))
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.told: list[np.ndarray] = []

    def branch(self, n: int, seeds: Any = None) -> Pushed:
        copy = Pushed(self.poses.repeat(n, 0))
        copy.told = self.told
        return copy

    def step(self, actions: Any) -> Any:
        self.told.append(actions)
        self.poses = self.poses.copy()
        self.poses[:, [0, 1, 3]] += actions
        still = np.zeros((self.num_envs, 8, 8, 3), np.uint8)
        return still, np.zeros(self.num_envs), np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool), {"pose": self.poses}


@pytest.mark.parametrize("name", ["cem", "mppi"])
def test_continuous_plans_stay_in_asymmetric_bounds_and_arrive(name: str) -> None:
    env = Pushed(np.zeros((2, 5), np.float32))
    goals = np.float32([[3, -2, 0, 0, 0], [-1, 0.5, 0, 0, 0]])
    config = preset(name, horizon=5, samples=256, iterations=4, temperature=0.05)
    agent = PlanningAgent([env], make_objective("pose", goal_poses=goals), config, seed=0)
    for _ in range(7):
        env.step(agent.act())
    assert np.linalg.norm(env.poses[:, :2] - goals[:, :2], axis=1).max() < 0.4
    space = env.single_action_space
    assert all(((told >= space.low) & (told <= space.high)).all() for told in env.told)


class Driven(Pushed):
    """Its actions are displacements in the robot's own frame."""

    def __init__(self, poses: np.ndarray) -> None:
        super().__init__(poses)
        self.single_action_space = gym.spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def branch(self, n: int, seeds: Any = None) -> Driven:
        return Driven(self.poses.repeat(n, 0))

    def step(self, actions: Any) -> Any:
        *still, _ = super().step(np.zeros_like(actions))
        self.poses = compose(torch.from_numpy(self.poses), MOVES.motion(torch.from_numpy(actions))).numpy()
        return *still, {"pose": self.poses}


def test_nwms_straight_lines_go_to_the_goal_and_do_not_bend() -> None:
    env = Driven(np.zeros((1, 5), np.float32))
    prior = Gaussian(torch.tensor([-0.2, 0, 0]), torch.tensor([0.3, 0.3, 0.1]))
    config = preset("nwm")
    agent = PlanningAgent([env], ends_at(1.2, -0.8), config, 0, straight_lines(config, prior, MOVES))
    found = agent.plan()
    assert agent.dreamed == 120 * 3 * 8 + 3 * 8  # the last plan is dreamed as often as the candidates
    walked = []
    for action in agent.parametrisation.expand(found.plan[:, None])[0, 0].numpy():
        env.step(action[None])
        walked.append(env.poses[0, :2])
    line = np.arange(1, 9)[:, None] / 8 * walked[-1]
    np.testing.assert_allclose(walked, line, atol=1e-5)
    np.testing.assert_allclose(walked[-1], [1.2, -0.8], atol=0.4)


def ends_at(x: float, y: float) -> Any:
    def cost(futures: Futures) -> torch.Tensor:
        return (futures.poses[:, :, -1, :2] - torch.tensor([x, y])).norm(dim=-1)

    return cost


# -- what is refused --------------------------------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused() -> None:
    env = vector(1, StandInWorld(size=36))
    with pytest.raises(ValueError, match="MPPI plans continuous"):
        PlanningAgent([env], make_objective("reward"), PRESETS["mppi"], 0)
    with pytest.raises(ValueError, match="straight_lines"):
        PlanningAgent([env], make_objective("reward"), PRESETS["nwm"], 0)
    with pytest.raises(ValueError, match="planner must be one of"):
        preset("dreamer")
    with pytest.raises(ValueError, match="multiple of hold"):
        preset("cem", hold=3)
    with pytest.raises(ValueError, match="elites"):
        preset("cem", elites=100)
