"""A simulator with MineRL's interface and manners, in flat land: for the worker's protocol (envs/minecraft/minerl/worker.py).

Old gym: `reset` gives an observation, `step` four things. A reset forgets the seed. The yaw is never wrapped. The first observation lacks
the pose, as MineRL's monitors do. Actions must be exactly MineRL's. It fails in MineRL's way when it is told to by its seed.
"""

import math
import time

import numpy as np

SURVIVAL = (
    "forward", "back", "left", "right", "jump", "sneak", "sprint", "attack", "use", "drop", "inventory", "ESC", "pickItem", "swapHands",
    *(f"hotbar.{i}" for i in range(1, 10)),
)  # fmt: skip
LOST, HUNG, MORTAL = 13, 17, 19  # seeds of episodes that go wrong


class Space:
    def no_op(self):
        return {**{key: np.array(0) for key in SURVIVAL}, "camera": np.zeros(2, np.float32)}


class Simulator:
    max_steps = 60

    def __init__(self, resolution):
        self.resolution = resolution
        self.action_space = Space()
        self._seed = None
        self._start = None

    def seed(self, seed=None):
        assert isinstance(seed, int)
        self._seed = seed

    def start_at(self, place):
        self._start = place

    def reset(self):
        assert self._seed is not None, "seed before every reset"
        self.world, self._seed = self._seed, None
        self.steps, self.done = 0, False
        self.place = list(self._start) if self._start else [float(self.world), 64.0, 8.0, 350.0, 0.0]
        return {"pov": self.picture()}

    def step(self, action):
        assert not self.done, "Attempted to step an environment server with done=True"
        assert set(action) == {*SURVIVAL, "camera"}
        assert action["camera"].dtype == np.float32
        x, y, z, yaw, pitch = self.place
        pitch = float(np.clip(pitch + action["camera"][0], -90, 90))
        yaw = yaw + float(action["camera"][1])  # unwrapped, as Java has it
        ahead = 4.317 / 20 * (int(action["forward"]) - int(action["back"]))
        left = 4.317 / 20 * (int(action["left"]) - int(action["right"]))
        sin, cos = math.sin(math.radians(yaw)), math.cos(math.radians(yaw))
        self.place = [x - ahead * sin + left * cos, y, z + ahead * cos + left * sin, yaw, pitch]
        self.steps += 1
        if self.world == LOST and self.steps > 4:
            return {"pov": self.picture()}, 0, True, {"error": "Connection timed out!"}
        if self.world == HUNG and self.steps > 4:
            time.sleep(1000)
        self.done = self.steps >= self.max_steps or (self.world == MORTAL and self.steps > 8)
        stats = dict(zip(("xpos", "ypos", "zpos", "yaw", "pitch"), (np.float64(v) for v in self.place)))
        return {"pov": self.picture(), "location_stats": stats}, 0.0, self.done, {}

    def picture(self):
        """Sky over grass, and a bright column that stands in the north (along -z)."""
        height, width = self.resolution
        picture = np.zeros((height, width, 3), np.uint8)
        picture[: height // 2], picture[height // 2 :] = (150, 190, 250), (90, 160, 60)
        away = (180 - self.place[3] + 180) % 360 - 180  # degrees to the left... of what is ahead
        column = int(width / 2 + away / 35 * width / 2)
        if 0 <= column < width:
            picture[:, column : column + 4] = 255
        return picture

    def close(self):
        pass
