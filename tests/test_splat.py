"""Points with features: placed where depth says, drawn within a pixel of where they are, and hidden behind what is nearer."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from wmgym.core import ContextFrames
from wmgym.data.depth import DepthCamera, unproject
from wmgym.geometry import compose
from wmgym.nets.echo import FARTHEST, DepthHead, drawn
from wmgym.nets.splat import View, eyes, place, project, render
from wmgym.nets.video_dit import VideoDiTConfig

CAMERA = DepthCamera(math.radians(75), (0.15, 0.02, 0.9), -math.atan(0.1))
TOLD = torch.tensor([*CAMERA.eye, CAMERA.tilt])
VIEW = View(CAMERA.field_of_view)
ROOM = (torch.tensor([-6.0, -5, -1]), torch.tensor([7.0, 6, 4]))  # corners of a box, seen from inside


def poses(rows: int, views: int) -> Tensor:
    """Poses near the middle of the room."""
    turns = torch.rand(rows, views, 5) * torch.tensor([2, 2, 0.5, 2 * math.pi, 0.6]) - torch.tensor([1, 1, 0, math.pi, 0.3])
    return compose(torch.zeros(rows, views, 5), turns)


def room(at: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Exact depth [..., h, w] of the room at poses [..., 5], and the points that are seen [..., h, w, 3]."""
    eye = eyes(at, TOLD)[0][..., None, None, :]
    rays = place(torch.ones(*at.shape[:-1], size, size), at, TOLD, VIEW) - eye  # of depth 1
    far = torch.where(rays > 0, (ROOM[1] - eye) / rays, (ROOM[0] - eye) / rays).amin(-1)
    return far, eye + far[..., None] * rays


def test_points_are_those_of_the_episodes_depth_images() -> None:
    at, depth = poses(2, 3), 1 + 5 * torch.rand(2, 3, 6, 6)
    expected = unproject(depth.numpy(), at.numpy(), CAMERA)
    np.testing.assert_allclose(place(depth, at, TOLD, VIEW).numpy(), expected, atol=1e-5)


def test_a_points_projection_into_its_own_view_is_its_cell() -> None:
    at, depth = poses(2, 1), 0.5 + 9 * torch.rand(2, 1, 5, 7)
    view = View(CAMERA.field_of_view, 7 / 5)
    where, found = project(place(depth, at, TOLD, view).flatten(1, 3), at, TOLD, view, (5, 7))
    rows, columns = torch.meshgrid(torch.arange(5) + 0.5, torch.arange(7) + 0.5, indexing="ij")
    expected = torch.stack([rows, columns], -1).flatten(0, 1).expand(2, 1, -1, -1)
    torch.testing.assert_close(where, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(found[:, 0], depth.flatten(1), atol=1e-4, rtol=1e-5)


def test_exact_depth_reprojects_a_static_scene_to_within_a_pixel() -> None:
    """Points of 12 views of a room, drawn into another: each pixel shows what is there in truth, no further away than a pixel."""
    torch.manual_seed(0)
    size, sources = 48, poses(1, 12)
    target = compose(sources[:, :2], torch.tensor([0.4, -0.3, 0.1, 0.3, 0.1]))
    _, points = room(sources, size)
    flat = points.flatten(1, 3)
    shown, there = render(flat, flat, torch.ones(flat.shape[:2], dtype=torch.bool), target, TOLD, VIEW, (size, size))
    assert there.float().mean() > 0.9
    _, truth = room(target, size)
    drawn_at = shown.permute(0, 1, 3, 4, 2)
    rows, columns = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    for k in range(2):
        where, _ = project(drawn_at[:, k].flatten(1, 2), target[:, k : k + 1], TOLD, VIEW, (size, size))
        off = (where[0, 0].view(size, size, 2) - torch.stack([rows, columns], -1)).abs().amax(-1)[there[0, k]]
        assert off.max() < 1.0
        apart = (drawn_at[0, k] - truth[0, k]).norm(dim=-1)[there[0, k]]
        pixel = 2 * math.tan(VIEW.field_of_view / 2) / size * room(target, size)[0][0, k][there[0, k]]
        assert (apart < 4 * pixel).float().mean() > 0.98  # seen at a slant, a pixel covers more of a wall


def test_what_is_nearer_hides_what_is_behind() -> None:
    at, size = torch.zeros(1, 1, 5), 8
    near, far = (place(torch.full((1, 1, size, size), d), at, TOLD, VIEW).flatten(1, 3) for d in (2.0, 5.0))
    features = torch.cat([torch.ones(1, 64, 1), -torch.ones(1, 64, 1)], 1)
    half = torch.arange(64) % size < 4  # the nearer wall covers the left half
    exists = torch.cat([half, torch.ones(64, dtype=torch.bool)])[None]
    shown, there = render(torch.cat([near, far], 1), features, exists, at, TOLD, VIEW, (size, size))
    assert there.all()
    assert torch.equal(shown[0, 0, 0], torch.where(torch.arange(size) < 4, 1.0, -1.0).expand(size, -1))
    behind = torch.tensor([[[0.0, 0, 0, math.pi, 0]]])
    assert not render(near, features[:, :64], exists[:, 64:], behind, TOLD, VIEW, (size, size))[1].any()


def test_rows_and_frames_that_do_not_exist() -> None:
    config = VideoDiTConfig((3, 6, 6), field_of_view=VIEW.field_of_view)
    at, views = poses(2, 4), poses(2, 2)
    depth, _ = room(at, 6)
    blank = torch.zeros(2, 4)
    frames = ContextFrames(torch.randn(2, 4, 3, 6, 6), blank, torch.zeros(2, 4, 5), blank == 0, blank, torch.zeros(2, 4, 5), at, blank)
    shown, there = drawn(frames, depth, views, TOLD, config)
    names = ("latents", "offsets", "relative", "valid", "actions", "egomotion", "poses", "times")
    one = ContextFrames(*(getattr(frames, name)[1:] for name in names))
    alone, own = drawn(one, depth[1:], views[1:], TOLD, config)
    assert torch.equal(own, there[1:]) and torch.allclose(alone, shown[1:], atol=1e-6)
    nothing, covered = drawn(replace(frames, valid=blank > 0), depth, views, TOLD, config)
    assert not covered.any() and not nothing.any()


def test_the_depth_head_learns_depth_and_nothing_is_far() -> None:
    torch.manual_seed(0)
    head, latents = DepthHead(3), torch.randn(32, 3, 4, 4)
    depth = torch.where(latents[:, 0] > 1, torch.inf, (2 + latents[:, 0]).exp())
    assert torch.allclose(head(latents), torch.tensor(math.e))
    adam = torch.optim.Adam(head.parameters(), 1e-2)
    before = float(head.loss(latents, depth).detach())
    for _ in range(100):
        adam.zero_grad()
        head.loss(latents, depth).backward()
        adam.step()
    assert float(head.loss(latents, depth).detach()) < before / 4
    assert float(head(latents).detach()[depth.isinf()].median()) == pytest.approx(FARTHEST, rel=0.3)
