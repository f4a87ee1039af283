"""`wmgym doctor`: reports installed packages, devices and optional parts.

Each part is tested by use, so a package that is installed but cannot be imported is reported as broken, not as missing.
"""

import importlib
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from wmgym.extras import install, is_here, need
from wmgym.listing import WEIGHTS, weight_files
from wmgym.registration import TABLE
from wmgym.version import __version__


@dataclass(frozen=True)
class DoctorArgs:
    """Report what is installed, which devices and optional parts work, and how to install the rest.

    Output: the machine, one row per package with its version, the devices with the precision of dtype "auto", and one row per optional part
    (engines, renderers, weights, encoders) with its speed or with how to get it. Downloads nothing and writes nothing. Most of its
    time is spent on opening each installed ground truth.
    """


class Package(NamedTuple):
    name: str  # on PyPI
    module: str
    purpose: str
    extra: str = ""  # wmgym's extra; empty for a core dependency


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
    """The report. It downloads nothing and writes nothing."""
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
            *bundled_files(),
            attempt("LPIPS", lpips),
            attempt("ffmpeg of wmgym[video]", ffmpeg),
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
    """Features of the processor, from Linux; empty on other systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((set(line.split(":")[1].split()) for line in lines if line.startswith(("flags", "Features"))), set())


def devices() -> list[dict[str, Any]]:
    """Devices that networks can run on, the CPU first."""
    try:
        import torch
    except ImportError as error:
        return [{"device": "cpu", "name": f"torch cannot be imported: {error}"}]
    from wmgym.checkpoint import choose_dtype

    def row(device: str, name: str, why: str) -> dict[str, Any]:
        return {"device": device, "name": name, "dtype auto": choose_dtype("auto", device), "why": why}

    rows = [row("cpu", f"{platform.machine()}, {torch.get_num_threads()} threads", _why_on_cpu())]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        why = "native" if properties.major >= 8 else f"emulated (compute capability {properties.major}.{properties.minor}); try float16"
        rows.append(row(f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB", why))
    if len(rows) == 1:
        built = "none found" if torch.version.cuda else "this torch was built without it"
        rows.append({"device": "cuda", "name": f"not available: {built}"})
    return rows


def _why_on_cpu() -> str:
    from wmgym.checkpoint import multiplies_bfloat16

    native = multiplies_bfloat16()
    return "bfloat16 is native (AVX-512 BF16 or AMX)" if native else "bfloat16 is emulated, so slow (neither AVX-512 BF16 nor AMX)"


def package_row(package: Package) -> dict[str, Any]:
    row = {"package": package.name, "for": package.purpose}
    get = install(package.extra) if package.extra else f"pip install {package.name}"
    try:
        version = importlib.metadata.version(package.name)
    except importlib.metadata.PackageNotFoundError:
        return {**row, "status": "missing", "version": None, "how to get it": get}
    try:
        importlib.import_module(package.module)
    except Exception as error:  # noqa: BLE001  the report shows any error
        return {**row, "status": "broken", "version": version, "how to get it": f"{_line(error)}: {get} --force-reinstall"}
    return {**row, "status": "ok", "version": version, "how to get it": None}


class Missing(Exception):
    """A part is not installed. The message says how to get it."""


def attempt(part: str, check: Callable[[], str]) -> dict[str, Any]:
    """A row of the report: what `check` returned, how to get the missing part, or the error."""
    row = {"part": part}
    try:
        return {**row, "status": "ok", "detail": check()}
    except Missing as missing:
        return {**row, "status": "missing", "detail": str(missing)}
    except Exception as error:  # noqa: BLE001  the report shows any error
        return {**row, "status": "broken", "detail": _line(error)}


def walk(make: Callable[[], Any], action: int, steps: int = 20) -> str:
    """Time to make and reset an env, of its first step, and of a step after it, in words."""
    begin = time.perf_counter()
    env = make()
    env.reset(seed=0)
    ready = time.perf_counter()
    env.step(action)  # may compile or load what later steps use
    warm = time.perf_counter()
    for _ in range(steps):
        env.step(action)
    step = (time.perf_counter() - warm) / steps
    env.close()
    return f"{ready - begin:.1f} s, first step {1e3 * (warm - ready):.1f} ms, then {1e3 * step:.1f} ms per step"


def voxel_renderer() -> str:
    """Step the ground truth. The first run compiles the renderer."""
    import gymnasium as gym

    return f"a world in {walk(lambda: gym.make('Minecraft-v0', task='free'), 1)}"


def memory_maze() -> str:
    """The OpenGL renderer that is used, and its speed on this machine."""
    from wmgym.envs.memory_maze import gl

    try:
        need("maze", "Memory Maze needs")
        name = gl.renderer()
    except ImportError as error:
        raise Missing(str(error)) from None
    import gymnasium as gym

    return f"{name}, a maze in {walk(lambda: gym.make('MemoryMaze-9x9-v0', disable_env_checker=True), 1)}"


def bundled_files() -> list[dict[str, Any]]:
    """A row per checkpoint and per file of opening clips. Each is read whole."""
    return [
        *(attempt(f"weights of {name}", partial(weights, name)) for name in bundled_names()),
        *(attempt(f"opening clips {file.name}", partial(clips, file)) for file in sorted(WEIGHTS.glob("*-openings.npz"))),
    ]


def bundled_names() -> list[str]:
    """Checkpoints that the ids name, and all others that came with the package."""
    named = [row.kwargs["checkpoint"] for row in TABLE if row.kwargs.get("checkpoint")]
    there = [re.sub(r"-\d{5}-of-\d{5}$", "", file.stem) for file in sorted(WEIGHTS.glob("*.safetensors"))]
    return list(dict.fromkeys([*named, *there]))


def weights(name: str) -> str:
    """Reads all tensors of a checkpoint and compares them with its checksums."""
    files = weight_files(name)
    if not files:
        raise Missing("not in this package: train it, or give checkpoint=PATH")
    from wmgym.checkpoint import read

    begin = time.perf_counter()
    read(WEIGHTS / f"{name}.safetensors")
    return f"{_size(files)}, checksums match ({time.perf_counter() - begin:.2f} s), {files[0]}"


def clips(file: Path) -> str:
    """Reads a file of opening clips, which compares its arrays with their checksums (CRC-32)."""
    from wmgym.openings import read_clips

    begin = time.perf_counter()
    read_clips(file)
    return f"{_size([file])}, checksums match ({time.perf_counter() - begin:.2f} s), {file}"


def _size(files: list[Path]) -> str:
    return f"{sum(file.stat().st_size for file in files) / 2**20:.1f} MiB"


def lpips() -> str:
    """Whether its backbone is on this machine. It is never downloaded here."""
    for name in ("torchmetrics", "torchvision"):
        if not is_here(name):
            raise Missing(f"tables leave LPIPS out; it needs {name}: pip install {name}")
    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE
    if not file.is_file():
        raise Missing(f"tables leave LPIPS out until torchvision's AlexNet weights are at {file} (torchvision.models.alexnet loads them)")
    return str(file)


def ffmpeg() -> str:
    """The video encoder that moviepy uses. It comes with the extra "video"; one on the PATH alone is not used."""
    if not is_here("imageio_ffmpeg"):
        raise Missing(f"films are MPEG-4 by OpenCV, and RecordVideo does not work; {install('video')} brings ffmpeg")
    import imageio_ffmpeg

    try:
        found = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise Missing(f"{' '.join(str(error).split())}; {install('video')} brings ffmpeg") from None
    subprocess.run([found, "-version"], capture_output=True, check=True, timeout=60)
    return found


def window() -> str:
    """SDL's video driver. A window is not opened."""
    from wmgym.play import check_window

    try:
        driver = check_window()
    except (ImportError, OSError) as error:
        raise Missing(str(error)) from None
    import pygame

    pygame.display.quit()
    return f"SDL's driver {driver}"


def node_packages() -> None:
    """Raise `Missing` unless Node and its packages are installed."""
    from wmgym.envs.minecraft.prismarine.install import what_is_missing

    missing = what_is_missing()
    if missing is not None:
        raise Missing(missing)


def prismarine() -> str:
    """Step a world that is rendered by Node."""
    from wmgym.envs.minecraft.env import MinecraftEnv

    node_packages()
    return f"a process and a world in {walk(lambda: MinecraftEnv('free', 'prismarine'), 6)}"


def server() -> str:
    node_packages()
    return "ready; needs a Minecraft server in offline mode (players without an account): host=, port="


def minerl() -> str:
    """Whether a Python with MineRL is installed. Minecraft itself is not started, since that takes minutes."""
    from wmgym.envs.minecraft.minerl.engine import find_python

    try:
        python = find_python()
    except ImportError as error:
        raise Missing(str(error)) from None
    done = subprocess.run([python, "-c", "import minerl"], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Missing(f"{python} cannot import minerl: {last} (docs/settings/minerl.md)")
    return f"{python} imports minerl; not started here"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
