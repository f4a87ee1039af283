"""What `wmgym doctor` finds on machines that lack something."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path

import pytest

from wmgym import checkpoint, doctor, listing


@pytest.mark.parametrize(("native", "dtype", "why"), [(True, "bfloat16", "native"), (False, "float32", "emulated")])
def test_it_says_which_precision_auto_is_and_why(native: bool, dtype: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "multiplies_bfloat16", lambda: native)
    row = doctor.devices()[0]
    assert (row["device"], row["dtype auto"]) == ("cpu", dtype)
    assert why in row["why"]


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundled files, which the package then reads."""
    folder = tmp_path / "weights"
    shutil.copytree(listing.WEIGHTS, folder)
    for module in (doctor, listing):
        monkeypatch.setattr(module, "WEIGHTS", folder)
    return folder


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def test_it_reads_every_bundled_file(bundled: Path) -> None:
    """Also those that no id names."""
    for part in list(bundled.glob("worldpack-minecraft-*")):
        shutil.copy(part, bundled / part.name.replace("minecraft", "other"))
    assert "worldpack-other" in doctor.bundled_names()
    for name in doctor.bundled_names():
        assert "checksums match" in doctor.weights(name)


def test_a_damaged_file_is_broken(bundled: Path) -> None:
    for file in [*bundled.glob("worldpack-minecraft-00002*"), *bundled.glob("*.npz")]:
        flip_a_bit(file)
    rows = {row["part"]: row for row in doctor.bundled_files()}
    broken = {part for part, row in rows.items() if row["status"] == "broken"}
    assert broken == {"weights of worldpack-minecraft", "opening clips memory_maze-openings.npz"}
    assert "checksum in its header" in rows["weights of worldpack-minecraft"]["detail"]


def test_the_first_step_is_not_counted_as_a_warm_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Env:
        steps = 0

        def reset(self, seed: int) -> None:
            now[0] += 2

        def step(self, action: int) -> None:
            now[0] += 0.01 if self.steps else 30
            self.steps += 1

        def close(self) -> None:
            pass

    monkeypatch.setattr(doctor.time, "perf_counter", lambda: now[0])
    assert doctor.walk(Env, 0) == "2.0 s, first step 30000.0 ms, then 10.0 ms per step"


def test_ffmpeg_is_that_of_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """moviepy ignores one on the PATH."""
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    row = doctor.attempt("ffmpeg", doctor.ffmpeg)
    assert row["status"] == "missing"
    assert "pip install 'wmgym[video]'" in row["detail"]

    package = types.ModuleType("imageio_ffmpeg")
    package.get_ffmpeg_exe = lambda: str(program)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", package)
    assert doctor.attempt("ffmpeg", doctor.ffmpeg) == {"part": "ffmpeg", "status": "ok", "detail": str(program)}
    program.write_text("#!/bin/sh\nexit 1\n")
    assert doctor.attempt("ffmpeg", doctor.ffmpeg)["status"] == "broken"


def test_a_window_that_nobody_sees_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    row = doctor.attempt("window", doctor.window)
    assert (row["status"], row["detail"]) == ("missing", "wmgym play needs pygame: pip install 'wmgym[play]'")
