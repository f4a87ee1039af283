"""Memory Cards (CoME, appendix D.1): a cursor on a table of 4 x 4 cards turns them face up and down. No camera."""

from __future__ import annotations

import math

from gymnasium import spaces

from wmgym.kinematics import DiscreteKinematics
from wmgym.settings.setting import Setting, Truth
from wmgym.tasks import Free

ACTIONS = ("up", "down", "left", "right", "toggle")
HORIZON = 250  # steps of an episode


def zig_zag(back: bool = False) -> tuple[int, ...]:
    """Actions that turn every card once, row by row in a zig-zag, from the top left to the bottom left or back. 31 actions."""
    up, down, left, right, toggle = range(5)
    there = [*[right] * 3, down, *[left] * 3, down, *[right] * 3, down, *[left] * 3]
    moves = [{down: up, left: right, right: left}[move] for move in reversed(there)] if back else there
    return (*(action for move in moves for action in (toggle, move)), toggle)


SETTING = Setting(
    name="memory_cards",
    frame_actions=spaces.Discrete(len(ACTIONS)),
    kinematics=DiscreteKinematics(
        (
            (0, 1, 0, 0, 0),  # the cursor's yaw is always 0, to the right, so up is to its left
            (0, -1, 0, 0, 0),
            (-1, 0, 0, 0, 0),
            (1, 0, 0, 0, 0),
            (0, 0, 0, 0, 0),
        ),
        uncertain=(True, True, False, False, False),  # the edge of the table stops the cursor
        field_of_view=math.radians(90),  # no camera: the whole table is always visible
    ),
    actions=ACTIONS,
    keys={("w",): 0, ("s",): 1, ("a",): 2, ("d",): 3, (" ",): 4},
    tasks={"free": Free(horizon=HORIZON)},
    frame_size=48,
    fps=5,
    opening=(*zig_zag(), *zig_zag(back=True)),  # every card is turned face up, then face down again
    has_camera=False,  # the whole table is always visible
    extent=4.0,
    walkers="cards-random",
    truths=(Truth("MemoryCards-v0", "wmgym.envs.memory_cards:MemoryCardsEnv", "wmgym.envs.memory_cards:MemoryCardsVectorEnv"),),
)
