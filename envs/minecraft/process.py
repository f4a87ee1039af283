"""A process that runs an engine, and the connection to it: a Unix socket, and a file for frames, in a private folder.

Each request gets one reply. A message is its length (uint32, little endian) followed by JSON. A reply whose JSON holds `bytes: n` is
followed by n raw bytes. Frames do not go through the socket: the process writes them into a file that both sides map into memory. The
folder is readable by its owner only and no port is opened, so no other user can connect. Each side notices at once when the other exits.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wmgym.envs.minecraft.faults import BackendDied, BackendFault, BackendStartError, BackendTimeout

CHANNELS = 4  # RGBA, the format of OpenGL drivers
GRACE = 5.0  # seconds to exit on request, and again after SIGTERM
LOG_BYTES = 8192


class EngineProcess:
    """A running process. The constructor waits for its first message; any failure ends the process and raises a `BackendError`.

    command: maps the paths of the socket and of the frames file to the command line.
    environment: variables added to those of the calling process.
    start_timeout: seconds until the first message.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[str, str], Sequence[str]],
        environment: Mapping[str, str] | None = None,
        start_timeout: float = 60.0,
    ) -> None:
        self.name = name
        memory = Path("/dev/shm")
        self._folder = Path(tempfile.mkdtemp(prefix="wmgym-", dir=memory if os.access(memory, os.W_OK) else None))
        self._frames_file = open(self._folder / "frames", "w+b")  # noqa: SIM115  # closed by _end
        self._frames: mmap.mmap | None = None
        self._socket: socket.socket | None = None
        self._sockets: list[socket.socket] = []  # holds the same socket, for `_end`
        with open(self._folder / "log", "wb") as log, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._folder / "socket"))
            listener.listen(1)
            try:
                self._process = subprocess.Popen(
                    list(command(str(self._folder / "socket"), str(self._folder / "frames"))),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,  # so that a signal also reaches its child processes
                )
            except OSError as error:
                self._frames_file.close()
                shutil.rmtree(self._folder, ignore_errors=True)
                raise BackendStartError(f"{name} cannot be started: {error}") from error
            self._end = weakref.finalize(self, _end, os.getpid(), self._sockets, self._process, self._folder, self._frames_file)
            self._accept(listener, start_timeout)
        try:
            self.hello = self.receive(start_timeout)[0]
        except (BackendDied, BackendFault) as error:
            raise BackendStartError(f"{name} did not start: {str(error).splitlines()[0]}", error.log) from None

    def _accept(self, listener: socket.socket, timeout: float) -> None:
        end = time.monotonic() + timeout
        while not select.select([listener], [], [], 0.05)[0]:
            if self._process.poll() is not None:
                raise BackendStartError(f"{self.name} did not start: {_ending(self._process.returncode)}", self.close())
            if time.monotonic() > end:
                raise BackendTimeout(f"{self.name} did not start within {timeout:g} s", self.close())
        self._socket = listener.accept()[0]
        self._sockets.append(self._socket)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether requests can still be sent."""
        return self._socket is not None

    def request(self, timeout: float, **message: Any) -> tuple[dict[str, Any], bytes]:
        """Send a request and wait for the reply."""
        self.send(message)
        return self.receive(timeout)

    def send(self, message: dict[str, Any]) -> None:
        """Send a request without waiting for the reply."""
        if self._socket is None:
            raise BackendDied(f"{self.name} is not running: reset() starts it")
        try:
            self._socket.settimeout(GRACE)
            self._socket.sendall(_message(message))
        except OSError as error:
            raise self._gone(error) from None

    def receive(self, timeout: float) -> tuple[dict[str, Any], bytes]:
        """The reply to the oldest open request: its JSON and its raw bytes. ValueError if the process refused the request.

        BackendTimeout, BackendDied or BackendFault if there is no valid reply within `timeout` seconds. The process is then gone.
        """
        if self._socket is None:
            raise BackendDied(f"{self.name} is not running: reset() starts it")
        end = time.monotonic() + timeout
        try:
            answer = json.loads(self._read(struct.unpack("<I", self._read(4, end))[0], end))
            content = self._read(answer.get("bytes", 0), end)
        except TimeoutError:
            raise BackendTimeout(f"{self.name} did not answer within {timeout:g} s and was killed", self.close(at_once=True)) from None
        except (OSError, ValueError) as error:
            raise self._gone(error) from None
        except BaseException:  # interrupted within a reply: the rest of it would be mistaken for the next reply
            self.close(at_once=True)
            raise
        if "refused" in answer:
            raise ValueError(answer["refused"])
        if "error" in answer:
            raise BackendFault(f"{self.name} failed: {answer['error']}", self.close())
        return answer, content

    def _read(self, count: int, end: float) -> bytes:
        assert self._socket is not None
        data = bytearray(count)
        view, done = memoryview(data), 0
        while done < count:
            self._socket.settimeout(max(end - time.monotonic(), 1e-3))
            got = self._socket.recv_into(view[done:])
            if got == 0:
                raise ConnectionResetError("the connection was closed")
            done += got
        return bytes(data)

    def _gone(self, error: Exception) -> BackendDied:
        log = self.close()
        why = "it ran out of memory" if "out of memory" in log else _ending(self._process.returncode)
        return BackendDied(f"{self.name} is gone ({why}; {error}); reset() starts a new one", log)

    def newest_frame(self, height: int, width: int) -> NDArray[np.uint8]:
        """The frame drawn last at this size: uint8 [height, width, 4], a view of the shared memory. Needs `reserve` before drawing."""
        assert self._frames is not None
        return np.frombuffer(self._frames, np.uint8, height * width * CHANNELS).reshape(height, width, CHANNELS)

    def reserve(self, height: int, width: int) -> None:
        """Make room for frames of this size."""
        size = height * width * CHANNELS
        if self._frames is None or len(self._frames) < size:
            self._frames_file.truncate(size)
            self._frames = mmap.mmap(self._frames_file.fileno(), size)

    def close(self, at_once: bool = False) -> str:
        """End the process and its children, and return the end of its log. It is killed if it does not exit in time, or `at_once`.

        May be called repeatedly.
        """
        self._socket = self._frames = None
        if at_once:
            _signal(self._process, signal.SIGKILL)
        return self._end() or ""


def _end(owner: int, sockets: list[socket.socket], process: subprocess.Popen[bytes], folder: Path, frames: Any) -> str:
    """The work of `close`. It also runs when an `EngineProcess` is garbage-collected, and when Python exits."""
    if os.getpid() != owner:
        return ""  # a forked copy of the owner exits; the owner still needs the process
    for connection in sockets:  # the process exits on "close", and also when the socket closes
        with contextlib.suppress(OSError):
            connection.sendall(_message({"op": "close"}))
        connection.close()
    started = _descendants(process.pid)  # some start their own sessions, such as MineRL's Java
    for force in (None, signal.SIGTERM, signal.SIGKILL):
        if force is not None:
            _signal(process, force)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
            break
    _signal(process, signal.SIGKILL)  # whatever remains of its session
    for pid, start_time in started.items():
        if start_time and _start_time(pid) == start_time:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    frames.close()
    try:
        log = (folder / "log").read_bytes()[-LOG_BYTES:].decode(errors="replace")
    except OSError:
        log = ""
    shutil.rmtree(folder, ignore_errors=True)
    return log


def _message(message: dict[str, Any]) -> bytes:
    text = json.dumps(message).encode()
    return struct.pack("<I", len(text)) + text


def _descendants(pid: int) -> dict[int, str]:
    """All descendants of a process: process id -> start time. Empty on systems without /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents.setdefault(int(entry.read_text().rsplit(")", 1)[1].split()[1]), []).append(int(entry.parent.name))
    found, waiting = {}, [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            found[child] = _start_time(child)
            waiting.append(child)
    return found


def _start_time(pid: int) -> str:
    """Start time of a process, which tells it apart from a later process with the same id; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _ending(code: int | None) -> str:
    if code is None:
        return "it still runs"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with code {code}"
