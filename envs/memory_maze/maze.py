"""The simulation of one maze: physics and rules of the targets, without dm_control's overhead. All numbers equal upstream's.

Positions are mujoco's: a cell of the maze is 2 m wide, and the centre of the maze is (0, 0). The body is a heavy ball with a head. It needs
about half a step to start and to stop, is slowed by walls, and its turns vary slightly from step to step.
"""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from wmgym.envs.memory_maze import upstream
from wmgym.envs.memory_maze.renderer import MazeRenderer
from wmgym.envs.memory_maze.upstream import CELL, Variant

SUBSTEP = 0.005  # seconds
CONTROLS = np.array([[0, 0], [-1, 0], [0, -1], [0, 1], [-1, -1], [-1, 1]], np.float64)  # roll and steer, per action
REACH = 0.25  # metres: greatest distance of a part of the body from its axis
TOP_SPEED = 4.0  # metres per second: twice the motor's top speed
X, Y, TURN = 0, 1, 3  # indices in qpos
STATE = mujoco.mjtState.mjSTATE_INTEGRATION.value  # everything that a substep depends on, with the solver's warm start


class Maze:
    """The fixed parts of an episode. Several balls can share one maze."""

    def __init__(self, cells: int, kind: Variant, seed: int, largest: tuple[int, int]) -> None:
        opened = upstream.open_task(cells, kind, seed)
        task, self.model = opened.task, opened.physics.model._model
        self.cells, self.kind, self.seed = cells, kind, seed
        self.substeps = round(1 / (kind.control_hz * SUBSTEP))
        letters = task._maze_arena.maze.entity_layer[1:-1, 1:-1]
        self.layout = np.isin(np.flip(letters, 0), (" ", "P", "G")).astype(np.uint8)  # [y, x]: 1 is free; y up; without outer walls
        self.colours = np.array(task._target_colors)  # in [0, 1], per target; may have more rows than targets
        geoms = [self.model.geom(target.geom.full_identifier) for target in task._targets]
        self.target_geoms = [int(geom.id) for geom in geoms]
        self.target_materials = np.array([int(geom.matid[0]) for geom in geoms])
        self.opening = opened.physics.data._data  # the state after reset, which balls copy
        self.targets = self.opening.geom_xpos[self.target_geoms].copy()  # [n, 3] metres
        self.target_radius = float(self.model.geom_size[self.target_geoms[0], 0])
        self.body = int(self.model.body("walker/head_body").id)
        self.named = int(task._current_target_ix)
        self.touched = np.array([target.activated for target in task._targets])
        self.rng = opened.rng
        camera = "top_camera" if kind.top else "walker/egocentric"
        self.renderer = MazeRenderer(self.model, self.opening, camera, opened.textures, opened.pictures, largest)

    def to_grid(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Metres -> upstream's grid coordinates: (0, 0) is the lower left corner inside the outer walls, and a cell is 1 wide."""
        return xy / CELL + self.cells / 2

    def to_metres(self, grid: NDArray[np.float64]) -> NDArray[np.float64]:
        return (grid - self.cells / 2) * CELL

    def fits(self, x: float, y: float) -> bool:
        """Whether the body can stand here: no wall is nearer than its reach."""
        around = self.to_grid(np.array([(x + dx, y + dy) for dx in (-REACH, REACH) for dy in (-REACH, REACH)]))
        column, row = np.floor(around).astype(int).T
        inside = (np.minimum(column, row) >= 0).all() and (np.maximum(column, row) < self.cells).all()
        return bool(inside and self.layout[row, column].all())

    def is_clear(self, start: NDArray[np.float64], end: NDArray[np.float64]) -> bool:
        """Whether the body fits everywhere on the straight line between two positions [2] in metres."""
        count = 1 + math.ceil(4 * float(np.hypot(*(end - start))))
        return all(self.fits(x, y) for x, y in np.linspace(start, end, count + 1).tolist())

    def target_at(self, xy: NDArray[np.float64]) -> int | None:
        """The index of the target at this position; None if there is none."""
        away = np.hypot(*(self.targets[:, :2] - xy).T)
        return int(away.argmin()) if away.min() <= self.target_radius else None


class Ball:
    """The agent in a maze: everything that changes during an episode."""

    def __init__(self, maze: Maze) -> None:
        self.maze = maze
        self._data = mujoco.MjData(maze.model)
        self.named = maze.named  # index of the requested target
        self.touched = maze.touched.copy()
        self._rng = np.random.RandomState()
        self._rng.set_state(maze.rng.get_state())
        mujoco.mj_copyData(self._data, maze.model, maze.opening)

    def place(self, x: float, y: float, yaw: float) -> None:
        """Put the ball somewhere, at rest."""
        mujoco.mj_resetData(self.maze.model, self._data)
        self._data.qpos[[X, Y, TURN]] = x, y, -yaw
        mujoco.mj_forward(self.maze.model, self._data)
        self.touched[:] = False
        self._touch()

    def step(self, action: int) -> bool:
        """One step of the agent. Returns whether the requested target was touched; then another one is requested."""
        model, data, substeps = self.maze.model, self._data, self.maze.substeps
        before = data.time
        data.ctrl[:] = CONTROLS[action]
        # as in dm_control, which splits a substep in the middle so that positions are up to date after a step
        if self._near_a_target():
            for _ in range(substeps):
                mujoco.mj_step2(model, data)
                mujoco.mj_step1(model, data)
                self._touch()
        else:
            mujoco.mj_step2(model, data)
            mujoco.mj_step(model, data, substeps - 1)
            mujoco.mj_step1(model, data)
        if data.time <= before:
            raise FloatingPointError(f"the physics became unstable (mujoco reset itself) in the maze of seed {self.maze.seed}")
        return self._count()

    def _near_a_target(self) -> bool:
        """Whether a target could be touched within a step. If not, mujoco runs all substeps in one call."""
        limit = self.maze.target_radius + REACH + TOP_SPEED * self.maze.substeps * SUBSTEP
        x, y = self._data.xpos[self.maze.body, :2]
        return any(math.hypot(x - a, y - b) < limit for a, b, _ in self.maze.targets.tolist()) or bool(self.touched.any())

    def _touch(self) -> None:
        pairs = self._data.contact.geom
        if len(pairs):
            for index in {geom for pair in pairs.tolist() for geom in pair}.intersection(self.maze.target_geoms):
                self.touched[self.maze.target_geoms.index(index)] = True

    def _count(self) -> bool:
        """The package's rule: the requested target is rewarded and another one requested; then no target counts as touched."""
        rewarded = False
        for index in np.flatnonzero(self.touched):
            if index == self.named:
                rewarded = True
                while self.touched[self.named]:  # not one that is touched now
                    self.named = self._rng.randint(len(self.touched))
            self.touched[index] = False
        return rewarded

    def draw(self, height: int, width: int) -> NDArray[np.uint8]:
        """The camera's view, [height, width, 3]. A target that overlaps the body at the start is not shown."""
        materials = self.maze.target_materials
        return self.maze.renderer.draw(self._data, height, width, materials[~self.touched], materials[self.touched])

    def depth(self, height: int, width: int) -> NDArray[np.float32]:
        """Depth of `draw` in metres along the camera's axis: [height, width]."""
        materials = self.maze.target_materials
        return self.maze.renderer.depth(self._data, height, width, materials[~self.touched], materials[self.touched])

    @property
    def position(self) -> NDArray[np.float64]:
        """x, y, z of the head in metres, as a copy."""
        return self._data.xpos[self.maze.body].copy()

    @property
    def axes(self) -> NDArray[np.float64]:
        """The head's axes in the world as columns (right, ahead, up): [3, 3], as a copy."""
        return self._data.xmat[self.maze.body].reshape(3, 3).copy()

    @property
    def pose(self) -> NDArray[np.float32]:
        """x, y, 0, yaw, 0."""
        (x, y, _), ahead = self.position, self._data.xmat[self.maze.body][[1, 4]]
        yaw = math.remainder(math.atan2(ahead[1], ahead[0]), math.tau)
        pose = np.array([x, y, 0, yaw, 0], np.float32)
        if pose[3] >= np.float32(math.pi):
            pose[3] = -np.float32(math.pi)
        return pose

    def save(self) -> dict[str, Any]:
        """The state, as numbers and arrays."""
        physics = np.empty(mujoco.mj_stateSize(self.maze.model, STATE))
        mujoco.mj_getState(self.maze.model, self._data, physics, STATE)
        rng: Any = self._rng.get_state(legacy=False)["state"]
        bits = np.asarray(rng["key"], np.int64)
        return {"physics": physics, "named": self.named, "touched": self.touched.copy(), "rng": bits, "rng_at": int(rng["pos"])}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a value of `save`, bit for bit."""
        mujoco.mj_setState(self.maze.model, self._data, np.asarray(state["physics"], np.float64), STATE)
        mujoco.mj_step1(self.maze.model, self._data)  # compute derived quantities
        self.named, self.touched = int(state["named"]), np.array(state["touched"], bool)
        self._rng.set_state(("MT19937", np.asarray(state["rng"], np.uint32), int(state["rng_at"]), 0, 0.0))
