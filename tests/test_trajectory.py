"""ATE, RPE and the rest: closed forms, invariances, and the same figures as evo's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from wmgym.geometry import wrap_angle
from wmgym.metrics import trajectory as tr
from wmgym.metrics.trajectory import ate, path_errors, rpe, rpe_rotation, spl, umeyama

Rng = np.random.Generator


@pytest.fixture
def rng() -> Rng:
    return np.random.default_rng(3)


def turn(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def any_rotation(rng: Rng) -> np.ndarray:
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


# -- closed forms -----------------------------------------------------------------------------------------------------------------------


def test_ate_of_a_shifted_path_is_the_shift() -> None:
    path = torch.rand(20, 3)
    assert ate(path + torch.tensor([3.0, 4.0, 0.0]), path) == pytest.approx(5.0, rel=1e-5)


def test_rpe_of_a_shifted_path_is_nothing_and_of_a_faster_one_the_difference_in_speed(rng: Rng) -> None:
    path = rng.normal(size=(20, 2))
    assert rpe(path + [3.0, 4.0], path) == pytest.approx(0, abs=1e-12)
    time = np.arange(9)[:, None]
    assert rpe(time * [1.5, 0.0], time * [1.0, 0.0]) == pytest.approx(0.5)
    assert rpe(time * [1.5, 0.0], time * [1.0, 0.0], delta=3) == pytest.approx(1.5)


def test_one_wrong_point_of_n_counts_by_the_root_of_its_share() -> None:
    truth = np.zeros((16, 2))
    wrong = truth.copy()
    wrong[5] = [0, 8]
    assert ate(wrong, truth) == pytest.approx(8 / math.sqrt(16))
    assert rpe(wrong, truth) == pytest.approx(8 * math.sqrt(2 / 15))  # two of 15 displacements are off by 8


def test_turns_are_compared_on_the_circle() -> None:
    yaw = np.linspace(0, 4 * math.pi, 30)
    wrapped = wrap_angle(yaw)
    assert rpe_rotation(wrapped, yaw) == pytest.approx(0, abs=1e-9)
    assert rpe_rotation(yaw + 2.0, yaw) == pytest.approx(0, abs=1e-9)  # a constant offset is no turn
    assert rpe_rotation(yaw + 0.1 * np.arange(30), yaw) == pytest.approx(0.1)


def test_alignment_undoes_a_turn_a_shift_and_a_scale(rng: Rng) -> None:
    truth = rng.normal(size=(30, 3))
    rotation = any_rotation(rng)
    moved = 2.5 * truth @ rotation.T + [1, -2, 3]
    assert ate(moved, truth, align=True, scale=True) == pytest.approx(0, abs=1e-9)
    assert ate(moved, truth, align=True) > 0.5  # the scale is left
    found = umeyama(truth, moved, scale=True)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-9)
    np.testing.assert_allclose(found.shift, [1, -2, 3], atol=1e-9)
    assert found.scale == pytest.approx(2.5)
    plane = rng.normal(size=(30, 2))
    assert ate(plane @ turn(2.0).T + [5, 5], plane, align=True) == pytest.approx(0, abs=1e-9)


def test_alignment_never_mirrors(rng: Rng) -> None:
    for d in (2, 3):
        truth = rng.normal(size=(40, d))
        mirrored = truth * np.array([-1.0] + [1.0] * (d - 1))
        assert np.linalg.det(umeyama(mirrored, truth).rotation) == pytest.approx(1)
        assert ate(mirrored, truth, align=True) > 0.1


def test_alignment_is_never_worse(rng: Rng) -> None:
    for _ in range(20):
        a, b = rng.normal(size=(2, 12, 3))
        assert ate(a, b, align=True, scale=True) <= ate(a, b, align=True) + 1e-12 <= ate(a, b) + 2e-12


def test_success_weighted_by_path_length() -> None:
    found = spl([True, True, False, True], [10, 10, 10, 10], [10, 20, 10, 5])
    np.testing.assert_allclose(found, [1, 0.5, 0, 1])  # shorter than the shortest (one arrives before the middle) is no bonus
    np.testing.assert_allclose(spl([True, True], [0, 0], [0, 3]), [1, 0])


def test_lengths_and_ends() -> None:
    square = np.array([[0, 0], [3, 0], [3, 4], [0, 4.0]])
    assert tr.path_length(square) == pytest.approx(10)
    assert tr.final_distance(square, square[::-1]) == pytest.approx(4)


def test_many_paths_at_once_are_each_alone(rng: Rng) -> None:
    a, b = rng.normal(size=(2, 5, 3, 9, 3))
    for function in (ate, rpe, tr.final_distance, lambda p, g: ate(p, g, align=True, scale=True)):
        together = function(a, b)
        assert together.shape == (5, 3)
        assert together[2, 1] == pytest.approx(function(a[2, 1], b[2, 1]))


def test_a_row_is_in_metres_and_in_waypoint_spacings(rng: Rng) -> None:
    a, b = rng.normal(size=(2, 8, 2))
    row = path_errors(a, b, [0] * 7 + [3.0], [0] * 7 + [-3.0], spacing=0.25)
    assert row["ate_spacings"] == pytest.approx(4 * ate(a, b))
    assert row["ate_spacings"] == pytest.approx(ate(a / 0.25, b / 0.25))
    assert row["rpe_m"] == rpe(a, b)
    assert row["final_yaw_rad"] == pytest.approx(2 * math.pi - 6)


# -- what is refused --------------------------------------------------------------------------------------------------------------------

PATH = np.arange(10.0).reshape(5, 2)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: ate(PATH, PATH[:4]), "two equal"),
        (lambda: ate(PATH[:, :1], PATH[:, :1]), "two equal"),
        (lambda: ate(PATH * np.nan, PATH), "finite"),
        (lambda: ate(PATH, PATH, scale=True), "align=True"),
        (lambda: ate(PATH * 0, PATH, align=True), "cannot be aligned"),
        (lambda: rpe(PATH, PATH, delta=5), "at least 6"),
        (lambda: rpe(PATH, PATH, delta=0), "delta"),
        (lambda: rpe_rotation([0.0], [0.0]), "T > 1"),
        (lambda: spl([True], [-1.0], [1.0]), "negative"),
        (lambda: path_errors(PATH, PATH, spacing=0), "spacing"),
    ],
)
def test_what_cannot_be_scored_is_refused(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


# -- evo ---------------------------------------------------------------------------------------------------------------------------------


def evo_path(positions: np.ndarray, yaws: np.ndarray | None = None) -> Any:
    trajectory = pytest.importorskip("evo.core.trajectory", reason="evo is not installed: pip install evo==1.37.1 (a test dependency)")
    spatial = np.pad(positions, ((0, 0), (0, 3 - positions.shape[1])))
    half = np.zeros(len(positions)) if yaws is None else yaws / 2
    quaternions = np.stack([np.cos(half), 0 * half, 0 * half, np.sin(half)], -1)
    return trajectory.PosePath3D(spatial, quaternions)


def evo_figure(metric: Any, truth: Any, predicted: Any) -> float:
    from evo.core.metrics import StatisticsType

    metric.process_data((truth, predicted))
    return metric.get_statistic(StatisticsType.rmse)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_ate_and_rpe_are_those_of_evo(rng: Rng, dimensions: int) -> None:
    metrics = pytest.importorskip("evo.core.metrics", reason="evo is not installed: pip install evo==1.37.1 (a test dependency)")
    translation = metrics.PoseRelation.translation_part
    for _ in range(10):
        a, b = rng.normal(size=(2, 17, dimensions)).cumsum(1)
        first, second = evo_path(a), evo_path(b)
        assert ate(a, b) == pytest.approx(evo_figure(metrics.APE(translation), second, first), rel=1e-12)
        assert rpe(a, b) == pytest.approx(evo_figure(metrics.RPE(translation, 1), second, first), rel=1e-12)
        assert rpe(a, b, delta=4) == pytest.approx(evo_figure(metrics.RPE(translation, 4, all_pairs=True), second, first), rel=1e-12)


@pytest.mark.parametrize("scale", [False, True])
def test_aligned_ate_is_that_of_evo(rng: Rng, scale: bool) -> None:
    metrics = pytest.importorskip("evo.core.metrics", reason="evo is not installed: pip install evo==1.37.1 (a test dependency)")
    for dimensions in (3, 3, 3, 2):
        truth = rng.normal(size=(25, dimensions)).cumsum(0)
        spin = any_rotation(rng) if dimensions == 3 else turn(rng.uniform(-3, 3))
        predicted = 0.7 * (truth + 0.1 * rng.normal(size=truth.shape)) @ spin.T + 4
        reference, estimate = evo_path(truth), evo_path(predicted)
        estimate.align(reference, correct_scale=scale)
        expected = evo_figure(metrics.APE(metrics.PoseRelation.translation_part), reference, estimate)
        assert ate(predicted, truth, align=True, scale=scale) == pytest.approx(expected, rel=1e-9)


def test_rotational_rpe_is_that_of_evo(rng: Rng) -> None:
    metrics = pytest.importorskip("evo.core.metrics", reason="evo is not installed: pip install evo==1.37.1 (a test dependency)")
    a, b = wrap_angle(rng.normal(size=(2, 30)).cumsum(1))
    paths = np.zeros((30, 3))
    expected = evo_figure(metrics.RPE(metrics.PoseRelation.rotation_angle_rad, 1), evo_path(paths, b), evo_path(paths, a))
    assert rpe_rotation(a, b) == pytest.approx(expected, rel=1e-6)
