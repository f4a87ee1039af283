"""The Dockerfile, as far as it can be checked without Docker."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = [line for line in (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
STEPS = [tuple(line.split(maxsplit=1)) for line in LINES]
WORDS = [word for word, _ in STEPS]


def test_every_line_is_an_instruction() -> None:
    assert WORDS[0] == "FROM"
    assert set(WORDS) <= {"FROM", "RUN", "USER", "WORKDIR", "COPY", "ARG", "ENV", "CMD"}


def test_it_runs_the_demo_for_a_user_without_privileges() -> None:
    """The user comes before the files and the install, so that all is theirs."""
    assert STEPS[-1] == ("CMD", '["make", "demo"]')
    assert re.search(r"^demo:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    user = WORDS.index("USER")
    assert STEPS[user][1] != "root" and WORDS.count("USER") == 1
    assert user < WORDS.index("COPY") < next(i for i, (_, rest) in enumerate(STEPS) if "make setup" in rest)


def test_its_extras_exist() -> None:
    extras = dict(rest.split("=", 1) for word, rest in STEPS if word == "ARG" and "=" in rest)["EXTRAS"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    assert "EXTRAS :=" in (ROOT / "Makefile").read_text()  # which the command line replaces


def test_what_git_ignores_at_the_top_is_not_copied() -> None:
    """Above all .venv, which `make setup` would take for its own."""
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if re.fullmatch(r"/?[\w.]+/", line)}
    left_out = {line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    assert ignored | {".git"} <= left_out
