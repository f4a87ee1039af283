"""The published dataset becomes episodes, step for step; damaged files are named; returns are what is earned."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mazes import needs_maze

from wmgym.data.episode import list_episodes, load_episode
from wmgym.data.memory_maze import ImportArgs, import_episodes, read_npz


def trajectory(length: int = 7, cells: int = 9) -> dict[str, np.ndarray]:
    """A walk straight up the grid, in the dataset's arrays."""
    rng = np.random.default_rng(0)
    action = np.eye(6, dtype=np.uint8)[rng.integers(6, size=length)]
    action[0] = 0
    return {
        "image": rng.integers(256, size=(length, 64, 64, 3), dtype=np.uint8),
        "action": action,
        "reward": np.linspace(0, 1, length),
        "agent_pos": np.stack([np.full(length, 0.5), 0.5 + np.arange(length)], 1),
        "agent_dir": np.tile([0.0, 1.0], (length, 1)),
        "maze_layout": np.ones((length, cells, cells), np.uint8),
        "target_color": np.zeros((length, 3)),
    }


def stored(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_a_trajectory_is_read_step_for_step(tmp_path: Path) -> None:
    given = trajectory()
    episode = read_npz(stored(tmp_path / "a.npz", **given))
    np.testing.assert_array_equal(episode.frames, given["image"])
    np.testing.assert_array_equal(np.eye(6)[episode.actions[1:]], given["action"][1:])
    np.testing.assert_allclose(episode.rewards, given["reward"])
    np.testing.assert_allclose(episode.poses[:, 0], -8)  # half a cell from the left, 4 cells from the middle, 2 m each
    np.testing.assert_allclose(episode.poses[:, 1], -8 + 2 * np.arange(7))
    np.testing.assert_allclose(episode.poses[:, 3], math.pi / 2)
    assert episode.actions[0] == 0 and episode.truncated.tolist() == [False] * 6 + [True] and not episode.terminated.any()
    assert episode.meta.env_id == "MemoryMaze-9x9-v0"


@needs_maze
def test_what_the_env_shows_survives_the_datasets_form(tmp_path: Path) -> None:
    """Recorded as the dataset was, from ExtraObs, and imported: the poses are those of info."""
    from wmgym.envs.memory_maze.env import MemoryMazeEnv

    env = MemoryMazeEnv(variant="ExtraObs")
    seen, info = env.reset(seed=3)
    rows, poses, taken = [seen], [info["pose"]], [np.zeros(6)]
    for action in (1, 1, 4, 2, 5):
        seen, _, _, _, info = env.step(action)
        rows.append(seen)
        poses.append(info["pose"])
        taken.append(np.eye(6)[action])
    arrays = {key: np.stack([row[key] for row in rows]) for key in ("image", "agent_pos", "agent_dir", "maze_layout")}
    episode = read_npz(stored(tmp_path / "a.npz", **arrays, action=np.stack(taken), reward=np.zeros(6)))
    np.testing.assert_allclose(episode.poses, poses, atol=1e-5)
    assert episode.actions.tolist() == [0, 1, 1, 4, 2, 5]


def test_a_folder_is_imported_once(tmp_path: Path) -> None:
    for name in "abc":
        stored(tmp_path / f"{name}.npz", **trajectory())
    out = tmp_path / "out"
    args = ImportArgs(tmp_path, out)
    assert import_episodes(ImportArgs(tmp_path, out, limit=2), progress=False)["imported_steps"] == 12
    report = import_episodes(args, progress=False)
    assert (report["kept"], report["imported_steps"]) == (2, 6)
    assert [load_episode(path).steps for path in list_episodes(out)] == [6, 6, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": None}, "lacks reward"),
        ({"action": np.ones((7, 6))}, "one-hot"),
        ({"action": np.zeros((7, 6))}, "one-hot"),
        ({"action": np.zeros((6, 6))}, "action must have the shape"),
        ({"agent_pos": np.full((7, 2), np.nan)}, "poses must be finite"),
        ({"image": np.zeros((7, 64, 64, 3))}, "frames must be uint8"),
        ({"reward": np.array([object()] * 7)}, "pickle"),  # would run code if it were read
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {key: value for key, value in (trajectory() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message) as caught:
        read_npz(stored(tmp_path / "a.npz", **arrays))
    assert "a.npz" in str(caught.value)


@pytest.mark.parametrize("cut", [0, 10, 2000])
def test_a_damaged_file_is_named(tmp_path: Path, cut: int) -> None:
    memory = io.BytesIO()
    np.savez_compressed(memory, **trajectory())
    path = tmp_path / "a.npz"
    path.write_bytes(memory.getvalue()[:cut])
    with pytest.raises(ValueError, match=r"a\.npz"):
        read_npz(path)


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no npz"):
        import_episodes(ImportArgs(tmp_path), progress=False)


@needs_maze
def test_a_return_is_the_sum_of_the_envs_rewards() -> None:
    from wmgym.agents.scripted import make_walker
    from wmgym.envs.memory_maze.env import MemoryMazeEnv
    from wmgym.experiments.maze_returns import episode_return

    env = MemoryMazeEnv(size=8, horizon=120)
    _, info = env.reset(seed=5)
    walker, rewards = make_walker("oracle", env, np.random.default_rng(5)), []
    for _ in range(120):
        _, reward, _, _, info = env.step(walker.act(info["pose"]))
        rewards.append(reward)
    assert episode_return(env, "oracle", 5) == sum(rewards) > 0


@needs_maze
def test_the_table_of_returns_says_whose_the_people_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wmgym.experiments import maze_returns

    monkeypatch.setattr(maze_returns, "episode_return", lambda env, name, seed: {"oracle": 30.0, "random": 1.0}[name] + seed % 2)
    report = maze_returns.evaluate(maze_returns.ReturnsArgs((9, 15), ("oracle", "random"), 4, out=tmp_path), progress=False)
    assert [(row["size"], row["walker"], row["return"], row["best"]) for row in report["returns"]] == [
        ("9x9", "oracle", 30.5, 31.0), ("9x9", "random", 1.5, 2.0), ("15x15", "oracle", 30.5, 31.0), ("15x15", "random", 1.5, 2.0),
    ]  # fmt: skip
    assert report["returns"][0]["people_mean (paper)"] == 26.4 and (tmp_path / "table.txt").is_file()
    for wrong in ({"sizes": (10,)}, {"walkers": ("turn-loop",)}, {"episodes": 0}):
        with pytest.raises(ValueError):
            maze_returns.ReturnsArgs(**wrong)
