"""`wmgym train video`: the causal video network that WorldTrace, CoME and Echo-Memory stand on, in one resumable command.

    episodes --> autoencoder --> latents of every frame, once --> windows of L chunks, two streams in one pass --> model.safetensors

A motion head is trained beside it, and a reward head where the data hold rewards (reward.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from wmgym.data.latents import Latents
from wmgym.diffusion.flow import Velocity
from wmgym.kinematics import Kinematics
from wmgym.memory.coverage import CoverageConfig
from wmgym.nets.heads import MotionHead
from wmgym.nets.two_streams import Stream, noisy_stream, two_streams
from wmgym.nets.video_dit import VideoDiT
from wmgym.systems.video import VideoConfig, build, coverage_of, preset
from wmgym.train import reward
from wmgym.train.distil_loss import Denoising
from wmgym.train.loop import DRAWING, FORWARD, Draw, Training
from wmgym.train.run import RunArgs, begin, half_precision, make_optimisers, random_latents
from wmgym.train.video_loss import VideoLossConfig, flow_loss, make_batch, past_levels
from wmgym.train.windows import WindowConfig, Windows, draw_windows
from wmgym.train.world import train_world, trained_parts, with_total
from wmgym.world_model import WorldModel

HEAD_NOISE = 0.1  # on the latents that the heads learn from, as dreamed ones have


@dataclass(frozen=True)
class TrainArgs(RunArgs):
    """Fit the causal video network to folders of episodes.

    Reads episodes of at least `window` x `chunk` frames. Writes OUT/model.safetensors, OUT/result.json, films of held-out episodes in
    OUT/samples and TensorBoard's files. A killed run goes on where it was last saved when the command is repeated.
    """

    batch: int = 16
    """Windows per step."""
    chunk: int = 4
    """Frames made at a time."""
    window: int = 8
    """Chunks that training sees at once."""
    pose_rotary: bool = True
    """Rotate queries, keys and values by where tokens look and stand; --no-pose-rotary is WorldTrace's paper."""
    gaps: float = 0.5
    """Share of windows whose first chunks come from long ago."""
    loss: VideoLossConfig = field(default_factory=VideoLossConfig)
    """Shares and sizes of what is done to the past of a window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.windows()

    def windows(self) -> WindowConfig:
        return WindowConfig(self.chunk, self.window, self.gaps, most_old=min(5, self.window - 1))


def train(args: TrainArgs, progress: bool = True) -> dict[str, Any]:
    """Train or resume; the figures of the end."""
    run = begin(args, progress)
    config = preset(args.size, args.setting, run.coder, run.displacement, chunk=args.chunk, window=args.window)
    config = replace(config, outcomes=reward.outcomes(run.training))
    if not args.pose_rotary:
        config = replace(config, net=replace(config.net, pose_rotary=False))
    model = build(config).to(run.device)
    return train_world(run, model, config, partial(_training, args, model, config, run.device), {"none": model}, "wmgym train video")


@dataclass(frozen=True)
class Objective:
    """The losses of one step of training."""

    model: WorldModel
    data: Latents
    windows: WindowConfig
    coverage: CoverageConfig
    loss: VideoLossConfig
    events: reward.Examples | None = None  # for the reward head
    size: int = 16

    def __call__(self, draw: Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses by name, and the batch in case it is bad."""
        model, data, net = self.model, self.data, self.model.net
        assert isinstance(net, VideoDiT)
        with record_function(DRAWING):
            windows = draw_windows(data, draw, self.size, self.windows, self.coverage)
            batch = make_batch(data, windows, model.kinematics, self.windows.chunk, draw.torch, self.loss)
        with record_function(FORWARD), half_precision(data.latents.device):
            parts = {"flow": flow_loss(net, batch, draw.torch, self.loss)}
            if model.motion_head is not None:
                parts["motion"] = motion_loss(model.motion_head, model.kinematics, data, windows, draw)
            if self.events is not None:
                parts["reward"] = self.events.loss(draw, 4 * self.size, HEAD_NOISE)
        return with_total(parts), {"latents": batch.latents, "poses": batch.clean.poses, "actions": batch.actions}


def motion_loss(head: MotionHead, kinematics: Kinematics, data: Latents, windows: Windows, draw: Draw) -> Tensor:
    """Loss of the motion head on pairs of successive true latents, one for each chunk of the windows."""
    rows, times = windows.rows[:, None], windows.times.clamp(min=1)[:, :: max(1, windows.times.shape[1] // 8)]
    before, after = data.latents[rows, times - 1].float(), data.latents[rows, times].float()
    noise = torch.randn((2, *after.shape), generator=draw.torch, device=after.device)
    actions = data.actions[rows, times]
    correction = data.frames.egomotion[rows, times] - kinematics.motion(actions)
    before, after = (x + HEAD_NOISE * n for x, n in zip((before, after), noise, strict=True))
    mask = kinematics.mask(after.device)
    return head.loss(before.flatten(0, 1), after.flatten(0, 1), actions.flatten(), correction.flatten(0, 1), mask)


def synthetic(size: str, batch: int, device: torch.device, compile: bool) -> Training:
    """The training of a network of this size, with fresh weights, on random latents in place of episodes: for `wmgym bench train`."""
    torch.manual_seed(0)
    args = TrainArgs((), Path(), size=size, batch=batch, compile=compile)
    config = preset(size, args.setting, chunk=args.chunk, window=args.window)
    return _training(args, build(config).to(device), config, device, random_latents(config.kinematics, config.net.latent_shape))


def _training(args: TrainArgs, model: WorldModel, config: VideoConfig, device: torch.device, data: Latents) -> Training:
    """How network, motion head and reward head are trained together."""
    data = data.to(device) if device.type == "cuda" else data
    trained, events = trained_parts(model, data)
    if args.compile:
        model.net.run = torch.compile(model.net.run, dynamic=False)
    model.train()
    objective = Objective(model, data, args.windows(), coverage_of(config.net), args.loss, events, args.batch)
    return Training(trained, make_optimisers(trained, model.net.matrices(), args), objective)


def denoising(args: TrainArgs, student: WorldModel, config: VideoConfig, data: Latents) -> Callable[[Draw], Denoising]:
    """The batches of this training for `wmgym distil`: the same windows and pasts. All chunks of a window are at one level."""
    moves, coverage = student.kinematics, coverage_of(config.net)
    windows = replace(args, chunk=config.net.chunk, window=config.net.window).windows()

    def draw_one(draw: Draw) -> Denoising:
        batch = make_batch(data, draw_windows(data, draw, args.batch, windows, coverage), moves, windows.chunk, draw.torch, args.loss)
        levels, visible = past_levels(args.batch, windows.window, draw.torch, args.loss)
        noise = torch.randn(batch.latents.shape, generator=draw.torch, device=draw.torch.device)
        clean = noisy_stream(batch.latents, noise, levels.repeat_interleave(windows.chunk, 1), batch.clean)

        def velocity(net: VideoDiT) -> Velocity:
            def at(x: Tensor, level: Tensor) -> Tensor:
                noisy = Stream(x, level[:, None].expand(batch.valid.shape), batch.expected)
                return two_streams(net, clean, noisy, visible, batch.valid)[0]

            return at

        return Denoising(batch.latents, batch.valid, velocity)

    return draw_one
