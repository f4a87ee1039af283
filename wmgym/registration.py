"""The ids of environments and the names of systems. To add a system, add a row to `SYSTEMS` and rows to `DREAMS`.

Everything heavy is named by a string, so that it is imported when it is first used.
"""

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from wmgym import settings
from wmgym.settings import Setting, Truth

DREAM = "wmgym.env:WorldModelEnv"
DREAM_VECTOR = "wmgym.vector_env:WorldModelVectorEnv"


@dataclass(frozen=True)
class SystemRow:
    """Where a system is found: a module that holds `SYSTEM`, and what its training does, if it can be trained."""

    module: str
    trains: str = ""  # a line for `wmgym --help`


SYSTEMS = {
    "worldpack": SystemRow("wmgym.systems.worldpack", "fit a WorldPack world model to stored episodes"),
    "nwm": SystemRow("wmgym.systems.nwm"),
    "video": SystemRow("wmgym.systems.video", "fit the causal video network of WorldTrace, CoME and Echo-Memory to stored episodes"),
    "worldtrace": SystemRow("wmgym.systems.worldtrace"),
}


@dataclass(frozen=True)
class Row:
    """One id: where its class is, what it is made with, and which id it imagines."""

    id: str
    setting: Setting
    entry_point: str
    vector_entry_point: str
    kwargs: dict[str, Any] = field(default_factory=dict)  # JSON-able only
    truth: Truth | None = None  # of a ground truth
    twin: str | None = None  # the ground-truth id of a dream

    @property
    def is_dream(self) -> bool:
        return self.truth is None

    @property
    def observation_space(self) -> spaces.Space:
        """What its default task shows. Dreams without bundled weights show frames of the size that theirs have."""
        return self.setting.observation_space(self.truth)


def dream(prefix: str, setting: str, checkpoint: str | None, memory: str) -> Row:
    """A row for an imagined id. Its twin is a keyword too, since the dream walks it for its opening."""
    place = settings.get(setting)
    words = "".join(word.capitalize() for word in setting.split("_"))
    kwargs = {"setting": setting, "checkpoint": checkpoint, "memory": memory, "twin": place.truth}
    return Row(f"{prefix}-{words}-v0", place, DREAM, DREAM_VECTOR, kwargs, twin=place.truth)


DREAMS = (
    dream("WorldPack", "minecraft", "worldpack-minecraft", "worldpack"),
    dream("NWM", "minecraft", "worldpack-minecraft", "none"),
    dream("WorldPack", "memory_maze", "worldpack-memory-maze", "worldpack"),
    dream("NWM", "memory_maze", "worldpack-memory-maze", "none"),
    dream("WorldPack", "recon", None, "worldpack"),
    dream("NWM", "recon", None, "none"),
)

TABLE = (
    *(Row(t.id, place, t.entry_point, t.vector_entry_point, t.kwargs, t) for place in settings.TABLE.values() for t in place.truths),
    *DREAMS,
)


def default_checkpoint(setting: str) -> str:
    """The bundled weights that programs use by default: those of the setting's first dream that has any."""
    for row in DREAMS:
        if row.setting.name == setting and row.kwargs["checkpoint"] is not None:
            return row.kwargs["checkpoint"]
    raise ValueError(f"no dream of setting {setting!r} has bundled weights: give a checkpoint")


def register_all() -> None:
    """Put every row of the table into Gymnasium's registry."""
    for row in TABLE:
        gym.register(id=row.id, entry_point=row.entry_point, vector_entry_point=row.vector_entry_point, kwargs=row.kwargs)


def row_of(id: str) -> Row:
    """The row of an id, with or without the `wmgym:` prefix."""
    name = id.removeprefix("wmgym:")
    for row in TABLE:
        if row.id == name:
            return row
    raise ValueError(f"unknown environment id {id!r}; known: {', '.join(row.id for row in TABLE)}")
