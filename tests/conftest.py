"""One thread and known seeds: tests give the same numbers on a busy machine as on an idle one.

With `--allowed-skips FILE` (CI) a test that is skipped for a reason that FILE does not allow on this machine fails the run.
"""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

MACHINES = {  # what a line of the file may ask of the machine
    "any": lambda: True,
    "no-node": lambda: shutil.which("node") is None or shutil.which("npm") is None,
    "not-root": lambda: os.getuid() != 0,
    "no-gpu": lambda: not torch.cuda.is_available(),
    "gpu": torch.cuda.is_available,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--allowed-skips", type=Path, default=None, help="file of allowed reasons: 'MACHINE: REGEX' per line")


def unexpected_skips(reasons: list[str], rules: str) -> list[str]:
    """Reasons that no rule allows on this machine."""
    lines = [line.split(": ", 1) for line in rules.splitlines() if line.strip() and not line.startswith("#")]
    allowed = [pattern for machine, pattern in lines if MACHINES[machine]()]
    return sorted({reason for reason in reasons if not any(re.search(pattern, reason) for pattern in allowed)})


def pytest_sessionfinish(session: pytest.Session) -> None:
    file, reporter = session.config.getoption("--allowed-skips"), session.config.pluginmanager.get_plugin("terminalreporter")
    if file is None or reporter is None or hasattr(session.config, "workerinput"):
        return
    reasons = [report.longrepr[2] for report in reporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple)]
    wrong = unexpected_skips(reasons, file.read_text())
    for reason in wrong:
        reporter.write_line(f"skipped for a reason that {file} does not allow here: {reason}", red=True)
    if wrong and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
