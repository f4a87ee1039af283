"""The form of a setting: what is fixed by where an env plays, in truth and in dream."""

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
    extra: dict[str, spaces.Space] = field(default_factory=dict)  # what its observation holds beside the frame; a Dict if any
    frame_size: int | None = None  # where it differs from the setting's
    is_variant: bool = False  # listed only on demand


@dataclass(frozen=True)
class Setting:
    """All that is known of one world: spaces, actions, keys, tasks, kinematics, openings, walkers, ids."""

    name: str
    frame_actions: spaces.Space  # what leads to one frame
    kinematics: Kinematics | None = None  # of actions; None: a world of the user's own, which knows them itself
    actions: tuple[str, ...] = ()  # what each action does, in words; or each number of a continuous one
    keys: dict[Any, Any] = field(default_factory=dict)  # for `gymnasium.utils.play`
    tasks: dict[str, Task] = field(default_factory=lambda: {"free": Free()})  # the first is the default
    frame_size: int = 64  # pixels along a side
    fps: float = 10
    opening: tuple[int, ...] = ()  # the actions that a live opening walks after reset
    bundled: tuple[str, ...] = ()  # tasks that open with shipped clips unless told otherwise
    reach: tuple[float, float] = (8.0, 4.0)  # metres ahead and to the side within which a past view still helps
    has_camera: bool = True  # frames are views from the pose
    extent: float = 64.0  # metres that one usually covers
    walkers: str = "random"  # whose episodes are collected unless told otherwise (`wmgym collect --walker`)
    truths: tuple[Truth, ...] = ()  # the first is what dreams imagine
    needs_data: bool = False  # episodes open with recorded drives, which the user brings, and say what an action means

    @property
    def truth(self) -> str | None:
        """The id of the ground truth that dreams imagine."""
        return self.truths[0].id if self.truths else None

    def observation_space(self, truth: Truth | None = None) -> spaces.Space:
        """What the default task shows, in a truth of one's choice."""
        size = (truth.frame_size if truth else None) or self.frame_size
        frame = spaces.Box(0, 255, (size, size, 3), np.uint8)
        if truth is not None and truth.extra:
            return spaces.Dict({**truth.extra, "image": frame})
        return next(iter(self.tasks.values())).observation_space(frame)
