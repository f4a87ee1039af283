"""Image metrics, frame by frame: uint8 [N, H, W, 3] against uint8 [N, H, W, 3] -> float32 [N].

PSNR and SSIM measure distortion and prefer a blurred frame to a sharp one that is slightly off. `gradient_energy` measures blur, `cosine`
compares features.

PSNR and SSIM are implemented here, since torchmetrics takes 80 s for the SSIM of 1,000 small frames on two cores (its window is a dense
11 x 11 convolution); a test compares both with torchmetrics. LPIPS is from torchmetrics and needs torchvision and its AlexNet weights.
DreamSim is the authors' package and needs its weights. No function downloads weights: `lpips_available` and `dreamsim_available` test for
them, and the errors of `lpips` and `dreamsim` name the command that gets them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

BEST_PSNR = 60.0  # dB: the value of an equal frame in means, about the PSNR of a perfect image rounded to 8 bits
DREAMSIM_SIDE = 224  # side in pixels of its networks' input
LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"
_WINDOW, _SIGMA = 11, 1.5  # pixels
_AT_ONCE = 256  # frames


def judge(frames: np.ndarray, truth: np.ndarray, metrics: Sequence[str] = ("psnr", "ssim")) -> dict[str, np.ndarray]:
    """Metric -> value of each frame. metrics: any of psnr (clamped to `BEST_PSNR`), ssim, lpips, dreamsim."""
    measures = {"psnr": lambda a, b: psnr(a, b).clamp(max=BEST_PSNR), "ssim": ssim, "lpips": lpips, "dreamsim": dreamsim}
    for name in metrics:
        if name not in measures:
            raise ValueError(f"metric must be one of {', '.join(measures)}, got {name!r}")
    pair = torch.from_numpy(frames), torch.from_numpy(truth)
    return {name: measures[name](*pair).numpy() for name in metrics}


def available() -> tuple[str, ...]:
    """Metrics that `judge` can compute on this machine without a download."""
    extra = (("lpips", lpips_available()), ("dreamsim", dreamsim_available()))
    return ("psnr", "ssim", *(name for name, there in extra if there))


def gradient_energy(frames: np.ndarray) -> np.ndarray:
    """Mean squared difference between neighbouring pixels, down and across, of each frame uint8 [N, H, W, 3], in grey levels squared: [N].

    Over the truth's it is a sharpness: 1 for equal frames, below 1 for blurred ones, above 1 for frames with too much detail or noise. The
    ratio is taken of means over many frames, since a single true frame may be almost flat.
    """
    pixels = frames.astype(np.float32)
    down, across = (np.square(np.diff(pixels, axis=axis)).mean((1, 2, 3)) for axis in (1, 2))
    return down + across


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of rows [N, d]: [N]."""
    scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(1) / np.maximum(scale, 1e-12)


def psnr(frames: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame in dB; infinite for equal frames."""
    frames, truth = _images(frames, truth)
    error = (frames - truth).double().square().mean((1, 2, 3))
    return (10 * (255**2 / error).log10()).float()


def ssim(frames: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each frame, mean over channels and pixels (Wang et al. 2004); 1 for equal frames."""
    frames, truth = _images(frames, truth)
    if min(frames.shape[-2:]) <= _WINDOW // 2:
        raise ValueError(f"SSIM needs frames of more than {_WINDOW // 2} x {_WINDOW // 2} pixels, got {list(frames.shape[-2:])}")
    return torch.cat([_ssim(a, b) for a, b in zip(frames.split(_AT_ONCE), truth.split(_AT_ONCE), strict=True)])


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.double(), y.double()  # float64: on flat surfaces the variances are small differences of large squares
    down, across = (_gaussian_rows(side, x.device) for side in x.shape[-2:])

    def blur(image: Tensor) -> Tensor:
        return down @ image @ across.T

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, covariance = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (var_x + var_y + c2)).mean((1, 2, 3)).float()


def _gaussian_rows(side: int, device: torch.device) -> Tensor:
    """[side, side]: row i is the window around pixel i, mirrored at the border as in torchmetrics; `rows @ image` blurs."""
    reach = torch.arange(_WINDOW, device=device) - _WINDOW // 2
    window = (-(reach.double() ** 2) / (2 * _SIGMA**2)).exp()
    index = (torch.arange(side, device=device)[:, None] + reach).abs()
    index = side - 1 - (side - 1 - index).abs()
    rows = torch.zeros(side, side, dtype=torch.float64, device=device)
    return rows.scatter_add_(1, index, (window / window.sum()).expand(side, -1))


def lpips(frames: Tensor, truth: Tensor) -> Tensor:
    """LPIPS (Zhang et al. 2018, AlexNet) of each frame; 0 for equal frames."""
    for package, get in (("torchmetrics", "'wmgym[eval]'"), ("torchvision", "torchvision")):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"LPIPS needs {package}: pip install {get}")
    if not _backbone().is_file():
        fetch = "torchvision.models.alexnet(weights='DEFAULT') fetches them (240 MB)"
        raise ValueError(f"LPIPS needs AlexNet's weights at {_backbone()}; {fetch}")
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as measure

    frames, truth = _images(frames, truth)
    with torch.no_grad():
        return measure(frames / 255, truth / 255, net_type="alex", reduction="none", normalize=True).reshape(-1)


def lpips_available() -> bool:
    """Whether `lpips` can run on this machine without a download."""
    return all(importlib.util.find_spec(name) is not None for name in ("torchmetrics", "torchvision")) and _backbone().is_file()


def dreamsim(frames: Tensor, truth: Tensor) -> Tensor:
    """DreamSim (Fu et al. 2023, the ensemble) of each frame; 0 for equal frames. Frames are resized to 224 x 224."""
    if importlib.util.find_spec("dreamsim") is None:
        raise ImportError("DreamSim needs dreamsim: pip install dreamsim")
    if not dreamsim_available():
        fetch = f"dreamsim.dreamsim(pretrained=True, cache_dir={str(_dreamsim_folder())!r}) fetches them"
        raise ValueError(f"DreamSim needs its weights in {_dreamsim_folder()}; {fetch}")
    frames, truth = _images(frames, truth)
    model, size = _dreamsim_model(str(frames.device)), (DREAMSIM_SIDE, DREAMSIM_SIDE)
    parts = []
    with torch.no_grad():
        for pair in zip(frames.split(_AT_ONCE), truth.split(_AT_ONCE), strict=True):
            resized = [torch.nn.functional.interpolate(x / 255, size, mode="bicubic", antialias=True).clamp(0, 1) for x in pair]
            parts.append(model(*resized).float().reshape(-1))
    return torch.cat(parts)


def dreamsim_available() -> bool:
    """Whether `dreamsim` can run on this machine without a download."""
    return importlib.util.find_spec("dreamsim") is not None and _dreamsim_folder().is_dir() and any(_dreamsim_folder().iterdir())


def _dreamsim_folder() -> Path:
    return Path(torch.hub.get_dir()) / "dreamsim"


@cache
def _dreamsim_model(device: str) -> Any:
    from dreamsim import dreamsim as load

    return load(pretrained=True, device=device, cache_dir=str(_dreamsim_folder()))[0].eval()


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
