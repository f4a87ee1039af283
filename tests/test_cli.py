"""The command line says what it should, loads only what it must, and ends bad input in one clear line."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from wmgym import cli, doctor, play
from wmgym.listing import ListArgs, describe, list_environments, weights_of
from wmgym.registration import TABLE, row_of

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that bad input leaves on stderr; nothing on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    return err


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.words)
def test_every_command_has_help(command: cli.Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*command.words.split(), "--help"])
    assert not end.value.code
    text = capsys.readouterr().out
    assert f"usage: wmgym {command.words}" in text
    assert ("--json" in text) == command.reports


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.words)
def test_help_shows_no_comment_for_tools(command: cli.Command, capsys: pytest.CaptureFixture[str]) -> None:
    """tyro takes a comment beside an option for its help."""
    with pytest.raises(SystemExit):
        cli.main([*command.words.split(), "--help"])
    assert not re.search(r"noqa|type: ignore|pragma", capsys.readouterr().out)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {command.words} " in text for command in cli.COMMANDS)


def test_list_and_help_as_typed_load_no_torch() -> None:
    program = "import sys; from wmgym.cli import main; main(['list', '--json', '--variants']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in json.loads(done.stdout)["environments"]] == [row.id for row in TABLE]


def test_the_list_is_short_unless_variants_are_asked_for() -> None:
    short, long = (list_environments(ListArgs(variants=variants)) for variants in (False, True))
    ids = [row["id"] for row in short["environments"]]
    assert "MemoryMaze-9x9-v0" in ids and "MemoryMaze-9x9-Top-v0" not in ids and len(ids) < 25
    assert short["left_out"].startswith(f"{len(TABLE) - len(ids)} ") and "left_out" not in long


def test_a_reader_that_stops_early_is_no_error() -> None:
    done = subprocess.run(f"{sys.executable} -m wmgym list | true", shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def space_in_words(space: gym.Space) -> str:
    """A space in a few words: `pov 64x64x3 uint8`, `Discrete(10)`."""
    if isinstance(space, gym.spaces.Dict):
        return ", ".join(f"{name} {space_in_words(part)}" for name, part in sorted(space.items()))
    if isinstance(space, gym.spaces.Box):
        return f"{'x'.join(map(str, space.shape))} {space.dtype}"
    return str(space)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_list_tells_the_spaces_as_they_are(row) -> None:
    if "memory" in row.kwargs and weights_of(row.kwargs["checkpoint"]) != "bundled":
        pytest.skip("no weights here to make it with")
    env = gym.make(row.id)
    assert space_in_words(env.observation_space) == describe(row.observation_space)
    assert space_in_words(env.action_space) == describe(row.action_space)
    env.close()


def test_twins_tell_the_same_world() -> None:
    for row in TABLE:
        if row.twin is not None:
            truth = row_of(row.twin)
            assert truth.setting == row.setting and truth.observation_space == row.observation_space


def test_doctor_reports_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    status = {row["package"]: row["status"] for row in report["packages"]}
    assert status["torch"] == status["numba"] == "ok"
    assert report["devices"][0]["device"] == "cpu"


def test_doctor_knows_every_core_dependency_and_names_real_extras() -> None:
    core = {re.split(r"[<>=]", line)[0] for line in PROJECT["dependencies"]}
    assert core <= {package.name for package in doctor.PACKAGES if not package.extra}
    assert {package.extra for package in doctor.PACKAGES} - {""} <= PROJECT["optional-dependencies"].keys()


def test_doctor_tells_missing_from_broken() -> None:
    missing = doctor.package_row(doctor.Package("no-such-package", "no_such_module", "nothing", "play"))
    assert (missing["status"], missing["how to get it"]) == ("missing", "pip install 'wmgym[play]'")
    broken = doctor.package_row(doctor.Package("numpy", "numpy.no_such_module", "nothing"))
    assert broken["status"] == "broken"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["lst"], "did you mean 'list'?"),
        (["train"], "needs one of: worldpack"),
        (["eval", "nothing"], "needs one of: loopnav"),
        (["list", "--nothing"], "Unrecognized options: --nothing"),
        (["play"], "Missing from wmgym play: ID"),
        (["play", "Minecraft-v0", "--zoom", "big"], "--zoom"),
        (["play", "Nowhere-v0"], "'Nowhere-v0'; nearest: "),
        (["play", "minecraft"], "'minecraft'; nearest: Minecraft-v0, NWM-Minecraft-v0, "),
        (["collect", "Minecraf-v0"], "nearest: Minecraft-v0, "),
        (["play", "Minecraft-v0", "--memory", "none"], "Minecraft-v0 is a ground truth and has no option --memory"),
    ],
)
def test_bad_input_ends_in_one_line(typed: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(typed) == 1
    assert said in error_line(capsys)


def test_play_without_pygame_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pygame" else find(name, *rest))
    assert cli.main(["play", "Minecraft-v0"]) == 1
    assert "pip install 'wmgym[play]'" in error_line(capsys)


class FakePygame(types.ModuleType):
    """As much of pygame as the check of the display needs."""

    class error(RuntimeError):
        pass

    def __init__(self, driver: str) -> None:
        super().__init__("pygame")
        self.driver, self.display = driver, self

    def init(self) -> None:
        if not self.driver:
            raise self.error("No available video device")

    def get_driver(self) -> str:
        return self.driver

    def quit(self) -> None:
        pass


@pytest.mark.parametrize("driver", ["offscreen", "dummy", ""])
def test_play_without_a_display_is_refused_before_any_work(
    driver: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pygame", FakePygame(driver))
    monkeypatch.setattr(gym, "make", lambda *args, **keywords: pytest.fail("an env was made"))
    assert cli.main(["play", "Minecraft-v0"]) == 1
    line = error_line(capsys)
    assert driver in line
    assert "use a machine with a screen" in line


def test_play_takes_a_display_that_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", FakePygame("x11"))
    assert play.check_window() == "x11"


def test_play_prints_keys_in_words() -> None:
    keys = [play._key_name(key) for key in [(" ",), ("w", " "), (ord(" "),), ord(" "), ("a", "w"), ()]]
    assert keys == ["space", "w+space", "space", "space", "a+w", "nothing"]


@dataclass(frozen=True)
class FakeArgs:
    """Options of a command made for these tests."""

    steps: int = 1  # must be positive

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be positive, got {self.steps}")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module behind `wmgym fake`; tests set its `run`."""
    module = types.ModuleType("fake_command")
    module.FakeArgs = FakeArgs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_command", module)
    monkeypatch.setattr(cli, "COMMANDS", (cli.Command("fake", "fake_command:FakeArgs:run", "for tests"),))
    return module


@pytest.mark.parametrize(
    "error",
    [
        ValueError("frames must be uint8,\n  got float32"),
        FileNotFoundError(2, "No such file or directory", "data/x"),
        OSError(28, "No space left on device"),
        ImportError("install it"),
        gym.error.NameNotFound("no such id"),
    ],
)
def test_errors_of_a_command_become_one_line(fake, error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def run(args: FakeArgs) -> None:
        raise error

    fake.run = run
    assert cli.main(["fake"]) == 1
    assert " ".join(str(error).split()) in error_line(capsys)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("mat1 and mat2\nhave other shapes"), "RuntimeError: mat1 and mat2 have other shapes"),
        (FloatingPointError("lanes [0]: not finite"), "FloatingPointError: lanes [0]: not finite"),
        (NotImplementedError("variant 'Top' is seen from above"), "NotImplementedError: variant 'Top' is seen from above"),
        (MemoryError(), "MemoryError: no message"),
    ],
)
def test_failures_become_one_line_that_names_their_type(
    fake, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: FakeArgs) -> None:
        raise error

    fake.run = run
    assert cli.main(["fake"]) == 1
    assert error_line(capsys) == f"error: {said} (WMGYM_TRACEBACK=1 shows the traceback)\n"
    monkeypatch.setenv("WMGYM_TRACEBACK", "1")
    with pytest.raises(type(error)):
        cli.main(["fake"])


def test_a_fault_of_ours_is_not_hidden(fake) -> None:
    def run(args: FakeArgs) -> None:
        raise KeyError("a bug")

    fake.run = run
    with pytest.raises(KeyError):
        cli.main(["fake"])


def test_options_check_themselves(fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fake", "--steps", "0"]) == 1
    assert "steps must be positive, got 0" in error_line(capsys)


def test_a_report_is_the_same_as_text_and_as_json(fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.run = lambda args: {
        "steps": args.steps,
        "psnr": np.float32(20.5),
        "lpips": float("nan"),
        "out": Path("runs"),
        "ranges": [{"range": 5, "mean": 21.123456}, {"range": 50, "mean": None}],
        "fit": {"loss": [0.5, 0.25]},
    }
    assert cli.main(["fake", "--steps", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["steps"], report["psnr"], report["lpips"], report["out"]) == (3, 20.5, None, "runs")
    assert report["ranges"][0]["mean"] == 21.123456

    assert cli.main(["fake", "--steps", "3"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "steps: 3",
        "psnr: 20.5",
        "lpips: -",
        "out: runs",
        "ranges",
        "  range  mean",
        "  -----  -----",
        "  5      21.12",
        "  50     -",
        "",
        "fit",
        "  loss: 0.5, 0.25",
    ]


def test_what_is_listed_as_bundled_is_what_can_be_loaded() -> None:
    """Weights in several parts count as bundled too."""
    from wmgym.checkpoint import bundled

    named = {row.kwargs["checkpoint"] for row in TABLE if "checkpoint" in row.kwargs}
    assert {name for name in named if weights_of(name) == "bundled"} == named & set(bundled())
