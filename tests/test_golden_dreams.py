"""Checkpoints of version 0.1.0 still open, and dream what they dreamed then.

`data/dreams-0.1.0.zip` was written by 0.1.0: a tiny checkpoint with a motion head and a reward head, an opening of 44 frames for two
lanes (the second lacks the first nine), and six dreamed steps in each memory mode, in float32 on a CPU.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from wmgym import rng
from wmgym.checkpoint import load_world
from wmgym.core import Clip

ARCHIVE = Path(__file__).parent / "data" / "dreams-0.1.0.zip"
SEEN = 44


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    folder = tmp_path_factory.mktemp("golden")
    with zipfile.ZipFile(ARCHIVE) as file:
        checkpoint = Path(file.extract("tiny.safetensors", folder))
        with np.load(io.BytesIO(file.read("dreams.npz"))) as arrays:
            yield checkpoint, dict(arrays)


@pytest.mark.parametrize("memory", ["none", "packing", "retrieval", "worldpack"])
def test_a_checkpoint_of_0_1_0_dreams_the_same_frames(archive: tuple[Path, dict[str, np.ndarray]], memory: str) -> None:
    checkpoint, golden = archive
    world = load_world(str(checkpoint), memory=memory, device="cpu", dtype="float32")
    frames = golden["coarse"].repeat(4, 2).repeat(4, 3)
    seen = (frames, golden["actions"][:, :SEEN], golden["poses"], golden["valid"])
    state = world.start(Clip(*map(torch.from_numpy, seen)), rng.make_keys([5, 6]))
    for step, actions in enumerate(golden["actions"][:, SEEN:].T):
        state, shown = world.step(state, torch.from_numpy(actions[:, None]))
        assert shown.rewards is not None and shown.ends is not None
        expected = {name: golden[f"{memory}/{name}"][:, step] for name in ("frames", "poses", "rewards", "ends", "retrieved")}
        error = np.abs(shown.pixels[:, 0].numpy().astype(int) - expected["frames"])
        assert error.max() <= 1, f"step {step}"  # processors differ in the order of their sums; equal on the one that wrote the file
        np.testing.assert_allclose(shown.poses[:, 0].numpy(), expected["poses"], atol=1e-4)
        np.testing.assert_array_equal(shown.rewards[:, 0].numpy(), expected["rewards"])
        np.testing.assert_array_equal(shown.ends[:, 0].numpy(), expected["ends"])
        np.testing.assert_array_equal(state.retrieval.indices.numpy(), expected["retrieved"])
