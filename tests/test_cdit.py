"""The network: starts as the identity, reads the context by content and age alone, and computes it once."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from conditions import condition as condition_of
from torch import Tensor, nn

from wmgym import tree
from wmgym.core import Condition, Context, ContextFrames, ContextKV, KeysValues
from wmgym.geometry import compose, relative_pose, step_back
from wmgym.nets.cdit import SIZES, Bound, CDiT, CDiTConfig, _block, _unpatchify
from wmgym.nets.layers import attend, fourier, modulate, sinusoid
from wmgym.nets.rope import rotate, rotation

SHAPE = (3, 4, 4)
CONDITIONS = ("none", "frame", "rays")


def make(*, awake: bool = True, **changes: Any) -> CDiT:
    """A small network; awake: no weight is zero any more, as after training."""
    net = CDiT(CDiTConfig(**{"latent_shape": SHAPE, "width": 32, "depth": 2, "heads": 2, **changes}))
    if awake:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval().requires_grad_(False)


def conditions(rows: int, frames: int = 1) -> Condition:
    relative = 0.5 * torch.randn(rows, frames, 5)
    relative[:, 0] = 0
    told = condition_of(torch.randint(10, (rows, frames)), torch.randn(rows, frames, 5), relative, 0.3 * torch.randn(rows))
    return replace(told, start=step_back(told.poses[:, 0], torch.randn(rows, 5) * torch.tensor([1, 1, 1, 1, 0.0])))


def walked(actions: Tensor, egomotion: Tensor) -> Condition:
    """A chunk whose egomotion [B, F, 5] leads from the origin through its poses, always looking level."""
    pose, poses = torch.zeros(len(actions), 5), []
    for motion in (egomotion * torch.tensor([1, 1, 1, 1, 0.0])).unbind(1):
        pose = compose(pose, motion)
        poses.append(pose)
    start = torch.zeros(len(actions), 5)
    told = Condition(actions, egomotion, torch.stack(poses, 1), torch.arange(1, len(poses) + 1).expand(actions.shape), start, start)
    return told.at(told.poses)


def frames_at(rows: int, n: int, level: int = 0) -> ContextFrames:
    offsets = torch.stack([torch.randperm(40)[:n] + 1 for _ in range(rows)])
    relative, unread = torch.randn(rows, n, 5), torch.zeros(rows, n, 5)  # this network reads neither motions nor absolute poses
    there = torch.ones(rows, n, dtype=torch.bool)
    return ContextFrames(torch.randn(rows, n, *SHAPE), offsets, relative, there, offsets, unread, unread, offsets, level)


def contexts(rows: int) -> Context:
    return Context(tuple(frames_at(rows, n, level) for n, level in ((1, 0), (2, 1), (3, 2))))


def remembered(rows: int, slots: int, depth: int = 2, tokens: int = 16, heads: int = 2, width: int = 16) -> ContextKV:
    layers = tuple(KeysValues(*torch.randn(2, rows, slots, tokens, heads, width)) for _ in range(depth))
    return ContextKV(layers, torch.arange(1, slots + 1).repeat(rows, 1), torch.ones(rows, slots, dtype=torch.bool))


def run(net: CDiT, condition: Condition, context: Context, x: Tensor, level: float | Tensor = 0.4) -> Tensor:
    level = level if isinstance(level, Tensor) else torch.full((len(x),), level)
    return net.bind(condition, (context,))(x, level)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(a, b, atol=tolerance, rtol=tolerance)


# -- layers ---------------------------------------------------------------------------------------------------------------------------


def test_a_score_of_rotated_vectors_depends_on_the_difference_of_their_positions() -> None:
    q, k = torch.randn(2, 8, dtype=torch.float64)

    def score(at: int, other: int) -> float:
        (c, s), (c2, s2) = rotation(torch.tensor(at), 6), rotation(torch.tensor(other), 6)
        return float(rotate(q, c, s) @ rotate(k, c2, s2))

    assert score(0, 7) == pytest.approx(score(-30, -23), abs=1e-5) == pytest.approx(score(500, 507), abs=1e-4)
    assert abs(score(0, 7) - score(0, 8)) > 1e-3
    # closed form: pair i turns by its own frequency, the last two dimensions not at all
    angles = [7 * 10_000 ** (-2 * i / 6) for i in range(3)]
    complex_q, complex_k = torch.complex(q[:3], q[3:6]), torch.complex(k[:3], k[3:6])
    turned = sum(float((complex_q[i].conj() * complex_k[i] * complex(math.cos(a), math.sin(a))).real) for i, a in enumerate(angles))
    assert score(0, 7) == pytest.approx(turned + float(q[6:] @ k[6:]), abs=1e-5)


def test_position_zero_is_not_rotated() -> None:
    x = torch.randn(3, 8)
    assert torch.equal(rotate(x, *rotation(torch.zeros(3), 8)), x)


def test_features_are_sines_and_cosines_of_known_frequencies() -> None:
    angles = [250.0 / 10_000 ** (i / 4) for i in range(4)]
    expected = [*map(math.sin, angles), *map(math.cos, angles)]
    assert sinusoid(torch.tensor([250.0]), 8)[0].tolist() == pytest.approx(expected, abs=1e-4)
    x = torch.tensor([0.25])
    assert fourier(x, 2).tolist() == pytest.approx([0.25, math.sin(math.pi / 4), math.sin(math.pi / 2), math.cos(math.pi / 4), 0], abs=1e-6)
    assert torch.equal(modulate(x, torch.tensor(2.0), torch.tensor(3.0)), 4 * x + 2)


def test_attention_averages_values_by_softmax_of_scaled_scores() -> None:
    q, k, v = torch.randn(1, 2, 1, 4), torch.randn(1, 3, 1, 4), torch.randn(1, 3, 1, 4)
    weights = (q[0, :, 0] @ k[0, :, 0].T / 2).softmax(-1)
    assert close(attend(q, k, v)[0], weights @ v[0, :, 0])
    mask = torch.tensor([[True, False, True]])
    assert close(attend(q, k, v, mask), attend(q, k[:, [0, 2]], v[:, [0, 2]]))


# -- at the start of training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_a_fresh_network_says_nothing(shared: bool) -> None:
    net = make(awake=False, shared_modulation=shared)
    assert not run(net, conditions(2), contexts(2), torch.randn(2, 1, *SHAPE)).any()


@pytest.mark.parametrize("shared", [True, False])
def test_a_fresh_block_is_the_identity(shared: bool) -> None:
    """adaLN-Zero: with gates at zero a block passes its input on."""
    net = make(awake=False, shared_modulation=shared)
    bound = net.bind(conditions(2), (contexts(2),))
    h, block = torch.randn(2, 1, 16, 32), net.blocks[0]
    c = torch.randn(2, 1, 32)
    modulation = (net if shared else block).modulation(c).unflatten(-1, (9, -1)) + (block.modulation_table if shared else 0)
    still = torch.ones(1, 16, 1, 4), torch.zeros(1, 16, 1, 4)  # a rotation by nothing
    after, _ = _block(block, h, modulation[:, :, None].unbind(-2), bound.layers[0], bound, *still)
    assert torch.equal(after, h)


def test_unpatchify_undoes_patchify() -> None:
    """A projection that copies pixels into tokens shows where each token's numbers belong."""
    config = CDiTConfig(latent_shape=(2, 4, 6), patch=2, width=8, heads=2)
    x = torch.randn(3, 1, 2, 4, 6)
    copy = nn.Conv2d(2, 8, 2, 2, bias=False)
    weight = torch.zeros(8, 2, 2, 2)
    for row in range(2):
        for column in range(2):
            for channel in range(2):
                weight[(row * 2 + column) * 2 + channel, channel, row, column] = 1
    copy.weight.data = weight
    tokens = copy(x.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, (3, 1))
    assert torch.equal(_unpatchify(tokens, config), x)


@pytest.mark.parametrize(("name", "width", "depth"), [("TINY", 256, 6), ("S", 384, 12), ("B", 768, 12), ("L", 1024, 24), ("XL", 1152, 28)])
def test_published_sizes(name: str, width: int, depth: int) -> None:
    with torch.device("meta"):
        net = CDiT(CDiTConfig(latent_shape=(4, 28, 28), patch=2, **SIZES[name]))  # type: ignore[arg-type]
    assert len(net.blocks) == depth and net.final.in_features == width and net.config.grid == (14, 14)
    assert all(block.self_attention.query.weight.shape == (width, width) for block in net.blocks)
    a_block = sum(p.numel() for p in net.blocks[0].parameters())
    matrices = (4 + 4 + 8) * width**2  # two attentions and an MLP
    modulation = 0 if net.config.shared_modulation else 9 * width**2
    assert matrices + modulation < a_block < 1.02 * (matrices + modulation)


def test_impossible_networks_are_named() -> None:
    with pytest.raises(ValueError, match="'smell'"):
        CDiTConfig(pose_condition="smell")
    with pytest.raises(ValueError, match=r"8, got 30"):
        CDiTConfig(width=30, heads=4)
    with pytest.raises(ValueError, match=r"patch 3.*\(8, 8\)"):
        CDiTConfig(patch=3)


# -- the context ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pose_condition", CONDITIONS)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_what_is_not_valid_has_no_influence(pose_condition: str, level: int) -> None:
    net, condition, x = make(pose_condition=pose_condition), conditions(2), torch.randn(2, 1, *SHAPE)
    group = frames_at(2, 4, level)
    group = replace(group, valid=torch.tensor([[True, False, True, False], [True, True, True, True]]))
    base = Context((frames_at(2, 1), group))
    other = replace(
        group,
        latents=torch.where(group.valid[..., None, None, None], group.latents, 100 * torch.randn(2, 4, *SHAPE)),
        offsets=torch.where(group.valid, group.offsets, 77),
        relative=torch.where(group.valid[..., None], group.relative, 9 * torch.randn(2, 4, 5)),
    )
    result = run(net, condition, base, x)
    assert torch.equal(result, run(net, condition, Context((base.frames[0], other)), x))
    kept = Context((tree.select(base.frames[0], torch.tensor([0])), _columns(tree.select(group, torch.tensor([0])), [0, 2])))
    assert close(run(net, tree.select(condition, torch.tensor([0])), kept, x[:1]), result[:1])
    seen = replace(group, latents=group.latents + group.valid[..., None, None, None] * torch.randn(2, 4, *SHAPE))
    assert not close(run(net, condition, Context((base.frames[0], seen)), x), result, 1e-3)


def _columns(group: ContextFrames, columns: list[int]) -> ContextFrames:
    return tree.map_tensors(lambda x: x[:, columns], group)


def test_a_context_of_nothing_valid_is_no_context() -> None:
    """Finite, and as if cross-attention had nothing to read: the same whatever lies there."""
    net, condition, x = make(), conditions(2), torch.randn(2, 1, *SHAPE)
    results = []
    for _ in range(2):
        group = frames_at(2, 3, 1)
        results.append(run(net, condition, Context((replace(group, valid=torch.zeros(2, 3, dtype=torch.bool)),)), x))
    assert torch.isfinite(results[0]).all() and torch.equal(*results)
    assert close(results[0], run(net, condition, Context(), x))


@pytest.mark.parametrize("pose_condition", CONDITIONS)
def test_the_order_of_remembered_frames_does_not_matter(pose_condition: str) -> None:
    net, condition, x = make(pose_condition=pose_condition), conditions(2), torch.randn(2, 1, *SHAPE)
    group = frames_at(2, 5, 1)
    result = run(net, condition, Context((group,)), x)
    assert close(run(net, condition, Context((_columns(group, [3, 0, 4, 2, 1]),)), x), result)
    swapped = replace(group, offsets=group.offsets.flip(1))
    assert not close(run(net, condition, Context((swapped,)), x), result, 1e-3), "age has no influence"


@pytest.mark.parametrize(("pose_condition", "reads"), [("none", False), ("frame", True), ("rays", True)])
def test_where_a_frame_was_is_read_only_if_asked(pose_condition: str, reads: bool) -> None:
    net, condition, context, x = make(pose_condition=pose_condition), conditions(2), contexts(2), torch.randn(2, 1, *SHAPE)
    moved = Context(tuple(replace(g, relative=g.relative + 0.5) for g in context.frames))
    same = torch.equal(run(net, condition, moved, x), run(net, condition, context, x))
    assert same != reads


def test_a_whole_turn_of_a_remembered_frame_changes_nothing() -> None:
    for pose_condition in ("frame", "rays"):
        net, condition, context, x = make(pose_condition=pose_condition), conditions(1), contexts(1), torch.randn(1, 1, *SHAPE)
        full = torch.tensor([0, 0, 0, 2 * math.pi, 0])
        turned = Context(tuple(replace(g, relative=g.relative + full) for g in context.frames))
        assert close(run(net, condition, turned, x), run(net, condition, context, x), 1e-4)


def test_the_context_is_bound_once_for_all_noise_levels() -> None:
    """Reusing its keys and values gives what recomputing them for each level gives, in any order of levels."""
    net, condition, context = make(), conditions(3), contexts(3)
    bound = net.bind(condition, (context,))
    xs = {level: torch.randn(3, 1, *SHAPE) for level in (1.0, 0.1, 0.6, 1.0)}
    cached = {level: bound(x, torch.full((3,), level)) for level, x in xs.items()}
    for level, x in xs.items():
        assert torch.equal(run(net, condition, context, x, level), cached[level])
    mixed = torch.tensor([1.0, 0.1, 0.6])
    x = torch.stack([xs[float(level)][row] for row, level in zip(range(3), (1.0, 0.1, 0.6))])
    together = bound(x, mixed)
    for row, level in enumerate((1.0, 0.1, 0.6)):
        assert close(together[row], cached[level][row])


def test_binding_runs_no_self_attention_and_denoising_embeds_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    net, condition, context, calls = make(), conditions(1), contexts(1), []
    for part in (net.context_embed[0], net.context_mlp, net.blocks[0].mlp, net.target_embed):
        part.register_forward_hook(lambda module, *_: calls.append(module))
    bound = net.bind(condition, (context,))
    assert calls == [net.context_embed[0], net.context_mlp]
    calls.clear()
    bound(torch.randn(1, 1, *SHAPE), torch.ones(1))
    assert calls == [net.target_embed, net.blocks[0].mlp]


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("pose_condition", CONDITIONS)
def test_no_row_affects_another(pose_condition: str, frames: int) -> None:
    net, rows = make(pose_condition=pose_condition), 4
    condition, context, x, level = conditions(rows, frames), contexts(rows), torch.randn(rows, frames, *SHAPE), torch.rand(rows)
    context = replace(context, kv=remembered(rows, 3))
    hidden = replace(context.frames[2], valid=torch.rand(rows, 3) < 0.5)
    context = replace(context, frames=(*context.frames[:2], hidden))
    together = run(net, condition, context, x, level)
    assert together.shape == x.shape
    for row in range(rows):
        index = torch.tensor([row])
        alone = run(net, *tree.select((condition, context, x, level), index))
        assert close(alone, together[row : row + 1])


# -- chunks and remembered keys and values --------------------------------------------------------------------------------------------


def test_each_condition_of_a_frame_moves_it() -> None:
    net, condition, context, x = make(), conditions(1, 3), contexts(1), torch.randn(1, 3, *SHAPE)
    result = run(net, condition, context, x)
    told = {name: getattr(condition, name) for name in ("actions", "egomotion", "relative", "pitch")}
    assert close(run(net, condition_of(**told), context, x), result)
    changed = {
        "actions": (condition.actions + 1) % 10,
        "egomotion": condition.egomotion + 0.3,
        "relative": condition.relative + torch.tensor([0, 0.3, 0.3])[:, None],  # the first pose is the reference
        "pitch": condition.pitch + 0.3,
    }
    for name, value in changed.items():
        assert not close(run(net, condition_of(**{**told, name: value}), context, x), result, 1e-3), name
    assert not close(run(net, condition, context, x, 0.9), result, 1e-3)


def test_frames_of_a_chunk_are_told_apart_by_their_place_in_time() -> None:
    """With equal actions and poses only the rotation by time differs: swapping two frames of equal content changes nothing else."""
    net = make(pose_condition="none")
    condition = condition_of(torch.ones(1, 3, dtype=torch.int64), torch.zeros(1, 3, 5), torch.zeros(1, 3, 5), torch.zeros(1))
    same = torch.randn(1, 1, *SHAPE).expand(1, 3, *SHAPE)
    result = run(net, condition, contexts(1), same)
    assert not close(result[:, 0], result[:, 1], 1e-4) and not close(result[:, 1], result[:, 2], 1e-4)


def test_remembered_keys_that_are_not_valid_are_no_keys() -> None:
    net, condition, context, x = make(), conditions(2), contexts(2), torch.randn(2, 1, *SHAPE)
    kv = remembered(2, 4)
    without = run(net, condition, context, x)
    none = replace(context, kv=replace(kv, valid=torch.zeros_like(kv.valid)))
    assert close(run(net, condition, none, x), without)
    some = replace(kv, valid=torch.tensor([[True, True, False, False]] * 2))
    short = ContextKV(tuple(KeysValues(k.keys[:, :2], k.values[:, :2]) for k in kv.layers), kv.offsets[:, :2], kv.valid[:, :2])
    result = run(net, condition, replace(context, kv=some), x)
    assert close(result, run(net, condition, replace(context, kv=short), x))
    assert not close(result, without, 1e-3)


def test_a_frame_remembered_by_its_keys_is_as_good_as_a_frame_of_the_chunk() -> None:
    """One block, clean latents: the second frame of a chunk sees the first one's keys, whether they were made now or kept."""
    net = make(depth=1, pose_condition="none")
    condition, context, x = walked(torch.randint(10, (2, 2)), torch.randn(2, 2, 5)), contexts(2), torch.randn(2, 2, *SHAPE)
    clean = torch.zeros(2)
    chunk = run(net, condition, context, x, clean)

    def of(frame: int) -> Condition:
        parts = (condition.actions, condition.egomotion, condition.poses, condition.times)
        start = torch.cat([condition.start[:, None], condition.poses], 1)[:, frame]
        return Condition(*(part[:, frame, None] for part in parts), start, condition.origin)

    def later(steps: int) -> Context:
        return Context(tuple(replace(g, offsets=g.offsets + steps) for g in context.frames))

    kept = net.bind(of(0), (later(0),)).trace(x[:, :1], of(0).poses).kv
    assert [k.keys.shape for k in kept] == [(2, 1, 16, 2, 16)]
    kv = ContextKV(kept, torch.ones(2, 1, dtype=torch.int64), torch.ones(2, 1, dtype=torch.bool))
    second = run(net, of(1), replace(later(1), kv=kv), x[:, 1:], clean)
    assert close(second, chunk[:, 1:])
    older = replace(kv, offsets=kv.offsets + 5)
    assert not close(run(net, of(1), replace(later(1), kv=older), x[:, 1:], clean), chunk[:, 1:], 1e-3)


def test_kept_keys_are_those_of_the_same_pass() -> None:
    """`trace` collects from the pass at noise level 0 and gives keys and values per frame, unrotated."""
    net = make(pose_condition="none")
    actions, egomotion, context = torch.randint(10, (1, 2)), torch.randn(1, 2, 5), contexts(1)
    condition = walked(actions, egomotion)
    bound = net.bind(condition, (context,))
    x = torch.randn(1, 2, *SHAPE)
    assert torch.equal(net.denoise(bound, x, torch.zeros(1), collect=True)[0], bound(x, torch.zeros(1)))
    kept = bound.trace(x, condition.poses).kv
    assert len(kept) == 2 and kept[0].keys.shape == (1, 2, 16, 2, 16)
    # the first block's keys of a frame depend on that frame alone, wherever in the chunk it stands
    flipped = walked(actions.flip(1), egomotion.flip(1))
    again = net.bind(flipped, (context,)).trace(x.flip(1), flipped.poses).kv
    assert close(again[0].keys.flip(1), kept[0].keys) and close(again[0].values.flip(1), kept[0].values)


@pytest.mark.parametrize("pose_condition", CONDITIONS)
def test_a_trace_is_made_at_the_poses_that_are_given(pose_condition: str) -> None:
    """Where a chunk came to stand decides its egomotion and rays, whatever was expected when it was made."""
    net, context, x = make(pose_condition=pose_condition), contexts(1), torch.randn(1, 2, *SHAPE)
    expected = walked(torch.randint(10, (1, 2)), torch.randn(1, 2, 5))
    stopped = expected.poses + torch.tensor([0.4, -0.3, 0, 0, 0])
    kept = net.bind(expected, (context,)).trace(x, stopped).kv
    there = expected.at(stopped)
    assert close(compose(there.start, there.egomotion[:, 0]), stopped[:, 0])
    again = net.bind(there, (context,)).trace(x, stopped).kv
    unmoved = net.bind(expected, (context,)).trace(x, expected.poses).kv
    assert torch.equal(kept[1].keys, again[1].keys) and torch.equal(kept[1].values, again[1].values)
    assert not close(kept[0].keys, unmoved[0].keys, 1e-3)


def test_keys_and_values_may_be_all_that_is_remembered() -> None:
    net, condition, x = make(), conditions(2), torch.randn(2, 1, *SHAPE)
    result = run(net, condition, Context(kv=remembered(2, 3)), x)
    assert torch.isfinite(result).all() and not close(result, run(net, condition, Context(), x), 1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pose_condition", CONDITIONS)
def test_other_precisions_agree(dtype: torch.dtype, pose_condition: str) -> None:
    """Weights in half precision take the float32 conditions that the world model gives."""
    net, x = make(pose_condition=pose_condition, chunk=2), torch.randn(2, 2, *SHAPE)
    condition, context = conditions(2, 2), replace(contexts(2), kv=remembered(2, 2))
    result = run(net, condition, context, x)
    other = run(net.to(dtype), condition, context, x)
    assert other.dtype == x.dtype
    assert (other - result).norm() < (0.05 if dtype == torch.bfloat16 else 1e-5) * result.norm()


def test_gradients_reach_every_weight() -> None:
    for pose_condition in CONDITIONS:
        for shared in (True, False):
            net = make(pose_condition=pose_condition, shared_modulation=shared).requires_grad_(True)
            run(net, conditions(2, 2), contexts(2), torch.randn(2, 2, *SHAPE)).square().mean().backward()
            still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
            assert not still
            assert isinstance(net.bind(conditions(1), (contexts(1),)), Bound)


def test_targets_are_told_relative_to_the_first_of_the_chunk() -> None:
    """Rays of the second frame of a chunk: moved with the whole chunk they stay, moved within it they change."""
    net, x, context = make(), torch.randn(1, 2, *SHAPE), contexts(1)
    where = 0.5 * torch.randn(1, 2, 5)
    condition = replace(conditions(1, 2), poses=where)
    assert torch.equal(condition.relative, relative_pose(where, where[:, :1])) and not condition.relative[:, 0].any()
    result = run(net, condition, context, x)
    elsewhere = compose(torch.tensor([[[3.0, -2.0, 1.0, 0.7, 0.0]]]).expand(1, 2, 5), where)
    assert close(run(net, replace(condition, poses=elsewhere), context, x), result, 1e-4)
    assert not close(run(net, replace(condition, poses=where[:, :1].expand(1, 2, 5)), context, x), result, 1e-3)


# -- values rotated by viewing direction ------------------------------------------------------------------------------------------------


def ray(azimuth: float, elevation: float) -> Tensor:
    """One token's ray [1, 1, 1, 6] from an eye at the origin."""
    flat = math.cos(elevation)
    return torch.tensor([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation), 0, 0, 0])[None, None, None]


def test_a_value_is_read_as_it_was_written_by_who_looks_the_same_way() -> None:
    net = make(pose_condition="rays")
    v = torch.randn(1, 1, 2, 16)
    cos, sin = net._phases(ray(0.3, -0.2))
    assert close(rotate(rotate(v, cos, -sin), cos, sin), v)


def test_a_coarse_token_is_a_fourier_series_over_directions() -> None:
    """A value that holds a series' coefficients, read by a token that looks elsewhere, sums to the series at that direction."""
    net = make(pose_condition="rays")
    centre, other = (0.1, 0.05), (0.35, -0.15)
    coefficients = torch.randn(8, dtype=torch.complex64)
    v = torch.cat([coefficients.real, coefficients.imag])[None, None, None]
    (cos, sin), (cos2, sin2) = net._phases(ray(*centre)), net._phases(ray(*other))
    read = rotate(rotate(v, cos, -sin), cos2, sin2)[0, 0, 0, :8].sum()
    away = torch.tensor([other[0] - centre[0], other[1] - centre[1]])
    series = (coefficients * torch.exp(1j * (net.waves @ away))).real.sum()
    assert float(read) == pytest.approx(float(series), abs=1e-4)


def test_the_waves_are_the_slowest_and_each_counts_once() -> None:
    net = make(pose_condition="rays")
    waves = net.waves / net.waves[net.waves > 0].min()
    whole = {tuple(round(float(k)) for k in wave) for wave in waves}
    assert (0, 0) in whole
    assert len(whole) == 8
    assert not any((-x, -y) in whole for x, y in whole if (x, y) != (0, 0))
    # the slowest spans two tokens of the coarsest level: from one to the next its phase turns by half a circle
    config = net.config
    assert float(net.waves.max(0).values.min()) > 0
    coarsest = config.field_of_view * 4 / config.grid[0]
    assert float(net.waves[net.waves > 0].min()) * coarsest == pytest.approx(math.pi)


@pytest.mark.parametrize("pose_condition", ["none", "frame"])
def test_values_stay_as_they_are_without_rays(pose_condition: str) -> None:
    net = make(pose_condition=pose_condition)
    assert net.bind(conditions(2), (contexts(2),)).gaze is None
    assert make(rotate_values=False).bind(conditions(2), (contexts(2),)).gaze is None
