"""The stop-watch times what it says, and caching the context changes times only."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_checkpoint

from wmgym import rng
from wmgym.benchmarks import speed, training
from wmgym.diffusion.flow import levels
from wmgym.diffusion.samplers import SAMPLERS
from wmgym.experiments.bench import ModelArgs, TrainArgs, TruthArgs, bench_model, bench_train, bench_truth
from wmgym.nets import cdit, video_dit
from wmgym.nets.autoencoder import AutoencoderConfig
from wmgym.nets.cdit import CDiTConfig
from wmgym.systems.worldpack import WorldPackConfig, build
from wmgym.train import loop
from wmgym.world_model import WorldModel


@pytest.fixture(scope="module")
def world() -> WorldModel:
    torch.manual_seed(0)
    autoencoder = AutoencoderConfig(kind="pixels", frame_size=16)
    net = CDiTConfig(latent_shape=autoencoder.latent_shape, width=16, depth=1, heads=2)
    model = build(WorldPackConfig(autoencoder=autoencoder, net=net))
    for parameter in model.parameters():  # what starts at zero would hide the context
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_turns_are_taken_and_the_median_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []
    slow = itertools.cycle([3.0, 5.0, 100.0])

    def work(name: str, seconds: Any) -> Any:
        def run() -> None:
            calls.append(name)
            clock[0] += next(seconds)

        return run

    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    found = speed.take_turns({"a": work("a", itertools.repeat(1.0)), "b": work("b", slow)}, seconds=0)
    assert calls == ["a", "b"] * 4
    assert found == {"a": 1.0, "b": 5.0}


def test_shares_are_of_one_step(world: WorldModel) -> None:
    found = speed.shares(world, 2, 0.0)
    assert set(found) == {"memory read", "context binding", "denoising", "memory write", "decode", "rest"}
    assert all(0 <= share < 10 for share in found.values())


def test_caching_changes_no_latent(world: WorldModel) -> None:
    state = speed.opened(world, 2)
    condition, contexts = speed.bound_parts(world, state)
    noise = rng.noise(state.keys, tuple(state.latents.shape[1:]))
    with torch.no_grad():
        cached = SAMPLERS["euler"](world.net.bind(condition, contexts), noise, levels(3))
        recomputed = SAMPLERS["euler"](lambda x, level: world.net.bind(condition, contexts)(x, level), noise, levels(3))
    assert torch.equal(cached, recomputed)
    rows = speed.caching(world, 1, (1, 2), 0.0)
    assert [row["denoise_steps"] for row in rows] == [1, 2] and all(row["ratio"] > 0 for row in rows)


def test_steps_are_timed_for_all_worlds(world: WorldModel) -> None:
    short = world.with_settings(sampler=replace(world.settings.sampler, denoise_steps=1))
    rows = speed.step_times({"a": world, "b": short}, 2, 0.0)
    assert [row["world"] for row in rows] == ["a", "b"]
    for row in rows:
        assert row["frames_per_second"] == pytest.approx(2e3 / row["ms_per_step"])
        assert row["ms_per_frame"] == pytest.approx(row["ms_per_step"] / 2)


@pytest.mark.parametrize(("system", "sizes"), [("worldpack", cdit.SIZES), ("video", video_dit.SIZES)])
def test_a_training_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, sizes: Any) -> None:
    monkeypatch.setitem(sizes, "TINY", {"width": 32, "depth": 1, "heads": 2})
    monkeypatch.setattr(training, "PROFILED", 1)
    monkeypatch.setitem(training.PEAK_SIDE, "cpu", 512)
    report = bench_train(TrainArgs(system, batch=2, steps=1, device="cpu", out=tmp_path))
    assert report["examples_per_second"] == pytest.approx(2e3 / report["ms_per_step"])
    for by, names in (("phase", loop.PHASES), ("kernel", training.KERNELS)):
        shares = report[f"share_of_time_by_{by}"]
        assert set(shares) == {*names, "other"} and sum(shares.values()) == pytest.approx(1)
        assert all(shares[name] > 0 for name in names)
    products = report["matrix_products"]
    assert 0 < products["share_of_peak"] < 1
    assert products["share_of_peak"] == pytest.approx(products["gflop_per_second"] / products["measured_peak_gflop_per_second"])
    assert ("ms_of_each_longer_step" in report) == (system == "worldpack")  # which dreams now and then
    assert (tmp_path / "table.txt").is_file()


def test_operations_of_a_step_are_those_of_its_matrices() -> None:
    """A linear layer of 8 x 3 weights on 5 rows: one product forward, one backward for its weights."""
    layer = torch.nn.Linear(3, 8, bias=False)
    rows = torch.randn(5, 3)
    step = loop.Training(layer, {"adam": torch.optim.SGD(layer.parameters())}, lambda draw: ({"total": layer(rows).sum()}, {}))
    trainer = loop.Trainer(step, loop.LoopConfig(3), "cpu")
    assert training.operations(trainer, [0, 1]) == 2 * 2 * (2 * 5 * 3 * 8)


def test_attention_counts_on_a_processor_too() -> None:
    q = torch.randn(1, 2, 7, 4)
    weight = torch.nn.Parameter(torch.ones(()))
    module = torch.nn.ParameterDict({"weight": weight})

    def losses(draw: Any) -> Any:
        shown = weight * q
        return {"total": torch.nn.functional.scaled_dot_product_attention(shown, shown, shown).sum()}, {}

    trainer = loop.Trainer(loop.Training(module, {"adam": torch.optim.SGD([weight])}, losses), loop.LoopConfig(3), "cpu")
    product = 2 * 2 * 7 * 7 * 4  # of one pair of [7, 4] matrices in each of two heads
    assert training.operations(trainer, [0]) == (2 + 5) * product  # two forward; backward makes the scores again, then four gradients


def test_kinds_of_kernels_and_phases_are_told_by_name_and_time() -> None:
    assert [training.kind_of(name) for name in ("aten::addmm", "void cutlass::Kernel", "aten::native_layer_norm", "aten::add")] == [
        "matrix products", "matrix products", "normalisation", "other",
    ]  # fmt: skip
    assert training.kind_of("aten::_scaled_dot_product_flash_attention_for_cpu") == "attention"
    parts = [training.Slice(1.0, "aten::mm", 3.0), training.Slice(5.0, "aten::add", 1.0)]
    assert training.shares(parts, lambda part: training.kind_of(part.name), training.KERNELS)["matrix products"] == 0.75


def test_a_report_on_a_model_says_what_its_memories_show(tmp_path: Path) -> None:
    options = {"lanes": (1,), "dtypes": ("float32",), "denoise_steps": (1,), "seconds": 0.01, "device": "cpu"}
    report = bench_model(ModelArgs(tiny_checkpoint(tmp_path), modes=("none", "worldpack"), **options), progress=False)
    assert [(row["world"], row["frames"]) for row in report["context"]] == [("none", 4), ("worldpack", 19)]


def test_truths_are_timed() -> None:
    found = speed.truth_times("block_world:BlockTest-v0", 0.05)
    assert found["frames_per_second"] > 0 and found["new_world_seconds"] > 0


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lanes must be positive"):
        ModelArgs(lanes=(1, 0))
    with pytest.raises(ValueError, match=r"system must be one whose training can be timed \(.*worldpack.*\), got 'nwm'"):
        bench_train(TrainArgs("nwm", device="cpu"))
    with pytest.raises(ValueError, match="memory must be one of"):
        bench_model(ModelArgs(tiny_checkpoint(tmp_path), modes=("all",), device="cpu"), progress=False)
    with pytest.raises(ValueError, match="Nowhere-v0"):
        bench_truth(TruthArgs("Nowhere-v0", seconds=0.01))
