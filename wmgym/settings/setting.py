"""`Setting`: what is fixed by the kind of world, in the ground truth and in the dream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces

from wmgym.kinematics import Kinematics
from wmgym.tasks import Free, Task


@dataclass(frozen=True)
class Truth:
    """One ground-truth id. Entry points are strings, so that nothing heavy is imported before an env is made."""

    id: str
    entry_point: str
    vector_entry_point: str
    kwargs: dict[str, Any] = field(default_factory=dict)  # JSON-able only
    extra: dict[str, spaces.Space] = field(default_factory=dict)  # observations beside the frame; if any, the space is a Dict
    frame_size: int | None = None  # None: the setting's
    is_variant: bool = False  # listed only with `wmgym list --variants`


@dataclass(frozen=True)
class Setting:
    """Everything that is fixed about a kind of world: spaces, actions, keys, tasks, kinematics, openings, walkers, ids."""

    name: str
    frame_actions: spaces.Space  # action space of one frame
    kinematics: Kinematics | None = None  # None: a world of the user's own, with kinematics of its own
    actions: tuple[str, ...] = ()  # names of the discrete actions, or of the numbers of a continuous one
    keys: dict[Any, Any] = field(default_factory=dict)  # for `gymnasium.utils.play`
    tasks: dict[str, Task] = field(default_factory=lambda: {"free": Free()})  # the first is the default
    frame_size: int = 64  # pixels along a side
    fps: float = 10
    opening: tuple[int, ...] = ()  # actions of a live opening after reset
    bundled: tuple[str, ...] = ()  # tasks whose default opening is a bundled clip
    reach: tuple[float, float] = (8.0, 4.0)  # metres ahead and to the side within which a past frame is useful
    has_inertia: bool = False  # motions go on after their actions, so poses are not quite those that were commanded
    has_camera: bool = True  # frames are views from the pose
    extent: float = 64.0  # typical size in metres of the area that an episode covers
    walkers: str = "random"  # default of `wmgym collect --walker`
    truths: tuple[Truth, ...] = ()  # the first is the twin of dreams
    needs_data: bool = False  # openings are recorded drives of the user, which also define the actions

    @property
    def truth(self) -> str | None:
        """The id of the ground truth that dreams imagine."""
        return self.truths[0].id if self.truths else None

    def observation_space(self, truth: Truth | None = None) -> spaces.Space:
        """Observation space of the default task, in the ground truth `truth` or in general."""
        size = (truth.frame_size if truth else None) or self.frame_size
        frame = spaces.Box(0, 255, (size, size, 3), np.uint8)
        if truth is not None and truth.extra:
            return spaces.Dict({**truth.extra, "image": frame})
        return next(iter(self.tasks.values())).observation_space(frame)


def chunk_space(frame_actions: spaces.Space, chunk: int, hold_action: bool) -> spaces.Space:
    """Action space of an env with `chunk` frames per step."""
    if chunk == 1 or hold_action:
        return frame_actions
    if isinstance(frame_actions, spaces.Discrete):
        return spaces.MultiDiscrete([int(frame_actions.n)] * chunk)
    assert isinstance(frame_actions, spaces.Box)
    shape = (chunk, *frame_actions.shape)
    return spaces.Box(np.broadcast_to(frame_actions.low, shape), np.broadcast_to(frame_actions.high, shape), shape, np.float32)
