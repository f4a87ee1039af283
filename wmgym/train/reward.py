"""Training of the reward head: the outcomes in the data, balanced sampling of rare ones, and the head's accuracy.

Outcomes are pairs of a reward and whether the episode ended. The head is trained on pairs of successive true latents with a little
noise, as in dreamed latents. Rare outcomes are drawn as often as common ones; the head's prior then corrects for their frequency in the
data (`nets.heads.RewardHead`).

A head is trained only if the data have a few different outcomes, which frames can show. Rewards that follow from the pose (Minecraft's
task "navigate" rewards blocks gained, with a different value in each step) are computed by `tasks.py`, also in a dream.

A head that is trained only on true frames mistakes flicker in a dream for an event. So if stretches are rehearsed, half of its examples
are pairs of dreamed frames with the true rewards of their steps. (`dreamed_rewards.py` does this for a finished checkpoint.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wmgym.checkpoint import read_file, write_tensors
from wmgym.data.episode import read_array
from wmgym.data.latents import Latents, encode
from wmgym.metrics.events import count_events
from wmgym.nets.heads import RewardHead
from wmgym.train.loop import Draw
from wmgym.train.rehearsal import Stretch
from wmgym.world_model import WorldModel

MOST_OUTCOMES = 8
WATCHED = 40  # held-out episodes on which the head is evaluated
DREAMED = 0.25  # weight of dreamed pairs relative to true ones; with more, the head misses true events that dreams show badly
SLACK = 2  # steps by which an event in a dream may be early or late
_AT_ONCE = 4096  # pairs

Outcomes = tuple[tuple[float, bool], ...]


def outcomes(paths: Sequence[Path]) -> Outcomes:
    """The different (reward, end) of the steps in these episodes; empty if there is only one, or more than `MOST_OUTCOMES`."""
    found: set[tuple[float, bool]] = set()
    for path in paths:
        rewards, ends = read_array(path, "rewards")[1:], read_array(path, "terminated")[1:]
        found.update(zip(rewards.tolist(), ends.tolist(), strict=True))
        if len(found) > MOST_OUTCOMES:
            return ()
    return tuple(sorted(found)) if len(found) > 1 else ()


class Examples:
    """Balanced batches of true steps: all outcomes are equally frequent. The constructor sets the head's prior."""

    def __init__(self, head: RewardHead, data: Latents) -> None:
        if data.rewards is None or data.ends is None:
            raise ValueError("the latents were cached by a version without rewards: delete latents.safetensors of this run")
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
            raise ValueError(f"outcome {head.outcomes[int(self.counts.argmin())]} of {head.outcomes} is not in the training episodes")
        rarer = self.counts * len(self.counts) / self.counts.sum()  # frequency in the data over frequency in a batch
        head.log_prior.copy_(torch.from_numpy(np.log(rarer)))

    def draw(self, randomness: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw episodes, frames and outcomes, int64 [size] each. Outcomes are equally likely, and so are the steps of each."""
        chosen, which = (torch.from_numpy(x).to(self.places.device) for x in _evenly(self.counts, randomness, size))
        rows, times = self.places[chosen].unbind(1)
        return rows, times, which

    def loss(self, draw: Draw, size: int, noise: float) -> Tensor:
        """The head's loss on a new batch, with noise of scale `noise` on the latents."""
        data = self.data
        rows, times, which = self.draw(draw.numpy, size)
        pairs = data.latents[rows, torch.stack([times - 1, times])]  # [2, B, C, h, w]
        return self.head.loss(*_noisy(pairs, noise, draw), data.actions[rows, times], which)


def _evenly(counts: np.ndarray, randomness: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw indices [size] into examples sorted by outcome (`counts` of each), and their outcomes. Existing outcomes are equally likely."""
    there = np.flatnonzero(counts)
    which = there[randomness.integers(len(there), size=size)]
    return (counts.cumsum() - counts)[which] + randomness.integers(counts[which]), which


def _noisy(pairs: Tensor, noise: float, draw: Draw) -> tuple[Tensor, Tensor]:
    """Latents [2, B, C, h, w] before and after a step -> both as float32 with added noise."""
    before, after = pairs.float() + noise * torch.randn(pairs.shape, generator=draw.torch, device=pairs.device)
    return before, after


@dataclass(frozen=True)
class Pairs:
    """Successive frames and the outcomes of the steps between them, as indices into a head's outcomes."""

    before: Tensor  # [N, C, h, w]
    after: Tensor
    actions: Tensor  # int64 [N]
    outcomes: Tensor  # int64 [N]


@torch.no_grad()
def dreamed_pairs(head: RewardHead, data: Latents, stretches: Sequence[Stretch]) -> tuple[Pairs, int]:
    """Pairs of successive frames, the later one dreamed, and the number of true rare outcomes in the stretches.

    A dream shows an event a little early or late, or not at all. So a pair gets a rare outcome if it is within `SLACK` steps of the true
    event and the head predicts the outcome there with its locally highest probability. The other pairs within `SLACK` steps of an event are
    left out, and all remaining pairs get the common outcome.
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
    """The head's outcome of each step, int64 as `times`: -1 for an outcome that it does not have, the common one outside of the episode."""
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
    """Probability of each outcome, float32 [N, K], computed for at most 4096 pairs at once."""
    weight = next(head.parameters())
    parts = zip(*(x.split(_AT_ONCE) for x in (before, after, actions)), strict=True)
    return torch.cat([head.posterior(b.to(weight), a.to(weight), c.to(weight.device)) for b, a, c in parts])


@torch.no_grad()
def predicted_rewards(head: RewardHead, pairs: Pairs) -> Tensor:
    """Rewards that the head predicts: float32 [N], on the CPU."""
    earned = torch.tensor([value for value, _ in head.outcomes])
    return earned[_posteriors(head, pairs.before, pairs.after, pairs.actions).argmax(-1).cpu()]


class DreamedExamples:
    """Balanced batches of dreamed pairs, in analogy to `Examples`."""

    def __init__(self, head: RewardHead, pairs: Pairs) -> None:
        self.head, self.pairs = head, pairs
        order = pairs.outcomes.argsort(stable=True)
        self.order, self.counts = order, torch.bincount(pairs.outcomes, minlength=len(head.outcomes)).cpu().numpy()

    @property
    def complete(self) -> bool:
        """Whether every outcome occurs. The head's prior assumes that all are drawn equally often."""
        return bool(self.counts.all())

    def loss(self, draw: Draw, size: int, noise: float) -> Tensor:
        """The head's loss on a new batch, with noise of scale `noise` on the latents. Outcomes without pairs are not drawn."""
        chosen = self.order[torch.from_numpy(_evenly(self.counts, draw.numpy, size)[0]).to(self.order.device)]
        pairs = torch.stack([self.pairs.before[chosen], self.pairs.after[chosen]])
        return self.head.loss(*_noisy(pairs, noise, draw), self.pairs.actions[chosen], self.pairs.outcomes[chosen])


@torch.no_grad()
def predictions(head: RewardHead, data: Latents) -> tuple[Tensor, Tensor]:
    """Predicted reward of each step from the true latents before and after it, and the probability that it is not 0.

    Both float32 [E, T - 1], on the CPU; entry t is the step to frame t + 1. Entries after the end of an episode are meaningless.
    """
    pairs = (x.flatten(0, 1) for x in (data.latents[:, :-1], data.latents[:, 1:], data.actions[:, 1:]))
    posterior = _posteriors(head, *pairs).cpu().unflatten(0, data.actions[:, 1:].shape)
    earned = torch.tensor([value for value, _ in head.outcomes])
    return earned[posterior.argmax(-1)], posterior[..., earned != 0].sum(-1)


def measure(head: RewardHead, data: Latents) -> dict[str, float]:
    """Evaluate the head on true episodes: counts of `true`, `said` (predicted), correct and `expected` rewards, precision and recall."""
    assert data.rewards is not None
    said, chances = predictions(head, data)
    there = torch.arange(1, data.latents.shape[1]) < data.lengths[:, None]
    counts = count_events(said[there].numpy(), data.rewards[:, 1:][there].numpy())
    figures = {"true": counts.true, "said": counts.said, "hits": counts.hits, "expected": float(chances[there].sum())}
    figures |= {"precision": counts.precision} if counts.said else {}
    figures |= {"recall": counts.recall} if counts.true else {}
    return {f"reward_{name}": float(value) for name, value in figures.items()}


class HeldOutEvents:
    """`measure` on held-out episodes; an empty dict without a reward head."""

    def __init__(self, model: WorldModel, paths: Sequence[Path]) -> None:
        self.model, self.paths = model, paths[:WATCHED]
        self._data: Latents | None = None

    def __call__(self) -> dict[str, float]:
        head = self.model.reward_head
        if head is None:
            return {}
        if self._data is None:  # once: the autoencoder does not change any more
            self._data = encode_with(self.model, self.paths)
        return measure(head, self._data)


@torch.no_grad()
def encode_with(model: WorldModel, paths: Sequence[Path]) -> Latents:
    """Encode episodes with a model's autoencoder; latents on the CPU."""
    return encode(paths, lambda frames: model.encode(frames[None].to(model.device))[0], model.frame_shape[0], progress=False)


def encode_once(file: Path, model: WorldModel, paths: Sequence[Path]) -> Latents:
    """`encode_with`, or what a killed run has already encoded and kept in `file`."""
    if not file.is_file():
        write_tensors(file, encode_with(model, paths).tensors())
    return Latents(**read_file(file)[0])
