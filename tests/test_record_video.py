"""Gymnasium's RecordVideo writes every frame of an episode, of one dream and of many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import RecordVideo
from standins import StandInWorld, single, vector

pytest.importorskip("moviepy")
SIZE = 32  # an even number, and large enough for the codec


def frames_in(path: Path) -> list[np.ndarray]:
    video = cv2.VideoCapture(str(path))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1][..., ::-1])
    return frames


def world(chunk: int = 1) -> dict[str, Any]:
    return {"world": StandInWorld(SIZE, chunk, noise=0), "task": "free", "horizon": 6}


def test_a_single_env_is_recorded_frame_by_frame(tmp_path: Path) -> None:
    env = RecordVideo(single(**world(), render_mode="rgb_array"), str(tmp_path / "videos"), episode_trigger=lambda episode: True)
    seen = [env.reset(seed=0)[0]]
    truncated = False
    while not truncated:
        frame, _, _, truncated, _ = env.step(6)
        seen.append(frame)
    env.close()
    (path,) = tmp_path.glob("videos/*.mp4")
    recorded = frames_in(path)
    assert len(recorded) == 7
    for frame, shown in zip(recorded, seen, strict=True):
        assert np.abs(frame.astype(int) - shown).mean() < 20  # the codec is lossy


def test_a_list_of_a_chunks_frames_can_be_recorded_too(tmp_path: Path) -> None:
    made = single(**world(chunk=3), render_mode="rgb_array_list")
    env = RecordVideo(made, str(tmp_path / "videos"), episode_trigger=lambda episode: True)
    env.reset(seed=0)
    while not env.step([6, 6, 6])[3]:
        pass
    env.close()
    assert len(list(tmp_path.glob("videos/*.mp4"))) == 1


def test_a_vector_env_is_recorded_as_a_grid(tmp_path: Path) -> None:
    vec = gym.wrappers.vector.RecordVideo(
        vector(4, **world(), render_mode="rgb_array"), str(tmp_path / "videos"), episode_trigger=lambda episode: episode == 0
    )
    vec.reset(seed=0)
    for _ in range(8):
        vec.step([6] * 4)
    vec.close()
    (path,) = tmp_path.glob("videos/*.mp4")
    recorded = frames_in(path)
    assert len(recorded) == 7
    assert recorded[0].shape == (2 * SIZE, 2 * SIZE, 3)
