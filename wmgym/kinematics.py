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

    action_size = 0  # numbers in an action; 0: actions are counted
    aspect = 1.0  # width to height of the view

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


@dataclass(frozen=True)
class Displacement:
    """Continuous actions: a displacement in the frame of the pose it starts from, normalised as NWM does it for one dataset.

    (x, y) is divided by `spacing` and brought from [low, high] to [-1, 1], offset included: standing still is (-1/3, 0), not 0. The turn
    is divided by pi. A displacement over several steps lies outside of [-1, 1], and is normalised all the same.
    """

    spacing: float = 0.25  # metres between waypoints: about one step's way
    low: tuple[float, float] = (-2.5, -4.0)  # x, y in waypoints
    high: tuple[float, float] = (5.0, 4.0)
    rate: float = 4.0  # frames per second
    field_of_view: float = 1.309  # radians, vertical
    aspect: float = 4 / 3  # width to height of the view, before it is squeezed into a square frame

    name = "recon"
    action_size = 3
    num_actions = 0
    uncertain = (False,) * 5  # what was done is what was measured

    def __post_init__(self) -> None:
        if not (self.spacing > 0 and self.rate > 0 and self.aspect > 0 and 0 < self.field_of_view < math.pi):
            raise ValueError(f"spacing, rate, aspect and field_of_view must be positive (the last below pi), got {self}")
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")

    def motion(self, actions: Tensor) -> Tensor:
        """Normalised displacements [..., 3] -> egomotion float32 [..., 5]."""
        low, span = self._scale(actions.device)
        xy = ((actions[..., :2].float() + 1) / 2 * span + low) * self.spacing
        still = torch.zeros_like(xy[..., :1])
        return torch.cat([xy, still, actions[..., 2:].float() * math.pi, still], -1)

    def action(self, egomotion: Tensor) -> Tensor:
        """The inverse of `motion`: egomotion [..., 5] -> float32 [..., 3]. Height and tilt have no part in it."""
        low, span = self._scale(egomotion.device)
        xy = 2 * (egomotion[..., :2].float() / self.spacing - low) / span - 1
        return torch.cat([xy, egomotion[..., 3:4].float() / math.pi], -1)

    def mask(self, device: torch.device | str = "cpu") -> Tensor:
        """float32 [5]: zeros, since nothing is to be corrected."""
        return torch.zeros(5, device=device)

    def _scale(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        low = torch.tensor(self.low, device=device)
        return low, torch.tensor(self.high, device=device) - low


KINEMATICS = {k.name: k for k in (MINECRAFT, MEMORY_CARDS, MEMORY_MAZE)}


def kinematics(name: str, displacement: Displacement | None = None) -> Kinematics | Displacement:
    """The kinematics of a world by name; those of "recon" are told by its data."""
    if name == Displacement.name:
        return displacement or Displacement()
    if name not in KINEMATICS:
        raise ValueError(f"kinematics must be one of {sorted([*KINEMATICS, Displacement.name])}, got {name!r}")
    return KINEMATICS[name]
