"""From keywords to a `Shell`: every keyword is checked, the world is loaded, and the parts are put together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
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
    """The keywords that all dreams share. A system may have more of its own (`systems.System.options`)."""

    checkpoint: str | World | None = None
    """Bundled name, path or hub name; or a `core.World` of your own, and then `setting`, `num_actions` or `action_space`."""
    system: str | None = None
    """Which system runs the weights; by default the one that the checkpoint names."""
    setting: str | None = None
    """Where the dream plays, which says what actions, tasks and openings there are."""
    num_actions: int | None = None
    """Without a setting: how many actions there are."""
    action_space: gym.Space | None = None
    """Without a setting: the actions of one frame, Discrete or Box."""
    task: str | Task | None = None
    """A task of the setting, or one of your own; by default the setting's first."""
    memory: str | None = None
    """How the weights remember; "none" works for every system. By default the checkpoint's."""
    memory_budget: int | None = None
    """Frames remembered at most."""
    denoise_steps: int | None = None
    """Steps of the sampler."""
    device: str | None = None
    """"auto" (a GPU where there is one), "cpu", "cuda", ..."""
    dtype: str | None = None
    """"auto", "float32", "bfloat16" or "float16"."""
    hold_action: bool = False
    """Worlds that make F frames a step: one action for all of them instead of F."""
    horizon: int | None = None
    """Frames after which the env itself truncates."""
    opening: Any = None
    """"live" (the twin is walked), "bundled" (shipped clips), or a dict of frames, actions and poses, or a list of such. By default
    bundled where clips of the task are shipped, else live."""
    data: str | None = None
    """Settings whose episodes open with recorded drives: the folder that holds them."""
    twin: str | None = None
    """Id of the ground truth."""
    twin_kwargs: Mapping[str, Any] | None = None
    """What the ground truth is made with."""

    def __post_init__(self) -> None:
        for name in ("horizon", "memory_budget", "denoise_steps", "num_actions"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if not isinstance(self.hold_action, (bool, np.bool_)):
            raise ValueError(f"hold_action must be True or False, got {self.hold_action!r}")
        if isinstance(self.opening, str) and self.opening not in OPENING_KINDS:
            raise ValueError(f"opening must be 'live', 'bundled' or frames, got {self.opening!r}")
        taken = sorted({"task", "size"} & set(self.twin_kwargs or {}))
        if taken:
            raise ValueError(f"twin_kwargs must not hold {taken}: they follow from the task and the checkpoint")
        if self.opening == "live" and self.twin is None:
            raise ValueError("opening='live' walks the ground truth, and this env has none: use 'bundled' or give an opening")


def make_shell(keywords: Mapping[str, Any]) -> Shell:
    """The shell of an env from its keywords. A wrong value raises `ValueError`, an unknown keyword `TypeError`."""
    config, options = read_keywords(keywords)
    place = _setting(config)
    if config.checkpoint is None:
        loaders = ", ".join(["a path", "'hub:OWNER/NAME'", *_other_loaders()])
        raise ValueError(f"this id comes without weights: give checkpoint=, {loaders}")
    if place.needs_data and config.data is None:
        raise ValueError(f"episodes of setting {place.name!r} open with recorded drives: give data= (a folder of them)")
    if config.data is not None and not place.needs_data:
        raise ValueError(f"data means nothing for setting {place.name!r}, got {config.data!r}")
    task = _task(place, config.task)
    world = _world(config, options)
    identity = identify(world, place, task, config.horizon or task.horizon)
    shell = Shell(world, task, place, None, identity, hold_action=bool(config.hold_action))
    shell.openings = _openings(shell, config)
    return shell


def read_keywords(keywords: Mapping[str, Any]) -> tuple[DreamConfig, dict[str, Any]]:
    """The keywords that all dreams share, and the rest, which are for the system. `context` is the old name of `opening`."""
    given = dict(keywords)
    if "context" in given:
        context = given.pop("context")
        if context is not None and given.get("opening") is not None:
            raise ValueError("opening and context are two names of one keyword: give one of them")
        given["opening"] = context if context is not None else given.get("opening")
    shared = {f.name for f in fields(DreamConfig)}
    return DreamConfig(**{k: v for k, v in given.items() if k in shared}), {k: v for k, v in given.items() if k not in shared}


def identify(world: World, setting: Setting, task: Task, horizon: int) -> Identity:
    """What names an env of this world in its saved states. The env adds its id."""
    from wmgym.world_model import WorldModel  # here, so that a world of one's own needs none of it

    where = (setting.name, task.name)
    if not isinstance(world, WorldModel):
        return Identity("", type(world).__name__, "", *where, "", "", "", world.chunk, int(horizon))
    run, whence = world.settings, world.provenance
    how = {"memories": list(map(_describe, run.memories)), "sampler": _describe(run.sampler), "options": _describe(run.options)}
    text = json.dumps({**how, "pose_source": run.pose_source}, sort_keys=True, default=str)
    return Identity("", whence.system, whence.weights, *where, whence.memory, text, world.dtype_name, world.chunk, int(horizon))


def _describe(value: Any) -> dict[str, Any]:
    """A part of a world in plain values that are the same in every process."""
    found = asdict(value) if is_dataclass(value) and not isinstance(value, type) else {}
    plain = {name: sorted(held) if isinstance(held, (set, frozenset)) else held for name, held in found.items()}
    return {"kind": type(value).__name__, **plain}


def _other_loaders() -> list[str]:
    from wmgym import systems

    return [system.loader.usage for system in map(systems.get, systems.names()) if system.loader is not None]


def _setting(config: DreamConfig) -> Setting:
    name, count, space = config.setting, config.num_actions, config.action_space
    if name is not None:
        if count is not None or space is not None:
            raise ValueError(f"the actions of setting {name!r} are known: num_actions and action_space must not be given")
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
        from wmgym.checkpoint import load_world  # here, so that a world of one's own needs none of it

        return load_world(str(config.checkpoint), options=options, **given)
    if options:
        raise TypeError(f"unexpected keyword {min(options)!r}: a world that is there already takes {', '.join(_shared_names())}")
    if given:
        raise ValueError(f"a world that is there already has its own {', '.join(given)}: do not give {given}")
    assert config.checkpoint is not None
    return config.checkpoint


def _shared_names() -> list[str]:
    return [f.name for f in fields(DreamConfig) if f.name not in _RUN_KEYWORDS]


def _openings(shell: Shell, config: DreamConfig) -> Openings | None:
    opening, twin = config.opening, config.twin
    if opening is None and config.data is not None:
        return _drives(shell, config.data)
    suited = shell.setting.bundled
    if opening is None:
        shipped = shell.task.name in suited if suited else twin is None and _clips_of(shell).is_file()
        opening = "bundled" if shipped else "live" if twin else None
    if opening is None:
        return None
    if isinstance(opening, str):
        if opening == "live":
            assert twin is not None
            return LiveOpenings(twin, shell.setting.opening, **shell.truth_keywords(), **(config.twin_kwargs or {}))
        if suited and shell.task.name not in suited:
            raise ValueError(f"shipped clips open the tasks {', '.join(suited)}, not {shell.task.name!r}: give opening='live' or frames")
        return read_clips(_clips_of(shell))
    clips = [opening] if isinstance(opening, Mapping) else list(opening)
    return ClipOpenings([check_opening(clip, shell.world.frame_shape, shell.frame_actions) for clip in clips])


def _drives(shell: Shell, data: str) -> DriveOpenings:
    """Openings from recorded drives, whose displacements must mean what the world's actions mean."""
    from wmgym.world_model import WorldModel

    openings = DriveOpenings(Path(data), shell.world.frame_shape[0])
    if isinstance(shell.world, WorldModel) and shell.world.kinematics != openings.dataset.displacement:
        raise ValueError(f"the checkpoint was made for {shell.world.kinematics}, the drives of {data} say {openings.dataset.displacement}")
    return openings


def _clips_of(shell: Shell) -> Path:
    return WEIGHTS / f"{shell.setting.name}-openings.npz"
