"""Files appear whole or not at all, and a run folder belongs to one set of arguments and one process at a time."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wmgym.files import as_json, kept, open_run_folder, replacing, write_atomically

# -- replacement ----------------------------------------------------------------------------------------------------------------------


def test_a_file_is_written_whole_into_folders_that_need_not_exist(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "file.json"
    for content in (b"first", b"second, which is longer", b""):
        write_atomically(file, content)
        assert file.read_bytes() == content and os.listdir(file.parent) == ["file.json"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), ValueError("bad"), KeyboardInterrupt(), SystemExit(1)])
def test_an_error_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(b"old")

    def interrupted() -> None:
        with replacing(file) as temporary:
            temporary.write_bytes(b"half of the n")
            assert file.read_bytes() == b"old" and temporary.parent == file.parent
            raise error

    with pytest.raises(type(error)) as raised:
        interrupted()
    assert raised.value is error
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_an_error_of_the_last_steps_keeps_the_old_file(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(b"old")

    def fail(*given: Any, **more: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(file, b"new")
    monkeypatch.undo()
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_in_words(tmp_path: Path, number: int) -> None:
    file = tmp_path / "file.json"
    with pytest.raises(OSError, match=r"no space left to write .*file\.json; earlier files are unharmed") as raised, replacing(file):
        raise OSError(number, os.strerror(number))
    assert raised.value.errno == number and not list(tmp_path.iterdir())


def test_json_is_sorted_and_takes_paths() -> None:
    text = as_json({"b": Path("x/y"), "a": (1, 2.5, None)}).decode()
    assert text.endswith("}\n") and text.index('"a"') < text.index('"b"')
    assert json.loads(text) == {"a": [1, 2.5, None], "b": "x/y"}


# -- parts that are kept --------------------------------------------------------------------------------------------------------------


def test_a_finished_part_is_made_once_and_again_when_damaged(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(len(made))
        return {"number": len(made)}

    file = tmp_path / "cells" / "one.json"
    assert [kept(file, make)["number"] for _ in range(3)] == [1, 1, 1]
    file.write_text(file.read_text()[:-2])
    assert kept(file, make) == {"number": 2} == json.loads(file.read_text())
    file.unlink()
    assert kept(file, make) == {"number": 3} and made == [0, 1, 2]


# -- run folders: arguments -----------------------------------------------------------------------------------------------------------

ARGS = {"seed": 3, "data": Path("films"), "modes": ("none", "worldpack"), "device": "cpu"}


def args_in(out: Path) -> dict[str, Any]:
    return json.loads((out / "args.json").read_text())


def test_a_run_goes_on_with_the_same_arguments(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "one"
    for _ in range(2):
        open_run_folder(out, ARGS)
        assert args_in(out) == {"seed": 3, "data": "films", "modes": ["none", "worldpack"], "device": "cpu"}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", 4, "seed=3, not 4"),
        ("data", Path("others"), "data='films', not 'others'"),
        ("modes", ("none",), r"modes=\['none', 'worldpack'\], not \['none'\]"),
        ("device", None, "device='cpu', not None"),
        ("size", "S", "size=None, not 'S'"),
    ],
)
def test_other_arguments_are_refused_with_both_values(tmp_path: Path, key: str, value: Any, words: str) -> None:
    open_run_folder(tmp_path, ARGS)
    before = (tmp_path / "args.json").read_bytes()
    with pytest.raises(ValueError, match=rf"{tmp_path} was begun with {words}; use another folder"):
        open_run_folder(tmp_path, {**ARGS, key: value})
    assert (tmp_path / "args.json").read_bytes() == before


def test_a_folder_with_other_arguments_is_neither_locked_nor_changed(tmp_path: Path) -> None:
    (tmp_path / "args.json").write_bytes(as_json({"seed": 1}))
    with pytest.raises(ValueError, match="seed=1, not 2"):
        open_run_folder(tmp_path, {"seed": 2})
    assert os.listdir(tmp_path) == ["args.json"]


def test_free_arguments_may_differ_and_the_newest_are_written_down(tmp_path: Path) -> None:
    open_run_folder(tmp_path, ARGS, {"device", "size"})
    open_run_folder(tmp_path, {**ARGS, "device": "cuda", "size": "S"}, {"device", "size"})
    assert args_in(tmp_path)["device"] == "cuda" and args_in(tmp_path)["size"] == "S"
    with pytest.raises(ValueError, match="seed=3, not 4"):
        open_run_folder(tmp_path, {**ARGS, "seed": 4}, {"device"})


def test_arguments_that_did_not_exist_had_their_default(tmp_path: Path) -> None:
    """A folder of an older version goes on, unless a new argument asks for something else."""
    open_run_folder(tmp_path, ARGS)
    new = {**ARGS, "furthest": 1, "films": Path("here"), "rates": (1, 2)}
    defaults = {"furthest": 1, "films": Path("here"), "rates": (1, 2), "seed": 0}
    for key, value, words in (("furthest", 4, "furthest=1, not 4"), ("rates", (1,), r"rates=\[1, 2\], not \[1\]")):
        with pytest.raises(ValueError, match=words):
            open_run_folder(tmp_path, {**new, key: value}, defaults=defaults)
    with pytest.raises(ValueError, match="seed=3, not 0"):  # it existed: its default says nothing
        open_run_folder(tmp_path, {**new, "seed": 0}, defaults=defaults)
    open_run_folder(tmp_path, new, defaults=defaults)
    assert args_in(tmp_path)["furthest"] == 1
    older = {key: value for key, value in ARGS.items() if key != "seed"}
    open_run_folder(tmp_path, older)  # and one that exists no more says nothing either


def test_damaged_arguments_are_named(tmp_path: Path) -> None:
    (tmp_path / "args.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"args\.json is damaged .*; use another folder"):
        open_run_folder(tmp_path, ARGS)


# -- run folders: processes -----------------------------------------------------------------------------------------------------------

HOLD = "import sys; from pathlib import Path; from wmgym.files import open_run_folder as o; o(Path(sys.argv[1]), {'seed': 3}); "


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder `tmp_path` open until it reads a line."""
    program = HOLD + "print('open', flush=True); input()"
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_with_the_first_ones_process_id(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    before = (tmp_path / "args.json").read_bytes()
    with pytest.raises(ValueError, match=rf"{tmp_path} is in use by process {holder.pid}, started \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d; "):
        open_run_folder(tmp_path, {"seed": 3, "device": "cuda"}, {"device"})
    assert (tmp_path / "args.json").read_bytes() == before
    (tmp_path / ".lock.json").unlink()
    with pytest.raises(ValueError, match="is in use by another process"):
        open_run_folder(tmp_path, {"seed": 3})


@pytest.mark.parametrize("sent", [None, signal.SIGKILL])
def test_a_folder_is_free_again_when_its_process_ends(tmp_path: Path, holder: subprocess.Popen[str], sent: signal.Signals | None) -> None:
    if sent is None:
        holder.communicate("\n")
    else:
        holder.send_signal(sent)
        holder.wait()
    open_run_folder(tmp_path, {"seed": 3})
    assert json.loads((tmp_path / ".lock.json").read_text())["process"] == os.getpid()


def test_the_process_that_holds_a_folder_may_open_it_again_by_any_path(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for path in ("run", "run", "link", "run/../run"):
        open_run_folder(tmp_path / path, {"seed": 3})
    done = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path / "link")], capture_output=True, text=True, check=False)
    assert f"in use by process {os.getpid()}" in done.stderr
    open_run_folder(tmp_path / "another", {"seed": 3})


def test_what_killed_writers_left_is_removed_when_a_run_resumes(tmp_path: Path) -> None:
    """In the folder and its subfolders, but not in those that another run holds."""
    out = tmp_path / "run"
    for folder in (out, out / "cells", out / "walks"):
        folder.mkdir()
        (folder / ".a.json.x1.tmp").write_text("half")
        (folder / "kept.tmp").write_text("a file of the user's")
    (out / "walks" / ".lock").touch()
    open_run_folder(out, {"seed": 1})
    assert not (out / ".a.json.x1.tmp").exists() and not (out / "cells" / ".a.json.x1.tmp").exists()
    assert (out / "walks" / ".a.json.x1.tmp").exists() and (out / "cells" / "kept.tmp").exists()
