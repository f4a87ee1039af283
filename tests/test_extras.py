"""A missing extra is named before any work is done."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path

import gymnasium as gym
import pytest
import tyro
from mazes import needs_maze

from wmgym import cli, extras
from wmgym.agents.collect import CollectArgs, collect

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = {"play": ["Minecraft-v0"], "plan": ["WorldPack-Minecraft-v0"], "train ppo": ["WorldPack-Minecraft-v0"]}
NEEDED |= {"eval twin": ["WorldPack-Minecraft-v0"], "eval recon": ["--data", "drives"]}


def draws(command: cli.Command) -> bool:
    """Whether the program of a command draws plots."""
    path = ROOT / "experiments" / command.target.split(":")[0].removeprefix("wmgym.experiments.").replace(".", "/")
    files = list(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return any(file.is_file() and "pyplot()" in file.read_text() for file in files)


DRAWING = [command for command in cli.COMMANDS if draws(command)]


def test_extras_are_those_of_the_project() -> None:
    assert extras.EXTRAS.keys() <= PROJECT["optional-dependencies"].keys()
    for extra, modules in extras.EXTRAS.items():
        packages = {re.split(r"[<>=]", line)[0].replace("-", "_") for line in PROJECT["optional-dependencies"][extra]}
        assert set(modules) <= packages


def test_the_message_names_what_is_missing_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    monkeypatch.setitem(sys.modules, "dm_control", None)
    monkeypatch.setitem(extras.EXTRAS, "maze", ("dm_control", "numpy", "mujoco"))
    with pytest.raises(ImportError, match=r"^Memory Maze needs dm_control, mujoco: pip install 'wmgym\[maze\]'$"):
        extras.need("maze", "Memory Maze needs")


def test_programs_that_draw_are_known() -> None:
    assert {"demo", "eval twin", "eval loopnav", "eval replay", "eval recon", "plan", "train ppo"} <= {c.words for c in DRAWING}


@pytest.mark.parametrize("command", DRAWING, ids=lambda command: command.words)
def test_programs_ask_for_matplotlib_first(command: cli.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a world is loaded, an env is made or a folder is opened."""
    module, options, function = command.target.split(":")
    home = importlib.import_module(module)
    args = tyro.cli(getattr(home, options), args=[*NEEDED.get(command.words, []), "--out", str(tmp_path / "out")])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(gym, "make", lambda *args, **keywords: pytest.fail("an env was made"))
    monkeypatch.setattr("wmgym.checkpoint.read", lambda *args: pytest.fail("weights were read"))
    with pytest.raises(ImportError, match=r"plots need matplotlib: pip install 'wmgym\[eval\]'"):
        getattr(home, function)(args, progress=False)
    assert not (tmp_path / "out").exists()


def test_recon_files_are_asked_for_before_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setattr(gym, "make", lambda *args, **keywords: pytest.fail("an env was made"))
    args = CollectArgs(walker="explorer", steps=10, out=tmp_path / "out", format="recon", processes=1)
    with pytest.raises(ImportError, match=r"RECON's HDF5 files need h5py: pip install 'wmgym\[recon\]'"):
        collect(args, progress=False)
    assert not (tmp_path / "out").exists()


@needs_maze
@pytest.mark.parametrize("module", ["memory_maze", "dm_control", "mujoco"])
def test_memory_maze_names_its_extra_when_it_is_made(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for make in (lambda: gym.make("MemoryMaze-9x9-v0"), lambda: gym.make_vec("MemoryMaze-9x9-v0", num_envs=2)):
        with pytest.raises(ImportError, match=rf"Memory Maze needs {module}: pip install 'wmgym\[maze\]'"):
            make()
