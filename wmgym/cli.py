"""The command line: a table of commands. A command is a dataclass of options and a function that takes it.

The module of a command is imported only when the command is used. A function may return a report (a dict), which is printed as text, or
as JSON with `--json`. Bad input and failures print one line on stderr and give exit code 1.
"""

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import io
import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import tyro

from wmgym.registration import SYSTEMS
from wmgym.version import __version__


class Command(NamedTuple):
    """A command: its words after `wmgym`, and its target "module:Options:function", or "system NAME" for the training of a system."""

    words: str
    target: str
    summary: str
    reports: bool = True  # whether it returns a dict and so accepts --json


COMMANDS = (
    Command("list", "wmgym.listing:ListArgs:list_environments", "list environment ids, their ground truths, spaces and weights"),
    Command("doctor", "wmgym.doctor:DoctorArgs:examine", "report what is installed, what works, and how to install the rest"),
    Command("collect", "wmgym.agents.collect:CollectArgs:collect", "collect episodes of scripted walkers in a ground truth"),
    Command("import memory-maze", "wmgym.data.memory_maze:ImportArgs:import_episodes", "convert the published dataset to episodes"),
    *(Command(f"train {name}", f"system {name}", row.trains) for name, row in SYSTEMS.items() if row.trains),
    Command("distil", "wmgym.train.distil:DistilArgs:train", "fine-tune a checkpoint so that fewer denoising steps do"),
    Command("train reward", "wmgym.train.dreamed_rewards:RewardArgs:train", "fit a checkpoint's reward head to its own dreams"),
    Command("train distance", "wmgym.train.distance:DistanceArgs:train", "learn the distance in steps between two frames, for goal images"),
    Command("train ppo", "wmgym.experiments.ppo:PPOArgs:train", "train an agent in a dream with PPO, evaluate it in the ground truth"),
    Command("play", "wmgym.play:PlayArgs:play", "act in a dream or a ground truth with the keyboard", reports=False),
    Command("plan", "wmgym.experiments.plan:PlanArgs:plan", "plan in a dream, act in its ground truth"),
    Command("eval loopnav", "wmgym.experiments.loopnav:LoopNavArgs:evaluate", "walk loops, dream the way back, compare with the truth"),
    Command("eval replay", "wmgym.experiments.replay:ReplayArgs:evaluate", "dream the next frames of episodes, compare with the truth"),
    Command("eval loopmem", "wmgym.experiments.loopmem:LoopMemArgs:evaluate", "dream along closed paths, compare views of the same place"),
    Command("eval revisit", "wmgym.experiments.revisit:RevisitArgs:evaluate", "leave a view and return: mirrored turns, landmarks, judges"),
    Command("eval maze-returns", "wmgym.experiments.maze_returns:ReturnsArgs:evaluate", "returns of walkers in Memory Maze and of humans"),
    Command("eval recon", "wmgym.experiments.recon:ReconArgs:evaluate", "plan on recorded drives of RECON: ATE, RPE, frames far ahead"),
    Command("eval twin", "wmgym.experiments.twin:TwinArgs:evaluate", "compare a dream with its ground truth along the same actions"),
    Command("bench truth", "wmgym.experiments.bench:TruthArgs:bench_truth", "measure frames per second of a ground truth"),
    Command("bench model", "wmgym.experiments.bench:ModelArgs:bench_model", "measure milliseconds per dreamed step"),
    Command("bench train", "wmgym.experiments.bench:TrainArgs:bench_train", "measure examples per second of a training, by part"),
    Command(
        "bench memorise", "wmgym.experiments.bench:MemoriseArgs:bench_memorise", "measure updates of a memory that is fitted as it runs"
    ),
    Command("minecraft install", "wmgym.envs.minecraft.prismarine.install:InstallArgs:install", "install the Prismarine backend"),
    Command("demo", "wmgym.experiments.demo:DemoArgs:demo", "two loops, ground truth beside dream: films, strips and a map"),
)

BAD_INPUT = (ValueError, ImportError, OSError, gym.error.Error)  # the message says what to do
FAILURES = (RuntimeError, ArithmeticError, MemoryError)  # for example of torch or a GPU, or numbers that are not finite


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. The environment variable WMGYM_TRACEBACK=1 shows tracebacks of errors."""
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `wmgym list | head`: Python flushes stdout at exit, which must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (*BAD_INPUT, *FAILURES) as error:
        if os.environ.get("WMGYM_TRACEBACK"):
            raise
        print("error:", _in_one_line(error), file=sys.stderr)
        return 1


def _in_one_line(error: BaseException) -> str:
    """The message of an error. A failure may be a bug, so its type and the way to its traceback are printed too."""
    message, kind = " ".join(str(error).split()), type(error).__name__
    if isinstance(error, BAD_INPUT):
        return message or kind
    return f"{kind}: {message or 'no message'} (WMGYM_TRACEBACK=1 shows the traceback)"


def _run(arguments: list[str]) -> int:
    if arguments in ([], ["-h"], ["--help"]):
        print(_help(COMMANDS))
        return 0
    if arguments == ["--version"]:
        print(f"wmgym {__version__}")
        return 0
    for command in COMMANDS:
        words = command.words.split()
        if arguments[: len(words)] == words:
            return _call(command, arguments[len(words) :])
    group = [command for command in COMMANDS if command.words.split()[0] == arguments[0]]
    if group and arguments[1:] in (["-h"], ["--help"]):
        print(_help(group))
        return 0
    raise ValueError(_unknown(arguments, group))


def _call(command: Command, arguments: list[str]) -> int:
    module, options, function = _target(command.target).split(":")
    home = importlib.import_module(module)
    as_json = command.reports and "--json" in arguments
    args = _parse(getattr(home, options), command, [word for word in arguments if not (as_json and word == "--json")])
    report = getattr(home, function)(args)
    if command.reports and report is not None:
        print(json.dumps(plain(report), indent=2) if as_json else as_text(plain(report)))
    return 0


def _target(target: str) -> str:
    """The form "module:Options:function" of a target."""
    if not target.startswith("system "):
        return target
    from wmgym import systems  # here, since this loads torch

    return systems.get(target.removeprefix("system ")).train or ""


def _parse(options: type, command: Command, arguments: list[str]) -> Any:
    """An instance of `options` from the command line. ValueError with tyro's message on bad input."""
    about = inspect.getdoc(options) or command.summary
    if command.reports:
        about += "\n\n--json prints the report as JSON."
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(options, args=arguments, prog=f"wmgym {command.words}", description=about)
    except SystemExit as end:
        if not end.code:
            raise  # --help
        raise ValueError(f"{_first_paragraph(complaint.getvalue())}; see wmgym {command.words} --help") from None


def _first_paragraph(box: str) -> str:
    """The first paragraph of the box in which tyro prints an error."""
    lines = []
    for line in box.splitlines()[1:]:
        text = line.strip(" │")
        if not text.strip("─╰╯"):
            break
        lines.append(text)
    return " ".join(lines) or " ".join(box.split())


def _help(commands: Sequence[Command]) -> str:
    width = max(len(command.words) for command in commands)
    lines = [f"  {command.words:<{width}}  {command.summary}" for command in commands]
    return "\n".join(["usage: wmgym COMMAND [options]", "", *lines, "", "wmgym COMMAND --help explains a command."])


def _unknown(arguments: list[str], group: Sequence[Command]) -> str:
    if group:
        return f"wmgym {arguments[0]} needs one of: {', '.join(command.words.split()[1] for command in group)}"
    firsts = list(dict.fromkeys(command.words.split()[0] for command in COMMANDS))
    close = difflib.get_close_matches(arguments[0], firsts, n=1)
    return f"no command {arguments[0]!r}; " + (f"did you mean {close[0]!r}?" if close else f"known: {', '.join(firsts)}")


def plain(value: Any) -> Any:
    """The same report in JSON's types. NaN and infinities become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def as_text(report: dict[str, Any]) -> str:
    """A report as text: lists of dicts as tables, dicts as sections, other values as `name: value`."""
    parts = []
    for name, value in report.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            parts.append(f"{name}\n{_table(value)}\n")
        elif isinstance(value, dict):
            parts.append(f"{name}\n" + "\n".join("  " + line for line in as_text(value).splitlines()) + "\n")
        else:
            parts.append(f"{name}: {_cell(value)}")
    return "\n".join(parts).rstrip()


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    return "\n".join([lines[0], "  " + "  ".join("-" * width for width in widths), *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
