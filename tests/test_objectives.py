"""Objectives: what is at its goal costs nothing, what is nearer costs less, and each lane has its own goal."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from torch import Tensor

from wmgym.agents.objectives import Futures, make_objective
from wmgym.metrics import image

GOALS = torch.randint(0, 256, (2, 16, 16, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def futures(frames: Tensor | None = None, poses: Tensor | None = None, rewards: Tensor | None = None) -> Futures:
    blank = torch.zeros(2, 3, 16, 16, 3, dtype=torch.uint8)
    return Futures(
        blank if frames is None else frames,
        torch.zeros(2, 3, 4, 5) if poses is None else poses,
        torch.zeros(2, 3, 4) if rewards is None else rewards,
    )


def encode(frames: Tensor) -> Tensor:
    return frames.float().mean((2, 3))[..., None, None] / 255


def mixed(share: float) -> Tensor:
    """The goals, with this much grey."""
    return ((1 - share) * GOALS.float() + share * 128).to(torch.uint8)


@pytest.mark.parametrize("name", ["ssim", "latent"])
def test_the_goal_itself_costs_nothing_and_the_further_the_more(name: str) -> None:
    objective = make_objective(name, goal_frames=GOALS, encode=encode)
    shown = torch.stack([GOALS, mixed(0.2), mixed(0.6)], 1)
    cost = objective(futures(shown))
    assert cost.shape == (2, 3)
    torch.testing.assert_close(cost[:, 0], torch.zeros(2), atol=1e-6, rtol=0)
    assert bool((cost[:, 1:] > cost[:, :-1]).all())
    swapped = objective(futures(shown.flip(0)))
    assert bool((swapped[:, 0] > cost[:, 0]).all())  # each lane has its own goal


def test_ssim_costs_what_it_lacks_of_one() -> None:
    shown = torch.stack([mixed(0.3), mixed(0.5), GOALS], 1)
    cost = make_objective("ssim", goal_frames=GOALS)(futures(shown))
    torch.testing.assert_close(cost[1, 1], 1 - image.ssim(shown[1, 1:2], GOALS[1:])[0])


def test_lpips_is_that_of_the_metric_or_says_what_it_lacks() -> None:
    objective = make_objective("lpips", goal_frames=GOALS)
    if image.lpips_available():
        assert float(objective(futures(GOALS[:, None].expand(2, 3, 16, 16, 3))).abs().max()) < 1e-4
    else:
        with pytest.raises((ValueError, ImportError), match="LPIPS needs"):
            objective(futures())


@pytest.mark.skipif(importlib.util.find_spec("dreamsim") is not None, reason="dreamsim is installed")
def test_dreamsim_says_what_to_install() -> None:
    with pytest.raises(ImportError, match="pip install dreamsim"):
        make_objective("dreamsim", goal_frames=GOALS)(futures())


def test_a_pose_costs_its_mean_distance_and_the_turn_that_is_left() -> None:
    goal = torch.tensor([[3.0, 4.0, 9.0, math.pi - 0.1, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    poses = torch.zeros(2, 3, 4, 5)
    poses[:, 1, 2:, :2] = torch.tensor([3.0, 4.0])  # there after half of the time
    poses[:, 2, :, 3] = -math.pi + 0.1
    cost = make_objective("pose", goal_poses=goal, yaw_weight=2.0)(futures(poses=poses))
    torch.testing.assert_close(cost[0], torch.tensor([5 + 2 * (math.pi - 0.1), 2.5 + 2 * (math.pi - 0.1), 5 + 2 * 0.2]))
    torch.testing.assert_close(cost[1, 0], torch.tensor(0.0))


def test_rewards_count_less_the_later_they_come() -> None:
    rewards = torch.zeros(2, 3, 4)
    rewards[0, 0, 0] = rewards[0, 1, 3] = 1.0
    cost = make_objective("reward", discount=0.5)(futures(rewards=rewards))
    torch.testing.assert_close(cost[0], torch.tensor([-1.0, -0.125, 0.0]))


@pytest.mark.parametrize(
    ("name", "goal", "match"),
    [
        ("psnr", {}, "objective must be one of"),
        ("pose", {"goal_frames": GOALS}, "goal_poses"),
        ("pose", {"goal_poses": [[1.0, 2.0]]}, "goal_poses"),
        ("lpips", {"goal_poses": [[0.0] * 5]}, "goal_frames"),
        ("ssim", {"goal_frames": GOALS.float()}, "uint8"),
        ("latent", {"goal_frames": GOALS}, "encode"),
    ],
)
def test_an_objective_without_its_goal_is_refused(name: str, goal: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_objective(name, **goal)
