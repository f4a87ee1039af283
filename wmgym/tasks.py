"""Tasks and their rewards: plain functions that the ground truth and the dream share.

Poses and goals are float32 `[..., 5]` (x, y, z of the feet in blocks, yaw and pitch in radians; axes as in geometry.py) with any number
of leading axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Floats = NDArray[np.float32]

NAVIGATE_HORIZON = 500  # steps after which an episode of task "navigate" is truncated
FREE_HORIZON = 10_000
ARRIVAL_DISTANCE = 2.0  # blocks, horizontally
ARRIVAL_REWARD = 100.0
REVISIT_HORIZON = 100
REVISIT_DISTANCES = (3.0, 8.0)  # blocks, horizontally: from where an episode of task "revisit" begins to its goal
REVISIT_ANGLE = float(np.radians(30))  # between the view and the goal's


def horizontal_distance(pose: Floats, goal: Floats) -> Floats:
    """Horizontal distance in blocks from pose to goal: [...]."""
    return np.hypot(goal[..., 0] - pose[..., 0], goal[..., 1] - pose[..., 1])


def compass(pose: Floats, goal: Floats) -> Floats:
    """Cosine and sine of the goal's bearing minus yaw: [..., 2]. (1, 0) is straight ahead, (0, 1) to the left."""
    angle = np.arctan2(goal[..., 1] - pose[..., 1], goal[..., 0] - pose[..., 0]) - pose[..., 3]
    return np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32).clip(-1, 1)


def navigate_arrived(pose: Floats, goal: Floats) -> NDArray[np.bool_]:
    """Whether the goal is reached: [...]."""
    return horizontal_distance(pose, goal) <= ARRIVAL_DISTANCE


def navigate_reward(before: Floats, after: Floats, goal: Floats) -> Floats:
    """Blocks gained towards the goal from `before` to `after`, plus a bonus on arrival: [...]."""
    gained = horizontal_distance(before, goal) - horizontal_distance(after, goal)
    return gained + np.float32(ARRIVAL_REWARD) * navigate_arrived(after, goal).astype(np.float32)


def view_angle(pose: Floats, goal: Floats) -> Floats:
    """Angle in radians between the directions of view of pose and goal: [...]."""
    level = np.cos(pose[..., 4]) * np.cos(goal[..., 4]) * np.cos(goal[..., 3] - pose[..., 3])
    return np.arccos((level + np.sin(pose[..., 4]) * np.sin(goal[..., 4])).clip(-1, 1))


def revisited(pose: Floats, goal: Floats) -> NDArray[np.bool_]:
    """Whether the view from `pose` is the goal's again: [...]."""
    return navigate_arrived(pose, goal) & (view_angle(pose, goal) <= REVISIT_ANGLE)


def sample_goal(rng: np.random.Generator, pose: Floats, low: float = 8.0, high: float = 32.0) -> Floats:
    """A random goal `low` to `high` blocks from a pose [5], at its height: float32 [5]. Its yaw is its bearing from the pose."""
    bearing = rng.uniform(-np.pi, np.pi)
    distance = rng.uniform(low, high)
    return np.array([pose[0] + distance * np.cos(bearing), pose[1] + distance * np.sin(bearing), pose[2], bearing, 0], np.float32)


# ---- tasks as values ----


class Task(Protocol):
    """Observations, goals, rewards and ends. Arguments may have any leading axes; frames may be arrays or tensors."""

    @property
    def name(self) -> str: ...

    @property
    def horizon(self) -> int:
        """Default number of frames after which an episode is truncated."""
        ...

    @property
    def needs_goal(self) -> bool: ...

    @property
    def goes_back(self) -> bool:
        """Whether the goal is the first view of the opening. Its ground truth walks the opening itself, in `reset`."""
        ...

    @property
    def world_rewards(self) -> bool:
        """Whether rewards and ends from the world's reward head are added."""
        ...

    def observation_space(self, frame: spaces.Box) -> spaces.Space:
        """Space of the observations, given the space of one frame."""
        ...

    def observe(self, frames: Any, poses: Floats, goals: Floats, goal_frames: Any = None) -> Any:
        """Observations [N, ...] in that space. goal_frames: what is seen from the goals, for tasks with `goes_back`."""
        ...

    def choose_goal(self, rng: np.random.Generator, pose: Floats) -> Floats | None:
        """A goal for an episode that starts at a pose [5] without a given goal; None if the task needs none."""
        ...

    def reward(self, before: Floats, after: Floats, goals: Floats) -> Floats:
        """Reward of the step from pose `before` to pose `after`: [...]."""
        ...

    def done(self, poses: Floats, goals: Floats) -> NDArray[np.bool_]:
        """Whether the task is over at these poses: [...]."""
        ...


@dataclass(frozen=True)
class Navigate:
    """Go to a goal position. A compass shows its direction."""

    name: str = "navigate"
    horizon: int = NAVIGATE_HORIZON
    needs_goal: bool = True
    goes_back: bool = False
    world_rewards: bool = True
    nearest: float = 8.0  # least and greatest distance to the goal, in blocks
    farthest: float = 32.0

    def observation_space(self, frame: spaces.Box) -> spaces.Space:
        return spaces.Dict(pov=frame, compass=spaces.Box(-1, 1, (2,), np.float32))

    def observe(self, frames: Any, poses: Floats, goals: Floats, goal_frames: Any = None) -> Any:
        return {"pov": frames, "compass": compass(poses, goals)}

    def choose_goal(self, rng: np.random.Generator, pose: Floats) -> Floats | None:
        return sample_goal(rng, pose, self.nearest, self.farthest)

    def reward(self, before: Floats, after: Floats, goals: Floats) -> Floats:
        return navigate_reward(before, after, goals)

    def done(self, poses: Floats, goals: Floats) -> NDArray[np.bool_]:
        return navigate_arrived(poses, goals)


@dataclass(frozen=True)
class Free:
    """No goal. Rewards and ends come only from the world's reward head, if `world_rewards` is set."""

    name: str = "free"
    horizon: int = FREE_HORIZON
    needs_goal: bool = False
    goes_back: bool = False
    world_rewards: bool = True

    def observation_space(self, frame: spaces.Box) -> spaces.Space:
        return frame

    def observe(self, frames: Any, poses: Floats, goals: Floats, goal_frames: Any = None) -> Any:
        return frames

    def choose_goal(self, rng: np.random.Generator, pose: Floats) -> Floats | None:
        return None

    def reward(self, before: Floats, after: Floats, goals: Floats) -> Floats:
        return np.zeros(after.shape[:-1], np.float32)

    def done(self, poses: Floats, goals: Floats) -> NDArray[np.bool_]:
        return np.zeros(poses.shape[:-1], bool)


@dataclass(frozen=True)
class Targets(Free):
    """Touch the target that has the colour of the frame's border. The reward head rewards it; only the time limit ends an episode."""

    name: str = "targets"
    horizon: int = 1000


@dataclass(frozen=True)
class Revisit:
    """Return to the first view of the opening, which is shown beside the frame.

    The reward is the blocks gained towards its place, plus the radians gained towards its direction, plus a bonus on arrival.
    """

    name: str = "revisit"
    horizon: int = REVISIT_HORIZON
    needs_goal: bool = True
    goes_back: bool = True
    world_rewards: bool = True

    def observation_space(self, frame: spaces.Box) -> spaces.Space:
        return spaces.Dict(pov=frame, goal=frame)

    def observe(self, frames: Any, poses: Floats, goals: Floats, goal_frames: Any = None) -> Any:
        return {"pov": frames, "goal": goal_frames}

    def choose_goal(self, rng: np.random.Generator, pose: Floats) -> Floats | None:
        return None

    def reward(self, before: Floats, after: Floats, goals: Floats) -> Floats:
        gained = horizontal_distance(before, goals) - horizontal_distance(after, goals)
        turned = view_angle(before, goals) - view_angle(after, goals)
        return gained + turned + np.float32(ARRIVAL_REWARD) * revisited(after, goals).astype(np.float32)

    def done(self, poses: Floats, goals: Floats) -> NDArray[np.bool_]:
        return revisited(poses, goals)
