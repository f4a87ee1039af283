"""A kill (SIGKILL) at any moment of a save, an evaluation or a training run costs time and nothing else.

`make test` kills each twice, `make test-slow` 50 times.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "kills.py"


@pytest.mark.parametrize("times", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_the_finished_result_is_that_of_undisturbed_work(times: int, tmp_path: Path) -> None:
    """In a fresh interpreter, since only a process that has computed no gradient may be forked."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(times), str(tmp_path)],
        capture_output=True, text=True, timeout=3000, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = dict(line.split(": ") for line in done.stdout.splitlines())
    assert lines.keys() == {"episode", "state", "evaluation", "training"}
    assert all(int(words.split()[0]) >= times // 4 for words in lines.values()), lines
