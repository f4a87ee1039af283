"""Minecraft's blocks, textures and movement, in a Node process (main.js): the backends "prismarine" and "server".

"prismarine" generates its worlds from seeds (terrain.js) or reads a saved one (`world=PATH`). The same seed, start and actions give the
same frames and poses, bit for bit.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wmgym.envs.minecraft.prismarine.install import find_node, modules_folder
from wmgym.envs.minecraft.process import EngineProcess
from wmgym.envs.minecraft.remote import RemoteBackend, RemoteLanes

HERE = Path(__file__).parent
FIELD_OF_VIEW = math.radians(75)  # vertical, as in LoopNav's recorder
START_TIMEOUT = 60.0
PRISMARINE, PLAYER = "the Prismarine process", "the process of the player on a server"
LIMITS = {"view_distance": (2, 16), "heap": (16, 65_536)}


class PrismarineBackend(RemoteBackend):
    """A world of a seed, or a saved world, in its own process."""

    def __init__(
        self, world: str | None = None, version: str = "1.16.5", view_distance: int = 4, heap: int = 2048, timeout: float = 120.0
    ) -> None:
        """world: folder of a saved world (Anvil). version: of Minecraft. view_distance: in chunks. heap: MB that Node may use.
        timeout: seconds for one request."""
        source: dict[str, Any] = {"mode": "terrain"}
        if world is not None:
            folder = Path(world).expanduser().resolve()
            if not folder.is_dir():
                raise ValueError(f"world must be the folder of a saved world, got {world!r}")
            source = {"mode": "saved", "world": str(folder)}
        start = _node(PRISMARINE, heap, version=version, reach=view_distance, **source)
        super().__init__(PRISMARINE, start, FIELD_OF_VIEW, timeout)


class ServerBackend(RemoteBackend):
    """A player on a Minecraft server. The server runs in real time, so equal actions need not give equal frames."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 25565,
        username: str = "wmgym",
        realtime: bool = True,
        version: str = "1.16.5",
        view_distance: int = 4,
        heap: int = 2048,
        timeout: float = 120.0,
    ) -> None:
        """host, port: of the server, which must admit players without an account (online-mode=false).
        username: 1 to 16 characters; in a vector env the lane's number is appended.
        realtime: each tick takes 50 ms, which servers that check players' speed require.
        The other keywords are those of `PrismarineBackend`."""
        if isinstance(port, bool) or not isinstance(port, (int, np.integer)) or not 0 < port < 65_536:
            raise ValueError(f"port must be a number from 1 to 65535, got {port!r}")
        if not (isinstance(username, str) and 1 <= len(username) <= 16):
            raise ValueError(f"username must have 1 to 16 characters, got {username!r}")
        server = {"mode": "server", "host": host, "port": int(port), "username": username, "realtime": bool(realtime)}
        super().__init__(PLAYER, _node(PLAYER, heap, version=version, reach=view_distance, **server), FIELD_OF_VIEW, timeout)


class PrismarineLanes(RemoteLanes):
    """N worlds, each in its own process."""

    def __init__(self, num_lanes: int, **options: Any) -> None:
        super().__init__(num_lanes, lambda: PrismarineBackend(**options))


class ServerLanes(RemoteLanes):
    """N players on one server, each in its own process."""

    def __init__(self, num_lanes: int, username: str = "wmgym", **options: Any) -> None:
        names = iter(range(num_lanes))
        super().__init__(num_lanes, lambda: ServerBackend(username=f"{username}{next(names) or ''}", **options))


def _node(name: str, heap: int, **config: Any) -> Callable[[], EngineProcess]:
    """A function that starts a Node process with this configuration (see main.js). ValueError if `heap` or `reach` is out of range."""
    for option, value in (("view_distance", config["reach"]), ("heap", heap)):
        low, high = LIMITS[option]
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
            raise ValueError(f"{option} must be a whole number from {low} to {high}, got {value!r}")

    def start() -> EngineProcess:
        node, modules = find_node(), modules_folder()

        def command(socket: str, frames: str) -> list[str]:
            settings = {**config, "fieldOfView": FIELD_OF_VIEW, "socket": socket, "frames": frames, "owner": os.getpid()}
            return [node, f"--max-old-space-size={heap}", str(HERE / "main.js"), json.dumps(settings)]

        # LP_NUM_THREADS=0: the driver renders in Node's own thread, which is faster when several processes run side by side
        return EngineProcess(name, command, {"NODE_PATH": str(modules), "LP_NUM_THREADS": "0"}, START_TIMEOUT)

    return start
