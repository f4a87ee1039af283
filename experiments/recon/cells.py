"""Rows on disk: one file per evaluation and method, which grows with each batch of tasks. A killed run resumes from these files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wmgym.data.recon import Task
from wmgym.experiments.recon.pictures import plain
from wmgym.files import write_atomically

Row = Mapping[str, Any]


class Cells:
    """The files of a folder as they were when the run started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        read = {file: _read(file) for file in sorted(folder.glob("*.json"))}
        self._cells = {file: cell for file, cell in read.items() if cell is not None}

    def told(self, key: str) -> Any:
        """What the folder's rows were made with, for options that are "auto"; None if there are no rows."""
        return next((cell["made_with"][key] for cell in self._cells.values() if key in cell["made_with"]), None)

    def check(self, name: str, made_with: Mapping[str, Any]) -> None:
        """ValueError if a cell has rows of other weights or options: they are neither used nor overwritten."""
        file = self._file(name)
        there = self._cells[file]["made_with"] if file in self._cells else made_with
        for key in sorted((made_with.keys() | there.keys()) - {"checkpoint"}):  # the same weights may have moved
            if there.get(key) != made_with.get(key):
                was = f"{key}={there.get(key)!r} (checkpoint {there.get('checkpoint')!r}), not {made_with.get(key)!r}"
                raise ValueError(f"{file} holds rows made with {was}; use another folder, or remove the file to make them again")

    def rows(self, name: str, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """The finished rows of a cell, if they are of the first tasks."""
        rows = self._cells.get(self._file(name), {}).get("rows", [])[: len(tasks)]
        same = all((row["trajectory"], row["time"]) == (task.trajectory, task.time) for row, task in zip(rows, tasks))
        return [*rows] if same else []

    def write(self, name: str, made_with: Mapping[str, Any], rows: Sequence[Row]) -> None:
        write_atomically(self._file(name), json.dumps({"made_with": made_with, "rows": rows}).encode())

    def _file(self, name: str) -> Path:
        return self._folder / f"{plain(name)}.json"


def _read(file: Path) -> dict[str, Any] | None:
    """A cell with its rows and what they were made with; None if the file is damaged, ValueError if an older version wrote it."""
    try:
        cell = json.loads(file.read_text())
    except ValueError:
        return None
    if not isinstance(cell, dict) or "made_with" not in cell:
        raise ValueError(f"{file} does not say what its rows were made with; use another folder")
    return cell
