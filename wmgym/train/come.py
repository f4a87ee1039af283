r"""`wmgym train come`: a trained expert of CoME, as a small difference to a video network.

    episodes --the base's autoencoder--> latents --> windows of chunks, two streams in one pass --> low-rank adapters (stm, sliding, full)
                                                 |                                          \-> and recurrent layers (ssm)
                                                 \-> windows of one chunk ------------------------> a coarse network (sltm)

Only the expert is trained; the file holds nothing else and names the base by its SHA-256.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from wmgym.checkpoint import delta_name
from wmgym.data.latents import Latents
from wmgym.nets.composed import Composed
from wmgym.systems.come import ATTENTION, SYSTEM, TRAINED
from wmgym.systems.video import coverage_of
from wmgym.train.delta import DeltaArgs, on_base, open_base, optimiser
from wmgym.train.loop import DRAWING, FORWARD, Draw, Training
from wmgym.train.run import begin, half_precision, make_optimisers
from wmgym.train.video_loss import VideoLossConfig, flow_loss, make_batch
from wmgym.train.windows import WindowConfig, draw_windows
from wmgym.train.world import train_world, with_total
from wmgym.world_model import WorldModel

FUTURE = 3  # chunks of a training window beyond those that the expert attends to
LONGEST = max(expert.window for expert in ATTENTION.values())  # chunks that an expert with a state learns to remember


@dataclass(frozen=True)
class TrainArgs(DeltaArgs):
    """Train an expert of CoME on the frozen weights of a video network.

    Reads episodes of at least 13 chunks (sliding, full, ssm: 54). Writes OUT/come-EXPERT-SETTING.safetensors, a difference to the base,
    OUT/result.json and films of held-out episodes in OUT/samples. A killed run goes on where it was last saved when the command is
    repeated.
    """

    expert: str = "stm"
    """The expert: stm (short-term memory: reads 9 past chunks), sltm (spatial long-term memory: knows where each token looks), or one
    that is not composed: sliding and full (read 50 past chunks), ssm (reads 4 and carries a recurrent state)."""
    gaps: float = 0.0
    """Share of windows whose first chunks come from long ago."""
    loss: VideoLossConfig = field(default_factory=VideoLossConfig)
    """Shares and sizes of what is done to the past of a window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expert not in TRAINED:
            raise ValueError(f"expert must be one of {list(TRAINED)}, got {self.expert!r}")
        if self.compile and self.expert in ATTENTION and ATTENTION[self.expert].recurrent:
            raise ValueError(f"compile=True is not for expert {self.expert!r}, whose loop over frames would be unrolled: leave it out")


def train(args: TrainArgs, progress: bool = True) -> dict[str, Any]:
    """Train or resume; the figures of the end."""
    base = open_base(args.base, SYSTEM)
    args = replace(args, autoencoder=args.base, setting=base.config.setting)
    run = begin(args, progress)
    model, config = on_base(base, SYSTEM, args.expert)
    model, config = model.to(run.device), replace(config, memory=args.expert)
    memories = ("none", args.expert)
    views = {name: model.with_settings(memories=SYSTEM.settings(model.net, replace(config, memory=name)).memories) for name in memories}
    file = delta_name(SYSTEM.name, args.expert, config.setting)
    training = partial(_training, args, model, run.device)
    return train_world(run, model, config, training, views, "wmgym train come", file=file, base=args.base)


@dataclass(frozen=True)
class Objective:
    """The loss of one step of training."""

    model: WorldModel
    data: Latents
    windows: WindowConfig
    args: TrainArgs

    def __call__(self, draw: Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model, net, loss = self.model, self.model.net, self.args.loss
        assert isinstance(net, Composed)
        with record_function(DRAWING):
            windows = draw_windows(self.data, draw, self.args.batch, self.windows, coverage_of(net.base.config))
            batch = make_batch(self.data, windows, model.kinematics, self.windows.chunk, draw.torch, loss)
        with record_function(FORWARD), half_precision(self.data.latents.device):
            if self.args.expert in ATTENTION:
                network, adapters = net.attending(self.args.expert)
                flow = flow_loss(network, batch, draw.torch, loss, adapters, net.recurrent_layers(self.args.expert))
            else:
                assert net.sltm is not None
                flow = flow_loss(net.sltm, batch, draw.torch, loss)
            parts = {"flow": flow}
        return with_total(parts), {"latents": batch.latents, "poses": batch.clean.poses, "actions": batch.actions}


def windows_of(expert: str, chunk: int, gaps: float) -> WindowConfig:
    """Windows that an attention expert learns from. A state sees whole chunks only, in training and in a dream."""
    if ATTENTION[expert].recurrent:
        return WindowConfig(chunk, LONGEST + FUTURE, gaps, short_openings=0.0)
    return WindowConfig(chunk, ATTENTION[expert].window + FUTURE, gaps)


def _training(args: TrainArgs, model: WorldModel, device: torch.device, data: Latents) -> Training:
    """How the expert is trained."""
    data = data.to(device) if device.type == "cuda" else data
    expert = model.net.trained(args.expert).requires_grad_(True).train()
    if args.expert in ATTENTION:
        network, windows = model.net.base, windows_of(args.expert, model.chunk, args.gaps)
        optimisers: dict[str, torch.optim.Optimizer] = {"adam": optimiser(expert, args.rate)}
    else:
        network, windows = expert, WindowConfig(model.chunk, 1, gaps=0.0, most_old=0)
        optimisers = make_optimisers(expert, expert.matrices(), args)
    if args.compile:
        network.run = torch.compile(network.run, dynamic=False)
    return Training(expert, optimisers, Objective(model, data, windows, args))
