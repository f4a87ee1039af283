"""The client side of an engine that runs in its own process (process.py). Node and MineRL's worker take the same requests.

Requests: reset (seed, start), step (ticks, keys, and either turn and look in notches of 15 degrees or camera in degrees), draw (size),
solid (low, high), reachable, save, load (state). Messages use Minecraft's axes and mineflayer's angles; this file converts them to ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wmgym.envs.checks import check_pose
from wmgym.envs.minecraft.backend import Pose
from wmgym.envs.minecraft.faults import BackendDied, BackendError
from wmgym.envs.minecraft.process import EngineProcess
from wmgym.settings.minecraft import HANDS

BOUND = 16_384  # blocks from the origin; within it float32 poses are exact to a millimetre
HEIGHT = 256
TICKS = 4  # per step of mode "discrete": 0.2 s


class RemoteBackend:
    """A backend that starts its process at the first reset, and again after a fault."""

    bounds = ((-BOUND, -BOUND, 0), (BOUND, BOUND, HEIGHT))

    def __init__(
        self, name: str, start: Callable[[], EngineProcess], field_of_view: float, timeout: float, native: tuple[int, int] | None = None
    ) -> None:
        """name: used in errors. start: starts the process. field_of_view: vertical, radians. timeout: seconds for one request.
        native: the size (height, width) that the process draws, if it can draw only one; frames are scaled from it."""
        if not timeout > 0:
            raise ValueError(f"timeout must be a number of seconds above 0, got {timeout!r}")
        self.field_of_view = field_of_view
        self.ending = ""
        self.pose = np.zeros(5, np.float32)  # from the newest reply
        self._name, self._start, self._timeout, self._native = name, start, float(timeout), native
        self._process: EngineProcess | None = None
        self._size: tuple[int, int] | None = native  # of the frame that each step draws
        self._is_drawn = False  # whether the frame in shared memory shows the present state
        self._reachable: tuple[NDArray[np.bool_], int, int] | None = None

    # ---- the engine ----

    def reset(self, seed: int, start: Pose | None) -> Pose:
        place = None if start is None else to_minecraft(check_start(start))
        return self._moved(self._ask(op="reset", seed=int(seed), start=place, size=self._size))

    def step(self, action: int) -> Pose:
        self.send_step(action)
        return self.receive_pose()

    def tick(self, pressed: Sequence[str], camera: tuple[float, float]) -> Pose:
        self.send_tick(pressed, camera)
        return self.receive_pose()

    def render(self, height: int, width: int) -> NDArray[np.uint8]:
        frame = np.empty((height, width, 3), np.uint8)
        self.draw_into(frame)
        return frame

    def solid(self, low: tuple[int, int, int], high: tuple[int, int, int]) -> NDArray[np.bool_]:
        # our (x, y, z up) is (x, -z, y) in Minecraft's axes: our cell [y, y + 1) is Minecraft's block -y - 1
        shape = [max(b - a, 0) for a, b in zip(low, high)]
        _, content = self._talk(op="solid", low=[int(low[0]), int(low[2]), -int(high[1])], high=[int(high[0]), int(high[2]), -int(low[1])])
        cells = np.frombuffer(content, np.bool_).reshape(shape)  # Minecraft's [X, Z, Y] = our [X, reversed Y, Z]
        return np.ascontiguousarray(cells[:, ::-1])

    def reachable(self, x: float, y: float) -> bool:
        if self._reachable is None:
            answer, content = self._talk(op="reachable")
            x0, z0, side = answer["area"]
            self._reachable = np.frombuffer(content, np.bool_).reshape(side, side), x0, z0
        cells, x0, z0 = self._reachable
        i, k = math.floor(x) - x0, math.floor(-y) - z0
        return 0 <= i < len(cells) and 0 <= k < len(cells) and bool(cells[i, k])

    def save(self) -> dict[str, Any]:
        state = self._talk(op="save")[0]["state"]
        edits = np.array(state["edits"], np.int64).reshape(-1, 4)
        return {"seed": state["seed"], "body": np.array(state["body"], np.float64), "edits": edits}

    def load(self, state: dict[str, Any]) -> Pose:
        plain = {"seed": int(state["seed"]), "body": np.asarray(state["body"]).tolist(), "edits": np.asarray(state["edits"]).tolist()}
        return self._moved(self._ask(op="load", state=plain, size=self._size))

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    # ---- send and receive apart, so that lanes can run side by side ----

    def send_step(self, action: int) -> None:
        keys, left, up = HANDS[action]
        self._send(op="step", ticks=TICKS, keys=dict.fromkeys(keys, 1), turn=left, look=up, size=self._size)

    def send_tick(self, pressed: Sequence[str], camera: tuple[float, float]) -> None:
        self._send(op="step", ticks=1, keys=dict.fromkeys(pressed, 1), camera=list(camera), size=self._size)

    def receive_pose(self) -> Pose:
        return self._moved(self._running().receive(self._timeout)[0])

    def draw_into(self, frame: NDArray[np.uint8]) -> None:
        """Draw the present state into [height, width, 3]."""
        size = self._native or (frame.shape[0], frame.shape[1])
        if self._size is None:
            self._size = size  # from now on each step also draws a frame of this size, which saves a request
        if not (self._is_drawn and size == self._size):
            self._running().reserve(*size)
            self._talk(op="draw", size=size)
            self._is_drawn = size == self._size
        drawn = self._running().newest_frame(*size)[..., :3]
        frame[:] = drawn if drawn.shape == frame.shape else _scaled(drawn, frame.shape[:2])

    # ---- parts ----

    def _running(self) -> EngineProcess:
        """The process. A request to one that has died raises `BackendDied`."""
        if self._process is None:
            raise BackendDied(f"{self._name} is not running: reset() starts it")
        return self._process

    def _begin(self) -> None:
        """Start the process, unless it runs."""
        if self._process is not None and not self._process.is_alive:
            self._process = None  # after a fault
        if self._process is None:
            self._process = self._start()
            if self._size is not None:
                self._process.reserve(*self._size)

    def _send(self, **message: Any) -> None:
        self._is_drawn = False
        self._running().send(message)

    def _talk(self, **message: Any) -> tuple[dict[str, Any], bytes]:
        if message["op"] in ("reset", "load"):
            self._begin()
        return self._running().request(self._timeout, **message)

    def _ask(self, **message: Any) -> dict[str, Any]:
        self._is_drawn = False
        return self._talk(**message)[0]

    def _moved(self, answer: dict[str, Any]) -> Pose:
        self._is_drawn = self._size is not None
        self.ending = answer.get("ending", "")
        if answer["ticks"] == 0:
            self._reachable = None
        self.pose = from_minecraft(answer["pose"])
        return self.pose.copy()


class RemoteLanes:
    """Engines that run side by side, one process each. A frame is copied once, out of the memory shared with its process."""

    def __init__(self, num_lanes: int, make: Callable[[], RemoteBackend]) -> None:
        self.engines = [make() for _ in range(num_lanes)]

    def step(self, actions: NDArray[np.int64]) -> Pose:
        moving = np.flatnonzero(actions >= 0).tolist()
        return self._each(moving, lambda lane: self.engines[lane].send_step(int(actions[lane])))

    def tick(self, inputs: Sequence[tuple[Sequence[str], tuple[float, float]] | None]) -> Pose:
        moving = {lane: each for lane, each in enumerate(inputs) if each is not None}
        return self._each(list(moving), lambda lane: self.engines[lane].send_tick(*moving[lane]))

    def _each(self, lanes: list[int], send: Callable[[int], None]) -> Pose:
        """Send to all lanes, then receive from all. A failed lane does not stop the others: an unread reply would be mistaken for the
        reply to the next request."""
        fault: BackendError | None = None
        sent = []
        for lane in lanes:
            try:
                send(lane)
                sent.append(lane)
            except BackendError as error:
                fault = fault or error
        for lane in sent:
            try:
                self.engines[lane].receive_pose()
            except BackendError as error:
                fault = fault or error
        if fault is not None:
            raise fault
        return np.stack([engine.pose for engine in self.engines])

    def render(self, height: int, width: int, lanes: Sequence[int] | NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        rows = range(len(self.engines)) if lanes is None else [int(lane) for lane in lanes]
        frames = np.empty((len(rows), height, width, 3), np.uint8)
        for frame, lane in zip(frames, rows, strict=True):
            self.engines[lane].draw_into(frame)
        return frames


def _scaled(frame: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.uint8]:
    import cv2  # here, because most engines draw the requested size themselves

    return cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


# poses in Minecraft's axes and in ours


def to_minecraft(pose: Pose) -> list[float]:
    """Our pose -> x, y, z (y up), and mineflayer's yaw and pitch (radians, yaw 0 along -z)."""
    x, y, z, yaw, pitch = (float(v) for v in pose)
    return [x, z, -y, yaw - math.pi / 2, pitch]


def from_minecraft(place: Sequence[float]) -> Pose:
    """The inverse of `to_minecraft`. A yaw that float32 rounds up to pi becomes -pi."""
    x, y, z, yaw, pitch = place
    turned = (yaw + math.pi / 2 + math.pi) % (2 * math.pi) - math.pi
    pose = np.array([x, -z, y, turned, pitch], np.float32)
    if pose[3] >= np.float32(math.pi):
        pose[3] = -math.pi
    return pose


def check_start(start: Any) -> Pose:
    """A start pose within the world, or ValueError. The process itself checks that a body fits there."""
    pose = check_pose("start", start)
    x, y, z = (float(v) for v in pose[:3])
    if not (abs(x) < BOUND and abs(y) < BOUND and 0 <= z < HEIGHT):
        raise ValueError(f"start must lie within the world, {(-BOUND, -BOUND, 0)} to {(BOUND, BOUND, HEIGHT)}, got {(x, y, z)}")
    if abs(pose[4]) > math.pi / 2 + 1e-6:
        raise ValueError(f"start must have a pitch within [-pi/2, pi/2], got {float(pose[4])}")
    return pose
