"""The commands that make a checkpoint from nothing.

A training keeps them in its checkpoint's notes, as `commands`: those that collected its episodes, those that made the checkpoints it starts
from, and its own. A command's inputs are its folders of episodes and its checkpoints, which earlier commands must have made.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from wmgym.checkpoint import notes_of, resolve
from wmgym.version import __version__

INPUTS = ("--data", "--init", "--autoencoder", "--checkpoint", "--run", "--openings")
OUTPUTS = ("--out", "--name")  # a folder, and a bundled name
_NO_OPTIONS = ("env_id", "out", "processes", "preview")  # of a collection: given otherwise, or without a trace in the episodes


def options_in_words(args: Any, prefix: str = "") -> str:
    """The options of a command that are not at their default, as they are typed."""
    words: list[str] = []
    for field in fields(args):
        value, name = getattr(args, field.name), prefix + field.name.replace("_", "-")
        if value == _default(field):
            continue
        if is_dataclass(value):
            words.append(options_in_words(value, f"{name}."))
        elif isinstance(value, bool):
            words.append(f"--{name}" if value else f"--{prefix}no-{name.removeprefix(prefix)}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words.append(" ".join([f"--{name}", *(shlex.quote(str(v)) for v in values)]))
    return " ".join(words)


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def chain(own: str, data: Sequence[Path] = (), checkpoints: Iterable[str | None] = ()) -> list[str]:
    """The commands that lead to `own`, and itself: collections of the folders `data`, and what made the checkpoints, as far as they say."""
    before = [command for folder in data if (command := collection(folder)) is not None]
    for name in checkpoints:
        before += notes_of(resolve(name)).get("commands", []) if name is not None else []
    return list(dict.fromkeys([*before, own]))


def told(own: str, data: Sequence[Path], checkpoints: Iterable[str | None], frames: int) -> dict[str, Any]:
    """What a checkpoint's notes say of how it was made: by the command `own`, from folders of episodes with `frames` frames in all."""
    made = {"command": own, "commands": chain(own, data, checkpoints), "wmgym_version": __version__}
    return {**made, "data": [str(folder) for folder in data], "frames": frames}


def collection(folder: Path) -> str | None:
    """The `wmgym collect` command of a folder of episodes, from its args.json; None if it has none."""
    try:
        args = json.loads((folder / "args.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(args, dict) or not {"env_id", "steps", "seed"} <= args.keys():
        return None
    words = ["wmgym", "collect", args["env_id"]]
    for name, value in sorted(args.items()):
        if name not in _NO_OPTIONS and value not in (None, False):
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join([*words, "--out", str(folder)])


def missing(commands: Sequence[str]) -> list[str]:
    """Inputs of the commands that no earlier command has made."""
    made: set[str] = set()
    lacking = []
    for command in commands:
        inputs, outputs = _values(command, INPUTS), _values(command, OUTPUTS)
        lacking += [value for value in inputs if str(Path(value)) not in made]
        made |= {str(path) for value in outputs for path in (Path(value), Path(value) / "model.safetensors")}
    return list(dict.fromkeys(lacking))


def walkers(commands: Sequence[str]) -> list[str]:
    """The walkers of the collections, with their weights, as `--walker` names them; "" for a collection with its setting's default."""
    return [next(iter(_values(command, ("--walker",))), "") for command in commands if shlex.split(command)[:2] == ["wmgym", "collect"]]


def _values(command: str, options: Sequence[str]) -> list[str]:
    """The words after any of these options."""
    found, taking = [], False
    for word in shlex.split(command):
        if word.startswith("--"):
            taking = word in options
        elif taking:
            found.append(word)
    return found
