"""Files and run folders that survive a kill, a full disk and a second run.

A run folder holds the results and `args.json`, the arguments that they are made with. A killed run resumes in its folder. A run with
other arguments is refused, and so is a second run while the first is still going.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

LOCK = ".lock"
_HELD: dict[Path, FileLock] = {}  # run folders that this process has locked


def as_json(value: Any) -> bytes:
    """Indented JSON with sorted keys."""
    return (json.dumps(value, indent=2, sort_keys=True, default=str) + "\n").encode()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that replaces it when the block ends without an error. Until then the old file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that other users cannot read
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, f"no space left to write {path}; earlier files are unharmed") from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write bytes to a file atomically: it appears complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def json_object(text: str, name: str) -> dict[str, Any]:
    """The JSON object that an option holds. ValueError for anything else; `name` is the option's."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be a JSON object, got {text!r}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} must be a JSON object, got {text!r}")
    return found


def png(picture: np.ndarray) -> bytes:
    """An image, uint8 [H, W, 3] in RGB, as a PNG file."""
    import cv2

    done, content = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    assert done
    return content.tobytes()


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write an image to a PNG file (`png`) atomically."""
    write_atomically(path, png(picture))


def open_run_folder(
    out: Path,
    values: Mapping[str, Any],
    free: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Open `out` as the folder of a run with the arguments `values`; a killed run resumes in its folder.

    A folder of other arguments raises `ValueError`. Arguments named in `free` may differ. An argument that is missing in the folder's
    `args.json` had its value in `defaults`. renamed: old names of arguments -> present names. The folder stays locked until this process
    ends.
    """
    wanted = json.loads(as_json(dict(values)))
    known = json.loads(as_json(dict(defaults or {})))
    file = out / "args.json"
    if file.is_file():
        try:
            found = {(renamed or {}).get(key, key): value for key, value in json.loads(file.read_text()).items()}
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({error}); use another folder") from error
        for key in sorted(wanted.keys() - set(free)):
            before = found.get(key, known.get(key))
            if before != wanted[key]:
                raise ValueError(f"{out} was begun with {key}={before!r}, not {wanted[key]!r}; use another folder")
    out.mkdir(parents=True, exist_ok=True)
    _lock(out)
    write_atomically(file, as_json(wanted))


def _lock(out: Path) -> None:
    place = out.resolve()
    if place in _HELD:
        return
    lock = FileLock(place / LOCK)
    note = place / f"{LOCK}.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        try:
            holder = json.loads(note.read_text())
            who = f"process {holder['process']}, started {holder['started']}"
        except (OSError, ValueError, KeyError):
            who = "another process"
        raise ValueError(f"{out} is in use by {who}; wait until it ends, end it, or use another folder") from None
    _HELD[place] = lock
    _remove_temporaries(place)
    write_atomically(note, as_json({"process": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}))


def _remove_temporaries(out: Path) -> None:
    """Delete what killed writers left (`replacing`) in a locked folder and its subfolders, apart from those with a lock of their own."""
    for folder in (out, *(path for path in out.iterdir() if path.is_dir() and not (path / LOCK).exists())):
        for file in folder.glob(".*.tmp"):
            file.unlink(missing_ok=True)


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A finished part of a run, read from its JSON file. If the file is missing or damaged, the part is made and written."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        part = make()
        write_atomically(file, json.dumps(part).encode())
        return part
