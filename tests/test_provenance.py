"""Worlds are held out whole; commands are told as they are typed, and lead to a checkpoint from nothing."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from test_training import collect as stripes
from tiny import tiny_checkpoint

from wmgym import cli
from wmgym.agents import collect
from wmgym.agents.collect import CollectArgs
from wmgym.checkpoint import load, notes_of, resolve, save
from wmgym.data.episode import Metadata, load_episode, save_episode
from wmgym.train.held_out import HELD_OUT, split
from wmgym.train.provenance import chain, collection, missing, options_in_words, walkers
from wmgym.train.video import TrainArgs as VideoArgs
from wmgym.train.video_loss import VideoLossConfig


def episodes(folder: Path, seeds: list[int], env_id: str = "Minecraft-v0") -> list[Path]:
    """An episode of one frame in the world of each seed."""
    (source,) = stripes(folder / "source", episodes=1, length=1).glob("*")
    episode, paths = load_episode(source), []
    for n, seed in enumerate(seeds):
        paths.append(folder / f"{n:05d}.safetensors")
        save_episode(paths[-1], replace(episode, meta=Metadata(env_id, seed, "random")))
    return paths


# -- the split ----------------------------------------------------------------------------------------------------------------------------


def test_worlds_of_one_episode_are_split_as_in_0_1(tmp_path: Path) -> None:
    paths = episodes(tmp_path, list(range(7, 7 + 2 * HELD_OUT + 1)))
    held_out, training = split(paths)
    assert held_out == paths[::HELD_OUT] and training == [p for i, p in enumerate(paths) if i % HELD_OUT]


def test_a_world_is_wholly_on_one_side(tmp_path: Path) -> None:
    """`wmgym collect --worlds 60`: episode k is walked in world k % 60. In 0.1 episode 50 was held out and episode 110 was not."""
    seeds = [k % 60 for k in range(130)]
    paths = episodes(tmp_path, seeds)
    held_out, training = split(paths)
    sides = [{seeds[paths.index(path)] for path in side} for side in (held_out, training)]
    assert sides[0] == {0, HELD_OUT} and sides[1] == set(range(60)) - sides[0]
    assert sorted(held_out + training) == paths


def test_a_single_world_is_both_and_recordings_are_worlds_of_their_own(tmp_path: Path) -> None:
    one = episodes(tmp_path / "one", [3, 3, 3])
    assert split(one) == (one, one)
    for n, (env_id, seed) in enumerate((("recon:recon", 0), ("MemoryMaze-9x9-v0", -1))):
        recorded = episodes(tmp_path / str(n), [seed] * (HELD_OUT + 1), env_id)
        assert split(recorded)[0] == [recorded[0], recorded[HELD_OUT]]


# -- commands -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    name: str = "a"
    flag: bool = False
    shown: bool = True
    sizes: tuple[int, ...] = ()
    loss: VideoLossConfig = field(default_factory=VideoLossConfig)


def test_options_are_told_as_they_are_typed() -> None:
    assert options_in_words(Options()) == ""
    words = options_in_words(Options("a b", True, False, (1, 2), VideoLossConfig(absent=0.1)))
    assert words == "--name 'a b' --flag --no-shown --sizes 1 2 --loss.absent 0.1"


def test_told_options_are_understood(tmp_path: Path) -> None:
    given = VideoArgs((tmp_path,), tmp_path / "out", pose_rotary=False, pixels=True, loss=VideoLossConfig(absent=0.1))
    command = next(c for c in cli.COMMANDS if c.words == "train video")
    assert cli._parse(VideoArgs, command, shlex.split(options_in_words(given))) == given


def test_a_folder_of_episodes_names_its_command(tmp_path: Path) -> None:
    args = CollectArgs("MemoryCards-v0", "cards-random", 30, tmp_path / "data", seed=100, episode_length=15, processes=1, worlds=2)
    collect.collect(args, progress=False)
    words = shlex.split(collection(tmp_path / "data") or "")
    command = next(c for c in cli.COMMANDS if c.words == "collect")
    assert replace(cli._parse(CollectArgs, command, words[2:]), processes=1) == args
    assert collection(tmp_path) is None
    (tmp_path / "args.json").write_text("[]")
    assert collection(tmp_path) is None


def test_a_chain_is_complete_if_every_input_was_made(tmp_path: Path) -> None:
    made = ["wmgym collect Minecraft-v0 --walker explorer:2 --out d", "wmgym train worldpack --data d --out runs/a"]
    again = "wmgym train worldpack --data d e --init ./runs/a/model.safetensors --autoencoder maze --out runs/b"
    assert missing(made) == []
    assert missing([*made, again]) == ["e", "maze"]
    bundled = "python -m wmgym.experiments.bundle --run runs/a --name maze"
    assert missing([made[0], "wmgym collect Minecraft-v0 --out e", made[1], bundled, again]) == []
    assert missing([made[1], made[0]]) == ["d"]  # made only later
    assert walkers([*made, "wmgym collect Minecraft-v0 --out e"]) == ["explorer:2", ""]


def test_a_checkpoint_passes_its_commands_on(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path)
    loaded = load(checkpoint)
    save(Path(checkpoint), loaded.model, loaded.config, notes={"commands": ["first", "second"]})
    assert notes_of(resolve(checkpoint)) == {"commands": ["first", "second"]}
    assert chain("third", (), (checkpoint, None, checkpoint)) == ["first", "second", "third"]


@pytest.mark.parametrize("name", ["worldpack-minecraft", "worldpack-memory-maze"])
def test_the_card_of_weights_that_cannot_be_repeated_says_so(name: str) -> None:
    """The bundled weights of 0.1 started from weights that no longer exist."""
    path = resolve(name)
    if missing([*notes_of(path).get("commands", []), f"wmgym train --checkpoint {name}"]):
        assert "cannot be repeated exactly" in path.with_name(f"{name}.md").read_text()
