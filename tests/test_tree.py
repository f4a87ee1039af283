"""Rows of nested states are branched, picked, mixed and moved; what was there before stays as it was."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from wmgym import tree
from wmgym.tree import HighWater, Shared, Slots


@dataclass(frozen=True)
class Inner:
    values: Tensor
    store: Shared
    used: HighWater
    slots: Slots


@dataclass(frozen=True)
class Outer:
    keys: Tensor
    parts: tuple[Inner, ...]
    named: dict[str, Tensor]
    nothing: Any = None
    label: str = "a"


def make(rows: int, start: float = 0.0, used: int = 3, *, own: bool = True, slots: int = 2) -> Outer:
    """A state whose every leaf of row b tells b + start."""
    told = torch.arange(rows) + start
    data = told[:, None, None] + torch.arange(4)[:, None] / 8 + torch.zeros(2)
    store = Shared.own(data) if own else Shared(data[:1], torch.zeros(rows, dtype=torch.int64))
    inner = Inner(told[:, None].repeat(1, 2), store, HighWater(used), Slots(told[:, None].repeat(1, slots), -1))
    return Outer(told.long(), (inner, inner), {"x": told.double()})


def rows_of(state: Outer) -> list[list[float]]:
    """What each row tells, in every leaf, as it would be read."""
    index = torch.zeros(len(state.keys), 1, dtype=torch.int64)
    leaves = [state.keys.double(), state.named["x"]]
    for part in state.parts:
        leaves += [part.values[:, 0], part.values[:, 1], part.store.dense()[:, 0, 0], part.store.take(index)[:, 0, 1]]
        leaves.append(part.slots.values[:, 0])
    return torch.stack([leaf.double() for leaf in leaves], 1).tolist()


def told(*numbers: float) -> list[list[float]]:
    return [[n] * 12 for n in numbers]


def copies(state: Outer) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in tree.leaves(state).items()}


def assert_unchanged(state: Outer, before: dict[str, Any]) -> None:
    for path, value in tree.leaves(state).items():
        assert torch.equal(value, before[path]) if isinstance(value, Tensor) else value == before[path], path


def test_repeat_puts_copies_next_to_each_other_and_shares_the_store() -> None:
    state = make(2)
    before = copies(state)
    many = tree.repeat(state, 3)
    assert rows_of(many) == told(0, 0, 0, 1, 1, 1)
    assert many.parts[0].store.data.data_ptr() == state.parts[0].store.data.data_ptr()
    assert many.parts[0].store.data.shape == (2, 4, 2)
    assert_unchanged(state, before)


def test_select_picks_rows_in_any_order() -> None:
    state = make(4)
    before = copies(state)
    picked = tree.select(state, torch.tensor([3, 0, 3]))
    assert rows_of(picked) == told(3, 0, 3)
    assert picked.parts[1].store.data is state.parts[1].store.data
    assert_unchanged(state, before)


def test_take_reads_each_lane_through_its_own_row() -> None:
    data = torch.randn(3, 5, 2)
    rows, index = torch.tensor([2, 0, 2, 1]), torch.randint(5, (4, 3))
    taken = Shared(data, rows).take(index)
    for lane in range(4):
        for i in range(3):
            assert torch.equal(taken[lane, i], data[rows[lane], index[lane, i]])


def test_lanes_may_see_several_rows_and_mixing_them_keeps_what_is_shared() -> None:
    """Two lanes of 3 rows each out of 4; beyond as many rows as all lanes see, those that none sees are left out."""
    old = Shared(torch.arange(4.0), torch.tensor([[0, 1, 2], [0, 1, 3]]))
    new = Shared(torch.arange(10.0, 14), torch.tensor([[0, 0, 0], [1, 2, 3]]))
    mixed = tree.where(torch.tensor([False, True]), new, old)
    assert mixed.dense().tolist() == [[0, 1, 2], [11, 12, 13]]
    assert mixed.data.tolist() == [0, 1, 2, 11, 12, 13]
    assert tree.repeat(old, 2).dense().tolist() == [[0, 1, 2]] * 2 + [[0, 1, 3]] * 2
    assert tree.where(torch.tensor([True, False]), tree.select(old, torch.tensor([1, 1])), old).data is old.data
    seen = Shared(torch.arange(4.0), torch.tensor([[3, 1], [1, 3]])).compact()
    assert seen.data.tolist() == [1, 3] and seen.dense().tolist() == [[3, 1], [1, 3]]


MASK = torch.tensor([True, False, True, False])


@pytest.mark.parametrize("new_own", [True, False])
@pytest.mark.parametrize("old_own", [True, False])
def test_where_mixes_rows_whatever_their_stores(new_own: bool, old_own: bool) -> None:
    new, old = make(4, 10, own=new_own), make(4, 20, own=old_own)
    # a store of one row is read as that row's number by every lane: what the other leaves tell is set apart below
    before_new, before_old = copies(new), copies(old)
    mixed = tree.where(MASK, new, old)
    expected = torch.where(MASK[:, None, None], new.parts[0].store.dense(), old.parts[0].store.dense())
    assert torch.equal(mixed.parts[0].store.dense(), expected)
    assert mixed.parts[0].values[:, 0].tolist() == [10, 21, 12, 23] == mixed.keys.tolist()
    assert_unchanged(new, before_new)
    assert_unchanged(old, before_old)


def test_where_of_branches_of_one_moment_stays_shared() -> None:
    branches = tree.repeat(make(2), 2)
    other = tree.select(branches, torch.tensor([3, 3, 3, 0]))
    mixed = tree.where(MASK, other, branches)
    assert rows_of(mixed) == told(1, 0, 1, 1)
    assert mixed.parts[0].store.data is branches.parts[0].store.data


def test_where_on_some_lanes_of_a_larger_store() -> None:
    few = tree.select(make(8), torch.tensor([0, 1]))
    assert len(few.parts[0].store.data) == 8
    assert rows_of(tree.where(torch.tensor([False, True]), make(2, 20), few)) == told(0, 21)
    assert rows_of(tree.where(torch.tensor([False, True]), few, make(2, 20))) == told(20, 1)


@pytest.mark.parametrize("fresh_rows", [1, 4])
def test_resetting_lanes_again_and_again_does_not_pile_up_stores(fresh_rows: int) -> None:
    """A vector env's lanes end at different times; a store must not grow with every reset."""
    state = tree.repeat(make(1), 4)
    for n in range(12):
        fresh = tree.repeat(make(fresh_rows, 100 * (n + 1)), 4 // fresh_rows)
        mask = torch.arange(4) == n % 4
        expected = torch.where(mask, fresh.keys, state.keys)
        state = tree.where(mask, fresh, state)
        assert rows_of(state) == told(*expected.tolist())
        assert len(state.parts[0].store.data) <= 4


def test_where_keeps_the_larger_mark_and_refuses_other_differences() -> None:
    assert tree.where(MASK, make(4, used=2), make(4, used=5)).parts[0].used.count == 5
    assert tree.where(MASK, make(4, used=7), make(4, used=5)).parts[0].used.count == 7
    other = tree.like(make(4), {**tree.leaves(make(4)), "label": "b"})
    with pytest.raises(ValueError, match="'a'"):
        tree.where(MASK, other, make(4))
    with pytest.raises(ValueError, match="length"):
        tree.where(MASK, (torch.ones(4),), (torch.ones(4), torch.ones(4)))


def test_plain_numbers_must_agree() -> None:
    assert tree.where(MASK, {"size": 3, "x": torch.ones(4)}, {"size": 3, "x": torch.zeros(4)})["size"] == 3
    with pytest.raises(ValueError, match="3 and 4"):
        tree.where(MASK, {"size": 3}, {"size": 4})
    with pytest.raises(ValueError, match="3 and 4"):
        tree.concat([{"size": 3}, {"size": 4}])


@pytest.mark.parametrize(("new", "old"), [(2, 5), (5, 2), (3, 3)])
def test_slots_of_different_numbers_are_padded_to_the_larger(new: int, old: int) -> None:
    mixed = tree.where(MASK, make(4, 10, slots=new), make(4, 20, slots=old)).parts[0].slots
    assert mixed.fill == -1 and mixed.values.shape == (4, max(new, old))
    for row, (start, count) in enumerate([(10, new), (21, old), (12, new), (23, old)]):
        assert mixed.values[row].tolist() == [start + (row if start in (10, 20) else 0)] * count + [-1] * (max(new, old) - count)
    joined = tree.concat([make(1, 1, slots=new), make(1, 2, slots=old)]).parts[1].slots
    assert joined.values.sum() == new + 2 * old - abs(new - old)


def test_lanes_that_see_more_rows_than_others_are_padded_too() -> None:
    old = Shared(torch.arange(4.0), torch.tensor([[0, 1], [2, 3]]))
    new = Shared(torch.arange(10.0, 14), torch.tensor([[3, 2, 1], [1, 2, 3]]))
    mixed = tree.where(torch.tensor([False, True]), new, old)
    assert mixed.dense()[0, :2].tolist() == [0, 1] and mixed.dense()[1].tolist() == [11, 12, 13]
    joined = tree.concat([old, new])
    assert joined.dense()[1, :2].tolist() == [2, 3] and joined.dense()[2].tolist() == [13, 12, 11]


def test_what_is_shared_may_be_a_tree() -> None:
    """Latents and actions of the same frames, say: rows of all its tensors move together."""

    def stored(start: int, rows: list[int]) -> Shared:
        return Shared({"a": torch.arange(start, start + 3), "b": (torch.arange(3.0)[:, None] + start,)}, torch.tensor(rows))

    def read(shared: Shared) -> list[int]:
        seen = shared.dense()
        assert seen["b"][0][:, 0].tolist() == seen["a"].tolist()
        return seen["a"].tolist()

    old = stored(0, [0, 1, 2])
    assert read(tree.select(old, torch.tensor([2, 0]))) == [2, 0] and len(old) == 3
    mixed = tree.where(torch.tensor([True, False, True]), stored(10, [2, 2, 1]), old)
    assert read(mixed) == [12, 1, 11] and len(mixed) == 3, "rows that nobody sees are gone"
    assert read(tree.concat([old, stored(20, [1])])) == [0, 1, 2, 21]
    again = tree.where(torch.tensor([True, False, False]), tree.select(old, torch.tensor([2, 2, 2])), old)
    assert again.data["a"] is old.data["a"] and read(again) == [2, 1, 2]


def test_concat_is_undone_by_select() -> None:
    a, b = make(2, used=1), tree.repeat(make(1, 7, used=4), 2)
    joined = tree.concat([a, b])
    assert rows_of(joined) == told(0, 1, 7, 7)
    assert joined.parts[0].used.count == 4
    assert rows_of(tree.select(joined, torch.tensor([2, 3]))) == rows_of(b)
    assert len(joined.parts[0].store.data) == 3


def test_to_moves_every_tensor() -> None:
    moved = tree.to(make(2), "meta")
    devices = {v.device.type for v in tree.leaves(moved).values() if isinstance(v, Tensor)}
    assert devices == {"meta"}
    assert (moved.parts[0].used.count, moved.label, moved.nothing) == (3, "a", None)


def test_leaves_and_like_are_inverses() -> None:
    state = tree.repeat(make(2, 5), 2)
    values = tree.leaves(state)
    assert "parts.1.store.rows" in values and "named.x" in values and values["parts.0.used.count"] == 3 and values["nothing"] is None
    back = tree.like(make(1), values)
    assert rows_of(back) == rows_of(state)
    assert isinstance(back.parts[0].store, Shared) and back.parts[0].used.count == 3
    lacking = {k: v for k, v in values.items() if k != "parts.1.values"}
    with pytest.raises(ValueError, match=r"parts\.1\.values"):
        tree.like(make(1), lacking)
