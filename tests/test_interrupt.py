"""Ctrl-C ends a collection with one line, at once, and leaves the episodes that were finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from wmgym.agents.collect import CollectArgs, collect
from wmgym.data.episode import load_episode

WALK = {"env_id": "block_world:BlockTest-v0", "walker": "random", "episode_length": 60}


def listen() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(out: Path) -> subprocess.Popen[str]:
    """A collection that would never end, in a session of its own, as a terminal would start it."""
    options = ["--walker", WALK["walker"], "--episode-length", WALK["episode_length"], "--steps", 10**9, "--processes", 2]
    return subprocess.Popen(
        [sys.executable, "-m", "wmgym", "collect", WALK["env_id"], *map(str, options), "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=listen, cwd=Path(__file__).parent,
    )  # fmt: skip


def episodes(out: Path) -> list[Path]:
    return sorted(out.glob("episode-*.safetensors"))


def interrupt(run: subprocess.Popen[str], out: Path, send: Callable[[int, int], None]) -> tuple[str, str]:
    """What a run printed after Ctrl-C, which is pressed when it has written three episodes."""
    try:
        deadline = time.monotonic() + 120
        while len(episodes(out)) < 3:
            assert run.poll() is None and time.monotonic() < deadline, "it wrote no episodes"
            time.sleep(0.1)
        family = psutil.Process(run.pid).children(recursive=True)
        send(run.pid, signal.SIGINT)
        said = run.communicate(timeout=120)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
    assert not psutil.wait_procs(family, timeout=10)[1], "processes outlive their parent"
    return said


@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["to all processes", "to the parent"])
def test_ctrl_c_prints_one_line_and_leaves_finished_episodes(tmp_path: Path, send: Callable[[int, int], None]) -> None:
    """The next run keeps them."""
    run = start(tmp_path)
    assert interrupt(run, tmp_path, send) == ("", "interrupted\n")
    assert run.returncode == 130
    there = len(episodes(tmp_path))
    assert all(load_episode(path).steps == 60 for path in episodes(tmp_path))
    report = collect(CollectArgs(**WALK, steps=60 * (there + 2), processes=1, out=tmp_path), progress=False)  # type: ignore[arg-type]
    assert report["episodes"] == there + 2
    assert report["reused_episodes"] >= 3
    assert not list(tmp_path.glob(".episode-*"))
