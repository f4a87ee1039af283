"""The published `memory-maze` package: its tasks without the old `gym`, and its variants by name.

The package's `__init__` fails without `gym`, so its modules are loaded without running it. They build a maze as a dm_control task.
`open_task` runs that task's own reset, in the same order and with the same random numbers, with one change: the model is compiled
without its image files (88 textures, 280 MB, of which 11 differ). `renderer.py` supplies those when it draws.
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
from wmgym.extras import install, need
from wmgym.settings.memory_maze import VARIANTS, frame_size

CELL = 2.0  # metres
TEXTURE = re.compile(r"<texture\b[^>]*/>")


@dataclass(frozen=True)
class Variant:
    """The settings that the suffix of an id stands for."""

    name: str
    extra: bool  # observations include positions and directions
    oracle: bool  # a small map with the path to the target is drawn over the frame
    top: bool  # the camera looks down from above
    visible: bool  # low walls, high targets
    six_colours: bool
    control_hz: float
    frame_side: int  # pixels


def variant(name: str) -> Variant:
    """The variant of a suffix. ValueError if there is none of this name."""
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


def check_installed() -> None:
    """ImportError, with the remedy, if one of the packages that every maze needs is not here. Nothing is imported."""
    need("maze", "Memory Maze needs")


def load(module: str) -> Any:
    """A module of the package, such as "tasks". ImportError, with the remedy, if the package is not installed."""
    name = f"memory_maze.{module}"
    if name in sys.modules:
        return sys.modules[name]
    gl.choose()  # before dm_control is imported, since the import chooses a renderer
    check_installed()
    found = importlib.util.find_spec("memory_maze")
    assert found is not None and found.submodule_search_locations is not None
    logging.getLogger("absl").addFilter(_is_relevant)
    is_placeholder = "memory_maze" not in sys.modules
    if is_placeholder:
        sys.modules["memory_maze"] = types.ModuleType("memory_maze")
        sys.modules["memory_maze"].__path__ = list(found.submodule_search_locations)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{error}; Memory Maze needs {install('maze')}") from error
    finally:
        if is_placeholder:
            del sys.modules["memory_maze"]  # so that users with gym can still import the package itself


def _is_relevant(record: logging.LogRecord) -> bool:
    """False for a warning without consequence that every reset would log."""
    return "Cannot set velocity on Entity" not in record.getMessage()


@dataclass(frozen=True)
class OpenedTask:
    """A task that has just been reset."""

    task: Any  # the package's MemoryMazeTask
    physics: Any  # dm_control's, of a model without image files
    rng: Any  # numpy RandomState after the reset
    textures: tuple[str, ...]  # the XML of each texture of the model, in order
    pictures: dict[str, bytes]  # the image files that the textures name


def open_task(cells: int, kind: Variant, seed: int) -> OpenedTask:
    """The state of the package's env after it was made with this seed and reset once. It does not depend on the frame size."""
    make = getattr(_light_tasks(), f"memory_maze_{cells}x{cells}")
    env = make(
        seed=seed, control_freq=kind.control_hz, good_visibility=kind.visible, top_camera=kind.top, randomize_colors=kind.six_colours,
        discrete_actions=False, target_color_in_image=False,
    ).env  # fmt: skip
    env.reset()
    return OpenedTask(env.task, env.light_physics, env.random_state, env.textures, env.task.root_entity.mjcf_model.get_assets())


@cache
def _light_tasks() -> Any:
    """A second copy of the package's tasks module, whose environments compile once, in reset, without image files, and never render."""
    file = load("tasks").__file__
    from dm_control import composer, mjcf

    class Light(composer.Environment):
        textures: tuple[str, ...] = ()
        light_physics: Any = None

        def _recompile_physics_and_update_observables(self) -> None:
            if not hasattr(self, "_mjcf_never_compiled"):
                return  # called by the constructor; reset makes a new maze anyway
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
    """The XML of a texture with a single pixel in place of its image file."""
    xml = texture[0]
    if attribute(xml, "file") is None:
        return xml
    return f'<texture name="{attribute(xml, "name")}" type="{attribute(xml, "type")}" builtin="flat" width="1" height="1"/>'


def attribute(xml: str, name: str) -> str | None:
    """An attribute of an XML element, or None."""
    found = re.search(rf'\b{name}="([^"]*)"', xml)
    return found and found[1]
