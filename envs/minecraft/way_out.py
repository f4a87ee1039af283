"""The opening of task "revisit", which its ground truth walks in `reset`: look around, walk away from the first view, and turn.

Every opening has the same number of steps. The walk is decided by poses alone, so that each engine can take it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wmgym.envs.minecraft.backend import Backend, Pose
from wmgym.settings.minecraft import ACTIONS, LOOK_AROUND
from wmgym.tasks import REVISIT_DISTANCES, horizontal_distance

STEPS = len(LOOK_AROUND) + 36  # of the opening: look around, turn, walk, and turn for the rest
LAST_TURNS = 6  # the least number of turns at the end
WANTED = (3.5, 7.0)  # blocks: where the walk stops; a step is 0.9 blocks
BLOCKED = 0.3  # blocks: a step that leads less far is blocked
WORLDS = 20  # tries, since a walk that begins in a pit leads nowhere
WALK, LEFT, RIGHT = (ACTIONS.index(name) for name in ("forward + jump", "turn left", "turn right"))

See = Callable[[int, int, Pose], None]  # number, action and pose of a step


def walk_out(engine: Backend, rng: np.random.Generator, start: Pose | None, see: See) -> tuple[Pose, Pose]:
    """Open a world and walk out: the last pose, and the first, which is the goal.

    see: called with the number, the action and the pose of each step, from 0 (the first pose; its action is 0). It is called from 0 again
    if a world has no way out and another one is tried. ValueError if there is none in many worlds.
    """
    low, high = REVISIT_DISTANCES
    for _ in range(WORLDS):
        first = engine.reset(int(rng.integers(2**31)), start)
        see(0, 0, first)
        pose = _walk(engine, rng, first, see)
        if not engine.ending and low <= float(horizontal_distance(pose, first)) <= high:
            return pose, first
    where = "where these worlds begin" if start is None else f"start {start[:3].tolist()}"
    raise ValueError(f"no walk leads {low:g} to {high:g} blocks away from {where}: give another start or seed")


def _walk(engine: Backend, rng: np.random.Generator, first: Pose, see: See) -> Pose:
    """Look around, turn to a random side, walk until far enough, turning aside where blocked, and turn left and right for the rest."""
    step = 0

    def move(action: int) -> Pose:
        nonlocal step
        pose, step = engine.step(action), step + 1
        see(step, action, pose)
        return pose

    for action in LOOK_AROUND:
        pose = move(action)
    wanted, turns = rng.uniform(*WANTED), int(rng.integers(-11, 13))
    while step < STEPS - LAST_TURNS and float(horizontal_distance(pose, first)) < wanted:
        if turns:
            pose = move(LEFT if turns > 0 else RIGHT)
            turns -= int(np.sign(turns))
        else:
            before, pose = pose, move(WALK)
            if float(horizontal_distance(pose, before)) < BLOCKED:
                turns = int(rng.choice([-1, 1])) * int(rng.integers(2, 7))
    lefts = step + int(rng.integers(STEPS - step + 1))
    while step < STEPS:
        pose = move(LEFT if step < lefts else RIGHT)
    return pose
