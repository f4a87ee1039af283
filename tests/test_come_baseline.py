"""CoME's baselines by noise: keys as in the training's drowned windows, nothing of what was seen, no cost where they are not used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_come import NET, F, begun, checkpoint, composed, opening, random_adapters, rows_of, seen, with_random_gates, world
from torch import Tensor

from wmgym import geometry, rng, tree
from wmgym.core import Adapters, Condition, Context, ContextFrames, ContextKV, KeysValues, Query, Seen, Trace
from wmgym.memory.slots import SlotMemory
from wmgym.memory.writers import MeanWriter
from wmgym.nets import composed as composing
from wmgym.nets.composed import AttentionExpert, Composed, ComposedConfig, Role
from wmgym.nets.drowned import drowned, noise_of
from wmgym.nets.two_streams import Stream, clean_stream, two_streams
from wmgym.nets.video_dit import VideoDiT

__all__ = ["checkpoint"]  # a fixture

CHUNKS = 4
NOISE = {"baseline": "noise", "compose": "mean"}  # in mode "guided" the base has no baseline


def window(rows: int = 2, chunks: int = CHUNKS) -> Condition:
    shown = seen(rows, chunks * F, seed=3)
    start = geometry.step_back(shown.poses[:, 0], shown.egomotion[:, 0])
    return Condition(shown.actions, shown.egomotion, shown.poses, shown.times, start, torch.zeros(rows, 5))


def part(whole: Condition, first: int, last: int) -> Condition:
    frames = slice(first * F, last * F)
    names = ("actions", "egomotion", "poses", "times")
    return Condition(*(getattr(whole, name)[:, frames] for name in names), whole.start, whole.origin)


def past_of(whole: Condition, chunks: int, valid: Tensor | None = None, newest_first: bool = True) -> ContextKV:
    """The past before chunk `chunks` as a memory gives it, with random keys."""
    rows, frames = len(whole.poses), chunks * F
    heads, width = NET.heads, NET.width // NET.heads

    def keys() -> Tensor:
        return torch.randn(rows, frames, NET.tokens, heads, width)

    layers = tuple(KeysValues(keys(), keys()) for _ in range(NET.depth))
    offsets = torch.arange(frames, 0, -1).expand(rows, -1)
    there = torch.ones(rows, frames, dtype=torch.bool) if valid is None else valid
    past = part(whole, 0, chunks)
    kv = ContextKV(layers, offsets, there, past.poses, (past.actions, past.egomotion))
    order = torch.arange(frames).view(-1, F).flip(0).flatten() if newest_first else torch.arange(frames)
    return tree.map_tensors(lambda x: x[:, order], kv)


def expert(name: str) -> tuple[Composed, VideoDiT, Adapters | None]:
    """A composed network with an expert that reads a past, and what this expert runs on."""
    torch.manual_seed(0)
    net = Composed(ComposedConfig(NET, {"stm": AttentionExpert(window=4, reach=1, full=(2,), rank=3)}))
    with_random_gates(net).eval().requires_grad_(False)
    return (net, *net.attending("stm")) if name == "stm" else (net, net.base, None)


def evaluated(net: Composed, now: Condition, *contexts: Context) -> Tensor:
    torch.manual_seed(4)
    rows = len(now.poses)
    return net.bind(now, contexts)(torch.randn(rows, F, *NET.latent_shape), torch.full((rows,), 0.6))


# -- keys -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base", "stm"])
@pytest.mark.parametrize("short", [False, True])
def test_a_baseline_reads_what_a_drowned_window_of_the_training_reads(name: str, short: bool) -> None:
    """Two ways: the baseline's velocity of each chunk, and one pass over a window whose clean chunks are at level 1."""
    _, network, adapters = expert(name)
    whole, frames = window(), CHUNKS * F
    valid = torch.ones(2, frames, dtype=torch.bool)
    valid[1, 0] = not short  # an opening whose first chunk is not whole
    noisy, levels = torch.randn(2, frames, *NET.latent_shape), torch.full((2, frames), 0.5)
    everything = torch.ones(2, CHUNKS, dtype=torch.bool)
    for chunk in range(1, CHUNKS):
        noise = torch.zeros_like(noisy)
        noise[:, : chunk * F] = noise_of(network, whole.times[:, : chunk * F])
        clean = Stream(noise, torch.ones(2, frames), whole)
        wanted, _ = two_streams(network, clean, Stream(noisy, levels, whole), everything, valid, adapters)
        now, own = part(whole, chunk, chunk + 1), slice(chunk * F, (chunk + 1) * F)
        kv = drowned(network, past_of(whole, chunk, valid[:, : chunk * F]), whole.origin, adapters)
        bound = network.bind(now, (Context(kv=kv, adapters=adapters),))
        torch.testing.assert_close(bound(noisy[:, own], levels[:, 0]), wanted[:, own], atol=1e-5, rtol=1e-4)


def test_the_clean_stream_alone_is_that_of_both_streams() -> None:
    network, whole = expert("stm")[1], window()
    frames = CHUNKS * F
    visible = torch.ones(2, CHUNKS, dtype=torch.bool)
    visible[1] = False
    valid = torch.ones(2, frames, dtype=torch.bool)
    stream = Stream(torch.randn(2, frames, *NET.latent_shape), torch.full((2, frames), 0.1), whole)
    for a, b in zip(two_streams(network, stream, stream, visible, valid)[1], clean_stream(network, stream, visible, valid), strict=True):
        torch.testing.assert_close(a.keys, b.keys)
        torch.testing.assert_close(a.values, b.values)


@pytest.mark.parametrize("name", ["base", "stm"])
def test_a_baseline_by_noise_knows_nothing_of_what_was_seen(name: str) -> None:
    """Other keys of the past change the expert and not its baseline; other places of the past change both."""
    net, *_ = expert(name)
    whole = window()
    now, kv = part(whole, CHUNKS - 1, CHUNKS), past_of(whole, CHUNKS - 1)
    other = replace(kv, layers=past_of(whole, CHUNKS - 1).layers)
    elsewhere = replace(kv, poses=kv.poses + 1)  # type: ignore[operator]

    def predicted(past: ContextKV, alpha: float) -> Tensor:
        """alpha * expert + (1 - alpha) * baseline."""
        role = Role(name, "mean", alpha=alpha, baseline="noise")
        first = () if name == "base" else (Context(kv=past, role=Role("base", "mean", weight=0.0)),)
        return evaluated(net, now, *first, Context(kv=past, role=role))

    baselines = [2 * predicted(past, 1.0) - predicted(past, 2.0) for past in (kv, other, elsewhere)]
    torch.testing.assert_close(baselines[0], baselines[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(predicted(kv, 1.0), predicted(other, 1.0), atol=1e-3)
    assert not torch.allclose(baselines[0], baselines[2], atol=1e-3)


def test_rows_of_different_age_have_the_baselines_that_they_have_alone() -> None:
    """One row with three past chunks, one with two, and one without any."""
    network, whole = expert("stm")[1], window(3)
    age = torch.tensor([3, 2, 0])
    valid = torch.arange(3 * F) >= (3 - age[:, None]) * F
    now, kv = part(whole, 3, 4), past_of(whole, 3, valid)
    x, level = torch.randn(3, F, *NET.latent_shape), torch.full((3,), 0.6)
    together = network.bind(now, (Context(kv=drowned(network, kv, whole.origin)),))(x, level)
    for row in range(3):
        one = torch.tensor([row])
        alone = tree.select(kv, one)
        read = drowned(network, alone, whole.origin[one]) if age[row] else None
        bound = network.bind(tree.select(now, one), (Context(kv=read),))
        torch.testing.assert_close(together[one], bound(x[one], level[one]), atol=1e-5, rtol=1e-4)
    assert together.isfinite().all()


def test_a_past_of_noise_needs_what_led_to_the_frames() -> None:
    net, whole = composed(), window()
    kv = replace(past_of(whole, 1), moves=())
    with pytest.raises(ValueError, match="needs the actions and motions of the past frames, and the memory gives none"):
        net.bind(part(whole, 1, 2), (Context(kv=kv, role=Role("base", "sum", alpha=2.0, baseline="noise")),))


# -- which baseline, and what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("past", [True, False])
@pytest.mark.parametrize("ltm_baseline", ["empty", "context"])
def test_the_long_term_baseline_reads_noise_where_its_expert_reads_the_past(past: bool, ltm_baseline: str) -> None:
    """base + w (adapted - unadapted): literal experts read the past, addressed ones do not, and "context" is the base itself."""
    net, whole = composed(), window(1, 2)
    adapters = random_adapters(net.base)
    now, kv = part(whole, 1, 2), past_of(whole, 1)
    shown = seen(1, F, seed=3)
    frames = newest(shown)
    contexts = [
        (
            Context(kv=kv, role=Role("base", baseline=how)),
            Context(frames=(frames,), adapters=adapters, role=Role("ltm", "guided", 0.5, 1.0, past, how, ltm_baseline)),
        )
        for how in ("empty", "noise")
    ]
    empty, noise = (evaluated(net, now, *pair) for pair in contexts)
    torch.manual_seed(4)
    x, level = torch.randn(1, F, *NET.latent_shape), torch.full((1,), 0.6)
    plain, read = (net.base.bind(now, (Context(kv=k),))(x, level) for k in (None, drowned(net.base, kv, whole.origin)))
    changed = past and ltm_baseline == "empty"
    assert not torch.allclose(plain, read, atol=1e-3)
    torch.testing.assert_close(noise - empty, 0.5 * (plain - read) if changed else torch.zeros_like(empty))


def newest(shown: Seen) -> ContextFrames:
    """A chunk as the frames of a context."""
    offsets = torch.arange(F, 0, -1).expand(len(shown.valid), -1)
    moved = (shown.valid, shown.actions, shown.egomotion, shown.poses, shown.times)
    return ContextFrames(shown.latents, offsets, shown.poses, *moved)


@pytest.mark.parametrize(
    ("roles", "passes"),
    [
        ((Role("base", "guided", baseline="noise"), Role("stm", "guided", baseline="noise")), 1),  # of stm alone
        ((Role("base", "guided", baseline="noise"), Role("stm", "guided", weight=0.0, baseline="noise")), 0),
        ((Role("base", "sum", alpha=2.0, baseline="noise"), Role("stm", "sum", alpha=2.0, baseline="noise")), 2),
        ((Role("base", "sum", alpha=1.0, baseline="noise"), Role("stm", "sum", weight=0.0, alpha=2.0, baseline="noise")), 0),
        ((Role("base", "poe", alpha=2.0, baseline="noise"), Role("stm", "poe", alpha=2.0, baseline="noise")), 0),
        ((Role("base", "mean", alpha=2.0), Role("stm", "mean", alpha=2.0)), 0),
    ],
)
def test_noise_costs_one_pass_where_a_baseline_counts_and_nothing_in_the_loop(
    roles: tuple[Role, ...], passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, *_ = expert("stm")
    whole = window(1)
    now, kv = part(whole, 3, 4), past_of(whole, 3)
    calls: list[str] = []
    monkeypatch.setattr(composing, "drowned", lambda *given: calls.append("noise") or drowned(*given))
    inner = VideoDiT.run
    monkeypatch.setattr(VideoDiT, "run", lambda *given, **how: calls.append("run") or inner(*given, **how))
    bound = net.bind(now, tuple(Context(kv=kv, role=role) for role in roles))
    assert calls.count("noise") == passes == calls.count("run")
    calls.clear()
    for level in (1.0, 0.5):
        bound(torch.randn(1, F, *NET.latent_shape), torch.full((1,), level))
    assert calls == ["run"] * 2 * len(bound.composition.coefficients)


# -- worlds -------------------------------------------------------------------------------------------------------------------------------


def dreamed(checkpoint: str, given: Any, seeds: list[int], memory: str = "ltm", steps: int = 2, **options: Any) -> Tensor:
    model = world(checkpoint, memory, **options)
    state, shown = begun(model, given, seeds), []
    for step in range(steps):
        state, frames = model.step(state, torch.tensor([[1 + step, 2]]).expand(len(seeds), -1))
        shown.append(frames.pixels)
    return torch.cat(shown, 1)


@pytest.mark.parametrize("ltm", ["addressed", "literal"])
def test_the_same_seed_dreams_the_same_and_a_lane_alone_as_in_company(checkpoint: str, ltm: str) -> None:
    given = opening(2, frames=5)  # whose first chunk is not whole
    once, again = (dreamed(checkpoint, given, [3, 4], ltm=ltm, **NOISE) for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, dreamed(checkpoint, given, [3, 4], ltm=ltm, compose="mean"))
    for row in (0, 1):
        alone = dreamed(checkpoint, rows_of(given, [row]), [3 + row], ltm=ltm, **NOISE)
        assert (once[row].int() - alone[0].int()).abs().max() <= 1


def test_saved_moves_are_part_of_the_state(checkpoint: str) -> None:
    model, actions = world(checkpoint, "window", **NOISE), torch.tensor([[1, 2]])
    state = begun(model, opening(1))
    restored = tree.like(begun(model, opening(1, seed=9)), tree.leaves(state))
    assert torch.equal(model.step(restored, actions)[1].pixels, model.step(state, actions)[1].pixels)
    context = model.read(state.memories, model.query(state.poses, torch.zeros(1, F, 5), state.times))[0]
    given = opening(1)
    assert context.kv is not None
    told = [x[context.kv.valid] for x in context.kv.moves]
    order = torch.arange(4, 10).view(-1, F).flip(0).flatten()  # newest chunk first; the base reads 3 chunks
    assert torch.equal(told[0], given.actions[0, order])
    motion = geometry.relative_pose(given.poses[0, 1:], given.poses[0, :-1])
    torch.testing.assert_close(told[1], motion[order - 1])


def test_without_noise_a_memory_keeps_no_moves(checkpoint: str) -> None:
    model = world(checkpoint, "window")
    (memory,) = begun(model, opening(1)).memories
    assert memory.recent.archive.data.moves == ()


def test_continuous_actions_are_kept_too() -> None:
    memory = SlotMemory(1, F, 4, 2, 16, 2, keeps_moves=True, action_size=3)
    shown = seen(1, F)
    zeros = torch.zeros(1, F, 4, 2, 16)
    shown = replace(shown, actions=torch.randn(1, F, 3), trace=Trace((KeysValues(zeros, zeros),)))
    state = memory.write(memory.init(1, rng.make_keys([0])), shown)
    kv = memory.read(state, Query(shown.poses, shown.times + F)).kv
    assert kv is not None and kv.moves[0].shape == (1, 2 * F, 3)
    assert torch.equal(kv.moves[0][:, :F], shown.actions) and torch.equal(kv.moves[1][:, :F], shown.egomotion)


def test_moves_are_kept_of_verbatim_chunks_only() -> None:
    with pytest.raises(ValueError, match="moves are kept of the recent window only"):
        SlotMemory(2, F, 4, 2, 16, 2, MeanWriter(2, F), keeps_moves=True)


def test_another_baseline_is_refused(checkpoint: str) -> None:
    with pytest.raises(ValueError, match=r"baseline must be one of \['empty', 'noise'\], got 'zero'"):
        world(checkpoint, baseline="zero")


def test_the_noise_is_standard_and_the_same_everywhere() -> None:
    network = expert("base")[1]
    noise = noise_of(network, torch.zeros(3, 8))
    assert noise.shape == (3, 8, *NET.latent_shape) and torch.equal(noise[0], noise[2])
    assert torch.equal(noise[:1], noise_of(network, torch.zeros(1, 8)))
    assert abs(float(noise[0].mean())) < 0.1 and abs(float(noise[0].std()) - 1) < 0.1
    assert torch.equal(noise[0], rng.noise(rng.make_keys([0]), (8, *NET.latent_shape))[0])
