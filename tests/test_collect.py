"""A collection is a function of its arguments, however often it was interrupted and by however many processes it was made."""

import json
from pathlib import Path

import pytest

from wmgym.agents.collect import CollectArgs, collect, episode_path, parse_walkers
from wmgym.data.episode import list_episodes, load_episode


def args(out: Path, **changes: object) -> CollectArgs:
    walkers = "explorer:2,loop-ABA-5:1,turn-loop"
    fields = {"env_id": "block_world:BlockTest-v0", "walker": walkers, "steps": 300, "out": out, "episode_length": 60, "processes": 1}
    return CollectArgs(**{**fields, **changes})  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in list_episodes(folder)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    collect(args(folder), progress=False)
    return folder


def test_enough_steps_and_no_more(whole: Path) -> None:
    steps = [load_episode(path).steps for path in list_episodes(whole)]
    assert sum(steps) >= 300 > sum(steps[:-1])
    report = json.loads((whole / "result.json").read_text())
    assert report["steps"] == sum(steps) and report["episodes"] == len(steps)
    assert len({load_episode(path).meta.seed for path in list_episodes(whole)}) == len(steps)


def test_two_processes_make_what_one_makes(whole: Path, tmp_path: Path) -> None:
    collect(args(tmp_path, processes=2), progress=False)
    assert contents(tmp_path) == contents(whole)


def test_a_killed_run_goes_on(whole: Path, tmp_path: Path) -> None:
    collect(args(tmp_path, steps=150), progress=False)
    last = list_episodes(tmp_path)[-1]
    (tmp_path / f".{last.name}.abc.tmp").write_bytes(last.read_bytes()[:1000])  # killed while writing
    last.write_bytes(last.read_bytes()[:-1])  # and the machine lost power
    kept = list_episodes(tmp_path)[0].stat().st_mtime_ns
    report = collect(args(tmp_path), progress=False)
    assert contents(tmp_path) == contents(whole)
    assert list_episodes(tmp_path)[0].stat().st_mtime_ns == kept and report["reused_episodes"] >= 1
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_folder_keeps_to_its_arguments(whole: Path) -> None:
    with pytest.raises(ValueError, match="seed=0, not 1"):
        collect(args(whole, seed=1), progress=False)


def test_shared_worlds_are_entered_at_different_places(tmp_path: Path) -> None:
    collect(args(tmp_path, worlds=2, walker="turn-loop", steps=150, seed=3), progress=False)
    metas = [load_episode(path).meta for path in list_episodes(tmp_path)]
    assert {meta.seed for meta in metas} == {3_000_000, 3_000_001}
    assert len({meta.start for meta in metas}) == len(metas)


def test_a_preview_is_a_picture(tmp_path: Path) -> None:
    import cv2

    collect(args(tmp_path, preview=True, steps=100), progress=False)
    rows = len(list_episodes(tmp_path))
    assert cv2.imread(str(tmp_path / "preview.png")).shape == (rows * 10, 16 * 10, 3)


def test_walks_that_fail_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no place to walk to at a range of 90"):
        collect(args(tmp_path, walker="loop-ABA-90"), progress=False)
    assert not episode_path(tmp_path, 0).exists()


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    for change, text in (
        ({"walker": "explorer:x"}, "explorer:x"),
        ({"walker": "runner"}, "unknown walker 'runner'"),
        ({"steps": 0}, "steps must be positive"),
        ({"env_kwargs": "[1]"}, "JSON object"),
        ({"worlds": 0}, "worlds"),
    ):
        with pytest.raises(ValueError, match=text):
            args(tmp_path, **change)
    with pytest.raises(ValueError, match="Nowhere-v0"):
        collect(args(tmp_path / "new", env_id="Nowhere-v0"), progress=False)
    with pytest.raises(ValueError, match="colour"):
        collect(args(tmp_path / "new", env_kwargs='{"colour": 1}'), progress=False)
    assert not (tmp_path / "new").exists()
    assert parse_walkers("a:3, b")[1].tolist() == [0.75, 0.25]
