"""Metrics against what can be computed by hand."""

import math

import numpy as np
import pytest
import torch

from wmgym.metrics import image
from wmgym.metrics.statistics import bootstrap_interval, paired_difference, wilson_interval


def grey(*levels: int) -> torch.Tensor:
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 16, 20, 3).contiguous()


def test_psnr_of_a_constant_error_is_its_closed_form() -> None:
    found = image.psnr(grey(10, 100, 7), grey(13, 90, 7))
    assert found[0].item() == pytest.approx(20 * math.log10(255 / 3), rel=1e-6)
    assert found[1].item() == pytest.approx(20 * math.log10(255 / 10), rel=1e-6)
    assert math.isinf(found[2])


def test_psnr_averages_the_squared_error_of_a_frame() -> None:
    frame, truth = grey(50), grey(50)
    frame[0, :4] = 60  # a quarter of the rows is off by 10
    assert image.psnr(frame, truth).item() == pytest.approx(20 * math.log10(255 / 5), rel=1e-6)


def test_ssim_of_flat_frames_is_its_luminance_term() -> None:
    a, b, c1 = 80.0, 120.0, (0.01 * 255) ** 2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    found = image.ssim(grey(80, 33), grey(120, 33))
    assert found[0].item() == pytest.approx(expected, rel=1e-4)
    assert found[1].item() == pytest.approx(1, abs=1e-6)


def test_ssim_of_a_negative_is_negative() -> None:
    noise = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert (image.ssim(255 - noise, noise) < -0.5).all()


def test_what_is_asked_for_is_judged_and_equal_frames_have_a_bounded_psnr() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    found = image.judge(frames, frames)
    assert list(found) == ["psnr", "ssim"] and found["psnr"].tolist() == [image.BEST_PSNR] * 2 and found["ssim"] == pytest.approx(1)
    assert list(image.judge(frames, frames, ["ssim"])) == ["ssim"]
    with pytest.raises(ValueError, match="metric must be one of"):
        image.judge(frames, frames, ["fid"])


def test_gradient_energy_is_the_squared_slope() -> None:
    across = np.arange(20, dtype=np.uint8)[None, None, :, None] * np.uint8(3) + np.zeros((1, 16, 20, 3), np.uint8)
    both = across + np.arange(16, dtype=np.uint8)[None, :, None, None] * np.uint8(4)
    assert image.gradient_energy(np.concatenate([across, both, 0 * both])) == pytest.approx([9, 9 + 16, 0])
    assert image.gradient_energy(across[:, ::-1, ::-1]) == pytest.approx([9]), "of either sign"


def test_blur_costs_gradient_energy() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    energy = image.gradient_energy(noise)
    assert energy == pytest.approx(2 * 2 * (256**2 - 1) / 12, rel=0.05), "twice the variance, in each direction"
    of_two = (noise.astype(int) + np.roll(noise, 1, 2)) // 2  # down: half the variance; across: pixels two apart, halved, a quarter
    assert image.gradient_energy(of_two) / energy == pytest.approx((1 / 2 + 1 / 4) / 2, rel=0.03)
    assert image.gradient_energy(noise // 2) / energy == pytest.approx(0.25, rel=0.01)


def test_cosine_is_that_of_the_angle() -> None:
    a = np.array([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    b = np.array([[5.0, 0.0], [0.0, 3.0], [-1.0, 1.0], [1.0, 0.0]])
    assert image.cosine(a, b) == pytest.approx([1, 0, -math.sqrt(0.5), 0])


@pytest.mark.parametrize("measure", [image.psnr, image.ssim])
def test_frames_do_not_affect_each_other(measure) -> None:
    frames = torch.randint(0, 256, (6, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    one_by_one = torch.cat([measure(frames[i : i + 1], frames[5:]) for i in range(5)])
    assert torch.allclose(measure(frames[:5], frames[5:].expand(5, -1, -1, -1)), one_by_one, rtol=1e-5)


@pytest.mark.parametrize("measure", [image.psnr, image.ssim])
def test_wrong_frames_are_named(measure) -> None:
    good = grey(1, 2)
    for bad, text in ((good.float(), "float32"), (good[0], r"\[16, 20, 3\]"), (good[:1], "one shape"), (good[:0], "N > 0")):
        with pytest.raises(ValueError, match=text):
            measure(bad, good)


def test_torchmetrics_agrees() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    generator = torch.Generator().manual_seed(2)
    truth = torch.randint(0, 256, (4, 8, 6, 3), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    scale = torch.tensor([0, 3, 20, 90])[:, None, None, None]
    frames = (truth + scale * torch.randn(truth.shape, generator=generator)).clamp(0, 255)
    a, b = frames.to(torch.uint8), truth.to(torch.uint8)
    a_planes, b_planes = a.movedim(-1, 1).double(), b.movedim(-1, 1).double()
    theirs = functional.structural_similarity_index_measure(a_planes, b_planes, data_range=255.0, reduction="none")
    assert torch.allclose(image.ssim(a, b).double(), theirs, atol=1e-6)
    theirs = functional.peak_signal_noise_ratio(a_planes, b_planes, data_range=255.0, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(image.psnr(a, b).double(), theirs, rtol=1e-6)


def test_lpips_never_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert not image.lpips_available()
    with pytest.raises((ImportError, ValueError), match="LPIPS needs"):
        image.lpips(grey(1), grey(1))


def test_the_interval_of_a_mean_is_near_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)
    assert found == bootstrap_interval(values) and found != bootstrap_interval(values, seed=1)


def test_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    trials = [bootstrap_interval(rng.normal(0, 1, 40), confidence=0.8, samples=500) for _ in range(400)]
    assert np.mean([t.low <= 0 <= t.high for t in trials]) == pytest.approx(0.8, abs=0.06)


def test_equal_values_leave_no_doubt_and_one_value_leaves_all() -> None:
    assert (bootstrap_interval([2.0] * 5).low, bootstrap_interval([2.0] * 5).high) == (2, 2)
    assert math.isnan(bootstrap_interval([2.0]).low)


def test_one_value_per_cluster_is_no_cluster() -> None:
    values = np.random.default_rng(5).normal(0, 1, 30)
    assert bootstrap_interval(values, clusters=[f"drive {i}" for i in range(30)]) == bootstrap_interval(values)
    assert paired_difference(values, values[::-1], clusters=range(30)) == paired_difference(values, values[::-1])


def test_what_a_cluster_says_several_times_counts_once() -> None:
    values = np.random.default_rng(6).normal(0, 1, 20)
    found = bootstrap_interval(np.repeat(values, 8), clusters=np.repeat(np.arange(20), 8).tolist())
    once = bootstrap_interval(values)
    assert (found.mean, found.low, found.high) == pytest.approx((once.mean, once.low, once.high)) and found.count == 20
    naive = bootstrap_interval(np.repeat(values, 8))
    assert found.high - found.low > 2 * (naive.high - naive.low)
    assert math.isnan(bootstrap_interval([1.0, 2.0], clusters=["a", "a"]).low)
    with pytest.raises(ValueError, match="got 1 and 2"):
        bootstrap_interval([1.0, 2.0], clusters=["a"])


def test_intervals_of_clusters_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(400):
        sizes = rng.integers(1, 9, 60)
        values, names = np.repeat(rng.normal(0, 1, 60), sizes) + rng.normal(0, 0.3, sizes.sum()), np.repeat(np.arange(60), sizes).tolist()
        both = (bootstrap_interval(values, confidence=0.8, samples=400, clusters=told) for told in (names, None))
        covered.append([found.low <= 0 <= found.high for found in both])
    with_clusters, without = np.mean(covered, 0)
    assert with_clusters == pytest.approx(0.8, abs=0.06) and without < 0.5


def test_pairs_cancel_what_both_share() -> None:
    shared = np.random.default_rng(0).normal(0, 100, 30)
    found = paired_difference(shared + 1.5, shared)
    assert (found.mean, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))
    with pytest.raises(ValueError, match="3 and 2"):
        paired_difference([1, 2, 3], [1, 2])


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval(values)


def test_wilsons_interval_has_its_closed_form_and_a_width_at_the_ends() -> None:
    found = wilson_interval([True] * 8 + [False] * 2)
    assert (found.mean, found.count) == (0.8, 10)
    z = 1.959964
    for bound in (found.low, found.high):  # where the share lies z standard errors of that bound away
        assert abs(0.8 - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / 10), rel=1e-5)
    none, every = wilson_interval([0] * 20), wilson_interval([1] * 20)
    assert none.low == 0 and none.high == pytest.approx(z * z / (20 + z * z), rel=1e-5)
    assert every.high == 1 and every.low == pytest.approx(1 - none.high)
    assert 0 < wilson_interval([1]).low < wilson_interval([1], confidence=0.5).low < 1
    for bad in ([], [0.5], [2], [[1, 0]]):
        with pytest.raises(ValueError, match="outcomes"):
            wilson_interval(bad)
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval([1], confidence=95)
