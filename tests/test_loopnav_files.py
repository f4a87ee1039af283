"""LoopNav's released layout: what we write is read back, axes and alignment are found, and walks at 20 Hz become walks in ten actions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wmgym.agents.collect import CollectArgs, collect
from wmgym.benchmarks.loopnav import Course, loop_of
from wmgym.data import loopnav
from wmgym.data.episode import RETURN, list_episodes, load_episode
from wmgym.data.film import write_film
from wmgym.experiments.loopnav import _from_films
from wmgym.geometry import wrap_angle

SIZE = 32


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loops")
    keywords = json.dumps({"size": SIZE})
    collect(
        CollectArgs(walker="loop-ABA-5", steps=60, out=folder, processes=1, env_kwargs=keywords, format="loopnav", seed=3), progress=False
    )
    return folder


def test_what_is_written_is_read_back(collected: Path) -> None:
    files = loopnav.find_trajectories(collected / "loopnav")
    episodes = [load_episode(path) for path in list_episodes(collected)]
    assert len(files) == len(episodes) > 0
    back = {path.stem: loopnav.read_episode(path, SIZE) for path in files}
    for path, episode in zip(list_episodes(collected), episodes, strict=True):
        again = back[path.stem]
        assert files[0].relative_to(collected / "loopnav").parts[:2] == ("ABA", "5")
        np.testing.assert_array_equal(again.actions, episode.actions)
        np.testing.assert_allclose(again.poses[:, :3], episode.poses[:, :3], atol=6e-4)  # three decimals
        assert np.abs(wrap_angle(again.poses[:, 3:] - episode.poses[:, 3:])).max() < 1e-5
        assert np.abs(again.frames.astype(int) - episode.frames).mean() < 8  # JPEG, colours at half the size
        assert again.meta.walker == "loop-ABA-5" and again.meta.seed == episode.meta.seed
        assert again.return_first == episode.return_first


def test_loops_of_films_are_what_is_evaluated(collected: Path) -> None:
    files = loopnav.find_trajectories(collected / "loopnav")
    (loop,) = _from_films(files, [Course("ABA", 5)], 1, SIZE)(Course("ABA", 5))
    original = next(e for e in map(load_episode, list_episodes(collected)) if e.meta.seed == loop.seed)
    assert loop.split == loop_of(original).split and loop.frames.shape[1:] == (SIZE, SIZE, 3)
    with pytest.raises(ValueError, match="2 films of ABCA-5 are asked for, there are"):
        _from_films(files, [Course("ABCA", 5)], 2, SIZE)


def release(folder: Path, shift: int) -> tuple[Path, np.ndarray]:
    """A walk as the release has it: 20 Hz, 48 x 64, turns of 0.15 rad a tick, the way to (10, 0) and back. Its poses, in our axes."""
    plan = [("turn", math.pi / 2)] + [("walk", 10.0), ("turn", -math.pi), ("walk", 10.0)]
    poses, actions = [[100.0, -50.0, 64.0, -math.pi / 2, 0.0]], []
    goals: list[Any] = []
    for number, (what, amount) in enumerate(plan):
        steps = math.ceil(abs(amount) / (0.15 if what == "turn" else loopnav.WALK))
        for _ in range(steps):
            x, y, z, yaw, pitch = poses[-1]
            turn = amount / steps if what == "turn" else 0.0
            far = amount / steps if what == "walk" else 0.0
            poses.append([x + far * math.cos(yaw), y + far * math.sin(yaw), z, yaw + turn, pitch])
            actions.append((what == "walk", turn))
            goals.append((110.0, -50.0) if number < 2 else (100.0, -50.0))
    goals.append(goals[-1])
    actions.append((False, 0.0))
    rows = []
    for i, (x, y, z, yaw, pitch) in enumerate(poses):
        forward, turn = actions[i] if shift else (actions[i - 1] if i else (False, 0.0))
        rows.append(
            {
                "x": x, "y": z, "z": -y, "yaw": yaw - math.pi / 2 + 4 * math.pi, "pitch": pitch, "frame_count": i,
                "action": {**dict.fromkeys(loopnav.KEYS, False), "forward": forward, "camera": [turn, 0.0]},
                "goal": None if i < 3 else {"x": goals[i][0], "y": 64, "z": -goals[i][1]},
                "extra_info": {"seed": 42, "location": "village_3", "nvtype": "ABA", "nvrange": 15},
            }
        )  # fmt: skip
    path = folder / "ABA" / "15" / "village_3" / "1700000000.json"
    frames = np.zeros((len(rows), 48, 64, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 250, len(rows)).astype(np.uint8)[:, None, None]
    write_film(path.with_suffix(".avi"), frames, loopnav.RATE, "MJPG")
    path.write_text(json.dumps(rows))
    return path, np.array(poses)


@pytest.mark.parametrize("shift", [0, 1])
def test_which_frame_an_action_leads_to_is_found(tmp_path: Path, shift: int) -> None:
    walk = loopnav.read_trajectory(release(tmp_path, shift)[0])
    assert loopnav.alignment(walk.poses, walk.keys, walk.camera) == shift


def test_axes_are_ours_and_yaws_are_wrapped(tmp_path: Path) -> None:
    path, poses = release(tmp_path, 1)
    walk = loopnav.read_trajectory(path)
    np.testing.assert_allclose(walk.poses[:, :3], poses[:, :3], atol=1e-9)
    assert np.abs(wrap_angle(walk.poses[:, 3] - poses[:, 3])).max() < 1e-9
    assert np.abs(walk.poses[:, 3]).max() <= math.pi
    assert walk.frames.shape == (len(poses), 48, 64, 3) and loopnav.read_trajectory(path, 16).frames.shape[1:] == (16, 16, 3)


def test_a_walk_at_20_hz_becomes_one_in_ten_actions(tmp_path: Path) -> None:
    path, poses = release(tmp_path, 1)
    episode = loopnav.read_episode(path, 16)
    walked, turned = (np.isin(episode.actions, kind).sum() for kind in ((1,), (6, 7)))
    assert walked == pytest.approx(20 / (4 * loopnav.WALK), abs=3) and turned == pytest.approx(1.5 * math.pi / loopnav.TURN, abs=4)
    assert set(episode.actions.tolist()) <= {0, 1, 6, 7}
    # each action explains its own step, and so their sum the whole walk
    x, y, yaw = poses[0, 0], poses[0, 1], poses[0, 3]
    for action, pose in zip(episode.actions[1:], episode.poses[1:], strict=True):
        ahead, _, turn, _ = loopnav._MOTIONS[action]
        assert math.hypot(x + ahead * math.cos(yaw) - pose[0], y + ahead * math.sin(yaw) - pose[1]) < 0.25
        assert abs(wrap_angle(np.array(yaw + turn - pose[3]))) < 0.12
        x, y, yaw = (float(v) for v in pose[[0, 1, 3]])
    np.testing.assert_allclose(episode.poses[-1, :2], poses[0, :2], atol=1e-3)


def test_the_way_back_begins_where_the_goal_becomes_home(tmp_path: Path) -> None:
    path, _ = release(tmp_path, 1)
    episode = loopnav.read_episode(path, 16)
    segment = next(s for s in episode.meta.segments if s.name == RETURN)
    np.testing.assert_allclose(episode.poses[segment.first, :2], [110, -50], atol=0.3)
    assert episode.meta.seed == 42 and episode.meta.walker == "loop-ABA-15"
    goals = np.full((6, 3), math.nan)
    assert loopnav.split_of(goals, np.zeros(3)) == 0
    goals[2] = [3, 0, 0]
    assert loopnav.split_of(goals, np.zeros(3)) == 3
    goals[4] = [1.9, -1.9, 0]
    assert loopnav.split_of(goals, np.zeros(3)) == 3


def test_what_is_no_walk_is_named(tmp_path: Path) -> None:
    path, _ = release(tmp_path, 1)
    rows = json.loads(path.read_text())
    path.write_text(json.dumps(rows[:-5]))
    with pytest.raises(ValueError, match="rows, but"):
        loopnav.read_trajectory(path)
    path.write_text("[{}]")
    with pytest.raises(ValueError, match="is not a LoopNav walk"):
        loopnav.read_trajectory(path)
    with pytest.raises(ValueError, match="format must be one of episodes, loopnav, recon"):
        CollectArgs(format="films")
    with pytest.raises(ValueError, match="for loop walkers"):
        CollectArgs(format="loopnav", walker="explorer")
