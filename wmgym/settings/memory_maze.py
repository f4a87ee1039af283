"""Memory Maze (Pasukonis et al. 2022): touch the target that has the colour of the frame's border. One step is 0.25 s."""

from __future__ import annotations

import math

import numpy as np
from gymnasium import spaces

from wmgym.kinematics import DiscreteKinematics
from wmgym.settings.setting import Setting, Truth
from wmgym.tasks import Free, Targets

ACTIONS = ("noop", "forward", "turn left", "turn right", "forward + left", "forward + right")

# Motion per step of a held action. The ball has inertia (measured, from rest): forward moves it 0.22, 0.44, 0.49, 0.50 m in the first
# four steps, and 0.28, 0.06, 0.01 m after release; a turn is 0.25 rad in the first step, 0.32 in the next, and 0.05 after release.
ROLL = 0.5  # metres per step: 2 m/s
STEER = 0.321  # radians
FIELD_OF_VIEW = math.radians(80)  # vertical

LOOK_AROUND = (ACTIONS.index("turn left"),) * 20  # one full turn and 4 degrees more

STEPS_PER_SECOND = 4
TIME_LIMITS = {9: 250, 11: 500, 13: 750, 15: 1000}  # seconds per episode, by cells along a side (without the outer walls)
NUM_TARGETS = {9: 3, 11: 4, 13: 5, 15: 6}
NEAR_HORIZON = 30  # steps of an episode of task "targets-near"
BEHIND_HORIZON = 40  # of task "targets-behind": a half turn takes 10 steps, and the longest way 12

ENTRY_POINTS = "wmgym.envs.memory_maze.env:MemoryMazeEnv", "wmgym.envs.memory_maze.vector_env:MemoryMazeVectorEnv"
VARIANTS = (
    "", "Vis", "HD", "Top", "ExtraObs", "ExtraObs-Vis", "ExtraObs-Top", "Oracle", "Oracle-Top", "Oracle-ExtraObs",
    "HiFreq", "HiFreq-Vis", "HiFreq-HD", "6CL", "6CL-Top", "6CL-ExtraObs",
)  # fmt: skip


def frame_size(variant: str) -> int:
    """Side in pixels of the frames of upstream's variant."""
    return 256 if {"Top", "HD"} & set(variant.split("-")) else 64


def extra_observations(cells: int, variant: str) -> dict[str, spaces.Space]:
    """Observations of variants with `ExtraObs` beside the frame, with upstream's names. Positions are in grid coordinates."""
    parts = variant.split("-")
    if "ExtraObs" not in parts:
        return {}
    count = NUM_TARGETS[cells]

    def inside(*shape: int) -> spaces.Box:
        return spaces.Box(0, cells, shape, np.float64)

    def apart(*shape: int) -> spaces.Box:
        return spaces.Box(-2 * cells, 2 * cells, shape, np.float64)

    return {
        "target_color": spaces.Box(0, 1, (3,), np.float64),
        "agent_pos": inside(2),
        "agent_dir": spaces.Box(-1, 1, (2,), np.float64),
        "targets_vec": apart(count, 2),
        "targets_pos": inside(count, 2),
        "target_vec": apart(2),
        "target_pos": inside(2),
        "maze_layout": spaces.Box(0, 2 if "Oracle" in parts else 1, (cells, cells), np.uint8),  # 1: free, 2: on the oracle's path
    }


def _truth(cells: int, variant: str) -> Truth:
    """One of upstream's ids."""
    name = "-".join(filter(None, ("MemoryMaze", f"{cells}x{cells}", variant, "v0")))
    extra = extra_observations(cells, variant)
    return Truth(name, *ENTRY_POINTS, {"cells": cells, "variant": variant}, extra, frame_size(variant), is_variant=variant != "")


SETTING = Setting(
    name="memory_maze",
    frame_actions=spaces.Discrete(len(ACTIONS)),
    kinematics=DiscreteKinematics(
        (
            (0, 0, 0, 0, 0),
            (ROLL, 0, 0, 0, 0),
            (0, 0, 0, STEER, 0),
            (0, 0, 0, -STEER, 0),
            (0.486, 0.071, 0, 0.319, 0),
            (0.486, -0.071, 0, -0.319, 0),
        ),
        uncertain=(True, True, False, True, False),
        field_of_view=FIELD_OF_VIEW,
    ),
    has_inertia=True,
    actions=ACTIONS,
    keys={("w",): 1, ("a",): 2, ("d",): 3, ("a", "w"): 4, ("d", "w"): 5},
    tasks={
        "targets": Targets(horizon=STEPS_PER_SECOND * TIME_LIMITS[9]),
        "targets-near": Targets("targets-near", NEAR_HORIZON),
        "targets-behind": Targets("targets-behind", BEHIND_HORIZON),
        "free": Free(world_rewards=False),
    },
    fps=STEPS_PER_SECOND,
    opening=LOOK_AROUND,
    bundled=("targets", "free"),
    reach=(4.0, 1.5),  # corridors are 2 m wide, so walls hide what is a few metres to the side
    extent=20.0,
    walkers="explorer",
    truths=tuple(_truth(cells, variant) for cells in TIME_LIMITS for variant in VARIANTS),
)
