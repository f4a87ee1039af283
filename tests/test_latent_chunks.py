"""Memory `latents`: chunks stored as latents, whose keys are computed anew where they are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from standins import clip
from torch import Tensor

import wmgym
from wmgym import rng
from wmgym.checkpoint import load_world, save
from wmgym.core import Condition, Context, ContextFrames, Query, Seen
from wmgym.geometry import step_back
from wmgym.memory.latent_chunks import LatentChunks
from wmgym.nets.autoencoder import AutoencoderConfig
from wmgym.nets.video_dit import VideoDiT, VideoDiTConfig
from wmgym.systems import video
from wmgym.world_model import SamplerConfig

F, L = 4, 8
CODER = AutoencoderConfig(kind="pixels", factor=8, frame_size=16)
NET = VideoDiTConfig(CODER.latent_shape, width=32, depth=2, heads=2, chunk=F, window=L, num_actions=10)


def frames(rows: int, first: int, count: int) -> Seen:
    """Frames `first` to `first + count - 1`, which all look ahead from near the origin; the latents are their times."""
    times = torch.arange(first, first + count).expand(rows, count)
    poses = torch.zeros(rows, count, 5)
    poses[..., 3] = 0.01 * times
    there = torch.ones(rows, count, dtype=torch.bool)
    latents = times[..., None, None, None].float().expand(rows, count, *NET.latent_shape)
    return Seen(latents, poses, times, times % 10, torch.zeros(rows, count, 5), there, there)


def read(held: LatentChunks, state: Any, now: int) -> ContextFrames:
    times = torch.arange(now, now + F)[None]
    (group,) = held.read(state, Query(torch.zeros(1, F, 5), times)).frames
    return group


def begun(**changed: int) -> tuple[LatentChunks, Any]:
    held = LatentChunks(NET.latent_shape, F, **{"budget": 256, **changed})
    return held, held.init(1, rng.make_keys([0]))


@pytest.mark.parametrize("count", [1, 3, 4, 9, 10, 28])
def test_what_fits_is_read_whole_at_its_true_distance(count: int) -> None:
    """Also an oldest chunk of which only the end exists."""
    held, state = begun()
    group = read(held, held.write(state, frames(1, 0, count)), count)
    shown = {int(t): int(o) for t, o, v in zip(group.times[0], group.offsets[0], group.valid[0], strict=True) if v}
    assert shown == {t: count - t for t in range(count)}
    for t, latent, valid in zip(group.times[0], group.latents[0], group.valid[0], strict=True):
        assert not valid or float(latent.mean()) == float(t)


def test_chunks_are_whole_and_ranked_after_an_odd_number_of_frames() -> None:
    """Whatever was observed in between: 7 chunks of 4 successive frames, counted back from the newest, at ranks in the trained range."""
    held, state = begun()
    state = held.write(held.write(held.write(state, frames(1, 0, 17)), frames(1, 17, 3)), frames(1, 20, 40))
    group = read(held, state, 60)
    times = group.times.view(-1, F)
    assert group.valid.all() and (times.diff(dim=1) == 1).all() and ((59 - times[:, -1]) % F == 0).all()
    assert len(set(times[:, 0].tolist())) == L - 1
    assert sorted(group.offsets.flatten().tolist()) == list(range(1, (L - 1) * F + 1))
    newer = times[:, -1].argsort(descending=True)
    assert (group.offsets.view(-1, F)[newer, -1].diff() == F).all(), "ranks follow time"


def test_the_budget_is_refused_below_what_is_read_and_kept_above() -> None:
    with pytest.raises(ValueError, match=r"memory_budget must be at least the 28 frames .* got 27"):
        begun(budget=27)
    held, state = begun(budget=32)
    for first in range(0, 100, F):
        state = held.write(state, frames(1, first, F))
    assert held.footprint(state).frames.tolist() == [32]
    group = read(held, state, 100)
    assert group.times[group.valid].min() >= 100 - 32


def network() -> VideoDiT:
    torch.manual_seed(3)
    net = VideoDiT(NET).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return net


def random_frames(rows: int, count: int) -> ContextFrames:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(rows, count, *shape, generator=generator)

    times = torch.arange(count).expand(rows, count)
    there = torch.ones(rows, count, dtype=torch.bool)
    return ContextFrames(random(*NET.latent_shape), count - times, random(5), there, times % 10, random(5), random(5), times)


@torch.no_grad()
def test_keys_computed_anew_are_those_of_each_chunk_alone() -> None:
    """All chunks of all rows in one pass, against a pass for each chunk."""
    net, group = network(), random_frames(2, 3 * F)
    origin = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    kv = net.keys_of(group, origin)
    for number in range(3):
        part = slice(number * F, (number + 1) * F)
        poses, motion = group.poses[:, part], group.egomotion[:, part]
        start = step_back(poses[:, 0], motion[:, 0])
        alone = net.bind(Condition(group.actions[:, part], motion, poses, group.times[:, part], start, origin), ()).trace(
            group.latents[:, part], poses
        )
        for mine, other in zip(kv.layers, alone.kv, strict=True):
            torch.testing.assert_close(mine.keys[:, part], other.keys, rtol=0, atol=1e-5)
            torch.testing.assert_close(mine.values[:, part], other.values, rtol=0, atol=1e-5)


@torch.no_grad()
def test_frames_that_do_not_exist_change_no_key() -> None:
    """Whatever their places hold: latents, and poses from which the first frame would have come by a jump."""
    net, group = network(), random_frames(1, 2 * F)
    group.valid[0, :2] = False
    other = replace(group, latents=group.latents.clone(), poses=group.poses.clone(), egomotion=group.egomotion.clone())
    for changed in (other.latents, other.poses, other.egomotion):
        changed[0, :2] += 7
    for mine, theirs in zip(net.keys_of(group, torch.zeros(1, 5)).layers, net.keys_of(other, torch.zeros(1, 5)).layers, strict=True):
        assert torch.equal(mine.keys[:, 2:], theirs.keys[:, 2:]) and torch.equal(mine.values[:, 2:], theirs.values[:, 2:])


@torch.no_grad()
def test_frames_are_read_as_their_keys_would_be() -> None:
    net, group = network(), random_frames(2, 2 * F)
    condition = Condition(
        torch.zeros(2, F, dtype=torch.int64), torch.zeros(2, F, 5), torch.zeros(2, F, 5), group.times[:, :F], *torch.zeros(2, 2, 5)
    )
    x, level = torch.randn(2, F, *NET.latent_shape), torch.full((2,), 0.5)
    as_frames = net.bind(condition, (Context((group,)),))(x, level)
    as_keys = net.bind(condition, (Context(kv=net.keys_of(group, condition.origin)),))(x, level)
    assert torch.equal(as_frames, as_keys) and not torch.equal(as_frames, net.bind(condition, ())(x, level))
    with pytest.raises(ValueError, match="2 memories of one world give kv"):
        net.bind(condition, (Context((group,), kv=net.keys_of(group, condition.origin)),))


def test_it_dreams_as_memory_pose_where_no_chunk_has_a_past_and_retrieves_the_same(tmp_path: Any) -> None:
    """After an opening of one chunk both read the same keys. After a long one both choose the same chunks."""
    config = replace(video.preset("MICRO", autoencoder=CODER), net=NET, pose_source="actions", sampler=SamplerConfig("euler", 2))
    model = video.build(config)
    model.net.load_state_dict(network().state_dict())
    save(tmp_path / "video.safetensors", model.eval(), config)
    seen = {}
    for memory in ("pose", "latents"):
        world = load_world(str(tmp_path / "video.safetensors"), system="worldtrace", memory=memory, device="cpu", dtype="float32")
        env = wmgym.make_env(world, "free", setting="minecraft", opening=clip(F))
        env.reset(seed=0)
        _, _, _, _, info = env.step(np.ones(F, np.int64))
        env.reset(seed=0, options={"opening": clip(12 * F)})
        _, _, _, _, later = env.step(np.ones(F, np.int64))
        seen[memory] = info["frames"], later["memory_retrieved"]
    assert np.abs(seen["pose"][0].astype(int) - seen["latents"][0]).max() <= 1
    np.testing.assert_array_equal(seen["pose"][1], seen["latents"][1])
    assert (seen["latents"][1] >= 0).any()
