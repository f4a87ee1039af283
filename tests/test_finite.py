"""Benchmarks and planners that step a world directly raise `FloatingPointError` naming the lane whose frames are not finite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from standins import clip
from tiny import CONFIG, tiny_checkpoint

from wmgym.agents.proposals import dream
from wmgym.benchmarks import recon, rollout, speed
from wmgym.benchmarks.cells import Settings, evaluate
from wmgym.checkpoint import load_world
from wmgym.data.recon import Task
from wmgym.experiments.support.judged import reconstruct
from wmgym.kinematics import Displacement
from wmgym.systems.worldpack import build
from wmgym.world_model import WorldModel

LANES, BROKEN = 3, 1
ERROR = rf"lanes \[{BROKEN}\]: .*not finite.*damaged"


def broken(world: WorldModel, monkeypatch: pytest.MonkeyPatch, lane: int = BROKEN) -> WorldModel:
    """The same world with a decoder that spoils one lane's frames; its latents and poses are as they were."""
    real = world.autoencoder.decode

    def decode(latents: torch.Tensor) -> torch.Tensor:
        images = real(latents).clone()
        images[lane] = torch.nan
        return images

    monkeypatch.setattr(world.autoencoder, "decode", decode)
    return world


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorldModel:
    return broken(load_world(tiny_checkpoint(tmp_path), device="cpu", dtype="float32"), monkeypatch)


def walks(count: int = LANES) -> list[rollout.Walk]:
    return [rollout.Walk(**clip(8), split=4, seed=i) for i in range(count)]


@pytest.mark.parametrize("make", [rollout.dream_legs, rollout.next_frames])
def test_dreamed_walks(world: WorldModel, make: Any) -> None:
    with pytest.raises(FloatingPointError, match=ERROR):
        make(world, walks(), seeds=range(LANES))


def test_no_cell_is_written_of_a_broken_world(world: WorldModel, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=ERROR):
        evaluate({"walks": walks}, ["worldpack"], lambda mode: world, lambda frames: frames, tmp_path / "out", Settings(lanes=LANES))
    assert not list(tmp_path.glob("out/**/*worldpack*"))


def test_the_autoencoders_ceiling(world: WorldModel) -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        reconstruct(world, clip(4)["frames"])


def test_speeds(world: WorldModel) -> None:
    with pytest.raises(FloatingPointError, match=ERROR):
        speed.step_times({"worldpack": world}, LANES, 0.0)
    with pytest.raises(FloatingPointError, match=ERROR):
        speed.shares(world, LANES, 0.0)


def displacing(monkeypatch: pytest.MonkeyPatch) -> WorldModel:
    net = replace(CONFIG.net, num_actions=0, action_size=3)
    moves = Displacement(spacing=0.25, rate=4)
    return broken(build(replace(CONFIG, setting="recon", net=net, displacement=moves)).eval(), monkeypatch)


def problems() -> list[recon.Problem]:
    seen, future = clip(4), np.zeros((8, 5), np.float32)
    future[:, 0] = 0.25 * np.arange(1, 9)
    actions = np.zeros((4, 3), np.float32)
    return [recon.Problem(Task(f"drive{i}", 3, 8), seen["frames"], actions, seen["poses"], future, seen["frames"][0]) for i in range(LANES)]


@pytest.mark.parametrize("evaluation", recon.ISOLATED)
def test_frames_far_ahead(evaluation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FloatingPointError, match=ERROR):
        recon.far_frames(displacing(monkeypatch), problems(), evaluation, (1, 2), range(LANES))


def test_imagined_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    world = displacing(monkeypatch)
    state = recon.opened(world, problems(), range(LANES))
    with pytest.raises(FloatingPointError, match=ERROR):
        dream(world, state, torch.zeros(LANES, 1, 2, 5))
