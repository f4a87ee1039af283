"""What an attack on version 0.1.0 broke: broken numbers are raised, slow precisions are not chosen, durations are said before days pass."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from standins import clip
from tiny import tiny_checkpoint

import wmgym
from wmgym import checkpoint
from wmgym.checkpoint import choose_dtype, load_world
from wmgym.train.loop import estimate


@pytest.mark.parametrize("part", ["autoencoder.decoder", "net.final"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_frames_that_are_not_finite_are_raised_with_their_lanes(tmp_path: Path, part: str, value: float) -> None:
    """Poses come from the kinematics here: only the pictures are broken."""
    world = load_world(tiny_checkpoint(tmp_path), device="cpu", dtype="float32")
    _, bias = next((k, v) for k, v in world.named_parameters() if k.startswith(part) and k.endswith("bias"))
    before = bias.detach().clone()
    try:
        with torch.no_grad():
            bias[0] = value
        env = wmgym.make_env(world, "free", setting="minecraft", num_envs=2, opening=clip())
        env.reset(seed=0)
        with pytest.raises(FloatingPointError, match=r"lanes \[0, 1\]: .*not finite.*damaged"):
            env.step(np.array([1, 1]))
    finally:
        with torch.no_grad():
            bias.copy_(before)


def test_auto_is_bfloat16_only_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in (True, False):
        monkeypatch.setattr(checkpoint, "multiplies_bfloat16", lambda native=native: native)
        assert choose_dtype("auto", "cpu") == ("bfloat16" if native else "float32")
    assert choose_dtype("auto", "cuda:0") == "bfloat16" and choose_dtype("float32", "cuda") == "float32"
    with pytest.raises(ValueError, match="dtype must be 'auto', 'float32', 'bfloat16', 'float16', got 'int8'"):
        choose_dtype("int8", "cpu")


def test_a_slow_choice_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "multiplies_bfloat16", lambda: False)
    checkpoint._warn_slow.cache_clear()
    with pytest.warns(UserWarning, match="dtype='bfloat16' is slow on this processor"):
        choose_dtype("bfloat16", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_dtype("bfloat16", "cpu")
        choose_dtype("bfloat16", "cuda")


def test_a_duration_is_said_in_words_and_days_come_with_advice() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert estimate("net", 600, 0.5, cpu) == "net: about 5 minutes for 600 steps of 0.5 s on cpu"
    assert estimate("net", 3600, 2.0, cpu).startswith("net: about 2.0 hours")
    assert "4.9 days" in estimate("net", 20_000, 21, cpu) and "work for a GPU" in estimate("net", 20_000, 21, cpu)
    assert "work for a GPU" not in estimate("net", 20_000, 21, gpu)
