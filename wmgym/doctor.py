"""`wmgym doctor`: what is installed, which devices and optional parts work, and how to get those that do not.

Each part is tried, not only looked up: a package that is installed and cannot be imported is told apart from a missing one.
"""

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from wmgym.listing import weight_files
from wmgym.registration import TABLE
from wmgym.version import __version__


@dataclass(frozen=True)
class DoctorArgs:
    """Say what is installed, which devices and optional parts work, and how to get those that do not."""


class Package(NamedTuple):
    name: str  # as pip knows it
    module: str
    purpose: str
    extra: str = ""  # of wmgym; empty for a core dependency


PACKAGES = (
    Package("torch", "torch", "networks"),
    Package("gymnasium", "gymnasium", "the interface"),
    Package("numpy", "numpy", "arrays"),
    Package("safetensors", "safetensors.torch", "weights on disk"),
    Package("opencv-python-headless", "cv2", "frames on disk, videos"),
    Package("numba", "numba", "the Minecraft voxel renderer"),
    Package("tyro", "tyro", "the command line"),
    Package("tqdm", "tqdm", "progress bars"),
    Package("filelock", "filelock", "one run per folder"),
    Package("tensorboard", "torch.utils.tensorboard", "training curves", "train"),
    Package("moviepy", "moviepy", "RecordVideo", "video"),
    Package("matplotlib", "matplotlib", "plots", "eval"),
    Package("torchmetrics", "torchmetrics", "image metrics", "eval"),
    Package("h5py", "h5py", "RECON's HDF5 files", "recon"),
    Package("stable-baselines3", "stable_baselines3", "PPO", "rl"),
    Package("pygame", "pygame", "wmgym play", "play"),
    Package("memory-maze", "wmgym.envs.memory_maze.maze", "Memory Maze", "maze"),
)

CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"


def examine(args: DoctorArgs) -> dict[str, Any]:
    """The whole report. Nothing is downloaded and nothing is written."""
    return {
        "machine": machine(),
        "packages": [package_row(package) for package in PACKAGES],
        "devices": devices(),
        "parts": [
            attempt("Minecraft-v0, voxel renderer", voxel_renderer),
            attempt("Minecraft-v0, backend prismarine", prismarine),
            attempt("Minecraft-v0, backend server", server),
            attempt("Minecraft-v0, backend minerl", minerl),
            attempt("MemoryMaze-9x9-v0, OpenGL without a window", memory_maze),
            *(attempt(f"weights of {name}", partial(weights, name)) for name in bundled_names()),
            attempt("LPIPS", lpips),
            attempt("ffmpeg", ffmpeg),
            attempt("window for wmgym play", window),
        ],
    }


def machine() -> dict[str, Any]:
    flags = cpu_flags()
    return {
        "wmgym": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu features": [name for name in CPU_FEATURES if name in flags],
    }


def cpu_flags() -> set[str]:
    """What Linux says that the processor can do; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((set(line.split(":")[1].split()) for line in lines if line.startswith(("flags", "Features"))), set())


def devices() -> list[dict[str, Any]]:
    """Where networks can run, the CPU first."""
    try:
        import torch
    except ImportError as error:
        return [{"device": "cpu", "name": f"torch cannot be imported: {error}"}]
    fast = {"avx512_bf16", "amx_bf16", "bf16"} & cpu_flags()
    rows: list[dict[str, Any]] = [
        {"device": "cpu", "name": f"{platform.machine()}, {torch.get_num_threads()} threads", "fast bfloat16": bool(fast)}
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        rows.append({"device": f"cuda:{index}", "name": name, "fast bfloat16": properties.major >= 8})
    if len(rows) == 1:
        built = "none found" if torch.version.cuda else "this torch was built without it"
        rows.append({"device": "cuda", "name": f"not available: {built}"})
    return rows


def package_row(package: Package) -> dict[str, Any]:
    row = {"package": package.name, "for": package.purpose}
    get = f"pip install 'wmgym[{package.extra}]'" if package.extra else f"pip install {package.name}"
    try:
        version = importlib.metadata.version(package.name)
    except importlib.metadata.PackageNotFoundError:
        return {**row, "status": "missing", "version": None, "how to get it": get}
    try:
        importlib.import_module(package.module)
    except Exception as error:  # noqa: BLE001  whatever goes wrong is what the doctor was called for
        return {**row, "status": "broken", "version": version, "how to get it": f"{_line(error)}: {get} --force-reinstall"}
    return {**row, "status": "ok", "version": version, "how to get it": None}


class Missing(Exception):
    """A part is not there; the message says how to get it."""


def attempt(part: str, check: Callable[[], str]) -> dict[str, Any]:
    """A row of the report: what `check` found, how to get what it misses, or how it broke."""
    row = {"part": part}
    try:
        return {**row, "status": "ok", "detail": check()}
    except Missing as missing:
        return {**row, "status": "missing", "detail": str(missing)}
    except Exception as error:  # noqa: BLE001  whatever goes wrong is what the doctor was called for
        return {**row, "status": "broken", "detail": _line(error)}


def walk(make: Callable[[], Any], action: int) -> str:
    """How long an env takes to make and open, and to make each of a few steps."""
    begin = time.perf_counter()
    env = make()
    env.reset(seed=0)
    ready = time.perf_counter()
    for _ in range(20):
        env.step(action)
    step = (time.perf_counter() - ready) / 20
    env.close()
    return f"{ready - begin:.1f} s, {1e3 * step:.1f} ms per step"


def voxel_renderer() -> str:
    """Walk a few steps in the ground truth. The first run compiles the renderer."""
    import gymnasium as gym

    return f"a world in {walk(lambda: gym.make('Minecraft-v0', task='free'), 1)}"


def memory_maze() -> str:
    """Which renderer is taken, and how fast it is here."""
    from wmgym.envs.memory_maze import gl

    if importlib.util.find_spec("memory_maze") is None:
        raise Missing("pip install 'wmgym[maze]'")
    try:
        name = gl.renderer()
    except ImportError as error:
        raise Missing(str(error)) from None
    import gymnasium as gym

    return f"{name}, a maze in {walk(lambda: gym.make('MemoryMaze-9x9-v0', disable_env_checker=True), 1)}"


def bundled_names() -> list[str]:
    return list(dict.fromkeys(row.kwargs["checkpoint"] for row in TABLE if row.kwargs.get("checkpoint")))


def weights(name: str) -> str:
    files = weight_files(name)
    if not files:
        raise Missing("not bundled here: train it, or give checkpoint=PATH")
    return f"{sum(file.stat().st_size for file in files) / 2**20:.1f} MiB, {files[0]}"


def lpips() -> str:
    """Whether its backbone is on this machine. It is never fetched without being asked for."""
    for name in ("torchmetrics", "torchvision"):
        if importlib.util.find_spec(name) is None:
            raise Missing(f"tables leave LPIPS out; it needs {name}: pip install {name}")
    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE
    if not file.is_file():
        raise Missing(f"tables leave LPIPS out until torchvision's AlexNet weights are at {file} (torchvision.models.alexnet fetches them)")
    return str(file)


def ffmpeg() -> str:
    """The encoder of films: the one on the path, or the one that moviepy brings."""
    if found := shutil.which("ffmpeg"):
        return found
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise Missing("pip install 'wmgym[train]' brings one")
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def window() -> str:
    if importlib.util.find_spec("pygame") is None:
        raise Missing("pip install 'wmgym[play]'")
    if platform.system() == "Linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise Missing("no display here (DISPLAY and WAYLAND_DISPLAY are not set)")
    return "pygame, and a display"


def node_packages() -> None:
    """Missing, unless Node and its packages are here."""
    from wmgym.envs.minecraft.prismarine.install import what_is_missing

    missing = what_is_missing()
    if missing is not None:
        raise Missing(missing)


def prismarine() -> str:
    """Walk a few steps in a world drawn by Node."""
    from wmgym.envs.minecraft.env import MinecraftEnv

    node_packages()
    return f"a process and a world in {walk(lambda: MinecraftEnv('free', 'prismarine'), 6)}"


def server() -> str:
    node_packages()
    return "ready; needs a Minecraft server that lets players in without an account: host=, port="


def minerl() -> str:
    """Whether there is a Python that has MineRL. Minecraft itself is not started: that takes minutes."""
    from wmgym.envs.minecraft.minerl.engine import find_python

    try:
        python = find_python()
    except ImportError as error:
        raise Missing(str(error)) from None
    done = subprocess.run([python, "-c", "import minerl"], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise Missing(f"{python} cannot import minerl: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]} (docs/minerl.md)")
    return f"{python} imports minerl; not started here"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
