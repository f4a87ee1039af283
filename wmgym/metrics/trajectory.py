"""Trajectory errors and navigation scores: ATE, RPE, final distance, SPL.

Positions are `[..., T, 2]` or `[..., T, 3]` (arrays or tensors, with any leading axes) in any common unit: metres give metres, and metres
divided by a data set's waypoint spacing give the unit of NWM's tables. For paths with equal orientations, as in NWM's evaluation, the
results equal those of `evo`; a test compares them.

ATE and RPE: Sturm et al. 2012, "A benchmark for the evaluation of RGB-D SLAM systems". SPL: Anderson et al. 2018, "On evaluation of
embodied navigation agents", section 3. Alignment: Umeyama 1991, equations 34 to 43.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wmgym.geometry import wrap_angle

Floats = NDArray[np.float64]


def ate(predicted: ArrayLike, truth: ArrayLike, *, align: bool = False, scale: bool = False) -> Any:
    """Absolute trajectory error: root mean square over time of the distance between positions: [...].

    align: first move and rotate each predicted path for the best fit. scale: also scale it; needs `align`.
    """
    p, g = _paths(predicted, truth, 1)
    if scale and not align:
        raise ValueError("scale=True needs align=True")
    if align:
        p = umeyama(p, g, scale=scale).apply(p)
    return _rms(np.linalg.norm(p - g, axis=-1))


def rpe(predicted: ArrayLike, truth: ArrayLike, *, delta: int = 1) -> Any:
    """Relative pose error, translation: root mean square of the difference between displacements over `delta` steps: [...].

    The mean is over all pairs of frames `delta` apart, also overlapping ones. Displacements are compared in the common axes.
    """
    p, g = _paths(predicted, truth, _checked_delta(delta) + 1)
    return _rms(np.linalg.norm((p[..., delta:, :] - p[..., :-delta, :]) - (g[..., delta:, :] - g[..., :-delta, :]), axis=-1))


def rpe_rotation(predicted: ArrayLike, truth: ArrayLike, *, delta: int = 1) -> Any:
    """Relative pose error, rotation: root mean square difference, in radians, between turns over `delta` steps; yaws [..., T] -> [...]."""
    p, g = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    if p.shape != g.shape or p.ndim < 1 or p.shape[-1] <= _checked_delta(delta):
        raise ValueError(f"yaws must be two equal [..., T] with T > {delta}, got {list(p.shape)} and {list(g.shape)}")
    _check_finite(p, g)
    return _rms(wrap_angle((p[..., delta:] - p[..., :-delta]) - (g[..., delta:] - g[..., :-delta])))


def final_distance(predicted: ArrayLike, truth: ArrayLike) -> Any:
    """Distance between the last positions: [...]."""
    p, g = _paths(predicted, truth, 1)
    return np.linalg.norm(p[..., -1, :] - g[..., -1, :], axis=-1)


def path_length(positions: ArrayLike) -> Any:
    """Length of a path: [...]."""
    p, _ = _paths(positions, positions, 1)
    return np.linalg.norm(np.diff(p, axis=-2), axis=-1).sum(-1)


def spl(success: ArrayLike, shortest: ArrayLike, travelled: ArrayLike) -> Floats:
    """Success weighted by path length, episode by episode; its mean is the SPL. bool and two lengths [N] -> [N] in [0, 1].

    An episode that starts at its goal (shortest 0) scores 1 if the agent did not move, and 0 otherwise.
    """
    reached, best, walked = np.asarray(success, bool), np.asarray(shortest, np.float64), np.asarray(travelled, np.float64)
    if not reached.shape == best.shape == walked.shape:
        raise ValueError(f"success, shortest and travelled must have one shape, got {reached.shape}, {best.shape} and {walked.shape}")
    _check_finite(best, walked)
    if (best < 0).any() or (walked < 0).any():
        raise ValueError("lengths must not be negative")
    longer = np.maximum(best, walked)
    return reached * np.divide(best, longer, out=np.ones_like(longer), where=longer > 0)


class Similarity(NamedTuple):
    """A map of positions: x -> scale * rotation @ x + shift."""

    rotation: Floats  # [..., D, D]
    shift: Floats  # [..., D]
    scale: Floats  # [...]

    def apply(self, positions: ArrayLike) -> Floats:
        """[..., T, D] -> [..., T, D]."""
        turned = np.asarray(positions, np.float64) @ np.swapaxes(self.rotation, -1, -2)
        return self.scale[..., None, None] * turned + self.shift[..., None, :]


def umeyama(source: ArrayLike, target: ArrayLike, *, scale: bool = False) -> Similarity:
    """The least-squares rotation and shift (and scale) from `source` to `target`, without reflections.

    Paths that do not span enough directions to determine the rotation raise `ValueError`. `evo` treats planar paths as 3-D, where a
    rotation about an axis in the plane mirrors them; here paths [T, 2] are never mirrored.
    """
    x, y = _paths(source, target, 2)
    mean_x, mean_y = x.mean(-2, keepdims=True), y.mean(-2, keepdims=True)
    covariance = np.swapaxes(y - mean_y, -1, -2) @ (x - mean_x) / x.shape[-2]  # equation 38
    u, d, vt = np.linalg.svd(covariance)
    if (d[..., -2] <= np.finfo(np.float64).eps * np.maximum(1.0, d[..., 0])).any():
        raise ValueError("these paths cannot be aligned: their points do not span enough directions to determine the rotation")
    flip = np.ones_like(d)
    flip[..., -1] = np.sign(np.linalg.det(u) * np.linalg.det(vt))  # equation 43
    rotation = (u * flip[..., None, :]) @ vt
    factor = np.ones(d.shape[:-1])
    if scale:
        factor = (d * flip).sum(-1) / np.square(x - mean_x).sum(-1).mean(-1)
    shift = mean_y[..., 0, :] - factor[..., None] * (rotation @ mean_x[..., 0, :, None])[..., 0]
    return Similarity(rotation, shift, factor)


def path_errors(
    predicted: ArrayLike, truth: ArrayLike, predicted_yaw: ArrayLike | None = None, true_yaw: ArrayLike | None = None, *, spacing: float
) -> dict[str, Any]:
    """The errors of NWM's tables for one path or [...] paths, in metres and in units of the waypoint spacing.

    Positions [..., T, 2 or 3] in metres, without the common origin; yaws [..., T] in radians; spacing in metres.
    """
    if not spacing > 0:
        raise ValueError(f"spacing must be a positive number of metres, got {spacing}")
    found = {"ate": ate(predicted, truth), "rpe": rpe(predicted, truth), "final_distance": final_distance(predicted, truth)}
    errors = {f"{name}_m": value for name, value in found.items()} | {f"{name}_spacings": value / spacing for name, value in found.items()}
    if predicted_yaw is not None and true_yaw is not None:
        errors["rpe_rotation_rad"] = rpe_rotation(predicted_yaw, true_yaw)
        turn = np.asarray(predicted_yaw)[..., -1] - np.asarray(true_yaw)[..., -1]
        errors["final_yaw_rad"] = np.abs(wrap_angle(turn.astype(np.float64)))
    return errors


def _paths(predicted: ArrayLike, truth: ArrayLike, at_least: int) -> tuple[Floats, Floats]:
    p, g = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    if p.shape != g.shape or p.ndim < 2 or p.shape[-1] not in (2, 3):
        raise ValueError(f"paths must be two equal [..., T, 2] or [..., T, 3], got {list(p.shape)} and {list(g.shape)}")
    if p.shape[-2] < at_least:
        raise ValueError(f"paths must have at least {at_least} positions, got {p.shape[-2]}")
    _check_finite(p, g)
    return p, g


def _check_finite(*values: Floats) -> None:
    if not all(np.isfinite(value).all() for value in values):
        raise ValueError("paths must be finite numbers")


def _checked_delta(delta: int) -> int:
    if isinstance(delta, bool) or not isinstance(delta, (int, np.integer)) or delta < 1:
        raise ValueError(f"delta must be a whole number of at least 1, got {delta!r}")
    return int(delta)


def _rms(errors: Floats) -> Any:
    return np.sqrt(np.square(errors).mean(-1))
