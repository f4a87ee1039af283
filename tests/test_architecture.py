"""Imports point one way, `import wmgym` stays light, only a system's own files name it, and files are short."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wmgym import registration

ROOT = Path(__file__).resolve().parents[1]

# A part imports only what stands above it. `kinematics` and `tasks` stand high, right after geometry: the simulators and the
# world model both need what an action does and what is rewarded, and neither may import the other.
ORDER = (
    "version jit extras progress constants geometry core tree rng kinematics tasks settings registration vectors hub files data "
    "diffusion nets memory world_model captured systems checkpoint metrics train benchmarks episode openings shell make state_file "
    "vector_env env twins integrations"
).split()
ROOF = {"__init__", "__main__", "cli", "doctor", "listing", "play"}  # may use everything; nothing imports them
MOUNTED = {"envs", "agents", "experiments"}  # folders beside the library, which must not know them
ENVS_MAY_USE = set("jit extras progress core tree rng geometry kinematics tasks settings vectors data envs".split())


def part_of(file: Path, folder: Path) -> str:
    """The name of the file or folder directly under `folder` that holds this file."""
    return file.relative_to(folder).parts[0].removesuffix(".py")


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Full names of everything a source imports, also inside functions; `package` is where it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imported_parts(source: str, package: str) -> set[str]:
    """The parts of wmgym that a source imports. A name of the package itself (`wmgym.twin`) counts as `__init__`."""
    names = [name.split(".") for name in imported_modules(source, package)]
    tops = {name[1] if len(name) > 1 else "__init__" for name in names if name[0] == "wmgym"}
    return {top if top in {*ORDER, *ROOF, *MOUNTED} else "__init__" for top in tops}


def library_files() -> list[Path]:
    return sorted((ROOT / "wmgym").rglob("*.py"))


def package_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).parent.parts)


@pytest.mark.parametrize("file", library_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_library_imports_only_what_stands_above(file: Path) -> None:
    part = part_of(file, ROOT / "wmgym")
    assert part in {*ORDER, *ROOF}, f"{part} has no place in the order: give it one here"
    if part in ROOF:
        return
    above = set(ORDER[: ORDER.index(part) + 1])
    wrong = imported_parts(file.read_text(), package_name(file)) - above
    assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}, which stand below it"


def test_ground_truth_knows_only_the_nouns() -> None:
    for file in sorted((ROOT / "envs").rglob("*.py")):
        wrong = imported_parts(file.read_text(), f"wmgym.{package_name(file)}") - ENVS_MAY_USE
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("import wmgym.nets.cdit", {"nets"}),
        ("from wmgym import geometry, twin", {"geometry", "__init__"}),
        ("import wmgym", {"__init__"}),
        ("def f():\n    from ..memory import bank", {"memory"}),
        ("from . import packing", {"data"}),
        ("from .. import cli", {"cli"}),
        ("import wmgymnastics, torch", set()),
    ],
)
def test_the_walker_sees_each_kind_of_import(source: str, parts: set[str]) -> None:
    assert imported_parts(source, "wmgym.data") == parts


def test_every_folder_with_code_is_a_package() -> None:
    """setuptools leaves out of the wheel what has no __init__.py."""
    folders = {file.parent for top in ("wmgym", *MOUNTED) for file in (ROOT / top).rglob("*.py")}
    missing = sorted(str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists())
    assert not missing


def test_importing_wmgym_is_light() -> None:
    """No torch, no numba, no OpenCV. It takes the processor about 0.2 s, however busy the machine is with other things."""
    program = (
        "import sys, time; begin = time.perf_counter(); import wmgym; "
        "print(time.perf_counter() - begin, *(sys.modules.keys() & {'torch', 'numba', 'cv2', 'matplotlib'}))"
    )
    seconds, *heavy = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert heavy == []
    assert float(seconds) < 1.5


# -- systems are named in their own files -----------------------------------------------------------------------------------------------

SYSTEM_NAMES = "worldpack worldtrace video nwm come echo".split()  # those of the plan too
OWN = ["wmgym/systems/*.py", "wmgym/registration.py", *(f"wmgym/{part}/{name}*.py" for part in ("train", "nets") for name in SYSTEM_NAMES)]
OTHERWISE = {  # the same words with another meaning
    "agents/mpc.py": {"nwm"},  # a planner
    "wmgym/doctor.py": {"video"},  # an extra
    "wmgym/extras.py": {"video"},
}


def systems_named(source: str) -> set[str]:
    """Systems that code names: by importing their files, as an identifier, or in a string such as "nwm" or "worldpack-minecraft".

    Docstrings and messages may cite a paper.
    """
    words: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(re.split("[-:]", node.value)[0])
        elif isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.keyword | ast.arg):
            words.add(node.arg or "")
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
    for name in imported_modules(source, "wmgym"):
        words |= set(name.split(".")[-2:]) if name.startswith(("wmgym.systems.", "wmgym.train.")) else set()
    return words & set(SYSTEM_NAMES)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from wmgym.systems.worldpack import preset", {"worldpack"}),
        ("from wmgym.train import video", {"video"}),
        ("checkpoint = 'worldpack-minecraft'", {"worldpack"}),
        ("if path.startswith('nwm:'): pass", {"nwm"}),
        ("def f(worldtrace): pass", {"worldtrace"}),
        ("f(echo=1)", {"echo"}),
        ('"""Retrieval (WorldPack, section 4.2), as nwm has it."""\nraise ValueError("NWM\'s nets come with four frames")', set()),
    ],
)
def test_the_search_sees_each_way_of_naming_a_system(source: str, found: set[str]) -> None:
    assert systems_named(source) == found


def test_no_other_file_names_a_system() -> None:
    """So a new system is a matter of adding files: the table of systems and the registration say the rest."""
    wrong = {}
    for top in ("wmgym", *MOUNTED):
        for file in sorted((ROOT / top).rglob("*.py")):
            path = file.relative_to(ROOT)
            source = file.read_text()
            if any(name in source for name in SYSTEM_NAMES) and not any(path.match(pattern) for pattern in OWN):
                wrong[str(path)] = sorted(systems_named(source) - OTHERWISE.get(str(path), set()))
    assert {path: names for path, names in wrong.items() if names} == {}


def test_every_known_system_is_searched_for() -> None:
    assert set(registration.SYSTEMS) <= set(SYSTEM_NAMES)


# -- files are short --------------------------------------------------------------------------------------------------------------------

MOST_LINES = 400


def test_a_long_file_gives_its_reason() -> None:
    """In its docstring, in a sentence that begins with "Longer than 400 lines"."""
    wrong = []
    for top in ("wmgym", *MOUNTED):
        for file in sorted((ROOT / top).rglob("*.py")):
            source = file.read_text()
            reason = f"Longer than {MOST_LINES} lines" in (ast.get_docstring(ast.parse(source)) or "")
            if len(source.splitlines()) > MOST_LINES and not reason:
                wrong.append(str(file.relative_to(ROOT)))
    assert not wrong, f"split these by ideas, or give the reason: {wrong}"
