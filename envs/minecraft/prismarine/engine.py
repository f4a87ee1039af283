"""Minecraft's own blocks, textures and movement, in a Node process (main.js): the backends "prismarine" and "server".

"prismarine" makes its worlds from seeds (terrain.js) or reads a saved one (`world=PATH`); its frames and poses are the same, bit for
bit, whenever the seed, the start and the actions are. Minecraft's axes and mineflayer's angles end here: what leaves this file is in ours.
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
from wmgym.envs.minecraft.process import Peer
from wmgym.envs.minecraft.remote import RemoteBackend, RemoteLanes

HERE = Path(__file__).parent
FIELD_OF_VIEW = math.radians(75)  # vertical, as LoopNav's collector has it
START_TIMEOUT = 60.0
PRISMARINE, PLAYER = "the Prismarine process", "the process of the player on a server"
LIMITS = {"view_distance": (2, 16), "heap": (16, 65_536)}


class PrismarineBackend(RemoteBackend):
    """A world of its own in each process, from a seed or from a saved world."""

    def __init__(
        self, world: str | None = None, version: str = "1.16.5", view_distance: int = 4, heap: int = 2048, timeout: float = 120.0
    ) -> None:
        """world: folder of a saved world (Anvil). version: of Minecraft. view_distance: chunks. heap: MB that Node may use.
        timeout: seconds within which a request is answered."""
        source: dict[str, Any] = {"mode": "terrain"}
        if world is not None:
            folder = Path(world).expanduser().resolve()
            if not folder.is_dir():
                raise ValueError(f"world must be the folder of a saved world, got {world!r}")
            source = {"mode": "saved", "world": str(folder)}
        start = _node(PRISMARINE, heap, version=version, reach=view_distance, **source)
        super().__init__(PRISMARINE, start, FIELD_OF_VIEW, timeout)


class ServerBackend(RemoteBackend):
    """A player on a Minecraft server. Time on the server runs by itself, so nothing is promised to be the same twice."""

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
        """host, port: of the server, which must let players in without an account (online-mode=false). username: in a vector env a
        number is added to it. realtime: let each tick take its 50 ms, as servers that check players' speed need it."""
        if isinstance(port, bool) or not isinstance(port, (int, np.integer)) or not 0 < port < 65_536:
            raise ValueError(f"port must be a number from 1 to 65535, got {port!r}")
        if not (isinstance(username, str) and 1 <= len(username) <= 16):
            raise ValueError(f"username must have 1 to 16 letters, got {username!r}")
        server = {"mode": "server", "host": host, "port": int(port), "username": username, "realtime": bool(realtime)}
        super().__init__(PLAYER, _node(PLAYER, heap, version=version, reach=view_distance, **server), FIELD_OF_VIEW, timeout)


class PrismarineLanes(RemoteLanes):
    def __init__(self, num_lanes: int, **options: Any) -> None:
        super().__init__(num_lanes, lambda: PrismarineBackend(**options))


class ServerLanes(RemoteLanes):
    def __init__(self, num_lanes: int, username: str = "wmgym", **options: Any) -> None:
        names = iter(range(num_lanes))
        super().__init__(num_lanes, lambda: ServerBackend(username=f"{username}{next(names) or ''}", **options))


def _node(name: str, heap: int, **config: Any) -> Callable[[], Peer]:
    """What starts a Node process with this configuration (see main.js); ValueError if it cannot be right."""
    for option, value in (("view_distance", config["reach"]), ("heap", heap)):
        low, high = LIMITS[option]
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
            raise ValueError(f"{option} must be a whole number from {low} to {high}, got {value!r}")

    def start() -> Peer:
        node, modules = find_node(), modules_folder()

        def command(socket: str, frames: str) -> list[str]:
            told = {**config, "fieldOfView": FIELD_OF_VIEW, "socket": socket, "frames": frames, "owner": os.getpid()}
            return [node, f"--max-old-space-size={heap}", str(HERE / "main.js"), json.dumps(told)]

        # The driver draws in Node's own thread: several processes side by side are faster so, and small pictures need no more.
        return Peer(name, command, {"NODE_PATH": str(modules), "LP_NUM_THREADS": "0"}, START_TIMEOUT)

    return start
