"""The table of environment ids. To add an environment, add a row.

Entry points are strings, so that nothing heavy is imported before an environment is made.
"""

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

DREAM = "wmgym.env:WorldModelEnv"
DREAM_VECTOR = "wmgym.vector_env:WorldModelVectorEnv"


@dataclass(frozen=True)
class World:
    """What a ground truth and its dreams share, in words for `wmgym list` (a test holds the words to the spaces)."""

    tasks: tuple[str, ...]  # the first is the default
    observation: str
    action: str


RECON = World(("free",), "64x64x3 uint8", "3 float32")  # frames have the size of the weights, which the user brings
MINECRAFT = World(("navigate", "navigate-near", "free"), "compass 2 float32, pov 64x64x3 uint8", "Discrete(10)")
MEMORY_CARDS = World(("free",), "48x48x3 uint8", "Discrete(5)")


@dataclass(frozen=True)
class Row:
    """One id: where its class is, what it is made with, and which id it imagines."""

    id: str
    world: World
    entry_point: str
    vector_entry_point: str
    kwargs: dict[str, Any] = field(default_factory=dict)  # JSON-able only
    twin: str | None = None  # the ground-truth id of an imagined one


def dream(id: str, world: World, twin: str | None, **kwargs: Any) -> Row:
    """A row for an imagined id; its twin is also a keyword, since the dream walks it for its opening."""
    return Row(id, world, DREAM, DREAM_VECTOR, {**kwargs, "twin": twin}, twin)


MAZE = "wmgym.envs.memory_maze.env:MemoryMazeEnv", "wmgym.envs.memory_maze.vector_env:MemoryMazeVectorEnv"
MAZE_VARIANTS = (
    "", "Vis", "HD", "Top", "ExtraObs", "ExtraObs-Vis", "ExtraObs-Top", "Oracle", "Oracle-Top", "Oracle-ExtraObs",
    "HiFreq", "HiFreq-Vis", "HiFreq-HD", "6CL", "6CL-Top", "6CL-ExtraObs",
)  # fmt: skip


def maze(cells: int, variant: str) -> Row:
    """A row for one of upstream's ids."""
    side = 256 if "Top" in variant or "HD" in variant else 64
    frame = f"{side}x{side}x3 uint8"
    count = cells // 2 - 1
    facts = (
        f"agent_dir 2 float64, agent_pos 2 float64, image {frame}, maze_layout {cells}x{cells} uint8, target_color 3 float64, "
        f"target_pos 2 float64, target_vec 2 float64, targets_pos {count}x2 float64, targets_vec {count}x2 float64"
    )
    world = World(("targets", "targets-near", "free"), facts if "ExtraObs" in variant else frame, "Discrete(6)")
    name = "-".join(filter(None, ("MemoryMaze", f"{cells}x{cells}", variant, "v0")))
    return Row(name, world, *MAZE, {"cells": cells, "variant": variant})


IN_MINECRAFT = {"setting": "minecraft", "context": "live"}
IN_A_MAZE = {"setting": "memory_maze", "checkpoint": "worldpack-memory-maze"}
SMALLEST = maze(9, "")

TABLE = (
    Row("Minecraft-v0", MINECRAFT, "wmgym.envs.minecraft.env:MinecraftEnv", "wmgym.envs.minecraft.vector_env:MinecraftVectorEnv"),
    dream("WorldPack-Minecraft-v0", MINECRAFT, "Minecraft-v0", checkpoint="worldpack-minecraft", memory="worldpack", **IN_MINECRAFT),
    dream("NWM-Minecraft-v0", MINECRAFT, "Minecraft-v0", checkpoint="worldpack-minecraft", memory="none", **IN_MINECRAFT),
    *(maze(cells, variant) for cells in (9, 11, 13, 15) for variant in MAZE_VARIANTS),
    dream("WorldPack-MemoryMaze-v0", SMALLEST.world, SMALLEST.id, memory="worldpack", **IN_A_MAZE),
    dream("NWM-MemoryMaze-v0", SMALLEST.world, SMALLEST.id, memory="none", **IN_A_MAZE),
    Row("MemoryCards-v0", MEMORY_CARDS, "wmgym.envs.memory_cards:MemoryCardsEnv", "wmgym.envs.memory_cards:MemoryCardsVectorEnv"),
    dream("WorldPack-Recon-v0", RECON, None, checkpoint=None, memory="worldpack", setting="recon"),
    dream("NWM-Recon-v0", RECON, None, checkpoint=None, memory="none", setting="recon"),
)


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
