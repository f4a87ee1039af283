"""Held-out episodes: which they are, and dreams of them.

Worlds are held out, not episodes: all episodes of a world are on one side (`wmgym collect --worlds` makes several of each world).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmgym import rng
from wmgym.core import Clip
from wmgym.data.episode import load_episode, read_header
from wmgym.metrics.image import BEST_PSNR, psnr
from wmgym.nets.autoencoder import to_uint8
from wmgym.world_model import WorldModel

HELD_OUT = 50  # one world in so many is kept for measuring


def split(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Held-out and training episodes: of the worlds in the order of the paths, the first of every 50 is held out with all its episodes.

    Recordings, whose world is unknown, count as a world each. A single world is both: enough for a test of the machinery.
    """
    worlds = [read_header(path).meta.world or path for path in paths]
    number = {world: n for n, world in enumerate(dict.fromkeys(worlds))}
    held_out = [path for path, world in zip(paths, worlds, strict=True) if number[world] % HELD_OUT == 0]
    training = [path for path, world in zip(paths, worlds, strict=True) if number[world] % HELD_OUT]
    return held_out, training or held_out


class HeldOutFilms:
    """Held-out episodes, dreamed at every save: the next frame after a true past, and the quarter after it on the dream's own.

    `worlds` are views of one model, by name: its ways to remember.
    """

    def __init__(self, worlds: Mapping[str, WorldModel], paths: Sequence[Path], device: torch.device, out: Path, writer: Any) -> None:
        """out: folder of the run. writer: of TensorBoard, or None."""
        self.worlds, self.out, self.writer = worlds, out, writer
        self.clip = held_out_clip(paths, device)

    @torch.no_grad()
    def __call__(self, step: int) -> dict[str, float]:
        split = split_of(self.clip, next(iter(self.worlds.values())).chunk)
        if split is None:
            return {}
        truth = self.clip.frames[:, split:]
        figures, films = {}, [truth]
        for name, world in self.worlds.items():
            world.eval()
            films.append(dream_on(world, self.clip, split))
            figures[f"{name}_next"] = _mean_psnr(films[-1][:, 0], truth[:, 0])
            figures[f"{name}_dream"] = _mean_psnr(films[-1], truth)
        figures["autoencoder"] = _mean_psnr(to_uint8(world.autoencoder.decode(world.encode(truth))), truth)
        figures["copy"] = _mean_psnr(self.clip.frames[:, split - 1 : split].expand_as(truth), truth)
        self._show(step, films)
        for world in self.worlds.values():
            world.train()
        return figures

    def _show(self, step: int, films: list[Tensor]) -> None:
        """Truth above the dreams, as a strip and a film."""
        import cv2

        folder = self.out / "samples"
        folder.mkdir(exist_ok=True)
        strip = torch.cat([torch.cat(list(film[0, ::3]), 1) for film in films], 0).cpu().numpy()
        cv2.imwrite(str(folder / f"{step:06d}.png"), strip[..., ::-1])
        moving = torch.cat([torch.cat(list(film[:6]), 2) for film in films], 1).cpu().numpy()  # [T, rows * H, lanes * W, 3]
        film = cv2.VideoWriter(str(folder / f"{step:06d}.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (moving.shape[2], moving.shape[1]))
        for frame in moving:
            film.write(frame[..., ::-1])
        film.release()
        if self.writer is not None:
            self.writer.add_image("truth above dreams", strip, step, dataformats="HWC")


def held_out_clip(paths: Sequence[Path], device: torch.device, most: int = 12, frames: int = 96) -> Clip:
    """The first `frames` frames of the first `most` episodes that have so many; of the longest one if none has."""
    found = [load_episode(p) for p in paths[:most]]
    episodes = [e for e in found if len(e) >= frames] or [max(found, key=len)]
    length = min([frames, *(len(e) for e in episodes)])

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(e, name)[:length] for e in episodes])).to(device)

    there = torch.ones(len(episodes), length, dtype=torch.bool, device=device)
    return Clip(stack("frames"), stack("actions"), stack("poses"), there)


def split_of(clip: Clip, chunk: int) -> int | None:
    """Where the last quarter of a clip begins, in whole chunks; None if it is too short to be dreamed."""
    frames = clip.valid.shape[1]
    dreamed = max(1, frames // 4) // chunk * chunk
    return frames - dreamed if frames >= 2 and dreamed else None


@torch.no_grad()
def dream_on(world: WorldModel, clip: Clip, split: int) -> Tensor:
    """The frames of a clip from `split` on, dreamed along its actions: uint8 [B, T, H, W, 3]. Row i has the noise of seed i."""
    seen = Clip(clip.frames[:, :split], clip.actions[:, :split], clip.poses[:, :split], clip.valid[:, :split])
    state, shown = world.start(seen, rng.make_keys(list(range(len(clip.valid))), clip.valid.device)), []
    for t in range(split, clip.valid.shape[1], world.chunk):
        state, now = world.step(state, clip.actions[:, t : t + world.chunk])
        shown.append(now.pixels)
    return torch.cat(shown, 1)


def _mean_psnr(frames: Tensor, truth: Tensor) -> float:
    """Mean over frames uint8 [..., H, W, 3], in dB."""
    return float(psnr(frames.flatten(0, -4), truth.flatten(0, -4)).clamp(max=BEST_PSNR).mean())
