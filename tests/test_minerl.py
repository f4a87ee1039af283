"""The MineRL backend's worker: actions and poses converted, seeds before every reset, ends told apart, and faults told and survived.

MineRL itself cannot be had here: the worker drives a stand-in with MineRL's interface. Where $WMGYM_MINERL_PYTHON and $WMGYM_MINERL_SOURCE
(a folder with MineRL's Python files) are given, the real environment specification is made, too.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minerl_standin import HUNG, LOST, MORTAL
from test_process import gone

from wmgym.envs.minecraft.backend import make_backend
from wmgym.envs.minecraft.env import MinecraftEnv, minerl_action
from wmgym.envs.minecraft.faults import BackendFault, BackendStartError, BackendTimeout
from wmgym.envs.minecraft.minerl import engine as minerl
from wmgym.envs.minecraft.vector_env import MinecraftVectorEnv

STANDIN = {"backend": "minerl", "python": sys.executable, "family": "minerl_standin:Simulator", "resolution": [32, 48]}
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker finds the stand-in, and no X display is asked for."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("DISPLAY", ":none")


@pytest.fixture
def env() -> Iterator[MinecraftEnv]:
    one = MinecraftEnv("free", **STANDIN)
    yield one
    one.close()


def reset_to(env: Any, world: int) -> Any:
    """Into the stand-in's world of that number, whatever the seed draws."""
    open_world = env._engine.reset
    env._engine.reset = lambda seed, start: open_world(world, start)
    try:
        return env.reset(seed=0)
    finally:
        del env._engine.reset


def step_on(env: MinecraftEnv) -> None:
    for _ in range(3):
        env.step(1)


def test_poses_and_actions_are_ours(env: MinecraftEnv) -> None:
    frame, info = reset_to(env, 5)
    assert frame.shape == (64, 64, 3)  # scaled from what the simulator draws
    np.testing.assert_allclose(info["pose"], [5, -8, 64, math.remainder(-math.radians(350) - math.pi / 2, 2 * math.pi), 0], atol=1e-5)
    _, info = env.reset(seed=1, options={"start": [3, 4, 70, 0.5, 0.25]})
    np.testing.assert_allclose(info["pose"], [3, 4, 70, 0.5, 0.25], atol=1e-5)
    for action, along in ((1, 0.0), (2, math.pi), (3, math.pi / 2), (4, -math.pi / 2)):
        before = info["pose"]
        *_, info = env.step(action)
        step = 4 * 4.317 / 20
        np.testing.assert_allclose(
            info["pose"][:2] - before[:2], step * np.array([math.cos(0.5 + along), math.sin(0.5 + along)]), atol=1e-5
        )
    for action, turn, tilt in ((6, 1, 0), (7, -1, 0), (8, 0, 1), (9, 0, -1)):
        before = info["pose"]
        *_, info = env.step(action)
        np.testing.assert_allclose(info["pose"][3:] - before[3:], [turn * math.radians(15), tilt * math.radians(15)], atol=1e-5)


def test_a_yaw_that_was_never_wrapped_is(env: MinecraftEnv) -> None:
    _, info = env.reset(seed=1, options={"start": [0, 0, 70, 0, 0]})
    for turned in range(1, 15):
        *_, info = env.step(6)
        assert -math.pi <= info["pose"][3] < math.pi
        assert abs(math.remainder(info["pose"][3] - turned * math.radians(15), 2 * math.pi)) < 1e-5


def test_turning_left_moves_the_picture_right(env: MinecraftEnv) -> None:
    frame, _ = env.reset(seed=1, options={"start": [0, 0, 70, math.pi / 2, 0]})  # facing north

    def column(frame: np.ndarray) -> float:
        return float(np.flatnonzero((frame > 200).all(-1).any(0)).mean())

    assert column(frame) == pytest.approx(34, abs=4)
    assert column(env.step(6)[0]) > column(frame) + 8


def test_hands_are_one_tick() -> None:
    with MinecraftEnv("free", action_mode="minerl", **STANDIN) as one:  # type: ignore[arg-type]
        _, info = one.reset(seed=1, options={"start": [0, 0, 70, 0, 0]})
        *_, info = one.step(minerl_action("forward", camera=(5, -30)))
        np.testing.assert_allclose(info["pose"][3:], [math.radians(30), -math.radians(5)], atol=1e-5)
        assert np.hypot(*info["pose"][:2]) == pytest.approx(4.317 / 20, abs=1e-5)


def test_every_reset_is_seeded_and_repeats(env: MinecraftEnv) -> None:
    poses = [env.reset(seed=seed)[1]["pose"] for seed in (1, 2, 1)]
    np.testing.assert_array_equal(poses[0], poses[2])
    assert (poses[0] != poses[1]).any()
    env.reset()  # without one, too: the stand-in asks for it


def test_a_death_terminates_and_a_time_limit_truncates(env: MinecraftEnv) -> None:
    reset_to(env, MORTAL)
    ends = [env.step(0)[2:4] for _ in range(2)]
    assert ends == [(False, False), (True, False)]  # dead in the ninth tick; the first went to find the pose
    reset_to(env, 5)
    steps = [env.step(0)[2:4] for _ in range(15)]
    assert steps[-1] == (False, True) and steps[-2] == (False, False)  # at 60 ticks of the simulator's


def test_faults_are_told_and_the_next_reset_begins_anew(env: MinecraftEnv) -> None:
    reset_to(env, LOST)
    with pytest.raises(BackendFault, match="Connection timed out"):
        step_on(env)
    reset_to(env, HUNG)
    env._engine._timeout = 1.0  # type: ignore[attr-defined]
    with pytest.raises(BackendTimeout, match="did not answer within 1 s"):
        step_on(env)
    env._engine._timeout = 60.0  # type: ignore[attr-defined]
    reset_to(env, 5)
    env.step(1)


def test_lanes_are_single_envs(env: MinecraftEnv) -> None:
    vec = MinecraftVectorEnv(2, task="free", **STANDIN)  # type: ignore[arg-type]
    frames, info = vec.reset(seed=4)
    frame, one = env.reset(seed=5)
    np.testing.assert_array_equal(frames[1], frame)
    frames, *_, info = vec.step(np.array([1, 6]))
    frame, *_, one = env.step(6)
    np.testing.assert_array_equal(frames[1], frame)
    np.testing.assert_array_equal(info["pose"][1], one["pose"])
    vec.close()


def test_a_killed_controller_leaves_no_worker_and_no_folder() -> None:
    program = (
        "import sys, time; from wmgym.envs.minecraft.minerl.engine import MineRLBackend as B; "
        "e = B(sys.executable, 'minerl_standin:Simulator', [32, 48]); e.reset(1, None); "
        "print(e._process.pid, e._process._folder, flush=True); time.sleep(1000)"
    )
    controller = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert controller.stdout is not None
    pid, folder = controller.stdout.readline().split()
    controller.kill()
    controller.communicate()
    assert gone(int(pid), within=20) and not Path(folder).exists()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(minerl.VARIABLE, raising=False)
    with pytest.raises(ImportError, match=r"docs/settings/minerl\.md"):
        MinecraftEnv(backend="minerl").reset()
    with pytest.raises(ImportError, match="no program"):
        MinecraftEnv(backend="minerl", python="/no/such/python").reset()
    with pytest.raises(ValueError, match=r"family must be '1.0' or '0.4'"):
        make_backend("minerl", family="2.0")
    with pytest.raises(ValueError, match="resolution must be"):
        make_backend("minerl", resolution=[1, 2])
    with pytest.raises(BackendStartError, match="No module named"):
        MinecraftEnv(backend="minerl", python=sys.executable).reset()
    with pytest.raises(NotImplementedError, match="which blocks are solid"):
        make_backend("minerl").solid((0, 0, 0), (1, 1, 1))


PYTHON, SOURCE = os.environ.get(minerl.VARIABLE), os.environ.get("WMGYM_MINERL_SOURCE")


@pytest.mark.skipif(not (PYTHON and SOURCE), reason="MineRL is not here: set WMGYM_MINERL_PYTHON and WMGYM_MINERL_SOURCE")
def test_the_real_specification_has_a_picture_a_pose_and_our_keys() -> None:
    program = """
import sys, types
source, worker = sys.argv[1:]
package = types.ModuleType("minerl"); package.__path__ = [source + "/minerl"]; sys.modules["minerl"] = package  # without what needs Java
sys.path.insert(0, worker)
import specs, worker
spec = specs.navigate([64, 96])
assert spec.observation_space["pov"].shape == (64, 96, 3), spec.observation_space
assert set(worker.POSE) <= set(spec.observation_space["location_stats"].spaces)
noop = spec.action_space.no_op()
assert set(worker.KEYS) <= set(noop) and noop["camera"].shape == (2,)
assert "<Placement x=" not in spec.to_xml()
spec.start_at([1.5, 70, -3, 90, 0]); spec.reset()
assert '<Placement x="1.5" y="70" z="-3" yaw="90"' in spec.to_xml(), spec.to_xml()
print("well", spec.max_episode_steps)
"""
    assert PYTHON and SOURCE
    done = subprocess.run([PYTHON, "-c", program, SOURCE, str(Path(minerl.__file__).parent)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["well", "6000"], done.stderr
