"""The worker of the MineRL backend. It runs in a Python that has MineRL but not wmgym.

    python worker.py '{"socket": PATH, "frames": PATH, "owner": PID, "family": "1.0", "resolution": [360, 640]}'

It implements the protocol of ../process.py and uses only what Python 3.7, old gym and old NumPy support.
"""

import importlib
import json
import math
import mmap
import os
import shutil
import socket
import struct
import sys
import time

import numpy as np

NOTCH = 15.0  # degrees per turn or look action
POSE = ("xpos", "ypos", "zpos", "yaw", "pitch")
KEYS = ("forward", "back", "left", "right", "jump", "sneak", "sprint", "attack")
OWNER_SECONDS = 3.0  # how long the owner may take to exit after the socket closed
POSE_TICKS = 20  # ticks within which a new episode must report a pose


class Player:
    """One simulator with MineRL's old-gym interface, and its running episode."""

    def __init__(self, simulator, max_steps):
        self.simulator = simulator
        self.max_steps = max_steps  # steps after which the simulator itself ends an episode; None: never
        self.frame = None
        self.location = None  # xpos, ypos, zpos, yaw, pitch
        self.ticks = 0  # since `reset` returned
        self.steps = 0  # of the simulator, including those within `reset`
        self.ending = ""

    def reset(self, seed, start):
        if start is not None:
            start = degrees(start)
        getattr(self.simulator, "task", self.simulator).start_at(start)  # defined in specs.py
        self.simulator.seed(int(seed))  # each reset forgets the seed, and MineRL would then draw its own
        self.location, self.ending, self.steps = None, "", 0
        self.keep(self.simulator.reset())
        for _ in range(POSE_TICKS):
            if self.location is not None:
                break
            self.tick((), (0.0, 0.0))
        if self.location is None:
            raise RuntimeError("the simulator reports no pose: location_stats is missing from its observations")
        self.ticks = 0

    def keep(self, observation):
        """Keep the frame of an observation, and its pose if it has one."""
        self.frame = np.asarray(observation["pov"], np.uint8)
        stats = observation.get("location_stats")
        if stats is not None:
            self.location = [float(stats[name]) for name in POSE]

    def tick(self, pressed, camera):
        """One tick of 50 ms; camera: degrees down and to the right."""
        if self.ending:
            return  # the episode is over
        space = self.simulator.action_space
        action = (space.no_op if hasattr(space, "no_op") else space.noop)()
        for key in pressed:
            action[key] = np.array(1)
        action["camera"] = np.array(camera, np.float32)
        observation, _, done, info = self.simulator.step(action)
        if "error" in info:  # after a lost connection MineRL returns a random observation and this entry
            raise RuntimeError(f"MineRL lost its connection to Minecraft: {info['error']}")
        self.keep(observation)
        if "location_stats" in info:  # where MineRL's monitors report
            self.location = [float(info["location_stats"][name]) for name in POSE]
        self.ticks += 1
        self.steps += 1
        if done:
            self.ending = "truncated" if self.max_steps is not None and self.steps >= self.max_steps else "terminated"

    def step(self, request):
        camera = request.get("camera") or (-NOTCH * request.get("look", 0), -NOTCH * request.get("turn", 0))
        pressed = [key for key in KEYS if request.get("keys", {}).get(key)]
        for tick in range(request["ticks"]):
            self.tick(pressed, camera if tick == 0 else (0.0, 0.0))

    def report(self):
        assert self.location is not None
        x, y, z, yaw, pitch = self.location
        turned = math.pi - math.radians(yaw)  # MineRL's yaw is Java's: not wrapped, clockwise, 0 along +z
        turned -= 2 * math.pi * math.floor((turned + math.pi) / (2 * math.pi))
        return {"pose": [x, y, z, turned, -math.radians(pitch)], "ticks": self.ticks, "ending": self.ending}


def degrees(place):
    """x, y, z and mineflayer's angles -> x, y, z and Minecraft's yaw and pitch in degrees."""
    x, y, z, yaw, pitch = place
    return [x, y, z, math.degrees(math.pi - yaw), -math.degrees(pitch)]


def make_simulator(family, resolution):
    """The simulator of a family, and the steps after which it ends an episode itself (None: never)."""
    if ":" in family:
        module, name = family.split(":")
        simulator = getattr(importlib.import_module(module), name)(tuple(resolution))
        return simulator, getattr(simulator, "max_steps", None)
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    specs = importlib.import_module("specs")
    spec = specs.human_survival(resolution) if family == "1.0" else specs.navigate(resolution)
    return spec.make(), spec.max_episode_steps


class Connection:
    """The socket, and the file for frames."""

    def __init__(self, config):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(config["socket"])
        self.path = config["frames"]
        self.memory = None

    def read(self, count):
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def receive(self):
        return json.loads(self.read(struct.unpack("<I", self.read(4))[0]).decode())

    def send(self, message):
        text = json.dumps(message).encode()
        self.socket.sendall(struct.pack("<I", len(text)) + text)

    def publish(self, frame, size):
        if list(frame.shape[:2]) != list(size):
            raise RuntimeError(f"the simulator draws {list(frame.shape[:2])}, not {list(size)}")
        if self.memory is None:
            with open(self.path, "r+b") as file:
                self.memory = mmap.mmap(file.fileno(), 0)
        rgba = np.full(tuple(size) + (4,), 255, np.uint8)
        rgba[..., :3] = frame
        self.memory[: rgba.size] = rgba.tobytes()


def main(config):
    connection = Connection(config)
    try:
        player = Player(*make_simulator(config["family"], config["resolution"]))
    except Exception as error:  # the owner reports it
        connection.send({"error": f"{type(error).__name__}: {error}"})
        raise
    connection.send({"hello": 1})
    try:
        while True:
            request = connection.receive()
            if request["op"] == "close":
                break
            try:
                reply = answer(player, connection, request)
            except Exception as error:
                connection.send({"error": f"{type(error).__name__}: {error}"})
                raise
            connection.send(reply)
    except (EOFError, OSError):
        orphaned(config["owner"], os.path.dirname(config["socket"]))  # the socket closed without a "close" request
    finally:
        player.simulator.close()


def orphaned(owner, folder):
    """Remove the owner's folder if the owner was killed, which may take effect only after the socket has closed."""
    end = time.time() + OWNER_SECONDS
    while time.time() < end:
        try:
            os.kill(owner, 0)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            return
        time.sleep(0.05)


def answer(player, connection, request):
    if request["op"] == "reset":
        player.reset(request["seed"], request["start"])
    elif request["op"] == "step":
        player.step(request)
    elif request["op"] != "draw":
        raise RuntimeError(f"unknown request {request['op']}")
    if request.get("size"):
        connection.publish(player.frame, request["size"])
    return player.report()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
