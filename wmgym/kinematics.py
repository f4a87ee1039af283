"""What an action does to a pose when nothing stands in the way: plain functions, named in a checkpoint's config.

A dream needs no simulator: it integrates these, and a learned head corrects what they cannot know (a wall, a slope). Stands
apart from `tasks.py` because the world model needs it and rewards do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

WALK = 4.317 * 0.2  # blocks per env step of 4 ticks at 20 Hz
TURN = math.radians(15)


@dataclass(frozen=True)
class Kinematics:
    """Egomotion per discrete action, and which of its components the world may refuse or add to."""

    name: str
    egomotion: tuple[tuple[float, ...], ...]  # one row per action: forward, left, up, turn, tilt (metres, radians)
    uncertain: tuple[bool, ...]  # components that a learned head may correct: a turn is always obeyed, a step is not
    field_of_view: float  # radians, vertical; frames are square in what we train on

    @property
    def num_actions(self) -> int:
        return len(self.egomotion)

    def motion(self, actions: Tensor) -> Tensor:
        """Discrete actions int64 [...] -> egomotion float32 [..., 5]."""
        table = torch.tensor(self.egomotion, dtype=torch.float32, device=actions.device)
        return table[actions]

    def mask(self, device: torch.device | str = "cpu") -> Tensor:
        """float32 [5]: 1 where a correction is allowed."""
        return torch.tensor(self.uncertain, dtype=torch.float32, device=device)


MINECRAFT = Kinematics(
    "minecraft",
    (
        (0, 0, 0, 0, 0),  # noop
        (WALK, 0, 0, 0, 0),  # forward
        (-WALK, 0, 0, 0, 0),  # back
        (0, WALK, 0, 0, 0),  # strafe left
        (0, -WALK, 0, 0, 0),  # strafe right
        (WALK, 0, 0, 0, 0),  # forward + jump: how high is for the world to say
        (0, 0, 0, TURN, 0),
        (0, 0, 0, -TURN, 0),
        (0, 0, 0, 0, TURN),
        (0, 0, 0, 0, -TURN),
    ),
    (True, True, True, False, False),
    math.radians(75),
)

MEMORY_CARDS = Kinematics(
    "memory_cards",
    (
        (0, 1, 0, 0, 0),  # up: the cursor's heading is always 0, to the right, so up is left of it
        (0, -1, 0, 0, 0),
        (-1, 0, 0, 0, 0),  # left
        (1, 0, 0, 0, 0),
        (0, 0, 0, 0, 0),  # toggle
    ),
    (True, True, False, False, False),  # the edge of the table stops the cursor
    math.radians(90),  # no camera: the whole table is seen from everywhere
)

# Memory Maze: what an action comes to when it is held. The ball has inertia (measured, from rest): forward is 0.22, 0.44, 0.49, 0.50 m in
# the first four steps, and 0.28, 0.06, 0.01 m after it is let go; a turn is 0.25 rad in the first step, 0.32 in the next, and 0.05 after.
ROLL = 0.5  # metres per env step of 0.25 s: 2 m/s
STEER = 0.321  # radians

MEMORY_MAZE = Kinematics(
    "memory_maze",
    (
        (0, 0, 0, 0, 0),  # noop
        (ROLL, 0, 0, 0, 0),  # forward
        (0, 0, 0, STEER, 0),
        (0, 0, 0, -STEER, 0),
        (0.486, 0.071, 0, 0.319, 0),  # forward + left
        (0.486, -0.071, 0, -0.319, 0),  # forward + right
    ),
    (True, True, False, True, False),
    math.radians(80),
)

KINEMATICS = {k.name: k for k in (MINECRAFT, MEMORY_CARDS, MEMORY_MAZE)}


def kinematics(name: str) -> Kinematics:
    """The kinematics of a world by name."""
    if name not in KINEMATICS:
        raise ValueError(f"kinematics must be one of {sorted(KINEMATICS)}, got {name!r}")
    return KINEMATICS[name]
