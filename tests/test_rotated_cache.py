"""Caches with keys that are rotated already: unrotate, write, rotate. The layout is Self-Forcing's; the keys are random."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wmgym.core import KeysValues
from wmgym.memory.rotated_cache import RotaryTime, RotatedCache, rewrite
from wmgym.memory.writers import LandmarkWriter, MeanWriter

TOKENS, CHUNK, HEADS = 6, 3, 2
LAYOUTS = [RotaryTime(), RotaryTime(pairing="halves"), RotaryTime(head=16, band=8)]


def wan_table(length: int, layout: RotaryTime) -> Tensor:
    """Complex rotations as Wan computes them: a table in float64, by position and pair."""
    frequencies = 1 / torch.pow(layout.theta, torch.arange(0, layout.band, 2).to(torch.float64).div(layout.band))
    angles = torch.outer(torch.arange(length), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def random_cache(frames: int, layout: RotaryTime, rows: int = 2, layers: int = 2, seed: int = 0) -> tuple[RotatedCache, list[KeysValues]]:
    """A cache, and its keys before rotation."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(rows, frames * TOKENS, HEADS, layout.head, generator=generator)

    plain = [KeysValues(normal(), normal()) for _ in range(layers)]
    times = torch.arange(frames).repeat_interleave(TOKENS)
    return RotatedCache(tuple(KeysValues(layout.turn(x.keys, times), x.values) for x in plain), torch.arange(frames)), plain


def test_the_temporal_band_turns_as_wans_complex_table_does() -> None:
    layout = RotaryTime()
    keys = torch.randn(1, 50, HEADS, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = wan_table(1024, layout)[torch.arange(50) * 20]
    by_table = torch.view_as_complex(keys.unflatten(-1, (64, 2)))
    by_table = torch.cat([by_table[..., :22] * table[None, :, None], by_table[..., 22:]], -1)
    torch.testing.assert_close(layout.turn(keys, torch.arange(50) * 20), torch.view_as_real(by_table).flatten(-2), atol=1e-12, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_turning_there_and_back_is_exact_in_float64(layout: RotaryTime) -> None:
    keys = torch.randn(2, 9, HEADS, layout.head, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = torch.arange(9) * 113
    there = layout.turn(keys, times)
    assert (layout.turn(there, -times) - keys).abs().max() < 1e-13
    spatial = torch.ones(layout.head, dtype=torch.bool)
    pairs = torch.arange(layout.band // 2)
    first, second = (2 * pairs, 2 * pairs + 1) if layout.pairing == "interleaved" else (pairs, pairs + layout.head // 2)
    spatial[first], spatial[second] = False, False
    assert torch.equal(there[..., spatial], keys[..., spatial]) and not torch.allclose(there[..., ~spatial], keys[..., ~spatial])


def test_both_pairings_are_one_rotation_of_permuted_dimensions() -> None:
    keys = torch.randn(1, 4, HEADS, 16, generator=torch.Generator().manual_seed(0))
    order = torch.arange(16).view(8, 2).T.flatten()  # 0, 2, 4, ..., 1, 3, 5, ...
    a = RotaryTime(16, 8).turn(keys, torch.arange(4))[..., order]
    torch.testing.assert_close(RotaryTime(16, 8, "halves").turn(keys[..., order], torch.arange(4)), a)


def test_logits_depend_on_the_distance_alone() -> None:
    layout = RotaryTime(16, 16)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    at = [(layout.turn(q, torch.tensor([t + 7])) * layout.turn(k, torch.tensor([t]))).sum() for t in (0, 5, 900)]
    torch.testing.assert_close(torch.stack(at), at[0].expand(3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_window_that_holds_everything_is_moved_to_the_first_positions(layout: RotaryTime) -> None:
    cache, plain = random_cache(2 * CHUNK, layout)
    late = RotatedCache(
        tuple(KeysValues(layout.turn(x.keys, (cache.times + 500).repeat_interleave(TOKENS)), x.values) for x in plain), cache.times + 500
    )
    found = rewrite(late, MeanWriter(2, CHUNK), layout, tokens=TOKENS, chunk=CHUNK, recent=2)
    assert found.times.tolist() == list(range(6))
    for a, b in zip(found.layers, cache.layers, strict=True):
        torch.testing.assert_close(a.keys, b.keys, atol=1e-5, rtol=0)
        torch.testing.assert_close(a.values, b.values)


def test_field_is_the_mean_logit_of_its_members_at_the_slots_position() -> None:
    """K(t_v) = R(t_v) 1/M sum R(-t_m) K_m (WorldTrace, Field)."""
    layout = RotaryTime()
    cache, plain = random_cache(12 * CHUNK, layout, rows=1)
    found = rewrite(cache, MeanWriter(4, CHUNK), layout, tokens=TOKENS, chunk=CHUNK, recent=2)
    assert len(found.times) == 5 * CHUNK and found.layers[0].keys.shape[1] == 5 * CHUNK * TOKENS  # 10 old chunks: slots of 4, 4, 2
    query = torch.randn(HEADS, 128, generator=torch.Generator().manual_seed(1))
    turned = layout.turn(query[None, None], torch.tensor([5 * CHUNK]))[0, 0]
    old = plain[0].keys[0].unflatten(0, (12, CHUNK, TOKENS))
    for slot, members in enumerate((range(4), range(4, 8), range(8, 10))):
        place = torch.arange(CHUNK) + slot * CHUNK
        expected = torch.stack([layout.turn(old[m].flatten(0, 1)[None], place.repeat_interleave(TOKENS))[0] for m in members]).mean(0)
        got = found.layers[0].keys[0].unflatten(0, (5, -1))[slot]
        torch.testing.assert_close((got * turned).sum(-1), (expected * turned).sum(-1), atol=1e-5, rtol=1e-5)


def test_landmarks_are_the_chunks_themselves() -> None:
    layout = RotaryTime(16, 8)
    cache, plain = random_cache(6 * CHUNK, layout, rows=1)
    found = rewrite(cache, LandmarkWriter(3, threshold=0.0), layout, tokens=TOKENS, chunk=CHUNK, recent=1)
    assert len(found.times) == 4 * CHUNK
    for slot, chunk in enumerate((0, 1, 2, 5)):  # three landmarks, kept, and the recent chunk
        part, at = slice(chunk * CHUNK * TOKENS, (chunk + 1) * CHUNK * TOKENS), torch.arange(CHUNK) + slot * CHUNK
        expected = layout.turn(plain[1].keys[:, part], at.repeat_interleave(TOKENS))
        got = slice(slot * CHUNK * TOKENS, (slot + 1) * CHUNK * TOKENS)
        torch.testing.assert_close(found.layers[1].keys[:, got], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.layers[1].values[:, got], plain[1].values[:, part])


def test_rewriting_again_and_again_stays_within_the_trained_positions() -> None:
    """A rolling generation of 100 chunks: the cache never holds a position beyond the trained ones, and never grows."""
    layout = RotaryTime(16, 8)
    cache, _ = random_cache(CHUNK, layout)
    for step in range(100):
        fresh, _ = random_cache(CHUNK, layout, seed=step + 1)
        now = len(cache.times)
        moved = [layout.turn(x.keys, torch.full((CHUNK * TOKENS,), now)) for x in fresh.layers]
        layers = tuple(
            KeysValues(torch.cat([old.keys, keys], 1), torch.cat([old.values, new.values], 1))
            for old, new, keys in zip(cache.layers, fresh.layers, moved, strict=True)
        )
        whole = RotatedCache(layers, torch.cat([cache.times, now + torch.arange(CHUNK)]))
        full = now >= 6 * CHUNK
        cache = rewrite(whole, LandmarkWriter(3, threshold=0.0), layout, tokens=TOKENS, chunk=CHUNK, recent=3) if full else whole
        assert cache.times.max() < 7 * CHUNK and torch.equal(cache.times, torch.arange(len(cache.times)))
    assert all(torch.isfinite(layer.keys).all() for layer in cache.layers)


def test_sizes_that_do_not_fit_are_refused() -> None:
    layout = RotaryTime(16, 8)
    cache, _ = random_cache(4, layout)
    for kwargs, words in (
        ({"tokens": TOKENS, "chunk": 3, "recent": 1}, "whole chunks: 4 frames, chunk=3"),
        ({"tokens": 5, "chunk": 2, "recent": 1}, r"4 \* 5 = 20 entries, got 24"),
    ):
        with pytest.raises(ValueError, match=words):
            rewrite(cache, MeanWriter(2, 2), layout, **kwargs)
    with pytest.raises(ValueError, match="pairing must be one of"):
        RotaryTime(pairing="thirds")
    with pytest.raises(ValueError, match="0 < band <= head, got 16 and 18"):
        RotaryTime(16, 18)
    with pytest.raises(ValueError, match="heads of 16 dimensions, got 8"):
        layout.turn(torch.zeros(1, 1, 1, 8), torch.zeros(1))
