"""A small behaviour-cloned policy similar to GNM (Shah et al. 2023): from recent frames and a goal image to the next positions.

    last 4 frames --convolutions--> \\
                                      MLP --> 8 positions: mean and standard deviation
    last and goal --convolutions--> /

It is trained on recorded drives: the goal is a frame 1 to 20 steps ahead, and the target is the next 8 positions, in units of the waypoint
spacing. GNM predicts one path. To get several paths for ranking, each proposal shifts all positions by one normal sample per axis, times
their standard deviations.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmgym import rng
from wmgym.agents.proposals import View
from wmgym.checkpoint import read_file, write_tensors
from wmgym.data.recon import Trajectory
from wmgym.geometry import relative_pose
from wmgym.nets.autoencoder import to_float
from wmgym.nets.layers import Mlp
from wmgym.progress import Progress
from wmgym.train.loop import Draw, LoopConfig, fit

FURTHEST_GOAL = 20  # steps
MOST_BYTES = 100_000 * 64 * 64 * 3  # limit of the frames in memory: 100,000 of the default size


@dataclass(frozen=True)
class PolicyConfig:
    """Architecture and training of a `Policy`."""

    context: int = 4  # input frames, including the present one
    horizon: int = 8  # predicted positions
    size: int = 64  # side to which input frames are resized
    width: int = 256
    steps: int = 600  # of training
    batch: int = 64
    rate: float = 1e-3
    seed: int = 0


class Policy(nn.Module):
    """A `proposals.Proposer`. spacing: metres per unit of its predicted positions."""

    def __init__(self, config: PolicyConfig, spacing: float) -> None:
        super().__init__()
        self.config, self.spacing, self.context = config, spacing, config.context
        self.seen = _encoder(3 * config.context, config)
        self.goal = _encoder(6, config)
        self.head = Mlp(2 * config.width, config.width, 4 * config.horizon)

    def forward(self, frames: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, context, H, W, 3] and [B, H, W, 3] -> mean and log std [B, horizon, 2] of positions, in units of the spacing."""
        seen, goal = to_float(frames), to_float(goals)
        features = torch.cat([self.seen(seen.flatten(1, 2)), self.goal(torch.cat([seen[:, -1], goal], 1))], 1)
        mean, log_std = self.head(features).view(len(frames), 2, self.config.horizon, 2).unbind(1)
        return mean, log_std.clamp(-4, 2)

    def loss(self, frames: Tensor, goals: Tensor, places: Tensor) -> Tensor:
        """Gaussian negative log likelihood of the true positions [B, horizon, 2], in units of the spacing."""
        mean, log_std = self(frames, goals)
        return (log_std + 0.5 * ((places - mean) / log_std.exp()).square()).mean()

    @torch.no_grad()
    def propose(self, view: View, count: int) -> Tensor:
        """See `proposals.Proposer.propose`."""
        device = next(self.parameters()).device
        frames, goals = (resized(torch.from_numpy(x).to(device), self.config.size) for x in (view.frames, view.goals))
        mean, log_std = (x.float().cpu() for x in self(frames, goals))
        shift = rng.noise(view.keys.cpu(), (count, 2))
        shift[:, 0] = 0  # the most likely path comes first
        places = self.spacing * (mean[:, None] + log_std.exp()[:, None] * shift[:, :, None])
        return along(places)


def resized(frames: Tensor, size: int) -> Tensor:
    """uint8 [..., H, W, 3] resized to uint8 [..., size, size, 3] by area averaging."""
    if frames.shape[-3:-1] == (size, size):
        return frames
    flat = F.interpolate(frames.flatten(0, -4).movedim(-1, 1).float(), (size, size), mode="area")
    return flat.round().to(torch.uint8).movedim(1, -1).unflatten(0, frames.shape[:-3])


def along(places: Tensor) -> Tensor:
    """Positions [..., T, 2] as a path of poses [..., T, 5] that face their direction of travel."""
    before = torch.cat([torch.zeros_like(places[..., :1, :]), places[..., :-1, :]], -2)
    step = places - before
    yaw = torch.atan2(step[..., 1], step[..., 0])[..., None]
    return torch.cat([places, torch.zeros_like(yaw), yaw, torch.zeros_like(yaw)], -1)


def fit_policy(trajectories: Sequence[Trajectory], spacing: float, config: PolicyConfig, out: Path, progress: bool = True) -> Policy:
    """Train a policy and write `out/policy.safetensors`, or read that file if it exists.

    An interrupted training resumes from `out/policy-state.safetensors`. ValueError if the file was made with another config.
    """
    torch.manual_seed(config.seed)
    policy = Policy(config, spacing)
    done, made_with = out / "policy.safetensors", json.dumps({**asdict(config), "spacing": spacing})
    if done.is_file():
        weights, header = read_file(done)
        if header.get("config") != made_with:
            raise ValueError(f"{done} was fitted with {header.get('config')}, not {made_with}; use another folder, or remove {out}")
        policy.load_state_dict(weights)
        return policy.eval().requires_grad_(False)
    drives = _Drives(trajectories, config, progress)

    def losses(draw: Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        frames, goals, places = drives.draw(draw.numpy)
        return {"total": policy.loss(frames, goals, places / spacing)}, {"frames": frames}

    adam = torch.optim.AdamW(policy.parameters(), config.rate, weight_decay=1e-4)
    loop = LoopConfig(config.steps, warmup=max(1, config.steps // 20), seed=config.seed, save_every=max(100, config.steps // 4))
    out.mkdir(parents=True, exist_ok=True)
    fit(policy, {"adam": adam}, losses, loop, out, name="policy", progress=progress)
    write_tensors(done, policy.state_dict(), {"config": made_with})
    return policy.eval().requires_grad_(False)


class _Drives:
    """Frames and poses of drives in memory, concatenated."""

    def __init__(self, trajectories: Sequence[Trajectory], config: PolicyConfig, progress: bool) -> None:
        self.config = config
        chosen: list[Trajectory] = []
        room = MOST_BYTES // (config.size**2 * 3)
        for trajectory in trajectories:
            if config.horizon < len(trajectory) <= room:
                chosen.append(trajectory)
                room -= len(trajectory)
        if not chosen:
            raise ValueError(f"no drive is longer than {config.horizon} frames: a policy cannot be trained")
        self.poses = torch.from_numpy(np.concatenate([t.poses for t in chosen]))
        lengths = np.array([len(t) for t in chosen])
        ends = lengths.cumsum()
        self.frames = np.empty((ends[-1], config.size, config.size, 3), np.uint8)
        for t, end in zip(Progress(chosen, desc="read drives", disable=not progress), ends, strict=True):
            self.frames[end - len(t) : end] = t.frames(range(len(t)), config.size)
        self.first = np.repeat(ends - lengths, lengths)
        self.last = np.repeat(ends - 1, lengths)
        self.now = np.flatnonzero(np.arange(ends[-1]) + config.horizon <= self.last)

    def draw(self, generator: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """A random batch: frames [B, context, ...], goals [B, ...], and the next positions [B, horizon, 2] in metres."""
        config = self.config
        now = generator.choice(self.now, config.batch)
        goal = np.minimum(now + generator.integers(1, FURTHEST_GOAL + 1, config.batch), self.last[now])
        seen = np.maximum(now[:, None] + np.arange(1 - config.context, 1), self.first[now][:, None])
        ahead = torch.from_numpy(now[:, None] + np.arange(1, config.horizon + 1))
        places = relative_pose(self.poses[ahead], self.poses[torch.from_numpy(now)][:, None])[..., :2]
        return torch.from_numpy(self.frames[seen]), torch.from_numpy(self.frames[goal]), places


def _encoder(channels: int, config: PolicyConfig) -> nn.Sequential:
    layers: list[Any] = []
    for width in (32, 64, 128):
        layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.GroupNorm(8, width), nn.SiLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, config.width), nn.SiLU())
