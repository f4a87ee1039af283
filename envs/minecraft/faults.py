"""Errors of an engine that runs in its own process. Each shows the end of that process's log.

After any of them the process is gone and the env needs `reset()`, which starts a new one.
"""

from __future__ import annotations

import gymnasium as gym

LOG_LINES = 12  # last lines of the log that an error shows


class BackendError(gym.error.Error):
    """An engine's process failed. `log` is the end of its output."""

    def __init__(self, message: str, log: str = "") -> None:
        tail = "\n".join(log.rstrip().splitlines()[-LOG_LINES:])
        super().__init__(f"{message}\n{tail}" if tail else message)
        self.log = log


class BackendStartError(BackendError):
    """The process did not start, or exited before it was ready."""


class BackendDied(BackendError):
    """The process exited, or closed the connection, while it was needed."""


class BackendTimeout(BackendError):
    """The process did not answer in time and was killed."""


class BackendFault(BackendError):
    """The process reported an internal error while it carried out a valid request."""
