"""The code in README.md and docs/ runs as it is printed, its commands are understood, its links lead to files.

Every page can be reached from README.md.
"""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest

from wmgym import cli, settings, systems
from wmgym.checkpoint import bundled

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "experiments" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = [*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "wmgym" / "weights").glob("*.md"))]
WITH_EXAMPLES = ("README.md", "docs/bring_your_own.md")
LONGEST = 60  # lines of an example


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language; "" for those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [code for name, code in found if name == language]


def commands(page: Path) -> list[str]:
    """The `wmgym` commands in the blocks of a page and at the beginning of its tables' rows."""
    rows = re.findall(r"^\| `(wmgym .*?)`", page.read_text(), re.MULTILINE)
    lines = [line.partition(" #")[0].strip() for block in blocks(page, "") for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in [*lines, *rows] if line.startswith("wmgym ")]


def links(text: Path) -> list[str]:
    """Relative links and pictures of a text, without anchors. What stands in code is no link."""
    words = re.sub(r"```.*?```|`[^`\n]*`", "", text.read_text(), flags=re.DOTALL)
    targets = (target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", words))
    return [target for target in targets if target and not re.match(r"[a-z]+:", target)]


@pytest.fixture
def _tables() -> Iterator[None]:
    """What the examples register is forgotten after each page."""
    tables: tuple[dict, ...] = (settings.TABLE, systems.TABLE, gym.registry)
    before = [dict(table) for table in tables]
    yield
    for table, known in zip(tables, before, strict=True):
        table.clear()
        table.update(known)


@pytest.mark.usefixtures("_tables")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The python blocks of a page run in order, in one namespace, each with its own assertions."""
    monkeypatch.chdir(tmp_path)
    examples = blocks(page, "python")
    if name_of(page) in WITH_EXAMPLES:
        assert examples, f"{page.name} has lost its examples"
    namespace: dict[str, object] = {}
    for block in examples:
        if "worldpack-minecraft" in block or "WorldPack-Minecraft" in block:
            assert "worldpack-minecraft" in bundled()
        exec(compile(block, str(page), "exec", dont_inherit=True), namespace)  # this file's __future__ import is not the page's


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_examples_are_short(page: Path) -> None:
    assert all(len(block.splitlines()) <= LONGEST for block in blocks(page, "python"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_understood(page: Path) -> None:
    """Their names and options exist, and the values are of the right kind. Nothing is run."""
    for words in map(shlex.split, commands(page)):
        command = next(c for c in cli.COMMANDS if words[1:][: len(c.words.split())] == c.words.split())
        module, options, _ = cli._target(command.target).split(":")
        cli._parse(getattr(importlib.import_module(module), options), command, words[1 + len(command.words.split()) :])


@pytest.mark.parametrize("page", [page for page in PAGES if "results" not in page.parts], ids=name_of)
def test_commands_leave_the_precision_to_the_machine(page: Path) -> None:
    """bfloat16 is slow on most CPUs. Pages of results keep the commands that printed their figures."""
    assert [line for line in commands(page) if re.search(r"--dtype (?!auto)", line)] == []


@pytest.mark.parametrize("text", TEXTS, ids=name_of)
def test_relative_links_lead_to_files(text: Path) -> None:
    missing = [target for target in links(text) if not (text.parent / target).exists()]
    assert not missing, f"{name_of(text)} links to {missing}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    found, waiting = {README}, [README]
    while waiting:
        page = waiting.pop()
        targets = {(page.parent / target).resolve() for target in links(page)}
        new = {target for target in targets if target.suffix == ".md" and target.is_file()} - found
        found |= new
        waiting += new
    assert sorted(name_of(page) for page in {*PAGES, ROOT / "CHANGELOG.md"} - found) == []
