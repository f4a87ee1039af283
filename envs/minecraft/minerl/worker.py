"""MineRL's side of the line: run by a Python that has MineRL and neither wmgym nor anything else of ours.

    python worker.py '{"socket": PATH, "frames": PATH, "family": "1.0", "resolution": [360, 640]}'

It speaks the protocol of ../process.py. Old gym, old NumPy and Python 3.7 must be able to run it, so it keeps to what they know.
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

NOTCH = 15.0  # degrees of a turn or look of the ten actions
POSE = ("xpos", "ypos", "zpos", "yaw", "pitch")
KEYS = ("forward", "back", "left", "right", "jump", "sneak", "sprint", "attack")
PATIENCE_SECONDS = 3.0
PATIENCE = 20  # ticks in which a new episode must say where the player is


class Player:
    """One simulator with MineRL's old-gym interface, and the episode in it."""

    def __init__(self, simulator, max_steps):
        self.simulator = simulator
        self.max_steps = max_steps  # after which the simulator ends an episode by itself; None: never
        self.picture = None
        self.where = None  # xpos, ypos, zpos, yaw, pitch
        self.ticks = 0  # since the episode was handed over
        self.steps = 0  # of the simulator, which counts those before, too
        self.ending = ""

    def reset(self, seed, start):
        if start is not None:
            start = degrees(start)
        getattr(self.simulator, "task", self.simulator).start_at(start)  # of specs.py
        self.simulator.seed(int(seed))  # each reset forgets the seed, and without one MineRL draws its own
        self.where, self.ending, self.steps = None, "", 0
        self.take(self.simulator.reset())
        for _ in range(PATIENCE):
            if self.where is not None:
                break
            self.tick((), (0.0, 0.0))
        if self.where is None:
            raise RuntimeError("the simulator does not say where the player is: location_stats is missing from its observations")
        self.ticks = 0

    def take(self, observation):
        """Keep what an observation shows and tells."""
        self.picture = np.asarray(observation["pov"], np.uint8)
        stats = observation.get("location_stats")
        if stats is not None:
            self.where = [float(stats[name]) for name in POSE]

    def tick(self, pressed, camera):
        """One tick of 50 ms; camera: degrees down and to the right."""
        if self.ending:
            return  # what is over rests
        space = self.simulator.action_space
        action = (space.no_op if hasattr(space, "no_op") else space.noop)()
        for key in pressed:
            action[key] = np.array(1)
        action["camera"] = np.array(camera, np.float32)
        observation, _, done, info = self.simulator.step(action)
        if "error" in info:  # MineRL hides a lost connection behind a random observation
            raise RuntimeError(f"MineRL lost its Minecraft: {info['error']}")
        self.take(observation)
        if "location_stats" in info:  # as a monitor it comes here
            self.where = [float(info["location_stats"][name]) for name in POSE]
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
        assert self.where is not None
        x, y, z, yaw, pitch = self.where
        turned = math.pi - math.radians(yaw)  # MineRL's yaw is as Java has it: any number of turns, clockwise, 0 along +z
        turned -= 2 * math.pi * math.floor((turned + math.pi) / (2 * math.pi))
        return {"pose": [x, y, z, turned, -math.radians(pitch)], "ticks": self.ticks, "ending": self.ending}


def degrees(place):
    """x, y, z and mineflayer's angles -> x, y, z and Minecraft's yaw and pitch in degrees."""
    x, y, z, yaw, pitch = place
    return [x, y, z, math.degrees(math.pi - yaw), -math.degrees(pitch)]


def make_simulator(family, resolution):
    """The simulator of a family, and after how many steps it ends an episode by itself."""
    if ":" in family:
        module, name = family.split(":")
        simulator = getattr(importlib.import_module(module), name)(tuple(resolution))
        return simulator, getattr(simulator, "max_steps", None)
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    specs = importlib.import_module("specs")
    spec = specs.human_survival(resolution) if family == "1.0" else specs.navigate(resolution)
    return spec.make(), spec.max_episode_steps


class Line:
    """The socket and the file for pictures."""

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

    def hear(self):
        return json.loads(self.read(struct.unpack("<I", self.read(4))[0]).decode())

    def say(self, message):
        text = json.dumps(message).encode()
        self.socket.sendall(struct.pack("<I", len(text)) + text)

    def show(self, picture, size):
        if list(picture.shape[:2]) != list(size):
            raise RuntimeError(f"the simulator draws {list(picture.shape[:2])}, not {list(size)}")
        if self.memory is None:
            with open(self.path, "r+b") as file:
                self.memory = mmap.mmap(file.fileno(), 0)
        rgba = np.full(tuple(size) + (4,), 255, np.uint8)
        rgba[..., :3] = picture
        self.memory[: rgba.size] = rgba.tobytes()


def main(config):
    line = Line(config)
    try:
        player = Player(*make_simulator(config["family"], config["resolution"]))
    except Exception as error:  # whatever it is, the other side must be told
        line.say({"error": f"{type(error).__name__}: {error}"})
        raise
    line.say({"hello": 1})
    try:
        while True:
            request = line.hear()
            if request["op"] == "close":
                break
            try:
                reply = answer(player, line, request)
            except Exception as error:
                line.say({"error": f"{type(error).__name__}: {error}"})
                raise
            line.say(reply)
    except (EOFError, OSError):
        orphaned(config["owner"], os.path.dirname(config["socket"]))  # cut off without a word
    finally:
        player.simulator.close()


def orphaned(owner, folder):
    """If our owner was killed, perhaps a moment ago, what it would have tidied up is left to us."""
    end = time.time() + PATIENCE_SECONDS
    while time.time() < end:
        try:
            os.kill(owner, 0)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            return
        time.sleep(0.05)


def answer(player, line, request):
    if request["op"] == "reset":
        player.reset(request["seed"], request["start"])
    elif request["op"] == "step":
        player.step(request)
    elif request["op"] != "draw":
        raise RuntimeError(f"unknown request {request['op']}")
    if request.get("size"):
        line.show(player.picture, request["size"])
    return player.report()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
