"""`wmgym minecraft install`: install the Node packages of the Prismarine and server backends with npm, in the user's data folder.

They include Minecraft's block models and textures, which belong to Mojang: they are for the user who installs them, are not part of
wmgym and must not be redistributed. package-lock.json pins all versions. An interrupted installation continues where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmgym.progress import Progress

HERE = Path(__file__).parent
PINS = ("package.json", "package-lock.json")
MARK = "installed.json"
NODE = 18  # the oldest major version that works
LOG_LINES = 15
# What compiling `gl` needs, and what rendering needs: a name, a command that tests for it, and its Debian package.
SYSTEM = (
    ("g++", ("g++", "--version"), "g++"),
    ("make", ("make", "--version"), "make"),
    ("python3", ("python3", "--version"), "python3"),
    ("pkg-config", ("pkg-config", "--version"), "pkg-config"),
    ("OpenGL headers", ("pkg-config", "--exists", "gl"), "libgl-dev"),
    ("X11 input headers", ("pkg-config", "--exists", "xi"), "libxi-dev"),
    ("GLEW headers", ("pkg-config", "--exists", "glew"), "libglew-dev"),
)
DRAWING = (("Xvfb", ("Xvfb", "-help"), "xvfb libgl1-mesa-dri"),)


@dataclass(frozen=True)
class InstallArgs:
    """Install the Node packages of the backends "prismarine" and "server" (about 950 MB; a few minutes, mostly to compile `gl`)."""

    folder: Path | None = None
    """Target folder; by default $WMGYM_MINECRAFT, or wmgym/minecraft in the user's data folder."""


def install(args: InstallArgs) -> dict[str, Any]:
    """Download the packages, then compile `gl`. A report of what was done.

    ImportError names what is missing on the system; OSError has the end of npm's output. `wmgym doctor` tests the installation.
    """
    folder = (args.folder or data_folder()).expanduser().resolve()
    node = find_node()
    if shutil.which("npm") is None:
        raise ImportError("npm is missing: install it with Node (Debian's package is npm)")
    if is_installed(folder):
        return {"folder": str(folder), "node": node, "status": "installed already"}
    missing = [package for _, command, package in (*SYSTEM, *DRAWING) if not _works(command)]
    if missing:
        raise ImportError(f"system packages are missing: apt-get install {' '.join(missing)} (Debian's names), then run this again")
    folder.mkdir(parents=True, exist_ok=True)
    for name in PINS:
        shutil.copy(HERE / name, folder / name)
    begin = time.monotonic()
    fetched = folder / "fetched"
    if not (fetched.exists() and fetched.read_text() == _pins()):  # else an earlier run was stopped after the download
        _npm("packages", folder, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
        fetched.write_text(_pins())
    jobs = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    _npm("compiling gl", folder, "rebuild", "gl", "--foreground-scripts", environment={"JOBS": jobs})
    (folder / MARK).write_text(json.dumps({"pins": _pins(), "node": node}))
    return {"folder": str(folder), "node": node, "status": "installed", "seconds": round(time.monotonic() - begin, 1)}


def data_folder() -> Path:
    """The folder of the packages: $WMGYM_MINECRAFT, or wmgym/minecraft in the user's data folder."""
    given = os.environ.get("WMGYM_MINECRAFT")
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "wmgym" / "minecraft"


def is_installed(folder: Path | None = None) -> bool:
    """Whether the packages are installed in the versions that this wmgym pins."""
    mark = (folder or data_folder()) / MARK
    try:
        return json.loads(mark.read_text())["pins"] == _pins()
    except (OSError, ValueError, KeyError):
        return False


def modules_folder() -> Path:
    """The folder in which Node finds the packages. ImportError, with the command to run, if they are not installed."""
    if not is_installed():
        folder = data_folder()
        raise ImportError(f"the backend's Node packages are not in {folder} (or are of another version): run wmgym minecraft install")
    return data_folder() / "node_modules"


def find_node() -> str:
    """The node program. ImportError if it is missing or too old."""
    node = shutil.which("node")
    if node is None:
        raise ImportError(f"Node is missing: install version {NODE} or later (Debian's packages are nodejs and npm)")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout.strip()
    if not version.startswith("v") or int(version[1:].split(".")[0]) < NODE:
        raise ImportError(f"Node {NODE} or later is needed, {node} is {version or 'broken'}")
    return node


def what_is_missing() -> str | None:
    """Why the Node backends cannot run on this machine, in one line; None if they can."""
    try:
        find_node()
        modules_folder()
    except ImportError as error:
        return str(error)
    if shutil.which("Xvfb") is None and not os.environ.get("DISPLAY"):
        return f"there is no display to render on: apt-get install {DRAWING[0][2]}"
    return None


def _pins() -> str:
    return hashlib.sha256(b"".join((HERE / name).read_bytes() for name in PINS)).hexdigest()


def _works(command: tuple[str, ...]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return command[1] != "--exists" or subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


def _npm(title: str, folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
    """Run npm with a progress line. Its output goes to npm.log; if npm fails, an OSError has the end of it."""
    log = folder / "npm.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            ["npm", *arguments], cwd=folder, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
        )
        try:
            with Progress(desc=title, bar_format="{desc}: {elapsed} {postfix}") as bar:
                while process.poll() is None:
                    time.sleep(0.5)
                    bar.set_postfix_str(_last_line(log))
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise OSError(f"npm {' '.join(arguments)} failed (full output in {log}; run the command again to continue):\n{tail}")


def _last_line(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 400))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip()[-60:] for line in reversed(lines) if line.strip()), "")
