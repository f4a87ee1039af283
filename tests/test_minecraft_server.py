"""A player on a real Minecraft server (flying-squid, on loopback)."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prismarine_here import needs_node

from wmgym.envs.minecraft.backend import make_backend
from wmgym.envs.minecraft.env import MinecraftEnv, minerl_action
from wmgym.envs.minecraft.faults import BackendDied, BackendFault
from wmgym.envs.minecraft.prismarine.install import data_folder, find_node
from wmgym.envs.minecraft.vector_env import MinecraftVectorEnv

VERSION = "1.16.5"
FAST = {"view_distance": 2, "realtime": False, "version": VERSION}
SCRIPT = Path(__file__).with_name("flying_squid.js")


class Server:
    """A flat world of grass on a port of its own."""

    def __init__(self, port: int = 0) -> None:
        environment = {**os.environ, "NODE_PATH": str(data_folder() / "node_modules")}
        self.process = subprocess.Popen(
            [find_node(), str(SCRIPT), VERSION, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().split()[-1])

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.stop()


def test_what_cannot_be_is_refused() -> None:
    for options, said in (({"port": 0}, "port must be"), ({"username": ""}, "username must have"), ({"world": "x"}, "no option 'world'")):
        with pytest.raises(ValueError, match=said):
            make_backend("server", **options)
    with pytest.raises(NotImplementedError, match="cannot be saved"):
        MinecraftEnv(backend="server").save_state()


def stand(env: MinecraftEnv) -> None:
    """Long enough for the news to arrive."""
    for _ in range(200):
        env.step(0)
        time.sleep(0.01)


@needs_node
def test_a_player_walks_on_a_server_as_in_our_own_worlds(server: Server) -> None:
    env = MinecraftEnv("free", "server", port=server.port, action_mode="minerl", **FAST)
    frame, info = env.reset(seed=0)
    start = info["pose"]
    assert frame[:20].mean(axis=(0, 1))[2] > 200 and frame[50:].mean(axis=(0, 1)).argmax() == 1  # sky above, grass below
    for _ in range(12):
        first = env.step(minerl_action("forward"))[-1]["pose"]
    for _ in range(10):
        last = env.step(minerl_action("forward"))[-1]["pose"]
    assert np.hypot(*(last - first)[:2]) / 0.5 == pytest.approx(4.317, rel=2e-3)
    x, y, z = (int(v) for v in np.floor(last[:3]))
    assert env.solid((x, y, z - 1), (x + 1, y + 1, z)).all() and not env.solid((x, y, z), (x + 1, y + 1, z + 2)).any()
    there = start + np.array([6, -3, 0, 1, 0.2], np.float32)
    _, info = env.reset(options={"start": there})
    np.testing.assert_allclose(info["pose"], there, atol=1e-5)  # the server's /tp
    _, info = env.reset()
    np.testing.assert_allclose(info["pose"][:3], start[:3], atol=1e-5)  # back to where it joined
    env.close()


@needs_node
def test_two_players_see_the_same_world(server: Server) -> None:
    vec = MinecraftVectorEnv(2, task="free", backend="server", port=server.port, username="lane", **FAST)
    _, info = vec.reset(seed=0)
    _, _, _, _, after = vec.step(np.array([1, 0]))
    moved = np.hypot(*(after["pose"] - info["pose"])[:, :2].T)
    assert moved[0] > 0.3 and moved[1] == 0
    vec.close()


@needs_node
def test_a_server_that_goes_away_is_told_and_one_that_comes_back_is_found() -> None:
    one = Server()
    env = MinecraftEnv("free", "server", port=one.port, **FAST)
    env.reset(seed=0)
    one.stop()
    with pytest.raises((BackendFault, BackendDied), match="is gone"):
        stand(env)
    with pytest.raises(BackendFault, match="no server listens there"):
        env.reset(seed=0)
    again = Server(one.port)
    env.reset(seed=0)
    env.step(1)
    env.close()
    again.stop()
