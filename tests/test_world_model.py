"""A running world is a value: it begins, sees and dreams the same whichever way it came there; and it can learn."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from kv_standin import SlidingWindow
from torch import Tensor

from wmgym import rng, tree
from wmgym.core import Clip, Context, ContextFrames, Footprint, FramePayload, Query, Seen, WorldState
from wmgym.data.latents import Latents
from wmgym.geometry import compose
from wmgym.memory.bank import recorded
from wmgym.memory.retrieval import RetrievalConfig
from wmgym.nets.autoencoder import Autoencoder, AutoencoderConfig, to_float, to_uint8
from wmgym.nets.cdit import CDiTConfig
from wmgym.nets.heads import HeadConfig, MotionHead, RewardHead
from wmgym.settings import minecraft
from wmgym.settings.minecraft import WALK
from wmgym.systems.worldpack import LAYOUTS, WorldPackConfig, build, preset
from wmgym.train.loop import draw
from wmgym.train.worldpack import draw_batch
from wmgym.train.worldpack_loss import Batch, Perturbation, hide_recent, losses
from wmgym.tree import Shared, Slots
from wmgym.world_model import SamplerConfig, WorldModel

SIDE = 8
BUDGET = 24
MODES = tuple(LAYOUTS)
KV = "keys and values"
FORWARD, LEFT, RIGHT = 1, 6, 7
MOVES = minecraft.SETTING.kinematics


def make(memory: str = "worldpack", *, chunk: int = 1, awake: bool = True, pose_source: str = "learned", depth: int = 2) -> WorldModel:
    """A small world over folded pixels; awake: with no weight at zero, as after training."""
    torch.manual_seed(1)
    coder = AutoencoderConfig(kind="pixels", factor=4, frame_size=SIDE)
    net = CDiTConfig(latent_shape=coder.latent_shape, width=32, depth=depth, heads=2, chunk=chunk)
    mode = memory if memory in LAYOUTS else "none"
    config = WorldPackConfig(
        memory=mode, memory_budget=BUDGET, pose_source=pose_source, autoencoder=coder, net=net, sampler=SamplerConfig(denoise_steps=2)
    )
    model = build(config)
    if memory == KV:
        model = model.with_settings(memories=(SlidingWindow(BUDGET, depth, 4, 2, 16),))
    if awake:
        with torch.no_grad():
            for parameter in (*model.net.parameters(), *model.motion_head.parameters()):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def clip(rows: int, frames: int, seed: int = 0) -> Clip:
    """A random walk, with pictures of noise."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randint(10, (rows, frames), generator=generator)
    pose, poses = torch.zeros(rows, 5), []
    for t in range(frames):
        pose = compose(pose, MOVES.motion(actions[:, t]))
        poses.append(pose)
    pixels = torch.randint(0, 256, (rows, frames, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    return Clip(pixels, actions, torch.stack(poses, 1), torch.ones(rows, frames, dtype=torch.bool))


def part(seen: Clip, first: int, last: int | None = None) -> Clip:
    return Clip(*(x[:, first:last] for x in (seen.frames, seen.actions, seen.poses, seen.valid)))


def keys(*seeds: int) -> Tensor:
    return rng.make_keys(list(seeds))


def walk(model: WorldModel, state: WorldState, steps: int, seed: int = 5) -> list[tuple[WorldState, Any]]:
    actions = torch.randint(10, (len(state.times), steps, model.chunk), generator=torch.Generator().manual_seed(seed))
    out = []
    for t in range(steps):
        state, frames = model.step(state, actions[:, t])
        out.append((state, frames))
    return out


def held(value: Any, row: int) -> list[int]:
    """Times that a row of a memory holds, sorted."""
    times = value.times.values if isinstance(value.times, Slots) else value.times
    return sorted(t for t in times[row].tolist() if t >= 0)


def copies(value: Any) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in tree.leaves(value).items()}


def assert_unchanged(value: Any, before: dict[str, Any]) -> None:
    for path, now in tree.leaves(value).items():
        assert torch.equal(now, before[path]) if isinstance(now, Tensor) else now == before[path], path


def assert_same_dream(a: list[tuple[WorldState, Any]], b: list[tuple[WorldState, Any]], rows: slice = slice(None)) -> None:
    """Frames within one grey level, poses and decisions the same; `rows` of b."""
    for (one, seen), (other, shown) in zip(a, b, strict=True):
        assert torch.allclose(one.latents.float(), other.latents[rows].float(), atol=2e-4, rtol=1e-4)
        assert (seen.pixels.int() - shown.pixels[rows].int()).abs().max() <= 1
        assert torch.allclose(seen.poses, shown.poses[rows], atol=1e-4)
        assert torch.equal(one.retrieval.indices, other.retrieval.indices[rows]) and torch.equal(one.times, other.times[rows])
        assert torch.equal(one.keys, other.keys[rows])
        assert torch.equal(one.footprint.frames, other.footprint.frames[rows])


WORLDS = [*((mode, 1) for mode in MODES), (KV, 1), (KV, 2)]


# -- two ways to the same place -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("memory", "chunk"), WORLDS)
@pytest.mark.parametrize("later", [[4], [2, 10, 30]])
def test_beginning_with_more_frames_is_beginning_and_then_observing_them(memory: str, chunk: int, later: list[int]) -> None:
    model = make(memory, chunk=chunk)
    seen = clip(2, 6 + sum(later))
    at_once = model.start(seen, keys(3, 4))
    state, at = model.start(part(seen, 0, 6), keys(3, 4)), 6
    for count in later:
        state, at = model.observe(state, part(seen, at, at + count)), at + count
    assert torch.equal(state.latents, at_once.latents) and torch.equal(state.poses, seen.poses[:, -1])
    assert state.times.tolist() == at_once.times.tolist() == [at - 1] * 2
    assert_same_dream(walk(model, state, 3), walk(model, at_once, 3))


@pytest.mark.parametrize(("memory", "chunk"), WORLDS)
def test_every_lane_dreams_as_it_would_alone(memory: str, chunk: int) -> None:
    model, seen, seeds = make(memory, chunk=chunk), clip(4, 12), (7, 8, 9, 7)
    together = walk(model, model.start(seen, keys(*seeds)), 6)
    for row in range(4):
        state = model.start(tree.select(seen, torch.tensor([row])), keys(seeds[row]))
        alone = []
        actions = torch.randint(10, (4, 6, chunk), generator=torch.Generator().manual_seed(5))[row : row + 1]
        for t in range(6):
            state, frames = model.step(state, actions[:, t])
            alone.append((state, frames))
        assert_same_dream(alone, together, slice(row, row + 1))


@pytest.mark.parametrize(("memory", "chunk"), WORLDS)
def test_rows_shorter_than_the_batch_are_rows_of_their_own_length(memory: str, chunk: int) -> None:
    """Frames of padding, whatever they show, leave no trace."""
    model, seen = make(memory, chunk=chunk), clip(3, 13)
    lengths = (13, 6, 1)
    valid = torch.arange(13) >= 13 - torch.tensor(lengths)[:, None]
    together = walk(model, model.start(replace(seen, valid=valid), keys(1, 2, 3)), 3)
    actions = torch.randint(10, (3, 3, chunk), generator=torch.Generator().manual_seed(5))
    for row, length in enumerate(lengths):
        state = model.start(part(tree.select(seen, torch.tensor([row])), 13 - length), keys(row + 1))
        assert state.times.tolist() == [length - 1]
        alone = []
        for t in range(3):
            state, frames = model.step(state, actions[row : row + 1, t])
            alone.append((state, frames))
        assert_same_dream(alone, together, slice(row, row + 1))


def test_long_contexts_are_encoded_in_pieces_without_a_seam() -> None:
    model, seen = make("none"), clip(1, 300)
    assert torch.equal(model.encode(seen.frames)[0], model.autoencoder.encode(seen.frames[0]))
    assert model.start(seen, keys(0)).footprint.frames.tolist() == [BUDGET]


# -- a world is a value ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("memory", "chunk"), WORLDS)
def test_nothing_that_was_given_is_edited(memory: str, chunk: int) -> None:
    model, seen = make(memory, chunk=chunk), clip(2, 40)
    before_clip = copies(seen)
    state = model.start(seen, keys(1, 2))
    assert_unchanged(seen, before_clip)
    for _ in range(3):
        before = copies(state)
        first = model.step(state, torch.ones(2, chunk, dtype=torch.int64))
        model.observe(state, part(seen, 0, 4))
        assert_unchanged(state, before)
        again = model.step(state, torch.ones(2, chunk, dtype=torch.int64))
        assert_unchanged(again, copies(first))
        state = first[0]


def test_the_same_keys_dream_the_same_bit_for_bit_and_others_do_not() -> None:
    model, seen = make(), clip(2, 8)
    one, same, other = (walk(model, model.start(seen, k), 3) for k in (keys(1, 2), keys(1, 2), keys(1, 3)))
    for (_, a), (_, b), (_, c) in zip(one, same, other, strict=True):
        assert torch.equal(a.pixels, b.pixels) and torch.equal(a.poses, b.poses)
        assert torch.equal(a.pixels[0], c.pixels[0]) and not torch.equal(a.pixels[1], c.pixels[1])
    assert len({tuple(state.keys[0].tolist()) for state, _ in one}) == 3


@pytest.mark.parametrize(("memory", "chunk"), WORLDS)
def test_branches_of_a_moment_are_worlds_of_their_own(memory: str, chunk: int) -> None:
    """A branch that is given other actions leaves its siblings where they would have been."""
    model = make(memory, chunk=chunk)
    trunk = model.start(clip(1, 30), keys(4))
    alone = walk(model, trunk, 4)
    branches = tree.repeat(trunk, 3)
    actions = torch.randint(10, (1, 4, chunk), generator=torch.Generator().manual_seed(5))
    mixed = []
    for t in range(4):
        given = torch.cat([(actions[:, t] + 3) % 10, actions[:, t], (actions[:, t] + 7) % 10])
        branches, frames = model.step(branches, given)
        mixed.append((branches, frames))
    assert_same_dream(alone, mixed, slice(1, 2))
    assert not torch.equal(mixed[-1][1].poses[0], mixed[-1][1].poses[1])


# -- memory ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("memory", "remembers"), [("none", False), ("packing", True), ("worldpack", True)])
def test_four_recent_frames_are_all_that_a_world_without_memory_knows(memory: str, remembers: bool) -> None:
    model, seen = make(memory), clip(1, 18)
    other = replace(seen, frames=torch.cat([clip(1, 14, seed=8).frames, seen.frames[:, 14:]], 1))
    a, b = (walk(model, model.start(c, keys(2)), 1)[0][0].latents for c in (seen, other))
    assert torch.equal(a, b) != remembers


def test_beyond_its_budget_a_world_forgets() -> None:
    model, seen = make("worldpack"), clip(1, BUDGET + 6)
    still = replace(seen, poses=torch.zeros_like(seen.poses))  # every frame is as good as any other
    forgotten, kept = (replace(still, frames=still.frames.clone()) for _ in range(2))
    forgotten.frames[:, :6] = 0
    kept.frames[:, 6:] = 0
    a, b, c = (walk(model, model.start(x, keys(2)), 1)[0][0].latents for x in (still, forgotten, kept))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("frames", [1, 2, 5, 6])
def test_a_chunk_of_frames_and_their_keys_go_all_the_way(frames: int) -> None:
    """Chunks of two with a memory of keys and values: every frame seen or dreamed is in it, whatever the context's length."""
    model = make(KV, chunk=2)
    state = model.start(clip(2, frames), keys(1, 2))
    assert held(state.memories[0], 0) == list(range(frames))
    for n in (1, 2):
        state, shown = model.step(state, torch.full((2, 2), FORWARD))
        assert shown.pixels.shape == (2, 2, SIDE, SIDE, 3) and shown.poses.shape == (2, 2, 5)
        assert state.times.tolist() == [frames - 1 + 2 * n] * 2
        assert state.latents.shape[1] == 2 and torch.isfinite(state.latents).all()
        assert held(state.memories[0], 0) == list(range(frames + 2 * n))
    assert state.footprint.frames.tolist() == [frames + 4] * 2


def test_what_the_keys_tell_of_the_past_reaches_the_dream() -> None:
    model, seen = make(KV, chunk=2), clip(1, 6)
    other = replace(seen, frames=torch.cat([clip(1, 1, seed=9).frames, seen.frames[:, 1:]], 1))
    a, b = (walk(model, model.start(c, keys(2)), 1)[0][0].latents for c in (seen, other))
    assert not torch.allclose(a, b, atol=1e-4)


def test_two_memories_of_one_world_are_both_written() -> None:
    model = make("worldpack", chunk=2)
    model = model.with_settings(memories=(*model.settings.memories, SlidingWindow(BUDGET, 2, 4, 2, 16)))
    state, _ = walk(model, model.start(clip(2, 30), keys(1, 2)), 2)[-1]
    for value in state.memories:
        assert held(value, 1) == list(range(34 - BUDGET, 34))
    each = [memory.footprint(value) for memory, value in zip(model.settings.memories, state.memories)]
    assert torch.equal(state.footprint.bytes, each[0].bytes + each[1].bytes) and state.footprint.frames.tolist() == [BUDGET] * 2


@dataclass
class Diary:
    """A memory that shows nothing and notes what it is told."""

    needs: frozenset[str]
    num_retrieved: int = 0
    notes: list[Seen] = field(default_factory=list)

    def init(self, batch: int, keys: Tensor) -> Tensor:
        return torch.zeros(batch, dtype=torch.int64)

    def read(self, memory: Tensor, query: Query) -> Context:
        return Context()

    def write(self, memory: Tensor, seen: Seen) -> Tensor:
        self.notes.append(seen)
        return memory + seen.valid.sum(1)

    def footprint(self, memory: Tensor) -> Footprint:
        return Footprint(memory, memory)


@pytest.mark.parametrize("needs", [frozenset(), frozenset({"kv"})])
@pytest.mark.parametrize("chunk", [1, 2])
def test_memories_are_told_the_motion_that_led_to_each_frame_and_whether_it_was_real(chunk: int, needs: frozenset[str]) -> None:
    diary, seen = Diary(needs), clip(2, 6)
    seen = replace(seen, valid=torch.tensor([[True] * 6, [False, False, True, True, True, True]]))
    model = make("none", chunk=chunk).with_settings(memories=(diary,))
    state = model.start(seen, keys(1, 2))
    for _ in range(2):
        state, _ = model.step(state, torch.full((2, chunk), FORWARD))
    state = model.observe(state, part(clip(2, 2, seed=3), 0))
    assert torch.equal(state.origin, seen.poses[:, -1])
    assert all((now.trace is not None and len(now.trace.kv) == 2) == bool(needs) for now in diary.notes)
    for row, real in ((0, 6), (1, 4)):
        parts = [tree.select(now, torch.tensor([row])) for now in diary.notes]
        there = torch.cat([now.valid for now in parts], 1)[0]
        told = {name: torch.cat([getattr(now, name) for now in parts], 1)[0, there] for name in ("poses", "times", "egomotion", "observed")}
        assert told["times"].tolist() == list(range(real + 2 * chunk + 2))
        assert told["observed"].tolist() == [True] * real + [False] * 2 * chunk + [True] * 2
        assert torch.equal(told["poses"][:real], seen.poses[row, -real:]) and not told["egomotion"][0].any()
        arrived = compose(told["poses"][:-1], told["egomotion"][1:])
        assert torch.allclose(arrived[:, :3], told["poses"][1:, :3], atol=1e-4)
        assert torch.allclose(arrived[:, 3:].cos(), told["poses"][1:, 3:].cos(), atol=1e-4)


def test_a_view_with_other_settings_shares_the_weights_and_leaves_the_world_as_it_was() -> None:
    model = make("worldpack")
    before, memories = model.settings, make("none").settings.memories
    view = model.with_settings(memories=memories, sampler=SamplerConfig("heun", 3))
    assert model.settings is before and view.settings.memories is memories and view.settings.pose_source == before.pose_source
    assert view.net is model.net and view.autoencoder is model.autoencoder and view.motion_head is model.motion_head
    state = view.start(clip(1, 30), keys(1))
    assert len(view.read(state.memories, view.query(state.poses, torch.zeros(1, 1, 5), state.times))[0].frames) == 1


# -- pose, reward and pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3])
def test_poses_from_actions_are_the_kinematics_exactly(chunk: int) -> None:
    model, seen = make(KV if chunk > 1 else "none", chunk=chunk, pose_source="actions"), clip(2, 4)
    state = model.start(seen, keys(1, 2))
    actions = torch.randint(10, (2, 5, chunk))
    pose = seen.poses[:, -1]
    for t in range(5):
        state, frames = model.step(state, actions[:, t])
        for f in range(chunk):
            pose = compose(pose, MOVES.motion(actions[:, t, f]))
            assert torch.equal(frames.poses[:, f], pose)
        assert torch.equal(state.poses, pose)


def test_the_head_corrects_where_one_stands_and_never_where_one_looks() -> None:
    model, seen = make("none"), clip(1, 4)
    with torch.no_grad():
        model.motion_head.pair.exit[-1].weight.zero_()
        model.motion_head.pair.exit[-1].bias.copy_(torch.tensor([-WALK, 0.5, 0.25, 9.0, 9.0]))
    _, frames = model.step(model.start(replace(seen, poses=torch.zeros_like(seen.poses)), keys(1)), torch.tensor([[FORWARD]]))
    assert frames.poses[0, 0].tolist() == pytest.approx([0, 0.5, 0.25, 0, 0], abs=1e-6)


def test_given_poses_are_believed() -> None:
    model, seen = make(), clip(1, 5)
    state, _ = walk(model, model.start(seen, keys(1)), 2)[-1]
    where = torch.tensor([[[30.0, -4.0, 2.0, 1.0, 0.5]]])
    state = model.observe(state, replace(part(seen, 0, 1), poses=where))
    assert torch.equal(state.poses, where[:, 0]) and state.times.tolist() == [7]


def test_rewards_and_ends_are_read_from_the_pixels_of_each_frame() -> None:
    model = make(KV, chunk=2)
    _, frames = model.step(model.start(clip(2, 4), keys(1, 2)), torch.ones(2, 2, dtype=torch.int64))
    assert frames.rewards is None and frames.ends is None
    head = RewardHead(HeadConfig(model.net.config.latent_shape), ((0.0, False), (1.0, False), (5.0, True)))
    head.pair.exit[-1].bias.data.copy_(torch.tensor([0.0, 1.0, 2.0]))
    model.reward_head = head.requires_grad_(False)
    _, frames = model.step(model.start(clip(2, 4), keys(1, 2)), torch.ones(2, 2, dtype=torch.int64))
    assert frames.rewards is not None and frames.ends is not None
    assert frames.rewards.tolist() == [[5.0, 5.0]] * 2 and frames.ends.tolist() == [[True, True]] * 2


def test_the_reward_heads_loss_is_the_cross_entropy_of_its_outcomes() -> None:
    head = RewardHead(HeadConfig((3, 4, 4))).requires_grad_(False)
    before, after, actions = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4), torch.zeros(3, dtype=torch.int64)
    outcomes = torch.tensor([0, 1, 0])
    assert float(head.loss(before, after, actions, outcomes)) == pytest.approx(math.log(2))
    head.log_prior.copy_(torch.tensor([0.0, -9.0]))  # how rare a reward is does not matter to a balanced batch
    head.pair.exit[-1].bias.data.copy_(torch.tensor([0.0, math.log(3)]))  # odds of 1 : 3
    assert float(head.loss(before, after, actions, outcomes)) == pytest.approx((2 * math.log(4) + math.log(4 / 3)) / 3, rel=1e-5)


def test_pixel_patches_lose_nothing() -> None:
    coder = Autoencoder(AutoencoderConfig(kind="pixels", factor=4, frame_size=16))
    coder.mean.uniform_(-1, 1)
    coder.std.uniform_(0.5, 2)
    frames = torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8)
    latents = coder.encode(frames)
    assert latents.shape == (2, 3, *coder.config.latent_shape)
    assert torch.equal(to_uint8(coder.decode(latents)), frames)


def test_every_grey_level_survives_the_floats() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1).expand(1, 1, 256, 3)
    images = to_float(levels)
    assert images.shape == (1, 3, 1, 256) and images.min() == -1 and images.max() == 1
    assert torch.equal(to_uint8(images), levels)
    assert to_uint8(torch.tensor([[[-3.0]], [[0.0]], [[3.0]]])).tolist() == [[[0, 128, 255]]]


def test_the_convolutional_autoencoder_keeps_shapes_and_normalises() -> None:
    coder = Autoencoder(AutoencoderConfig(widths=(8, 8), factor=4, channels=5, frame_size=16)).requires_grad_(False)
    frames = torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8)
    raw = coder.encode(frames)
    assert raw.shape == (2, 3, 5, 4, 4) and coder.decode(raw).shape == (2, 3, 3, 16, 16)
    picture = coder.decode(raw)
    coder.mean.copy_(raw.mean((0, 1, 3, 4)))
    coder.std.copy_(raw.transpose(0, 2).flatten(1).std(1))
    latents = coder.encode(frames)
    assert latents.mean((0, 1, 3, 4)).abs().max() < 1e-5
    assert (latents.transpose(0, 2).flatten(1).std(1) - 1).abs().max() < 1e-5
    assert torch.allclose(coder.decode(latents), picture, atol=1e-5)


@pytest.mark.parametrize("memory", ["worldpack", KV])
def test_a_world_in_half_precision_dreams_nearly_the_same(memory: str) -> None:
    model, seen = make(memory, chunk=2 if memory == KV else 1), clip(2, 10)
    exact = walk(model, model.start(seen, keys(1, 2)), 3)
    half = walk(model.to(torch.bfloat16), model.start(seen, keys(1, 2)), 3)
    for (a, _), (b, shown) in zip(exact, half):
        assert shown.poses.dtype == torch.float32
        assert (a.latents - b.latents.float()).norm() < 0.1 * a.latents.norm()


# -- wrong use ------------------------------------------------------------------------------------------------------------------------


def test_wrong_settings_are_named() -> None:
    model = make("none")
    state = model.start(clip(2, 3), keys(1, 2))
    with pytest.raises(ValueError, match=r"\(2, 1\), got \(2, 3\)"):
        model.step(state, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="'dreams'"):
        make(pose_source="dreams")
    with pytest.raises(ValueError, match=r"euler.*'jump'"):
        SamplerConfig("jump")
    with pytest.raises(ValueError, match=r"TINY.*'HUGE'"):
        preset("HUGE")
    with pytest.raises(ValueError, match="num_actions 4"):
        WorldPackConfig(net=CDiTConfig(num_actions=4))
    with pytest.raises(ValueError, match="latent_shape"):
        WorldPackConfig(net=CDiTConfig(latent_shape=(1, 8, 8)))


def test_network_evaluations_are_told() -> None:
    model = make("none")
    for name, steps, spent in (("euler", 3, 3), ("heun", 3, 5)):
        world = model.with_settings(sampler=SamplerConfig(name, steps))
        _, frames = world.step(world.start(clip(1, 2), keys(1)), torch.zeros(1, 1, dtype=torch.int64))
        assert frames.perf["network_evaluations"] == spent


# -- learning -------------------------------------------------------------------------------------------------------------------------


def batch(rows: int, blocked: bool = False) -> Batch:
    """Examples in which one walks forward, or would if nothing stood there."""
    shape = (3 * 16, 2, 2)
    step = torch.zeros(rows, 1, 5)
    step[..., 0] = 0 if blocked else WALK
    stood, there = torch.zeros(rows, 5, 5), torch.ones(rows, 5, dtype=torch.bool)
    past = FramePayload(torch.randn(rows, 5, *shape), torch.zeros(rows, 5, dtype=torch.int64), stood, there)
    memory = recorded(Shared.own(past), stood, torch.arange(5).repeat(rows, 1))
    actions, times = torch.full((rows, 1), FORWARD), torch.full((rows, 1), 5)
    return Batch((memory,), torch.randn(rows, *shape), torch.zeros(rows, 5), actions, torch.randn(rows, 1, *shape), step, times)


def test_the_losses_of_a_network_that_says_nothing() -> None:
    """No velocity: the mean of (noise - data)^2, 2 for unit data. No correction: Huber's loss of a whole blocked step."""
    model = make("none", awake=False)
    parts = losses(model, batch(512), torch.Generator().manual_seed(0))
    assert float(parts["flow"]) == pytest.approx(2, abs=5 * math.sqrt(8 / (512 * 192)))
    assert float(parts["motion"]) == pytest.approx(0, abs=1e-9)
    blocked = losses(model, batch(64, blocked=True), torch.Generator().manual_seed(0))
    assert float(blocked["motion"]) == pytest.approx(0.5 * (WALK - 0.25) / 5, rel=1e-5)


def test_the_loss_depends_on_its_generator_alone() -> None:
    model, examples = make("worldpack"), batch(4)
    first, second, other = (losses(model, examples, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first["flow"], second["flow"]) and not torch.equal(first["flow"], other["flow"])


def test_a_motion_head_learns_what_stops_one() -> None:
    """A bright cell ahead means a wall."""
    torch.manual_seed(0)
    head = MotionHead(HeadConfig((2, 4, 4), width=8))
    optimiser = torch.optim.Adam(head.parameters(), 1e-2)
    mask = MOVES.mask()
    for _ in range(60):
        wall = (torch.rand(64) < 0.5).float()
        before = 0.1 * torch.randn(64, 2, 4, 4)
        before[:, 0] += wall[:, None, None]
        correction = torch.zeros(64, 5)
        correction[:, 0] = -WALK * wall
        loss = head.loss(before, before, torch.full((64,), FORWARD), correction, mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 2e-3


def test_a_small_world_learns_to_look_back() -> None:
    """Two views of unknown colours, left and right in turn: only who looks at the frame before the last can tell the next one."""
    torch.manual_seed(0)
    coder = AutoencoderConfig(kind="pixels", factor=2, frame_size=4)
    net = CDiTConfig(latent_shape=coder.latent_shape, width=32, depth=2, heads=2)
    model = build(WorldPackConfig(memory="none", autoencoder=coder, net=net, retrieval=RetrievalConfig()))

    def episodes(count: int, seed: int) -> Clip:
        colours = torch.randint(0, 256, (count, 2, 1, 1, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        frames = colours[:, torch.arange(8) % 2].expand(count, 8, 4, 4, 3).contiguous()
        poses = torch.zeros(count, 8, 5)
        poses[..., 3] = torch.arange(8) % 2 * math.radians(15)
        return Clip(frames, torch.tensor([RIGHT, LEFT] * 4).repeat(count, 1), poses, torch.ones(count, 8, dtype=torch.bool))

    seen = episodes(256, seed=0)
    data = Latents(model.encode(seen.frames), seen.poses, seen.actions, torch.full((256,), 8))
    optimiser, steps, flow = torch.optim.Adam(model.parameters()), 150, []
    for step in range(steps):
        randomness = draw(0, step, "cpu")
        parts = losses(model, draw_batch(data, randomness, 32), randomness.torch, Perturbation(0.0))
        optimiser.param_groups[0]["lr"] = 5e-3 * min(1, (step + 1) / 20, (steps - step) / 60)
        optimiser.zero_grad()
        (parts["flow"] + parts["motion"]).backward()
        optimiser.step()
        flow.append(float(parts["flow"].detach()))
    assert flow[0] > 1 and sum(flow[-20:]) / 20 < 0.2

    new = episodes(32, seed=99)  # colours never seen
    state, errors, copied = model.start(part(new, 0, 4), keys(*range(32))), [], []
    for t in range(4, 8):
        state, frames = model.step(state, new.actions[:, t : t + 1])
        errors.append(float((frames.pixels[:, 0].float() - new.frames[:, t].float()).abs().mean()))
        copied.append(float((new.frames[:, t - 1].float() - new.frames[:, t].float()).abs().mean()))
    assert max(errors) < 0.4 * min(copied)


def test_hiding_recent_frames_leaves_the_last_group_and_rows_that_have_nothing_else() -> None:
    def group(frames: int, there: Tensor) -> ContextFrames:
        rows = len(there)
        valid, age, still = there[:, None].expand(rows, frames), torch.ones(rows, frames), torch.zeros(rows, frames, 5)
        return ContextFrames(torch.zeros(rows, frames, 1, 1, 1), age, still, valid, age, still, still, age)

    rows = 8000
    full = torch.ones(rows, dtype=torch.bool)
    remembers = torch.arange(rows) % 2 == 0
    groups = (group(1, full), group(2, full), group(8, remembers))
    recent, older, last = hide_recent(groups, torch.Generator().manual_seed(0), 0.4)
    assert torch.equal(last.valid, groups[-1].valid)
    assert recent.valid[~remembers].all()  # nothing else to see
    assert older.valid[~remembers].all()
    # of the others, a share 0.2 sees the last group alone, and 0.2 loses each group by the toss of a coin
    assert float((~recent.valid[remembers]).float().mean()) == pytest.approx(0.2 + 0.1, abs=0.02)
    both = ~recent.valid[remembers].any(1) & ~older.valid[remembers].any(1)
    assert float(both.float().mean()) == pytest.approx(0.2 + 0.05, abs=0.02)
