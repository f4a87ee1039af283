"""Random numbers are pure functions of a row's key: known answers, rows alone and in company, moments, streams."""

import math

import pytest
import torch

from wmgym import rng

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("key", "counter", "answer"),
    [  # the authors' test vectors (Random123, kat_vectors: threefry2x32 with 20 rounds)
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((ONES, ONES), (ONES, ONES), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_published_answers(key: tuple[int, int], counter: tuple[int, int], answer: tuple[int, int]) -> None:
    assert rng.threefry(torch.tensor([key]), torch.tensor([counter])).tolist() == [list(answer)]


def test_a_key_holds_a_whole_64_bit_seed() -> None:
    seeds = [0, 1, 2**32, 2**63 + 5, 2**64 - 1]
    words = rng.make_keys(seeds)
    assert [high * 2**32 + low for high, low in words.tolist()] == seeds
    for wrong in (-1, 2**64):
        with pytest.raises(ValueError, match=str(wrong)):
            rng.make_keys([0, wrong])


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 3, 3), (1, 3, 5, 7), (2, 12, 8, 8)])
def test_a_row_draws_the_same_alone_and_in_company(shape: tuple[int, ...]) -> None:
    keys = rng.make_keys(list(range(100, 121)))
    for draw in (rng.noise, rng.uniform):
        together = draw(keys, shape)
        assert together.shape == (21, *shape)
        for first, last in ((0, 1), (3, 10), (20, 21), (4, 21)):
            assert torch.equal(draw(keys[first:last], shape), together[first:last])
        assert torch.equal(draw(keys.flip(0), shape), together.flip(0))


def test_uniform_numbers_fill_the_open_interval() -> None:
    numbers = rng.uniform(rng.make_keys(list(range(64))), (5000,)).double()
    n = numbers.numel()
    assert numbers.min() > 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 / math.sqrt(12 * n)
    assert abs(numbers.var() - 1 / 12) < 5 / math.sqrt(180 * n)
    counts = torch.histc(numbers, 64, 0, 1)
    chi_squared = ((counts - n / 64) ** 2 / (n / 64)).sum()
    assert chi_squared < 63 + 5 * math.sqrt(2 * 63)


@pytest.mark.parametrize("word", [0, ONES])
def test_the_extreme_words_stay_inside(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rng, "bits", lambda keys, n: torch.full((len(keys), n, 2), word))
    keys = rng.make_keys([0])
    assert rng.uniform(keys, (3,)).min() > 0 and rng.uniform(keys, (3,)).max() < 1
    assert torch.isfinite(rng.noise(keys, (4,))).all()


def test_noise_has_the_moments_of_a_standard_normal() -> None:
    numbers = rng.noise(rng.make_keys(list(range(64))), (5000,)).double().flatten()
    n = len(numbers)
    # E x^k = 0, 1, 0, 3, 0, 15; the spread of x^k's mean is sqrt(Var(x^k) / n)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10395 - 225)):
        assert abs((numbers**power).mean() - mean) < 5 * math.sqrt(variance / n), power
    for bound, share in ((1, 0.6826895), (2, 0.9544997), (3, 0.9973002)):
        assert abs((numbers.abs() < bound).double().mean() - share) < 5 * math.sqrt(share * (1 - share) / n)


def test_numbers_of_a_row_and_of_neighbouring_rows_are_uncorrelated() -> None:
    """Box-Muller makes two numbers of one pair; seeds that differ in one bit are the usual ones."""
    x = rng.noise(rng.make_keys(list(range(257))), (2000,)).double()
    for a, b in ((x[:, 0::2], x[:, 1::2]), (x[:, :-1], x[:, 1:]), (x[:-1], x[1:]), (x[:-1].square() - 1, x[1:].square() - 1)):
        assert abs((a * b).mean()) < 5 * float((a * b).std()) / math.sqrt(a.numel())


def test_streams_of_one_key_never_meet() -> None:
    keys = rng.make_keys([5, 6])
    streams = [keys, rng.next_keys(keys), rng.next_keys(rng.next_keys(keys)), *(rng.fold(keys, n) for n in (0, 1, 2, ONES))]
    words = torch.cat([rng.bits(k, 500).flatten(0, 1) for k in streams])
    assert len(words.unique(dim=0)) == len(words)
    a, b = rng.noise(streams[0], (4000,)).double(), rng.noise(streams[1], (4000,)).double()
    assert abs((a * b).mean()) < 5 / math.sqrt(a.numel())


def test_next_keys_depend_on_the_key_alone() -> None:
    keys = rng.make_keys([3, 4, 3])
    after = rng.next_keys(keys)
    assert torch.equal(after[0], after[2]) and not torch.equal(after[0], after[1])
    assert torch.equal(rng.next_keys(keys[1:2]), after[1:2])
    assert torch.equal(keys, rng.make_keys([3, 4, 3]))
    assert after.min() >= 0 and after.max() <= ONES
