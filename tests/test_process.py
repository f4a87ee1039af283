"""The line to an engine's process: what is said arrives, every way of failing has its error, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from wmgym.envs.minecraft import process
from wmgym.envs.minecraft.faults import BackendDied, BackendError, BackendFault, BackendStartError, BackendTimeout
from wmgym.envs.minecraft.process import EngineProcess

STANDIN = Path(__file__).with_name("peer_standin.py")


def start(begin: str = "well", timeout: float = 20) -> EngineProcess:
    def command(socket: str, frames: str) -> list[str]:
        return [sys.executable, str(STANDIN), socket, frames, begin]

    return EngineProcess("the stand-in", command, start_timeout=timeout)


@pytest.fixture
def peer() -> Iterator[EngineProcess]:
    one = start()
    yield one
    one.close()


def is_running(pid: int) -> bool:
    """Whether a process is there and not only waiting to be asked how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, within: float = 5) -> bool:
    end = time.monotonic() + within
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_running(pid)


def test_what_is_asked_is_answered(peer: EngineProcess) -> None:
    assert peer.hello == {"hello": 1}
    value = 0.1 + 0.2  # JSON keeps every bit of a float64
    answer, content = peer.request(5, op="bytes", value=value)
    assert answer["echo"]["value"] == value and content == b"abc"


def test_pictures_arrive_through_shared_memory(peer: EngineProcess) -> None:
    picture = np.arange(2 * 3 * 4, dtype=np.uint8)
    peer.reserve(2, 3)
    peer.request(5, op="draw", picture=picture.tolist())
    np.testing.assert_array_equal(peer.newest_frame(2, 3), picture.reshape(2, 3, 4))
    peer.reserve(4, 3)  # more room; what is there stays
    np.testing.assert_array_equal(peer.newest_frame(2, 3), picture.reshape(2, 3, 4))


def test_a_refusal_is_a_value_error_and_harms_nothing(peer: EngineProcess) -> None:
    with pytest.raises(ValueError, match="there is a block"):
        peer.request(5, op="refuse")
    assert peer.request(5, op="echo")[0]["echo"] == {"op": "echo"}


@pytest.mark.parametrize(
    ("op", "error", "said"),
    [
        ("die", BackendDied, "killed by SIGKILL"),
        ("no memory", BackendDied, "out of memory"),
        ("cut", BackendDied, "connection was closed"),
        ("hang", BackendTimeout, "did not answer within 0.5 s"),
        ("hang deaf", BackendTimeout, "did not answer"),
        ("fail", BackendFault, "a fault of mine"),
    ],
)
def test_each_fault_has_its_error_and_shows_the_log(
    peer: EngineProcess, op: str, error: type[BackendError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE", 0.3)
    with pytest.raises(error, match=said) as caught:
        peer.request(0.5, op=op)
    assert "standing in" in caught.value.log and "standing in" in str(caught.value)
    assert not peer.is_alive and gone(peer.pid)
    with pytest.raises(BackendDied, match=r"reset\(\) starts it"):
        peer.request(1, op="echo")


def test_a_process_that_does_not_start_says_why() -> None:
    with pytest.raises(BackendStartError, match="ended with code 3") as caught:
        start("die")
    assert "no display" in str(caught.value)
    with pytest.raises(BackendStartError, match="no WebGL"):
        start("refuse")
    with pytest.raises(BackendTimeout, match=r"did not start within 0.5 s"):
        start("hang", timeout=0.5)
    with pytest.raises(BackendStartError, match="cannot be started"):
        EngineProcess("nothing", lambda socket, frames: ["/no/such/program"])


def test_what_it_has_started_ends_with_it(peer: EngineProcess) -> None:
    child = peer.request(5, op="child")[0]["pid"]
    peer.close()
    assert gone(peer.pid) and gone(child)
    peer.close()  # again is allowed


def test_a_forgotten_peer_ends_and_leaves_no_folder() -> None:
    one = start()
    pid, folder = one.pid, one._folder
    assert folder.is_dir() and oct(folder.stat().st_mode & 0o777) == "0o700"
    del one
    gc.collect()
    assert gone(pid) and not folder.exists()


def test_nothing_outlives_a_killed_controller() -> None:
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from test_process import start; "
        "one = start(); print(one.pid, one._folder, flush=True); time.sleep(1000)"
    )
    controller = subprocess.Popen([sys.executable, "-c", program, str(STANDIN.parent)], stdout=subprocess.PIPE, text=True)
    assert controller.stdout is not None
    pid, folder = controller.stdout.readline().split()
    assert is_running(int(pid))
    controller.kill()
    controller.communicate()
    assert gone(int(pid))
    shutil.rmtree(folder)  # the stand-in does not, as engines do


def test_a_forked_copy_of_the_controller_ends_nothing(peer: EngineProcess) -> None:
    child = os.fork()
    if child == 0:
        peer.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert peer.request(5, op="echo")[0]["echo"] == {"op": "echo"}
