"""One folder of results: `args.json` says how it was made, and finished parts are kept, so that a killed run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from wmgym.data.episode import as_json, write_atomically


def claim(out: Path, values: Mapping[str, Any], free: Collection[str]) -> None:
    """Make the folder ours, or see that what lies there was made with the same `values`; those named in `free` may differ."""
    wanted = json.loads(json.dumps(dict(values), default=str))
    file = out / "args.json"
    if file.is_file():
        try:
            found = json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({error}); use another folder") from error
        for key in wanted.keys() - set(free):
            if found.get(key) != wanted[key]:
                raise ValueError(f"{out} holds results with {key}={found.get(key)!r}, not {wanted[key]!r}; use another folder")
    write_atomically(file, as_json(wanted))


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a finished part says, from its file; it is made (again) if the file is missing or damaged."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        part = make()
        write_atomically(file, json.dumps(part).encode())
        return part
