"""`wmgym train worldpack`: autoencoder, then latents, then CDiT and heads, in one resumable command.

One set of weights is trained across the modes none, packing, retrieval and worldpack (one mode per batch), so that they can be
compared. The batches' contexts come from the same memory code that dreams use. A motion head is trained beside it, and a reward head
where the data hold rewards (reward.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
from wmgym.memory.coverage import CoverageConfig
from wmgym.memory.retrieval import RetrievalConfig
from wmgym.systems.worldpack import WorldPackConfig, build, layout, memory_of, preset
from wmgym.train import rehearsal, reward
from wmgym.train.distil_loss import Denoising
from wmgym.train.loop import DRAWING, FORWARD, Draw, Training, draw
from wmgym.train.run import RunArgs, begin, half_precision, make_optimisers, random_latents
from wmgym.train.world import loop_config, train_world, trained_parts, with_total
from wmgym.train.worldpack_loss import Batch, Perturbation, inputs, losses
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
    """Memory modes and how often each is trained, such as none:1,packing:1,retrieval:1,worldpack:1 for equal terms."""
    context_noise: float = 0.1
    """Noise on context latents, so that the dream bears its own errors."""
    context_drop: float = 0.5
    """Share of examples in which recent frames are hidden, so that the others are learned to be used."""
    hide: str = "groups"
    """Which are hidden. groups: all groups of a memory's layout but the last, which spares a memory with one group (none). newest: the
    newest 1 to 3 frames that the memory shows, the same rule for all memories."""
    revisits: float = 0.5
    """Share of examples drawn for a view that something long past resembles: only these teach what a memory is for."""
    revisit_by: str = "score"
    """What resembles. score: by the retrieval score, with which some of the memories choose frames. coverage: by the share of the view
    that the past shows, which is neutral."""
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
        if self.revisit_by not in ("score", "coverage"):
            raise ValueError(f"revisit_by must be score or coverage, got {self.revisit_by!r}")
        self.perturbation()
        self.mode_weights()

    def mode_weights(self) -> dict[str, float]:
        """The share of each mode, up to a factor. ValueError for an unknown mode or a share that is not positive."""
        weights = {}
        for item in self.modes.split(","):
            mode, _, share = item.partition(":")
            layout(mode)
            try:
                weights[mode] = float(share)
            except ValueError:
                weights[mode] = math.nan
            if not 0 < weights[mode] < math.inf:
                raise ValueError(f"modes must be names with positive shares such as 'none:1,worldpack:2', got {item!r} in {self.modes!r}")
        return weights

    def perturbation(self) -> Perturbation:
        return Perturbation(self.context_noise, self.context_drop, self.hide)

    def likeness(self, config: WorldPackConfig) -> RetrievalConfig | CoverageConfig:
        """By what revisits are chosen."""
        return config.retrieval if self.revisit_by == "score" else CoverageConfig(config.net.field_of_view, config.net.aspect)


def train(args: TrainArgs, progress: bool = True) -> dict[str, Any]:
    """Train or resume; the figures of the end."""
    run = begin(args, progress)
    config = preset(args.size, args.setting, run.coder, run.displacement)
    config = replace(config, outcomes=reward.outcomes(run.training))
    model = build(config).to(run.device)
    training_of = partial(_training, args, model, config, run.device)
    told = {"examples": examples_per_mode(args)}
    return train_world(run, model, config, training_of, _modes(args, model, config), "wmgym train worldpack", told)


def draw_batch(
    data: Latents,
    draw: Draw,
    size: int,
    revisits: float = 0.0,
    likeness: RetrievalConfig | CoverageConfig | None = None,
    jumps: tuple[Displacement, int] | None = None,
) -> Batch:
    """Examples with their whole past as a memory; the mode decides what of it is read. revisits, likeness: see `rehearsal.draw_starts`.

    With `jumps` (what actions mean, and how far at most) half of the examples are further ahead than one step, told the whole displacement.
    """
    rows, first = rehearsal.draw_starts(data, draw, size, revisits, likeness=likeness)
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
    likeness: RetrievalConfig | CoverageConfig,
    jumps: tuple[Displacement, int] | None = None,
) -> Batch:
    """A batch of true pasts, or now and then one whose recent frames were dreamed."""
    if stretch is not None and draw.numpy.random() < args.rehearsal:
        return rehearsal.draw_batch(data, stretch, draw, args.batch)
    return draw_batch(data, draw, args.batch, args.revisits, likeness, jumps)


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


def _draw_mode(args: TrainArgs, draw: Draw) -> int:
    """The number of a step's mode: what the step draws first."""
    shares = np.array(list(args.mode_weights().values()))
    return int(draw.numpy.choice(len(shares), p=shares / shares.sum()))


def examples_per_mode(args: TrainArgs) -> dict[str, int]:
    """How many examples of each mode this training sees, whether or not it was resumed. Those of `--init` are not among them."""
    seed = loop_config(args).seed
    counts = np.bincount([_draw_mode(args, draw(seed, step, "cpu")) for step in range(args.steps)], minlength=len(args.mode_weights()))
    return {mode: args.batch * int(count) for mode, count in zip(args.mode_weights(), counts, strict=True)}


class Examples:
    """Draws a memory mode, and a batch for it. Now and then some stretches are dreamed, from which a share of the batches is taken."""

    def __init__(self, args: TrainArgs, model: WorldModel, config: WorldPackConfig, data: Latents, denoise_steps: int = 2) -> None:
        """model: it dreams the stretches, in `denoise_steps` steps."""
        self.args, self.data, self.denoise_steps = args, data, denoise_steps
        self.worlds = list(_modes(args, model, config).values())
        self.likeness = args.likeness(config)
        self.jumps = (model.kinematics, args.furthest) if isinstance(model.kinematics, Displacement) and args.furthest > 1 else None
        self.length = min(args.rehearsal_frames, int(data.lengths.max()) - 1)
        self.stretch: rehearsal.Stretch | None = None  # the newest dreamed ones

    def __call__(self, draw: Draw) -> tuple[WorldModel, Batch]:
        """The model with the mode's memory, and a batch."""
        args, world = self.args, self.worlds[_draw_mode(self.args, draw)]
        if args.rehearsal > 0 and draw.step % args.rehearse_every == 0 and self.length > 1:
            where = rehearsal.draw_starts(self.data, draw, round(REHEARSED * args.batch), args.revisits, self.length, self.likeness)
            with half_precision(self.data.latents.device):
                self.stretch = rehearsal.dream(world, self.data, draw, where, self.length, self.denoise_steps)
        with record_function(DRAWING):
            return world, next_batch(self.data, self.stretch, draw, args, self.likeness, self.jumps)


def _training(args: TrainArgs, model: WorldModel, config: WorldPackConfig, device: torch.device, data: Latents) -> Training:
    """How network, motion head and reward head are trained together."""
    data = data.to(device) if device.type == "cuda" else data
    examples, perturb = Examples(args, model, config, data), args.perturbation()
    trained, earned = trained_parts(model, data)
    if args.compile:
        model.net.denoise = torch.compile(model.net.denoise)  # CDiT's
    model.train()
    dreamed: reward.DreamedExamples | None = None

    def step_losses(draw: Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        nonlocal dreamed
        before = examples.stretch
        world, batch = examples(draw)
        if earned is not None and examples.stretch is not None and examples.stretch is not before:
            dreamed = reward.DreamedExamples(earned.head, reward.dreamed_pairs(earned.head, data, [examples.stretch])[0])
        with record_function(FORWARD), half_precision(device):
            parts = losses(world, batch, draw.torch, perturb)
            if earned is not None:
                parts["reward"] = earned.loss(draw, args.batch, args.context_noise)
                if dreamed is not None and dreamed.complete:
                    parts["dreamed_reward"] = reward.DREAMED * dreamed.loss(draw, args.batch, args.context_noise)
        return with_total(parts), {"latents": batch.latents, "poses": batch.poses, "actions": batch.actions}

    period = args.rehearse_every if args.rehearsal > 0 else 1
    return Training(trained, make_optimisers(trained, model.net.matrices(), args), step_losses, period)


def denoising(args: TrainArgs, student: WorldModel, config: WorldPackConfig, data: Latents) -> Callable[[Draw], Denoising]:
    """The batches of this training for `wmgym distil`: the same examples, memories, perturbations and rehearsal."""
    examples, perturb = Examples(args, student, config, data, config.sampler.denoise_steps), args.perturbation()

    def draw_one(draw: Draw) -> Denoising:
        world, batch = examples(draw)
        condition, context = inputs(world, batch, draw.torch, perturb)
        there = torch.ones_like(batch.times, dtype=torch.bool)
        return Denoising(batch.latents.float(), there, lambda net: net.bind(condition, (context,)))

    return draw_one
