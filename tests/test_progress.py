"""On a terminal there is a bar; in a log there is one line per phase."""

import io
import re
import sys
from pathlib import Path

import pytest
import torch

from wmgym.envs.minecraft.prismarine import install
from wmgym.progress import Progress
from wmgym.train.loop import TIMED_STEPS, LoopConfig, fit


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_has_one_line_per_phase(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=3000, desc="collect", unit="step", mininterval=0) as bar:
        for i in range(3000):
            bar.set_postfix({"loss": i})
            bar.update()
    assert capsys.readouterr().err == "collect, 3000 of 3000 steps, 00:00\n"


def test_a_new_description_ends_a_phase(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(unit="loop") as bar:
        for name in ("walking", "walking", "dreaming"):
            bar.set_description(name)
        bar.update()
    assert capsys.readouterr().err.splitlines() == ["walking, 00:00", "dreaming, 1 loop, 00:00"]


def test_an_iterable_is_one_phase(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Progress(range(1000), desc="read", unit="file")) == list(range(1000))
    assert capsys.readouterr().err == "read, 1000 of 1000 files, 00:00\n"


def test_a_phase_that_fails_leaves_the_error_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with Progress(total=2, desc="collect") as bar:
            bar.update()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert capsys.readouterr().err == ""


def test_without_progress_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=2, desc="collect", disable=True) as bar:
        bar.set_description("more")
        bar.update(2)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(total=2, desc="collect") as bar:
        bar.update(2)
    assert "collect: 100%" in terminal.getvalue()
    assert terminal.getvalue().count("\n") == 1


def test_an_experiment_writes_one_line_for_each_thing_it_makes(capsys: pytest.CaptureFixture[str]) -> None:
    from wmgym.experiments.support.report import show_in

    with Progress(unit="frame") as bar:
        show = show_in(bar)
        for what in ("turn none", "turn worldpack"):
            for done in (40, 80, 120):
                show(what, done, 120)
    assert capsys.readouterr().err.splitlines() == ["turn none, 120 of 120 frames, 00:00", "turn worldpack, 120 of 120 frames, 00:00"]


def test_an_install_writes_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\nfor i in 1 2 3 4 5; do echo line $i; sleep 0.3; done\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    install._npm("packages", tmp_path, "ci")
    assert re.fullmatch(r"packages, 00:0\d\n", capsys.readouterr().err)


def test_the_estimate_of_a_training_is_no_part_of_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It goes to standard error: standard output may be JSON."""
    module = torch.nn.Linear(2, 1)
    optimisers = {"adam": torch.optim.Adam(module.parameters())}
    config = LoopConfig(steps=TIMED_STEPS + 5, save_every=100, log_every=100)
    fit(module, optimisers, lambda _: ({"total": module(torch.ones(4, 2)).square().mean()}, {}), config, tmp_path, name="net")
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("net: about") and second.startswith(f"net, {TIMED_STEPS + 5} of {TIMED_STEPS + 5} steps")
