"""What could be known of a view: the observed frames with their true depth and poses, brought to the view without a model.

`covered` is geometry: which share of a view's pixels show a surface that some observed frame showed. `splat` is a frame: every observed
pixel is a coloured point that is drawn into the view, nearer points over farther ones. What no observed frame showed has the mean colour
that observed frames have at its height in the image, such as sky above and ground below.

Pixels without a surface are points very far away.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wmgym.benchmarks.rollout import Walk
from wmgym.data.depth import DepthCamera, project, unproject

SKY = 1e4  # metres: depth of a pixel without a surface
NEAR = 0.1  # metres, beside a share of the depth: points that are nearer to each other count as one surface
SHARE = 0.05
LARGEST = 6  # pixels along each side of a drawn point


def covered(walk: Walk) -> NDArray[np.float64]:
    """Share of the pixels of each frame of the leg whose surface was observed before the leg: [L].

    A point was observed if it lies in the image of an observed frame, at the depth that this has there: in the 3 x 3 pixels around, since
    the depth of a slanted surface changes from pixel to pixel.
    """
    depth, camera = _depth_of(walk)
    height, width = depth.shape[1:]
    around = np.pad(depth[: walk.split], ((0, 0), (1, 1), (1, 1)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(around, (3, 3), (1, 2))
    low, high = windows.min((-1, -2)) * (1 - SHARE) - NEAR, windows.max((-1, -2)) * (1 + SHARE) + NEAR
    shares = []
    for pose, own in zip(walk.poses[walk.split :], depth[walk.split :], strict=True):
        points = unproject(own, pose, camera).reshape(-1, 3)
        seen = np.zeros(len(points), bool)
        for before, least, most in zip(walk.poses[: walk.split], low, high, strict=True):
            row, column, z = project(points, before, camera, (height, width))
            inside, at = _pixels(row, column, z, height, width)
            seen[inside] |= (z[inside] >= least[at]) & (z[inside] <= most[at])
        shares.append(seen.mean())
    return np.array(shares)


def splat(walk: Walk) -> NDArray[np.uint8]:
    """The leg as observed pixels show it: uint8 [L, H, W, 3]."""
    depth, camera = _depth_of(walk)
    shape = depth.shape[1:]
    seen = slice(0, walk.split)
    points = unproject(depth[seen], walk.poses[seen], camera).reshape(-1, 3)
    colours, source = walk.frames[seen].reshape(-1, 3), depth[seen].reshape(-1)
    unknown = walk.frames[seen].mean((0, 2))[:, None].repeat(shape[1], 1)  # [H, W, 3]
    return np.stack([_draw(points, colours, source, pose, camera, unknown) for pose in walk.poses[walk.split :]])


def _draw(
    points: NDArray[np.float64],
    colours: NDArray[np.uint8],
    source: NDArray[np.float64],
    pose: NDArray[np.float32],
    camera: DepthCamera,
    unknown: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """One view of points [n, 3], each as large as its pixel was, which was seen from `source` [n] metres away.

    Of the points on the nearest surface of a pixel the one that was seen from nearest is drawn: it has the finest colour.
    """
    height, width = unknown.shape[:2]
    row, column, z = project(points, pose, camera, (height, width))
    which = np.flatnonzero((z > NEAR) & (np.abs(row - height / 2) < height) & (np.abs(column - width / 2) < width))
    sides = np.clip(np.ceil(source[which] / z[which]), 1, LARGEST).astype(int)
    drawn, at = [], []
    for side in range(1, LARGEST + 1):
        part = which[sides == side]
        first = [np.rint(x[part] - (side - 1) / 2).astype(int) for x in (row, column)]
        for down in range(side):
            for across in range(side):
                r, c = first[0] + down, first[1] + across
                inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
                drawn.append(part[inside])
                at.append((r * width + c)[inside])
    points_drawn, pixels = np.concatenate(drawn), np.concatenate(at)
    nearest = np.full(height * width, np.inf)
    np.minimum.at(nearest, pixels, z[points_drawn])
    front = z[points_drawn] <= nearest[pixels] * (1 + SHARE) + NEAR
    points_drawn, pixels = points_drawn[front], pixels[front]
    order = np.argsort(-source[points_drawn], kind="stable")  # the last one that is written stays
    picture = unknown.reshape(-1, 3).copy()
    picture[pixels[order]] = colours[points_drawn[order]]
    shown = np.isfinite(nearest).reshape(height, width)
    return _fill_cracks(picture.reshape(height, width, 3), shown).round().astype(np.uint8)


def _fill_cracks(picture: NDArray[np.float64], shown: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Pixels between drawn points get the mean of their drawn neighbours, if at least 5 of 8 are drawn."""
    drawn = np.concatenate([picture * shown[..., None], shown[..., None]], -1)
    sums = np.lib.stride_tricks.sliding_window_view(np.pad(drawn, ((1, 1), (1, 1), (0, 0))), (3, 3), (0, 1)).sum((-1, -2))
    sums, count = sums[..., :3], sums[..., 3]
    crack = ~shown & (count >= 5)
    return np.where(crack[..., None], sums / np.maximum(count, 1)[..., None], picture)


def _pixels(
    row: NDArray[np.float64], column: NDArray[np.float64], z: NDArray[np.float64], height: int, width: int
) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Which points are in the image, and their pixels."""
    inside = np.flatnonzero((z > 0) & (row > -0.5) & (row < height - 0.5) & (column > -0.5) & (column < width - 0.5))
    return inside, (np.rint(row[inside]).astype(int), np.rint(column[inside]).astype(int))


def _depth_of(walk: Walk) -> tuple[NDArray[np.float64], DepthCamera]:
    """Depth of all frames of a walk, with `SKY` where there is no surface, and its camera."""
    if walk.depth is None or walk.camera is None:
        raise ValueError("what could be known is computed from depth images: collect the walks with `wmgym collect --depth`")
    return np.minimum(walk.depth.astype(np.float64), SKY), walk.camera
