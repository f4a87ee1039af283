"""What a run shows while it goes on, and the files that it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wmgym.cli import as_text, plain
from wmgym.files import as_json, write_atomically
from wmgym.progress import Progress


def write_result(out: Path, report: dict[str, Any]) -> None:
    """The report as `out/result.json`. NaN, which JSON lacks, becomes null."""
    write_atomically(out / "result.json", as_json(plain(report)))


def write_tables(out: Path | None, args: Any, report: dict[str, Any]) -> dict[str, Any]:
    """For quick programs: args.json, result.json and table.txt in the folder `out`, if one is given. Returns the report."""
    if out is None:
        return report
    write_atomically(out / "args.json", as_json(plain(asdict(args))))
    write_result(out, report)
    write_atomically(out / "table.txt", (as_text(plain(report)) + "\n").encode())
    return report


def show_in(bar: Progress) -> Callable[[str, int, int], None]:
    """A function (what is being made, frames done, frames in all) that shows them in a progress bar."""

    def show(what: str, done: int, total: int) -> None:
        if bar.disable:
            return
        if bar.desc != f"{what}: ":
            bar.set_description(what)
            bar.reset(total)
        bar.update(done - bar.n)

    return show


def check_positive(args: Any, *names: str) -> None:
    """ValueError if one of these options is not positive, or holds a number that is not."""
    for name in names:
        value = getattr(args, name)
        if any(not v > 0 for v in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name} must be positive, got {value}")


def check_seed(seed: int) -> None:
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
