"""`wmgym train worldpack`: autoencoder, then latents, then CDiT and heads, in one resumable command.

One set of weights is trained across the modes none, packing, retrieval and worldpack (one mode per batch), so that they can be
compared. The batches' contexts come from the same memory code that dreams use. A motion head is trained beside it, and a reward head
where the data hold rewards (reward.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from wmgym.data.latents import Latents
from wmgym.geometry import relative_pose
from wmgym.kinematics import Displacement
from wmgym.memory.retrieval import RetrievalConfig
from wmgym.systems.worldpack import WorldPackConfig, build, memory_of, preset
from wmgym.train import rehearsal, reward
from wmgym.train.loop import DRAWING, FORWARD, Draw, Training
from wmgym.train.run import RunArgs, begin, half_precision, make_optimisers, random_latents
from wmgym.train.world import train_world, trained_parts, with_total
from wmgym.train.worldpack_loss import Batch, losses
from wmgym.world_model import WorldModel

REHEARSED = 1.5  # stretches dreamed at a time, in batches


@dataclass(frozen=True)
class TrainArgs(RunArgs):
    """Fit a WorldPack world model to folders of episodes.

    Writes OUT/model.safetensors, OUT/result.json, films of held-out episodes in OUT/samples and TensorBoard's files. A killed run goes
    on where it was last saved when the command is repeated.
    """

    furthest: int = 1
    """Setting recon only: half of the examples are jumps of up to so many frames at once (NWM: 64)."""
    modes: str = "none:2,packing:2,retrieval:3,worldpack:4"
    """Memory modes and how often each is trained."""
    context_noise: float = 0.1
    """Noise on context latents, so that the dream bears its own errors."""
    context_drop: float = 0.5
    """Share of examples in which recent frames are hidden, so that the others are learned to be used."""
    revisits: float = 0.5
    """Share of examples drawn for a view that something long past resembles: only these teach what a memory is for."""
    rehearsal: float = 0.25
    """Share of batches whose recent frames the model dreamed itself, so that it learns to find back to the truth."""
    rehearsal_frames: int = 16
    """Frames dreamed at a stretch, at most."""
    rehearse_every: int = 100
    """Steps between such dreams. A run is saved at multiples of it, so that it resumes with the same ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.furthest < 1 or (self.furthest > 1 and self.setting != "recon"):
            raise ValueError(f"furthest must be positive, and 1 but in setting 'recon', got {self.furthest}")
        if self.rehearsal > 0 and self.save_every % self.rehearse_every:
            raise ValueError(f"save_every must be a multiple of rehearse_every {self.rehearse_every}, got {self.save_every}")

    def mode_weights(self) -> dict[str, float]:
        pairs = dict(item.split(":") for item in self.modes.split(","))
        return {k: float(v) for k, v in pairs.items()}


def train(args: TrainArgs, progress: bool = True) -> dict[str, Any]:
    """Train or resume; the figures of the end."""
    run = begin(args, progress)
    config = preset(args.size, args.setting, run.coder, run.displacement)
    config = replace(config, outcomes=reward.outcomes(run.training))
    model = build(config).to(run.device)
    training_of = partial(_training, args, model, config, run.device)
    return train_world(run, model, config, training_of, _modes(args, model, config), "wmgym train worldpack")


def draw_batch(
    data: Latents,
    draw: Draw,
    size: int,
    revisits: float = 0.0,
    retrieval: RetrievalConfig | None = None,
    jumps: tuple[Displacement, int] | None = None,
) -> Batch:
    """Examples with their whole past as a memory; the mode decides what of it is read. `revisits`: see `rehearsal.draw_starts`.

    With `jumps` (what actions mean, and how far at most) half of the examples are further ahead than one step, told the whole displacement.
    """
    rows, first = rehearsal.draw_starts(data, draw, size, revisits, retrieval=retrieval)
    before, target = first - 1, first[:, None]
    actions = data.actions[rows[:, None], target]
    if jumps is not None:
        moves, furthest = jumps
        ahead = draw.numpy.integers(1, furthest, size) * (draw.numpy.random(size) < 0.5)
        target = torch.minimum(target + torch.from_numpy(ahead).to(target)[:, None], data.lengths.to(target)[rows][:, None] - 1)
        actions = moves.action(relative_pose(data.poses[rows[:, None], target], data.poses[rows, before][:, None]))
    return Batch(
        (rehearsal.past(data, rows, first),),
        data.latents[rows, before],
        data.poses[rows, before],
        actions,
        data.latents[rows[:, None], target],
        data.poses[rows[:, None], target],
        target,
    )


def next_batch(
    data: Latents,
    stretch: rehearsal.Stretch | None,
    draw: Draw,
    args: TrainArgs,
    retrieval: RetrievalConfig,
    jumps: tuple[Displacement, int] | None = None,
) -> Batch:
    """A batch of true pasts, or now and then one whose recent frames were dreamed."""
    if stretch is not None and draw.numpy.random() < args.rehearsal:
        return rehearsal.draw_batch(data, stretch, draw, args.batch)
    return draw_batch(data, draw, args.batch, args.revisits, retrieval, jumps)


def synthetic(size: str, batch: int, device: torch.device, compile: bool) -> Training:
    """The training of a network of this size, with fresh weights, on random latents in place of episodes: for `wmgym bench train`."""
    torch.manual_seed(0)
    args = TrainArgs((), Path(), size=size, batch=batch, compile=compile)
    config = preset(size, args.setting)
    model = build(config).to(device)
    return _training(args, model, config, device, random_latents(config.kinematics, config.net.latent_shape))


def _modes(args: TrainArgs, model: WorldModel, config: WorldPackConfig) -> dict[str, WorldModel]:
    """Views of the model, one for each memory that is trained."""
    return {mode: model.with_settings(memories=(memory_of(config, mode),)) for mode in args.mode_weights()}


def _training(args: TrainArgs, model: WorldModel, config: WorldPackConfig, device: torch.device, data: Latents) -> Training:
    """How network, motion head and reward head are trained together."""
    weights = args.mode_weights()
    worlds = _modes(args, model, config)
    odds = np.array(list(weights.values())) / sum(weights.values())
    data = data.to(device) if device.type == "cuda" else data
    trained, earned = trained_parts(model, data)
    if args.compile:
        model.net.denoise = torch.compile(model.net.denoise)  # CDiT's
    model.train()
    stretch: rehearsal.Stretch | None = None
    dreamed: reward.DreamedExamples | None = None
    jumps = (model.kinematics, args.furthest) if isinstance(model.kinematics, Displacement) and args.furthest > 1 else None
    length = min(args.rehearsal_frames, int(data.lengths.max()) - 1)
    rehearsed = round(REHEARSED * args.batch)

    def step_losses(draw: Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        world = list(worlds.values())[draw.numpy.choice(len(odds), p=odds)]
        nonlocal stretch, dreamed
        if args.rehearsal > 0 and draw.step % args.rehearse_every == 0 and length > 1:
            where = rehearsal.draw_starts(data, draw, rehearsed, args.revisits, length, config.retrieval)
            with half_precision(device):
                stretch = rehearsal.dream(world, data, draw, where, length)
            if earned is not None:
                dreamed = reward.DreamedExamples(earned.head, reward.dreamed_pairs(earned.head, data, [stretch])[0])
        with record_function(DRAWING):
            batch = next_batch(data, stretch, draw, args, config.retrieval, jumps)
        with record_function(FORWARD), half_precision(device):
            parts = losses(world, batch, draw.torch, args.context_noise, args.context_drop)
            if earned is not None:
                parts["reward"] = earned.loss(draw, args.batch, args.context_noise)
                if dreamed is not None and dreamed.complete:
                    parts["dreamed_reward"] = reward.DREAMED * dreamed.loss(draw, args.batch, args.context_noise)
        return with_total(parts), {"latents": batch.latents, "poses": batch.poses, "actions": batch.actions}

    period = args.rehearse_every if args.rehearsal > 0 else 1
    return Training(trained, make_optimisers(trained, model.net.matrices(), args), step_losses, period)
