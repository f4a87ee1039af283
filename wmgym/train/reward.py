"""The reward head: which outcomes a world's steps have, how rare ones are learned, and how often the head is right.

Outcomes are pairs of a reward and whether the episode ended. They are learned from pairs of successive true latents with a little
noise (as the dream's latents have). Rare outcomes are drawn as often as common ones, and how rare they are is told to the head
afterwards, so that it does not see rewards everywhere (`nets.heads.RewardHead`).

A head is trained where the pixels can tell: where the data hold a handful of different outcomes. Rewards that follow from the
pose (Minecraft's task "navigate" pays blocks gained: as many values as steps) are computed by `tasks.py` in the dream too.

A head that knew true frames only would take a flicker of the dream for an event: where stretches are rehearsed, half of what it learns
from are pairs of dreamed frames, with what was truly earned there (`dreamed_rewards.py` teaches that to a checkpoint afterwards).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wmgym.data.episode import read_array
from wmgym.data.latents import Latents, encode
from wmgym.metrics.events import count_events
from wmgym.nets.heads import RewardHead
from wmgym.train.loop import Draw
from wmgym.train.rehearsal import Stretch
from wmgym.world_model import WorldModel

MOST_OUTCOMES = 8
WATCHED = 40  # held-out episodes that the head is tried on
DREAMED = 0.25  # weight of dreamed pairs beside true ones: more, and a head doubts true events that no dream ever shows well
SLACK = 2  # steps by which a dream may show an event early or late
_AT_ONCE = 4096  # pairs

Outcomes = tuple[tuple[float, bool], ...]


def outcomes(paths: Sequence[Path]) -> Outcomes:
    """The different (reward, end) of the steps in these episodes; none if they are all alike, or too many to be told from pixels."""
    found: set[tuple[float, bool]] = set()
    for path in paths:
        rewards, ends = read_array(path, "rewards")[1:], read_array(path, "terminated")[1:]
        found.update(zip(rewards.tolist(), ends.tolist(), strict=True))
        if len(found) > MOST_OUTCOMES:
            return ()
    return tuple(sorted(found)) if len(found) > 1 else ()


class Examples:
    """Where each outcome of a head stands in the data, so that a batch can hold all of them equally often. Tells the head their shares."""

    def __init__(self, head: RewardHead, data: Latents) -> None:
        if data.rewards is None or data.ends is None:
            raise ValueError("the latents were cached by a version that kept no rewards: delete latents.safetensors of this run")
        self.head, self.data = head, data
        time = torch.arange(data.latents.shape[1], device=data.rewards.device)
        possible = (time > 0) & (time < data.lengths[:, None].to(time.device))
        places = []
        for earned, ended in head.outcomes:
            rows, times = torch.nonzero(possible & (data.rewards == earned) & (data.ends == ended), as_tuple=True)
            places.append(torch.stack([rows, times], 1))
        self.places = torch.cat(places)  # int64 [M, 2]: episode and frame, sorted by outcome
        self.counts = np.array([len(part) for part in places])
        if not self.counts.all():
            raise ValueError(f"outcome {head.outcomes[int(self.counts.argmin())]} of {head.outcomes} is in none of the training episodes")
        rarer = self.counts * len(self.counts) / self.counts.sum()  # in the data than in a batch
        head.log_prior.copy_(torch.from_numpy(np.log(rarer)))

    def draw(self, randomness: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Episodes, frames and outcomes, int64 [size] each: every outcome is equally likely, and so is every place of one."""
        chosen, which = (torch.from_numpy(x).to(self.places.device) for x in _evenly(self.counts, randomness, size))
        rows, times = self.places[chosen].unbind(1)
        return rows, times, which

    def loss(self, draw: Draw, size: int, noise: float) -> Tensor:
        """The head's loss on a batch of its own, with as much noise on the latents as the network's context has."""
        data = self.data
        rows, times, which = self.draw(draw.numpy, size)
        pairs = data.latents[rows, torch.stack([times - 1, times])]  # [2, B, C, h, w]
        return self.head.loss(*_noisy(pairs, noise, draw), data.actions[rows, times], which)


def _evenly(counts: np.ndarray, randomness: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of things sorted by outcome, `counts` of each: numbers [size] of some, and their outcomes, each that is there equally often."""
    there = np.flatnonzero(counts)
    which = there[randomness.integers(len(there), size=size)]
    return (counts.cumsum() - counts)[which] + randomness.integers(counts[which]), which


def _noisy(pairs: Tensor, noise: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """Latents [2, B, C, h, w] before and after a step -> both float32, with noise on them."""
    before, after = pairs.float() + noise * torch.randn(pairs.shape, generator=draw.torch, device=pairs.device)
    return before, after


@dataclass(frozen=True)
class Pairs:
    """Successive frames and what the step between them earned, as outcome numbers of a head."""

    before: Tensor  # [N, C, h, w]
    after: Tensor
    actions: Tensor  # int64 [N]
    outcomes: Tensor  # int64 [N]


@torch.no_grad()
def dreamed_pairs(head: RewardHead, data: Latents, stretches: Sequence[Stretch]) -> tuple[Pairs, int]:
    """Pairs of successive frames of which the later one was dreamed, and how many rare outcomes truly fell into the stretches.

    A dream shows an event a little early or late, or not at all. So a pair has a rare outcome where the head says it, at its surest, within
    `SLACK` steps of where it truly was; the other pairs that near to an event are left out, and all others have the common outcome.
    """
    parts, events = [], 0
    common = int(head.log_prior.argmax())
    for stretch in stretches:
        rows, first, made = stretch.rows[:, None], stretch.first[:, None], stretch.latents.to(data.latents.dtype)
        around = first + torch.arange(-SLACK, made.shape[1] + SLACK, device=first.device)
        true = _outcome_numbers(head, data, rows, around)
        before = torch.cat([data.latents[rows, first - 1], made[:, :-1]], 1)
        actions = data.actions[rows, around[:, SLACK:-SLACK]]
        posterior = _posteriors(head, before.flatten(0, 1), made.flatten(0, 1), actions.flatten()).unflatten(0, actions.shape)
        peak = posterior == _most_near(posterior.movedim(-1, 0), SLACK).movedim(0, -1)
        says = posterior.argmax(-1)
        outcomes = torch.full_like(says, common)
        outcomes[_most_near((true != common).float(), SLACK)[:, SLACK:-SLACK] > 0] = -1
        for number in range(len(head.outcomes)):
            if number != common:
                near = _most_near((true == number).float(), SLACK)[:, SLACK:-SLACK] > 0
                outcomes[near & (says == number) & peak[..., number]] = number
        events += int(((true != common) & (true >= 0))[:, SLACK:-SLACK].sum())
        kept = outcomes >= 0
        parts.append(Pairs(before[kept], made[kept], actions[kept], outcomes[kept]))
    return Pairs(*(torch.cat([getattr(part, name) for part in parts]) for name in ("before", "after", "actions", "outcomes"))), events


def _outcome_numbers(head: RewardHead, data: Latents, rows: Tensor, times: Tensor) -> Tensor:
    """Which outcome of the head each step has, int64 like `times`; -1 where it knows no such, the common one outside of the episode."""
    assert data.rewards is not None and data.ends is not None
    there = (times > 0) & (times < data.lengths.to(times.device)[rows])
    at = times.clamp(0, data.latents.shape[1] - 1)
    earned, ended = data.rewards[rows, at], data.ends[rows, at]
    numbers = torch.full_like(times, -1)
    for number, (value, end) in enumerate(head.outcomes):
        numbers[there & (earned == value) & (ended == end)] = number
    return torch.where(there, numbers, int(head.log_prior.argmax()))


def _most_near(values: Tensor, slack: int) -> Tensor:
    """Largest value within `slack` steps, along the last axis of [..., T]."""
    flat = values.flatten(0, -2)[:, None]
    return torch.nn.functional.max_pool1d(flat, 2 * slack + 1, 1, slack)[:, 0].view(values.shape)


def _posteriors(head: RewardHead, before: Tensor, after: Tensor, actions: Tensor) -> Tensor:
    """Probability of each outcome of many pairs, float32 [N, K], a bounded number at once."""
    weight = next(head.parameters())
    parts = zip(*(x.split(_AT_ONCE) for x in (before, after, actions)), strict=True)
    return torch.cat([head.posterior(b.to(weight), a.to(weight), c.to(weight.device)) for b, a, c in parts])


@torch.no_grad()
def say(head: RewardHead, pairs: Pairs) -> Tensor:
    """What the head takes each step to have earned: float32 [N], on the CPU."""
    earned = torch.tensor([value for value, _ in head.outcomes])
    return earned[_posteriors(head, pairs.before, pairs.after, pairs.actions).argmax(-1).cpu()]


class DreamedExamples:
    """Pairs for a head to learn from, every outcome drawn equally often, as `Examples` does with true ones."""

    def __init__(self, head: RewardHead, pairs: Pairs) -> None:
        self.head, self.pairs = head, pairs
        order = pairs.outcomes.argsort(stable=True)
        self.order, self.counts = order, torch.bincount(pairs.outcomes, minlength=len(head.outcomes)).cpu().numpy()

    @property
    def complete(self) -> bool:
        """Whether every outcome is there: the head's prior takes it that all are drawn equally often."""
        return bool(self.counts.all())

    def loss(self, draw: Draw, size: int, noise: float) -> Tensor:
        """The head's loss on a batch of them, with a little noise on the latents. Outcomes that no pair has are left out."""
        chosen = self.order[torch.from_numpy(_evenly(self.counts, draw.numpy, size)[0]).to(self.order.device)]
        pairs = torch.stack([self.pairs.before[chosen], self.pairs.after[chosen]])
        return self.head.loss(*_noisy(pairs, noise, draw), self.pairs.actions[chosen], self.pairs.outcomes[chosen])


@torch.no_grad()
def predictions(head: RewardHead, data: Latents) -> tuple[Tensor, Tensor]:
    """Reward of each step by the head, from the true latents before and after it, and the probability that it is not 0.

    Both float32 [E, T - 1], on the CPU; entry t is the step to frame t + 1. What lies after an episode's end means nothing.
    """
    pairs = (x.flatten(0, 1) for x in (data.latents[:, :-1], data.latents[:, 1:], data.actions[:, 1:]))
    posterior = _posteriors(head, *pairs).cpu().unflatten(0, data.actions[:, 1:].shape)
    earned = torch.tensor([value for value, _ in head.outcomes])
    return earned[posterior.argmax(-1)], posterior[..., earned != 0].sum(-1)


def measure(head: RewardHead, data: Latents) -> dict[str, float]:
    """How the head does on whole true episodes: steps that paid, how many the head says, rightly says and expects, precision and recall."""
    assert data.rewards is not None
    said, chances = predictions(head, data)
    there = torch.arange(1, data.latents.shape[1]) < data.lengths[:, None]
    counts = count_events(said[there].numpy(), data.rewards[:, 1:][there].numpy())
    figures = {"true": counts.true, "said": counts.said, "hits": counts.hits, "expected": float(chances[there].sum())}
    figures |= {"precision": counts.precision} if counts.said else {}
    figures |= {"recall": counts.recall} if counts.true else {}
    return {f"reward_{name}": float(value) for name, value in figures.items()}


class HeldOutEvents:
    """`measure` on held-out episodes, at every save; nothing without a reward head."""

    def __init__(self, model: WorldModel, paths: Sequence[Path]) -> None:
        self.model, self.paths = model, paths[:WATCHED]
        self._data: Latents | None = None

    def __call__(self) -> dict[str, float]:
        head = self.model.reward_head
        if head is None:
            return {}
        if self._data is None:  # the autoencoder is done with learning: once is enough
            self._data = encode_with(self.model, self.paths)
        return measure(head, self._data)


@torch.no_grad()
def encode_with(model: WorldModel, paths: Sequence[Path]) -> Latents:
    """Episodes as a model's latents, on the CPU."""
    return encode(paths, lambda frames: model.encode(frames[None].to(model.device))[0], model.frame_shape[0], progress=False)
