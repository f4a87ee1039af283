"""CoME's row SSM: one network that reads a few past chunks and carries a recurrent state. It dreams as it is trained, for any length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from standins import clip
from test_come import NET, F, arguments, begun, checkpoint, opening, rows_of, with_random_gates, world
from test_come_baseline import part, past_of, window
from test_training import collect
from torch import Tensor, nn

from wmgym import tree
from wmgym.checkpoint import load, read, save
from wmgym.core import Condition, Context, ContextKV, KeysValues
from wmgym.geometry import relative_pose
from wmgym.nets.composed import AttentionExpert, Composed, ComposedConfig, Role
from wmgym.nets.drowned import noise_of
from wmgym.nets.recurrence import layers_with_readout
from wmgym.nets.stateful import blank_state
from wmgym.nets.two_streams import Stream, two_streams
from wmgym.systems import come
from wmgym.train.come import TrainArgs, train, windows_of
from wmgym.world_model import WorldModel

__all__ = ["checkpoint"]  # a fixture

CHUNKS = 6
SHORT = AttentionExpert(window=3, reach=None, rank=3, recurrent=True)  # reads 2 past chunks


def network(how: AttentionExpert = SHORT, gates: float | None = None) -> Composed:
    """A composed network with this expert, all of whose weights count; or with recurrent layers whose gates have this value."""
    torch.manual_seed(0)
    net = Composed(ComposedConfig(NET, {"ssm": how}))
    for name, weight in net.named_parameters():
        if name.endswith(".gate"):
            nn.init.constant_(weight, 1.0 if gates is None else gates)
    for pair in net.attention.parameters():
        nn.init.normal_(pair, std=0.1)
    with_random_gates(net.base)
    return net.eval().requires_grad_(False)


def trained_pass(net: Composed, whole: Condition, clean: Tensor, noisy: Tensor, level: float = 0.0, visible: bool = True) -> Tensor:
    rows, frames = whole.poses.shape[:2]
    base, adapters = net.attending("ssm")
    chunks = torch.full((rows, frames // F), visible)
    streams = Stream(clean, torch.full((rows, frames), level), whole), Stream(noisy, torch.full((rows, frames), 0.5), whole)
    there = torch.ones(rows, frames, dtype=torch.bool)
    return two_streams(base, *streams, chunks, there, adapters, net.recurrent_layers("ssm"))[0]


def joined(kept: list[tuple[KeysValues, ...]], poses: Tensor) -> ContextKV:
    """The keys of some chunks, oldest first."""
    layers = tuple(
        KeysValues(torch.cat([kv[i].keys for kv in kept], 1), torch.cat([kv[i].values for kv in kept], 1)) for i in range(NET.depth)
    )
    offsets = torch.arange(len(kept) * F, 0, -1).expand(len(poses), -1)
    return ContextKV(layers, offsets, torch.ones_like(offsets, dtype=torch.bool), poses)


def chunk_by_chunk(net: Composed, whole: Condition, clean: Tensor, noisy: Tensor, reads: int = SHORT.window - 1) -> Tensor:
    """The velocities of a dream whose memory keeps the keys of `reads` chunks and a state."""
    kept: list[tuple[KeysValues, ...]] = []
    state, found = None, []
    for chunk in range(whole.poses.shape[1] // F):
        frames = slice(chunk * F, (chunk + 1) * F)
        before = whole.start if chunk == 0 else whole.poses[:, chunk * F - 1]
        now = replace(part(whole, chunk, chunk + 1), start=before)
        first = max(0, chunk - reads)
        kv = joined(kept[first:], whole.poses[:, first * F : chunk * F]) if kept else None
        bound = net.bind(now, (Context(kv=kv, state=state, role=Role("ssm")),))
        found.append(bound(noisy[:, frames], torch.full((len(noisy),), 0.5)))
        trace = net._bind_attending(now, Context(kv=kv, state=state), "ssm").trace(clean[:, frames], now.poses)
        kept.append(trace.kv)
        state = trace.state
    return torch.cat(found, 1)


def random_state(net: Composed, rows: int) -> tuple[Tensor, ...]:
    layers = net.recurrent_layers("ssm")
    assert layers is not None
    return tuple(torch.randn_like(part) for part in blank_state(layers, rows, NET.tokens))


def consistent(whole: Condition) -> Condition:
    """The same with the motions that the poses tell."""
    return whole.at(whole.poses)


# -- the network ----------------------------------------------------------------------------------------------------------------------


def test_chunk_by_chunk_is_the_pass_of_the_training() -> None:
    net, whole = network(), consistent(window(2, CHUNKS))
    clean, noisy = torch.randn(2, 2, CHUNKS * F, *NET.latent_shape)
    wanted = trained_pass(net, whole, clean, noisy)
    torch.testing.assert_close(chunk_by_chunk(net, whole, clean, noisy), wanted, atol=1e-5, rtol=1e-5)
    closed = trained_pass(network(gates=0.0), whole, clean, noisy)
    assert not torch.allclose(closed[:, F:], wanted[:, F:], atol=1e-3), "the state counts"
    torch.testing.assert_close(closed[:, :F], trained_pass(network(gates=0.0), whole, clean, noisy, visible=False)[:, :F])


def test_the_state_brings_what_attention_no_longer_reaches() -> None:
    """The first chunk is other: the last one, which attention reaches through no chain of chunks, knows of it by the state alone."""
    how = AttentionExpert(window=2, reach=None, rank=3, recurrent=True)
    whole = consistent(window(1, CHUNKS))
    clean, noisy = torch.randn(2, 1, CHUNKS * F, *NET.latent_shape)
    other = clean.clone()
    other[:, :F] += 1
    changed = []
    for gates in (0.0, 1.0):
        net = network(how, gates)
        a, b = (trained_pass(net, whole, given, noisy)[:, -F:] for given in (clean, other))
        changed.append(float((a - b).abs().max()))
    assert changed[0] == 0 and changed[1] > 1e-5
    assert NET.depth * (how.window - 1) < CHUNKS - 1


def test_a_hidden_past_leaves_a_blank_state() -> None:
    """Two ways: a window whose clean chunks are hidden, and each chunk without a past."""
    net, whole = network(), consistent(window(2, 3))
    clean, noisy = torch.randn(2, 2, 3 * F, *NET.latent_shape)
    wanted = trained_pass(net, whole, clean, noisy, visible=False)
    for chunk in range(3):
        frames = slice(chunk * F, (chunk + 1) * F)
        bound = net.bind(part(whole, chunk, chunk + 1), (Context(role=Role("ssm")),))
        torch.testing.assert_close(bound(noisy[:, frames], torch.full((2,), 0.5)), wanted[:, frames], atol=1e-5, rtol=1e-4)


def test_a_fresh_expert_is_the_base() -> None:
    """Gates and adapters begin at zero."""
    torch.manual_seed(0)
    net = Composed(ComposedConfig(NET, {"ssm": SHORT})).eval().requires_grad_(False)
    with_random_gates(net.base)
    whole = window(1, 3)
    now, kv, x, level = part(whole, 2, 3), past_of(whole, 2), torch.randn(1, F, *NET.latent_shape), torch.full((1,), 0.5)
    bound = net.bind(now, (Context(kv=kv, state=random_state(net, 1), role=Role("ssm")),))
    assert torch.equal(bound(x, level), net.base.bind(now, (Context(kv=kv),))(x, level))


def test_every_part_of_the_expert_learns() -> None:
    net = network()
    expert = net.trained("ssm").requires_grad_(True)
    whole = consistent(window(2, 4))
    clean, noisy = torch.randn(2, 2, 4 * F, *NET.latent_shape)
    trained_pass(net, whole, clean, noisy).square().mean().backward()
    named = dict(expert.named_parameters())
    assert all(weight.grad is not None and weight.grad.any() for weight in named.values())
    kinds = {name.split(".")[0] for name in named}
    assert kinds == {"adapters", "recurrent"} and all(p.grad is None for p in net.base.parameters())


@pytest.mark.parametrize(("depth", "layers"), [(4, (1,)), (6, (2, 5)), (12, (2, 5, 8, 11))])
def test_recurrent_layers_follow_every_third_block(depth: int, layers: tuple[int, ...]) -> None:
    """CoME, appendix E.1; and the middle one of fewer than six."""
    assert layers_with_readout(depth, every=3) == layers
    net = Composed(ComposedConfig(replace(NET, depth=depth), {"ssm": SHORT}))
    assert tuple(map(int, net.recurrent["ssm"])) == layers  # type: ignore[arg-type]
    assert net.recurrent_layers("base") is None


def test_attention_reads_twenty_frames() -> None:
    how = come.ATTENTION["ssm"]
    assert how.layers(6) == (4,) * 6 and how.window * 4 == 20


# -- as an expert that is contrasted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", ["empty", "noise"])
def test_its_baseline_reads_a_blank_past_or_a_drowned_one(baseline: str) -> None:
    """Two ways: the training's window without a past, and the one whose past is noise."""
    net, whole = network(), window(2, 3)
    noisy, now = torch.randn(2, 3 * F, *NET.latent_shape), part(whole, 2, 3)
    kv, last = past_of(whole, 2), slice(2 * F, 3 * F)
    state = random_state(net, 2)
    x, level = noisy[:, last], torch.full((2,), 0.5)

    def predicted(alpha: float) -> Tensor:
        role = Role("ssm", "mean", alpha=alpha, baseline=baseline)
        return net.bind(now, (Context(kv=kv, state=state, role=role),))(x, level)

    noise = torch.zeros_like(noisy)
    noise[:, : 2 * F] = noise_of(net.base, whole.times[:, : 2 * F])
    wanted = trained_pass(net, whole, noise, noisy, level=1.0, visible=baseline == "noise")[:, last]
    torch.testing.assert_close(2 * predicted(1.0) - predicted(2.0), wanted, atol=2e-5, rtol=1e-4)


# -- worlds -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def delta(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An expert with random weights beside the base."""
    base = load(checkpoint, system="come")
    config = replace(base.config, experts=("ssm",))
    torch.manual_seed(1)
    model = come.build(config)
    model.load_state_dict(base.model.state_dict(), strict=False)
    for name, weight in model.net.trained("ssm").named_parameters():
        nn.init.constant_(weight, 1.0) if name.endswith("gate") else None
    path = tmp_path_factory.mktemp("ssm") / "come-ssm-minecraft.safetensors"
    save(path, model, config, base=checkpoint)
    return str(path)


def walked(model: WorldModel, given: Any, seeds: list[int], steps: int) -> tuple[Any, Tensor]:
    state, shown = begun(model, given, seeds), []
    for step in range(steps):
        state, frames = model.step(state, torch.tensor([[step % 10, 2]]).expand(len(seeds), -1))
        assert frames.finite.all()
        shown.append(frames.pixels)
    return state, torch.cat(shown, 1)


def test_a_world_carries_the_state_and_keeps_four_chunks(delta: str) -> None:
    model = world(delta, "ssm")
    state, _ = walked(model, opening(1, frames=16), [3], 6)
    (memory,) = state.memories
    assert len(memory.state) == 1 and memory.state[0].shape == (1, NET.tokens, NET.width // 2) and memory.state[0].any()
    later, _ = model.step(state, torch.tensor([[1, 2]]))
    assert int(state.footprint.frames) == int(later.footprint.frames) == 4 * F
    assert int(state.footprint.bytes) == int(later.footprint.bytes)
    assert not torch.equal(later.memories[0].state[0], memory.state[0])


def test_a_lane_alone_is_a_lane_in_company_and_states_survive_a_file(delta: str) -> None:
    model, given = world(delta, "ssm"), opening(2, frames=7)  # whose first chunk is not whole
    state, together = walked(model, given, [3, 4], 3)
    for row in (0, 1):
        alone, shown = walked(model, rows_of(given, [row]), [3 + row], 3)
        assert (together[row].int() - shown[0].int()).abs().max() <= 1
        torch.testing.assert_close(alone.memories[0].state[0][0], state.memories[0].state[0][row], atol=1e-5, rtol=1e-4)
    restored = tree.like(begun(model, opening(2, seed=9)), tree.leaves(state))
    actions = torch.tensor([[1, 2], [3, 4]])
    assert torch.equal(model.step(restored, actions)[1].pixels, model.step(state, actions)[1].pixels)


def test_the_world_s_state_is_that_of_one_pass_over_all_frames(delta: str) -> None:
    """An opening of 8 chunks, twice as long as what attention reads."""
    model, given = world(delta, "ssm"), opening(1, frames=8 * F)
    net: Composed = model.net
    state = begun(model, given)
    latents = model.encode(given.frames)
    at = given.poses
    motion = torch.cat([torch.zeros(1, 1, 5), relative_pose(at[:, 1:], at[:, :-1])], 1)
    whole = Condition(given.actions, motion, at, torch.arange(8 * F)[None], at[:, 0], at[:, -1])
    layers, passed = net.recurrent_layers("ssm"), list[Tensor]()
    assert layers is not None and list(layers) == ["0"]

    def record(layer: nn.Module, given: Any, found: tuple[Tensor, Tensor]) -> None:
        passed.append(found[1])

    with layers["0"].register_forward_hook(record):
        trained_pass(net, whole, latents.float(), torch.randn_like(latents))
    clean, _ = passed  # the states after the frames of each stream
    torch.testing.assert_close(state.memories[0].state[0], clean[:, -1], atol=1e-5, rtol=1e-4)


# -- training -----------------------------------------------------------------------------------------------------------------------------


def test_windows_are_as_long_as_those_of_the_other_long_rows_and_whole() -> None:
    own, other = (windows_of(name, F, 0.0) for name in ("ssm", "sliding"))
    assert own.window == other.window == 54 and own.short_openings == 0 < other.short_openings
    assert windows_of("stm", F, 0.0).window == 13


def test_training_writes_a_delta_that_dreams(checkpoint: str, tmp_path: Path) -> None:
    collect(tmp_path / "data", episodes=3, length=120)
    report = train(arguments(checkpoint, tmp_path, expert="ssm", steps=3, batch=1), progress=False)
    path = Path(report["checkpoint"])
    stored = read(path)
    assert path.name == "come-ssm-minecraft.safetensors" and stored.base is not None
    assert {name.split(".")[1] for name in stored.tensors} == {"attention", "recurrent"}
    assert all(".ssm." in name and tensor.isfinite().all() for name, tensor in stored.tensors.items())
    gates = [tensor for name, tensor in stored.tensors.items() if name.endswith(".gate")]
    assert gates and all(gate.any() for gate in gates)
    env = gym.make("CoME-Minecraft-v0", checkpoint=str(path), memory="ssm", task="free", opening=clip(25))
    env.reset(seed=0)
    _, _, _, _, info = env.step(env.action_space.sample())
    assert info["frames"].shape[0] == F and int(info["memory_frames"]) == 4 * F


def test_a_missing_expert_is_named_with_the_command_that_trains_it(delta: str) -> None:
    with pytest.raises(ValueError, match=r"come-ssm-minecraft: no such delta; .* wmgym train come --expert ssm"):
        world(str(Path(read(delta).base["name"])), "ssm")  # type: ignore[index]


def test_it_is_not_compiled(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compile=True is not for expert 'ssm'"):
        TrainArgs((tmp_path,), tmp_path, base="x", expert="ssm", compile=True)
