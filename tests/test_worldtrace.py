"""WorldTrace: slots at trained positions, writers that do what their formulas say, memories that share and keep rows apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from standins import clip
from torch import Tensor

import wmgym
from wmgym import rng, systems, tree
from wmgym.checkpoint import load_world, save
from wmgym.core import Context, ContextKV, KeysValues, Query, Seen, Trace
from wmgym.memory.chunk_archive import ChunkArchive
from wmgym.memory.slots import SlotMemory, chunk_of
from wmgym.memory.writers import LandmarkWriter, MeanWriter, pooled_keys
from wmgym.nets.autoencoder import AutoencoderConfig
from wmgym.nets.phases import place_phases
from wmgym.nets.rope import rotate
from wmgym.nets.video_dit import VideoDiTConfig
from wmgym.systems import video
from wmgym.world_model import SamplerConfig

F, L = 2, 8  # frames of a chunk, chunks of a training window
CODER = AutoencoderConfig(kind="pixels", factor=8, frame_size=16)
NET = VideoDiTConfig(CODER.latent_shape, width=32, depth=2, heads=2, chunk=F, window=L)
SIZES = (NET.depth, F, NET.tokens, NET.heads, NET.width // NET.heads)
MEMORIES = ("none", "field", "naive_mean", "landmark", "sink", "pose", "full")  # of keys and values; `latents`: test_latent_chunks.py


def chunk(rows: int, number: int, *, seed: int | None = None, first: int | None = None) -> Seen:
    """The chunk of this number, with random keys and values."""
    generator = torch.Generator().manual_seed(1000 + number if seed is None else seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator)

    keys = tuple(KeysValues(random(*SIZES[1:]), random(*SIZES[1:])) for _ in range(NET.depth))
    times = torch.arange(F).expand(rows, F) + F * number if first is None else torch.arange(F).expand(rows, F) + first
    there = torch.ones(rows, F, dtype=torch.bool)
    poses = random(F, 5) * torch.tensor([1, 1, 0, 1, 0.1])
    return Seen(random(F, *NET.latent_shape), poses, times, times, random(F, 5), there, there, Trace(keys))


def memory(kind: str, **changed: Any) -> SlotMemory | ChunkArchive:
    if kind in ("pose", "full"):
        return ChunkArchive(*SIZES, 64, recent=2, chosen=L - 3 if kind == "pose" else 0)
    slots = changed.pop("slots", 4)
    writers = {
        "none": None,
        "field": MeanWriter(slots, F),
        "naive_mean": MeanWriter(slots, F, True, NET.phases),
        "landmark": LandmarkWriter(slots, changed.pop("threshold", 0.15)),
        "sink": LandmarkWriter(1),
    }
    recent = {"none": L - 1, "sink": L - 2}.get(kind, L - 1 - slots)
    return SlotMemory(*SIZES, recent, writers[kind], **changed)


def begun(held: SlotMemory | ChunkArchive, rows: int) -> Any:
    return held.init(rows, rng.make_keys(list(range(rows))))


def written(held: SlotMemory | ChunkArchive, rows: int, count: int) -> Any:
    state = begun(held, rows)
    for number in range(count):
        state = held.write(state, chunk(rows, number))
    return state


def query(rows: int, number: int) -> Query:
    times = torch.arange(F).expand(rows, F) + F * number
    return Query(torch.zeros(rows, F, 5), times)


def read(held: SlotMemory | ChunkArchive, state: Any, number: int, rows: int = 2) -> ContextKV:
    kv = held.read(state, query(rows, number)).kv
    assert kv is not None
    return kv


def shown(kv: ContextKV, row: int = 0) -> dict[float, Tensor]:
    """Offset of each frame that is there -> its keys in the first layer."""
    return {float(o): k for o, k, v in zip(kv.offsets[row], kv.layers[0].keys[row], kv.valid[row], strict=True) if v}


# -- what is read, and where ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("kind", ["none", "landmark", "sink", "pose", "full"])
def test_what_fits_is_read_whole_at_its_true_distance(kind: str, count: int) -> None:
    """Slots that hold everything are full attention: with every chunk a landmark, all memories read the same."""
    held = memory(kind, threshold=0.0) if kind == "landmark" else memory(kind)
    state = written(held, 2, count)
    if kind == "pose":  # the query looks at the origin, and views that show nothing of it are not read
        state = replace(state, bank=replace(state.bank, poses=tree.Slots(torch.zeros_like(state.bank.poses.values))))
    frames = shown(read(held, state, count))
    expected = {F * count - t: chunk(2, t // F).trace.kv[0].keys[0, t % F] for t in range(F * count)}  # type: ignore[union-attr]
    assert frames.keys() == expected.keys()
    for offset, keys in expected.items():
        assert torch.equal(frames[offset], keys), offset


@pytest.mark.parametrize("kind", MEMORIES)
def test_an_empty_memory_shows_nothing(kind: str) -> None:
    held = memory(kind)
    state = begun(held, 3)
    assert not read(held, state, 0, 3).valid.any()
    footprint = held.footprint(state)
    assert footprint.frames.tolist() == footprint.bytes.tolist() == [0, 0, 0]


@pytest.mark.parametrize("steps", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["none", "field", "naive_mean", "landmark", "sink"])
def test_ranks_stay_in_the_trained_range_and_the_state_is_constant(kind: str, steps: int) -> None:
    """However long a dream is: never further away than training saw, never more than L_train - 1 chunks of keys."""
    held = memory(kind)
    state, sizes, scenes = begun(held, 1), set(), [chunk(1, 0, seed=seed) for seed in range(20)]
    for number in range(steps // F):
        seen = scenes[number % len(scenes)]
        state = held.write(state, replace(seen, times=torch.arange(F)[None] + F * number))
        if number % 100 == 99:
            kv = read(held, state, number + 1, 1)
            assert kv.offsets[kv.valid].min() >= 1 and kv.offsets[kv.valid].max() <= (L - 1) * F
            assert kv.layers[0].keys.shape[1] == (L - 1) * F
            sizes.add(int(sum(x.numel() for x in tree.tensors(state)) // 1000))
    assert max(sizes) <= 2 * min(sizes)


def test_slot_ranks_are_the_papers() -> None:
    """v_s = q - (L_train - 1 - s) F once all slots are filled, however long ago the slots were written."""
    held = memory("landmark", threshold=0.0)
    state = written(held, 2, 40)
    kv = read(held, state, 40)
    first = kv.offsets[0].view(-1, F)[:, 0]  # of each chunk: recent ones first, then slots
    assert first.tolist() == [F, 2 * F, 3 * F, *((L - 1 - s) * F for s in range(4))]
    for s in range(4):
        assert torch.equal(kv.layers[0].keys[0].view(-1, F, *SIZES[2:])[3 + s], chunk(2, s).trace.kv[0].keys[0])  # type: ignore[union-attr]


@pytest.mark.parametrize(("positions", "expected"), [("absolute", 40), ("block_rel", 40), ("centroid", 40)])
def test_true_positions_of_verbatim_slots_agree(positions: str, expected: int) -> None:
    held = memory("landmark", threshold=0.0, positions=positions)
    kv = read(held, written(held, 2, 40), 40)
    first = kv.offsets[0].view(-1, F)[3:, 0]
    assert first.tolist() == [F * (expected - s) for s in range(4)]


def test_means_stand_where_their_scheme_says() -> None:
    for positions, expected in (("absolute", [20, 12]), ("block_rel", [14, 8]), ("centroid", [17, 10])):
        held = memory("field", slots=2, positions=positions)
        kv = read(held, written(held, 2, 10), 10)  # 5 recent; members 0 to 3 and 4
        first = kv.offsets[0].view(-1, F)[5:, 0]
        assert kv.valid.all() and first.tolist() == [expected[0], 12], positions
    with pytest.raises(ValueError, match=r"memory_positions must be one of .* got 'rank'"):
        memory("field", positions="rank")


def test_slots_that_hold_everything_are_full_attention() -> None:
    torch.manual_seed(3)
    model = video.build(replace(video.preset("MICRO", autoencoder=CODER), net=replace(NET, num_actions=10)))
    with torch.no_grad():
        for weight in model.net.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    rows, count = 2, L - 1
    whole, slots = memory("full"), memory("landmark", threshold=0.0)
    states = [written(held, rows, count) for held in (whole, slots)]
    condition = _condition(rows, count)
    results = [
        model.net.bind(condition, (held.read(state, query(rows, count)),))(torch.ones(rows, F, *NET.latent_shape), torch.full((rows,), 0.5))
        for held, state in zip((whole, slots), states, strict=True)
    ]
    assert torch.allclose(*results, atol=1e-5) and results[0].any()


def _condition(rows: int, number: int) -> Any:
    from wmgym.core import Condition

    now = query(rows, number)
    zero = torch.zeros(rows, 5)
    return Condition(torch.ones(rows, F, dtype=torch.int64), torch.zeros(rows, F, 5), now.poses, now.times, zero, zero)


# -- writers --------------------------------------------------------------------------------------------------------------------------


def member_logits(keys: Tensor, positions: Tensor, query_vector: Tensor) -> Tensor:
    """Scores of one query at time 0 with keys [M, heads, d] rotated to temporal positions [M]."""
    place = place_phases(positions[None], NET.phases)[0, :, :1]
    pairs = NET.phases.pairs
    angles = torch.nn.functional.pad(place[..., : pairs.time], (0, pairs.total - pairs.time))
    return (rotate(keys, angles.cos(), angles.sin()) * query_vector).sum((-1, -2))


def test_field_keeps_the_mean_logit_and_the_naive_mean_does_not() -> None:
    """Mean attention logit over a slot's members, each placed at the slot's position, against the logit of the slot's key (1e-5)."""
    torch.manual_seed(0)
    vector = torch.randn(NET.heads, NET.width // NET.heads)
    errors = {}
    for kind in ("field", "naive_mean"):
        held = memory(kind, slots=2)
        kv = read(held, written(held, 2, 13), 13)  # 5 recent, 8 members in two slots of four
        slot = kv.layers[0].keys[0].view(-1, F, *SIZES[2:])[5]  # [F, N, heads, d]
        at = torch.tensor([-float(kv.offsets[0].view(-1, F)[5, 0])])
        members = torch.stack([chunk(2, m).trace.kv[0].keys[0] for m in range(4)])  # type: ignore[union-attr]  # [M, F, N, heads, d]
        mean = member_logits(members[:, 0, 0], at.expand(4), vector).mean()
        errors[kind] = float((member_logits(slot[None, 0, 0], at, vector)[0] - mean).abs())
    assert errors["field"] < 1e-5 < 1e-2 < errors["naive_mean"]


@pytest.mark.parametrize("members", [1, 2, 5, 8, 9, 16, 23, 64])
def test_field_covers_the_whole_past_evenly(members: int) -> None:
    """Every chunk that left the window is in exactly one slot, in the order of time; full slots hold the same number."""
    held, rows = memory("field"), 2
    recent = L - 1 - 4
    state = begun(held, rows)
    for number in range(members + recent):
        seen = chunk(rows, number)
        marked = tuple(KeysValues(torch.full_like(k.keys, float(number)), torch.full_like(k.values, float(number))) for k in seen.trace.kv)  # type: ignore[union-attr]
        state = held.write(state, replace(seen, trace=Trace(marked)))
    assert isinstance(held, SlotMemory) and held.writer is not None
    slots = held.writer.read(state.slots)
    counts = slots.members[0].tolist()
    assert sum(counts) == members
    start = 0
    for s, count in enumerate(counts):
        if count:
            numbers = torch.arange(start, start + count).float()
            assert slots.chunks.layers[0].values[0, s].mean() == pytest.approx(float(numbers.mean()), rel=1e-4)
            assert slots.oldest[0, s] == F * start and slots.newest[0, s] == F * (start + count - 1)
            start += count
    full = [c for c in counts if c]
    assert all(c == full[0] for c in full[:-1]) and full[-1] <= full[0]


def test_landmarks_are_scene_entries_verbatim_and_frozen() -> None:
    """A A B B A C: the first of each scene is stored, and never touched again."""
    held = memory("landmark", slots=4, threshold=0.5)
    state = begun(held, 1)
    scenes = [0, 0, 1, 1, 0, 2, *[0] * 40]
    for number, scene in enumerate(scenes):
        seen = chunk(1, number, seed=5000 + scene, first=F * number)
        noisy = tuple(KeysValues(k.keys + 0.01 * number, k.values) for k in seen.trace.kv)  # type: ignore[union-attr]
        state = held.write(state, replace(seen, trace=Trace(noisy)))
    assert isinstance(held, SlotMemory) and held.writer is not None
    slots = held.writer.read(state.slots)
    assert slots.members[0].tolist() == [1, 1, 1, 0] and slots.oldest[0, :3].tolist() == [0, F * 2, F * 5]
    expected = chunk(1, 2, seed=5001).trace.kv[1].keys[0] + 0.01 * 2  # type: ignore[union-attr]
    assert torch.equal(slots.chunks.layers[1].keys[0, 1], expected)


def test_full_landmarks_are_kept_or_the_oldest_gives_way() -> None:
    for overflow, expected in (("keep", [0, 1]), ("replace", [3, 4])):
        held = SlotMemory(*SIZES, 1, LandmarkWriter(2, 0.0, overflow=overflow))
        state = written(held, 2, 6)  # 0 to 4 have left the window
        assert held.writer is not None
        assert held.writer.read(state.slots).oldest[0].tolist() == [F * n for n in expected], overflow


def test_compared_with_the_last_landmark_alone_a_scene_seen_again_is_new() -> None:
    for compare, expected in (("all", 2), ("last", 3)):
        held = SlotMemory(*SIZES, 1, LandmarkWriter(4, 0.5, compare))
        state = begun(held, 1)
        for number, scene in enumerate([0, 1, 0, 1]):
            state = held.write(state, chunk(1, number, seed=7000 + scene, first=F * number))
        assert held.writer is not None and int(held.writer.read(state.slots).members.sum()) == expected


def test_frames_that_do_not_exist_have_no_part_in_the_pooled_key() -> None:
    seen = chunk(2, 0)
    half = replace(seen, valid=torch.tensor([[False, True]] * 2))
    only = replace(seen, trace=Trace(tuple(KeysValues(k.keys[:, 1:], k.values[:, 1:]) for k in seen.trace.kv)), valid=half.valid[:, 1:])  # type: ignore[union-attr]
    assert torch.allclose(pooled_keys(chunk_of(half, torch.float32)), pooled_keys(chunk_of(only, torch.float32)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeanWriter(3, F), "even number of slots of at least 2, .* got 3"),
        (lambda: MeanWriter(2, F, True), "needs the network's phases"),
        (lambda: LandmarkWriter(0), "at least 1 slot, got 0"),
        (lambda: LandmarkWriter(2, 3.0), r"cosine distance in \[0, 2\], got 3.0"),
        (lambda: LandmarkWriter(2, compare="some"), "landmark_compare must be one of .* got 'some'"),
        (lambda: LandmarkWriter(2, overflow="drop"), "landmark_overflow must be one of .* got 'drop'"),
        (lambda: SlotMemory(*SIZES, 0), "at least 1 chunk, got 0"),
        (lambda: ChunkArchive(*SIZES, 3), "at least the 4 frames that the network reads, got 3"),
    ],
)
def test_wrong_sizes_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# -- rows and branches ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MEMORIES)
def test_rows_are_alone_also_across_resets(kind: str) -> None:
    """Row 1 is begun anew after 9 chunks; each row reads what it would have read by itself."""
    held = memory(kind)
    state = written(held, 2, 9)
    mask = torch.tensor([False, True])
    state = tree.where(mask, begun(held, 2), state)
    alone = [written(held, 2, 9), begun(held, 2)]
    for number in range(9, 14):
        late = chunk(2, number)
        early = replace(late, times=late.times - 9 * F)
        mixed = replace(late, times=torch.where(mask[:, None], early.times, late.times))
        state, alone = held.write(state, mixed), [held.write(alone[0], late), held.write(alone[1], early)]
    times = torch.where(mask[:, None], query(2, 5).times, query(2, 14).times)
    kv = held.read(state, Query(torch.zeros(2, F, 5), times)).kv
    assert kv is not None
    for row, (other, number) in enumerate(zip(alone, (14, 5), strict=True)):
        mine, theirs = shown(kv, row), shown(read(held, other, number), row)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[o], theirs[o]) for o in mine)


@pytest.mark.parametrize("kind", ["none", "landmark", "pose", "full"])
def test_branches_share_what_they_have_not_written(kind: str) -> None:
    held = memory(kind)
    state = written(held, 1, 12)
    size = sum(x.numel() for x in tree.tensors(state))
    many = tree.repeat(state, 32)
    banks = {"none": lambda s: s.recent, "landmark": lambda s: s.recent}.get(kind, lambda s: s.bank)
    assert len(banks(many).archive) == len(banks(state).archive)
    assert sum(x.numel() for x in tree.tensors(banks(many).archive.data)) == sum(x.numel() for x in tree.tensors(banks(state).archive.data))
    if kind == "landmark":
        assert sum(x.numel() for x in tree.tensors(many.slots.chunks.archive.data)) == sum(
            x.numel() for x in tree.tensors(state.slots.chunks.archive.data)
        )
    after = held.write(many, chunk(32, 12))
    assert sum(x.numel() for x in tree.tensors(state)) == size, "the parent is untouched"
    assert shown(read(held, after, 13, 32), 31).keys() == shown(read(held, held.write(state, chunk(1, 12)), 13, 1), 0).keys()


# -- the whole system -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(5)
    config = replace(
        video.preset("MICRO", autoencoder=CODER), net=replace(NET, num_actions=10), pose_source="actions", sampler=SamplerConfig("euler", 2)
    )
    model = video.build(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    file = tmp_path_factory.mktemp("video") / "video-minecraft.safetensors"
    save(file, model.eval(), config)
    return str(file)


def world(checkpoint: str, memory: str, **options: Any) -> Any:
    return load_world(checkpoint, system="worldtrace", memory=memory, device="cpu", dtype="float32", options=options)


@pytest.mark.parametrize("length", range(1, 10))
@pytest.mark.parametrize("kind", ["none", "landmark", "pose", "latents"])
def test_openings_of_any_length(checkpoint: str, kind: str, length: int) -> None:
    """Frames of the opening are remembered as whole chunks that end with it; the first may begin inside a chunk."""
    env = wmgym.make_env(world(checkpoint, kind), "free", setting="minecraft", opening=clip(length))
    _, info = env.reset(seed=0)
    held = -(-length // F) * F
    assert info["frames"].shape == (F, 16, 16, 3)
    kept = {"landmark": (held, min(held, 3 * F + F)), "latents": (length,)}.get(kind, (held,))
    assert info["memory_frames"] in kept
    for _ in range(3):
        _, _, _, _, info = env.step(np.ones(F, np.int64))
    assert np.isfinite(info["pose"]).all()


@pytest.mark.parametrize("kind", [*MEMORIES, "latents"])
def test_lanes_dream_what_single_envs_dream(checkpoint: str, kind: str) -> None:
    """Two lanes with openings of different lengths, across an autoreset, against two single envs."""
    loaded = world(checkpoint, kind)
    clips = [clip(5), clip(12, x=3.0)]
    vec = wmgym.make_env(loaded, "free", setting="minecraft", num_envs=2, horizon=12)
    seen, _ = vec.reset(seed=4, options={"opening": clips})
    singles = [wmgym.make_env(loaded, "free", setting="minecraft", horizon=12) for _ in clips]
    for lane, single in enumerate(singles):
        single.reset(seed=4 + lane, options={"opening": clips[lane]})
    actions = np.random.default_rng(0).integers(0, 10, (6, 2, F))
    for step in actions:
        seen, _, _, truncated, info = vec.step(step)
        for lane, single in enumerate(singles):
            alone, _, _, cut, own = single.step(step[lane])
            assert np.abs(seen[lane].astype(int) - alone).max() <= 1 and cut == truncated[lane]
            np.testing.assert_array_equal(info["memory_retrieved"][lane], own["memory_retrieved"])


def test_keywords_reach_the_memory_and_wrong_ones_are_named(checkpoint: str) -> None:
    held = world(checkpoint, "landmark", memory_slots=2, memory_positions="absolute").settings.memories[0]
    assert (held.recent, held.writer.slots, held.positions) == (5, 2, "absolute")
    with pytest.raises(TypeError, match=r"'rank': system 'worldtrace' knows memory_positions, memory_slots"):
        world(checkpoint, "landmark", rank=3)
    with pytest.raises(ValueError, match=r"memory_slots must be at most 6, .* got 7"):
        world(checkpoint, "landmark", memory_slots=7)
    with pytest.raises(ValueError, match="even number of slots"):
        world(checkpoint, "field", memory_slots=3)
    with pytest.raises(ValueError, match=r"memory must be one of .*'landmark'.* got 'retrieval'"):
        world(checkpoint, "retrieval")
    assert set(systems.get("worldtrace").memories) == {*MEMORIES, "latents"}


def test_every_memory_reads_as_many_keys(checkpoint: str) -> None:
    """Memories of constant state are compared at the same number of keys read."""
    for kind in ("none", "field", "naive_mean", "landmark", "sink", "pose"):
        held = world(checkpoint, kind).settings.memories[0]
        assert read(held, written(held, 1, 30), 30, 1).layers[0].keys.shape[1] == (L - 1) * F, kind


def test_a_memory_without_a_trace_says_so() -> None:
    held, without = memory("none"), replace(chunk(1, 0), trace=None)
    state = begun(held, 1)
    with pytest.raises(ValueError, match="this network's trace has none"):
        held.write(state, without)


def test_contexts_of_this_memory_hold_keys_and_values_only() -> None:
    context = memory("none").read(begun(memory("none"), 1), query(1, 0))
    assert isinstance(context, Context) and not context.frames and context.tokens is None


def test_ids_open_a_video_networks_weights(checkpoint: str) -> None:
    env = gym.make("WorldTrace-Minecraft-v0", checkpoint=checkpoint, task="free", opening=clip(5), memory_slots=2)
    assert env.action_space == gym.spaces.MultiDiscrete([10] * F)
    env.reset(seed=0)
    _, _, _, _, info = env.step(env.action_space.sample())
    assert info["frames"].shape[0] == F and env.unwrapped.identity.system == "worldtrace" and env.unwrapped.identity.memory == "landmark"
    held = gym.make("WorldTrace-Minecraft-v0", checkpoint=checkpoint, task="free", opening=clip(5), hold_action=True, memory="pose")
    assert held.action_space == gym.spaces.Discrete(10)
    with pytest.raises(ValueError, match=r"no bundled weights: give checkpoint= .* or train weights with `wmgym train video`"):
        gym.make("CoME-MemoryCards-v0")
