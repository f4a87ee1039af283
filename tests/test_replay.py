"""Replay: windows are what was collected, a table's tiles are counted as they should be, and the command leaves a whole report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wmgym import systems
from wmgym.agents.collect import CollectArgs, collect
from wmgym.benchmarks import cells, replay
from wmgym.benchmarks.rollout import Walk
from wmgym.checkpoint import load, save
from wmgym.data.episode import list_episodes, load_episode, save_episode
from wmgym.envs.memory_cards import table as cards
from wmgym.envs.memory_cards.table import Table
from wmgym.experiments import replay as command
from wmgym.experiments.replay import ReplayArgs, evaluate
from wmgym.metrics.image import judge
from wmgym.nets.autoencoder import AutoencoderConfig
from wmgym.nets.cdit import CDiTConfig
from wmgym.systems.worldpack import WorldPackConfig, build

CODER = AutoencoderConfig(kind="pixels", factor=8, frame_size=48)
NET = CDiTConfig(latent_shape=CODER.latent_shape, num_actions=5, width=16, depth=1, heads=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model of Memory Cards that dreams nonsense and sees a reward in every step."""
    torch.manual_seed(0)
    config = WorldPackConfig(setting="memory_cards", autoencoder=CODER, net=NET, outcomes=((0.0, False), (1.0, False)))
    model = build(config)
    assert model.reward_head is not None
    with torch.no_grad():
        model.reward_head.pair.exit[-1].bias.copy_(torch.tensor([0.0, 5.0]))
    path = tmp_path_factory.mktemp("replay") / "model.safetensors"
    save(path, model, config)
    return str(path)


@pytest.fixture(scope="module")
def zig_zags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zig-zags")
    args = CollectArgs("MemoryCards-v0", "zig-zag", 3 * 216, folder, seed=100, episode_length=216, processes=1)
    assert collect(args, progress=False)["episodes"] == 3
    return folder


def run(checkpoint: str, out: Path, **changes: Any) -> dict[str, Any]:
    fields = {"modes": ("none", "worldpack"), "windows": 2, "context": 32, "steps": 3, "device": "cpu", "denoise_steps": 1, **changes}
    return evaluate(ReplayArgs(checkpoint, out=out, **fields), progress=False)


# -- windows --


def test_a_window_is_the_first_frames_of_an_episode(zig_zags: Path) -> None:
    paths = replay.find_windows(zig_zags, 3, 217)
    windows = replay.read_windows(paths, 200, 17)
    for path, window in zip(paths, windows, strict=True):
        episode = load_episode(path)
        assert (window.split, window.leg, window.seed) == (200, 17, episode.meta.seed)
        np.testing.assert_array_equal(window.frames, episode.frames)
    shorter = replay.read_windows(paths, 4, 2)[0]
    np.testing.assert_array_equal(shorter.actions, load_episode(paths[0]).actions[:6])
    with pytest.raises(ValueError, match=r"holds 3 episodes of at least 217 frames, 4 are asked for"):
        replay.find_windows(zig_zags, 4, 217)
    with pytest.raises(ValueError, match=r"holds 0 episodes of at least 218 frames"):
        replay.find_windows(zig_zags, 1, 218)


# -- tiles --


def window_of(before: Table, after: Table) -> Walk:
    frames = np.concatenate([cards.draw(table, 48) for table in (before, after)])
    return Walk(frames, np.zeros(2, np.int64), np.zeros((2, 5), np.float32), 1, 0)


def test_tiles_that_turned_are_told_from_those_that_only_lost_the_cursor() -> None:
    objects = np.arange(16)[None] % 8
    is_open = np.zeros((1, 16), bool)
    is_open[0, :4] = True
    later = is_open.copy()
    later[0, 3:7] = [False, True, True, True]
    window = window_of(Table(objects, is_open, np.array([9])), Table(objects, later, np.array([15])))
    truth = window.frames[1:]
    perfect = replay.tile_scores(truth, window)
    assert (perfect["recall"].item(), perfect["turned"].item(), perfect["turned_right"].item()) == (1.0, 4, 4)
    copied = replay.tile_scores(window.frames[:1], window)
    assert (copied["recall"].item(), copied["turned_right"].item()) == (10 / 16, 0)  # four cards, and both places of the cursor
    guessed = truth.copy()
    guessed[0, 12:24, 12:24] = cards.tiles(12)[7]  # one of the turned cards mistaken for another
    assert replay.tile_scores(guessed, window)["turned_right"].item() == 3


def test_after_two_hundred_frames_of_zig_zag_eight_cards_must_be_remembered(zig_zags: Path) -> None:
    """The default protocol: the seventh pass is under way and turns eight cards in the last 17 steps, which the first pass showed."""
    for window in replay.read_windows(list_episodes(zig_zags), 200, 17):
        held = replay.tile_scores(np.repeat(window.frames[199:200], 17, 0), window)
        assert held["turned"].tolist() == [(t + 1) // 2 for t in range(17)]
        assert held["turned_right"].tolist() == [0] * 17
        assert held["recall"][-1] == 6 / 16
        seen = {tile.tobytes() for frame in window.frames[:200] for tile in inner_tiles(frame)}
        assert all(tile.tobytes() in seen for tile in inner_tiles(window.frames[-1]))


def inner_tiles(frame: np.ndarray) -> list[np.ndarray]:
    return [frame[y + 1 : y + 11, x + 1 : x + 11] for y in range(0, 48, 12) for x in range(0, 48, 12)]


# -- the command --


def test_the_report_is_whole_and_a_finished_run_makes_nothing_again(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run(checkpoint, tmp_path)
    assert report["env_id"] == "MemoryCards-v0" and len(list_episodes(tmp_path / "episodes")) == 2
    assert load_episode(list_episodes(tmp_path / "episodes")[0]).meta.walker == "zig-zag"
    lines = {row["mode"]: row for row in report["cells"]}
    assert lines.keys() == {"none", "worldpack", "copy", "ceiling"}
    assert all(row["replay"] == "32+3" and "range" not in row for row in report["cells"])
    assert lines["ceiling"]["psnr"] == 60 and lines["none"]["psnr"] < 20 and lines["none"]["windows"] == 2 and lines["none"]["steps"] == 3
    assert lines["none"]["psnr_low"] <= lines["none"]["psnr"] <= lines["none"]["psnr_high"]
    recall = {row["mode"]: row for row in report["tile_recall"]}
    assert recall["ceiling"]["recall"] == recall["ceiling"]["recall_turned"] == 1
    # frame 31 is the last of the first pass; of steps 32 to 34, two turn cards back
    assert recall["none"]["tiles_turned"] == 4 and recall["copy"]["recall_turned"] == 0
    (head,) = report["reward_head"]
    assert (head["episodes"], head["steps"], head["true"], head["said"], head["precision"]) == (2, 68, 0, 68, 0)
    assert head["expected"] == pytest.approx(68 / (1 + np.exp(-5)), rel=1e-4) and "recall" not in head
    assert json.loads((tmp_path / "result.json").read_text())["cells"][0]["mode"] == report["cells"][0]["mode"]
    assert json.loads((tmp_path / "args.json").read_text())["weights"] == load(checkpoint).model.provenance.weights
    text = (tmp_path / "table.md").read_text()
    assert "## Tile recall" in text and "## Reward head" in text and "worldpack - none" in text
    for name in ("curves.png", "strips.png", "cells/32+3-none.json", "cells/rewards.json"):
        assert (tmp_path / name).stat().st_size > 0

    def never(*given: Any) -> Any:
        raise AssertionError("made again")

    with monkeypatch.context() as patch:
        for module, name in ((cells, "world_cell"), (cells, "baseline_cell"), (command, "measure")):
            patch.setattr(module, name, never)
        again = run(checkpoint, tmp_path)
    assert again["cells"] == report["cells"] and again["reward_head"] == report["reward_head"]
    with pytest.raises(ValueError, match="context=32, not 33"):
        run(checkpoint, tmp_path, context=33)
    assert run(checkpoint, tmp_path, dtype="float32")["cells"] == report["cells"]  # what "auto" is here
    with pytest.raises(ValueError, match="dtype='float32', not 'bfloat16'"):
        run(checkpoint, tmp_path, dtype="bfloat16")


def test_episodes_may_be_given_and_must_be_of_the_checkpoints_world(checkpoint: str, zig_zags: Path, tmp_path: Path) -> None:
    report = run(checkpoint, tmp_path / "out", data=zig_zags, modes=("none",), steps=2)
    assert report["episodes"] == str(zig_zags) and not (tmp_path / "out" / "episodes").exists()
    episode = load_episode(list_episodes(zig_zags)[0])
    save_episode(tmp_path / "small" / "a.safetensors", replace(episode, frames=episode.frames[:, ::2, ::2]))
    with pytest.raises(ValueError, match=r"a\.safetensors: frames are \[24, 24, 3\], the checkpoint wants \[48, 48, 3\]"):
        run(checkpoint, tmp_path / "one", data=tmp_path / "small", windows=1)
    other = replace(episode.meta, env_id="Minecraft-v0", action_space={"type": "Discrete", "n": 10})
    save_episode(tmp_path / "other" / "a.safetensors", replace(episode, meta=other))
    with pytest.raises(ValueError, match="Minecraft-v0 has 10 actions, the checkpoint's setting 'memory_cards' has 5"):
        run(checkpoint, tmp_path / "two", data=tmp_path / "other", windows=1)


def test_a_model_without_a_reward_head_reports_none(tmp_path: Path, zig_zags: Path) -> None:
    config = WorldPackConfig(setting="memory_cards", autoencoder=CODER, net=NET)
    save(tmp_path / "plain.safetensors", build(config), config)
    report = run(str(tmp_path / "plain.safetensors"), tmp_path / "out", data=zig_zags, modes=("none",), windows=1, steps=2)
    assert "reward_head" not in report and "Reward head" not in (tmp_path / "out" / "table.md").read_text()


def test_by_default_all_memories_of_the_checkpoints_system_are_compared(checkpoint: str, zig_zags: Path, tmp_path: Path) -> None:
    report = run(checkpoint, tmp_path, data=zig_zags, modes=None, windows=1, steps=1)
    assert [row["mode"] for row in report["cells"]] == [*systems.get("worldpack").memories, "copy", "ceiling"]
    assert {row["difference"] for row in report["differences"]} == {
        "worldpack - none", "worldpack - retrieval", "worldpack - packing", "retrieval - packing",
    }  # fmt: skip
    assert [row["mode"] for row in report["context"]] == ["none", "packing", "retrieval", "worldpack"]


def test_a_memory_that_the_system_lacks_is_named_before_anything_is_made(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"memory must be one of .*'worldpack'.*, got 'all'"):
        run(checkpoint, tmp_path / "out", modes=("none", "all"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"windows": 0}, "windows must be positive, got 0"),
        ({"context": 0}, "context must be positive, got 0"),
        ({"steps": -1}, "steps must be positive, got -1"),
        ({"modes": ()}, "modes must name at least one"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"env_kwargs": "["}, "env_kwargs must be a JSON object"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ReplayArgs(**changes)


def test_a_stream_is_judged_by_block(checkpoint: str, tmp_path: Path) -> None:
    report = run(checkpoint, tmp_path, iterations=2, modes=("none",))
    rows = {row["mode"]: row for row in report["iterations"]}
    assert rows.keys() == {"none", "copy", "ceiling"} and rows["ceiling"]["psnr_1"] == rows["ceiling"]["psnr_2"] == 60
    window = load_episode(list_episodes(tmp_path / "episodes")[0])
    assert len(window) == 32 + 2 * 3
    cell = json.loads((tmp_path / "cells" / "32+3x2-copy.json").read_text())["loops"][0]["steps"]["psnr"]
    for step in range(6):  # the second block is copied from its own last observed frame
        shown, truth = window.frames[31 if step < 3 else 34], window.frames[32 + step]
        assert cell[step] == pytest.approx(judge(shown[None], truth[None])["psnr"][0], abs=1e-3)
    assert "## Iterations" in (tmp_path / "table.md").read_text()
