"""The stop-watch times what it says, and caching the context changes times only."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_checkpoint

from wmgym import rng
from wmgym.benchmarks import speed
from wmgym.diffusion.flow import levels
from wmgym.diffusion.samplers import SAMPLERS
from wmgym.experiments.bench import ModelArgs, TruthArgs, bench_model, bench_truth
from wmgym.nets.autoencoder import AutoencoderConfig
from wmgym.nets.cdit import CDiTConfig
from wmgym.systems.worldpack import WorldPackConfig, build
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


def test_truths_are_timed() -> None:
    found = speed.truth_times("block_world:BlockTest-v0", 0.05)
    assert found["frames_per_second"] > 0 and found["new_world_seconds"] > 0


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lanes must be positive"):
        ModelArgs(lanes=(1, 0))
    with pytest.raises(ValueError, match="memory must be one of"):
        bench_model(ModelArgs(tiny_checkpoint(tmp_path), modes=("all",), device="cpu"), progress=False)
    with pytest.raises(ValueError, match="Nowhere-v0"):
        bench_truth(TruthArgs("Nowhere-v0", seconds=0.01))
