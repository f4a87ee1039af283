"""What an agent is asked to do, and what it gets for it: plain functions that the ground truth and the dream share.

Poses and goals are float32 rows `[..., 5]` (x, y, z of the feet in blocks, yaw and pitch in radians; axes as in geometry.py); any
number of leading axes, one row per lane. Only array operators are used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Minecraft: one step is 0.2 s; turning and looking is by 15 degrees
MINECRAFT_ACTIONS = (
    "noop",
    "forward",
    "back",
    "strafe left",
    "strafe right",
    "forward + jump",
    "turn left",
    "turn right",
    "look up",
    "look down",
)

# Memory Cards: a cursor on a table of 4 x 4 cards
CARDS_ACTIONS = ("up", "down", "left", "right", "toggle")
CARDS_HORIZON = 250

# Memory Maze: one step is 0.25 s
MEMORY_MAZE_ACTIONS = ("noop", "forward", "turn left", "turn right", "forward + left", "forward + right")
TARGETS_HORIZON = 1000  # steps of the smallest maze
NEAR_HORIZON = 30  # of the task whose first target is near

NAVIGATE_HORIZON = 500  # steps after which the task "navigate" is cut off
FREE_HORIZON = 10_000
ARRIVAL_DISTANCE = 2.0  # blocks, horizontally
ARRIVAL_REWARD = 100.0


def horizontal_distance(pose: Floats, goal: Floats) -> Floats:
    """Blocks from pose to goal, height left out: [...]."""
    return np.hypot(goal[..., 0] - pose[..., 0], goal[..., 1] - pose[..., 1])


def compass(pose: Floats, goal: Floats) -> Floats:
    """Cosine and sine of the goal's bearing, seen from where the pose looks: (1, 0) is straight ahead, (0, 1) to the left. [..., 2]"""
    angle = np.arctan2(goal[..., 1] - pose[..., 1], goal[..., 0] - pose[..., 0]) - pose[..., 3]
    return np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32).clip(-1, 1)


def navigate_arrived(pose: Floats, goal: Floats) -> NDArray[np.bool_]:
    """Whether the goal is reached: [...]."""
    return horizontal_distance(pose, goal) <= ARRIVAL_DISTANCE


def navigate_reward(before: Floats, after: Floats, goal: Floats) -> Floats:
    """Blocks gained towards the goal by one step from `before` to `after`, and a bonus on arrival: [...]."""
    gained = horizontal_distance(before, goal) - horizontal_distance(after, goal)
    return gained + np.float32(ARRIVAL_REWARD) * navigate_arrived(after, goal).astype(np.float32)


def sample_goal(rng: np.random.Generator, pose: Floats, low: float = 8.0, high: float = 32.0) -> Floats:
    """A goal in any direction, `low` to `high` blocks from a pose [5], at its height: float32 [5]. Its yaw looks on from the pose."""
    bearing = rng.uniform(-np.pi, np.pi)
    distance = rng.uniform(low, high)
    return np.array([pose[0] + distance * np.cos(bearing), pose[1] + distance * np.sin(bearing), pose[2], bearing, 0], np.float32)


# ---- tasks and settings as values: what the shells of a dream are told ----


class Task(Protocol):
    """What an agent is asked to do. Any leading axes; frames may be arrays or tensors and are passed on as they are."""

    @property
    def name(self) -> str: ...

    @property
    def horizon(self) -> int:
        """Frames after which an episode is cut off, unless it is told otherwise."""
        ...

    @property
    def needs_goal(self) -> bool: ...

    @property
    def world_rewards(self) -> bool:
        """Whether what the world itself rewards and ends (a reward head) counts too."""
        ...

    def observation_space(self, frame: spaces.Box) -> spaces.Space:
        """What the agent is shown, given the space of one frame."""
        ...

    def observe(self, frames: Any, poses: Floats, goals: Floats) -> Any:
        """Observations [N, ...] in that space."""
        ...

    def choose_goal(self, rng: np.random.Generator, pose: Floats) -> Floats | None:
        """A goal for an episode that begins at a pose [5] and was given none."""
        ...

    def reward(self, before: Floats, after: Floats, goals: Floats) -> Floats:
        """What the frames from `before` to `after` earn: [...]."""
        ...

    def done(self, poses: Floats, goals: Floats) -> NDArray[np.bool_]:
        """Whether the task is over at these poses: [...]."""
        ...


@dataclass(frozen=True)
class Navigate:
    """Get to a place; a compass points to it."""

    name: str = "navigate"
    horizon: int = NAVIGATE_HORIZON
    needs_goal: bool = True
    world_rewards: bool = True
    nearest: float = 8.0  # blocks to the goal, at least
    farthest: float = 32.0

    def observation_space(self, frame: spaces.Box) -> spaces.Space:
        return spaces.Dict(pov=frame, compass=spaces.Box(-1, 1, (2,), np.float32))

    def observe(self, frames: Any, poses: Floats, goals: Floats) -> Any:
        return {"pov": frames, "compass": compass(poses, goals)}

    def choose_goal(self, rng: np.random.Generator, pose: Floats) -> Floats | None:
        return sample_goal(rng, pose, self.nearest, self.farthest)

    def reward(self, before: Floats, after: Floats, goals: Floats) -> Floats:
        return navigate_reward(before, after, goals)

    def done(self, poses: Floats, goals: Floats) -> NDArray[np.bool_]:
        return navigate_arrived(poses, goals)


@dataclass(frozen=True)
class Free:
    """Nothing is asked; a world with a reward head adds its own rewards and ends, unless they are not to count."""

    name: str = "free"
    horizon: int = FREE_HORIZON
    needs_goal: bool = False
    world_rewards: bool = True

    def observation_space(self, frame: spaces.Box) -> spaces.Space:
        return frame

    def observe(self, frames: Any, poses: Floats, goals: Floats) -> Any:
        return frames

    def choose_goal(self, rng: np.random.Generator, pose: Floats) -> Floats | None:
        return None

    def reward(self, before: Floats, after: Floats, goals: Floats) -> Floats:
        return np.zeros(after.shape[:-1], np.float32)

    def done(self, poses: Floats, goals: Floats) -> NDArray[np.bool_]:
        return np.zeros(poses.shape[:-1], bool)


@dataclass(frozen=True)
class Targets(Free):
    """Touch the target whose colour the border of the frame has; the world itself rewards it, and nothing but time ends it."""

    name: str = "targets"
    horizon: int = TARGETS_HORIZON


@dataclass(frozen=True)
class Setting:
    """What is fixed by where an env plays, in truth and in dream."""

    name: str
    frame_actions: spaces.Space  # what one frame is told
    actions: tuple[str, ...] = ()  # what each action does, in words; or each number of a continuous one
    keys: dict[Any, Any] = field(default_factory=dict)  # for `gymnasium.utils.play`
    tasks: dict[str, Task] = field(default_factory=lambda: {"free": Free()})  # the first is the default
    opening: tuple[int, ...] = ()  # the actions that a live opening walks after reset
    bundled: tuple[str, ...] = ()  # tasks that open with shipped clips unless told otherwise
    fps: float = 10
    needs_data: bool = False  # episodes open with recorded drives, which the user brings


# What a player's hands do for each of these actions: keys held, then turns to the left and looks up, in notches of 15 degrees.
MINECRAFT_HANDS: tuple[tuple[tuple[str, ...], int, int], ...] = (
    ((), 0, 0), (("forward",), 0, 0), (("back",), 0, 0), (("left",), 0, 0), (("right",), 0, 0), (("forward", "jump"), 0, 0),
    ((), 1, 0), ((), -1, 0), ((), 0, 1), ((), 0, -1),
)  # fmt: skip
MINECRAFT_KEYS = {("w",): 1, ("s",): 2, ("a",): 3, ("d",): 4, (" ",): 5, ("w", " "): 5, ("j",): 6, ("l",): 7, ("i",): 8, ("k",): 9}
MEMORY_MAZE_KEYS = {("w",): 1, ("a",): 2, ("d",): 3, ("a", "w"): 4, ("d", "w"): 5}
LOOK_AROUND = (MINECRAFT_ACTIONS.index("turn left"),) * 24  # once all the way round, by 15 degrees

CARDS_KEYS: dict[tuple[str, ...], int] = {("w",): 0, ("s",): 1, ("a",): 2, ("d",): 3, (" ",): 4}


def zig_zag(back: bool = False) -> tuple[int, ...]:
    """Turn every card of the table once, line by line in a zig-zag: from the top left to the bottom left, or back. 31 actions."""
    up, down, left, right, toggle = range(5)
    there = [*[right] * 3, down, *[left] * 3, down, *[right] * 3, down, *[left] * 3]
    moves = [{down: up, left: right, right: left}[move] for move in reversed(there)] if back else there
    return (*(action for move in moves for action in (toggle, move)), toggle)


# One waypoint ahead or back, and 15 degrees, in NWM's normalisation; standing still is -1/3, and is what no key means.
_STILL, _AHEAD, _BACK, _TURN = -1 / 3, -1 / 15, -3 / 5, 1 / 12
RECON_KEYS = {
    keys: np.array([ahead, 0, turn], np.float32)
    for keys, ahead, turn in (
        ((), _STILL, 0),
        (("w",), _AHEAD, 0),
        (("s",), _BACK, 0),
        (("a",), _STILL, _TURN),
        (("d",), _STILL, -_TURN),
        (("a", "w"), _AHEAD, _TURN),
        (("d", "w"), _AHEAD, -_TURN),
    )
}


SETTINGS = {
    "recon": Setting("recon", spaces.Box(-1, 1, (3,), np.float32), ("forward", "left", "turn"), RECON_KEYS, fps=4, needs_data=True),
    "minecraft": Setting(
        "minecraft",
        spaces.Discrete(len(MINECRAFT_ACTIONS)),
        MINECRAFT_ACTIONS,
        MINECRAFT_KEYS,
        {"navigate": Navigate(), "navigate-near": Navigate("navigate-near", 100, nearest=4.0, farthest=10.0), "free": Free()},
        LOOK_AROUND,
        fps=5,
    ),
    "memory_cards": Setting(
        "memory_cards",
        spaces.Discrete(len(CARDS_ACTIONS)),
        CARDS_ACTIONS,
        CARDS_KEYS,
        {"free": Free(horizon=CARDS_HORIZON)},
        (*zig_zag(), *zig_zag(back=True)),  # every card is seen, and covered again
        fps=5,
    ),
    "memory_maze": Setting(
        "memory_maze",
        spaces.Discrete(len(MEMORY_MAZE_ACTIONS)),
        MEMORY_MAZE_ACTIONS,
        MEMORY_MAZE_KEYS,
        {"targets": Targets(), "targets-near": Targets("targets-near", NEAR_HORIZON), "free": Free(world_rewards=False)},
        (MEMORY_MAZE_ACTIONS.index("turn left"),) * 20,  # once round, by 0.32 radians
        ("targets", "free"),
        fps=4,
    ),
}
