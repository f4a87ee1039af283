"""The ids of environments and the names of systems. To add a system, add a row to `SYSTEMS` and rows to `DREAMS`.

Classes and modules are named by strings, so that they are imported on first use.
"""

import difflib
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from wmgym import settings
from wmgym.settings import Setting, Truth
from wmgym.settings.setting import chunk_space

DREAM = "wmgym.env:WorldModelEnv"
CHUNK_DREAM = "wmgym.env:WorldModelChunkEnv"  # several frames a step
CHUNK = 4  # frames a step of the systems on the video network
DREAM_VECTOR = "wmgym.vector_env:WorldModelVectorEnv"


@dataclass(frozen=True)
class SystemRow:
    """A system's module, which defines `SYSTEM`, and a summary of its training, if it can be trained."""

    module: str
    trains: str = ""  # the line in `wmgym --help`


SYSTEMS = {
    "worldpack": SystemRow("wmgym.systems.worldpack", "fit a WorldPack world model to stored episodes"),
    "nwm": SystemRow("wmgym.systems.nwm"),
    "video": SystemRow("wmgym.systems.video", "fit the causal video network of WorldTrace, CoME and Echo-Memory to stored episodes"),
    "worldtrace": SystemRow("wmgym.systems.worldtrace"),
    "come": SystemRow("wmgym.systems.come", "fit an expert of CoME to stored episodes, on the weights of a video network"),
    "echo": SystemRow("wmgym.systems.echo", "fine-tune a video checkpoint for one of Echo-Memory's memory families"),
}


@dataclass(frozen=True)
class Row:
    """One id: its classes, its keywords, and for a dream the ground truth that it imagines."""

    id: str
    setting: Setting
    entry_point: str
    vector_entry_point: str
    kwargs: dict[str, Any] = field(default_factory=dict)  # JSON-able only
    chunk: int = 1  # frames per step; without bundled weights those of its checkpoint
    truth: Truth | None = None  # for ground truths
    twin: str | None = None  # for dreams: the id of the ground truth, if there is one

    @property
    def is_dream(self) -> bool:
        return self.truth is None

    @property
    def action_space(self) -> spaces.Space:
        """Action space of its bundled weights."""
        return chunk_space(self.setting.frame_actions, self.chunk, hold_action=False)

    @property
    def observation_space(self) -> spaces.Space:
        """Observation space of its default task. Without bundled weights, a dream's frame size depends on its checkpoint."""
        return self.setting.observation_space(self.truth)


def dream(prefix: str, setting: str, checkpoint: str | None, memory: str, system: str | None = None) -> Row:
    """A row for an imagined id. Its twin is also a keyword, since the dream steps it for live openings.

    system: where it is not the checkpoint's own. The systems on the video network make several frames a step.
    """
    place = settings.get(setting)
    words = "".join(word.capitalize() for word in setting.split("_"))
    kwargs = {"setting": setting, "checkpoint": checkpoint, "memory": memory, "twin": place.truth}
    kwargs |= {} if system is None else {"system": system}
    entry_point = DREAM if system is None else CHUNK_DREAM
    chunk = 1 if system is None else CHUNK
    return Row(f"{prefix}-{words}-v0", place, entry_point, DREAM_VECTOR, kwargs, chunk, twin=place.truth)


DREAMS = (
    dream("WorldPack", "minecraft", "worldpack-minecraft", "worldpack"),
    dream("NWM", "minecraft", "worldpack-minecraft", "none"),
    dream("WorldPack", "memory_maze", "worldpack-memory-maze", "worldpack"),
    dream("NWM", "memory_maze", "worldpack-memory-maze", "none"),
    dream("WorldPack", "recon", None, "worldpack"),
    dream("NWM", "recon", None, "none"),
    dream("WorldTrace", "minecraft", "video-minecraft-micro", "landmark", "worldtrace"),
    dream("WorldTrace", "memory_maze", "video-memory-maze-micro", "landmark", "worldtrace"),
    dream("CoME", "minecraft", "video-minecraft-micro", "ltm", "come"),
    dream("CoME", "memory_maze", "video-memory-maze-micro", "ltm", "come"),
    dream("CoME", "memory_cards", None, "ltm", "come"),
    dream("CoME", "recon", None, "ltm", "come"),
    dream("Echo", "minecraft", None, "block_wise", "echo"),
    dream("Echo", "memory_maze", None, "block_wise", "echo"),
)

TABLE = (
    *(Row(t.id, place, t.entry_point, t.vector_entry_point, t.kwargs, truth=t) for place in settings.TABLE.values() for t in place.truths),
    *DREAMS,
)


def default_checkpoint(setting: str) -> str:
    """Default weights of the command line: those of the setting's first dream with bundled weights."""
    for row in DREAMS:
        if row.setting.name == setting and row.kwargs["checkpoint"] is not None:
            return row.kwargs["checkpoint"]
    raise ValueError(f"no dream of setting {setting!r} has bundled weights: give a checkpoint")


def register_all() -> None:
    """Register all rows of the table with Gymnasium."""
    for row in TABLE:
        gym.register(id=row.id, entry_point=row.entry_point, vector_entry_point=row.vector_entry_point, kwargs=row.kwargs)


def row_of(id: str) -> Row:
    """The row of an id, with or without the `wmgym:` prefix."""
    name = id.removeprefix("wmgym:")
    for row in TABLE:
        if row.id == name:
            return row
    raise ValueError(f"unknown environment id {id!r}; nearest: {', '.join(nearest_ids(name))}; `wmgym list` shows all")


def nearest_ids(name: str) -> list[str]:
    """The three known ids that are written most like `name`, capitals aside."""
    known = {row.id.lower(): row.id for row in TABLE}
    return [known[id] for id in difflib.get_close_matches(name.lower(), known, n=3, cutoff=0)]
