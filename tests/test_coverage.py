"""Greedy coverage: views are chosen for what they add to one another."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from wmgym.geometry import token_rays
from wmgym.memory.coverage import CoverageConfig, choose_views, shown, target_points

CONFIG = CoverageConfig(field_of_view=math.radians(75))


def poses(*rows: tuple[float, ...]) -> Tensor:
    """x, y, yaw in degrees, pitch in degrees -> [1, n, 5]."""
    return torch.tensor([[[x, y, 0, math.radians(yaw), math.radians(pitch)] for x, y, yaw, pitch in rows]])


def choose(target: Tensor, past: Tensor, n: int, allowed: Tensor | None = None) -> tuple[list[int], Tensor]:
    count = past.shape[1]
    times = torch.arange(count)[None]
    allowed = torch.ones_like(times, dtype=torch.bool) if allowed is None else allowed
    slots, gains, exists = choose_views(target, past, times, allowed, n, CONFIG)
    return [int(s) for s, there in zip(slots[0], exists[0], strict=True) if there], gains[0]


def quality(target: Tensor, past: Tensor) -> Tensor:
    return shown(*target_points(target, CONFIG), past, CONFIG)


def test_points_lie_on_the_rays_of_the_view() -> None:
    target = poses((1, 2, 30, -10))
    points, directions = target_points(target, CONFIG)
    rays = token_rays(target, torch.zeros(1), 4, 4, CONFIG.field_of_view)
    away = (points - target[:, :1, :3]).view(16, 3, 3)
    assert torch.allclose(away.norm(dim=-1), torch.tensor([2.0, 5.0, 12.0]).expand(16, 3), atol=1e-5)
    assert torch.allclose(away[:, 0] / 2, rays[0, 0, :, :3], atol=1e-6)
    assert torch.allclose(directions.view(16, 3, 3)[:, 1], rays[0, 0, :, :3])


def test_the_same_view_shows_all_and_the_opposite_one_nothing() -> None:
    target = poses((0, 0, 0, 0))
    found = quality(target, poses((0, 0, 0, 0), (0, 0, 180, 0), (0, 0, 360, 0), (0, 0, 37.5, 0), (0, 0, 0, 90)))
    assert torch.allclose(found[0, 0], torch.ones(48)) and torch.allclose(found[0, 2], torch.ones(48))
    assert not found[0, 1].any() and not found[0, 4].any()
    assert found[0, 3].mean() == pytest.approx(0.5, abs=0.1), "half of the view to the left"


def test_from_further_back_it_is_seen_more_coarsely_and_from_the_other_side_not() -> None:
    target = poses((0, 0, 0, 0))
    near, back, far, opposite = quality(target, poses((0, 0, 0, 0), (-3, 0, 0, 0), (-30, 0, 0, 0), (10, 0, 180, 0)))[0].mean(-1)
    assert near > back > far > 0 and opposite == 0


def test_a_second_copy_adds_nothing() -> None:
    """Two copies of one half and one view of the other half: the halves are chosen before the copy."""
    past = poses((0, 0, 30, 0), (0, 0, 30, 0), (0, 0, -30, 0))
    order, gains = choose(poses((0, 0, 0, 0)), past, 3)
    assert set(order[:2]) == {1, 2} and order[2] == 0, "of equal views the newer one first"
    assert gains[2] < gains[1] - 3


def test_greedy_is_near_the_best_set() -> None:
    torch.manual_seed(0)
    for _ in range(5):
        past = poses(*[(float(torch.randn(())), float(torch.randn(())), float(torch.rand(()) * 360), 0.0) for _ in range(9)])
        target = poses((0, 0, 20, 0), (1, 0, 40, 0))
        found = quality(target, past)[0]
        order, _ = choose(target, past, 3)
        reached = found[order].amax(0).mean() if order else torch.tensor(0.0)
        best = max(float(found[list(some)].amax(0).mean()) for some in itertools.combinations(range(9), 3))
        assert float(reached) >= (1 - 1 / math.e) * best


def test_what_is_not_allowed_or_shows_nothing_is_not_chosen() -> None:
    past = poses((0, 0, 0, 0), (0, 0, 10, 0), (0, 0, 180, 0))
    order, gains = choose(poses((0, 0, 0, 0)), past, 3, torch.tensor([[False, True, True]]))
    assert order == [1] and gains[1:].tolist() == [-math.inf] * 2


def test_rows_choose_alone() -> None:
    torch.manual_seed(1)
    target, past = torch.randn(6, 4, 5), 2 * torch.randn(6, 20, 5)
    past[..., 4] *= 0.1
    times, allowed = torch.arange(20).expand(6, -1), torch.rand(6, 20) < 0.8
    together = choose_views(target, past, times, allowed, 5, CONFIG)
    for row in range(6):
        alone = choose_views(*(x[row : row + 1] for x in (target, past, times, allowed)), 5, CONFIG)
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a[0], b[row])


def test_wrong_numbers_are_refused() -> None:
    for changed in ({"rays": 0}, {"depths": ()}, {"depths": (1.0, -1.0)}):
        with pytest.raises(ValueError, match="rays and depths must be positive"):
            CoverageConfig(**changed)  # type: ignore[arg-type]
