"""The reward head: which outcomes a world's steps have, how rare ones are learned, and how often the head is right.

Outcomes are pairs of a reward and whether the episode ended. They are learned from pairs of successive true latents with a little
noise (as the dream's latents have). Rare outcomes are drawn as often as common ones, and how rare they are is told to the head
afterwards, so that it does not see rewards everywhere (`nets.heads.RewardHead`).

A head is trained where the pixels can tell: where the data hold a handful of different outcomes. Rewards that follow from the
pose (Minecraft's task "navigate" pays blocks gained: as many values as steps) are computed by `tasks.py` in the dream too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wmgym.data.episode import read_array
from wmgym.data.latents import Latents, encode
from wmgym.metrics.events import count_events
from wmgym.nets.heads import RewardHead
from wmgym.train.loop import Draw
from wmgym.world_model import WorldModel

MOST_OUTCOMES = 8
WATCHED = 40  # held-out episodes that the head is tried on
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
        which = randomness.integers(len(self.counts), size=size)
        begin = self.counts.cumsum() - self.counts
        chosen = torch.from_numpy(begin[which] + randomness.integers(self.counts[which])).to(self.places.device)
        rows, times = self.places[chosen].unbind(1)
        return rows, times, torch.from_numpy(which).to(rows.device)

    def loss(self, draw: Draw, size: int, noise: float) -> Tensor:
        """The head's loss on a batch of its own, with as much noise on the latents as the network's context has."""
        data = self.data
        rows, times, which = self.draw(draw.numpy, size)
        pairs = data.latents[rows, torch.stack([times - 1, times])].float()  # [2, B, C, h, w]
        pairs = pairs + noise * torch.randn(pairs.shape, generator=draw.torch, device=pairs.device)
        return self.head.loss(pairs[0], pairs[1], data.actions[rows, times], which)


@torch.no_grad()
def predictions(head: RewardHead, data: Latents) -> tuple[Tensor, Tensor]:
    """Reward of each step by the head, from the true latents before and after it, and the probability that it is not 0.

    Both float32 [E, T - 1], on the CPU; entry t is the step to frame t + 1. What lies after an episode's end means nothing.
    """
    weight = next(head.parameters())
    before, after, actions = (x.flatten(0, 1) for x in (data.latents[:, :-1], data.latents[:, 1:], data.actions[:, 1:]))
    pays = torch.tensor([earned != 0 for earned, _ in head.outcomes], device=weight.device)
    rewards, chances = [], []
    for i in range(0, len(actions), _AT_ONCE):
        part = slice(i, i + _AT_ONCE)
        pair = before[part].to(weight), after[part].to(weight), actions[part].to(weight.device)
        rewards.append(head(*pair)[0].cpu())
        chances.append(head.posterior(*pair)[:, pays].sum(1).cpu())
    shape = data.actions[:, 1:].shape
    return torch.cat(rewards).view(shape), torch.cat(chances).view(shape)


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


class Watch:
    """`measure` on held-out episodes at every save, beside what is watched anyway."""

    def __init__(self, others: Callable[[int, nn.Module], dict[str, float]], model: WorldModel, paths: Sequence[Path]) -> None:
        self.others, self.model, self.paths = others, model, paths[:WATCHED]
        self._data: Latents | None = None

    def __call__(self, step: int, trained: nn.Module) -> dict[str, float]:
        figures = self.others(step, trained)
        head = self.model.reward_head
        if head is None:
            return figures
        if self._data is None:  # the autoencoder is done with learning: once is enough
            self._data = encode_with(self.model, self.paths)
        return {**figures, **measure(head, self._data)}


@torch.no_grad()
def encode_with(model: WorldModel, paths: Sequence[Path]) -> Latents:
    """Episodes as a model's latents, on the CPU."""
    return encode(paths, lambda frames: model.encode(frames[None].to(model.device))[0], model.frame_shape[0], progress=False)
