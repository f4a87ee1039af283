"""The video network: causal over chunks, cached keys as good as fresh ones, attention that sees relative time and pose alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wmgym.core import Adapters, Condition, Context, ContextKV, KeysValues
from wmgym.geometry import compose, relative_pose
from wmgym.nets.phases import PhaseConfig, place_phases, pose_phases, share_pairs, whole_waves
from wmgym.nets.rope import rotate
from wmgym.nets.two_streams import Stream, _chunked, _masked, two_streams
from wmgym.nets.video_dit import SIZES, VideoDiT, VideoDiTConfig

SHAPE = (3, 4, 4)
CHUNK, WINDOW = 2, 4
FRAMES = CHUNK * WINDOW


def make(*, awake: bool = True, **changed: object) -> VideoDiT:
    """A small network; `awake` moves gates that begin at zero."""
    config = VideoDiTConfig(SHAPE, patch=2, width=64, depth=2, heads=2, chunk=CHUNK, window=WINDOW, extent=20.0)
    net = VideoDiT(replace(config, **changed))  # type: ignore[arg-type]
    if awake:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def walk(rows: int, frames: int) -> Condition:
    """Random steps and turns; the condition of all frames at once."""
    actions, origin = torch.randint(10, (rows, frames)), torch.randn(rows, 5) * torch.tensor([5, 5, 0, 1, 0.1])
    pose, poses = origin, []
    for _ in range(frames):
        pose = compose(pose, torch.randn(rows, 5) * torch.tensor([1, 0.3, 0, 0.5, 0.05]))
        poses.append(pose)
    whole = torch.stack(poses, 1)
    motion = relative_pose(whole, torch.cat([origin[:, None], whole[:, :-1]], 1))
    return Condition(actions, motion, whole, torch.arange(frames).expand(rows, -1), origin, origin)


def part(condition: Condition, chunk: int) -> Condition:
    frames = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
    start = condition.start if chunk == 0 else condition.poses[:, chunk * CHUNK - 1]
    cut = (getattr(condition, name)[:, frames] for name in ("actions", "egomotion", "poses", "times"))
    return Condition(*cut, start, condition.origin)


def remembered(traces: list[tuple[KeysValues, ...]], condition: Condition, now: int) -> Context:
    """All past chunks at their true positions."""
    if not traces:
        return Context()
    layers = tuple(KeysValues(torch.cat([t.keys for t in kv], 1), torch.cat([t.values for t in kv], 1)) for kv in zip(*traces, strict=True))
    frames = layers[0].keys.shape[1]
    offsets = (now * CHUNK - torch.arange(frames)).expand(len(condition.poses), -1)
    return Context(kv=ContextKV(layers, offsets, torch.ones_like(offsets, dtype=torch.bool), condition.poses[:, :frames]))


def streams(rows: int, condition: Condition) -> tuple[Stream, Stream]:
    clean, noisy = torch.randn(2, rows, FRAMES, *SHAPE)
    return Stream(clean, torch.zeros(rows, FRAMES), condition), Stream(noisy, torch.full((rows, FRAMES), 0.6), condition)


def everything(rows: int) -> tuple[Tensor, Tensor]:
    return torch.ones(rows, WINDOW, dtype=torch.bool), torch.ones(rows, FRAMES, dtype=torch.bool)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(a, b, atol=tolerance, rtol=tolerance)


# -- cached and uncached --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pose_rotary", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_chunk_by_chunk_is_the_whole_window(pose_rotary: bool, shared: bool) -> None:
    """Each chunk, made with the cached keys of those before it, equals its part of the training pass; so do the keys that it leaves."""
    net = make(pose_rotary=pose_rotary, shared_modulation=shared)
    condition = walk(2, FRAMES)
    clean, noisy = streams(2, condition)
    with torch.no_grad():
        velocity, kept = two_streams(net, clean, noisy, *everything(2))
        traces: list[tuple[KeysValues, ...]] = []
        for chunk in range(WINDOW):
            frames, here = slice(chunk * CHUNK, (chunk + 1) * CHUNK), part(condition, chunk)
            bound = net.bind(here, (remembered(traces, condition, chunk),))
            assert close(bound(noisy.latents[:, frames], torch.full((2,), 0.6)), velocity[:, frames])
            traces.append(bound.trace(clean.latents[:, frames], here.poses).kv)
            for layer, whole in zip(traces[-1], kept, strict=True):
                assert close(layer.keys, whole.keys[:, frames]) and close(layer.values, whole.values[:, frames])


def test_both_ways_to_attend_agree_whatever_is_hidden() -> None:
    seen, exists = torch.rand(2, FRAMES * 4) < 0.6, torch.rand(2, FRAMES * 4) < 0.8
    exists[:, ::8] = True  # each chunk has a frame
    seen &= exists
    q, k, v = torch.randn(3, 2, 2 * FRAMES * 4, 2, 8)
    for layer in range(3):
        assert close(_chunked(seen, exists, 8, (3, 1, 2))(layer, q, k, v), _masked(seen, exists, 8, (3, 1, 2))(layer, q, k, v))


def test_chunks_see_what_came_before_and_nothing_later() -> None:
    net, condition = make(), walk(1, FRAMES)
    clean, noisy = streams(1, condition)
    velocity, kept = two_streams(net, clean, noisy, *everything(1))
    other = clean.latents.clone()
    other[:, 2 * CHUNK : 3 * CHUNK] += 1
    changed, keys = two_streams(net, replace(clean, latents=other), noisy, *everything(1))
    assert close(changed[:, : 3 * CHUNK], velocity[:, : 3 * CHUNK]), "the noisy chunk does not see its own clean one"
    assert not close(changed[:, 3 * CHUNK :], velocity[:, 3 * CHUNK :], 1e-3)
    assert close(keys[1].keys[:, : 2 * CHUNK], kept[1].keys[:, : 2 * CHUNK])
    assert not close(keys[1].keys[:, 2 * CHUNK :], kept[1].keys[:, 2 * CHUNK :], 1e-3)


def test_hidden_chunks_and_frames_that_do_not_exist_are_no_keys() -> None:
    net, condition = make(), walk(2, FRAMES)
    clean, noisy = streams(2, condition)
    visible, valid = everything(2)
    visible[:, 1], valid[:, 0] = False, False
    velocity, _ = two_streams(net, clean, noisy, visible, valid)
    other = clean.latents.clone()
    other[:, CHUNK : 2 * CHUNK] += 1
    other[:, 0] += 1
    again, _ = two_streams(net, replace(clean, latents=other), noisy, visible, valid)
    assert close(again, velocity)
    lone = noisy.latents.clone()
    lone[:, 0] += 1
    again, _ = two_streams(net, clean, replace(noisy, latents=lone), visible, valid)
    assert close(again[:, 1:], velocity[:, 1:])


def test_rows_are_independent() -> None:
    net, condition = make(), walk(3, FRAMES)
    clean, noisy = streams(3, condition)
    velocity, _ = two_streams(net, clean, noisy, *everything(3))
    pick = lambda stream: Stream(stream.latents[1:2], stream.levels[1:2], Condition(*(getattr(condition, f)[1:2] for f in FIELDS)))  # noqa: E731
    alone, _ = two_streams(net, pick(clean), pick(noisy), *everything(1))
    assert close(alone, velocity[1:2])


FIELDS = ("actions", "egomotion", "poses", "times", "start", "origin")


def test_it_starts_as_zero_and_every_part_has_a_gradient() -> None:
    net, condition = make(awake=False), walk(2, FRAMES)
    clean, noisy = streams(2, condition)
    assert not two_streams(net, clean, noisy, *everything(2))[0].any()
    net = make()
    two_streams(net, clean, noisy, *everything(2))[0].square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("size", "millions"), [("MICRO", 2.24), ("TINY", 8.4), ("S", 33), ("B", 130)])
def test_sizes(size: str, millions: float) -> None:
    with torch.device("meta"):
        net = VideoDiT(VideoDiTConfig(**SIZES[size]))  # type: ignore[arg-type]
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=0.1)


# -- phases ---------------------------------------------------------------------------------------------------------------------------

CONFIG = PhaseConfig(share_pairs(32, pose=True), (8, 8), math.radians(75), 1.0, 64.0)


def logits(a: Tensor, b: Tensor, origin: Tensor) -> Tensor:
    """Scores between tokens of two frames [1, 1, 5] under their pose phases, of fixed random vectors."""
    torch.manual_seed(1)
    q, k = torch.randn(2, 64, 32)
    x, y = (pose_phases(pose, origin, CONFIG)[0, 0] for pose in (a, b))
    return rotate(q, x.cos(), x.sin()) @ rotate(k, y.cos(), y.sin()).T


def pose(*numbers: float) -> Tensor:
    return torch.tensor([[numbers]])


def test_pairs_are_shared_as_the_design_has_it() -> None:
    pairs = share_pairs(32, pose=True)
    assert (pairs.time, pairs.row, pairs.column) == (8, 4, 4)
    assert pairs.azimuth + pairs.elevation == 10 and 2 * pairs.eye == 6 and pairs.total == 32
    paper = share_pairs(64, pose=False)
    assert paper.total == 64 and abs(paper.time - 22) <= 2 and paper.row == paper.column
    for count in range(8, 65):
        assert share_pairs(count, pose=True).total == share_pairs(count, pose=False).total == count
    with pytest.raises(ValueError, match="at least 16 dimensions, got 8"):
        share_pairs(4, pose=True)


@pytest.mark.parametrize(("count", "highest"), [(7, 19), (3, 19), (1, 5), (5, 3), (10, 12), (2, 2)])
def test_whole_waves_differ_and_reach_the_highest(count: int, highest: int) -> None:
    waves = whole_waves(count, highest)
    assert len(set(waves)) == count and list(waves) == sorted(waves) and waves[0] == 1
    assert waves[-1] == max(count, highest) or count == 1


def test_the_highest_wave_resolves_about_one_token() -> None:
    assert CONFIG.highest_wave == round(math.pi / (math.radians(75) / 8))


def test_a_whole_turn_changes_nothing() -> None:
    origin = torch.zeros(1, 5)
    here, there = pose(1, 2, 0, 0.4, 0.1), pose(-1, 0.5, 0, 2.0, -0.2)
    turned = there + torch.tensor([0, 0, 0, 2 * math.pi, 0])
    assert close(logits(here, turned, origin), logits(here, there, origin), 1e-4)


def test_a_view_across_the_seam_is_the_same_view_elsewhere() -> None:
    """The same relative pose at headings about 0 and about pi; the eye stays, since its place is told in world axes."""
    origin = torch.zeros(1, 5)
    plain = logits(pose(0, 0, 0, 0.3, 0.1), pose(0, 0, 0, -0.2, 0), origin)
    across = logits(pose(0, 0, 0, 0.3 + math.pi, 0.1), pose(0, 0, 0, -0.2 + math.pi, 0), origin)
    assert close(plain, across, 1e-4)
    assert not close(plain, logits(pose(0, 0, 0, 0.3, 0.1), pose(0, 0, 0, 0.4, 0), origin), 1e-2)


def test_where_the_world_begins_changes_nothing() -> None:
    a, b = pose(3, -2, 0, 1.0, 0), pose(5, 1, 0, 0.2, 0)
    shift = torch.tensor([700.0, -300.0, 0, 0, 0])
    plain, moved = logits(a, b, torch.zeros(1, 5)), logits(a + shift, b + shift, shift[None])
    assert close(plain, moved, 1e-2) and close(plain, logits(a, b, pose(3, 3, 0, 0, 0)[0]), 1e-3)


def test_attention_sees_relative_time_alone() -> None:
    q, k = torch.randn(2, 64, 32)

    def score(now: int, then: int) -> Tensor:
        x, y = (place_phases(torch.tensor([[t]]), CONFIG)[0, 0] for t in (now, then))
        return rotate(q, x.cos(), x.sin()) @ rotate(k, y.cos(), y.sin()).T

    assert close(score(9, 4), score(25, 20), 1e-4) and not close(score(9, 4), score(9, 5), 1e-2)


# -- adapters -------------------------------------------------------------------------------------------------------------------------


def adapters_of(net: VideoDiT, rows: int, rank: int = 3) -> Adapters:
    """Random ones on every linear layer that takes them."""
    layers = {}
    for name, layer in net.named_modules():
        if isinstance(layer, torch.nn.Linear) and not name.startswith(("noise_embed", "action_embed", "motion_embed")):
            layers[name] = (0.3 * torch.randn(rows, rank, layer.in_features), 0.3 * torch.randn(rows, layer.out_features, rank))
    return Adapters(layers, torch.zeros(rows, dtype=torch.int64))


@pytest.mark.parametrize("shared", [True, False])
def test_each_row_runs_with_its_own_adapters(shared: bool) -> None:
    """As if they had been added to the weights, row by row."""
    net = make(shared_modulation=shared)
    condition, x, level = part(walk(2, FRAMES), 0), torch.randn(2, CHUNK, *SHAPE), torch.tensor([0.3, 0.8])
    adapters = adapters_of(net, 2)
    with torch.no_grad():
        together = net.bind(condition, (Context(adapters=adapters),))(x, level)
        for row in range(2):
            merged = make(shared_modulation=shared)
            state = net.state_dict()
            for name, (down, up) in adapters.layers.items():
                state[f"{name}.weight"] = state[f"{name}.weight"] + up[row] @ down[row]
            merged.load_state_dict(state)
            own = Condition(*(getattr(condition, f)[row : row + 1] for f in FIELDS))
            alone = merged.bind(own, (Context(),))(x[row : row + 1], level[row : row + 1])
            assert close(alone, together[row : row + 1], 1e-4)


def test_what_it_cannot_read_is_refused() -> None:
    net, condition = make(), part(walk(1, FRAMES), 0)
    traces = [net.bind(condition, (Context(),)).trace(torch.randn(1, CHUNK, *SHAPE), condition.poses).kv]
    kv = remembered(traces, walk(1, FRAMES), 1).kv
    assert kv is not None
    with pytest.raises(ValueError, match=r"ContextKV\.poses is None"):
        net.bind(condition, (Context(kv=replace(kv, poses=None)),))
    with pytest.raises(ValueError, match="2 memories of one world give kv"):
        net.bind(condition, (Context(kv=kv), Context(kv=kv)))
    for changed, message in (
        ({"window": 0}, "window must be positive, got 0"),
        ({"patch": 3}, "patch 3 does not divide"),
        ({"context_level": 1.0}, r"context_level must be in \[0, 1\), got 1.0"),
        ({"heads": 5}, "multiple of 2 \\* heads = 10"),
        ({"heads": 8}, "at least 16 dimensions, got 8"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**changed)
