"""A step waits for no device; and run from fixed inputs, as a CUDA graph is, it gives what it gives otherwise.

No GPU is needed: `waiting.Device` finds waits on torch's "meta" device, and `Again` stands for a graph. `test_on_a_gpu` needs one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
import waiting
from tiny import tiny_checkpoint, tiny_deltas, tiny_video
from torch import Tensor

import wmgym
from wmgym import rng, tree
from wmgym.captured import CapturedWorld, CudaCapture, Function, Replay, kind_of
from wmgym.checkpoint import load_world
from wmgym.constants import constant
from wmgym.core import Clip, Frames, WorldState
from wmgym.memory.bank import Bank
from wmgym.memory.slots import ChunkKV
from wmgym.systems.echo import FAMILIES
from wmgym.systems.worldpack import LAYOUTS
from wmgym.tree import HighWater
from wmgym.world_model import WorldModel

ECHO = ("context-5", "weight", "hybrid-2", "spatial", "spatial-concat", "spatial-cross", "block_wise", "ssm_hybrid", "geometry")
WORLDTRACE = ("none", "field", "naive_mean", "landmark", "sink", "pose", "latents", "full")
WORLDS = [
    *(("worldpack", memory, {}) for memory in LAYOUTS),
    ("worldpack", "worldpack", {"retrieval": "coverage"}),
    *(("worldtrace", memory, {"landmark_threshold": 0.0} if memory == "landmark" else {}) for memory in WORLDTRACE),
    ("worldtrace", "landmark", {"landmark_threshold": 0.0, "landmark_overflow": "replace"}),
    *(("echo", memory, {}) for memory in ECHO),
    ("echo", "context-5", {"routing": 2}),
    ("come", "window", {}),
]
IDS = ["-".join([system, memory, *map(str, options.values())]) for system, memory, options in WORLDS]
FITTED = ("come", "ltm", {"updates": 1, "rank": 2, "memorise": "all", "memorise_window": 4, "memorise_batch": 1})
assert set(ECHO) <= set(FAMILIES)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("captured")
    video = tiny_video(folder)
    tiny_deltas(video, ECHO)
    return {"worldpack": tiny_checkpoint(folder), **dict.fromkeys(("worldtrace", "echo", "come"), str(video))}


@pytest.fixture(params=WORLDS, ids=IDS)
def world(request: pytest.FixtureRequest, checkpoints: dict[str, str]) -> WorldModel:
    return opened(checkpoints, *request.param)


def opened(checkpoints: dict[str, str], system: str, memory: str, options: dict[str, Any], device: str = "cpu") -> WorldModel:
    return load_world(checkpoints[system], system=system, memory=memory, options=options, dtype="float32", device=device)


def started(world: WorldModel, lanes: int, frames: int = 12, seed: int = 0) -> WorldState:
    return world.start(clip(world, lanes, frames, seed), rng.make_keys([seed + lane for lane in range(lanes)], world.device))


def clip(world: WorldModel, lanes: int, frames: int, seed: int = 0) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (lanes, frames, *world.frame_shape), generator=generator, dtype=torch.uint8)
    actions = torch.randint(10, (lanes, frames), generator=generator)
    poses = torch.randn(lanes, frames, 5, generator=generator) * torch.tensor([2, 2, 0, 1, 0.1])
    return tree.to(Clip(pixels, actions, poses, torch.ones(lanes, frames, dtype=torch.bool)), world.device)


def actions(world: WorldModel, lanes: int, seed: int) -> Tensor:
    return torch.randint(10, (lanes, world.chunk), generator=torch.Generator().manual_seed(seed)).to(world.device)


def banks_of(value: Any) -> Iterator[Bank]:
    """All banks in a memory's state."""
    if isinstance(value, Bank):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from banks_of(part)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from banks_of(getattr(value, name))


# -- nothing waits --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.int64, device=x.device), 0),
        lambda x: torch.nn.functional.one_hot(x.long()),
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor([1.0, 2.0, 3.0], device=x.device),
        lambda x: torch.as_tensor([1, 2], device=x.device),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.arange(3).to(x.device),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: x[[0, 1]],
        lambda x: x.index_put((torch.zeros(1, dtype=torch.int64),), x[:1]),
    ],
)
def test_each_way_to_wait_is_found(act: Any) -> None:
    x = torch.zeros(3, device=waiting.DEVICE)
    with pytest.raises(waiting.WaitsForDevice), waiting.Device():
        act(x)


def test_what_a_gpu_does_by_itself_is_allowed() -> None:
    x = torch.zeros(3, 4, device=waiting.DEVICE)
    with waiting.Device():
        rows = torch.arange(3, device=x.device)
        assert torch.where(x > 0, x, -1.0)[rows[:, None], rows].topk(2).values.shape == (3, 2)
        x[:, 1:2] = 0
        assert (2.0**x * 3 + torch.full((4,), 0.5, device=x.device)).shape == (3, 4)
        assert torch.tensor([1.0]).item() == 1.0 and x.repeat_interleave(2, 0).shape == (6, 4)


def test_a_step_waits_only_where_the_tail_of_a_bank_is_full(world: WorldModel) -> None:
    """All of it runs on a device that has nothing to wait for, but for the writes that move a full tail to the archive."""
    there, state, free, tables = copy.deepcopy(world).to(waiting.DEVICE), started(world, 2), 0, 0
    copied, given = tree.to(state, waiting.DEVICE), actions(world, 2, 0).to(waiting.DEVICE)
    with waiting.Device():
        made, _ = there.generate(copied, given)
    for t in range(3):
        written = [(bank, 1 if isinstance(bank.tail, ChunkKV) else world.chunk) for bank in banks_of(state.memories)]
        full = any(bank.used.count + count > bank.tail_len for bank, count in written)
        copied = tree.to(state, waiting.DEVICE)
        with pytest.raises(waiting.WaitsForDevice) if full else nullcontext(), waiting.Device(), torch.no_grad():
            there.remember(copied, made)
        free += not full
        state, _ = world.step(state, actions(world, 2, t))
        tables = constant.cache_info().misses if t == 0 else tables
    assert free and constant.cache_info().misses == tables  # tables are made in the first step only


# -- a graph, and what it is run from ---------------------------------------------------------------------------------------------------


class Again:
    """Stands for a graph: it runs the function again on the same inputs, and leaves what it gives in the same tensors."""

    def __init__(self) -> None:
        self.captures = 0

    def __call__(self, function: Function, inputs: Any) -> Replay:
        self.captures += 1
        outputs = function(inputs)

        def replay() -> Any:
            for kept, new in zip(tree.tensors(outputs), tree.tensors(function(inputs)), strict=True):
                if kept is not new:  # an input that is given back as it is
                    kept.copy_(new)
            return outputs

        return replay


def assert_equal(a: Any, b: Any) -> None:
    """Bit for bit, with all that is not a tensor."""
    a, b = tree.leaves(a), tree.leaves(b)
    assert a.keys() == b.keys()
    for path, value in a.items():
        assert torch.equal(value, b[path]) if isinstance(value, Tensor) else value == b[path], path


def assert_steps_equal(world: WorldModel, captured: CapturedWorld, state: WorldState, steps: int) -> list[tuple[WorldState, Frames]]:
    """Steps of both from one state: bit for bit. Returns them."""
    found, own = [(state, None)], state
    for t in range(steps):
        given = actions(world, len(state.times), t)
        state, frames = world.step(state, given)
        own, shown = captured.step(own, given)
        assert_equal((own, shown), (state, frames))
        found.append((own, shown))
    return found  # type: ignore[return-value]


def test_from_fixed_inputs_every_memory_dreams_the_same_and_old_states_stay_good(world: WorldModel) -> None:
    capture = Again()
    captured = CapturedWorld(world, capture)
    long = 36 if world.chunk == 1 else 7  # past the moment when a bank's tail is full
    path = assert_steps_equal(world, captured, started(world, 2), long)
    assert 0 < captured.num_graphs == capture.captures < long / 2
    for t in (0, 2, long - 1):  # from the old states again, as they are now
        given = actions(world, 2, t)
        assert_equal(captured.step(path[t][0], given), path[t + 1])
        other = (given + 1) % 10
        assert_equal(captured.step(path[t][0], other), world.step(path[t][0], other))


def test_a_memory_that_is_fitted_is_written_outside_of_the_graph(checkpoints: dict[str, str]) -> None:
    world = opened(checkpoints, *FITTED)
    capture = Again()
    path = assert_steps_equal(world, CapturedWorld(world, capture), started(world, 2), 4)
    versions = [state.memories[1].adapters.version.tolist() for state, _ in path]
    assert capture.captures and versions[0] != versions[-1]


@pytest.mark.parametrize("which", [WORLDS[3], ("worldtrace", "landmark", {}), ("worldtrace", "full", {}), ("echo", "block_wise", {})])
def test_other_lanes_resets_and_observed_frames_lead_to_the_same_frames(checkpoints: dict[str, str], which: Any) -> None:
    world = opened(checkpoints, *which)
    captured = CapturedWorld(world, Again())
    state = assert_steps_equal(world, captured, started(world, 2), 3)[-1][0]
    assert_steps_equal(world, captured, tree.repeat(state, 3), 3)  # branches
    state = tree.where(torch.tensor([True, False]), started(world, 2, 5, seed=9), state)  # a lane is reset
    state = assert_steps_equal(world, captured, state, 3)[-1][0]
    seen = clip(world, 2, world.chunk, 3)
    assert_equal(captured.observe(state, seen), world.observe(state, seen))
    assert_steps_equal(world, captured, world.observe(state, seen), 3)
    assert_equal(captured.start(seen, state.keys), world.start(seen, state.keys))


def test_actions_may_be_edited_between_steps(checkpoints: dict[str, str]) -> None:
    world = opened(checkpoints, *WORLDS[0])
    captured, state, given = CapturedWorld(world, Again()), started(world, 2), actions(world, 2, 0)
    for t in range(4):
        given.fill_(t)
        assert_equal(captured.step(state, given), world.step(state, given))


def test_bounded_graphs_are_kept_the_latest_used(checkpoints: dict[str, str]) -> None:
    world = opened(checkpoints, *WORLDS[0])
    capture = Again()
    captured = CapturedWorld(world, capture, most=2)
    states = {lanes: started(world, lanes) for lanes in (1, 2, 3)}
    for lanes in (1, 2, 1, 3, 1, 2):
        assert_steps_equal(world, captured, states[lanes], 2)
        assert captured.num_graphs <= 2
    assert capture.captures == 4  # 1, 2, 3, and 2 again, which 3 put out; 1 was used since
    with pytest.raises(ValueError, match="at least 1, got 0"):
        CapturedWorld(world, capture, most=0)


def test_a_kind_is_sizes_and_plain_values_but_not_what_depends_on_other_lanes(checkpoints: dict[str, str]) -> None:
    world = opened(checkpoints, *WORLDS[3])
    state = started(world, 2, 40)
    (bank,) = state.memories
    assert isinstance(bank, Bank)

    def with_bank(**changed: Any) -> WorldState:
        return replace(state, memories=(replace(bank, **changed),))

    same = [with_bank(used=HighWater(bank.used.count + 3)), world.step(state, actions(world, 2, 0))[0]]
    longer = tree.Shared(tree.map_tensors(lambda x: torch.cat([x, x[:1]]), bank.archive.data), bank.archive.rows)
    assert 64 < len(longer) <= 128
    assert all(kind_of(each) == kind_of(state) for each in (*same, with_bank(archive=longer)))
    other = [with_bank(capacity=bank.capacity - 1), tree.repeat(state, 2), replace(state, poses=state.poses.double())]
    assert len({kind_of(each) for each in (state, *other)}) == 4


@dataclass(frozen=True)
class Counting:
    """A memory's state with a plain number that changes in each step."""

    bank: Bank
    count: int


@dataclass(frozen=True)
class CountingMemory:
    """Another memory, which reads `count` frames less, or what is not to be read."""

    memory: Any
    peeks: bool = False
    needs: frozenset[str] = frozenset()
    num_retrieved: int = 0

    def init(self, batch: int, keys: Tensor) -> Counting:
        return Counting(self.memory.init(batch, keys), 0)

    def read(self, memory: Counting, query: Any) -> Any:
        hidden = memory.bank.used.count if self.peeks else memory.count
        context = self.memory.read(memory.bank, query)
        first = context.frames[0]
        return replace(context, frames=(replace(first, valid=first.valid & (torch.arange(first.valid.shape[1]) >= hidden % 3)),))

    def write(self, memory: Counting, seen: Any) -> Counting:
        return Counting(self.memory.write(memory.bank, seen), memory.count + 1)

    def footprint(self, memory: Counting) -> Any:
        return self.memory.footprint(memory.bank)


def test_a_plain_number_that_changes_in_each_step_is_never_captured_wrongly(checkpoints: dict[str, str]) -> None:
    world = opened(checkpoints, *WORLDS[0])
    world = world.with_settings(memories=(CountingMemory(world.settings.memories[0]),))
    capture = Again()
    captured = CapturedWorld(world, capture)
    assert_steps_equal(world, captured, started(world, 2), 6)
    assert capture.captures == 0
    assert_steps_equal(world, captured, started(world, 2), 6)  # the same numbers again
    assert capture.captures == 6


def test_what_depends_on_other_lanes_is_not_captured(checkpoints: dict[str, str]) -> None:
    world = opened(checkpoints, *WORLDS[0])
    world = world.with_settings(memories=(CountingMemory(world.settings.memories[0], peeks=True),))
    captured, state = CapturedWorld(world, Again()), started(world, 2)
    captured.step(state, actions(world, 2, 0))
    with pytest.raises(ValueError, match="depends on a HighWater"):
        captured.step(state, actions(world, 2, 0))


def test_actions_of_another_shape_are_refused(checkpoints: dict[str, str]) -> None:
    world = opened(checkpoints, *WORLDS[0])
    with pytest.raises(ValueError, match=r"actions must have shape \(2, 1\), got \(2, 3\)"):
        CapturedWorld(world, Again()).step(started(world, 2), torch.zeros(2, 3, dtype=torch.int64))


# -- the keyword ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gym.make, lambda id, **k: gym.make_vec(id, num_envs=2, vectorization_mode="vector_entry_point", **k)])
def test_the_keyword_graph(make: Any, tmp_path: Path) -> None:
    given = {"checkpoint": tiny_checkpoint(tmp_path), "device": "cpu"}
    for graph in (False, "auto"):
        env = make("WorldPack-Minecraft-v0", graph=graph, **given)
        assert type(env.unwrapped.shell.world) is WorldModel
        env.close()
    with pytest.raises(ValueError, match="graph=True needs an NVIDIA GPU, and this world runs on 'cpu'"):
        make("WorldPack-Minecraft-v0", graph=True, **given)
    for wrong in ("yes", 1, None):
        with pytest.raises(ValueError, match=f"graph must be True, False or 'auto', got {wrong!r}"):
            make("WorldPack-Minecraft-v0", graph=wrong, **given)


def test_an_env_runs_on_a_captured_world(checkpoints: dict[str, str]) -> None:
    """The same episodes, resets of single lanes and branches."""
    world = opened(checkpoints, *WORLDS[3])
    envs = [wmgym.make_env(world, "free", setting="minecraft", num_envs=2, horizon=5) for _ in range(2)]
    capture = Again()
    envs[1].shell.world = CapturedWorld(world, capture)
    given = [
        {"opening": {"frames": c.frames[0].numpy(), "actions": c.actions[0].numpy(), "poses": c.poses[0].numpy()}}
        for c in (clip(world, 1, 6, 1), clip(world, 1, 9, 2))
    ]
    for env in envs:
        env.reset(seed=3, options=given)
    state = envs[0].save_state()
    for t in range(4):
        both = [env.step(actions(world, 2, t)[:, 0].numpy()) for env in envs]
        assert (both[0][0] == both[1][0]).all() and (both[0][1] == both[1][1]).all()
    assert capture.captures
    for env in envs:
        env.load_state(state)
    many = [env.branch(2) for env in envs]
    for t in range(3):
        seen = [env.step(actions(world, 4, t)[:, 0].numpy())[0] for env in many]
        assert (seen[0] == seen[1]).all()


# -- with a GPU -------------------------------------------------------------------------------------------------------------------------


def test_cuda_graphs_need_a_gpu(checkpoints: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="CUDA graphs need an NVIDIA GPU, and this world runs on 'cpu'"):
        CapturedWorld(opened(checkpoints, *WORLDS[0]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("which", WORLDS, ids=IDS)
def test_on_a_gpu(checkpoints: dict[str, str], which: Any) -> None:
    """Graphs give what single kernels give."""
    world = opened(checkpoints, *which, device="cuda")
    captured = CapturedWorld(world, CudaCapture(world.device))
    path = assert_steps_equal(world, captured, started(world, 2), 36 if world.chunk == 1 else 7)
    assert captured.num_graphs
    assert_equal(captured.step(path[2][0], actions(world, 2, 2)), path[3])
