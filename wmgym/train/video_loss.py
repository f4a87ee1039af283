"""The video network's training objective: two streams in one pass.

Clean chunks (nearly without noise) are what a cache will hold; noisy chunk i is made with the clean chunks before it, as in a dream, and
all chunks carry loss. In a share of the windows the past keeps arbitrary noise levels (diffusion forcing, Chen et al. 2024); in a tenth
it is absent or pure noise, which makes the unconditional baselines that CoME contrasts with.

Noisy chunks stand where the kinematics expect them, clean ones where they were; in a share of the windows the poses drift from chunk to
chunk, as they do in a dream.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from wmgym.core import Adapters, Condition
from wmgym.data.latents import Latents
from wmgym.diffusion.flow import logit_normal, target_velocity
from wmgym.geometry import step_back, walk
from wmgym.kinematics import Kinematics
from wmgym.nets.two_streams import noisy_stream, two_streams
from wmgym.nets.video_dit import VideoDiT
from wmgym.train.windows import Windows


@dataclass(frozen=True)
class VideoLossConfig:
    context_level: float = 0.1  # clean chunks carry noise of a level in [0, this]
    forced: float = 0.2  # share of windows whose past keeps levels in [0, 1]
    absent: float = 0.05  # share of windows without a past
    drowned: float = 0.05  # share of windows whose past is pure noise
    drifting: float = 0.5  # share of windows whose poses drift
    drift: float = 0.1  # metres from one chunk to the next, standard deviation along each axis
    turn_drift: float = 0.02  # radians, where turns are uncertain

    def __post_init__(self) -> None:
        for name in ("context_level", "forced", "absent", "drowned", "drifting"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.absent + self.drowned + self.forced > 1:
            raise ValueError(f"forced, absent and drowned are shares of the windows, together {self.absent + self.drowned + self.forced}")


@dataclass(frozen=True)
class WindowBatch:
    """Windows of L * F frames."""

    latents: Tensor  # float32 [B, L * F, C, h, w]
    actions: Tensor  # [B, L * F] or [B, L * F, A]
    clean: Condition  # where the frames were
    expected: Condition  # where the kinematics expect the frames of each chunk, from the frame before it
    valid: Tensor  # bool [B, L * F]


def make_batch(
    data: Latents, windows: Windows, kinematics: Kinematics, chunk: int, generator: torch.Generator, config: VideoLossConfig
) -> WindowBatch:
    """The frames of windows, with their conditions; drift is drawn from the generator."""
    rows, times = windows.rows[:, None], windows.times
    size, frames = times.shape
    actions, motion, poses = data.actions[rows, times], data.frames.egomotion[rows, times], data.poses[rows, times]
    shift = _drift(size, frames // chunk, kinematics, generator, config).repeat_interleave(chunk, 1)
    poses = poses + shift
    # each chunk begins at the pose of the frame before it, wherever that frame is in the window
    first = times[:, ::chunk]
    before = data.poses[rows, (first - 1).clamp(min=0)] + shift[:, ::chunk]
    begun = step_back(poses[:, ::chunk], kinematics.motion(actions[:, ::chunk]))  # of an episode's first frame: nothing came before
    start = torch.where((first > 0)[..., None], before, begun)
    egomotion = kinematics.motion(actions)
    expected = walk(start.flatten(0, 1), egomotion.unflatten(1, (-1, chunk)).flatten(0, 1)).unflatten(0, (size, -1)).flatten(1, 2)
    which = torch.randint(frames, (size,), generator=generator, device=generator.device)
    origin = poses[torch.arange(size, device=poses.device), which]
    clean = Condition(actions, motion, poses, times, start[:, 0], origin)
    told = replace(clean, egomotion=egomotion, poses=expected)
    return WindowBatch(data.latents[rows, times].float(), actions, clean, told, windows.valid)


def _drift(size: int, chunks: int, kinematics: Kinematics, generator: torch.Generator, config: VideoLossConfig) -> Tensor:
    """Errors of the poses of each chunk that add up along a window: [B, L, 5]."""
    device = generator.device
    steps = torch.randn(size, chunks, 5, generator=generator, device=device)
    scale = torch.tensor([config.drift, config.drift, config.drift, config.turn_drift, 0.0], device=device) * kinematics.mask(device)
    drifts = torch.rand(size, 1, 1, generator=generator, device=device) < config.drifting
    return (steps * scale * drifts).cumsum(1)


def flow_loss(
    net: VideoDiT,
    batch: WindowBatch,
    generator: torch.Generator,
    config: VideoLossConfig,
    adapters: Adapters | None = None,
    recurrent: nn.ModuleDict | None = None,
) -> Tensor:
    """Mean squared error of the velocity over all frames of all noisy chunks that exist. adapters, recurrent: of `two_streams`."""
    (size, frames), device, chunk = batch.valid.shape, batch.latents.device, net.config.chunk
    chunks = frames // chunk

    levels, visible = past_levels(size, chunks, generator, config)
    noisy_levels = logit_normal(torch.randn(size, chunks, generator=generator, device=device))
    noise = torch.randn(2, *batch.latents.shape, generator=generator, device=device)
    clean = noisy_stream(batch.latents, noise[0], levels.repeat_interleave(chunk, 1), batch.clean)
    noisy = noisy_stream(batch.latents, noise[1], noisy_levels.repeat_interleave(chunk, 1), batch.expected)
    velocity, _ = two_streams(net, clean, noisy, visible, batch.valid, adapters, recurrent)
    error = (velocity.float() - target_velocity(batch.latents, noise[1])).square().mean((2, 3, 4))
    return (error * batch.valid).sum() / batch.valid.sum()


def past_levels(size: int, chunks: int, generator: torch.Generator, config: VideoLossConfig) -> tuple[Tensor, Tensor]:
    """Noise levels of the clean chunks of `size` windows, and which of them may be seen: [size, chunks] each."""
    device = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    fate = uniform(size, 1)
    levels = config.context_level * uniform(size, chunks)
    levels = torch.where(fate < config.forced, uniform(size, chunks), levels)
    levels = torch.where((fate >= config.forced) & (fate < config.forced + config.drowned), torch.ones_like(levels), levels)
    return levels, (fate < 1 - config.absent).expand(size, chunks)
