"""Camera paths that come back, for LoopMem (WorldTrace): commanded motions, walked in a ground truth where nothing blocks them.

    path-aba-N        N chunks straight on, then the same way back
    path-ababa-N      the same twice
    path-polygon-K-N  a polygon of K legs of N chunks and equal turns, walked twice
    path-pan-D        a turn of D degrees and back; two turns onwards from 360 degrees
    path-wander-N     N chunks, each straight on or a turn, chosen at random where nothing blocks, then the same way back
    path-stroll-N     N such chunks without a way back
    path-mirror-D     a turn of D degrees and the same turn back, for any D: the way out mirrored

A chunk is 4 steps, whatever a model's chunk is, so all systems walk the same paths. "The same way back" is the reverse of the way out,
frame by frame, if the setting has an action that steps back (Minecraft); otherwise the walker turns about and walks (Memory Maze). Before
the path the walker turns to a heading that is free, and looks a little to both sides: the frames that a dream observes.

A walker tries each motion on the ground truth's saved state before it commands it; a walk whose motions are blocked fails, and
`wmgym collect` draws another world.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wmgym.agents.scripted import Moves, Walker, WalkFailed, world_of
from wmgym.data.episode import RETURN
from wmgym.geometry import wrap_angle
from wmgym.kinematics import DiscreteKinematics
from wmgym.settings import TABLE

CHUNK = 4  # steps
OPENING = 16  # frames observed before the path
KINDS = ("aba-N", "ababa-N", "polygon-K-N", "pan-D", "wander-N", "stroll-N", "mirror-D")
PATH = "path"  # the segment in which the path is walked
HEADINGS = 24  # tried before a start is given up

_LEAST = {False: 0.99, True: 0.75}  # share of the commanded distance, over a chunk: inertia shortens the first step
_CLIMB = 0.05  # metres


@dataclass(frozen=True)
class Motions:
    """The pure motions among a setting's actions."""

    forward: int
    back: int | None
    left: int
    right: int
    stride: float  # metres per step forward
    turn: float  # radians per turn
    inertia: bool  # motions go on after their actions

    @property
    def tolerances(self) -> tuple[float, float]:
        """Metres and radians within which two views are the same one."""
        return 0.3 if self.inertia else 0.05, 0.35 * self.turn

    def turns(self, angle: float) -> list[int]:
        """The turns that come nearest to an angle in radians, to the left if it is positive."""
        return [self.left if angle > 0 else self.right] * round(abs(angle) / self.turn)

    def reverse(self, actions: Sequence[int]) -> list[int]:
        """The way back along a way of pure motions."""
        opposite = {self.left: self.right, self.right: self.left}
        if self.back is not None:
            opposite |= {self.forward: self.back, self.back: self.forward}
        if all(action in opposite for action in actions):
            return [opposite[action] for action in reversed(actions)]
        about = self.turns(math.pi)
        return [*about, *(opposite.get(a, a) for a in reversed(actions)), *about]


def motions_of(setting: str) -> Motions:
    """ValueError if the setting's actions do not move a camera on their own."""
    place = TABLE.get(setting)
    kinematics = place.kinematics if place else None
    rows = kinematics.egomotion if isinstance(kinematics, DiscreteKinematics) else ()
    found = {_which(row): i for i, row in reversed(list(enumerate(rows)))}  # the first of its kind
    if not {"forward", "left", "right"} <= found.keys():
        raise ValueError(f"paths need actions that step forward and turn to both sides, setting {setting!r} has none")
    forward, left = found["forward"], found["left"]
    assert place is not None
    return Motions(forward, found.get("back"), left, found["right"], rows[forward][0], rows[left][3], place.has_inertia)


def _which(row: Sequence[float]) -> str:
    """What an egomotion is, if it is along one axis only."""
    moved = [axis for axis, value in enumerate(row) if value]
    if moved == [0]:
        return "forward" if row[0] > 0 else "back"
    if moved == [3]:
        return "left" if row[3] > 0 else "right"
    return ""


def path_program(name: str, setting: str) -> Callable[[Walker], Moves]:
    """The program of "aba-4" and the like; ValueError if the name is unknown or the setting has no camera to command."""
    motions = motions_of(setting)
    kind, *numbers = re.split(r"-", name)
    sizes = [int(n) for n in numbers if re.fullmatch(r"[1-9]\d*", n)]
    wanted = {"aba": 1, "ababa": 1, "polygon": 2, "pan": 1, "wander": 1, "stroll": 1, "mirror": 1}.get(kind)
    if wanted is None or len(sizes) != len(numbers) or len(sizes) != wanted or (kind == "polygon" and sizes[0] < 3):
        raise ValueError(f"unknown path {name!r}; known: {', '.join(KINDS)}, with N chunks, K >= 3 legs and D degrees")

    def program(walker: Walker) -> Moves:
        leg = [motions.forward] * (CHUNK * sizes[-1])
        if kind in ("aba", "ababa"):
            way = leg + motions.reverse(leg)
            yield from _opening(walker, motions, way)
            yield from _walk(walker, way * (2 if kind == "ababa" else 1))
        elif kind == "polygon":
            way = (leg + motions.turns(math.tau / sizes[0])) * sizes[0]
            yield from _opening(walker, motions, way)
            yield from _walk(walker, way * 2)
        elif kind == "pan":
            out = motions.turns(math.radians(sizes[0]))
            yield from _opening(walker, motions, [])
            yield from _walk(walker, out * 2 if sizes[0] >= 360 else out + motions.reverse(out))
        elif kind == "mirror":
            out = motions.turns(math.radians(sizes[0]))
            yield from _opening(walker, motions, [])
            yield from _walk(walker, out + motions.reverse(out))
        else:
            yield from _opening(walker, motions, [motions.forward] * CHUNK, closes=False)
            way = yield from _wander(walker, motions, sizes[0])
            if kind == "wander":
                walker.begin(RETURN)
                back = motions.reverse(way)
                if not is_free(walker, back):
                    raise WalkFailed("the way back is blocked")
                yield from back

    return program


def _walk(walker: Walker, way: Sequence[int]) -> Moves:
    walker.begin(PATH)
    yield from way


def _opening(walker: Walker, motions: Motions, way: Sequence[int], *, closes: bool = True) -> Moves:
    """Turn to a heading in which the way is free, then look to both sides and back."""
    walker.begin("opening")
    for _ in range(HEADINGS):
        if is_free(walker, way, closes=closes):
            break
        yield motions.left
    else:
        raise WalkFailed("the path is blocked in all directions")
    yield from look_aside(motions)


def look_aside(motions: Motions) -> list[int]:
    """Look to both sides, back to the heading, and wait: with the first frame, OPENING frames."""
    aside = min(3, (OPENING - 1) // 4)
    return [motions.left] * aside + [motions.right] * 2 * aside + [motions.left] * aside + [0] * (OPENING - 1 - 4 * aside)


def _wander(walker: Walker, motions: Motions, chunks: int) -> Any:
    """Chunks chosen at random among those that are free; half of them straight on. Returns the actions."""
    walker.begin(PATH)
    way: list[int] = []
    for _ in range(chunks):
        straight, turn = [motions.forward] * CHUNK, [motions.left if walker.rng.random() < 0.5 else motions.right] * CHUNK
        chunk = straight if walker.rng.random() < 0.5 and is_free(walker, straight) else turn
        way += chunk
        yield from chunk
    return way


def is_free(walker: Walker, way: Sequence[int], *, closes: bool = False) -> bool:
    """Whether the ground truth walks these actions as commanded: no step is blocked, nothing is climbed. The state is left as it is.

    closes: the way must also end in the view in which it begins (`Motions.tolerances`).
    """
    if not way:
        return True
    setting = world_of(walker.env)
    env, kinematics, motions = walker.env.unwrapped, TABLE[setting].kinematics, motions_of(setting)
    assert isinstance(kinematics, DiscreteKinematics)
    state = env.save_state()  # type: ignore[attr-defined]
    begun = pose = np.asarray(walker.pose, np.float64)
    steps, walked, commanded = 0, 0.0, 0.0
    try:
        for action in way:
            *_, over, cut, info = env.step(action)
            before, pose = pose, np.asarray(info["pose"], np.float64)
            if over or cut or abs(pose[2] - before[2]) > _CLIMB:
                return False
            step = abs(kinematics.egomotion[action][0])
            if step:
                steps, commanded, walked = steps + 1, commanded + step, walked + math.dist(pose[:2], before[:2])
                if steps % CHUNK == 0 and walked < _LEAST[motions.inertia] * commanded:
                    return False
        near, alike = motions.tolerances
        return not closes or (math.dist(pose[:2], begun[:2]) <= near and abs(wrap_angle(float(pose[3] - begun[3]))) <= alike)
    finally:
        env.load_state(state)  # type: ignore[attr-defined]
