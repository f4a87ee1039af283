"""Memory Maze is upstream's, frame by frame; its poses are where the body is; its states go on bit for bit."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from mazes import needs_maze
from standins import assert_same

import wmgym
from wmgym import settings
from wmgym.agents.collect import CollectArgs, collect, record
from wmgym.agents.maze_walkers import MazeMap
from wmgym.agents.scripted import make_walker
from wmgym.data.episode import list_episodes, load_episode
from wmgym.envs.memory_maze import gl, upstream
from wmgym.envs.memory_maze.env import MemoryMazeEnv, frame, hides
from wmgym.envs.memory_maze.vector_env import MemoryMazeVectorEnv
from wmgym.geometry import relative_pose
from wmgym.registration import TABLE
from wmgym.settings.memory_maze import LOOK_AROUND, TIME_LIMITS, VARIANTS

pytestmark = needs_maze
EXTRAS = {  # what upstream's own factory takes for a suffix
    "Vis": {"good_visibility": True},
    "HD": {"camera_resolution": 256},
    "Top": {"camera_resolution": 256, "top_camera": True},
    "ExtraObs": {"global_observables": True},
    "Oracle": {"global_observables": True, "show_path": True},
    "HiFreq": {"control_freq": 40},
    "6CL": {"randomize_colors": True},
}


def theirs(cells: int, variant: str, seed: int) -> Any:
    """Upstream's env, as its own package makes it."""
    keywords = {key: value for part in variant.split("-") if part for key, value in EXTRAS[part].items()}
    make = getattr(upstream.load("tasks"), f"memory_maze_{cells}x{cells}")
    return make(seed=seed, image_only_obs="ExtraObs" not in variant, **keywords)


def oracle_actions(cells: int, variant: str, seed: int, steps: int) -> list[int]:
    """A walk that touches targets, with some noise so that it also touches walls."""
    env = MemoryMazeEnv(cells, variant, size=32)
    _, info = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    walker = make_walker("oracle", env, rng)
    actions = []
    for _ in range(steps):
        action = walker.act(info["pose"])
        actions.append(int(rng.integers(6)) if rng.random() < 0.1 else int(action))
        info = env.step(actions[-1])[-1]
    return actions


def assert_as_upstream(cells: int, variant: str, seed: int, steps: int) -> float:
    """Step both along; every observation and reward must be equal to the last bit. What was earned."""
    ours, reference = MemoryMazeEnv(cells, variant), theirs(cells, variant, seed)
    seen, _ = ours.reset(seed=seed)
    assert_same(seen, reference.reset().observation)
    earned = 0.0
    for t, action in enumerate(oracle_actions(cells, variant, seed, steps)):
        step = reference.step(action)
        seen, reward, terminated, truncated, _ = ours.step(action)
        assert_same(seen, step.observation)
        assert reward == step.reward and not terminated, f"step {t}"
        assert truncated == step.last()
        earned += reward
    reference.close()
    return earned


# ---- as upstream ----


def test_every_suffix_of_upstream_has_an_id() -> None:
    ids = {f"MemoryMaze-{n}x{n}{'-' if s else ''}{s}-v0" for n in TIME_LIMITS for s in VARIANTS}
    assert len(ids) == 4 * 16 and ids == {row.id for row in TABLE if row.setting.name == "memory_maze" and not row.is_dream}
    assert all(id in gym.registry for id in ids)


def test_a_walk_looks_and_earns_as_upstream() -> None:
    assert assert_as_upstream(9, "ExtraObs", seed=0, steps=60) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_500_steps_look_earn_and_lead_where_upstreams_do(seed: int) -> None:
    assert assert_as_upstream(9, "ExtraObs", seed, steps=500) >= 5


ALL = [*((9, suffix) for suffix in VARIANTS), *((n, "ExtraObs") for n in (11, 13, 15))]
QUICK = [(9, "Oracle-Top"), (11, "ExtraObs")]  # what every run affords: another camera with the path drawn, another size


@pytest.mark.parametrize(("cells", "variant"), [pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow) for pair in ALL])
def test_every_variant_and_size_is_upstreams(cells: int, variant: str) -> None:
    assert_as_upstream(cells, variant, seed=7, steps=25)


@pytest.mark.slow
def test_the_limit_is_upstreams() -> None:
    reference, env = theirs(9, "", 3), MemoryMazeEnv(size=8)
    reference.reset()
    physics = reference.env.env.env.env  # below its wrappers
    steps = 1
    while not physics.step(np.zeros(2)).last():
        steps += 1
    assert steps == env.horizon == 1000
    assert [MemoryMazeEnv(n).horizon for n in TIME_LIMITS] == [1000, 2000, 3000, 4000]
    assert MemoryMazeEnv(15, "HiFreq").horizon == 40_000


def test_a_target_that_the_body_begins_in_counts_when_the_first_step_is_over() -> None:
    env = MemoryMazeEnv()
    env.reset(seed=4)
    spot = env.ball.maze.targets[1]
    for goal, reward in ((1, 1.0), (0, 0.0)):
        env.reset(seed=4, options={"start": [*spot[:2], 0, 0, 0], "goal": env.ball.maze.targets[goal, :2]})
        assert env.step(0)[1] == reward
        assert (env.ball.named == goal) == (reward == 0)


# ---- poses ----


def test_the_pose_is_upstreams_position_in_metres_and_its_direction() -> None:
    env = MemoryMazeEnv(variant="ExtraObs")
    seen, info = env.reset(seed=5)
    for action in [1, 1, 4, 4, 2, 3, 5, 1]:
        x, y, z, yaw, pitch = info["pose"].tolist()
        np.testing.assert_allclose((seen["agent_pos"] - 4.5) * 2, [x, y], atol=1e-6)
        np.testing.assert_allclose(seen["agent_dir"], [math.cos(yaw), math.sin(yaw)], atol=1e-6)
        assert z == pitch == 0 and info["pose"].dtype == np.float32 and -math.pi <= yaw < math.pi
        seen, _, _, _, info = env.step(action)


@pytest.mark.parametrize("yaw", [0.0, 1.5, -3.1])
def test_one_starts_where_one_is_put(yaw: float) -> None:
    env = MemoryMazeEnv(variant="ExtraObs")
    env.reset(seed=5)
    spot = env.ball.maze.to_metres(np.argwhere(env.ball.maze.layout.T)[3] + 0.5)
    _, info = env.reset(seed=5, options={"start": [*spot, 0, yaw, 0]})
    np.testing.assert_allclose(info["pose"], [*spot, 0, yaw, 0], atol=1e-6)
    np.testing.assert_allclose(env.step(0)[-1]["pose"], info["pose"], atol=2e-3)  # it settles on the floor, and rests


def test_held_actions_come_to_what_the_kinematics_expect() -> None:
    """In the open: the widest room of a large maze. The first steps are slower, and none is faster."""
    table = settings.get("memory_maze").kinematics.motion(torch.arange(6)).numpy()
    env = MemoryMazeEnv(15)
    env.reset(seed=1)
    maze = env.ball.maze
    for action in range(6):
        best = np.zeros(5)
        for cell in np.argwhere(maze.layout.T)[::7]:
            for yaw in (0, math.pi / 2, math.pi, -math.pi / 2):
                env.ball.place(*maze.to_metres(cell + 0.5), yaw)
                moves = []
                for _ in range(4):
                    before = torch.from_numpy(env.ball.pose)
                    env.ball.step(action)
                    moves.append(relative_pose(torch.from_numpy(env.ball.pose), before).numpy())
                best = moves[-1] if moves[-1][0] >= best[0] - 1e-4 else best
        np.testing.assert_allclose(best, table[action], atol=0.012)


# ---- states ----


def test_a_saved_state_goes_on_bit_for_bit_also_in_another_env_and_over_the_next_reset(tmp_path: Path) -> None:
    env = MemoryMazeEnv(variant="ExtraObs", size=32, horizon=14)
    env.reset(seed=8)
    actions = oracle_actions(9, "ExtraObs", 8, 30)

    def go_on(env: MemoryMazeEnv) -> list[Any]:
        shown = []
        for action in actions[6:]:
            shown.append(env.step(action))
            if shown[-1][3]:
                shown.append(env.reset())
        return shown

    for action in actions[:6]:
        env.step(action)
    state = env.save_state()
    wmgym.save_state_file(state, tmp_path / "state.safetensors")
    expected = go_on(env)
    env.load_state(state)
    assert_same(go_on(env), expected)
    other = MemoryMazeEnv(variant="ExtraObs", size=32)
    other.reset(seed=1)
    other.load_state(wmgym.load_state_file(tmp_path / "state.safetensors", other))
    assert_same(go_on(other), expected)


def test_branches_go_where_the_env_would_and_leave_it_untouched() -> None:
    env = MemoryMazeEnv(size=32, horizon=9)
    env.reset(seed=2)
    env.step(1)
    branches = env.branch(3)
    futures = [branches.step([1, 2, action]) for action in (1, 4, 1, 1)]
    assert branches._workers[0]._work._envs[0].ball.maze is env.ball.maze  # shared, not made again
    for action, (seen, reward, *_, info) in zip((1, 4, 1, 1), futures):
        lone = env.step(action)
        assert_same(seen[2], lone[0])
        assert reward[2] == lone[1] and (info["pose"][2] == lone[4]["pose"]).all()
    assert (futures[-1][0][0] != futures[-1][0][1]).any()


def test_an_ended_env_must_be_reset_and_its_branches_rest() -> None:
    env = MemoryMazeEnv(size=32, horizon=2)
    env.reset(seed=2)
    env.step(1)
    last, _, _, truncated, shown = env.step(1)
    assert truncated
    with pytest.raises(gym.error.ResetNeeded, match="the episode is over"):
        env.step(1)
    lanes = MemoryMazeVectorEnv(1, size=32, horizon=2, processes=0, autoreset_mode="disabled")
    lanes.reset(seed=2)
    for _ in range(2):
        lanes.step([1])
    for branches in (env.branch(2), lanes.branch(2)):
        seen, rewards, terminated, truncated, info = branches.step([1, 2])
        assert last.any() and all((frame == last).all() for frame in seen) and (info["pose"] == shown["pose"]).all()
        assert truncated.all() and not terminated.any() and not rewards.any()


def test_resets_without_a_seed_follow_from_the_seed() -> None:
    def worlds() -> list[Any]:
        env = MemoryMazeEnv(size=32)
        return [env.reset(seed=3), env.reset(), env.reset()]

    one, other = worlds(), worlds()
    assert_same(one, other)
    assert (one[0][0] != one[1][0]).any() and (one[1][0] != one[2][0]).any()


# ---- drawing ----


def test_a_picture_of_another_size_shows_the_same_view() -> None:
    env = MemoryMazeEnv(render_mode="rgb_array", render_size=(128, 256))
    seen, _ = env.reset(seed=6)
    assert env.render().shape == (128, 256, 3)
    large = frame(env.ball, env.kind, 128, 128)
    small = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    inner = np.s_[3:-3, 3:-3]
    assert np.abs(small[inner] - seen[inner]).mean() < 6
    assert_same(env.step(0)[0].shape, seen.shape)


def test_what_is_out_of_view_is_not_drawn_and_not_missed() -> None:
    env = MemoryMazeEnv()
    env.reset(seed=6)
    view, drawn = env.ball.maze.renderer, []
    for action in (2, 2, 1, 1, 3):
        seen = env.step(action)[0]
        drawn.append(view._scene.ngeom)
        corners, view._corners = view._corners, view._corners * 0 + env.ball._data.cam_xpos[view._camera.fixedcamid]  # all in view
        assert_same(frame(env.ball, env.kind, 64, 64), seen)
        assert view._scene.ngeom > drawn[-1]
        view._corners = corners


def test_threads_may_draw_in_turn_and_at_once() -> None:
    envs = [MemoryMazeEnv(size=32) for _ in range(3)]
    expected = [env.reset(seed=seed)[0] for seed, env in enumerate(envs)]
    seen: dict[int, Any] = {}

    def run(seed: int) -> None:
        for _ in range(5):
            seen[seed] = envs[seed].reset(seed=seed)[0]

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same([seen[i] for i in range(3)], expected)


@pytest.mark.parametrize("renderer", ["egl", "osmesa"])
def test_a_program_ends_without_a_word(renderer: str) -> None:
    if not gl._WORKS[renderer]():
        pytest.skip(f"{renderer} is not installed here: {gl.HOW_TO_GET}")
    program = (
        "import gymnasium as gym, wmgym; env = gym.make('MemoryMaze-9x9-v0'); env.reset(seed=0); print(int(env.step(1)[0].sum())); "
        "from dm_control import suite; from wmgym.envs.memory_maze import gl; print(gl._context[0])"
    )
    env = {**os.environ, "MUJOCO_GL": renderer}
    env.pop("PYOPENGL_PLATFORM", None)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    total, used = done.stdout.split()
    assert int(total) > 0 and used == renderer


def test_without_a_renderer_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gl, "_WORKS", {"egl": lambda: False, "osmesa": lambda: False})
    with pytest.raises(ImportError, match="apt-get install libegl1"):
        gl.renderer()
    monkeypatch.setattr(gl, "_WORKS", {"egl": lambda: False, "osmesa": lambda: True})
    assert gl.renderer() == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(ImportError, match="is 'egl', which does not work"):
        gl.renderer()
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(ImportError, match="'glfw'"):
        gl.renderer()


# ---- for long ----


@pytest.mark.slow
def test_10000_steps_and_many_mazes_hold_on_to_nothing() -> None:
    """Resident memory and open files, after a warm-up in which allocators take what they keep."""
    import psutil

    process, env = psutil.Process(), MemoryMazeEnv(horizon=100)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    marks = []
    for t in range(10_000):
        if env.step(int(rng.integers(6)))[3]:
            env.reset()
        if t in (4000, 9999):
            marks.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
    (before, *handles), (after, *handles_after) = marks
    assert handles == handles_after
    assert after - before < 30 * 2**20  # of 60 mazes


# ---- bad input ----


@pytest.mark.parametrize(
    "keywords",
    [
        {"cells": 10}, {"cells": True}, {"variant": "Fog"}, {"task": "navigate"}, {"backend": "bullet"}, {"size": 7}, {"size": 64.0},
        {"render_size": (64,)}, {"horizon": 0}, {"horizon": True}, {"render_mode": "human"},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_keyword_is_named(keywords: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        MemoryMazeEnv(**keywords)
    assert all(repr(value) in str(caught.value) for value in keywords.values())


def test_the_oracles_map_needs_room() -> None:
    with pytest.raises(ValueError, match="18 pixels a side or more, got 16"):
        MemoryMazeEnv(variant="Oracle", render_size=(64, 16))
    with pytest.raises(ValueError, match="30 pixels"):
        MemoryMazeEnv(15, "Oracle-ExtraObs", size=29)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": [0, 0]}, "start must be a pose of 5"),
        ({"start": [99, 0, 0, 0, 0]}, "in the maze"),
        ({"start": [np.nan] * 5}, "finite"),
        ({"goal": [99, 99]}, "one of the targets at"),
        ({"begin": 1}, "unknown reset option 'begin'"),
        (3, "must be a dict"),
    ],
)
def test_a_reset_that_cannot_be_is_refused_and_changes_nothing(options: Any, message: str) -> None:
    env = MemoryMazeEnv(size=8)
    env.reset(seed=1)
    env.step(1)
    before = env.save_state()
    with pytest.raises(ValueError, match=message):
        env.reset(seed=2, options=options)
    assert_same(env.save_state(), before)


@pytest.mark.parametrize("action", [6, -1, 1.0, None, "forward", [1]])
def test_an_action_outside_the_space_is_refused(action: Any) -> None:
    env = MemoryMazeEnv(size=8)
    env.reset(seed=1)
    with pytest.raises(ValueError, match="action must have the shape" if action == [1] else "action must be"):
        env.step(action)


def test_near_targets_are_near_by_the_shortest_way_and_asked_for() -> None:
    near, far = MemoryMazeEnv(size=8, task="targets-near"), MemoryMazeEnv(size=8)
    lengths = []
    for seed in range(12):
        _, info = near.reset(seed=seed)
        _, elsewhere = far.reset(seed=seed)
        assert near.ball.named == far.ball.named and (near.ball.maze.layout == far.ball.maze.layout).all()
        assert (info["pose"] != elsewhere["pose"]).any()
        target = near.ball.maze.targets[near.ball.named, :2]
        lengths.append(MazeMap(near.ball.maze).length(info["pose"][:2], target))
        bearing = math.atan2(target[1] - info["pose"][1], target[0] - info["pose"][0])
        assert abs(math.remainder(bearing - info["pose"][3], math.tau)) <= math.pi / 4 + 1e-5
        assert_same(near.reset(seed=seed)[1]["pose"], info["pose"])
    assert 1.5 < min(lengths) < 3 and 3.5 < max(lengths) < 5  # metres: cells of 2 m, corners cut
    assert near.horizon == 30
    goal = near.ball.maze.targets[1 - near.ball.named, :2]
    _, info = near.reset(seed=11, options={"goal": goal})
    assert MazeMap(near.ball.maze).length(info["pose"][:2], goal) < 5  # near whichever is asked for
    start = np.array([*near.ball.maze.to_metres(np.argwhere(near.ball.maze.layout.T)[0] + 0.5), 0, 1, 0], np.float32)
    np.testing.assert_allclose(near.reset(seed=11, options={"start": start})[1]["pose"], start, atol=1e-5)


def test_an_unseen_target_is_near_seen_by_a_look_around_and_behind_afterwards() -> None:
    env = MemoryMazeEnv(size=32, task="targets-behind")
    for seed in range(8):
        _, info = env.reset(seed=seed)
        maze, named = env.ball.maze, env.ball.named
        target, begun = maze.targets[named, :2], info["pose"]
        assert 1.5 < MazeMap(maze).length(begun[:2], target) < 5 and maze.is_clear(begun[:2].astype(float), target)
        angles, shown = [], []
        for action in (None, *LOOK_AROUND):
            if action is not None:
                _, reward, *_, info = env.step(action)
                assert reward == 0
            bearing = math.atan2(target[1] - info["pose"][1], target[0] - info["pose"][0])
            angles.append(math.degrees(abs(math.remainder(bearing - info["pose"][3], math.tau))))
            shown.append(target_pixels(env))
        assert angles[0] > 60 and angles[-1] > 60 and min(angles) < 10  # behind, then once in the middle of the view
        assert shown[0] == shown[-1] == 0 and max(shown) > 8
        assert_same(env.reset(seed=seed)[1]["pose"], begun)
    assert env.horizon == 40


def target_pixels(env: MemoryMazeEnv) -> int:
    """How many pixels of the frame show the requested target: those that change when it is hidden."""
    ball = env.ball
    shown = ball.draw(32, 32).astype(int).copy()
    before, ball.touched[ball.named] = ball.touched.copy(), True
    hidden = ball.draw(32, 32).astype(int)
    ball.touched[:] = before
    return int((np.abs(shown - hidden).sum(-1) > 12).sum())


def test_a_line_is_hidden_by_what_stands_near_it() -> None:
    eye, target = np.array([0.0, 0.0]), np.array([4.0, 0.0])
    for other, expected in (([2, 1], True), ([2, 1.3], False), ([-1.3, 0], False), ([5.1, 0], True), ([0, 0], True)):
        assert hides(np.array([[9.0, 9.0], other]), eye, target, 1.2) == expected


def test_a_near_target_pays_as_others_do() -> None:
    """The oracle earns in every episode of 30 steps."""
    env = MemoryMazeEnv(size=8, task="targets-near")
    totals = []
    for seed in range(4):
        _, info = env.reset(seed=seed)
        walker = make_walker("oracle", env, np.random.default_rng(0))
        total, over = 0.0, False
        while not over:
            _, reward, _, over, info = env.step(walker.act(info["pose"]))
            total += reward
        totals.append(total)
    assert min(totals) >= 1


def test_states_of_others_are_refused() -> None:
    env, other = MemoryMazeEnv(size=8), MemoryMazeEnv(variant="Vis", size=8)
    for each in (env, other):
        each.reset(seed=1)
    for state in (other.save_state(), {"task": "targets"}, 3, {**env.save_state(), "task": "free"}):
        with pytest.raises(ValueError):
            env.load_state(state)
    with pytest.raises(gym.error.ResetNeeded):
        MemoryMazeEnv().save_state()


# ---- walkers ----


def test_ways_are_the_shortest_and_keep_off_walls() -> None:
    env = MemoryMazeEnv(size=8)
    env.reset(seed=3)
    maze, chart = env.ball.maze, MazeMap(env.ball.maze)
    cells = [tuple(cell) for cell in np.argwhere(maze.layout.T)]
    steps = {cells[0]: 0}
    queue = [cells[0]]
    for cell in queue:  # breadth first over cells
        for dx, dy in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            beside = (cell[0] + dx, cell[1] + dy)
            if beside in cells and beside not in steps:
                steps[beside] = steps[cell] + 1
                queue.append(beside)
    start = maze.to_metres(np.array(cells[0]) + 0.5)
    for cell, count in steps.items():
        goal = maze.to_metres(np.array(cell) + 0.5)
        assert math.dist(start, goal) - 0.5 <= chart.length(start, goal) <= 2 * count + 0.5
        for point in chart.path(start, goal):
            assert maze.fits(*point)


def test_the_oracle_goes_from_target_to_target() -> None:
    env = MemoryMazeEnv(size=8)
    _, info = env.reset(seed=0)
    walker, earned = make_walker("oracle", env, np.random.default_rng(0)), 0.0
    for _ in range(250):
        _, reward, _, _, info = env.step(walker.act(info["pose"]))
        earned += reward
    assert earned >= 5


@pytest.mark.parametrize("name", ["loop-ABA-5", "loop-ABCA-8", "turn-loop", "look-around"])
def test_loops_leave_and_come_back_to_the_same_view(name: str) -> None:
    env = gym.make("MemoryMaze-9x9-v0", disable_env_checker=True)
    episode = record(env, name, 4, np.random.default_rng(4), 1000)
    assert episode.meta.outcome == "done" and episode.return_first is not None
    if name.startswith("loop"):
        back, reach = episode.poses[episode.return_first - 1], int(name.split("-")[-1])
        assert math.dist(back[:2], episode.poses[0, :2]) > (0 if "ABCA" in name else 0.8 * reach - 0.8)
    assert math.dist(episode.poses[-1, :2], episode.poses[0, :2]) < 0.6
    away = math.remainder(float(episode.poses[-1, 3] - episode.poses[0, 3]), math.tau)
    assert abs(away) < (0.22 if name.startswith("loop") else 0.05)


def test_episodes_are_collected_also_from_shared_mazes(tmp_path: Path) -> None:
    args = CollectArgs("MemoryMaze-9x9-v0", "explorer:1,turn-loop:1", steps=120, out=tmp_path, episode_length=40, processes=1, worlds=2)
    collect(args, progress=False)
    episodes = [load_episode(path) for path in list_episodes(tmp_path)]
    assert {episode.meta.seed for episode in episodes} == {0, 1} and len({episode.meta.start for episode in episodes}) == len(episodes)
    first = episodes[0]
    env = gym.make(first.meta.env_id)
    seen, info = env.reset(seed=first.meta.seed, options={"start": first.meta.start})
    for t in range(10):  # the file says all that is needed to walk there again
        assert_same((seen, info["pose"]), (first.frames[t], first.poses[t]))
        seen, *_, info = env.step(first.actions[t + 1])
    with pytest.raises(ValueError, match="unknown walker 'oracle'"):
        CollectArgs("Minecraft-v0", "oracle")


def test_the_explorer_errs_and_gets_about() -> None:
    env = MemoryMazeEnv(size=8)
    _, info = env.reset(seed=9)
    walker, poses, actions = make_walker("explorer", env, np.random.default_rng(9)), [], []
    for _ in range(600):
        actions.append(walker.act(info["pose"]))
        info = env.step(actions[-1])[-1]
        poses.append(info["pose"])
    assert set(actions) == set(range(6))
    assert len({tuple(np.floor(env.ball.maze.to_grid(pose[:2])).astype(int)) for pose in poses}) > 15
