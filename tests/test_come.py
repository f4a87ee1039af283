"""CoME: experts that are small differences to one network, composed in predicted noise; adapters fitted to each row while it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from standins import clip
from test_training import collect
from torch import Tensor

import wmgym
from wmgym import rng, tree
from wmgym.benchmarks.memorising import memorising_times
from wmgym.checkpoint import load, load_world, read, save
from wmgym.core import Adapters, Clip, Condition, Context, Seen, WorldState
from wmgym.experiments.bench import MemoriseArgs, bench_memorise
from wmgym.memory.lora_memory import Fitting, LoraMemory, LoraState, _adamw
from wmgym.nets.autoencoder import AutoencoderConfig
from wmgym.nets.composed import AttentionExpert, Composed, ComposedConfig, Role
from wmgym.nets.lora import LowRank, fresh, linear, shapes_of
from wmgym.nets.two_streams import Stream, two_streams
from wmgym.nets.video_dit import VideoDiT, VideoDiTConfig
from wmgym.systems import come, video
from wmgym.systems.window_loss import VideoWindowLoss
from wmgym.train.come import TrainArgs, train
from wmgym.world_model import SamplerConfig, WorldModel

F = 2
CODER = AutoencoderConfig(kind="pixels", factor=8, frame_size=16)
NET = VideoDiTConfig(CODER.latent_shape, width=32, depth=2, heads=2, chunk=F, window=4)


def with_random_gates(model: torch.nn.Module) -> torch.nn.Module:
    """Weights that begin at zero would hide contexts and adapters."""
    for weight in model.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.05)
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = replace(video.preset("MICRO", autoencoder=CODER), net=NET, pose_source="actions", sampler=SamplerConfig("euler", 2))
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("video") / "video.safetensors"
    save(path, with_random_gates(video.build(config)).eval(), config)
    return str(path)


def world(checkpoint: str, memory: str = "ltm", **options: Any) -> WorldModel:
    return load_world(checkpoint, system="come", memory=memory, device="cpu", dtype="float32", options={"updates": 3, **options})


def opening(rows: int, frames: int = 10, seed: int = 0) -> Clip:
    """Random frames along a walk, another in each row."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(256, (rows, frames, 16, 16, 3), generator=generator, dtype=torch.uint8)
    poses = torch.randn(rows, frames, 5, generator=generator).cumsum(1) * torch.tensor([0.2, 0.2, 0, 0.2, 0.02])
    actions = torch.randint(10, (rows, frames), generator=generator)
    return Clip(pictures, actions, poses, torch.ones(rows, frames, dtype=torch.bool))


def rows_of(given: Clip, index: list[int]) -> Clip:
    return tree.select(given, torch.tensor(index))


def begun(model: WorldModel, given: Clip, seeds: list[int] | None = None) -> WorldState:
    return model.start(given, rng.make_keys(seeds or list(range(len(given.valid)))))


def lora(state: WorldState) -> LoraState:
    return next(memory for memory in state.memories if isinstance(memory, LoraState))


def values(state: WorldState) -> list[Tensor]:
    return tree.tensors(lora(state).adapters.layers)


def seen(rows: int, frames: int, seed: int = 0, first: int = 0, observed: bool = True) -> Seen:
    generator = torch.Generator().manual_seed(seed)
    poses = torch.randn(rows, frames, 5, generator=generator) * torch.tensor([1, 1, 0, 1, 0.1])
    there = torch.ones(rows, frames, dtype=torch.bool)
    times = first + torch.arange(frames).expand(rows, frames)
    latents = torch.randn(rows, frames, *NET.latent_shape, generator=generator)
    return Seen(latents, poses, times, times % 10, 0.1 * poses, there, there if observed else ~there)


def memory(net: VideoDiT | None = None, context: bool = False, **how: Any) -> LoraMemory:
    net = net if net is not None else network()
    fitting = Fitting(**{"rank": 3, "updates": 2, "batch": 4, "chunks": 3 if context else 1, **how})
    kinds = ("qkv", "out", "mlp_in", "mlp_out", "address")
    return LoraMemory(NET.latent_shape, shapes_of(net, kinds), VideoWindowLoss(net, context=context), F, fitting, 64)


def network() -> VideoDiT:
    torch.manual_seed(0)
    return with_random_gates(VideoDiT(NET)).eval().requires_grad_(False)  # type: ignore[return-value]


def condition(rows: int, frames: int = F) -> Condition:
    chunk = seen(rows, frames, seed=5)
    return Condition(chunk.actions, chunk.egomotion, chunk.poses, chunk.times, torch.zeros(rows, 5), torch.zeros(rows, 5))


# -- adapters ---------------------------------------------------------------------------------------------------------------------------


def test_new_adapters_change_nothing() -> None:
    net, x, level = network(), torch.randn(2, F, *NET.latent_shape), torch.full((2,), 0.5)
    shapes = shapes_of(net, ("qkv", "out", "mlp_in", "mlp_out", "address"))
    for adapters in (fresh(shapes, 3, rng.make_keys([1, 2])), LowRank(shapes, 3).adapters()):
        assert torch.equal(net.bind(condition(2), (Context(adapters=adapters),))(x, level), net.bind(condition(2), ())(x, level))


def test_one_set_serves_all_rows_and_several_rows_may_share_one() -> None:
    layer, x = torch.nn.Linear(5, 7), torch.randn(4, 3, 2, 5)
    one = torch.randn(1, 2, 5), torch.randn(1, 7, 2)
    two = torch.randn(2, 2, 5), torch.randn(2, 7, 2)

    def run(pair: tuple[Tensor, Tensor]) -> Tensor:
        return linear(layer, x, Adapters({"a": pair}, torch.zeros(1)), "a")

    torch.testing.assert_close(run(one), layer(x) + x @ (one[1] @ one[0])[0].T)
    expanded = two[0].repeat_interleave(2, 0), two[1].repeat_interleave(2, 0)
    torch.testing.assert_close(run(two), run(expanded))


def merged(net: VideoDiT, adapters: Adapters) -> VideoDiT:
    """The network whose weights are W + up down."""
    other = VideoDiT(NET).eval()
    other.load_state_dict(net.state_dict())
    parts = dict(other.named_modules())
    for name, (down, up) in adapters.layers.items():
        parts[name].weight.data += (up @ down)[0]
    return other.requires_grad_(False)


def random_adapters(net: VideoDiT, rows: int = 1) -> Adapters:
    new = fresh(shapes_of(net, ("qkv", "out", "mlp_in", "mlp_out", "address")), 3, rng.make_keys(list(range(rows))))
    return Adapters({name: (a, 0.3 * torch.randn_like(b)) for name, (a, b) in new.layers.items()}, new.version)


# -- the composed network -----------------------------------------------------------------------------------------------------------------


def composed() -> Composed:
    torch.manual_seed(0)
    net = Composed(ComposedConfig(NET))
    return with_random_gates(net).eval().requires_grad_(False)  # type: ignore[return-value]


def test_keys_of_an_adapted_network_are_computed_under_its_own_adapters() -> None:
    """Two ways: the adapted network's past as it is bound, and keys that a network with merged weights caches."""
    net = composed()
    adapters = random_adapters(net.base)
    held = memory(net.base)
    state = replace(held.write(held.init(1, rng.make_keys([0])), seen(1, F)), adapters=adapters)
    now = replace(condition(1), times=F + torch.arange(F)[None])
    query = wmgym.core.Query(now.poses, now.times)
    context = replace(held.read(state, query), role=Role("ltm", "mean", past=True))
    base = Context(role=Role("base", "mean", weight=0.0))
    x, level = torch.randn(1, F, *NET.latent_shape), torch.full((1,), 0.7)

    other, past = merged(net.base, adapters), context.frames[0]
    start = wmgym.geometry.step_back(past.poses[:, 0], past.egomotion[:, 0])
    before = Condition(past.actions, past.egomotion, past.poses, past.times, start, now.origin)
    kv = other.bind(before, ()).trace(past.latents, past.poses).kv
    cached = wmgym.core.ContextKV(kv, past.offsets, past.valid, past.poses)
    wanted = other.bind(now, (Context(kv=cached),))(x, level)
    torch.testing.assert_close(net.bind(now, (base, context))(x, level), wanted, atol=1e-5, rtol=1e-4)


def test_an_expert_of_weight_0_is_never_run() -> None:
    net = composed()
    context = Context(adapters=None, role=Role("ltm", weight=0.0))  # adapters that are missing would be noticed
    bound = net.bind(condition(1), (Context(role=Role("base")), context))
    x, level = torch.randn(1, F, *NET.latent_shape), torch.full((1,), 0.7)
    assert torch.equal(bound(x, level), net.base.bind(condition(1), ())(x, level))


@pytest.mark.parametrize("mode", ["sum", "mean", "poe"])
def test_one_expert_with_alpha_1_is_that_expert(mode: str) -> None:
    net = composed()
    adapters = random_adapters(net.base)
    contexts = (Context(role=Role("base", mode, weight=0.0)), Context(adapters=adapters, role=Role("ltm", mode, past=False)))
    x, level = torch.randn(1, F, *NET.latent_shape), torch.full((1,), 0.7)
    alone = net.base.bind(condition(1), (Context(adapters=adapters),))(x, level)
    torch.testing.assert_close(net.bind(condition(1), contexts)(x, level), alone)


def test_the_addressed_composition_moves_the_base_by_what_the_adapters_add() -> None:
    net = composed()
    adapters = random_adapters(net.base)
    contexts = (Context(role=Role("base")), Context(adapters=adapters, role=Role("ltm", weight=0.5, past=False)))
    x, level, now = torch.randn(1, F, *NET.latent_shape), torch.full((1,), 0.7), condition(1)
    plain, adapted = net.base.bind(now, ())(x, level), net.base.bind(now, (Context(adapters=adapters),))(x, level)
    torch.testing.assert_close(net.bind(now, contexts)(x, level), plain + 0.5 * (adapted - plain))


def test_a_composition_needs_roles_that_it_has() -> None:
    with pytest.raises(ValueError, match="needs the role of each context, got None"):
        composed().bind(condition(1), (Context(),))
    with pytest.raises(ValueError, match="needs a context for each of its experts, got none"):
        composed().bind(condition(1), ())
    with pytest.raises(ValueError, match=r"these weights have the experts \['base', 'ltm'\], not 'stm'"):
        composed().bind(condition(1), (Context(role=Role("base")), Context(role=Role("stm"))))


def test_attention_slides_but_for_the_layers_that_see_the_whole_window() -> None:
    assert AttentionExpert().layers(6) == (4, 9, 4, 9, 4, 4)  # the paper's two full layers
    assert AttentionExpert(window=51, reach=None).layers(3) == (50, 50, 50)
    assert AttentionExpert().layers(1) == (9,)  # a shallow network has a full layer too


# -- fitting ------------------------------------------------------------------------------------------------------------------------------


def test_a_step_is_adamw_s() -> None:
    how = Fitting(rate=0.01, decay=0.1)
    ours, theirs = [torch.randn(1, 3, 4)], torch.nn.Parameter(torch.empty(1, 3, 4))
    theirs.data.copy_(ours[0])
    optimiser = torch.optim.AdamW([theirs], how.rate, betas=how.betas, weight_decay=how.decay)
    m, v = [torch.zeros(1, 3, 4)], [torch.zeros(1, 3, 4)]
    for step in range(1, 5):
        gradient = torch.randn(1, 3, 4)
        _adamw(ours, (gradient,), [m, v], torch.tensor([step]), how)
        theirs.grad = gradient
        optimiser.step()
        torch.testing.assert_close(ours[0], theirs.data)


@pytest.mark.parametrize("context", [False, True])
def test_memorising_lowers_the_loss_on_what_was_memorised(context: bool) -> None:
    net, windows, chunks = network(), 32, 3 if context else 1
    held = memory(net, context, updates=80, rate=0.02, batch=8, rank=8)
    shown = seen(1, 6)
    before = held.init(1, rng.make_keys([1]))
    after = held.write(before, shown)
    part = Seen(*(getattr(shown, n)[:, : chunks * F] for n in ("latents", "poses", "times", "actions", "egomotion", "valid", "observed")))
    many, origin, keys = tree.repeat(part, windows), after.origin.expand(windows, 5), rng.make_keys(list(range(windows)))
    with torch.no_grad():
        old, new = (float(held.loss(many, origin, keys, state.adapters).mean()) for state in (before, after))
    assert new < 0.95 * old


@pytest.mark.parametrize("context", [False, True])
def test_a_row_is_fitted_in_company_as_alone(context: bool) -> None:
    held = replace(memory(network().double(), context, updates=4), dtype=torch.float64)
    shown = seen(3, 8)
    shown = replace(shown, latents=shown.latents.double())
    keys = rng.make_keys([5, 6, 7])
    together = held.write(held.init(3, keys), shown)
    for row in range(3):
        index = torch.tensor([row])
        alone = held.fit(held.write(held.init(1, keys[index]), tree.select(replace(shown, observed=~shown.valid), index)))
        for a, b in zip(tree.tensors(tree.select(together.adapters, index)), tree.tensors(alone.adapters), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_fitting_changes_no_shared_weight_and_no_earlier_state() -> None:
    net = network()
    held = memory(net)
    first = held.write(held.init(2, rng.make_keys([1, 2])), seen(2, 8))
    weights, kept = [p.clone() for p in net.parameters()], [t.clone() for t in tree.tensors(first.adapters)]
    later = held.write(first, seen(2, 8, seed=1, first=8))
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(kept, tree.tensors(first.adapters), strict=True))
    assert later.adapters.version.tolist() == [4, 4]


def test_rows_that_saw_nothing_new_are_left_as_they_were() -> None:
    held = memory()
    first = held.write(held.init(2, rng.make_keys([1, 2])), seen(2, 8))
    more = seen(2, 4, seed=1, first=8)
    there = torch.tensor([[True], [False]]).expand(2, 4)
    later = held.write(first, replace(more, valid=there, observed=there))
    assert later.adapters.version.tolist() == [4, 2]
    one = torch.tensor([1])
    for a, b in zip(tree.tensors(tree.select(first.adapters, one)), tree.tensors(tree.select(later.adapters, one)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("when", "versions"), [("observed", [2, 2, 2, 4]), ("all", [2, 2, 4, 6]), ("off", [0, 0, 0, 0])])
def test_what_is_memorised(when: str, versions: list[int]) -> None:
    """The opening, twice 3 dreamed frames of which 6 fill a window, and 2 observed ones."""
    held = memory(when=when, window=6)
    state = held.init(1, rng.make_keys([1]))
    found = []
    for number, (frames, observed) in enumerate([(8, True), (3, False), (3, False), (2, True)]):
        state = held.write(state, seen(1, frames, seed=number, first=sum([8, 3, 3, 2][:number]), observed=observed))
        found += state.adapters.version.tolist()
    assert found == versions


def test_an_opening_may_wait_for_the_first_observation() -> None:
    held = memory(at_reset=False)
    state = held.write(held.init(1, rng.make_keys([1])), seen(1, 8))
    assert state.adapters.version.tolist() == [0]
    assert held.write(state, seen(1, 2, first=8)).adapters.version.tolist() == [2]


def test_equal_openings_are_fitted_once(checkpoint: str) -> None:
    model = world(checkpoint)
    calls = []
    held = next(m.memory for m in model.settings.memories if isinstance(m.memory, LoraMemory))
    loss = held.loss
    object.__setattr__(held, "loss", lambda *a: calls.append(1) or loss(*a))
    given = opening(2, seed=77)
    first = begun(model, given, [8, 9])
    assert len(calls) == 3
    again = begun(model, rows_of(given, [1, 0]), [9, 8])
    assert len(calls) == 3
    for a, b in zip(values(first), values(again), strict=True):
        assert torch.equal(a, b.flip(0))
    begun(model, given, [8, 10])  # a new row
    assert len(calls) == 6


@pytest.mark.parametrize(("replay", "oldest"), [("all", 0), ("window", 14)])
def test_windows_are_drawn_from_what_is_kept(replay: str, oldest: int) -> None:
    drawn: list[Seen] = []
    net = network()
    inner = VideoWindowLoss(net, context=False)

    def loss(window: Seen, *rest: Any) -> Tensor:
        drawn.append(window)
        return inner(window, *rest)

    held = replace(memory(net, replay=replay, window=6, batch=64), loss=loss)
    shown = seen(1, 20)
    held.write(held.init(1, rng.make_keys([1])), shown)
    times = drawn[0].times
    assert times.shape == (64, F) and bool(drawn[0].valid.all())
    assert times.min() == oldest and times.max() == 19 and bool((times.diff(dim=1) == 1).all())
    for name in ("latents", "poses", "actions", "egomotion"):
        assert torch.equal(getattr(drawn[0], name), getattr(shown, name)[0, times])


def test_an_opening_shorter_than_a_window_is_memorised() -> None:
    held = memory(context=True)
    state = held.write(held.init(1, rng.make_keys([1])), seen(1, 1))
    assert state.adapters.version.tolist() == [2] and all(t.isfinite().all() for t in tree.tensors(state.adapters))


# -- worlds ---------------------------------------------------------------------------------------------------------------------------


def test_the_base_alone_is_the_video_network_with_one_past_chunk(checkpoint: str) -> None:
    given, keys = opening(1), rng.make_keys([3])
    ours = world(checkpoint, "window", updates=1)
    theirs = load_world(checkpoint, device="cpu", dtype="float32")
    frames = [m.step(m.start(given, keys), torch.tensor([[1, 2]]))[1].pixels for m in (ours, theirs)]
    assert torch.equal(*frames)
    assert world(checkpoint, "none").settings.memories[0].memory.recent == 1


@pytest.mark.parametrize("setting", ["addressed", "literal"])
@pytest.mark.parametrize("mode", ["guided", "sum", "mean", "poe"])
def test_the_same_seed_dreams_the_same_and_states_carry_adapters(checkpoint: str, mode: str, setting: str) -> None:
    model = world(checkpoint, ltm=setting, compose=mode, memorise="all", memorise_window=2)
    actions = torch.tensor([[1, 2], [3, 4]])
    state, frames = model.step(begun(model, opening(2)), actions)
    other = world(checkpoint, ltm=setting, compose=mode, memorise="all", memorise_window=2)
    same, shown = other.step(begun(other, opening(2)), actions)
    assert torch.equal(frames.pixels, shown.pixels)
    assert lora(state).adapters.version.tolist() == [6, 6]
    restored = tree.like(begun(model, opening(2, seed=9)), tree.leaves(state))
    assert torch.equal(model.step(restored, actions)[1].pixels, other.step(same, actions)[1].pixels)


def test_branches_adapt_apart(checkpoint: str) -> None:
    model = world(checkpoint, memorise="all", memorise_window=2)
    two = tree.repeat(begun(model, opening(1)), 2)
    moved, _ = model.step(two, torch.tensor([[1, 2], [3, 4]]))
    assert any(not torch.equal(a[0], a[1]) for a in values(moved))
    assert all(torch.equal(a[0], a[1]) for a in values(two))


def test_observing_memorises_and_a_reset_forgets(checkpoint: str) -> None:
    env = gym.make("CoME-Minecraft-v0", checkpoint=checkpoint, task="free", opening=clip(12), updates=3).unwrapped
    env.reset(seed=0)
    begun_with = values(env.save_state().state.world)
    more = clip(4)
    env.observe(more["frames"], more["actions"], more["poses"])
    assert lora(env.save_state().state.world).adapters.version.tolist() == [6]
    env.reset(seed=0)
    assert all(torch.equal(a, b) for a, b in zip(begun_with, values(env.save_state().state.world), strict=True))


def test_adapters_count_as_memory(checkpoint: str) -> None:
    small, large = (begun(world(checkpoint, rank=rank), opening(1)).footprint.bytes for rank in (2, 4))
    assert int(large - small) == 3 * 4 * 2 * sum(
        a + b for a, b in shapes_of(network(), ("qkv", "out", "mlp_in", "mlp_out", "address")).values()
    )


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"ltm": "both"}, r"ltm must be one of \['addressed', 'literal'\], got 'both'"),
        ({"compose": "product"}, "compose must be one of .*, got 'product'"),
        ({"alphas": 0.5}, "alphas must be at least 1.0, got 0.5 for expert 'base'"),
        ({"weights": {"ltm": -1}}, "weights must be at least 0.0, got -1 for expert 'ltm'"),
        ({"weights": {"gru": 1}}, "weights must name experts in .*, got 'gru'"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"updates": 0}, "updates must be at least 1, got 0"),
        ({"memorise_window": 0}, "window must be at least 1, got 0"),
        ({"memorise": "some"}, r"memorise must be one of \['observed', 'all', 'off'\], got 'some'"),
        ({"replay": "none"}, r"replay must be one of \['all', 'window'\], got 'none'"),
        ({"memorise_rate": 0.0}, "rate must be positive, got 0.0"),
        ({"ltm_baseline": "none"}, r"ltm_baseline must be one of \['empty', 'context'\], got 'none'"),
        ({"memory_budget": 1}, "memory_budget must be at least the 2 frames of a window, got 1"),
    ],
)
def test_wrong_keywords_name_what_is_allowed(checkpoint: str, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gym.make("CoME-Minecraft-v0", checkpoint=checkpoint, task="free", opening=clip(5), **keywords)


def test_a_missing_expert_is_named_with_the_command_that_trains_it(checkpoint: str) -> None:
    with pytest.raises(ValueError, match=r"come-stm-minecraft: no such delta; .* wmgym train come --expert stm"):
        world(checkpoint, "stm")


# -- the short-term expert --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expert(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained short-term expert on the base, with a spatial one beside it."""
    folder = tmp_path_factory.mktemp("stm")
    collect(folder / "data", episodes=3, length=30)
    report = train(arguments(checkpoint, folder), progress=False)
    other = train(arguments(checkpoint, folder, expert="sltm", out=folder / "sltm"), progress=False)
    path = Path(other["checkpoint"])
    path.rename(folder / "run" / path.name)
    return Path(report["checkpoint"])


def arguments(checkpoint: str, folder: Path, **changed: Any) -> TrainArgs:
    return TrainArgs((folder / "data",), **{"out": folder / "run", "base": checkpoint, "steps": 4, "batch": 2, "save_every": 2, **changed})


def test_a_trained_expert_holds_only_its_difference(checkpoint: str, expert: Path) -> None:
    assert expert.name == "come-stm-minecraft.safetensors"
    stored = read(expert)
    assert all(name.startswith("net.attention.stm.") for name in stored.tensors) and stored.base is not None
    assert stored.base["sha256"] == read(checkpoint).sha256
    ups = [t for name, t in stored.tensors.items() if ".up." in name]
    assert ups and all(t.any() for t in ups)


@pytest.mark.parametrize("memory", ["stm", "sltm", "stm-ltm", "come", "ltm", "none"])
def test_an_expert_runs_beside_the_others(expert: Path, memory: str) -> None:
    env = gym.make("CoME-Minecraft-v0", checkpoint=str(expert), memory=memory, task="free", opening=clip(25), updates=2)
    env.reset(seed=0)
    _, _, _, _, info = env.step(env.action_space.sample())
    assert info["frames"].shape[0] == F
    held = env.unwrapped.save_state().state.world.memories
    assert len(held) == {"stm": 2, "sltm": 2, "stm-ltm": 3, "come": 4, "ltm": 2, "none": 1}[memory]


def test_the_spatial_expert_has_larger_patches_and_adapters_of_its_own(expert: Path) -> None:
    model = world(str(expert), "come")
    assert model.net.sltm.config.patch == 2 * NET.patch and model.net.sltm.config.address
    state = begun(model, opening(1))
    ltm, sltm = (m for m in state.memories if isinstance(m, LoraState))
    assert ltm.adapters.version.tolist() == sltm.adapters.version.tolist() == [3]
    assert ltm.adapters.layers.keys() != sltm.adapters.layers.keys()  # a network of its own, with fewer blocks


@pytest.mark.parametrize("name", ["sliding", "full"])
def test_long_windows_are_read_by_one_network_alone(checkpoint: str, tmp_path: Path, name: str) -> None:
    base = load(checkpoint, system="come")
    config = replace(base.config, experts=(name,))
    model = come.build(config)
    model.load_state_dict(base.model.state_dict(), strict=False)
    save(tmp_path / f"come-{name}-minecraft.safetensors", model, config, base=checkpoint)
    opened = world(str(tmp_path / f"come-{name}-minecraft.safetensors"), name)
    state, frames = opened.step(begun(opened, opening(1, frames=16)), torch.tensor([[1, 2]]))
    assert len(state.memories) == 1 and int(state.footprint.frames) == 18 and frames.finite.all()
    assert opened.net.attending(name)[0].config.reach == ((50, 50) if name == "full" else (4, 50))


def test_base_and_expert_have_keys_of_their_own(expert: Path) -> None:
    state = begun(world(str(expert), "stm"), opening(1, frames=24))
    base, stm = (memory.recent.archive.data.layers[0].keys for memory in state.memories)
    assert not torch.equal(base[-1], stm[-1])


def test_the_expert_dreams_as_it_is_trained(expert: Path) -> None:
    """Two ways: its cache, chunk by chunk, and one pass over the whole window."""
    model = world(str(expert), "stm")
    net: Composed = model.net
    chunks = 5
    shown = seen(1, chunks * F, seed=3)
    start = wmgym.geometry.step_back(shown.poses[:, 0], shown.egomotion[:, 0])
    whole = Condition(shown.actions, shown.egomotion, shown.poses, shown.times, start, torch.zeros(1, 5))
    noisy = torch.randn(1, chunks * F, *NET.latent_shape)
    levels = torch.full((1, chunks * F), 0.5)
    everything = torch.ones(1, chunks, dtype=torch.bool), torch.ones(1, chunks * F, dtype=torch.bool)
    still = replace(whole, egomotion=wmgym.geometry.relative_pose(whole.poses, torch.cat([start[:, None], whole.poses[:, :-1]], 1)))
    clean, other = Stream(shown.latents, torch.zeros(1, chunks * F), still), Stream(noisy, levels, whole)
    network, adapters = net.attending("stm")
    wanted, _ = two_streams(network, clean, other, *everything, adapters)
    kept: list[Any] = []
    for chunk in range(chunks):
        part = slice(chunk * F, (chunk + 1) * F)
        before = start if chunk == 0 else whole.poses[:, chunk * F - 1]
        now = Condition(*(getattr(whole, n)[:, part] for n in ("actions", "egomotion", "poses", "times")), before, whole.origin)
        frames = torch.arange(chunk * F, 0, -1)[None]
        layers = (
            tuple(
                wmgym.core.KeysValues(torch.cat([k[i].keys for k in kept], 1), torch.cat([k[i].values for k in kept], 1)) for i in range(2)
            )
            if kept
            else ()
        )
        kv = wmgym.core.ContextKV(layers, frames, torch.ones_like(frames, dtype=torch.bool), whole.poses[:, : chunk * F]) if kept else None
        bound = net._bind_attending(now, Context(kv=kv), "stm")
        torch.testing.assert_close(bound(noisy[:, part], torch.full((1,), 0.5)), wanted[:, part], atol=1e-5, rtol=1e-4)
        kept.append(bound.trace(shown.latents[:, part], now.poses).kv)


def test_training_an_expert_resumes_where_it_was_saved(checkpoint: str, expert: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(expert.parents[1] / "data")
    train(arguments(checkpoint, tmp_path, steps=2), progress=False)
    (tmp_path / "run" / expert.name).unlink()
    report = train(arguments(checkpoint, tmp_path), progress=False)
    again, once = read(report["checkpoint"]).tensors, read(expert).tensors
    assert again.keys() == once.keys() and all(t.isfinite().all() for t in again.values())


def test_an_expert_of_other_weights_is_refused(expert: Path, tmp_path: Path) -> None:
    config = replace(video.preset("MICRO", autoencoder=CODER), net=NET, pose_source="actions")
    torch.manual_seed(1)
    save(tmp_path / "other.safetensors", video.build(config), config)
    (tmp_path / expert.name).write_bytes(expert.read_bytes())
    with pytest.raises(ValueError, match="is a delta on weights with SHA-256"):
        world(str(tmp_path / "other.safetensors"), "stm")


def test_training_needs_a_base_and_a_known_expert(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="base must name the checkpoint of a video network"):
        TrainArgs((tmp_path,), tmp_path)
    with pytest.raises(ValueError, match=r"expert must be one of \['sltm', 'stm', 'sliding', 'full', 'ssm'\], got 'ltm'"):
        TrainArgs((tmp_path,), tmp_path, base="x", expert="ltm")


# -- speed --------------------------------------------------------------------------------------------------------------------------------


def test_updates_are_timed_alone_and_in_company(checkpoint: str, tmp_path: Path) -> None:
    report = bench_memorise(MemoriseArgs(checkpoint, "come", "ltm", lanes=(1, 2), rounds=1, device="cpu", out=tmp_path))
    assert [row["lanes"] for row in report["updates"]] == [1, 2] and report["updates"][0]["times_faster_per_lane_than_1"] == 1
    assert all(row["ms_per_update"] == pytest.approx(row["lanes"] * row["ms_per_update_and_lane"]) for row in report["updates"])
    assert report["update_over_training_step"] > 0 and report["windows_per_update"] == 8 and (tmp_path / "table.txt").exists()
    with pytest.raises(ValueError, match="memory 'none' fits no adapters"):
        bench_memorise(MemoriseArgs(checkpoint, "come", "none", device="cpu"))


def test_timing_leaves_the_weights_frozen(checkpoint: str) -> None:
    model = world(checkpoint)
    before = [p.clone() for p in model.net.parameters()]
    memorising_times(model, (1,), 1)
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(before, model.net.parameters(), strict=True))
