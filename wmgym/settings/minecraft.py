"""Minecraft: a player in a block world, in first person. One step is 4 game ticks, 0.2 s."""

from __future__ import annotations

import math

from gymnasium import spaces

from wmgym.kinematics import DiscreteKinematics
from wmgym.settings.setting import Setting, Truth
from wmgym.tasks import Free, Navigate, Revisit

ACTIONS = (
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

WALK = 4.317 * 0.2  # blocks per step
TURN = math.radians(15)
FIELD_OF_VIEW = math.radians(75)  # vertical

# A player's input for each of these actions: keys held, turn to the left and look up in notches of 15 degrees.
HANDS: tuple[tuple[tuple[str, ...], int, int], ...] = (
    ((), 0, 0), (("forward",), 0, 0), (("back",), 0, 0), (("left",), 0, 0), (("right",), 0, 0), (("forward", "jump"), 0, 0),
    ((), 1, 0), ((), -1, 0), ((), 0, 1), ((), 0, -1),
)  # fmt: skip

LOOK_AROUND = (ACTIONS.index("turn left"),) * 24  # one full turn

SETTING = Setting(
    name="minecraft",
    frame_actions=spaces.Discrete(len(ACTIONS)),
    kinematics=DiscreteKinematics(
        (
            (0, 0, 0, 0, 0),
            (WALK, 0, 0, 0, 0),
            (-WALK, 0, 0, 0, 0),
            (0, WALK, 0, 0, 0),
            (0, -WALK, 0, 0, 0),
            (WALK, 0, 0, 0, 0),  # a jump: the motion head predicts its height
            (0, 0, 0, TURN, 0),
            (0, 0, 0, -TURN, 0),
            (0, 0, 0, 0, TURN),
            (0, 0, 0, 0, -TURN),
        ),
        uncertain=(True, True, True, False, False),
        field_of_view=FIELD_OF_VIEW,
    ),
    actions=ACTIONS,
    keys={("w",): 1, ("s",): 2, ("a",): 3, ("d",): 4, (" ",): 5, ("w", " "): 5, ("j",): 6, ("l",): 7, ("i",): 8, ("k",): 9},
    tasks={
        "navigate": Navigate(),
        "navigate-near": Navigate("navigate-near", 100, nearest=4.0, farthest=10.0),
        "revisit": Revisit(),
        "free": Free(),
    },
    fps=5,
    opening=LOOK_AROUND,
    walkers="explorer",
    truths=(Truth("Minecraft-v0", "wmgym.envs.minecraft.env:MinecraftEnv", "wmgym.envs.minecraft.vector_env:MinecraftVectorEnv"),),
)
