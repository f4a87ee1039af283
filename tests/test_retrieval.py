"""WorldPack's choice of frames by score or by coverage, and the keywords that select it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tiny import tiny_checkpoint
from torch import Tensor

from wmgym import rng
from wmgym.checkpoint import from_dict, load_world
from wmgym.core import Query, Seen
from wmgym.experiments.loopnav import LoopNavArgs
from wmgym.experiments.support.judged import loader
from wmgym.memory.coverage import CoverageConfig, shown, target_points
from wmgym.memory.retrieval import RetrievalConfig
from wmgym.memory.trajectory import TrajectoryMemory
from wmgym.systems.worldpack import WorldPackConfig, WorldPackOptions, layout, memory_of

LATENT = (1, 2, 2)
COVERAGE = RetrievalConfig(method="coverage")
CAMERA = CoverageConfig(math.radians(75))


def seen_at(poses: Tensor) -> Seen:
    """Frames seen from poses [B, T, 5]."""
    rows, count = poses.shape[:2]
    there = torch.ones(rows, count, dtype=torch.bool)
    times = torch.arange(count).expand(rows, -1)
    return Seen(torch.zeros(rows, count, *LATENT), poses, times, 0 * times, torch.zeros_like(poses), there, there)


def retrieved(config: RetrievalConfig, past: Tensor, target: Tensor, name: str = "worldpack") -> list[list[int]]:
    """Times of the frames that a memory retrieves for a view from `target` [B, 5], after frames from `past` [B, T, 5]."""
    memory = TrajectoryMemory(layout(name), config, LATENT, 512, coverage=CAMERA)
    held = memory.write(memory.init(len(past), rng.make_keys(list(range(len(past))))), seen_at(past))
    query = Query(target[:, None], torch.full((len(past), 1), past.shape[1]))
    context = memory.read(held, query)
    assert context.retrieval is not None
    assert torch.equal(context.frames[-1].valid, context.retrieval.indices >= 0)
    return [[int(t) for t in row if t >= 0] for row in context.retrieval.indices]


def turning(steps: int) -> Tensor:
    """Poses of a walker that turns on the spot by 15 degrees a step: [1, steps, 5]."""
    poses = torch.zeros(1, steps, 5)
    poses[..., 3] = torch.arange(steps) * math.radians(15)
    return poses


def wandering(rows: int, steps: int, seed: int = 0) -> Tensor:
    """Poses scattered over a few metres, most of them level: [rows, steps, 5]."""
    return torch.randn(rows, steps, 5, generator=torch.Generator().manual_seed(seed)) * torch.tensor([2.0, 2.0, 0.1, 2.0, 0.1])


# -- by coverage --


def greedy(quality: np.ndarray, allowed: list[int], n: int) -> list[int]:
    """In plain numbers: the frame that raises the coverage of the points most, n times. quality: [T, P]."""
    chosen: list[int] = []

    def covered(frames: list[int]) -> float:
        return float(quality[frames].max(0).mean()) if frames else 0.0

    while len(chosen) < n:
        left = [t for t in allowed if t not in chosen and quality[t].any()]
        if not left:
            break
        gains = {t: covered([*chosen, t]) - covered(chosen) + 1e-3 * covered([t]) for t in left}
        chosen.append(max(left, key=lambda t: (round(gains[t] * 1024 * quality.shape[1]), t)))
    return chosen


def test_coverage_is_the_greedy_choice() -> None:
    rows, steps = 8, 40
    past, target = wandering(rows, steps), wandering(rows, 1, seed=1)[:, 0]
    found = retrieved(COVERAGE, past, target)
    quality = shown(*target_points(target[:, None], CAMERA), past, CAMERA).double().numpy()
    hidden = layout("worldpack").num_recent  # these are in the context anyway
    for row in range(rows):
        assert found[row] == greedy(quality[row], [t for t in range(steps) if steps - t > hidden], 8)
    assert sum(map(len, found)) > 4 * rows


def test_coverage_fills_the_slots_that_suppression_leaves_empty() -> None:
    """After two turns on the spot, 75 degrees around each frame chosen by score are forbidden."""
    past, target = turning(60), turning(70)[:, 69]
    by_score, by_coverage = (retrieved(config, past, target)[0] for config in (RetrievalConfig(), COVERAGE))
    assert len(by_score) == 5 and len(by_coverage) == 8
    assert len(retrieved(RetrievalConfig(suppression=1), past, target)[0]) == 8
    assert by_coverage[0] % 24 == 69 % 24, "first a frame with the very view"
    assert all(abs((t - 69 + 12) % 24 - 12) < 5 for t in by_coverage), "each overlaps the view"


def test_lanes_retrieve_alone() -> None:
    past, target = wandering(9, 60, seed=2), wandering(9, 1, seed=3)[:, 0]
    together = retrieved(COVERAGE, past, target)
    assert together == [retrieved(COVERAGE, past[i : i + 1], target[i : i + 1])[0] for i in range(9)]
    assert retrieved(COVERAGE, past.flip(0), target.flip(0)) == together[::-1]


def test_a_chunk_is_covered_as_a_whole() -> None:
    """The first frame of a chunk looks ahead, the second to the left: views of both sides are retrieved."""
    past = turning(60)
    memory = TrajectoryMemory(layout("retrieval"), COVERAGE, LATENT, 512, coverage=CAMERA)
    held = memory.write(memory.init(1, rng.make_keys([0])), seen_at(past))
    target = turning(7)[:, [0, 6]]
    found = memory.read(held, Query(target, torch.tensor([[60, 61]]))).retrieval
    assert found is not None
    assert {int(t) % 24 for t in found.indices[0, :2]} == {0, 6}


def test_an_unknown_method_is_named_and_older_configs_mean_the_score() -> None:
    with pytest.raises(ValueError, match=r"retrieval method must be one of score, coverage, got 'nearest'"):
        RetrievalConfig(method="nearest")
    assert from_dict(RetrievalConfig, {"sigma_s": 8.0, "suppression": 5}).method == "score"


# -- keywords --


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("retrieval"))


def memory_with(checkpoint: str, **options: Any) -> RetrievalConfig:
    held: Any = load_world(checkpoint, device="cpu", dtype="float32", options=options).settings.memories[0]
    return held.retrieval


def test_keywords_reach_the_memory(checkpoint: str) -> None:
    own = memory_with(checkpoint)
    assert own == RetrievalConfig()
    assert memory_with(checkpoint, suppression=1) == RetrievalConfig(suppression=1)
    assert memory_with(checkpoint, retrieval="coverage") == COVERAGE
    assert memory_with(checkpoint, retrieval="score", suppression=0) == RetrievalConfig(suppression=0)
    assert memory_with(checkpoint) == own, "the options of one world do not stay for the next"
    net = WorldPackConfig().net
    assert memory_of(WorldPackConfig(), "worldpack").coverage == CoverageConfig(net.field_of_view, net.aspect)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"retrieval": "nearest"}, r"retrieval must be one of score, coverage, got 'nearest'"),
        ({"suppression": -1}, r"suppression must be a whole number of steps, 0 or more, got -1"),
        ({"suppression": 1.5}, r"suppression must be .*, got 1\.5"),
        ({"suppression": True}, r"suppression must be .*, got True"),
        (
            {"retrieval": "coverage", "suppression": 1},
            r"suppression belongs to retrieval='score', got suppression=1 with retrieval='coverage'",
        ),
    ],
)
def test_wrong_keywords_are_named(checkpoint: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        memory_with(checkpoint, **options)


def test_suppression_needs_the_score_also_where_the_checkpoint_chose() -> None:
    with pytest.raises(ValueError, match="with retrieval='coverage'"):
        WorldPackOptions(suppression=1).applied_to(COVERAGE)
    assert WorldPackOptions(retrieval="score", suppression=1).applied_to(COVERAGE) == RetrievalConfig(suppression=1)


def test_an_unknown_keyword_names_those_there_are(checkpoint: str) -> None:
    with pytest.raises(TypeError, match=r"'method': system 'worldpack' knows retrieval, suppression"):
        memory_with(checkpoint, method="coverage")


def opening(frames: int) -> dict[str, np.ndarray]:
    """A walker that turns on the spot, in grey."""
    pictures = np.linspace(0, 255, frames)[:, None, None, None] * np.ones((1, 16, 16, 3))
    return {"frames": pictures.astype(np.uint8), "actions": np.full(frames, 6), "poses": turning(frames)[0].numpy()}


def test_envs_retrieve_as_asked_and_refuse_each_others_states(checkpoint: str) -> None:
    given = {"checkpoint": checkpoint, "device": "cpu", "dtype": "float32", "task": "free"}
    own, coverage, suppression = (
        gym.make("WorldPack-Minecraft-v0", opening=opening(60), **given, **options).unwrapped
        for options in ({}, {"retrieval": "coverage"}, {"suppression": 1})
    )
    filled = []
    for env in (own, coverage, suppression):
        env.reset(seed=0)
        info = env.step(0)[4]
        filled.append(int((np.asarray(info["memory_retrieved"]) >= 0).sum()))
    assert filled[0] <= 4 and filled[1:] == [8, 8]
    state = own.save_state()  # type: ignore[attr-defined]
    for env in (coverage, suppression):
        with pytest.raises(ValueError, match="the saved state belongs to another env"):
            env.load_state(state)  # type: ignore[attr-defined]
    own.load_state(state)  # type: ignore[attr-defined]


def test_evaluations_take_the_keywords_as_json(checkpoint: str, tmp_path: Path) -> None:
    def args(options: str) -> LoopNavArgs:
        return LoopNavArgs(checkpoint=checkpoint, options=options, device="cpu", out=tmp_path)

    held: Any = loader(checkpoint, args('{"suppression": 1}'))("worldpack").settings.memories[0]
    assert held.retrieval.suppression == 1
    with pytest.raises(ValueError, match="options must be a JSON object"):
        loader(checkpoint, args("[1]"))
    with pytest.raises(TypeError, match="'rank': system 'worldpack' knows retrieval, suppression"):
        loader(checkpoint, args('{"rank": 1}'))("worldpack")
