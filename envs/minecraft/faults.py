"""What can go wrong with an engine that runs in a process of its own. Each is told with the end of that process's log.

After any of these the process is gone and the env waits for `reset()`, which starts a new one.
"""

from __future__ import annotations

import gymnasium as gym

LOG_LINES = 12  # of the log's end that an error shows


class BackendError(gym.error.Error):
    """An engine's process failed. `log` is the end of what it wrote."""

    def __init__(self, message: str, log: str = "") -> None:
        tail = "\n".join(log.rstrip().splitlines()[-LOG_LINES:])
        super().__init__(f"{message}\n{tail}" if tail else message)
        self.log = log


class BackendStartError(BackendError):
    """It did not start, or ended before it was ready."""


class BackendDied(BackendError):
    """It ended, or cut the connection, while it was needed."""


class BackendTimeout(BackendError):
    """It did not answer in time; it was killed."""


class BackendFault(BackendError):
    """It answered that it could not do what it was asked for, through no fault of the asker."""
