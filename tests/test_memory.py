"""Every memory keeps one contract, and the parts of the trajectory memory (bank, packing, retrieval) do what the paper says."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conditions import condition
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_standin import SlidingWindow
from torch import Tensor

from wmgym import rng, tree
from wmgym.core import Context, Footprint, KeysValues, Query, Seen, Trace
from wmgym.geometry import compose, relative_pose
from wmgym.memory import bank as banks
from wmgym.memory.packing import Layout
from wmgym.memory.retrieval import PAPER, RetrievalConfig, choose, log_score
from wmgym.memory.trajectory import TAIL, TrajectoryMemory
from wmgym.nets.cdit import CDiT, CDiTConfig, PatchEmbed, tokens_per_frame
from wmgym.nets.merge import merge
from wmgym.settings import minecraft
from wmgym.systems.worldpack import LAYOUTS, layout
from wmgym.tree import HighWater, Shared, Slots

LATENT = (2, 3, 2)
BUDGET = 24
MOVES = minecraft.SETTING.kinematics
DEPTH, TOKENS, HEADS, HEAD_WIDTH = 2, 3, 2, 4
TRAJECTORIES = tuple(LAYOUTS)
MEMORIES = (*TRAJECTORIES, "keys and values")


def make(name: str, budget: int = BUDGET) -> Any:
    if name in LAYOUTS:
        return TrajectoryMemory(layout(name), RetrievalConfig(), LATENT, budget)
    return SlidingWindow(budget, DEPTH, TOKENS, HEADS, HEAD_WIDTH)


def empty(memory: Any, rows: int) -> Any:
    return memory.init(rows, rng.make_keys(list(range(rows))))


def history(rows: int, frames: int, seed: int = 0) -> Seen:
    """A walk of each row in which everything about a frame differs from frame to frame: frame 0 to frames - 1."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(rows, frames, *shape, generator=generator)

    actions = torch.randint(10, (rows, frames), generator=generator)
    pose, poses = random(5)[:, 0] * torch.tensor([1, 1, 0, 1, 0.0]), []
    motions = MOVES.motion(actions)
    for t in range(frames):
        pose = compose(pose, motions[:, t])
        poses.append(pose)
    times = torch.arange(frames).repeat(rows, 1)
    kv = tuple(KeysValues(random(TOKENS, HEADS, HEAD_WIDTH), random(TOKENS, HEADS, HEAD_WIDTH)) for _ in range(DEPTH))
    there, observed = torch.ones(rows, frames, dtype=torch.bool), random() > 0
    return Seen(random(*LATENT), torch.stack(poses, 1), times, actions, motions + 0.01 * random(5), there, observed, Trace(kv))


def part(seen: Seen, first: int, last: int) -> Seen:
    return tree.map_tensors(lambda x: x[:, first:last], seen)


def written_keys(seen: Seen) -> tuple[KeysValues, ...]:
    assert seen.trace is not None
    return seen.trace.kv


def times_of(value: Any) -> Tensor:
    """Times of all slots [B, S], -1 where empty."""
    return value.times.values if isinstance(value.times, Slots) else value.times


def write(memory: Any, value: Any, seen: Seen, size: int = 1) -> Any:
    """Write a history in pieces of `size` frames."""
    frames = seen.times.shape[1]
    for first in range(0, frames, size):
        value = memory.write(value, part(seen, first, min(frames, first + size)))
    return value


def query_after(seen: Seen, frames: int | None = None) -> Query:
    """What comes after the first `frames` of a history: one step forward."""
    frames = seen.times.shape[1] if frames is None else frames
    forward = torch.ones(len(seen.times), dtype=torch.int64)
    return Query(compose(seen.poses[:, frames - 1], MOVES.motion(forward))[:, None], seen.times[:, frames - 1 : frames] + 1)


def shown(context: Context) -> dict[str, Tensor]:
    """All that a context shows, with what is not valid blanked, so that two can be compared."""
    out = {}
    for i, group in enumerate(context.frames):
        for name in ("latents", "offsets", "relative", "actions", "egomotion", "poses", "times"):
            value = getattr(group, name)
            out[f"{i}.{name}"] = torch.where(group.valid.view(*group.valid.shape, *[1] * (value.ndim - 2)), value, 0)
        out[f"{i}.valid"] = group.valid
    if context.kv is not None:
        valid = context.kv.valid
        out["kv.valid"], out["kv.offsets"] = valid, torch.where(valid, context.kv.offsets, 0)
        for i, layer in enumerate(context.kv.layers):
            out[f"kv.{i}.keys"] = torch.where(valid[..., None, None, None], layer.keys, 0)
            out[f"kv.{i}.values"] = torch.where(valid[..., None, None, None], layer.values, 0)
    if context.retrieval is not None:
        out["retrieval.indices"], out["retrieval.scores"] = context.retrieval.indices, context.retrieval.scores
    return out


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def copies(value: Any) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in tree.leaves(value).items()}


# -- the contract ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEMORIES)
def test_an_empty_memory_shows_nothing(name: str) -> None:
    memory = make(name)
    value = empty(memory, 3)
    context = memory.read(value, query_after(history(3, 1)))
    for key, told in shown(context).items():
        if key == "retrieval.indices":
            assert told.shape == (3, memory.num_retrieved) and (told == -1).all()
        elif key == "retrieval.scores":
            assert told.shape == (3, memory.num_retrieved) and (told == -math.inf).all()
        else:
            assert not told.any(), key
    held = memory.footprint(value)
    assert held.frames.tolist() == held.bytes.tolist() == [0, 0, 0]


@pytest.mark.parametrize("frames", [1, 3, 30, 100])
@pytest.mark.parametrize("name", MEMORIES)
def test_what_is_shown_is_what_was_written(name: str, frames: int) -> None:
    """Each valid frame is the one its offset says, and recent ones leave no gap."""
    memory, seen = make(name), history(2, frames)
    query = query_after(seen)
    context = memory.read(write(memory, empty(memory, 2), seen), query)
    now = query.times[:, 0]
    for group in context.frames:
        for row, n in group.valid.nonzero().tolist():
            t = int(now[row] - group.offsets[row, n])
            assert torch.equal(group.latents[row, n], seen.latents[row, t])
            assert torch.equal(group.relative[row, n], relative_pose(seen.poses[row, t], query.poses[row, 0]))
            for name in ("actions", "egomotion", "poses", "times"):
                assert torch.equal(getattr(group, name)[row, n], getattr(seen, name)[row, t]), name
    if context.frames:
        recent = torch.cat([g.offsets for g in context.frames[: len(memory.layout.recent)]], 1)
        there = torch.cat([g.valid for g in context.frames[: len(memory.layout.recent)]], 1)
        count = min(frames, memory.layout.num_recent)
        assert there.sum(1).tolist() == [count, count]
        assert recent[there].view(2, -1).tolist() == [list(range(1, count + 1))] * 2
    if context.kv is not None:
        valid, count = context.kv.valid, min(frames, BUDGET)
        assert valid.sum(1).tolist() == [count, count]
        for row, n in valid.nonzero().tolist():
            t = int(now[row] - context.kv.offsets[row, n])
            for layer, written in zip(context.kv.layers, written_keys(seen), strict=True):
                assert torch.equal(layer.keys[row, n], written.keys[row, t]) and torch.equal(layer.values[row, n], written.values[row, t])


@pytest.mark.parametrize("name", MEMORIES)
def test_a_write_leaves_the_old_value_good(name: str) -> None:
    memory, seen = make(name), history(2, 90)
    value = empty(memory, 2)
    for first in range(0, 90, 10):
        before, context = copies(value), shown(memory.read(value, query_after(seen, first + 1)))
        after = memory.write(value, part(seen, first, first + 10))
        for path, told in tree.leaves(value).items():
            assert torch.equal(told, before[path]) if isinstance(told, Tensor) else told == before[path], path
        assert_same(shown(memory.read(value, query_after(seen, first + 1))), context)
        value = after


@pytest.mark.parametrize("frames", [12, 80])
@pytest.mark.parametrize("name", MEMORIES)
def test_no_row_affects_another(name: str, frames: int) -> None:
    memory, seen = make(name), history(5, frames)
    query = query_after(seen)
    together = shown(memory.read(write(memory, empty(memory, 5), seen), query))
    for row in range(5):
        index = torch.tensor([row])
        alone = memory.read(write(memory, empty(memory, 1), tree.select(seen, index)), tree.select(query, index))
        assert_same(shown(alone), {k: v[row : row + 1] for k, v in together.items()})


@pytest.mark.parametrize("size", [2, 7, 40, 100])
@pytest.mark.parametrize("name", MEMORIES)
def test_chunks_and_single_frames_are_remembered_alike(name: str, size: int) -> None:
    memory, seen = make(name), history(2, 100)
    by_chunks, one_by_one = (write(memory, empty(memory, 2), seen, n) for n in (size, 1))
    query = query_after(seen)
    assert_same(shown(memory.read(by_chunks, query)), shown(memory.read(one_by_one, query)))
    assert torch.equal(memory.footprint(by_chunks).frames, memory.footprint(one_by_one).frames)


@pytest.mark.parametrize("name", MEMORIES)
def test_branches_live_apart(name: str) -> None:
    """Repeated rows that go their own ways remember what rows written from the start would."""
    memory, past = make(name), history(2, 40)
    own = history(4, 70, seed=9)
    futures = replace(own, times=own.times + 40)
    branched = write(memory, tree.repeat(write(memory, empty(memory, 2), past), 2), futures)
    apart = write(memory, write(memory, empty(memory, 4), tree.repeat(past, 2)), futures)
    query = query_after(futures)
    assert_same(shown(memory.read(branched, query)), shown(memory.read(apart, query)))


@pytest.mark.parametrize("name", MEMORIES)
def test_reset_rows_forget_and_the_others_do_not(name: str) -> None:
    """And each goes on as if it were alone, long after its memory was full."""
    memory, seen, fresh = make(name), history(3, 50), history(3, 5, seed=4)
    old, new = write(memory, empty(memory, 3), seen), write(memory, empty(memory, 3), fresh)
    mask = torch.tensor([False, True, False])
    mixed = tree.where(mask, new, old)
    query = tree.where(mask, query_after(fresh), query_after(seen))
    alone = [tree.select(value, torch.tensor([row])) for row, value in enumerate((old, new, old))]
    more = history(3, 70, seed=7)
    for t in range(70):
        together = shown(memory.read(mixed, query))
        held = memory.footprint(mixed).frames
        now = replace(part(more, t, t + 1), times=query.times)
        for row in range(3):
            index = torch.tensor([row])
            one = shown(memory.read(alone[row], tree.select(query, index)))
            assert_same({k: v[row : row + 1] for k, v in together.items()}, one)
            assert memory.footprint(alone[row]).frames[0] == held[row]
            alone[row] = memory.write(alone[row], tree.select(now, index))
        mixed = memory.write(mixed, now)
        query = Query(now.poses, query.times + 1)


@pytest.mark.parametrize("frames", [10, 35, 60])
@pytest.mark.parametrize("name", MEMORIES)
def test_a_short_row_padded_on_the_left_is_a_short_row(name: str, frames: int) -> None:
    """Times count what is there: the padding is neither shown nor counted, whatever lies in it."""
    memory, seen = make(name), history(2, frames)
    short = 4
    begin = frames - short
    valid = seen.valid.clone()
    valid[1, :begin] = False
    padded = replace(seen, valid=valid, times=valid.cumsum(1) - 1)
    query = Query(query_after(seen).poses, torch.tensor([[frames], [short]]))
    value, second = memory.write(empty(memory, 2), padded), torch.tensor([1])
    last = part(seen, begin, frames)
    alone = memory.write(empty(memory, 1), tree.select(replace(last, times=last.times - begin), second))
    read = shown(memory.read(value, query))
    assert_same({k: v[1:] for k, v in read.items()}, shown(memory.read(alone, tree.select(query, second))))
    assert memory.footprint(value).frames[1] == short


@pytest.mark.parametrize("name", MEMORIES)
def test_the_oldest_are_forgotten_first(name: str) -> None:
    memory, seen = make(name), history(2, 200)
    value = empty(memory, 2)
    for t in range(200):
        value = memory.write(value, part(seen, t, t + 1))
        held = [sorted(x for x in row if x >= 0) for row in times_of(value).tolist()]
        assert held[0] == held[1] == list(range(max(0, t + 1 - BUDGET), t + 1))
        footprint: Footprint = memory.footprint(value)
        assert footprint.frames.tolist() == [len(held[0])] * 2
    told = 8 + 5 * 4 + 1  # action, egomotion, and whether it was observed
    each = math.prod(LATENT) * 4 + told if name in LAYOUTS else 2 * DEPTH * TOKENS * HEADS * HEAD_WIDTH * 4
    assert (footprint.bytes > footprint.frames * each).all() and (footprint.bytes <= footprint.frames * (each + 32)).all()


@pytest.mark.parametrize("name", MEMORIES)
def test_a_memory_survives_the_way_to_a_file(name: str) -> None:
    memory, seen = make(name), history(2, 45)
    value = write(memory, empty(memory, 2), seen)
    back = tree.like(empty(memory, 2), tree.leaves(value))
    more = history(2, 30, seed=3)
    more = replace(more, times=more.times + 45)
    query = query_after(more)
    assert_same(shown(memory.read(write(memory, back, more), query)), shown(memory.read(write(memory, value, more), query)))


# -- bank -----------------------------------------------------------------------------------------------------------------------------


def test_branches_share_the_archive_untouched_until_their_tail_is_full() -> None:
    memory, past = make("worldpack"), history(1, 60)
    trunk = write(memory, empty(memory, 1), past, 60)
    assert trunk.used == HighWater(0)
    branches = tree.repeat(trunk, 8)
    future = history(8, TAIL + 1, seed=2)
    for t in range(TAIL):
        branches = memory.write(branches, replace(part(future, t, t + 1), times=torch.full((8, 1), 60 + t)))
        assert branches.archive.data is trunk.archive.data
    full = memory.write(branches, replace(part(future, TAIL, TAIL + 1), times=torch.full((8, 1), 60 + TAIL)))
    assert full.used == HighWater(0) and sorted(times_of(full)[3].tolist())[-BUDGET:] == list(range(61 + TAIL - BUDGET, 61 + TAIL))
    assert branches.used == HighWater(TAIL)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_branches_hold_one_copy_of_their_past_however_long_they_go_on(name: str) -> None:
    """32 branches of 60 frames, 80 steps long: what each wrote is its own, what is left of their past is there once."""
    memory, past, lanes = make(name, budget=100), history(1, 60), 32
    trunk = write(memory, empty(memory, 1), past, 60)
    assert len(trunk.archive) == 60
    own = history(lanes, 80, seed=2)
    own = replace(own, times=own.times + 60)
    branches = write(memory, tree.repeat(trunk, lanes), own, 1)
    archived = 2 * (TAIL + 1)  # of each branch, when its tail was full for the second time
    assert len(branches.archive) == lanes * archived + (100 - archived)
    query = query_after(own)
    together = shown(memory.read(branches, query))
    for row in (0, 7, 31):
        index = torch.tensor([row])
        alone = write(memory, trunk, tree.select(own, index), 1)
        assert_same({k: v[row : row + 1] for k, v in together.items()}, shown(memory.read(alone, tree.select(query, index))))


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_recorded_episodes_read_as_if_they_had_been_written(name: str) -> None:
    """Training looks at the past through `recorded`, a dream through `write`: they must show the same."""
    memory, seen = make(name, budget=64), history(3, 50)
    now = torch.tensor([49, 20, 3])
    store = Shared(tree.concat([history(1, 50, seed=8).payload, seen.payload]), torch.tensor([1, 2, 3]))
    times = torch.where(seen.times < now[:, None], seen.times, -1)
    recorded = banks.recorded(store, seen.poses, times)
    for row in range(3):
        index, t = torch.tensor([row]), int(now[row])
        query = Query(seen.poses[index, t : t + 1], now[index, None])
        written = write(memory, empty(memory, 1), part(tree.select(seen, index), 0, t))
        assert_same(shown(memory.read(tree.select(recorded, index), query)), shown(memory.read(written, query)))


def test_a_bank_of_another_precision_holds_what_it_can() -> None:
    memory = TrajectoryMemory(layout("none"), RetrievalConfig(), LATENT, BUDGET, dtype=torch.bfloat16)
    seen = history(1, 40)
    context = memory.read(write(memory, empty(memory, 1), seen), query_after(seen))
    newest_first = seen.latents[:, [39, 38, 37, 36]].bfloat16()
    assert torch.equal(context.frames[0].latents, newest_first)


def slots_of(value: Any) -> int:
    """Archive slots of each lane."""
    return value.archive.rows.shape[1]


def frames_of(value: Any) -> list[list[int]]:
    """Times that each lane holds, sorted."""
    return [sorted(t for t in row if t >= 0) for row in times_of(value).tolist()]


def slots_at(value: Any, times: Tensor) -> Tensor:
    """Slots int64 [B, n] of these times [B, n], each of which must be held once."""
    same = times_of(value)[:, None] == times[..., None]
    assert (same.sum(2) == 1).all()
    return same.int().argmax(2)


def test_an_archive_grows_by_doubling_up_to_the_budget() -> None:
    memory, seen = make("worldpack", budget=300), history(2, 400)
    value, sizes = empty(memory, 2), [64]
    for t in range(400):
        value = memory.write(value, part(seen, t, t + 1))
        assert frames_of(value) == [list(range(max(0, t - 299), t + 1))] * 2
        size = slots_of(value)
        assert times_of(value).shape[1] == TAIL + size and value.poses.values.shape[1] == TAIL + size
        assert size <= max(64, 2 * (t + 1))
        sizes += [size] if size != sizes[-1] else []
    assert sizes == [64, 128, 256, 300]


@pytest.mark.parametrize("frames", [1, 30, 100])
def test_a_large_budget_costs_nothing_until_it_is_used(frames: int) -> None:
    values = [write(m, empty(m, 2), history(2, frames)) for m in (make("worldpack", budget=b) for b in (512, 1_000_000))]
    assert slots_of(values[0]) == slots_of(values[1]) <= 128
    small, large = (sum(x.numel() * x.element_size() for x in tree.tensors(value)) for value in values)
    assert small == large


def test_an_archive_is_no_larger_than_the_fullest_lane_needs_however_often_lanes_are_reset() -> None:
    """As in a vector env that runs for long: episodes of 100 steps that begin at different times."""
    memory, lanes, episode = make("worldpack", budget=100_000), 4, 100
    value, age = empty(memory, lanes), torch.zeros(lanes, dtype=torch.int64)
    frame = history(lanes, 1)
    for t in range(10 * episode):
        begins = torch.arange(lanes) * 25 == t % episode
        age = torch.where(begins, 0, age)
        value = tree.where(begins, empty(memory, lanes), value) if begins.any() else value
        value = memory.write(value, replace(frame, times=age[:, None].clone()))
        age += 1
        assert slots_of(value) <= 128 and len(value.archive) <= lanes * episode
    assert frames_of(value) == [list(range(n)) for n in age.tolist()]


@pytest.mark.parametrize("name", TRAJECTORIES)
@pytest.mark.parametrize("old_wins", [True, False])
def test_lanes_of_banks_of_different_sizes_are_mixed(name: str, old_wins: bool) -> None:
    """A lane keeps its frames next to one that begins anew, whichever of the two trees comes first, and both go on."""
    memory, seen, fresh = make(name, budget=300), history(2, 200), history(2, 3, seed=4)
    old, new = write(memory, empty(memory, 2), seen), write(memory, empty(memory, 2), fresh)
    assert slots_of(old) == 256 and slots_of(new) == 64
    mask = torch.tensor([True, False])
    mixed = tree.where(mask, old, new) if old_wins else tree.where(~mask, new, old)
    assert frames_of(mixed) == [list(range(200)), list(range(3))]
    joined = tree.concat([tree.select(old, torch.tensor([0])), tree.select(new, torch.tensor([1]))])
    query = tree.where(mask, query_after(seen), query_after(fresh))
    alone = [tree.select(value, torch.tensor([row])) for row, value in enumerate((old, new))]
    more = history(2, 150, seed=7)
    for t in range(150):
        if t % 10 == 0:
            for value in (mixed, joined):
                together = shown(memory.read(value, query))
                for row in range(2):
                    one = memory.read(alone[row], tree.select(query, torch.tensor([row])))
                    assert_same({k: v[row : row + 1] for k, v in together.items()}, shown(one))
        now = replace(part(more, t, t + 1), times=query.times)
        mixed, joined = memory.write(mixed, now), memory.write(joined, now)
        alone = [memory.write(alone[row], tree.select(now, torch.tensor([row]))) for row in range(2)]
        query = Query(now.poses, query.times + 1)
    assert frames_of(mixed) == frames_of(joined) == [list(range(50, 350)), list(range(153))]


def test_a_bank_of_another_budget_is_another_memory() -> None:
    small, large = (empty(make("worldpack", budget=b), 2) for b in (24, 300))
    with pytest.raises(ValueError, match="trees differ"):
        tree.where(torch.tensor([True, False]), small, large)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_bank_keeps_any_tree_of_tensors(size: int) -> None:
    """Keys and values beside numbers and flags, of several types and shapes, through tail and archive."""
    capacity, lanes, frames = 80, 3, 150
    generator = torch.Generator().manual_seed(0)

    def payload(rows: int, count: int) -> dict[str, Any]:
        def random(*shape: int) -> Tensor:
            return torch.randn(rows, count, *shape, generator=generator)

        pair = KeysValues(random(TOKENS, HEADS).bfloat16(), random(TOKENS, HEADS))
        return {"kv": (pair,), "number": torch.randint(99, (rows, count), generator=generator), "flag": random() > 0}

    blank = tree.map_tensors(lambda x: torch.zeros_like(x[0]), payload(1, 1))
    kept, seen = payload(lanes, frames), history(lanes, frames)
    bank = banks.empty(lanes, capacity, TAIL, blank)
    for first in range(0, frames, size):
        cut = slice(first, first + size)
        now = tree.map_tensors(lambda x, cut=cut: x[:, cut], kept)
        bank = banks.write(bank, now, seen.poses[:, cut], seen.times[:, cut], seen.valid[:, cut])
    assert frames_of(bank) == [list(range(frames - capacity, frames))] * lanes
    times = torch.stack([torch.randperm(capacity, generator=generator)[:40] + frames - capacity for _ in range(lanes)])
    taken = banks.take(bank, slots_at(bank, times))
    row = torch.arange(lanes)[:, None]
    wanted = tree.map_tensors(lambda x: x[row, times], kept)
    assert isinstance(taken["kv"][0], KeysValues) and tree.leaves(taken).keys() == tree.leaves(wanted).keys()
    for found, true in zip(tree.tensors(taken), tree.tensors(wanted), strict=True):
        assert found.dtype == true.dtype and torch.equal(found, true)
    assert banks.bytes_per_frame(blank) == TOKENS * HEADS * (2 + 4) + 8 + 1 + 28
    assert banks.footprint(bank).bytes.tolist() == [capacity * banks.bytes_per_frame(blank)] * lanes


@pytest.mark.parametrize("action_size", [0, 3])
def test_actions_egomotion_and_what_was_observed_come_back_with_the_frames(action_size: int) -> None:
    memory = TrajectoryMemory(layout("worldpack"), RetrievalConfig(), LATENT, 200, action_size)
    seen = history(2, 150)
    if action_size:
        seen = replace(seen, actions=torch.randn(2, 150, action_size, generator=torch.Generator().manual_seed(1)))
    value = write(memory, empty(memory, 2), seen)
    assert slots_of(value) > 64 and value.used.count > 0  # some frames lie in the tail, some in the archive
    held = banks.take(value, slots_at(value, seen.times))
    for name in ("latents", "actions", "egomotion", "observed"):
        assert torch.equal(getattr(held, name), getattr(seen, name)), name
    context = memory.read(value, query_after(seen))
    for group in context.frames:
        assert group.valid.all() and group.actions.dtype == seen.actions.dtype
        row = torch.arange(2)[:, None]
        for name in ("latents", "actions", "egomotion", "poses"):
            assert torch.equal(getattr(group, name), getattr(seen, name)[row, group.times]), name


def test_a_budget_that_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = TrajectoryMemory(layout("worldpack"), RetrievalConfig(), LATENT, 10**12)
    each = math.prod(LATENT) * 4 + 8 + 5 * 4 + 1 + 5 * 4 + 8  # latent, action, egomotion, observed, pose, time
    words = rf"memory_budget=1000000000000 would take {2 * each * 10**12 / 2**30:.1f} GiB for 2 lanes, cpu has \d+\.\d GiB"
    with pytest.raises(ValueError, match=words):
        empty(memory, 2)
    monkeypatch.setattr(banks.os, "sysconf", {"SC_PAGE_SIZE": each, "SC_PHYS_PAGES": 200}.get)
    for budget, lanes in ((100, 2), (200, 1)):
        empty(make("worldpack", budget=budget), lanes)
        with pytest.raises(ValueError, match=f"memory_budget={budget + 1} would take .* for {lanes} lane"):
            empty(make("worldpack", budget=budget + 1), lanes)


# -- packing --------------------------------------------------------------------------------------------------------------------------


def test_the_papers_context_costs_550_tokens() -> None:
    """28 x 28 latents, patch 2: 196 + 2 * 49 + 16 * 16 tokens, 2.806 whole frames."""
    paper = LAYOUTS["worldpack"]
    assert paper.num_frames == LAYOUTS["packing"].num_frames == 19 and paper.num_recent == 11
    for name in ("worldpack", "packing"):
        assert LAYOUTS[name].num_tokens(28, 2) == 550
        assert LAYOUTS[name].effective_frames(28, 2) == pytest.approx(2.806, abs=5e-4)
        assert LAYOUTS[name].effective_frames(8, 1) == 2.5
    for name in ("none", "retrieval"):
        assert LAYOUTS[name].num_frames == 4 and LAYOUTS[name].effective_frames(28, 2) == LAYOUTS[name].effective_frames(8, 1) == 4
    assert [tokens_per_frame(28, 2, level) for level in range(3)] == [196, 49, 16]


@pytest.mark.parametrize(("side", "patch"), [(28, 2), (8, 1), (10, 2)])
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_the_network_is_shown_as_many_tokens_as_are_counted(name: str, side: int, patch: int) -> None:
    net = CDiT(CDiTConfig((1, side, side), patch=patch, width=8, depth=1, heads=2))
    memory = TrajectoryMemory(layout(name), RetrievalConfig(), (1, side, side), BUDGET)
    told = condition(torch.ones(1, 1, dtype=torch.int64), torch.zeros(1, 1, 5), torch.zeros(1, 1, 5), torch.zeros(1))
    context = memory.read(empty(memory, 1), query_after(history(1, 1)))
    keys, values = net.bind(told, (context,)).layers[0].cross
    assert keys.shape[1] == values.shape[1] == layout(name).num_tokens(side, patch)


def test_impossible_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        Layout(((1, 3),))
    with pytest.raises(ValueError, match="newest"):
        Layout(((0, 0),), (3, 0))
    with pytest.raises(ValueError, match=r"worldpack.*'everything'"):
        layout("everything")
    with pytest.raises(ValueError, match=r"19 frames.*18"):
        make("worldpack", budget=18)


@pytest.mark.parametrize("times", [2, 4])
@pytest.mark.parametrize("side", [8, 7])
def test_a_packed_embedding_begins_as_the_base_embedding_of_the_average(times: int, side: int) -> None:
    """Odd sides are first padded by repeating the far edge."""
    base, packed = PatchEmbed(3, 2, 5), PatchEmbed(3, 2 * times, 5)
    packed.interpolate_from(base)
    x = torch.randn(2, 3, side, side)
    more = -side % (2 * times)
    repeated = torch.cat([x, x[..., -1:].expand(-1, -1, -1, more)], -1)
    repeated = torch.cat([repeated, repeated[..., -1:, :].expand(-1, -1, more, -1)], -2)
    assert torch.allclose(packed(x), base(F.avg_pool2d(repeated, times)), atol=1e-5)


# -- retrieval ------------------------------------------------------------------------------------------------------------------------


def paper_score(pose: list[float], past: list[float], config: RetrievalConfig) -> float:
    """Section 4.2 as printed, in plain numbers of 64 bits."""

    def look(p: list[float]) -> tuple[float, float, float]:
        return math.cos(p[4]) * math.cos(p[3]), math.cos(p[4]) * math.sin(p[3]), math.sin(p[4])

    d, d_i = look(pose), look(past)
    away = (past[0] - pose[0], past[1] - pose[1], 0.0)
    s = sum(a * b for a, b in zip(away, d))
    lateral = math.dist(away, [s * b for b in d])
    cos = sum(a * b for a, b in zip(d, d_i))
    side = math.exp(-(lateral**2) / (2 * config.sigma_l**2))
    ahead = math.exp(-(s**2) / (2 * config.sigma_s**2))
    behind = math.exp(-((s - config.mu_s) ** 2) / (2 * config.sigma_s**2))
    return config.w_c * max(cos, 0) * ahead * side + config.w_a * max(-cos, 0) * behind * side


near = st.floats(-0.2, 0.2)
angle = st.floats(-3, 3)
nearby = st.tuples(near, near, near, angle, st.floats(-1.5, 1.5)).map(list)


@settings(max_examples=200)
@given(nearby, nearby, st.booleans(), st.sampled_from([PAPER, RetrievalConfig(), RetrievalConfig(w_c=0.5, w_a=2.0, mu_s=-0.3)]))
def test_the_score_is_the_papers_where_that_does_not_underflow(
    pose: list[float], past: list[float], facing: bool, config: RetrievalConfig
) -> None:
    if facing:  # as where the second term lives: a step ahead, looking back
        past = [pose[0] + math.cos(pose[3]) + past[0] / 10, pose[1] + math.sin(pose[3]) + past[1] / 10, past[2], pose[3] + math.pi, past[4]]
    expected = paper_score(pose, past, config)
    found = float(log_score(torch.tensor([pose], dtype=torch.float64), torch.tensor([[past]], dtype=torch.float64), config))
    if expected > 1e-290:
        assert found == pytest.approx(math.log(expected), rel=1e-9, abs=1e-6)
    else:
        assert found < math.log(1e-289)


def test_frames_still_rank_where_the_papers_score_is_zero() -> None:
    """Two steps along the view: exp(-s^2 / 2e-4) is 0 even in float64, its logarithm is -s^2 / 2e-4."""
    pose = torch.zeros(1, 5)
    past = torch.zeros(1, 4, 5)
    past[0, :, 0] = torch.tensor([0.5, 1.0, -2.0, 40.0])
    scores = log_score(pose, past, PAPER)
    assert paper_score([0.0] * 5, past[0, 0].tolist(), PAPER) == 0
    assert scores[0].tolist() == pytest.approx([-1250, -5000, -20000, -8e6])
    assert torch.isfinite(scores).all()


def test_a_frame_that_looks_away_scores_nothing_unless_asked() -> None:
    past = torch.zeros(1, 1, 5)
    past[..., 3] = 3.0
    assert log_score(torch.zeros(1, 5), past, RetrievalConfig(w_a=0)) == -math.inf
    assert log_score(torch.zeros(1, 5), past, RetrievalConfig(w_a=1)) > -math.inf


def pick(scores: list[float], n: int, suppression: int = 0, times: list[int] | None = None, allowed: list[bool] | None = None) -> list[int]:
    """Chosen times, -1 where nothing was left."""
    t = torch.tensor([times or list(range(len(scores)))])
    allow = torch.tensor([allowed]) if allowed else torch.ones_like(t, dtype=torch.bool)
    slots, kept, exists = choose(torch.tensor([scores]), t, allow, n, suppression)
    assert (torch.isfinite(kept) == exists).all()
    assert all(float(kept[0, i]) == pytest.approx(scores[int(slots[0, i])]) for i in range(n) if exists[0, i])
    return torch.where(exists, t.gather(1, slots), -1)[0].tolist()


def test_the_best_are_chosen_in_order() -> None:
    assert pick([-3.0, -1.0, -2.0, -9.0], 3) == [1, 2, 0]
    assert pick([-3.0, -1.0, -2.0, -9.0], 3, allowed=[True, False, True, True]) == [2, 0, 3]


def test_a_choice_rules_out_its_neighbours_in_time() -> None:
    assert pick([-5.0, -4.0, -1.0, -2.0, -6.0, -7.0], 3, suppression=1) == [2, 0, 4]
    assert pick([-1.0, -2.0, -3.0], 2, suppression=1, times=[10, 30, 11]) == [10, 30]


def test_when_fewer_are_left_the_rest_is_marked() -> None:
    assert pick([-1.0, -2.0, -3.0], 3, suppression=1) == [0, 2, -1]
    assert pick([-1.0, -math.inf, -3.0], 3) == [0, 2, -1]
    assert pick([-1.0, -2.0], 2, allowed=[False, False]) == [-1, -1]


@pytest.mark.parametrize("score", [0.0, -1.5, -2000.0, -50_000.0, -8e6, -1e9])
def test_of_equal_scores_the_newer_wins(score: float) -> None:
    """However small the score: the paper's sigma makes -5000 of a single step."""
    times = [5, 9, 7, 8, 6, 10, 4]
    assert pick([score] * 7, 3, times=times) == [10, 9, 8]
    assert pick([score] * 7, 3, times=times, suppression=2) == [10, 7, 4]


def test_rounding_does_not_decide_between_equal_frames() -> None:
    assert pick([-1.0, -1.0 - 1e-5, -1.0 + 1e-5], 3) == [2, 1, 0]


def greedy(scores: list[float], times: list[int], allowed: list[bool], n: int, suppression: int) -> list[int]:
    left = [(s, t) for s, t, a in zip(scores, times, allowed) if a]
    picked: list[int] = []
    while left and len(picked) < n:
        best = max(left)[1]
        picked.append(best)
        left = [(s, t) for s, t in left if abs(t - best) > suppression]
    return picked + [-1] * (n - len(picked))


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(-40, 0), st.booleans()), min_size=1, max_size=30), st.integers(1, 9), st.integers(0, 6), st.randoms())
def test_choosing_is_greedy(entries: list[tuple[int, bool]], n: int, suppression: int, random: Any) -> None:
    times = random.sample(range(1000), len(entries))
    scores, allowed = [float(s) for s, _ in entries], [a for _, a in entries]
    assert pick(scores, n, suppression, times, allowed) == greedy(scores, times, allowed, n, suppression)


CONFIGS = [
    RetrievalConfig(),
    PAPER,
    RetrievalConfig(w_a=1.0, exclusion=0, suppression=0),
    RetrievalConfig(exclusion=20, suppression=2),
    RetrievalConfig(method="coverage", suppression=0),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["retrieval", "worldpack"])
def test_retrieved_frames_are_old_apart_and_not_shown_already(name: str, config: RetrievalConfig) -> None:
    memory = TrajectoryMemory(layout(name), config, LATENT, 128)
    seen = history(6, 100, seed=5)
    value = empty(memory, 6)
    found = 0
    for t in range(100):
        value = memory.write(value, part(seen, t, t + 1))
        context = memory.read(value, query_after(seen, t + 1))
        assert context.retrieval is not None
        for row in range(6):
            picked = [i for i in context.retrieval.indices[row].tolist() if i >= 0]
            recent = {t + 1 - int(o) for g in context.frames[:-1] for o, v in zip(g.offsets[row], g.valid[row]) if v}
            assert not recent & set(picked) and len(set(picked)) == len(picked)
            assert all(t + 1 - i > config.exclusion for i in picked)
            assert all(abs(i - j) > config.suppression for i in picked for j in picked if i != j)
            assert context.frames[-1].valid[row].sum() == len(picked)
            found += len(picked)
    assert found > 500


def test_the_way_back_is_found() -> None:
    """Turn left for half a circle and back: what is retrieved is what was seen at the same yaw, not its neighbours."""
    turns = [6] * 12 + [7] * 6
    pose, poses = torch.zeros(5), []
    for action in [0, *turns]:
        pose = compose(pose, MOVES.motion(torch.tensor(action)))
        poses.append(pose)
    n = len(poses)
    seen = history(1, n)
    seen = replace(seen, poses=torch.stack(poses)[None])
    memory = TrajectoryMemory(layout("retrieval"), RetrievalConfig(), LATENT, 64)
    query = Query(compose(pose, MOVES.motion(torch.tensor(7)))[None, None], torch.tensor([[n]]))
    retrieval = memory.read(write(memory, empty(memory, 1), seen), query).retrieval
    assert retrieval is not None
    assert retrieval.indices[0, 0] == 5  # 12 - 7 turns of 15 degrees from the start: frame 5 looked there
    assert retrieval.scores[0, 0] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("config", [RetrievalConfig(), PAPER, RetrievalConfig(method="coverage")])
def test_choices_do_not_depend_on_the_batch(config: RetrievalConfig) -> None:
    """Walks over a small square of turns and steps: many frames that score the same but for rounding."""
    generator = torch.Generator().manual_seed(3)
    rows, frames = 33, 60
    actions = torch.tensor([0, 1, 2, 6, 7])[torch.randint(5, (rows, frames), generator=generator)]
    pose, poses = torch.zeros(rows, 5), []
    for t in range(frames):
        pose = compose(pose, MOVES.motion(actions[:, t]))
        poses.append(pose)
    seen = replace(history(rows, frames), poses=torch.stack(poses, 1))
    memory = TrajectoryMemory(layout("worldpack"), config, LATENT, 64)
    value, query = write(memory, empty(memory, rows), seen, frames), query_after(seen)
    together = memory.read(value, query).retrieval
    assert together is not None
    for row in range(rows):
        alone = memory.read(tree.select(value, torch.tensor([row])), tree.select(query, torch.tensor([row]))).retrieval
        assert alone is not None and torch.equal(alone.indices[0], together.indices[row])


def test_wrong_constants_are_named() -> None:
    for field, value in (("sigma_s", 0.0), ("sigma_l", -1.0), ("w_a", -0.5), ("exclusion", -1)):
        with pytest.raises(ValueError, match=rf"{field}.*{value}"):
            RetrievalConfig(**{field: value})


# -- several memories -----------------------------------------------------------------------------------------------------------------


def test_what_two_memories_show_stands_side_by_side() -> None:
    seen = history(2, 30)
    contexts = [m.read(write(m, empty(m, 2), seen), query_after(seen)) for m in map(make, ("packing", "worldpack", "keys and values"))]
    merged = merge(contexts)
    assert merged.frames == (*contexts[0].frames, *contexts[1].frames)
    assert merged.kv is contexts[2].kv and merged.retrieval is contexts[1].retrieval
    for twice, name in ((contexts[1], "retrieval"), (contexts[2], "kv")):
        with pytest.raises(ValueError, match=f"2 memories of one world give {name}"):
            merge([twice, twice])
