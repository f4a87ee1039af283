"""Bundled weights and openings: what is put among the weights is what an env opens with, and a twin begins where its dream begins."""

import shlex
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import wmgym
from wmgym import checkpoint, make
from wmgym.agents.collect import CollectArgs, collect
from wmgym.checkpoint import load, read, save
from wmgym.experiments import bundle
from wmgym.nets.autoencoder import AutoencoderConfig
from wmgym.nets.cdit import CDiTConfig
from wmgym.openings import read_clips
from wmgym.systems.worldpack import WorldPackConfig, build
from wmgym.train.provenance import chain

CODER = AutoencoderConfig(kind="pixels", factor=8, frame_size=48)
DREAM = "CardsDream-v0"
gym.register(
    DREAM, "wmgym.env:WorldModelEnv", vector_entry_point="wmgym.vector_env:WorldModelVectorEnv",
    kwargs={"checkpoint": "cards", "setting": "memory_cards", "opening": "bundled", "twin": "MemoryCards-v0"},
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with a small model of Memory Cards that has a reward head, and a folder of episodes."""
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    net = CDiTConfig(latent_shape=CODER.latent_shape, num_actions=5, width=16, depth=1, heads=2)
    config = WorldPackConfig(setting="memory_cards", autoencoder=CODER, net=net, outcomes=((0.0, False), (1.0, False)))
    model = build(config)
    assert model.reward_head is not None
    with torch.no_grad():
        model.reward_head.pair.exit[-1].bias.copy_(torch.tensor([0.0, 5.0]))  # sees a reward in every step
    collect(CollectArgs("MemoryCards-v0", "cards-random", 200, folder / "data", seed=100, episode_length=40, processes=1), progress=False)
    commands = chain(f"wmgym train worldpack --data {folder / 'data'} --out {folder / 'run'}", [folder / "data"])
    notes = {"commands": commands, "frames": 9, "reward_recall": 0.5, "copy": 20.0, "examples": {"none": 64, "worldpack": 128}}
    save(folder / "run" / "model.safetensors", model, config, notes=notes)
    return folder / "run", folder / "data"


@pytest.fixture
def weights(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights in place of the package's own."""
    for module, name in ((bundle, "BUNDLED"), (checkpoint, "BUNDLED"), (make, "WEIGHTS")):
        monkeypatch.setattr(module, name, tmp_path)
    return tmp_path


def bundled(made: tuple[Path, Path], **changes: Any) -> list[Path]:
    fields = {"run": made[0], "name": "cards", "openings": made[1], "clips": 3, "clip_frames": 20, **changes}
    return bundle.main(bundle.Args(**fields))


def test_an_env_opens_with_bundled_clips_and_its_twin_begins_there(made: tuple[Path, Path], weights: Path) -> None:
    files = bundled(made)
    assert {file.name for file in files} == {"cards.safetensors", "memory_cards-openings.npz"}
    assert all(file.stat().st_size < bundle.MOST for file in files)
    imagined, truth = wmgym.twin(DREAM, horizon=3)
    seen = set()
    for seed in (*range(8), None):
        (frame, info), (real, real_info) = imagined.reset(seed=seed), truth.reset(seed=seed)
        np.testing.assert_array_equal(frame, real)
        np.testing.assert_array_equal(info["pose"], real_info["pose"])
        assert info["memory_frames"] == 20 and "goal" not in info
        seen.add(frame.tobytes())
    assert len(seen) == 3
    rewards = [imagined.step(0)[1:4] for _ in range(3)]
    assert rewards == [(1.0, False, False), (1.0, False, False), (1.0, False, True)]  # the head's, at the env's horizon


def test_clips_are_what_was_collected(made: tuple[Path, Path], weights: Path) -> None:
    bundled(made, clips=2)
    clips = read_clips(weights / "memory_cards-openings.npz")._clips
    for clip in clips:
        env = gym.make("MemoryCards-v0")
        frames = [env.reset(seed=clip.seed)[0], *(env.step(action)[0] for action in clip.actions[1:])]
        np.testing.assert_array_equal(clip.frames, frames)
        assert clip.seed is not None and clip.seed >= 100_000_000 and clip.goal is None


def test_the_card_tells_the_reward_heads_figures_apart(made: tuple[Path, Path], weights: Path) -> None:
    bundled(made, openings=None)
    text = (weights / "cards.md").read_text()
    assert "`MemoryCards-v0` at 48 x 48" in text
    quality, head = text.split("The reward head")
    assert "Training examples per memory: none 64, worldpack 128." in quality
    assert "Walkers in the data: cards-random.\n" in quality and "eval loopnav" not in quality
    commands = text.split("```\n")[1].splitlines()
    assert [shlex.split(command)[:2] for command in commands] == [["wmgym", "collect"], ["wmgym", "train"], ["python", "-m"]]
    assert "| copy | 20.00 |" in quality and "reward_recall" not in quality and "| reward_recall | 0.50 |" in head


def test_a_model_without_all_its_commands_is_refused(made: tuple[Path, Path], weights: Path, tmp_path: Path) -> None:
    loaded = load(made[0] / "model.safetensors")
    commands = loaded.notes["commands"]
    other = commands[1] + " --init worldpack-minecraft --autoencoder runs/first"
    for given, lacks in ((commands[1:], "data"), ([commands[0], other], "worldpack-minecraft, runs/first"), ([], "run")):
        save(tmp_path / "run" / "model.safetensors", loaded.model, loaded.config, notes={"commands": given})
        run = made[0] if given else tmp_path / "run"  # the folder that the commands name
        with pytest.raises(ValueError, match=rf"{run} cannot be reproduced: its commands start from .*{lacks}, which none of them makes"):
            bundle.commands_of(bundle.Args(run, "cards"), {"commands": given})
    assert not [path for path in weights.iterdir() if path.suffix in (".md", ".npz")]


def test_a_model_may_start_from_another_bundled_one_which_its_card_names(made: tuple[Path, Path], weights: Path) -> None:
    loaded = load(made[0] / "model.safetensors")
    save(weights / "first.safetensors", loaded.model, loaded.config)
    commands = [*loaded.notes["commands"][:1], loaded.notes["commands"][1] + " --autoencoder first"]
    notes = {"commands": bundle.commands_of(bundle.Args(made[0], "second"), {"commands": commands})}
    text = bundle.card("second", loaded.model, loaded.config, notes)
    assert f"from the bundled `first` (SHA-256 {read(weights / 'first.safetensors').sha256[:16]}...) and nothing else." in text
    with pytest.raises(ValueError, match="its commands start from first"):  # not from the one that is replaced
        bundle.commands_of(bundle.Args(made[0], "first"), {"commands": commands})


def test_a_card_names_the_walkers_that_a_benchmark_uses(made: tuple[Path, Path]) -> None:
    lines = bundle._walkers(["wmgym collect Minecraft-v0 --walker explorer:2,loop-ABA-5 --out a", "wmgym collect MemoryCards-v0 --out b"])
    assert lines[0] == "- Walkers in the data: explorer, loop-ABA-5, cards-random."
    assert lines[1] == "- `wmgym eval loopnav` judges walks of loop-ABA-5 too, in other worlds."


def test_what_cannot_be_bundled_is_named_and_replaces_nothing(
    made: tuple[Path, Path], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"holds 5 episodes of 20 frames .* 6 are asked for"):
        bundled(made, clips=6)
    with pytest.raises(ValueError, match="holds 0 episodes of 900 frames"):
        bundled(made, clip_frames=900)
    assert not list(weights.iterdir())
    with pytest.raises(ValueError, match="clips must be positive, got 0"):
        bundled(made, clips=0)
    clips = bundle.opening_clips(made[1], 3, 20)
    monkeypatch.setattr(bundle, "MOST", 1000)
    with pytest.raises(ValueError, match=r"3 clips of 20 frames take .* MB"):
        bundle.write_openings("memory_cards", clips)
    assert not list(weights.iterdir())


def test_a_damaged_file_of_clips_is_named(weights: Path) -> None:
    path = weights / "memory_cards-openings.npz"
    for content in (b"", b"not a file of arrays"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"memory_cards-openings\.npz is not a file of opening clips"):
            read_clips(path)
    np.savez_compressed(path, frames=np.zeros((1, 2, 8, 8, 3), np.uint8), actions=np.zeros((1, 2), np.int64))
    with pytest.raises(ValueError, match="lacks poses, seeds"):
        read_clips(path)
