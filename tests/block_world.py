"""A tiny world of blocks for tests: `gym.make("block_world:BlockTest-v0")`. Flat ground, walls, one-block steps, a 0.6 x 1.8 body."""

import math
from typing import Any

import gymnasium as gym
import numpy as np

TICK = 0.8634 / 4  # blocks walked in a tick
RISE, GRAVITY = 0.42, 0.08


class BlockTestEnv(gym.Env):
    """Ten actions like those of Minecraft-v0; the frame is a grey that depends on the pose. A world is 64 x 64 x 16 blocks."""

    action_space = gym.spaces.Discrete(10)
    observation_space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)

    def __init__(self, steps: bool = True, horizon: int = 10_000) -> None:
        self.steps = steps
        self.horizon = horizon

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        height = np.full((64, 64), 4)
        if self.steps:
            for _ in range(40):
                x, y = self.np_random.integers(2, 60, 2)
                w, d = self.np_random.integers(1, 5, 2)
                height[x : x + w, y : y + d] = self.np_random.choice([5, 8])
        height[30:35, 30:35] = 4
        self.blocks = np.arange(16)[None, None] < height[..., None]
        self.pose = np.array([32.5, 32.5, 4, 0, 0], np.float32)
        if options and "start" in options:
            self.pose = np.array(options["start"], np.float32)
        self.speed = 0.0
        self.elapsed = 0
        return self._frame(), {"pose": self.pose.copy()}

    def step(self, action: int) -> Any:
        x, y, z, yaw, pitch = (float(v) for v in self.pose)
        yaw += math.radians({6: 15, 7: -15}.get(action, 0))
        pitch += math.radians({8: 15, 9: -15}.get(action, 0))
        heading = {1: 0.0, 2: math.pi, 3: math.pi / 2, 4: -math.pi / 2, 5: 0.0}.get(action)
        for _ in range(4):
            if action == 5 and self._stuck(x, y, z - 0.01):
                self.speed = RISE
            if heading is not None:
                dx, dy = TICK * math.cos(yaw + heading), TICK * math.sin(yaw + heading)
                x = x if self._stuck(x + dx, y, z) else x + dx
                y = y if self._stuck(x, y + dy, z) else y + dy
            if not self._stuck(x, y, z + self.speed):
                z += self.speed
            elif self.speed < 0:
                z = math.floor(z + 1e-6)
                self.speed = 0.0
            self.speed = (self.speed - GRAVITY) * 0.98 if not self._stuck(x, y, z - 0.01) or self.speed > 0 else 0.0
        self.pose = np.array([x, y, z, (yaw + math.pi) % (2 * math.pi) - math.pi, pitch], np.float32)
        self.elapsed += 1
        return self._frame(), 0.0, False, self.elapsed >= self.horizon, {"pose": self.pose.copy()}

    def solid(self, low: Any, high: Any) -> np.ndarray:
        """Which blocks of a box stop a body; all do outside the world."""
        box = np.ones([b - a for a, b in zip(low, high)], bool)
        inside = [range(max(0, a), min(size, b)) for a, b, size in zip(low, high, self.blocks.shape)]
        if all(len(r) for r in inside):
            here = tuple(slice(r.start, r.stop) for r in inside)
            box[tuple(slice(r.start - a, r.stop - a) for r, a in zip(inside, low))] = self.blocks[here]
        return box

    def _stuck(self, x: float, y: float, z: float) -> bool:
        low = (math.floor(x - 0.3), math.floor(y - 0.3), math.floor(z))
        high = (math.floor(x + 0.3) + 1, math.floor(y + 0.3) + 1, math.floor(z + 1.8) + 1)
        return bool(self.solid(low, high)[..., :].any()) if z < 14 else True

    def _frame(self) -> np.ndarray:
        return np.full((8, 8, 3), int(np.abs(self.pose).sum() * 100) % 256, np.uint8)


gym.register("BlockTest-v0", BlockTestEnv)
