"""The code in README.md and docs/ runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wmgym.checkpoint import bundled

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """The python blocks of a page run in order, in one namespace, each with its own assertions."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    if page.name in ("README.md", "bring_your_own.md"):
        assert blocks, f"{page.name} has lost its examples"
    namespace: dict[str, object] = {}
    for block in blocks:
        if "worldpack-minecraft" in block or "WorldPack-Minecraft" in block:
            assert "worldpack-minecraft" in bundled()
        exec(compile(block, str(page), "exec"), namespace)
