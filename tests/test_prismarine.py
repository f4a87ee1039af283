"""The Prismarine backend: bit for bit the same, at Minecraft's speeds, in worlds with landmarks, and back on its feet after any fault."""

from __future__ import annotations

import gc
import hashlib
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from prismarine_here import needs_node
from test_process import gone

import wmgym  # noqa: F401  # registers
from wmgym.envs.minecraft.backend import BACKENDS, make_backend
from wmgym.envs.minecraft.env import MinecraftEnv, minerl_action
from wmgym.envs.minecraft.faults import BackendDied, BackendStartError, BackendTimeout
from wmgym.envs.minecraft.prismarine import install
from wmgym.envs.minecraft.prismarine.engine import PrismarineBackend
from wmgym.envs.minecraft.remote import BOUND, from_minecraft, to_minecraft
from wmgym.envs.minecraft.vector_env import MinecraftVectorEnv

WALK = [6] * 3 + [1] * 12 + [5] * 6 + [7] * 5 + [8, 9, 9, 3, 4, 2] + [1] * 8  # once through all ten actions
OPEN_SKY = np.array([8.5, -8.5, 200, 0, 0], np.float32)  # nothing stands so high


@pytest.fixture(scope="module")
def engine() -> Iterator[PrismarineBackend]:
    one = PrismarineBackend()
    yield one
    one.close()


@pytest.fixture(scope="module")
def free() -> Iterator[MinecraftEnv]:
    env = MinecraftEnv("free", "prismarine", action_mode="minerl")
    yield env
    env.close()


def walked(engine: PrismarineBackend, seed: int = 3) -> str:
    """A digest of all that a walk shows."""
    digest = hashlib.sha256(engine.reset(seed, None).tobytes() + engine.render(48, 64).tobytes())
    for action in WALK:
        digest.update(engine.step(action).tobytes() + engine.render(48, 64).tobytes())
    return digest.hexdigest()


def step_on(env: Any, action: Any = 1) -> None:
    """A few steps: a signal may take a moment to arrive."""
    for _ in range(3):
        env.step(action)


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


# ---- without Node ----


def test_poses_go_to_minecraft_and_back() -> None:
    for pose in ([1, 2, 3, 0, 0], [-7.5, 4.25, 60, -math.pi, 0.5], [0, 0, 0, 3.1, -1.5]):
        back = from_minecraft(to_minecraft(np.array(pose, np.float32)))
        np.testing.assert_allclose(back[[0, 1, 2, 4]], np.array(pose)[[0, 1, 2, 4]], atol=1e-6)
        assert abs(math.remainder(float(back[3]) - pose[3], 2 * math.pi)) < 1e-6 and -math.pi - 1e-6 <= back[3] < math.pi
    x, y, z, yaw, _ = to_minecraft(np.array([1, 2, 3, math.pi / 2, 0], np.float32))
    assert (x, y, z) == (1, 3, -2)  # z up becomes y up, left of +x becomes -z
    assert yaw == pytest.approx(0, abs=1e-6)  # along our +y is along -z there


def test_what_cannot_be_is_refused_before_anything_starts() -> None:
    for options, said in (
        ({"view_distance": 1}, "view_distance must be a whole number from 2 to 16, got 1"),
        ({"heap": True}, "heap must be"),
        ({"timeout": 0}, "timeout must be"),
        ({"world": "/no/such/folder"}, "folder of a saved world"),
        ({"colour": 1}, "has no option 'colour'; it takes world, version"),
    ):
        with pytest.raises(ValueError, match=said):
            make_backend("prismarine", **options)
    with pytest.raises(ValueError, match="it takes none"):
        gym.make("Minecraft-v0", world="here")
    with pytest.raises(ValueError, match="needs one of the backends 'prismarine'"):
        gym.make("Minecraft-v0", action_mode="minerl")
    with pytest.raises(ValueError, match="unknown action_mode 'mouse'"):
        gym.make("Minecraft-v0", action_mode="mouse")


def test_without_the_packages_the_command_that_fetches_them_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WMGYM_MINECRAFT", str(tmp_path))
    monkeypatch.setattr(install, "find_node", lambda: "node")
    assert not install.is_installed()
    with pytest.raises(ImportError, match="wmgym minecraft install"):
        install.modules_folder()
    (tmp_path / install.MARK).write_text('{"pins": "of another version"}')
    assert "another version" in str(install.what_is_missing())


def test_without_node_its_name_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImportError, match="Node is missing"):
        install.find_node()


def test_missing_system_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(install, "find_node", lambda: "node")
    monkeypatch.setattr(install.shutil, "which", lambda name: "/usr/bin/npm" if name == "npm" else None)
    with pytest.raises(ImportError, match=r"apt-get install .*libxi-dev.*xvfb libgl1-mesa-dri"):
        install.install(install.InstallArgs(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_stopped_install_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[str] = []

    def npm(title: str, folder: Path, *arguments: str, environment: Any = None) -> None:
        ran.append(arguments[0])
        if ran == ["ci", "rebuild"]:
            raise OSError("stopped")

    for name, value in (("find_node", lambda: "node"), ("_works", lambda command: True), ("_npm", npm)):
        monkeypatch.setattr(install, name, value)
    monkeypatch.setattr(install.shutil, "which", lambda name: name)
    args = install.InstallArgs(tmp_path)
    with pytest.raises(OSError, match="stopped"):
        install.install(args)
    assert not install.is_installed(tmp_path)
    assert install.install(args)["status"] == "installed"
    assert install.install(args)["status"] == "installed already"
    assert ran == ["ci", "rebuild", "rebuild"]


def test_the_lock_file_pins_everything_and_names_no_address() -> None:
    text = (install.HERE / "package-lock.json").read_text()
    assert '"integrity"' in text and '"resolved"' not in text and "http://" not in text and "https://" not in text


# ---- determinism ----


@needs_node
def test_the_same_bits_after_every_reset_and_in_every_process(engine: PrismarineBackend) -> None:
    first = walked(engine)
    assert walked(engine, seed=4) != first
    assert walked(engine) == first
    other = PrismarineBackend()
    other.reset(9, None)
    for _ in range(12):
        other.step(1)  # another past: other columns loaded, in another order
    assert walked(other) == first
    other.close()


@needs_node
def test_a_picture_depends_on_the_place_not_on_the_way_there(engine: PrismarineBackend) -> None:
    engine.reset(5, None)
    for action in [1] * 60:
        pose = engine.step(action)
    walked_to = engine.render(64, 64)
    engine.reset(5, pose)
    np.testing.assert_array_equal(engine.render(64, 64), walked_to)


@needs_node
def test_a_full_turn_shows_the_same_picture(engine: PrismarineBackend) -> None:
    before = engine.reset(5, None)
    frame = engine.render(64, 64)
    for _ in range(24):
        after = engine.step(6)
    np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(engine.render(64, 64), frame)


@needs_node
def test_a_saved_state_goes_on_bit_for_bit_in_another_process(free: MinecraftEnv) -> None:
    free.reset(seed=2)
    for _ in range(10):
        free.step(minerl_action("forward", "jump", camera=(1.5, -3)))
    dig = minerl_action("attack", camera=(20, 0))
    for _ in range(30):
        free.step(dig)  # into the ground
    state = free.save_state()
    there = [free.step(minerl_action("forward", "sprint", "attack", camera=(0, 2))) for _ in range(15)]
    other = MinecraftEnv("free", "prismarine", action_mode="minerl")
    other.load_state(state)
    for frame, *_, info in there:
        again, *_, other_info = other.step(minerl_action("forward", "sprint", "attack", camera=(0, 2)))
        np.testing.assert_array_equal(frame, again)
        np.testing.assert_array_equal(info["pose"], other_info["pose"])
    other.close()


@needs_node
def test_lanes_are_single_envs_and_their_branches_agree() -> None:
    vec = MinecraftVectorEnv(2, backend="prismarine", horizon=4)
    single = MinecraftEnv(backend="prismarine", horizon=4)
    observations, info = vec.reset(seed=[6, 7])
    frame, one = single.reset(seed=7)
    np.testing.assert_array_equal(observations["pov"][1], frame["pov"])
    for action in (1, 6, 5, 1, 1, 7):  # across an autoreset
        observations, rewards, _, _, info = vec.step(np.array([0, action]))
        if single._elapsed == 4:
            frame, one = single.reset()
            reward = 0.0
        else:
            frame, reward, _, _, one = single.step(action)
        np.testing.assert_array_equal(observations["pov"][1], frame["pov"])
        np.testing.assert_array_equal(info["pose"][1], one["pose"])
        assert rewards[1] == reward
    branches = vec.branch(1)
    for got, expected in zip(branches.step(np.array([1, 6]))[:4], vec.step(np.array([1, 6]))[:4], strict=True):
        np.testing.assert_array_equal(
            got["pov"] if isinstance(got, dict) else got, expected["pov"] if isinstance(expected, dict) else expected
        )
    for env in (vec, branches, single):
        env.close()


# ---- movement ----


def speed(env: MinecraftEnv, *keys: str) -> float:
    """Blocks per second on flat ground, once up to speed."""
    start = flat_place(env)
    env.reset(seed=1, options={"start": start})
    for _ in range(12):
        first = env.step(minerl_action(*keys))[-1]["pose"]
    for _ in range(10):
        last = env.step(minerl_action(*keys))[-1]["pose"]
    assert last[2] == first[2], "not flat"
    return math.dist(first[:2], last[:2]) / 0.5


def flat_place(env: MinecraftEnv) -> np.ndarray:
    """Somewhere with a straight flat way of 14 blocks ahead along +x or -x, found by what is solid."""
    _, info = env.reset(seed=1)
    x, y, z = (math.floor(v) for v in info["pose"][:3])
    for dy in range(-20, 21):
        for dx in range(-20, 21):
            cells = env.solid((x + dx, y + dy - 1, z - 1), (x + dx + 14, y + dy + 2, z + 3))
            if cells[:, :, 0].all() and not cells[:, :, 1:].any():
                return np.array([x + dx + 0.5, y + dy + 0.5, z, 0, 0], np.float32)
    raise AssertionError("no flat place")


@needs_node
@pytest.mark.parametrize(
    ("keys", "blocks_per_second"),
    [(("forward",), 4.317), (("forward", "sprint"), 5.612), (("forward", "sneak"), 1.295), (("left",), 4.317)],
)
def test_one_moves_at_minecrafts_speeds(free: MinecraftEnv, keys: tuple[str, ...], blocks_per_second: float) -> None:
    assert speed(free, *keys) == pytest.approx(blocks_per_second, rel=2e-3)


@needs_node
def test_a_jump_rises_1_252_blocks(free: MinecraftEnv) -> None:
    free.reset(seed=1, options={"start": flat_place(free)})
    ground = free.step(minerl_action())[-1]["pose"][2]
    heights = [free.step(minerl_action("jump"))[-1]["pose"][2] for _ in range(10)]
    assert max(heights) - ground == pytest.approx(1.252, abs=1e-3)


@needs_node
def test_the_camera_turns_by_degrees_down_and_right(free: MinecraftEnv) -> None:
    free.reset(seed=1, options={"start": np.array([*OPEN_SKY[:3], 0.5, 0], np.float32)})
    *_, info = free.step(minerl_action(camera=(10, 30)))
    assert info["pose"][3] == pytest.approx(0.5 - math.radians(30), abs=1e-6)
    assert info["pose"][4] == pytest.approx(-math.radians(10), abs=1e-6)
    *_, info = free.step(minerl_action(camera=(180, 0)))
    assert info["pose"][4] == pytest.approx(-math.pi / 2, abs=1e-6)  # one cannot look further down than down


@needs_node
def test_actions_move_along_the_yaw_and_turn_the_picture(engine: PrismarineBackend) -> None:
    level = engine.reset(1, None)
    for yaw in (0.0, math.pi / 2, -2.0):
        before = engine.reset(1, np.array([*OPEN_SKY[:3], yaw, 0], np.float32))
        for _ in range(3):
            after = engine.step(1)  # falling, but forward all the same
        assert math.atan2(after[1] - before[1], after[0] - before[0]) == pytest.approx(yaw, abs=1e-3)
    engine.reset(1, level)
    frame = engine.render(64, 64).astype(int)
    engine.step(6)
    turned = engine.render(64, 64).astype(int)
    shifts = {dx: np.abs(np.roll(turned, -dx, 1)[:, 16:48] - frame[:, 16:48]).mean() for dx in range(-16, 17)}
    assert min(shifts, key=shifts.__getitem__) > 0  # turned to the left: what was seen moves to the right


@needs_node
def test_digging_takes_a_block_away_until_the_next_reset(free: MinecraftEnv) -> None:
    def below(pose: np.ndarray) -> Any:
        x, y, z = (math.floor(v) for v in pose[:3])
        return free.solid((x, y, z - 1), (x + 1, y + 1, z))

    _, info = free.reset(seed=2)
    start = info["pose"]
    assert below(start).all()
    free.step(minerl_action(camera=(90, 0)))
    for _ in range(60):
        *_, info = free.step(minerl_action("attack"))
    assert info["pose"][2] < start[2] - 0.9
    _, info = free.reset(seed=2)
    np.testing.assert_array_equal(info["pose"], start)
    assert below(start).all()


# ---- worlds ----


@needs_node
def test_places_look_different_and_goals_can_be_reached(engine: PrismarineBackend) -> None:
    frames = []
    for seed in range(4):
        pose = engine.reset(seed, None)
        assert engine.reachable(float(pose[0]), float(pose[1]))
        assert not engine.reachable(float(pose[0]) + 500, float(pose[1]))
        assert sum(engine.reachable(pose[0] + 15 * math.cos(a), pose[1] + 15 * math.sin(a)) for a in range(6)) >= 2
        frames.append(engine.render(64, 64).astype(int))
    assert all(np.abs(a - b).mean() > 5 for i, a in enumerate(frames) for b in frames[:i])


@needs_node
def test_what_is_solid_is_what_stops_a_body(engine: PrismarineBackend) -> None:
    pose = engine.reset(1, None)
    x, y, z = (math.floor(v) for v in pose[:3])
    assert engine.solid((x, y, z - 1), (x + 1, y + 1, z)).all() and not engine.solid((x, y, z), (x + 1, y + 1, z + 2)).any()
    box = engine.solid((x - 9, y - 5, z - 3), (x + 4, y + 8, z + 6))
    assert box.shape == (13, 13, 9)
    for cell in np.ndindex(box.shape):  # the same, asked one by one: the axes are right
        if sum(cell) % 37 == 0:
            low = (x - 9 + cell[0], y - 5 + cell[1], z - 3 + cell[2])
            assert engine.solid(low, tuple(v + 1 for v in low))[0, 0, 0] == box[cell]  # type: ignore[arg-type]
    assert engine.solid((0, 0, -2), (1, 1, 0)).all() and engine.solid((0, 0, 256), (1, 1, 258)).all()


@needs_node
def test_a_start_in_a_wall_is_refused_and_nothing_has_moved(engine: PrismarineBackend) -> None:
    engine.reset(1, None)
    pose = engine.step(1)
    frame = engine.render(64, 64)
    underground, far, upside_down = [0.5, 0.5, 5, 0, 0], [BOUND + 1, 0, 80, 0, 0], [0, 0, 80, 0, 2]
    for start, said in ((underground, "must leave room"), (far, "within the world"), (upside_down, "pitch")):
        with pytest.raises(ValueError, match=said):
            engine.reset(8, np.array(start, np.float32))
    np.testing.assert_array_equal(engine.render(64, 64), frame)
    assert (engine.step(0)[:2] == pytest.approx(pose[:2], abs=0.3)) and engine.save()["seed"] == 1


# ---- faults ----


@needs_node
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_after_node_is_killed_reset_begins_anew(number: signal.Signals) -> None:
    env = MinecraftEnv("free", "prismarine")
    frame, info = env.reset(seed=3)
    peer = env._engine._process  # type: ignore[attr-defined]
    display = children(peer.pid)
    assert len(display) == 1  # its Xvfb
    os.kill(peer.pid, number)
    with pytest.raises(BackendDied, match=f"killed by {number.name}"):
        step_on(env)
    with pytest.raises(BackendDied, match=r"reset\(\)"):
        env.step(1)
    assert gone(peer.pid) and gone(display[0])
    again, info_again = env.reset(seed=3)
    np.testing.assert_array_equal(frame, again)
    np.testing.assert_array_equal(info["pose"], info_again["pose"])
    env.close()


@needs_node
def test_nothing_outlives_a_killed_controller() -> None:
    program = (
        "import time; from wmgym.envs.minecraft.prismarine.engine import PrismarineBackend as B; e = B(view_distance=2); "
        "e.reset(1, None); print(e._process.pid, e._process._folder, flush=True); time.sleep(1000)"
    )
    controller = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert controller.stdout is not None
    node, folder = controller.stdout.readline().split()
    (display,) = children(int(node))
    controller.kill()
    controller.communicate()
    assert gone(int(node), within=20) and gone(display, within=20) and not Path(folder).exists()


@needs_node
def test_an_ended_lane_rests_where_it_ended_in_branches_too() -> None:
    vec = MinecraftVectorEnv(2, task="free", backend="prismarine", horizon=2, autoreset_mode="disabled", view_distance=2)
    vec.reset(seed=3)
    vec.step(np.array([1, 1]))
    *_, info = vec.step(np.array([1, 1]))
    vec.reset(options={"reset_mask": np.array([False, True])})
    branches = vec.branch(1)
    for env in (vec, branches):
        *_, after = env.step(np.array([1, 1]))
        np.testing.assert_array_equal(after["pose"][0], info["pose"][0])
        assert (after["pose"][1] != info["pose"][1]).any()
        env.close()


@needs_node
def test_a_hung_node_is_killed_in_time() -> None:
    env = MinecraftEnv("free", "prismarine", timeout=60)
    env.reset(seed=3)
    env._engine._timeout = 0.5  # type: ignore[attr-defined]
    pid = env._engine._process.pid  # type: ignore[attr-defined]
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(BackendTimeout, match=r"did not answer within 0.5 s"):
        env.step(1)
    assert gone(pid)
    env._engine._timeout = 60  # type: ignore[attr-defined]
    env.reset(seed=3)
    env.close()


@needs_node
def test_out_of_memory_is_told(tmp_path: Path) -> None:
    env = MinecraftEnv("free", "prismarine", heap=16)
    with pytest.raises((BackendDied, BackendStartError), match="out of memory"):
        env.reset(seed=3)
    env.close()


@needs_node
def test_without_xvfb_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = Path(install.find_node())
    (tmp_path / "node").symlink_to(node)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DISPLAY", raising=False)
    env = MinecraftEnv("free", "prismarine")
    with pytest.raises(BackendStartError, match="apt-get install xvfb"):
        env.reset(seed=3)


@needs_node
def test_a_lane_that_dies_takes_only_itself() -> None:
    vec = MinecraftVectorEnv(2, task="free", backend="prismarine")
    first, _ = vec.reset(seed=3)
    other = vec._lanes.engines[0]._process  # type: ignore[attr-defined]
    os.kill(vec._lanes.engines[1]._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    with pytest.raises(BackendDied):
        step_on(vec, np.array([1, 1]))
    with pytest.raises(gym.error.ResetNeeded):
        vec.step(np.array([1, 1]))
    again, _ = vec.reset(seed=3)
    np.testing.assert_array_equal(first, again)
    assert vec._lanes.engines[0]._process is other  # type: ignore[attr-defined]
    vec.close()


@needs_node
@pytest.mark.slow
def test_nothing_leaks_over_200_restarts() -> None:
    others = set(children(os.getpid()))  # those of this file's fixtures

    def held() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), len(set(children(os.getpid())) - others)

    env = MinecraftEnv("free", "prismarine", view_distance=2)
    env.reset(seed=0)
    before = held()
    for restart in range(200):
        peer = env._engine._process  # type: ignore[attr-defined]
        os.kill(peer.pid, signal.SIGKILL)
        with pytest.raises(BackendDied):
            step_on(env)
        assert not peer._folder.exists()
        env.reset(seed=restart % 3)
    assert held() == before
    env.close()
    assert held()[1] == 0


def test_each_backend_says_what_it_takes() -> None:
    assert {"voxel", "prismarine"} <= BACKENDS.keys()
    assert all(engine.action_modes[0] == "discrete" for engine in BACKENDS.values())
