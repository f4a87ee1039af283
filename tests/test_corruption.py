"""No damage passes unnoticed: a corrupted weight, episode or state file raises one `ValueError`, or has kept all that it holds.

`make test` reads a part of the corpus, `make test-slow` all 1,000 files.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from standins import clip
from tiny import tiny_checkpoint

import wmgym
from wmgym import tree
from wmgym.checkpoint import load, load_world
from wmgym.data.episode import Episode, Metadata, Segment, load_episode, read_array, save_episode

PAGE = 4096
WHOLE, PART = 1000, 100


@dataclass(frozen=True)
class Kind:
    """A kind of file: a good one, another good one whose header may replace the first's, and a reader of its whole content."""

    good: Path
    other: Path
    read: Callable[[Path], dict[str, Any]]


def weights(folder: Path) -> Kind:
    def read(path: Path) -> dict[str, Any]:
        loaded = load(path)
        return {**loaded.model.state_dict(), "config": loaded.config, "notes": json.dumps(loaded.notes)}

    for name, seed in (("one", 0), ("two", 1)):
        (folder / name).mkdir()
        tiny_checkpoint(folder / name, seed=seed)
    return Kind(folder / "one/tiny-1.safetensors", folder / "two/tiny-1.safetensors", read)


def episodes(folder: Path) -> Kind:
    def read(path: Path) -> dict[str, Any]:
        episode = load_episode(path)
        return {f.name: getattr(episode, f.name) for f in fields(Episode)}

    for name, seed in (("one", 0), ("two", 1)):
        rng, length = np.random.default_rng(seed), 12
        arrays = rng.integers(0, 256, (length, 16, 16, 3), np.uint8), rng.integers(0, 10, length), rng.random((length, 5), np.float32)
        flags = rng.random(length, np.float32), np.zeros(length, bool), np.arange(length) == length - 1
        meta = Metadata("Minecraft-v0", seed, "x", segments=(Segment("a", 0),))
        save_episode(folder / f"{name}.safetensors", Episode(*arrays, *flags, meta))
    return Kind(folder / "one.safetensors", folder / "two.safetensors", read)


def states(folder: Path) -> Kind:
    env = wmgym.make_env(load_world(tiny_checkpoint(folder), device="cpu", dtype="float32"), "free", setting="minecraft", opening=clip(9))
    for name, seed in (("one", 0), ("two", 1)):
        env.reset(seed=seed)
        env.step(1)
        wmgym.save_state_file(env.save_state(), folder / f"{name}.safetensors")
    return Kind(folder / "one.safetensors", folder / "two.safetensors", lambda path: tree.leaves(wmgym.load_state_file(path, env)))


KINDS = {"weights": weights, "episodes": episodes, "states": states}


def damaged(good: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """One file of the corpus."""
    data, header = bytearray(good), 8 + struct.unpack("<Q", good[:8])[0]
    kind, size = rng.choice(["bit", "bit in the header", "bits", "page", "cut", "grown", "header", "bytes"]), len(good)
    if kind == "bit":
        data[rng.integers(size)] ^= 1 << rng.integers(8)
    elif kind == "bit in the header":
        data[rng.integers(header)] ^= 1 << rng.integers(8)
    elif kind == "bits":
        for _ in range(rng.integers(2, 40)):
            data[rng.integers(size)] ^= 1 << rng.integers(8)
    elif kind == "page":
        first = int(rng.integers(-(-size // PAGE))) * PAGE
        data[first : first + PAGE] = bytes(len(data[first : first + PAGE]))
    elif kind == "cut":
        del data[int(rng.integers(size)) :]
    elif kind == "grown":
        data += rng.bytes(int(rng.integers(1, PAGE)))
    elif kind == "header":
        data[:header] = other[: 8 + struct.unpack("<Q", other[:8])[0]]
    else:
        first = int(rng.integers(size))
        data[first : first + 64] = rng.bytes(len(data[first : first + 64]))
    return bytes(data)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    if isinstance(a, (np.ndarray, np.generic)):
        return np.asarray(a).dtype == np.asarray(b).dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return bool(a == b)


def corpus(kind: Kind, count: int) -> Iterator[bytes]:
    good, other = kind.good.read_bytes(), kind.other.read_bytes()
    for seed in range(count):
        yield damaged(good, other, np.random.default_rng(seed))


def outcome(kind: Kind, path: Path) -> tuple[dict[str, Any] | None, str]:
    """What a file holds, or the words of the error. Any other error than a `ValueError` is raised."""
    try:
        return kind.read(path), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("count", [PART, pytest.param(WHOLE, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_damage_is_one_error_or_no_damage(name: str, count: int, tmp_path: Path) -> None:
    kind, number = KINDS[name](tmp_path), -(-count // len(KINDS))
    whole, path, refused = kind.read(kind.good), kind.good.with_name("bad.safetensors"), 0
    for seed, content in enumerate(corpus(kind, number)):
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a file that is taken for one of an older version would be read unchecked
            found, words = outcome(kind, path)
        if found is None:
            refused += 1
            assert str(path) in words and "\n" not in words, (seed, words)
            continue
        assert found.keys() == whole.keys() and all(same(found[key], whole[key]) for key in whole), f"damage {seed} passed unnoticed"
    assert refused > 0.9 * number


def test_each_byte_of_an_episodes_pixels_is_guarded(tmp_path: Path) -> None:
    kind = episodes(tmp_path)
    content = bytearray(kind.good.read_bytes())
    content[-100] ^= 1
    kind.good.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged: .* do not match their checksums"):
        load_episode(kind.good)


@pytest.mark.parametrize("name", ["frames", "poses"])
def test_one_array_is_guarded_too(tmp_path: Path, name: str) -> None:
    kind = episodes(tmp_path)
    swapped = kind.good.read_bytes()
    where = swapped.find(load_episode(kind.good).__dict__[name].tobytes())
    kind.good.write_bytes(swapped[:where] + bytes([swapped[where] ^ 1]) + swapped[where + 1 :])
    with pytest.raises(ValueError, match=f"{name} do not match"):
        read_array(kind.good, name)


def test_an_episode_of_version_0_1_has_no_checksums_and_loads(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    kind = episodes(tmp_path)
    with safe_open(kind.good, "numpy") as file:
        header = file.metadata()
    arrays = load_file(kind.good)
    del arrays["checksums"]
    save_file(arrays, tmp_path / "old.safetensors", header)
    assert all(same(kind.read(tmp_path / "old.safetensors")[key], value) for key, value in kind.read(kind.good).items())


def test_a_state_file_without_a_checksum_loads(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    kind = states(tmp_path)
    with safe_open(kind.good, "pt") as file:
        header = {key: value for key, value in file.metadata().items() if key != "checksum"}
    save_file(load_file(kind.good), tmp_path / "old.safetensors", header)
    assert all(same(kind.read(tmp_path / "old.safetensors")[key], value) for key, value in kind.read(kind.good).items())
