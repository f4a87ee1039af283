"""`wmgym train echo`: fine-tune a checkpoint of the video network for one of Echo-Memory's families. Only a small delta is trained.

    video checkpoint, frozen + fresh delta of the family --windows, each chunk a target (echo_loss.py)--> echo-FAMILY-SETTING.safetensors

All families share recipe, data and number of steps. For family geometry a depth head is trained beside the rest, on true depth.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from wmgym.checkpoint import delta_name, read_file, write_tensors
from wmgym.data.depth import DepthCamera
from wmgym.data.episode import list_episodes, load_episode, read_header
from wmgym.data.latents import Latents
from wmgym.nets.echo import EchoDiT
from wmgym.systems.echo import FAMILIES, SYSTEM, EchoConfig, EchoOptions
from wmgym.systems.video import coverage_of
from wmgym.train.delta import DeltaArgs, on_base, open_base, optimiser
from wmgym.train.echo_loss import EchoLossConfig, as_chunks, echo_loss
from wmgym.train.loop import DRAWING, FORWARD, Draw, Training
from wmgym.train.run import Run, begin, half_precision
from wmgym.train.video_loss import VideoLossConfig, make_batch
from wmgym.train.windows import WindowConfig, draw_windows
from wmgym.train.world import train_world, with_total
from wmgym.world_model import WorldModel

STEADY = VideoLossConfig(drifting=0.0)  # of the windows' poses only the expected ones are used


@dataclass(frozen=True)
class TrainArgs(DeltaArgs):
    """Fine-tune a checkpoint of system video for one memory family.

    Reads episodes of at least `window` chunks; family geometry needs ones with depth (wmgym collect --depth). Writes
    OUT/echo-FAMILY-SETTING.safetensors, which holds only what differs from the base, OUT/result.json and films of held-out episodes in
    OUT/samples. Put the delta beside the base to choose it by `memory=`. A killed run goes on where it was last saved when the command is
    repeated.
    """

    family: str = "block_wise"
    """The memory family, such as context-5, block_wise or geometry."""
    rate: float = 5e-4
    """Learning rate of AdamW."""
    window: int = 8
    """Chunks per window; each of them is a target."""
    gaps: float = 0.5
    """Share of windows whose first chunks come from long ago."""
    loss: EchoLossConfig = field(default_factory=EchoLossConfig)
    """The recipe."""
    options: EchoOptions = field(default_factory=EchoOptions)
    """Keywords of the envs that the memory is trained with; they are not stored."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {self.family!r}")


def train(args: TrainArgs, progress: bool = True) -> dict[str, Any]:
    """Train or resume; the figures of the end."""
    torch.manual_seed(args.seed)
    model, config = start(args.base, args.family, args.options)
    args = replace(args, autoencoder=args.base, setting=config.setting)
    if args.family == "geometry":
        camera = _depth_camera([path for folder in args.data for path in list_episodes(folder)])
        model.net.delta.camera_place.copy_(torch.tensor([*camera.eye, camera.tilt]))
    run = begin(args, progress)
    model = model.to(run.device)
    told = {"parameters": sum(weight.numel() for weight in model.net.delta.parameters())}
    file, training = delta_name(SYSTEM.name, args.family, config.setting), partial(_training, args, run, model, config)
    return train_world(run, model, config, training, {args.family: model}, "wmgym train echo", told, file=file, base=args.base)


def start(base: str, family: str, options: EchoOptions | None = None) -> tuple[WorldModel, EchoConfig]:
    """The weights of a video checkpoint, frozen, with a fresh delta of a family. ValueError if the base is of another system."""
    model, config = on_base(open_base(base, SYSTEM), SYSTEM, family)
    model.net.delta.requires_grad_(True)
    model.settings = SYSTEM.settings(model.net, config, options)
    return model, config


@dataclass(frozen=True)
class Objective:
    """The losses of one step."""

    model: WorldModel
    data: Latents
    windows: WindowConfig
    loss: EchoLossConfig
    size: int
    depth: Tensor | None = None  # float16 [E, T, h, w]: inverse depth at the latents' cells, for geometry

    def __call__(self, draw: Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses by name, and the batch in case it is bad."""
        model, data, net = self.model, self.data, self.model.net
        assert isinstance(net, EchoDiT)
        with record_function(DRAWING):
            windows = draw_windows(data, draw, self.size, self.windows, coverage_of(net.config))
            batch = make_batch(data, windows, model.kinematics, self.windows.chunk, draw.torch, STEADY)
            chunks = as_chunks(batch, windows, self.windows.chunk)
        with record_function(FORWARD), half_precision(data.latents.device):
            parts = {"flow": echo_loss(model, data, chunks, draw.torch, self.loss)}
            if self.depth is not None:
                rows, times = windows.rows[:, None], windows.times
                head = net.delta.depth  # type: ignore[union-attr]
                parts["depth"] = head.loss(data.latents[rows, times].float(), 1 / self.depth[rows, times].float())
        return with_total(parts), {"latents": batch.latents, "poses": batch.clean.poses, "actions": batch.actions}


def _training(args: TrainArgs, run: Run, model: WorldModel, config: EchoConfig, data: Latents) -> Training:
    """How the delta is trained."""
    depth = inverse_depth(run, config.net.latent_shape[1:]).to(run.device) if args.family == "geometry" else None
    data = data.to(run.device) if run.device.type == "cuda" else data
    windows = WindowConfig(config.net.chunk, args.window, args.gaps, min(5, args.window - 1), short_openings=0.0)
    delta = model.net.delta.train()
    return Training(delta, {"adam": optimiser(delta, args.rate)}, Objective(model, data, windows, args.loss, args.batch, depth))


# -- depth ----------------------------------------------------------------------------------------------------------------------------


def _depth_camera(paths: list[Path]) -> DepthCamera:
    """The camera of the episodes' depth images, which must be the same in all of them."""
    cameras = {}
    for path in paths:
        camera = read_header(path).meta.depth
        if camera is None:
            raise ValueError(f"{path} has no depth images, which family geometry learns from; record them with `wmgym collect --depth`")
        cameras[camera] = path
    if len(cameras) > 1:
        raise ValueError(f"episodes were seen by different cameras: {', '.join(map(str, cameras.values()))}")
    return next(iter(cameras))


def inverse_depth(run: Run, size: tuple[int, int]) -> Tensor:
    """Mean inverse depth in 1/metres of each latent cell, 0 where nothing is: float16 [E, T, h, w], kept in `out/depth.safetensors`."""
    cache = run.args.out / "depth.safetensors"
    if cache.exists():
        return read_file(cache)[0]["inverse"]
    parts = []
    for path in run.training:
        depth = load_episode(path, depth=True).depth
        assert depth is not None
        inverse = torch.from_numpy(1 / depth.astype(np.float32))
        parts.append(F.adaptive_avg_pool2d(inverse[:, None], size)[:, 0].half())
    inverse = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    write_tensors(cache, {"inverse": inverse})
    return inverse
