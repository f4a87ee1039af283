"""The published `memory-maze` package: its tasks without old `gym`, and its variants by name.

The package's own `__init__` stops where `gym` is missing, so its modules are loaded past it. They build a maze as a dm_control
task; `open_task` runs that task's own reset, in the same order and on the same random numbers, with one change: the model is
compiled without its pictures (88 textures, 280 MB, of which 11 differ), which `maze.py` lends to it when it draws.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import sys
import types
from dataclasses import dataclass
from functools import cache
from typing import Any

from wmgym.envs.memory_maze import gl
from wmgym.settings.memory_maze import VARIANTS, frame_size

CELL = 2.0  # metres
TEXTURE = re.compile(r"<texture\b[^>]*/>")


@dataclass(frozen=True)
class Variant:
    """What a suffix of an id changes."""

    name: str
    extra: bool  # where things are is observed too
    oracle: bool  # a small map with the way to the target is drawn over the frame
    top: bool  # seen from above
    visible: bool  # low walls, high targets
    six_colours: bool
    control_hz: float
    frame_side: int  # pixels


def variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r}; available: {', '.join(map(repr, VARIANTS))}")
    parts = name.split("-")
    return Variant(
        name,
        extra="ExtraObs" in parts,
        oracle="Oracle" in parts,
        top="Top" in parts,
        visible="Vis" in parts,
        six_colours="6CL" in parts,
        control_hz=40.0 if "HiFreq" in parts else 4.0,
        frame_side=frame_size(name),
    )


def load(module: str) -> Any:
    """A module of the package, such as "tasks"."""
    name = f"memory_maze.{module}"
    if name in sys.modules:
        return sys.modules[name]
    gl.choose()  # dm_control settles on a renderer when it is imported
    found = importlib.util.find_spec("memory_maze")
    if found is None or found.submodule_search_locations is None:
        raise ImportError("Memory Maze needs the package memory-maze and what it stands on: pip install 'wmgym[maze]'")
    logging.getLogger("absl").addFilter(_without_harmless)
    mine = "memory_maze" not in sys.modules
    if mine:
        sys.modules["memory_maze"] = types.ModuleType("memory_maze")
        sys.modules["memory_maze"].__path__ = list(found.submodule_search_locations)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{error}; Memory Maze needs pip install 'wmgym[maze]'") from error
    finally:
        if mine:
            del sys.modules["memory_maze"]  # whoever has gym may still import the package itself


def _without_harmless(record: logging.LogRecord) -> bool:
    """Each reset would warn of this; it means nothing here."""
    return "Cannot set velocity on Entity" not in record.getMessage()


@dataclass(frozen=True)
class Opened:
    """A task that has just been reset."""

    task: Any  # the package's MemoryMazeTask
    physics: Any  # dm_control's, over a model without pictures
    rng: Any  # numpy RandomState, as the task left it
    textures: tuple[str, ...]  # the XML of each texture of the model, in order
    pictures: dict[str, bytes]  # the files that those name


def open_task(cells: int, kind: Variant, seed: int) -> Opened:
    """What the package's env is after it was made with this seed and reset once. The side of the frames does not matter to it."""
    make = getattr(_light_tasks(), f"memory_maze_{cells}x{cells}")
    env = make(
        seed=seed, control_freq=kind.control_hz, good_visibility=kind.visible, top_camera=kind.top, randomize_colors=kind.six_colours,
        discrete_actions=False, target_color_in_image=False,
    ).env  # fmt: skip
    env.reset()
    return Opened(env.task, env.light_physics, env.random_state, env.textures, env.task.root_entity.mjcf_model.get_assets())


@cache
def _light_tasks() -> Any:
    """The package's module of tasks once more, but its environments compile once, in reset, without pictures, and draw nothing."""
    file = load("tasks").__file__
    from dm_control import composer, mjcf

    class Light(composer.Environment):
        textures: tuple[str, ...] = ()
        light_physics: Any = None

        def _recompile_physics_and_update_observables(self) -> None:
            if not hasattr(self, "_mjcf_never_compiled"):
                return  # in the constructor: the maze is made anew by reset in any case
            xml = self._task.root_entity.mjcf_model.to_xml_string()
            self.textures = tuple(TEXTURE.findall(xml))
            physics = mjcf.Physics.from_xml_string(TEXTURE.sub(_without_picture, xml))
            self._physics = self._physics_proxy = self.light_physics = physics
            self._hooks.refresh_entity_hooks()
            self._hooks.after_compile(physics, self._random_state)
            self._observation_updater = types.SimpleNamespace(reset=lambda *_: None, get_observation=dict)

    spec = importlib.util.spec_from_file_location("wmgym_memory_maze_tasks", file)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.composer = types.SimpleNamespace(Environment=Light)
    return module


def _without_picture(texture: re.Match[str]) -> str:
    """One pixel in place of a file, under the same name."""
    xml = texture[0]
    if attribute(xml, "file") is None:
        return xml
    return f'<texture name="{attribute(xml, "name")}" type="{attribute(xml, "type")}" builtin="flat" width="1" height="1"/>'


def attribute(xml: str, name: str) -> str | None:
    found = re.search(rf'\b{name}="([^"]*)"', xml)
    return found and found[1]
