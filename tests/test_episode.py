"""Episodes come back from the disk as they were, and damaged files say so."""

import errno
import json
import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from safetensors.numpy import save_file

from wmgym.data.episode import Episode, Metadata, Segment, describe_space, list_episodes, load_episode, read_header, save_episode


def make_episode(length: int = 7, **changes: object) -> Episode:
    rng = np.random.default_rng(0)
    fields = {
        "frames": rng.integers(0, 256, (length, 6, 5, 3), dtype=np.uint8),
        "actions": rng.integers(0, 10, length),
        "poses": rng.normal(size=(length, 5)).astype(np.float32),
        "rewards": rng.normal(size=length).astype(np.float32),
        "terminated": np.arange(length) == length - 1,
        "truncated": np.zeros(length, bool),
        "meta": Metadata(
            env_id="Minecraft-v0",
            seed=3,
            walker="loop-ABA-5",
            env_kwargs={"task": "free"},
            start=(1.0, 2.0, 3.0, 0.5, 0.0),
            segments=(Segment("look", 0), Segment("return", 4, (1.0, 2.0, 3.0))),
        ),
    }
    return Episode(**{**fields, **changes})  # type: ignore[arg-type]


def assert_same(a: Episode, b: Episode) -> None:
    assert a.meta == b.meta
    for name in ("frames", "actions", "poses", "rewards", "terminated", "truncated"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype and np.array_equal(x, y), name


@pytest.mark.parametrize("actions", [np.arange(7), np.linspace(-1, 1, 21, dtype=np.float32).reshape(7, 3)])
def test_round_trip_is_exact(tmp_path: Path, actions: np.ndarray) -> None:
    episode = make_episode(actions=actions)
    save_episode(tmp_path / "e.safetensors", episode)
    assert_same(load_episode(tmp_path / "e.safetensors"), episode)
    assert os.listdir(tmp_path) == ["e.safetensors"]
    header = read_header(tmp_path / "e.safetensors")
    assert (header.meta, header.length, header.steps, header.frame_shape) == (episode.meta, 7, 6, (6, 5, 3))


def test_a_part_is_a_slice_with_its_own_segments(tmp_path: Path) -> None:
    episode = make_episode()
    save_episode(tmp_path / "e.safetensors", episode)
    part = load_episode(tmp_path / "e.safetensors", 3, 6)
    assert np.array_equal(part.frames, episode.frames[3:6]) and np.array_equal(part.poses, episode.poses[3:6])
    assert [(s.name, s.first) for s in part.meta.segments] == [("look", 0), ("return", 1)]
    assert (episode.return_first, part.return_first) == (4, 1)
    with pytest.raises(ValueError, match="7 frames"):
        load_episode(tmp_path / "e.safetensors", 3, 9)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_cut_short_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.safetensors"
    save_episode(path, make_episode())
    path.write_bytes(path.read_bytes()[:keep])
    for read in (load_episode, read_header):
        with pytest.raises(ValueError, match=r"cut\.safetensors"):
            read(path)


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"w": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="not an episode"):
        load_episode(path)
    with pytest.raises(ValueError, match="does not exist"):
        load_episode(tmp_path / "none.safetensors")
    episode = make_episode()
    arrays = {name: getattr(episode, name) for name in ("frames", "actions", "poses", "rewards", "terminated", "truncated")}
    newer = {**json.loads(episode.meta.to_json()), "schema": 99}
    save_file(arrays, path, metadata={"wmgym_episode": json.dumps(newer)})
    with pytest.raises(ValueError, match="schema 99"):
        load_episode(path)
    save_file({**arrays, "poses": arrays["poses"][:3]}, path, metadata={"wmgym_episode": episode.meta.to_json()})
    with pytest.raises(ValueError, match=r"weights\.safetensors.*poses"):
        load_episode(path)


def test_wrong_arrays_are_named() -> None:
    with pytest.raises(ValueError, match="float32"):
        make_episode(frames=np.zeros((7, 6, 5, 3), np.float32))
    with pytest.raises(ValueError, match="poses"):
        make_episode(poses=np.zeros((6, 5), np.float32))
    with pytest.raises(ValueError, match="finite, got nan"):
        make_episode(poses=np.full((7, 5), np.nan, np.float32))
    with pytest.raises(ValueError, match="actions"):
        make_episode(actions=np.zeros(3))


def test_empty_folders_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wmgym collect"):
        list_episodes(tmp_path)
    with pytest.raises(ValueError, match="wmgym collect"):
        list_episodes(tmp_path / "missing")


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "e.safetensors"
    save_episode(path, make_episode())

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"no space left to write .*e\.safetensors"):
        save_episode(path, make_episode(length=9))
    assert os.listdir(tmp_path) == ["e.safetensors"]
    assert len(load_episode(path)) == 7


def test_spaces_are_told_in_json() -> None:
    space = gym.spaces.Dict({"pov": gym.spaces.Box(0, 255, (4, 4, 3), np.uint8), "speed": gym.spaces.Box(-np.inf, 1, (2,), np.float32)})
    told = json.loads(json.dumps(describe_space(space), allow_nan=False))
    assert told["spaces"]["pov"] == {"type": "Box", "shape": [4, 4, 3], "dtype": "uint8", "low": 0.0, "high": 255.0}
    assert told["spaces"]["speed"]["low"] == "-inf"
    assert describe_space(gym.spaces.Discrete(10)) == {"type": "Discrete", "n": 10, "start": 0}
