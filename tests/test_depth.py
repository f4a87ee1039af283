"""Depth images are exact: closed forms, walls and floors of the worlds themselves, and two views of one thing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from mazes import needs_maze

from wmgym.agents.collect import CollectArgs, collect
from wmgym.data.depth import DepthCamera, unproject
from wmgym.data.episode import Episode, Metadata, list_episodes, load_episode, read_array, read_header, save_episode
from wmgym.envs.memory_maze.env import MemoryMazeEnv
from wmgym.envs.minecraft.backend import BACKENDS
from wmgym.envs.minecraft.env import MinecraftEnv
from wmgym.envs.minecraft.voxel import physics, render
from wmgym.envs.minecraft.voxel.blocks import NUMBER
from wmgym.envs.minecraft.voxel.world import FAR, distance

HALF = math.tan(math.radians(75) / 2)  # of the block world's view
SIDE = 64


def rows(height: int = SIDE) -> np.ndarray:
    """How far up each row of pixels looks, in half heights of the view."""
    return 1 - (2 * np.arange(height) + 1) / height


# -- closed forms -----------------------------------------------------------------------------------------------------------------------


def by_hand(blocks: np.ndarray, eye: tuple[float, float, float], yaw: float, pitch: float, size: int = SIDE) -> np.ndarray:
    """Depth in a small world of stone: bool [X, Y, Z] says where."""
    grid = np.where(blocks, NUMBER["stone"], 0).astype(np.uint8)
    above = grid.copy()
    distance(grid, FAR, True)
    distance(above, FAR, False)
    depth = np.full((size, size), np.inf, np.float32)
    render.measure(grid, above, *eye, yaw, pitch, depth)
    return depth


@pytest.mark.parametrize(("yaw", "away"), [(0.0, 9.0 - 4.7), (math.pi / 2, 12.0 - 5.2), (math.pi, 4.7 - 3.0), (-math.pi / 2, 5.2 - 2.0)])
def test_a_wall_straight_ahead_has_one_depth(yaw: float, away: float) -> None:
    blocks = np.ones((14, 14, 12), bool)
    blocks[3:9, 2:12, :] = False  # a shaft without floor: 4 walls
    depth = by_hand(blocks, (4.7, 5.2, 6.4), yaw, 0.0)
    assert depth[SIDE // 2, SIDE // 2] == np.float32(away)
    facing = depth[SIDE // 2 - 2 : SIDE // 2 + 2, SIDE // 2 - 8 : SIDE // 2 + 8]
    np.testing.assert_allclose(facing, away, rtol=1e-6)


def test_a_tilted_view_of_a_floor_is_as_the_plane_says() -> None:
    blocks = np.zeros((120, 120, 12), bool)
    blocks[:, :, :2] = True
    height, pitch = 3.3, -math.radians(35)
    depth = by_hand(blocks, (60.5, 60.5, 2 + height), 0.4, pitch)
    falls = -(math.sin(pitch) + rows() * HALF * math.cos(pitch))  # per unit of depth, in each row
    expected = np.broadcast_to((height / np.where(falls > 0, falls, np.nan))[:, None], depth.shape)
    seen = np.isfinite(depth)
    assert 0.9 < seen.mean() < 1 and np.isinf(depth[falls <= 0]).all()
    np.testing.assert_allclose(depth[seen], expected[seen], rtol=1e-6)


def test_unproject_puts_each_pixel_on_its_ray() -> None:
    camera = DepthCamera(math.radians(90), (0.5, 0.25, 1.5), tilt=0.1)
    pose = np.array([1, 2, 3, math.pi / 2, -0.1], np.float32)  # looks along +y, level
    points = unproject(np.full((2, 4), 2.0), pose, camera)
    eye = np.array([1 - 0.25, 2 + 0.5, 3 + 1.5])
    np.testing.assert_allclose(points[0, 0] - eye, [-2 * 1.5, 2, 2 * 0.5], atol=1e-6)  # left and up
    np.testing.assert_allclose(points[1, 2] - eye, [2 * 0.5, 2, -2 * 0.5], atol=1e-6)
    assert not np.isfinite(unproject(np.full((1, 1), np.inf), pose, camera)).all()
    many = unproject(np.full((3, 2, 4), 2.0), np.tile(pose, (3, 1)), camera)
    assert np.array_equal(many, np.tile(points, (3, 1, 1, 1)))


# -- the block world --------------------------------------------------------------------------------------------------------------------


def walked(seed: int, steps: int = 60) -> MinecraftEnv:
    env = MinecraftEnv(task="free")
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        env.step(int(rng.integers(10)))
    return env


def project(points: np.ndarray, pose: np.ndarray, camera: DepthCamera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column (continuous, a pixel's centre has whole numbers) and depth of world points [..., 3]."""
    x, y, z = np.moveaxis(points - pose[:3], -1, 0)
    yaw, pitch = float(pose[3]), float(pose[4]) + camera.tilt
    forward = x * math.cos(yaw) + y * math.sin(yaw) - camera.eye[0]
    left = y * math.cos(yaw) - x * math.sin(yaw) - camera.eye[1]
    up = z - camera.eye[2]
    depth = forward * math.cos(pitch) + up * math.sin(pitch)
    half = math.tan(camera.field_of_view / 2)
    down = (forward * math.sin(pitch) - up * math.cos(pitch)) / depth / half
    return (down + 1) * SIDE / 2 - 0.5, (1 - left / depth / half) * SIDE / 2 - 0.5, depth


@pytest.mark.parametrize("seed", [0, 1])
def test_each_pixel_of_the_block_world_lies_on_a_face_of_a_block(seed: int) -> None:
    """Of a solid block, and nothing solid is before it."""
    env = walked(seed)
    camera = env.metadata["depth"]
    rng = np.random.default_rng(7)
    for _ in range(6):
        pose = env.step(int(rng.integers(10)))[-1]["pose"]
        depth = env.depth()
        seen = np.isfinite(depth)
        points = unproject(depth, pose, camera)[seen]
        eye = np.array([*pose[:2], pose[2] + camera.eye[2]])
        assert np.abs(points - np.round(points)).min(-1).max() < 1e-4  # blocks begin and end at whole numbers
        away = points - eye
        away /= np.linalg.norm(away, axis=-1, keepdims=True)
        low, high = np.floor(points.min(0)).astype(int) - 1, np.ceil(points.max(0)).astype(int) + 1
        solid = env.solid(tuple(low), tuple(high))  # type: ignore[arg-type]

        def stops(where: np.ndarray, low: np.ndarray = low, solid: np.ndarray = solid) -> np.ndarray:
            return solid[tuple((np.floor(where).astype(int) - low).T)]

        inner = np.sort(np.abs(points - np.round(points)), -1)[:, 1] > 2e-3  # not at an edge between two faces
        assert inner.mean() > 0.95
        assert stops((points + 1e-3 * away)[inner]).all()
        assert not stops((points - 1e-3 * away)[inner]).any()


def test_the_sky_is_infinitely_far_and_all_that_is_seen_is_near() -> None:
    env = walked(0, 0)
    for _ in range(3):
        frame, _, _, _, info = env.step(8)  # looks up
        depth, pose = env.depth(), info["pose"]
        sky = np.isinf(depth)
        assert 0.1 < sky.mean() < 1
        assert frame[sky][:, 2].min() >= 214  # its blue, and that of the sun
        points = unproject(depth, pose, env.metadata["depth"])[~sky]
        assert np.linalg.norm(points - [*pose[:2], pose[2] + physics.EYES], axis=-1).max() < render.VIEW_DISTANCE


@pytest.mark.parametrize("actions", [[6], [1, 1], [9], [3, 7]])
def test_a_point_seen_from_two_poses_is_one_point(actions: list[int]) -> None:
    """A pixel of the first view, found again in the second, leads back to within half a pixel, unless it is hidden there."""
    env = walked(3)
    camera = env.metadata["depth"]
    before, first = env._pose, env.depth()
    assert before is not None
    for action in actions:
        pose = env.step(action)[-1]["pose"]
    fine = 16  # so many pixels of the second view to one of the first, so that looking a point up costs no precision
    second = env._engine.depth(fine * SIDE, fine * SIDE)  # type: ignore[attr-defined]
    row, column, depth = project(unproject(first, before, camera), pose, camera)
    there = np.isfinite(first) & (depth > 0) & (np.abs(row - 31.5) < 31.9) & (np.abs(column - 31.5) < 31.9)
    assert there.mean() > 0.25
    at = np.floor((row[there] + 0.5) * fine).astype(int), np.floor((column[there] + 0.5) * fine).astype(int)
    # the same way back, from what the second view shows there
    found = unproject(second, pose, camera)[at]
    again_row, again_column, _ = project(found, before, camera)
    here_row, here_column = np.nonzero(there)
    off = np.maximum(np.abs(again_row - here_row), np.abs(again_column - here_column))
    beside = second[at] - depth[there]
    same, hidden = off < 0.5, beside < -0.05
    assert (same | hidden).mean() > 0.995  # the rest are edges
    assert same.mean() > 0.8


def test_depth_changes_nothing_that_is_observed() -> None:
    """And it belongs to the frame: the state with the same frames has the same depth."""
    one, other = walked(2, 5), walked(2, 5)
    one.depth()
    for action in (1, 6, 1):
        a, b = one.step(action), other.step(action)
        assert np.array_equal(a[0], b[0])
    assert one.observation_space == MinecraftEnv(task="free").observation_space
    assert np.array_equal(one.depth(), other.depth()) and one.depth().dtype == np.float32
    one.step(6)
    assert not np.array_equal(one.depth(), other.depth())


def test_who_measures_depth_says_so() -> None:
    assert [name for name, engine in BACKENDS.items() if engine.depth] == ["voxel"]
    assert MinecraftEnv().metadata["depth"] == DepthCamera(math.radians(75), (0, 0, physics.EYES))
    assert "depth" not in gym.make("wmgym:MemoryCards-v0").metadata
    with pytest.raises(gym.error.ResetNeeded):
        MinecraftEnv().depth()


# -- Memory Maze ------------------------------------------------------------------------------------------------------------------------


@needs_maze
@pytest.mark.parametrize("yaw", [0, 1, 2, 3])
def test_a_wall_of_a_maze_is_as_far_as_its_layout_says(yaw: int) -> None:
    """From the middle of cells, looking along an axis: the camera is 0.15 m ahead and looks down by atan(0.1)."""
    env = MemoryMazeEnv(9)
    env.reset(seed=1)
    maze, camera = env.ball.maze, env.metadata["depth"]
    free = np.pad(maze.layout.astype(bool), 1)
    step = [(0, 1), (1, 0), (0, -1), (-1, 0)][yaw]  # of row and column
    checked = 0
    for row, column in np.argwhere(maze.layout)[::9]:
        x, y = maze.to_metres(np.array([column, row]) + 0.5)
        along, aside = ((maze.targets[:, :2] - (x, y)) @ np.array([step[::-1], step]).T).T
        if ((np.abs(aside) < 1) & (along > -1)).any():  # a target may stand in the way
            continue
        cells = 0
        while free[row + 1 + (cells + 1) * step[0], column + 1 + (cells + 1) * step[1]]:
            cells += 1
        env.ball.place(float(x), float(y), yaw * math.pi / 2)
        away = (cells + 0.5) * 2 - camera.eye[0]  # cells are 2 m wide
        up = rows() * math.tan(math.radians(80) / 2)
        middle = env.depth()[:, SIDE // 2 - 1 : SIDE // 2 + 1]
        expected = away / (math.cos(camera.tilt) - up * math.sin(camera.tilt))
        height = 0.9 + expected * (math.sin(camera.tilt) + up * math.cos(camera.tilt))  # at which the ray meets the wall
        wall = (height > 0.05) & (height < 1.2)
        np.testing.assert_allclose(middle[wall], np.repeat(expected[wall, None], 2, 1), rtol=1e-4)
        checked += int(wall.sum())
    assert checked > 40


@needs_maze
@pytest.mark.parametrize("cells", [9, 15])
def test_each_pixel_of_a_maze_lies_on_its_floor_walls_or_targets(cells: int) -> None:
    env = MemoryMazeEnv(cells)
    _, info = env.reset(seed=cells)
    maze, camera = env.ball.maze, env.metadata["depth"]
    rng = np.random.default_rng(0)
    floor = 0
    for _ in range(25):
        info = env.step(int(rng.integers(6)))[-1]
        depth = env.depth()
        points = unproject(depth, info["pose"], camera)[np.isfinite(depth)]
        grid = np.abs(maze.to_grid(points[:, :2]) - np.round(maze.to_grid(points[:, :2]))).min(-1)
        on_wall, on_floor = grid < 1e-3, np.abs(points[:, 2]) < 2e-3  # the ball's spring moves the camera by half a millimetre
        radius = np.linalg.norm(points[:, None] - maze.targets[None], axis=-1).min(1)
        on_target = (radius < maze.target_radius + 1e-3) & (radius > 0.95 * maze.target_radius)  # they are drawn with flat faces
        assert (on_wall | on_floor | on_target).all()
        floor += int(on_floor.sum())
        eye = unproject(np.zeros((1, 1)), info["pose"], camera)[0, 0]
        within = on_wall & ~on_target & (points[:, 2] > 0.01)
        away = (points - eye)[within] / np.linalg.norm(points - eye, axis=-1)[within, None]
        beyond = np.floor(maze.to_grid((points[within] + 5e-3 * away)[:, :2])).astype(int)
        inside = ((beyond >= 0) & (beyond < cells)).all(-1)
        walls = ~inside
        walls[inside] = maze.layout[tuple(beyond[inside].T[::-1])] == 0
        assert walls.mean() > 0.995  # the rest are edges
    assert floor > 1000


@needs_maze
def test_the_maze_says_where_its_camera_is() -> None:
    env = MemoryMazeEnv(11, "Vis")
    env.reset(seed=0)
    view, data = env.ball.maze.renderer, env.ball._data
    number = view._camera.fixedcamid
    pose, camera = env.ball.pose, env.metadata["depth"]
    assert math.degrees(camera.field_of_view) == pytest.approx(env.ball.maze.model.cam_fovy[number])
    eye = unproject(np.zeros((1, 1)), pose, camera)[0, 0]
    ahead = unproject(np.ones((1, 1)), pose, camera)[0, 0] - eye
    np.testing.assert_allclose(eye, data.cam_xpos[number], atol=1e-3)
    np.testing.assert_allclose(ahead, -data.cam_xmat[number].reshape(3, 3)[:, 2], atol=1e-6)
    above = MemoryMazeEnv(9, "Top", size=64)
    above.reset(seed=0)
    assert "depth" not in above.metadata
    with pytest.raises(NotImplementedError, match="from above"):
        above.depth()


@needs_maze
def test_depth_of_a_maze_changes_no_frame() -> None:
    one, other = MemoryMazeEnv(9), MemoryMazeEnv(9)
    for env in (one, other):
        env.reset(seed=5)
    for action in (1, 4, 2, 1):
        one.depth()
        assert np.array_equal(one.step(action)[0], other.step(action)[0])
    vector = gym.make_vec("wmgym:MemoryMaze-9x9-v0", num_envs=1)
    assert "depth" not in vector.metadata
    vector.close()


# -- episodes ---------------------------------------------------------------------------------------------------------------------------


def episode(length: int = 4, **changes: Any) -> Episode:
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 60, (length, 6, 5)).astype(np.float32)
    depth[:, 0] = np.inf
    values = {
        "frames": rng.integers(0, 256, (length, 6, 5, 3), dtype=np.uint8),
        "actions": np.zeros(length, np.int64),
        "poses": np.zeros((length, 5), np.float32),
        "rewards": np.zeros(length, np.float32),
        "terminated": np.zeros(length, bool),
        "truncated": np.zeros(length, bool),
        "meta": Metadata("Minecraft-v0", 0, "random", depth=DepthCamera(1.2, (0.0, 0.0, 1.62))),
        "depth": depth,
    }
    return Episode(**{**values, **changes})


def test_depth_comes_back_bit_for_bit_when_it_is_asked_for(tmp_path: Path) -> None:
    file, whole = tmp_path / "e.safetensors", episode()
    save_episode(file, whole)
    read = load_episode(file, depth=True)
    assert read.depth is not None and read.depth.dtype == np.float32 and np.array_equal(read.depth, whole.depth)  # type: ignore[arg-type]
    assert read.meta == whole.meta == read_header(file).meta
    part = load_episode(file, 1, 3, depth=True)
    assert np.array_equal(part.depth, whole.depth[1:3])  # type: ignore[arg-type,index]
    assert np.array_equal(read_array(file, "depth"), whole.depth)  # type: ignore[arg-type]
    without = load_episode(file)
    assert without.depth is None and np.array_equal(without.frames, whole.frames)
    save_episode(tmp_path / "again.safetensors", without)
    assert read_header(tmp_path / "again.safetensors").meta.depth is None


def test_episodes_without_depth_are_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "e.safetensors"
    plain = episode(depth=None, meta=Metadata("Minecraft-v0", 0, "random"))
    save_episode(file, plain)
    assert '"depth"' not in plain.meta.to_json() and b'"depth"' not in file.read_bytes()
    assert load_episode(file).depth is None
    with pytest.raises(ValueError, match=r"e\.safetensors has no depth images; record them with `wmgym collect --depth`"):
        load_episode(file, depth=True)


def test_wrong_depth_is_named() -> None:
    whole = episode()
    assert whole.depth is not None
    for wrong, text in (
        (whole.depth.astype(np.float16), r"depth must be float32 \[4, 6, 5\], got float16"),
        (whole.depth[:, :5], r"got float32 \[4, 5, 5\]"),
        (np.where(whole.depth > 50, np.nan, whole.depth), "positive, got nan"),
        (-whole.depth, "positive, got -"),
    ):
        with pytest.raises(ValueError, match=text):
            episode(depth=wrong)
    with pytest.raises(ValueError, match="camera in its metadata"):
        episode(meta=replace(whole.meta, depth=None))
    with pytest.raises(ValueError, match="field_of_view"):
        DepthCamera(4.0, (0, 0, 0))
    with pytest.raises(ValueError, match="optical axis"):
        DepthCamera(1.0, (0, 0, 0), axis="ray")


# -- collect ----------------------------------------------------------------------------------------------------------------------------


def collected(out: Path, **changes: Any) -> list[Path]:
    collect(CollectArgs(**{"walker": "random", "steps": 24, "episode_length": 12, "processes": 1, "out": out, **changes}), progress=False)
    return list_episodes(out)


@pytest.mark.parametrize("env_id", ["Minecraft-v0", pytest.param("MemoryMaze-9x9-v0", marks=needs_maze)])
def test_collect_stores_the_depth_of_each_frame(env_id: str, tmp_path: Path) -> None:
    files = collected(tmp_path / "with", env_id=env_id, depth=True)
    plain = collected(tmp_path / "without", env_id=env_id)
    for file, other in zip(files, plain, strict=True):
        read = load_episode(file, depth=True)
        assert read.depth is not None and read.depth.shape == read.frames.shape[:3]
        assert np.array_equal(read.frames, load_episode(other).frames)
        env = gym.make(f"wmgym:{env_id}", **read.meta.env_kwargs)
        env.reset(seed=read.meta.seed)
        for t in range(len(read)):
            if t:
                env.step(read.actions[t])
            assert np.array_equal(env.unwrapped.depth(), read.depth[t])  # type: ignore[attr-defined]
        assert read.meta.depth == env.metadata["depth"]
        env.close()
    with pytest.raises(ValueError, match=r"begun with depth=False, not True"):
        collected(tmp_path / "without", env_id=env_id, depth=True)


def test_depth_that_nobody_measures_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'MemoryCards-v0' .*measures no depth"):
        collected(tmp_path / "new", env_id="MemoryCards-v0", walker="cards-random", depth=True)
    with pytest.raises(ValueError, match="'recon' cannot store depth"):
        collected(tmp_path / "new", depth=True, format="recon")
    assert not (tmp_path / "new").exists()
