"""Progress bars on a terminal, and one line per phase in a log."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

from tqdm import tqdm


class Progress(tqdm):
    """`tqdm`. Where standard error is no terminal, it draws no bar and writes one line when a phase ends.

    A phase ends when the description changes and when the bar is closed. A phase that an exception ends has no line.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._log = None if sys.stderr.isatty() else sys.stderr
        self._began = time.monotonic()
        super().__init__(*args, **options, **({"file": io.StringIO()} if self._log else {}))

    def display(self, *args: Any, **options: Any) -> Any:
        return super().display(*args, **options) if self._log is None else True

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        if not self.disable and self.desc not in ("", f"{desc}: "):
            self._end_phase()
        super().set_description(desc, refresh)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is not None:
            self._log = self._log and io.StringIO()
        super().__exit__(kind, error, traceback)

    def close(self) -> None:
        if not self.disable:  # closing disables it
            self._end_phase()
        super().close()

    def _end_phase(self) -> None:
        now = time.monotonic()
        elapsed, self._began = now - self._began, now
        if self._log is None:
            return
        unit = self.unit if self.n == 1 else f"{self.unit}s"
        count = f"{self.n} {unit}" if self.total is None else f"{self.n} of {self.total} {self.unit}s"
        parts = [self.desc.removesuffix(": "), *([count] if self.n else []), self.format_interval(elapsed)]
        self._log.write(", ".join(filter(None, parts)) + "\n")
        self._log.flush()
