"""Image metrics, frame by frame: uint8 [N, H, W, 3] against uint8 [N, H, W, 3] -> float32 [N]. torchmetrics does the sums.

LPIPS needs torchvision and its AlexNet weights, which are 240 MB. Nothing here downloads them: `lpips_available` says whether
they are there, and `lpips` says how to get them if they are not.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"
_AT_ONCE = 512  # frames


def psnr(frames: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame in dB; infinite where nothing differs."""
    functional = _functional()
    frames, truth = _images(frames, truth)
    return functional.peak_signal_noise_ratio(frames, truth, data_range=255.0, reduction="none", dim=(1, 2, 3))


def ssim(frames: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each frame (Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5), 1 where nothing differs."""
    functional = _functional()
    frames, truth = _images(frames, truth)
    if min(frames.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs frames of at least 11 x 11 pixels, got {list(frames.shape[-2:])}")
    parts = zip(frames.split(_AT_ONCE), truth.split(_AT_ONCE), strict=True)
    measure = functional.structural_similarity_index_measure
    # in double precision: on flat surfaces the variances are small differences of large squares
    return torch.cat([measure(a.double(), b.double(), data_range=255.0, reduction="none").reshape(-1).float() for a, b in parts])


def lpips(frames: Tensor, truth: Tensor) -> Tensor:
    """LPIPS (Zhang et al. 2018, AlexNet) of each frame, 0 where nothing differs."""
    functional = _functional()
    if importlib.util.find_spec("torchvision") is None:
        raise ImportError("LPIPS needs torchvision: pip install torchvision")
    if not _backbone().is_file():
        fetch = "torchvision.models.alexnet(weights='DEFAULT') fetches them (240 MB)"
        raise ValueError(f"LPIPS needs AlexNet's weights at {_backbone()}; {fetch}")
    frames, truth = _images(frames, truth)
    parts = zip(frames.split(_AT_ONCE), truth.split(_AT_ONCE), strict=True)
    measure = functional.learned_perceptual_image_patch_similarity
    with torch.no_grad():
        return torch.cat([measure(a / 255, b / 255, net_type="alex", reduction="none", normalize=True).reshape(-1) for a, b in parts])


def lpips_available() -> bool:
    """Whether `lpips` can run here without a download."""
    return all(importlib.util.find_spec(name) is not None for name in ("torchmetrics", "torchvision")) and _backbone().is_file()


def _backbone() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE


def _images(frames: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float32 [N, 3, H, W] in [0, 255]."""
    for name, value in (("frames", frames), ("truth", truth)):
        if value.dtype != torch.uint8 or value.ndim != 4 or value.shape[-1] != 3 or not len(value):
            raise ValueError(f"{name} must be uint8 [N, H, W, 3] with N > 0, got {value.dtype} {list(value.shape)}")
    if frames.shape != truth.shape:
        raise ValueError(f"frames and truth must have one shape, got {list(frames.shape)} and {list(truth.shape)}")
    return frames.movedim(-1, 1).float(), truth.movedim(-1, 1).float()


def _functional() -> Any:
    try:
        import torchmetrics.functional.image as functional
    except ImportError as error:
        raise ImportError("image metrics need torchmetrics: pip install 'wmgym[eval]'") from error
    return functional
