"""Compiled functions are kept where numba keeps them; where that fails under the temporary folder; where that fails too, nowhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from numba.core import caching, config

from wmgym import jit

ROOT = Path(__file__).parents[1]
MODULES = (*(f"wmgym.envs.minecraft.voxel.{name}" for name in ("physics", "world", "render")), "wmgym.agents.pathfinding")


def twice(x):
    return 2 * x


def double(x):
    return x + x


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    jit._warn_uncached.cache_clear()
    yield
    jit._warn_uncached.cache_clear()


@pytest.fixture
def _no_usual_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither `__pycache__` nor a home can be written: only NUMBA_CACHE_DIR is left."""
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [caching.UserProvidedCacheLocator])


def compiled(**options: Any) -> Any:
    """A function that is compiled without a single warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return jit.njit(**options)(twice)


def test_the_usual_place_stays(tmp_path: Path) -> None:
    assert Path(compiled(cache=True).stats.cache_path) == Path(__file__).parent / "__pycache__"
    assert list(tmp_path.iterdir()) == []


def test_a_function_that_asks_for_no_cache_has_none(tmp_path: Path) -> None:
    assert compiled(fastmath=True).stats.cache_path is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_no_usual_place")
def test_the_cache_moves_to_the_temporary_folder(tmp_path: Path) -> None:
    function = compiled(cache=True)
    assert function(21) == 42
    assert config.CACHE_DIR == ""  # numba's setting is as it was
    folder = jit.temporary_folder()
    assert folder is not None and folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    assert Path(function.stats.cache_path).parent == folder
    again = compiled(cache=True)
    assert again(21) == 42 and sum(again.stats.cache_hits.values()) == 1


@pytest.mark.usefixtures("_no_usual_place")
def test_without_any_place_functions_run_uncached_after_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"set NUMBA_CACHE_DIR to a folder that can be written") as caught:
        functions = [jit.njit(cache=True)(function) for function in (twice, double, twice)]
    assert len(caught) == 1
    assert [function(21) for function in functions] == [42] * 3
    assert functions[0].stats.cache_path is None


@pytest.mark.usefixtures("_no_usual_place")
@pytest.mark.parametrize("trap", ["writable by others", "a link"])
def test_a_folder_that_others_may_have_filled_is_not_used(trap: str, tmp_path: Path) -> None:
    """numba unpickles what it finds there."""
    folder = jit.temporary_folder()
    assert folder is not None
    folder.rmdir()
    if trap == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "theirs")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    assert jit.temporary_folder() is None
    with pytest.warns(UserWarning, match="NUMBA_CACHE_DIR"):
        assert jit.njit(cache=True)(twice)(21) == 42


def test_every_compiled_function_is_made_here() -> None:
    files = [file for top in ("wmgym", "envs", "agents", "experiments") for file in (ROOT / top).rglob("*.py")]
    own = re.compile(r"numba\.njit\(|from numba import .*njit")
    assert [file.name for file in files if own.search(file.read_text())] == ["jit.py"]


# -- in a namespace, as in a container ----------------------------------------------------------------------------------------------------

PROGRAM = f"""
import importlib
from wmgym.envs.minecraft.voxel.physics import blocked
import numpy as np
blocked(np.zeros((4, 4, 4), np.uint8), 2.0, 2.0, 2.0)
paths = {{f.stats.cache_path for name in {MODULES} for f in vars(importlib.import_module(name)).values() if hasattr(f, "stats")}}
print(*sorted(filter(None, paths)))
print(sum(blocked.stats.cache_hits.values()))
"""


def in_container(program: str, temporary: Path | str) -> subprocess.CompletedProcess[str]:
    """Runs a program without a home, with code that can only be read, and with `temporary` as the temporary folder."""
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd / && exec "$@"'
    environment = {"PATH": os.environ["PATH"], "HOME": "/proc/none", "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["unshare", "--mount", "sh", "-c", mount, str(ROOT), sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def needs_namespaces() -> None:
    if os.getuid() != 0 or shutil.which("unshare") is None or in_container("", "/tmp").returncode:
        pytest.skip("mount namespaces need root and unshare, and must be allowed")


def test_a_container_without_a_home_keeps_its_cache_in_the_temporary_folder(tmp_path: Path) -> None:
    needs_namespaces()
    for hits in (0, 1):
        done = in_container(PROGRAM, tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        paths, found = done.stdout.splitlines()
        assert all(path.startswith(f"{tmp_path}/wmgym-numba-0/") for path in paths.split()) and int(found) == hits


@pytest.mark.slow
def test_a_container_that_cannot_write_anywhere_walks_in_minecraft() -> None:
    needs_namespaces()
    nowhere = "import tempfile; tempfile.tempdir = '/proc/none'\n"
    program = "import gymnasium as gym, wmgym; env = gym.make('Minecraft-v0', task='free'); env.reset(seed=0); print(env.step(1)[0].shape)"
    done = in_container(nowhere + program, "/proc/none")
    assert (done.returncode, done.stdout) == (0, "(64, 64, 3)\n")
    assert done.stderr.count("NUMBA_CACHE_DIR") == 1
