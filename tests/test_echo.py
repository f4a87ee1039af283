"""Echo-Memory: one backbone, read-outs that begin as nothing, memories that are values, recurrence and compression by their formulas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from standins import clip
from test_training import assert_same, collect
from tiny import VIDEO_CODER, tiny_deltas, tiny_video
from torch import Tensor

import wmgym
from wmgym import rng, systems, tree
from wmgym.checkpoint import load, load_world, read, save
from wmgym.core import Clip, Condition, Context, ContextFrames, ContextKV, KeysValues, Query, Seen
from wmgym.data.depth import DepthCamera
from wmgym.data.episode import list_episodes, load_episode, save_episode
from wmgym.data.latents import Latents
from wmgym.geometry import compose, relative_camera, relative_pose
from wmgym.memory.bank import Bank
from wmgym.memory.compressed import CompressedMemory
from wmgym.memory.coverage import CoverageConfig
from wmgym.memory.packing import Layout
from wmgym.memory.recurrent import StateMemory
from wmgym.memory.retrieval import RetrievalConfig
from wmgym.memory.summary import SummaryMemory
from wmgym.memory.trajectory import TrajectoryMemory
from wmgym.nets.echo import READOUTS, EchoDiT
from wmgym.nets.recurrence import KINDS, layers_with_readout
from wmgym.nets.routing import routed
from wmgym.nets.summary import num_cells, pooled
from wmgym.nets.video_dit import VideoDiTConfig
from wmgym.systems import echo, video
from wmgym.systems.echo import FAMILIES
from wmgym.train import echo_loss, run
from wmgym.train.delta import optimiser
from wmgym.train.echo import STEADY, TrainArgs, start, train
from wmgym.train.echo_loss import Chunks, EchoLossConfig, as_chunks, contexts_of, with_states
from wmgym.train.loop import draw
from wmgym.train.video_loss import make_batch
from wmgym.train.windows import WindowConfig, draw_windows
from wmgym.world_model import WorldModel

SHAPE, F = (3, 4, 4), 2
NET = VideoDiTConfig(SHAPE, width=32, depth=2, heads=2, chunk=F, window=8, extent=20.0)
ONE_OF_EACH = ("context-5", "weight", "hybrid-2", "spatial", "spatial-concat", "spatial-cross", "block_wise", "ssm_hybrid", "geometry")


def make(readout: str = "", *, awake: bool = True, fresh_delta: bool = False, **changed: Any) -> EchoDiT:
    """A small network; `awake` moves all weights, and with `fresh_delta` only those of the backbone."""
    torch.manual_seed(0)
    net = EchoDiT(replace(NET, **changed), readout)
    torch.manual_seed(1)
    with torch.no_grad():
        for part in (net.backbone, net.delta):
            if part is not None and awake and not (fresh_delta and part is net.delta):
                for weight in part.parameters():
                    weight.add_(0.1 * torch.randn_like(weight))
    return net.eval()


def seen(rows: int, frames: int, first: int = 0) -> Seen:
    """Frames `first`, ... of random walks, which begin at the same place for any `first`."""
    torch.manual_seed(7)
    latents, steps = torch.randn(64, rows, *SHAPE), torch.randn(64, rows, 5) * torch.tensor([1, 0.3, 0, 0.5, 0.05])
    pose, poses = torch.zeros(rows, 5), []
    for step in steps:
        pose = compose(pose, step)
        poses.append(pose)
    part, there = slice(first, first + frames), torch.ones(rows, frames, dtype=torch.bool)
    times = torch.arange(first, first + frames).expand(rows, -1)
    return Seen(latents[part].transpose(0, 1), torch.stack(poses[part], 1), times, times % 10, steps[part].transpose(0, 1), there, there)


def condition(rows: int, first: int = 20) -> Condition:
    """The chunk after frame `first` - 1."""
    now = seen(rows, F, first)
    return Condition(now.actions, now.egomotion, now.poses, now.times, seen(rows, 1, first - 1).poses[:, 0], torch.zeros(rows, 5))


def remembered(memory: Any, rows: int = 2, frames: int = 20) -> Context:
    """What a memory gives before frame `frames`, having seen all frames before it."""
    state = memory.write(memory.init(rows, rng.make_keys(list(range(rows)))), seen(rows, frames))
    there = condition(rows, frames)
    return memory.read(state, Query(there.poses, there.times))


def newest(count: int) -> TrajectoryMemory:
    return TrajectoryMemory(Layout(((count, 0),)), RetrievalConfig(), SHAPE)


def velocity(net: EchoDiT, *contexts: Context, rows: int = 2) -> Tensor:
    torch.manual_seed(3)
    x = torch.randn(rows, F, *SHAPE)
    with torch.no_grad():
        return net.bind(condition(rows), contexts)(x, torch.full((rows,), 0.6))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(a, b, atol=tolerance, rtol=tolerance)


# -- the network ----------------------------------------------------------------------------------------------------------------------


def test_frames_by_themselves_are_single_frame_chunks_of_the_backbone() -> None:
    """Without a delta: keys of K = 3 frames, each from a clean pass of its own, read by the video network at ranks 1 to 3."""
    net, context = make(), remembered(newest(3))
    (frames,) = context.frames
    kept = []
    for k in range(3):
        one = {name: getattr(frames, name)[:, k : k + 1] for name in ("actions", "egomotion", "poses", "times")}
        alone = Condition(**one, start=torch.zeros(2, 5), origin=torch.zeros(2, 5))
        inputs = net.backbone.frame_inputs(alone, torch.zeros(2, 1))
        bound = replace(net.backbone.bind(condition(2), ()), condition=alone, inputs=inputs)
        # `trace` takes egomotion from the pose before: here it is given by the frame, so the pass is run directly
        kept.append(net.backbone.run(frames.latents[:, k : k + 1], torch.zeros(2, 1), inputs, bound._attend, collect=True)[1])
    layers = tuple(KeysValues(torch.cat([x.keys for x in kv], 1), torch.cat([x.values for x in kv], 1)) for kv in zip(*kept, strict=True))
    offsets = torch.tensor([[1, 2, 3]]).expand(2, -1)
    kv = ContextKV(layers, offsets, frames.valid, frames.poses)
    torch.manual_seed(3)
    x = torch.randn(2, F, *SHAPE)
    with torch.no_grad():
        expected = net.backbone.bind(condition(2), (Context(kv=kv),))(x, torch.full((2,), 0.6))
    assert close(velocity(net, context), expected) and not close(velocity(net), expected, 1e-3)


@pytest.mark.parametrize("readout", [r for r in READOUTS if r not in ("summary-frame", "geometry")])
def test_a_fresh_delta_leaves_the_backbones_output_unchanged(readout: str) -> None:
    """Gates, camera encoding and adapters begin at zero, whatever the memory holds."""
    plain, net, anchor = make(), make(readout, fresh_delta=True), remembered(newest(1))
    contexts = [anchor]
    if readout.startswith("summary"):
        contexts.append(remembered(SummaryMemory(SHAPE)))
    elif readout in KINDS:
        contexts.append(Context(state=tuple(torch.randn(2, *shape) for shape in net.state_shapes)))
    assert close(velocity(net, *contexts), velocity(plain, anchor))
    moved = make(readout)
    assert not close(velocity(moved, *contexts), velocity(plain, anchor), 1e-3)


@pytest.mark.parametrize("readout", READOUTS)
def test_every_part_of_a_delta_has_a_gradient(readout: str) -> None:
    net = make(readout)
    frames = remembered(TrajectoryMemory(Layout(((1, 0),), (4, 0)), RetrievalConfig("coverage"), SHAPE))
    contexts = [frames]
    if readout.startswith("summary"):
        contexts.append(remembered(SummaryMemory(SHAPE)))
    elif readout in KINDS:
        contexts.append(Context(state=tuple(torch.randn(2, *shape) for shape in net.state_shapes)))
    bound = net.bind(condition(2), tuple(contexts))
    bound(torch.randn(2, F, *SHAPE), torch.full((2,), 0.6)).square().mean().backward()
    assert net.delta is not None
    idle = {name for name, p in net.delta.named_parameters() if p.grad is None or not p.grad.any()}
    # depth has a loss of its own, since places are rounded; tokens without a point ("hole") may not exist
    assert {name for name in idle if not name.startswith("depth")} <= {"hole"}


def test_frames_are_read_at_their_rank_in_any_order_and_invalid_ones_not_at_all() -> None:
    net, (frames,) = make("context"), remembered(newest(4)).frames
    order = torch.tensor([2, 0, 3, 1])
    names = ("latents", "offsets", "relative", "valid", "actions", "egomotion", "poses", "times")
    mixed = ContextFrames(*(getattr(frames, name)[:, order] for name in names))
    assert close(velocity(net, Context((mixed,))), velocity(net, Context((frames,))))
    hidden = replace(frames, valid=torch.tensor([[True, False, True, True]] * 2))
    fewer = ContextFrames(*(getattr(frames, name)[:, [0, 2, 3]] for name in names))
    assert close(velocity(net, Context((hidden,))), velocity(net, Context((fewer,))))
    with pytest.raises(ValueError, match=r"reads whole frames, the memory gives levels \[1\]"):
        velocity(net, Context((replace(frames, level=1),)))
    with pytest.raises(ValueError, match=r"readout must be one of context, .* got 'memory'"):
        EchoDiT(NET, "memory")


def test_the_camera_is_told_relative_to_the_first_frame() -> None:
    here, there = torch.tensor([1.0, 2, 3, 0.4, -0.2]), torch.tensor([2.0, 0, 3.5, 1.9, 0.3])
    camera = relative_camera(here, here)
    assert close(camera, torch.tensor([0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1.0]), 1e-6)
    turn = relative_camera(there, here)[3:].view(3, 3)
    assert close(turn @ turn.T, torch.eye(3), 1e-6) and torch.linalg.det(turn) == pytest.approx(1, abs=1e-5)
    level = torch.tensor([1.0, 1, 1, 1, 0])
    assert close(relative_camera(there * level, here * level)[:3], relative_pose(there * level, here * level)[:3], 1e-6)


def test_a_query_reads_the_frames_most_similar_to_it() -> None:
    """Two heads, three frames of two tokens: scores are products with the mean key of a frame, over what exists."""
    means = torch.tensor([[[1.0, 0], [0, 3]], [[2, 0], [0, 2]], [[3, 0], [0, 1]]])  # frame, head, d
    past = (means[:, None] + torch.tensor([0.5, -0.5]).view(1, 2, 1, 1)).flatten(0, 1)[None]
    q = torch.tensor([[[[1.0, 0], [0, 1]]]])  # [1, 1, 2, 2]
    kept = routed(q, past, None, 2, 1)
    assert kept[0, 0, 0].tolist() == [False] * 4 + [True] * 3 and kept[0, 1, 0].tolist() == [True] * 2 + [False] * 4 + [True]
    mask = torch.tensor([[False] * 2 + [True] * 3 + [False] + [True]])
    kept = routed(q, past, mask, 2, 1)
    assert kept[0, 0, 0].tolist() == [False] * 4 + [True, False, True] and kept[0, 1, 0].tolist() == [
        False,
        False,
        True,
        True,
        False,
        False,
        True,
    ]


def test_routing_to_all_frames_is_no_routing() -> None:
    net, context = make("context"), remembered(newest(4))
    assert close(velocity(net, replace(context, routing=4)), velocity(net, context), 1e-6)
    assert close(velocity(net, replace(context, routing=9)), velocity(net, context), 1e-6)
    assert not close(velocity(net, replace(context, routing=1)), velocity(net, context), 1e-3)


# -- recurrence -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_recurrent_layer_run_chunk_by_chunk_is_one_run(kind: str) -> None:
    torch.manual_seed(0)
    layer, h = KINDS[kind](32, 8), torch.randn(2, 12, 5, 32)
    torch.nn.init.constant_(layer.gate, 0.7)
    state = layer.blank(2, 5)
    whole, states = layer(h, state)
    for first, last in ((0, 1), (1, 4), (4, 12)):
        part, after = layer(h[:, first:last], state)
        assert close(part, whole[:, first:last], 1e-6) and close(after, states[:, first:last], 1e-6)
        state = after[:, -1]
    other = h.clone()
    other[:, 6:] += 1
    assert torch.equal(layer(other, layer.blank(2, 5))[0][:, :6], whole[:, :6]), "a frame sees nothing later"


def test_a_block_wise_state_is_an_exponential_average() -> None:
    """state = decay * state + (1 - decay) * tanh(u): with u constant, 1 - decay**t of tanh(u) after t frames."""
    layer = KINDS["block_wise"](32, 8)
    h = torch.randn(1, 1, 3, 32).expand(-1, 40, -1, -1)
    after = layer(h, layer.blank(1, 3))[1]
    target, decay = layer.write(layer.norm(h[:, 0])).tanh(), layer.decay.sigmoid()
    assert close(after[:, 39], (1 - decay**40) * target, 1e-5)


@pytest.mark.parametrize("readout", KINDS)
def test_the_states_of_a_window_in_one_pass_are_those_chunk_by_chunk(readout: str) -> None:
    net, rows, length = make(readout), 2, 4
    frames = seen(rows, F * length)

    def fold(x: Tensor) -> Tensor:
        return x.unflatten(1, (length, F)).flatten(0, 1)

    poses = fold(frames.poses)
    whole = Condition(
        fold(frames.actions), fold(frames.egomotion), poses, fold(frames.times), poses[:, 0] - 0.1, torch.zeros(rows * length, 5)
    )
    with torch.no_grad():
        together = net.bind(whole, ()).roll(fold(frames.latents), poses, length)
        states: Any = None
        for number in range(length):
            pick = torch.arange(rows) * length + number
            part = tree.select(whole, pick)
            contexts = (Context(state=states),) if states is not None else ()
            states = net.bind(part, contexts).trace(fold(frames.latents)[pick], part.poses).state
            assert all(close(a, b[pick], 1e-5) for a, b in zip(states, together, strict=True))


@pytest.mark.parametrize(("depth", "layers"), [(1, (0,)), (2, (0,)), (4, (1,)), (6, (2, 5)), (12, (3, 7, 11))])
def test_read_outs_follow_every_fourth_block_or_every_third_of_six(depth: int, layers: tuple[int, ...]) -> None:
    assert layers_with_readout(depth) == layers


def test_a_state_without_a_trace_is_refused() -> None:
    memory = StateMemory(newest(1), ((4, 8),))
    with pytest.raises(ValueError, match="this network's trace has none"):
        memory.write(memory.init(2, rng.make_keys([0, 1])), seen(2, F))


# -- compression and summary ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 5, 9, 20])
def test_length_with_one_frame_per_mean_is_raw_context(frames: int) -> None:
    net, memory = make("context"), CompressedMemory(SHAPE, 8, 1)
    compressed, raw = remembered(memory, frames=frames), remembered(newest(9), frames=frames)
    assert close(velocity(net, compressed), velocity(net, raw), 1e-6)


def test_means_are_of_the_frames_that_exist() -> None:
    memory = CompressedMemory(SHAPE, 8, 4)
    group = remembered(memory, frames=7).frames[1]  # the anchor, 6 and 6 frames before it: 4 and 2
    frames = seen(2, 7)
    assert group.valid.tolist() == [[True, True]] * 2
    assert close(group.latents[:, 0], frames.latents[:, 2:6].mean(1), 1e-6)
    assert close(group.latents[:, 1], frames.latents[:, :2].mean(1), 1e-6)
    assert group.times.tolist() == [[3, 0]] * 2 and torch.equal(group.poses[:, 0], frames.poses[:, 3])


def test_gains_fall_with_distance_and_copies_have_their_own() -> None:
    anchor, rest = remembered(CompressedMemory(SHAPE, 8, 1, 0.9)).frames
    assert anchor.gains is not None and rest.gains is not None
    assert close(anchor.gains, torch.ones(2, 1)) and close(rest.gains[0], 0.9 ** torch.arange(1, 9))
    packed = CompressedMemory(SHAPE, 8, 2, packed=True)
    groups = remembered(packed).frames
    assert [g.valid.shape[1] for g in groups] == [1, 4, 2, 1] and packed.num_read == 8
    assert [float(g.gains[0, 0]) for g in groups] == pytest.approx([1, 1, 0.25, 0.15])  # type: ignore[index]
    assert close(groups[3].latents[:, 0], seen(2, 19).latents[:, 11:].mean(1), 1e-6)
    net, (frames,) = make("context"), remembered(newest(3)).frames
    assert close(velocity(net, Context((replace(frames, gains=torch.ones(2, 3)),))), velocity(net, Context((frames,))))
    assert not close(velocity(net, Context((replace(frames, gains=torch.zeros(2, 3)),))), velocity(net, Context((frames,))), 1e-3)


def test_a_summary_is_the_mean_of_all_frames_however_they_were_written() -> None:
    memory, frames = SummaryMemory(SHAPE), seen(2, 12)
    state = memory.init(2, rng.make_keys([0, 1]))
    hidden = replace(seen(2, 5), valid=torch.tensor([[False] * 2 + [True] * 3] * 2))
    for part in (hidden, seen(2, 1, 5), seen(2, 6, 6)):
        state = memory.write(state, part)
    assert close(state.mean, frames.latents[:, 2:].mean(1), 1e-6) and state.count.tolist() == [10, 10]
    tall = torch.arange(3 * 16 * 10).float().view(1, 3, 16, 10)
    assert pooled(tall).shape == (1, num_cells((3, 16, 10)), 3) == (1, 64, 3)
    assert close(pooled(tall).mean(1), tall[..., :8].mean((2, 3)), 60)  # a coarse picture of the same


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: CompressedMemory(SHAPE, 8, 9), "ratio must be between 1 and the 8 frames .* got 9"),
        (lambda: CompressedMemory(SHAPE, 8, 2, 1.5), r"decay must be in \(0, 1\], got 1.5"),
        (lambda: echo.EchoOptions("dense"), "packing must be one of mean, multiscale, got 'dense'"),
        (lambda: echo.EchoOptions(routing=-1), "routing must be a whole number of frames, 0 or more, got -1"),
        (lambda: echo.EchoConfig(family="slots"), "family must be one of context-1, .* got 'slots'"),
        (lambda: EchoLossConfig(shift=0), "shift and spike must be positive, got 0 and 15.0"),
        (lambda: EchoLossConfig(anchor_only=2), r"anchor_only must be in \[0, 1\], got 2"),
    ],
)
def test_wrong_values_are_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


# -- the whole system -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny video checkpoint with a delta of every family beside it."""
    path = tiny_video(tmp_path_factory.mktemp("echo"))
    tiny_deltas(path, FAMILIES)
    return path


def world(base: Path, family: str, **options: Any) -> WorldModel:
    return load_world(str(base), system="echo", memory=family, memory_budget=32, device="cpu", dtype="float32", options=options)


def begun(loaded: WorldModel, rows: int = 1, frames: int = 9) -> Any:
    opening = clip(frames)
    fields = {name: torch.from_numpy(opening[name])[None].expand(rows, *opening[name].shape) for name in ("frames", "actions", "poses")}
    return loaded.start(Clip(**fields, valid=torch.ones(rows, frames, dtype=torch.bool)), rng.make_keys([5] * rows))


def copied(state: Any) -> list[Tensor]:
    return [leaf.clone() for leaf in tree.leaves(state).values() if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_env_of_every_family(base: Path, family: str) -> None:
    env = gym.make(
        "Echo-Minecraft-v0",
        checkpoint=str(base),
        memory=family,
        opening=clip(5),
        task="free",
        memory_budget=32,
        device="cpu",
        dtype="float32",
    )
    env.reset(seed=0)
    for _ in range(3):
        frame, _, _, _, info = env.step(np.ones(F, np.int64))
    assert frame.any() and np.isfinite(info["pose"]).all() and info["frames"].shape == (F, 16, 16, 3)
    assert env.unwrapped.identity.memory == family  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", FAMILIES)
def test_lanes_dream_what_single_envs_dream(base: Path, family: str) -> None:
    """Two lanes with openings of different lengths, across an autoreset, against two single envs."""
    loaded, clips = world(base, family), [clip(5), clip(12, x=3.0)]
    vec = wmgym.make_env(loaded, "free", setting="minecraft", num_envs=2, horizon=8)
    vec.reset(seed=4, options={"opening": clips})
    singles = [wmgym.make_env(loaded, "free", setting="minecraft", horizon=8) for _ in clips]
    for lane, single in enumerate(singles):
        single.reset(seed=4 + lane, options={"opening": clips[lane]})
    for step in np.random.default_rng(0).integers(0, 10, (3, 2, F)):
        frames, _, _, _, info = vec.step(step)
        for lane, single in enumerate(singles):
            alone, _, _, _, own = single.step(step[lane])
            assert np.abs(frames[lane].astype(int) - alone).max() <= 1
            np.testing.assert_array_equal(info["memory_retrieved"][lane], own["memory_retrieved"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_memory_is_a_value(base: Path, family: str) -> None:
    """A step leaves the old state as it was; branches dream what it dreams, and share its frames; a state goes through its leaves."""
    loaded = world(base, family)
    actions = torch.ones(1, F, dtype=torch.int64)
    state = loaded.step(begun(loaded), actions)[0]
    before = copied(state)
    after, shown = loaded.step(state, actions)
    branches = tree.repeat(state, 6)
    assert sum(x.numel() for x in tree.tensors(_archives(branches))) == sum(x.numel() for x in tree.tensors(_archives(state)))
    many = loaded.step(branches, actions.expand(6, -1))[1]
    assert all(torch.equal(a, b) for a, b in zip(before, copied(state), strict=True))
    assert (many.pixels.int() - shown.pixels.int()).abs().max() <= 1
    saved = tree.like(begun(loaded), tree.leaves(state))
    assert torch.equal(loaded.step(saved, actions)[1].pixels, shown.pixels)
    mixed = tree.where(torch.tensor([True, False]), tree.repeat(after, 2), tree.repeat(state, 2))
    assert torch.equal(mixed.times, torch.stack([after.times[0], state.times[0]]))


def _archives(state: Any) -> Any:
    """The stores that lanes share."""
    held = [getattr(memory, "frames", memory) for memory in state.memories]  # of a recurrent memory, its frames
    return tuple(memory.archive.data for memory in held if isinstance(memory, Bank))


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_what_was_seen_long_ago_changes_what_is_dreamed(base: Path, family: str) -> None:
    """The same newest chunk after another past: only the reference, and the summary that nobody reads, dream the same."""
    loaded, opening = world(base, family), clip(9)
    other = {**opening, "frames": np.concatenate([255 - opening["frames"][:5], opening["frames"][5:]])}
    dreams = []
    for past in (opening, other):
        env = wmgym.make_env(loaded, "free", setting="minecraft", opening=past)
        env.reset(seed=0)
        dreams.append(env.step(np.full(F, 6))[0].astype(int))
    reads_it = family != "ssm_hybrid"  # its convolution covers 2 frames
    assert (np.abs(dreams[0] - dreams[1]).max() > 0) == reads_it


@pytest.mark.parametrize("family", ["context-1", "spatial-none"])
def test_the_reference_forgets_everything_but_the_newest_frame(base: Path, family: str) -> None:
    loaded, opening = world(base, family), clip(9)
    other = {**opening, "frames": np.concatenate([255 - opening["frames"][:8], opening["frames"][8:]])}
    seen_by = [wmgym.make_env(loaded, "free", setting="minecraft", opening=past) for past in (opening, other)]
    shown = [(env.reset(seed=0), env.step(np.ones(F, np.int64)))[1][0] for env in seen_by]
    np.testing.assert_array_equal(*shown)


def test_with_one_frame_seen_a_context_of_any_length_is_the_anchor(base: Path) -> None:
    """K = 1: the same weights under context-1, context-5 and context-20, after a single frame."""
    loaded, config = world(base, "context-5"), load(base.with_name("echo-context-5-minecraft.safetensors")).config
    outputs = []
    for name in ("context-1", "context-5", "context-20"):
        memories = echo.SYSTEM.settings(loaded.net, replace(config, memory=name)).memories
        view = loaded.with_settings(memories=memories)
        outputs.append(view.step(begun(view, frames=1), torch.ones(1, F, dtype=torch.int64))[1].pixels)
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_none_is_the_anchor_alone_and_keywords_reach_the_memory(base: Path) -> None:
    assert world(base, "none").provenance.memory == "context-1"
    packed = world(base, "length-2", packing="multiscale").settings.memories[0]
    assert isinstance(packed, CompressedMemory) and packed.packed and (packed.frames, packed.ratio) == (8, 2)
    with pytest.raises(ValueError, match=r"packing belongs to weight, .* got packing='multiscale' with memory 'context-5'"):
        world(base, "context-5", packing="multiscale")
    with pytest.raises(ValueError, match="routing belongs to memories of several frames, got routing=2 with memory 'block_wise'"):
        world(base, "block_wise", routing=2)
    routed_world = world(base, "context-20", routing=3)
    assert echo.context_cost(routed_world)["tokens_read"] == 48
    assert routed_world.step(begun(routed_world), torch.ones(1, F, dtype=torch.int64))[1].pixels.any()
    with pytest.raises(TypeError, match="'rank': system 'echo' knows packing, routing"):
        world(base, "length-2", rank=3)
    with pytest.raises(ValueError, match=r"memory must be one of .*'block_wise'.* got 'landmark'"):
        world(base, "landmark")
    config = load(base.with_name("echo-block-wise-minecraft.safetensors")).config
    with pytest.raises(ValueError, match="memory 'geometry' needs its own delta, and these weights have that of 'block_wise'"):
        echo.SYSTEM.settings(world(base, "block_wise").net, replace(config, memory="geometry"))


@pytest.mark.parametrize(
    ("family", "tokens", "frames", "grows"),
    [
        ("context-1", 16, 1, False),
        ("context-20", 320, 32, True),
        ("length-4", 48, 9, False),
        ("geometry", 48, 32, True),
        ("spatial", 32, 1, False),
    ],
)
def test_capacities(base: Path, family: str, tokens: int, frames: int, grows: bool) -> None:
    """What is written and what is read: frames of 16 tokens, and 3,129 bytes with pose, time, action and motion."""
    loaded = world(base, family)
    cost = echo.context_cost(loaded)
    assert (cost["tokens_read"], cost["frames_kept"], cost["bytes_per_frame"]) == (tokens, frames, 3129 if grows else 0)
    full = begun(loaded, frames=40).footprint
    assert int(full.bytes) == cost["bytes"]


# -- deltas ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_delta_holds_its_family_alone(base: Path, family: str) -> None:
    file = base.with_name(f"echo-{family.replace('_', '-')}-minecraft.safetensors")
    stored = read(file)
    assert stored.base == {"name": "video", "sha256": read(base).sha256}
    assert all(name.startswith("net.delta.") for name in stored.tensors)
    loaded = load(file)
    assert loaded.config.memory == loaded.config.family == family
    same = load_world(str(base), system="echo", memory=family, device="cpu", dtype="float32").state_dict()
    assert_same(dict(loaded.model.state_dict()), dict(same))


def test_a_delta_that_is_absent_is_named_with_the_command_that_trains_it(tmp_path: Path) -> None:
    path = tiny_video(tmp_path)
    message = r"echo-block-wise-minecraft: no such delta; available: none.*wmgym train echo --family block_wise --base"
    with pytest.raises(ValueError, match=message):
        load_world(str(path), system="echo", memory="block_wise", device="cpu")
    tiny_deltas(path, ["context-1"])
    loaded = load(path)
    with torch.no_grad():
        loaded.model.net.position.add_(1)
    save(path, loaded.model, loaded.config)
    with pytest.raises(ValueError, match="is a delta on weights with SHA-256"):
        load_world(str(path), system="echo", memory="none", device="cpu")
    with pytest.raises(ValueError, match=r"no bundled weights: give checkpoint=.*wmgym train video"):
        gym.make("Echo-MemoryMaze-v0")


# -- training -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "_writer", lambda out: None)  # TensorBoard takes longer to import than all this
    return collect(tmp_path / "data", length=14)


def arguments(base: Path, data: Path, out: Path, family: str, **changes: Any) -> TrainArgs:
    few = {"window": 3, "batch": 2, "steps": 4, "save_every": 4, "device": "cpu", **changes}
    return TrainArgs((data,), out, base=str(base), family=family, **few)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["context-5", "block_wise"])
def test_a_killed_run_continues_as_if_it_had_not_been(
    base: Path, episodes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    report = train(arguments(base, episodes, tmp_path / "whole", family), progress=False)
    args = arguments(base, episodes, tmp_path / "killed", family, save_every=2)
    calls: list[int] = []

    def killed(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # the last step, after a save at the second
            raise KeyboardInterrupt
        return draw_windows(*given)

    with monkeypatch.context() as patch:
        patch.setattr("wmgym.train.echo.draw_windows", killed)
        with pytest.raises(KeyboardInterrupt):
            train(args, progress=False)
    train(args, progress=False)
    name = Path(report["checkpoint"]).name
    for file in ("net-state.safetensors", name):
        assert_same(*(dict(_tensors(tmp_path / folder / file)) for folder in ("killed", "whole")))
    stored = read(tmp_path / "whole" / name)
    assert name == f"echo-{family.replace('_', '-')}-minecraft.safetensors" and all(k.startswith("net.delta.") for k in stored.tensors)
    assert {f"{family}_next", f"{family}_dream", "autoencoder", "copy", "parameters", "commands"} <= report.keys()
    fresh = start(str(base), family)[0].state_dict()
    assert any(not torch.equal(value, fresh[key]) for key, value in stored.tensors.items())
    env = gym.make("Echo-Minecraft-v0", checkpoint=report["checkpoint"], memory=family, opening=clip(5), task="free", device="cpu")
    env.reset(seed=0)
    assert env.step(np.ones(F, np.int64))[0].any()


def test_geometry_learns_depth_at_the_latents_cells(base: Path, episodes: Path, tmp_path: Path) -> None:
    """A flat wall 3 m away in the left half, nothing in the right: the camera and the inverse depth reach the delta."""
    camera, wall = DepthCamera(1.3, (0.15, 0.0, 0.9), -0.1), np.full((14, 16, 16), np.inf, np.float32)
    wall[..., :8] = 3
    for path in list_episodes(episodes):
        episode = load_episode(path)
        save_episode(path, replace(episode, depth=wall, meta=replace(episode.meta, depth=camera)))
    report = train(arguments(base, episodes, tmp_path / "out", "geometry"), progress=False)
    net = load(report["checkpoint"]).model.net
    assert close(net.delta.camera_place, torch.tensor([0.15, 0, 0.9, -0.1]))
    inverse = _tensors(tmp_path / "out" / "depth.safetensors")["inverse"]
    assert inverse.shape == (2, 14, 4, 4) and close(inverse[..., :2].float(), torch.tensor(1 / 3), 1e-3) and not inverse[..., 2:].any()
    assert net.delta.depth.body[-1].weight.any()
    mixed = load_episode(list_episodes(episodes)[0], depth=True)
    save_episode(list_episodes(episodes)[0], replace(mixed, meta=replace(mixed.meta, depth=replace(camera, tilt=0.0))))
    with pytest.raises(ValueError, match="episodes were seen by different cameras"):
        train(arguments(base, episodes, tmp_path / "other", "geometry"), progress=False)


def _tensors(path: Path) -> dict[str, Tensor]:
    return run.read_file(path)[0]


def test_what_cannot_be_trained_is_refused(base: Path, episodes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"family must be one of context-1, .* got 'slots'"):
        arguments(base, episodes, tmp_path, "slots")
    with pytest.raises(ValueError, match="steps must be positive, got 0"):
        arguments(base, episodes, tmp_path, "context-1", steps=0)
    delta = base.with_name("echo-context-1-minecraft.safetensors")
    with pytest.raises(ValueError, match=r"base must be a checkpoint of system 'video', .* is of system 'echo'"):
        train(arguments(delta, episodes, tmp_path / "out", "context-5"), progress=False)
    with pytest.raises(ValueError, match="has no depth images, which family geometry learns from"):
        train(arguments(base, episodes, tmp_path / "out", "geometry"), progress=False)
    assert not (tmp_path / "out").exists()


def recorded(loaded: WorldModel, frames: int) -> tuple[Latents, dict[str, np.ndarray]]:
    """An episode of a clip, and the clip."""
    opening = clip(frames)
    latents = loaded.encode(torch.from_numpy(opening["frames"])[None]).detach()
    poses, actions = (torch.from_numpy(opening[name])[None] for name in ("poses", "actions"))
    return Latents(latents, poses, actions, torch.tensor([frames])), opening


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_training_reads_what_a_dream_reads(base: Path, family: str) -> None:
    """The contexts of a window's chunks, from the recorded episode and one pass, are those of a world that was shown the frames."""
    loaded, length = world(base, family), 5
    frames = F * length
    data, opening = recorded(loaded, frames)
    whole = {name: torch.from_numpy(opening[name]) for name in ("poses", "actions")}
    poses, actions = (whole[name].unflatten(0, (length, F)) for name in ("poses", "actions"))
    motion = data.frames.egomotion[0].unflatten(0, (length, F))
    times = torch.arange(frames).view(length, F)
    before = torch.cat([poses[:1, 0], poses[:-1, -1]])
    alone, rows = torch.zeros(length, dtype=torch.bool), torch.zeros(length, dtype=torch.int64)
    x, level = torch.randn(length, F, *loaded.net.latent_shape), torch.full((length,), 0.5)
    for number in range(1, length):
        origin = poses[number - 1, -1].expand(length, -1)  # where the opening ends
        here = Condition(actions, motion, poses, times, before, origin)
        chunks = Chunks(data.latents[0].float().unflatten(0, (length, F)), here, here, rows, times[:, 0], length)
        part = {name: torch.from_numpy(opening[name])[None, : F * number] for name in ("frames", "actions", "poses")}
        with torch.no_grad():
            contexts = with_states(loaded.net, contexts_of(loaded, data, chunks, alone), chunks, chunks.latents, alone)
            trained = loaded.net.bind(here, contexts)(x, level)[number : number + 1]
            state = loaded.start(Clip(**part, valid=torch.ones(1, F * number, dtype=torch.bool)), rng.make_keys([0]))
            now = tree.select(here, torch.tensor([number]))
            own = loaded.read(state.memories, Query(now.poses, now.times))
            assert close(loaded.net.bind(now, own)(x[number : number + 1], level[:1]), trained, 1e-4), number


def test_chunks_with_a_spike_and_hidden_pasts(base: Path) -> None:
    """A chunk whose loss is a spike has no part in it; with the anchor alone, the rest of the past changes nothing."""
    loaded = world(base, "context-5")
    data, _ = recorded(loaded, 10)
    times = torch.arange(10).view(5, 2)
    here = condition(5)
    zero = torch.zeros(5, F, 5)
    here = replace(here, poses=data.poses[0].unflatten(0, (5, F)), egomotion=zero, times=times, actions=times % 10)
    chunks = Chunks(data.latents[0].float().unflatten(0, (5, F)), here, here, torch.zeros(5, dtype=torch.int64), times[:, 0], 5)

    def loss(chunks: Chunks, data: Latents = data, **changes: Any) -> Tensor:
        return echo_loss.echo_loss(loaded, data, chunks, torch.Generator().manual_seed(2), EchoLossConfig(**changes))

    plain = loss(chunks)
    wild = replace(chunks, latents=chunks.latents + 100 * (torch.arange(5) == 2).float().view(-1, 1, 1, 1, 1))
    assert plain < 15 < loss(wild, spike=1e9) and loss(wild) < 15
    other = replace(data, latents=data.latents.clone())
    other.latents[:, ::2] += 1  # the newest frame before each chunk is an odd one
    assert torch.equal(loss(chunks, anchor_only=1.0), loss(chunks, other, anchor_only=1.0))
    assert not torch.equal(loss(chunks, anchor_only=0.0), loss(chunks, other, anchor_only=0.0))


@pytest.mark.slow
def test_families_learn_to_read_what_the_anchor_does_not_show() -> None:
    """Each episode has a colour that only its even frames show; the anchor is an odd one. The backbone is random and frozen."""
    losses = {family: _fitted(family, 120) for family in ("context-1", "block_wise", "ssm_hybrid", "spatial-cross")}
    for family in ("block_wise", "ssm_hybrid", "spatial-cross"):
        assert losses[family] < losses["context-1"] - 0.01, losses


def _fitted(family: str, steps: int) -> float:
    """Mean loss of the last 20 steps."""
    torch.manual_seed(0)
    plain = video.preset("MICRO", autoencoder=VIDEO_CODER)
    net = replace(NET, latent_shape=VIDEO_CODER.latent_shape, num_actions=10, depth=3)
    model = echo.build(echo.on_video(replace(plain, net=net), (family,)))
    for weight in model.net.backbone.parameters():
        torch.nn.init.normal_(weight, std=0.1) if not weight.any() else None
    model.requires_grad_(False)
    model.net.delta.requires_grad_(True)
    colours = torch.randn(64, 1, net.latent_shape[0], 1, 1).expand(-1, 24, *net.latent_shape).clone()
    colours[:, 1::2] = 0
    data = Latents(colours, torch.zeros(64, 24, 5), torch.zeros(64, 24, dtype=torch.int64), torch.full((64,), 24))
    adam, found = optimiser(model.net.delta, 1e-2), []
    for step in range(steps):
        drawn = draw(1, step, "cpu")
        windows = draw_windows(data, drawn, 8, WindowConfig(F, 4, 0.0, 0, 0.0), CoverageConfig())
        windows = replace(windows, times=windows.times - windows.times[:, :1] % 2)  # chunks begin with an even frame
        chunks = as_chunks(make_batch(data, windows, model.kinematics, F, drawn.torch, STEADY), windows, F)
        loss = echo_loss.echo_loss(model, data, chunks, drawn.torch, EchoLossConfig(anchor_only=0.0, context_noise=0.0))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.net.delta.parameters(), 1.0)
        adam.step()
        found.append(float(loss.detach()))
    return sum(found[-20:]) / 20


def test_gates_have_a_higher_rate() -> None:
    delta = make("block_wise").delta
    assert delta is not None
    rest, gates = optimiser(delta, 1e-3).param_groups
    assert gates["lr"] == pytest.approx(2e-2) and rest["lr"] == 1e-3
    assert [tuple(gate.shape) for gate in gates["params"]] == [(32,)]
    assert len(optimiser(make("context").delta, 1e-3).param_groups) == 1  # type: ignore[arg-type]


def test_the_system_is_as_the_registration_has_it() -> None:
    system = systems.get("echo")
    assert system.default_memory == "block_wise" and system.reference == "context-1" and system.base == "video"
    assert all(choice.deltas == (name,) for name, choice in system.memories.items())
