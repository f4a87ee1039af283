"""A package outside wmgym adds a network, a memory, a setting and a system: nothing of wmgym is edited for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import toy_system as toy
from gymnasium.utils.env_checker import check_env

import wmgym
from wmgym import settings, systems
from wmgym.checkpoint import load, load_world, save
from wmgym.settings import Setting

ID = "Painter-Corridor-v0"
OPENING = {
    "frames": np.linspace(40, 200, 2 * 16 * 16 * 3).reshape(2, 16, 16, 3).astype(np.uint8),
    "actions": np.zeros(2, np.int64),
    "poses": np.zeros((2, 5), np.float32),
}


@pytest.fixture(autouse=True)
def _package() -> Iterator[None]:
    """What the package does when it is imported; undone after each test."""
    settings.register(toy.CORRIDOR)
    systems.register(toy.PAINTER)
    systems.register(toy.TINTED)
    yield
    for table, names in ((settings.TABLE, ["corridor"]), (systems.TABLE, ["painter", "tinted"])):
        for name in names:
            del table[name]


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    file = tmp_path / "painter-corridor.safetensors"
    config = toy.PainterConfig()
    save(file, toy.build(toy.PAINTER, config), config)
    return str(file)


@pytest.fixture
def env_id(checkpoint: str) -> Iterator[str]:
    gym.register(
        ID,
        entry_point="wmgym.env:WorldModelEnv",
        vector_entry_point="wmgym.vector_env:WorldModelVectorEnv",
        kwargs={"checkpoint": checkpoint, "setting": "corridor", "memory": "newest"},
    )
    yield ID
    del gym.registry[ID]


def brightness(env: Any, action: int) -> float:
    """Mean change of the frame by one step, in grey levels."""
    before, _ = env.reset(seed=0)
    after, *_ = env.step(action)
    return float(after.astype(int).mean() - before.astype(int).mean())


def test_the_system_runs_behind_gymnasium(env_id: str) -> None:
    env = gym.make(env_id, opening=OPENING, device="cpu")
    assert env.unwrapped.get_action_meanings() == ["stay", "ahead", "back"] and env.unwrapped.metadata["render_fps"] == 7  # type: ignore[attr-defined]
    assert brightness(env, 1) == pytest.approx(12.75, abs=0.6) and brightness(env, 2) == pytest.approx(-12.75, abs=0.6)
    assert env.step(1)[4]["pose"][0] == pytest.approx(0)  # back by one, then ahead
    check_env(env.unwrapped, skip_render_check=True)
    vec = gym.make_vec(env_id, num_envs=3, opening=OPENING, device="cpu")
    vec.reset(seed=0)
    seen, *_ = vec.step(np.array([0, 1, 2]))
    assert seen[2].mean() < seen[0].mean() < seen[1].mean()


def test_none_is_the_systems_reference(env_id: str) -> None:
    blank = gym.make(env_id, memory="none", opening=OPENING, device="cpu")
    blank.reset(seed=0)
    frame, _, _, _, info = blank.step(0)
    assert frame.min() >= 127 and frame.max() <= 128 and info["memory_frames"] == 0
    assert blank.unwrapped.identity.memory == "blank"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"\['blank', 'newest', 'none'\], got 'packing'"):
        gym.make(env_id, memory="packing", opening=OPENING)


def test_its_own_keywords_reach_it_and_others_are_refused(env_id: str) -> None:
    assert brightness(gym.make(env_id, strength=2.0, opening=OPENING, device="cpu"), 1) == pytest.approx(25.5, abs=0.6)
    with pytest.raises(TypeError, match=r"'rank': system 'painter' knows strength"):
        gym.make(env_id, rank=3, opening=OPENING)
    with pytest.raises(ValueError, match="strength must not be negative, got -1"):
        gym.make(env_id, strength=-1, opening=OPENING)
    with pytest.raises(TypeError, match=r"'strength': system 'worldpack' knows retrieval, suppression"):
        gym.make("WorldPack-Minecraft-v0", strength=2.0)
    with pytest.raises(TypeError, match=r"'strength': system 'nwm' has no keywords of its own"):
        systems.get("nwm").read_options({"strength": 2.0})


def test_its_states_go_through_a_file(env_id: str, tmp_path: Path) -> None:
    env = gym.make(env_id, opening=OPENING, device="cpu")
    env.reset(seed=3)
    env.step(1)
    wmgym.save_state_file(env.unwrapped.save_state(), tmp_path / "state.safetensors")  # type: ignore[attr-defined]
    expected = env.step(1)[0]
    again = gym.make(env_id, opening=OPENING, device="cpu")
    again.reset(seed=9)
    again.unwrapped.load_state(wmgym.load_state_file(tmp_path / "state.safetensors", again))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(again.step(1)[0], expected)


def test_names_that_are_taken_are_refused() -> None:
    with pytest.raises(ValueError, match="'painter' is registered already"):
        systems.register(systems.System("painter", toy.PainterConfig, None, {}, "newest"))
    with pytest.raises(ValueError, match="'corridor' is registered already"):
        settings.register(Setting("corridor", gym.spaces.Discrete(2)))
    with pytest.raises(ValueError, match=r"setting must be one of .*'corridor'.*, got 'cave'"):
        settings.get("cave")


# -- a delta on a base ----------------------------------------------------------------------------------------------------------------


def write_delta(checkpoint: str, tint: float = 0.25) -> Path:
    """`tinted-warm-corridor` beside the base: one number."""
    base = load(checkpoint)
    config = toy.on_painter(base.config, ("warm",))
    model = toy.build(toy.TINTED, config)
    model.load_state_dict(base.model.state_dict(), strict=False)
    torch.nn.init.constant_(model.net.tint, tint)
    (file,) = save(Path(checkpoint).with_name("tinted-warm-corridor.safetensors"), model, config, base="painter-corridor")
    return file


def test_a_memory_name_brings_the_delta_that_it_needs(checkpoint: str) -> None:
    file = write_delta(checkpoint)
    assert load(file).model.state_dict().keys() == load(checkpoint).model.state_dict().keys() | {"net.tint"}
    assert file.stat().st_size < 1500
    env = wmgym.make_env(load_world(checkpoint, system="tinted", memory="warm", device="cpu"), setting="corridor", opening=OPENING)
    assert brightness(env, 0) == pytest.approx(0.25 * 127.5, abs=0.6)
    plain = load_world(checkpoint, system="tinted", memory="newest", device="cpu")
    assert brightness(wmgym.make_env(plain, setting="corridor", opening=OPENING), 0) == pytest.approx(0, abs=0.6)
    assert plain.provenance.weights == load(checkpoint).model.provenance.weights != load(file).model.provenance.weights


def test_a_delta_that_is_absent_is_named_with_the_command_that_trains_it(checkpoint: str) -> None:
    message = r"tinted-warm-corridor: no such delta; available: none.*toy-train --delta warm --setting corridor"
    with pytest.raises(ValueError, match=message):
        load_world(checkpoint, system="tinted", memory="warm", device="cpu")


def test_a_delta_is_refused_on_another_base(checkpoint: str) -> None:
    file, before = write_delta(checkpoint), load(checkpoint).model.provenance.weights
    config = toy.PainterConfig()
    other = toy.build(toy.PAINTER, config)
    torch.nn.init.zeros_(other.net.brightness)
    save(checkpoint, other, config)
    after = load(checkpoint).model.provenance.weights
    with pytest.raises(ValueError, match=rf"{before[:16]}.*{after[:16]}"):
        load(file)
    with pytest.raises(ValueError, match=rf"{before[:16]}.*{after[:16]}"):
        load_world(checkpoint, system="tinted", memory="warm", device="cpu")


def test_a_system_without_that_base_is_refused(checkpoint: str) -> None:
    with pytest.raises(ValueError, match="holds weights of system 'painter'; system 'worldpack' needs weights of its own"):
        load_world(checkpoint, system="worldpack")
