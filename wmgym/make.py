"""Build a `Shell` from an env's keywords: check every keyword, load the world, combine the parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from wmgym import settings
from wmgym.core import World
from wmgym.episode import Identity
from wmgym.openings import ClipOpenings, DriveOpenings, LiveOpenings, Openings, check_opening, read_clips
from wmgym.settings import Setting
from wmgym.shell import Shell
from wmgym.tasks import Free, Task
from wmgym.vectors import check_count

WEIGHTS = Path(__file__).parent / "weights"
OPENING_KINDS = ("live", "bundled")


@dataclass(frozen=True)
class DreamConfig:
    """Keywords of all dreams. A system can have more of its own (`systems.System.options`)."""

    checkpoint: str | World | None = None
    """Bundled name, path or hub name; or a `core.World` of your own, together with `setting`, `num_actions` or `action_space`."""
    system: str | None = None
    """The system that runs the weights. Default: the checkpoint's."""
    setting: str | None = None
    """The kind of world, which defines actions, tasks and openings: "minecraft", "memory_maze", ..."""
    num_actions: int | None = None
    """Number of discrete actions, without a setting."""
    action_space: gym.Space | None = None
    """Action space of one frame, Discrete or Box, without a setting."""
    task: str | Task | None = None
    """A task of the setting by name, or a `tasks.Task` of your own. Default: the setting's first."""
    memory: str | None = None
    """The memory that the weights use; "none" works for every system. Default: the checkpoint's."""
    memory_budget: int | None = None
    """Greatest number of frames in memory."""
    denoise_steps: int | None = None
    """Number of sampler steps per chunk."""
    device: str | None = None
    """"auto" (a GPU if there is one), "cpu", "cuda", ..."""
    dtype: str | None = None
    """"auto", "float32", "bfloat16" or "float16"."""
    graph: bool | str = False
    """True: run each step as a CUDA graph (`captured.py`), which needs an NVIDIA GPU; "auto": where there is one. Not yet run on any."""
    hold_action: bool = False
    """For worlds with F frames per step: take one action for all F frames instead of F actions."""
    horizon: int | None = None
    """Frames after which an episode is truncated. Default: the task's."""
    opening: Any = None
    """"live" (the twin is stepped), "bundled" (clips in the package), a dict of frames, actions and poses, or a list of such dicts.
    Default: bundled if there are clips for the task, else live."""
    data: str | None = None
    """Folder of recorded drives, for settings whose openings come from them."""
    twin: str | None = None
    """Id of the ground truth."""
    twin_kwargs: Mapping[str, Any] | None = None
    """Keywords of the ground truth."""

    def __post_init__(self) -> None:
        for name in ("horizon", "memory_budget", "denoise_steps", "num_actions"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if not isinstance(self.hold_action, (bool, np.bool_)):
            raise ValueError(f"hold_action must be True or False, got {self.hold_action!r}")
        if not isinstance(self.graph, bool) and self.graph != "auto":
            raise ValueError(f"graph must be True, False or 'auto', got {self.graph!r}")
        if isinstance(self.opening, str) and self.opening not in OPENING_KINDS:
            raise ValueError(f"opening must be 'live', 'bundled' or a dict of frames, actions and poses, got {self.opening!r}")
        taken = sorted({"task", "size"} & set(self.twin_kwargs or {}))
        if taken:
            raise ValueError(f"twin_kwargs must not contain {taken}: they follow from the task and the checkpoint")
        if self.opening == "live" and self.twin is None:
            raise ValueError("opening='live' needs a ground truth, and this env has none: use 'bundled' or give an opening")


def make_shell(keywords: Mapping[str, Any]) -> Shell:
    """The shell of an env. A wrong value raises `ValueError`, an unknown keyword `TypeError`."""
    config, options = read_keywords(keywords)
    place = _setting(config)
    if config.checkpoint is None:
        loaders = ", ".join(["a path", "'hub:OWNER/NAME'", *_other_loaders()])
        raise ValueError(f"this id has no bundled weights: give checkpoint= ({loaders}){_training(config.system)}")
    if place.needs_data and config.data is None:
        raise ValueError(f"openings of setting {place.name!r} come from recorded drives: give data= (a folder of drives)")
    if config.data is not None and not place.needs_data:
        raise ValueError(f"setting {place.name!r} takes no data, got data={config.data!r}")
    task = _task(place, config.task)
    world = _world(config, options)
    identity = identify(world, place, task, config.horizon or task.horizon)
    shell = Shell(_with_graphs(world, config.graph), task, place, None, identity, hold_action=bool(config.hold_action))
    shell.openings = _openings(shell, world, config)
    return shell


def _training(system: str | None) -> str:
    """How to train weights for a system, as the end of a message."""
    from wmgym import systems  # here, so that a world of your own does not load them

    known = systems.get(system) if system is not None else None
    base = known.base or known.name if known is not None else ""
    return f", or train weights with `wmgym train {base}`" if base and systems.get(base).train else ""


def read_keywords(keywords: Mapping[str, Any]) -> tuple[DreamConfig, dict[str, Any]]:
    """Split keywords into those of all dreams and the rest, which belong to the system. `context` is the old name of `opening`."""
    given = dict(keywords)
    if "context" in given:
        context = given.pop("context")
        if context is not None and given.get("opening") is not None:
            raise ValueError("opening and context are two names of one keyword: give one of them")
        given["opening"] = context if context is not None else given.get("opening")
    shared = {f.name for f in fields(DreamConfig)}
    return DreamConfig(**{k: v for k, v in given.items() if k in shared}), {k: v for k, v in given.items() if k not in shared}


def identify(world: World, setting: Setting, task: Task, horizon: int) -> Identity:
    """The identity of an env in its saved states, apart from its id."""
    from wmgym.world_model import WorldModel  # here, so that a world of your own does not load it

    where = (setting.name, task.name)
    if not isinstance(world, WorldModel):
        return Identity("", type(world).__name__, "", *where, "", "", "", world.chunk, int(horizon))
    run, whence = world.settings, world.provenance
    how = {"memories": list(map(_describe, run.memories)), "sampler": _describe(run.sampler), "options": _describe(run.options)}
    text = json.dumps({**how, "pose_source": run.pose_source}, sort_keys=True, default=str)
    return Identity("", whence.system, whence.weights, *where, whence.memory, text, world.dtype_name, world.chunk, int(horizon))


def _describe(value: Any) -> dict[str, Any]:
    """A part of a world as plain values that are equal in every process."""
    return {"kind": type(value).__name__, **(_plain(value) if is_dataclass(value) else {})}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.compare}
    if isinstance(value, Mapping):
        return {key: _plain(held) for key, held in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return [_plain(held) for held in value] if isinstance(value, (list, tuple)) else value


def _other_loaders() -> list[str]:
    from wmgym import systems

    return [system.loader.usage for system in map(systems.get, systems.names()) if system.loader is not None]


def _setting(config: DreamConfig) -> Setting:
    name, count, space = config.setting, config.num_actions, config.action_space
    if name is not None:
        if count is not None or space is not None:
            raise ValueError(f"setting {name!r} defines the actions: num_actions and action_space must not be given")
        return settings.get(name)
    if (count is None) == (space is None):
        raise ValueError("give one of setting, num_actions and action_space")
    space = space if space is not None else spaces.Discrete(int(count or 0))
    if not isinstance(space, (spaces.Discrete, spaces.Box)):
        raise ValueError(f"action_space must be Discrete or Box, got {space}")
    if isinstance(space, spaces.Discrete) and space.start != 0:
        raise ValueError(f"a Discrete action_space must start at 0, got {space}")
    words = tuple(f"action {i}" for i in range(int(space.n))) if isinstance(space, spaces.Discrete) else ()
    return Setting("own", space, actions=words)


def _task(setting: Setting, task: str | Task | None) -> Task:
    if task is None:
        return next(iter(setting.tasks.values()), Free())
    if not isinstance(task, str):
        return task
    if task not in setting.tasks:
        raise ValueError(f"task must be one of {sorted(setting.tasks)}, got {task!r}")
    return setting.tasks[task]


_RUN_KEYWORDS = ("system", "memory", "memory_budget", "denoise_steps", "device", "dtype")  # how a checkpoint is loaded


def _world(config: DreamConfig, options: Mapping[str, Any]) -> World:
    given = {name: getattr(config, name) for name in _RUN_KEYWORDS if getattr(config, name) not in (None, "auto")}
    if isinstance(config.checkpoint, (str, Path)):
        from wmgym.checkpoint import load_world  # here, so that a world of your own does not load it

        return load_world(str(config.checkpoint), options=options, **given)
    if options:
        raise TypeError(f"unexpected keyword argument {min(options)!r}: an env of a world object takes {', '.join(_shared_names())}")
    if given:
        raise ValueError(f"a world object has its own {', '.join(given)}: do not give {given}")
    assert config.checkpoint is not None
    return config.checkpoint


def _with_graphs(world: World, graph: bool | str) -> World:
    if graph is False:
        return world
    from wmgym.captured import with_graphs  # here, so that a world of your own does not load it

    return with_graphs(world, graph)


def _shared_names() -> list[str]:
    return [f.name for f in fields(DreamConfig) if f.name not in _RUN_KEYWORDS]


def _openings(shell: Shell, world: World, config: DreamConfig) -> Openings | None:
    opening, twin = config.opening, config.twin
    if opening is None and config.data is not None:
        return _drives(world, config.data)
    suited = shell.setting.bundled
    if opening is None:
        shipped = shell.task.name in suited if suited else twin is None and _clips_of(shell).is_file()
        opening = "bundled" if shipped else "live" if twin else None
    if opening is None:
        return None
    if isinstance(opening, str):
        if opening == "live":
            assert twin is not None
            back = shell.task.goes_back
            actions, given = () if back else shell.setting.opening, {**shell.truth_keywords(), **(config.twin_kwargs or {})}
            return LiveOpenings(twin, actions, walks_itself=back, **given)
        if suited and shell.task.name not in suited:
            tasks = ", ".join(suited)
            raise ValueError(f"bundled clips are for the tasks {tasks}, not for {shell.task.name!r}: give opening='live' or frames")
        return read_clips(_clips_of(shell))
    clips = [opening] if isinstance(opening, Mapping) else list(opening)
    return ClipOpenings([check_opening(clip, world.frame_shape, shell.frame_actions) for clip in clips])


def _drives(world: World, data: str) -> DriveOpenings:
    """Openings from recorded drives. ValueError unless they and the world normalise displacements equally."""
    from wmgym.world_model import WorldModel

    openings = DriveOpenings(Path(data), world.frame_shape[0])
    if isinstance(world, WorldModel) and world.kinematics != openings.dataset.displacement:
        raise ValueError(f"the checkpoint was made for {world.kinematics}, the drives of {data} have {openings.dataset.displacement}")
    return openings


def _clips_of(shell: Shell) -> Path:
    return WEIGHTS / f"{shell.setting.name}-openings.npz"
