"""Tile recall: the share of correct tiles in an image of tiles (CoME, appendix D.1)."""

from __future__ import annotations

from torch import Tensor

RIGHT = 2e-5  # mean squared error of pixels in [0, 1], which is an RMSE of 1.1 grey levels; the paper does not state the pixel range


def tile_error(frames: Tensor, truth: Tensor, grid: int = 4, margin: int = 0) -> Tensor:
    """Mean squared error of each tile, for pixels in [0, 1]: uint8 [N, H, W, 3] twice -> float32 [N, grid, grid].

    margin: pixels at each side of a tile that are ignored, since a cursor may be drawn there.
    """
    for name, value in (("frames", frames), ("truth", truth)):
        if value.shape != truth.shape or value.ndim != 4 or value.dtype != truth.dtype or value.is_floating_point():
            raise ValueError(f"{name} must be uint8 [N, H, W, 3] like the other, got {value.dtype} {list(value.shape)}")
    count, height, width, _ = truth.shape
    if height % grid or width % grid or not 0 <= 2 * margin < min(height, width) // grid:
        raise ValueError(f"{height} x {width} pixels cannot be cut into {grid} x {grid} tiles with a margin of {margin}")
    squares = ((frames.float() - truth.float()) / 255).square().mean(-1)
    cut = squares.view(count, grid, height // grid, grid, width // grid).movedim(3, 2)  # [N, grid, grid, tile, tile]
    inner = cut[..., margin : height // grid - margin, margin : width // grid - margin]
    return inner.mean((-1, -2))


def tile_recall(frames: Tensor, truth: Tensor, grid: int = 4) -> Tensor:
    """Share of the tiles whose error is below 2e-5: float32 [N]."""
    return (tile_error(frames, truth, grid) < RIGHT).float().mean((1, 2))
