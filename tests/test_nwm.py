"""Published NWM weights: a state dict of their layout gives what that layout defines, computed here a second time in plain tensors."""

import argparse
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conditions import condition as condition_of
from drives import write_processed
from safetensors.torch import save_file
from torch import Tensor

from wmgym import rng
from wmgym.checkpoint import load_world
from wmgym.core import Clip, Condition, Context, ContextFrames
from wmgym.experiments.recon import ReconArgs, evaluate
from wmgym.kinematics import Displacement
from wmgym.nets import kl_autoencoder
from wmgym.nets import nwm as nets
from wmgym.nets.kl_autoencoder import WEIGHTS, KLAutoencoder, load_kl_autoencoder
from wmgym.nets.nwm import PUBLISHED, NWMNet, NWMNetConfig, config_of
from wmgym.systems import nwm

WIDTH, DEPTH, HEADS, SIDE, CONTEXT = 32, 2, 4, 4, 4
TINY = NWMNetConfig(latent_side=2 * SIDE, width=WIDTH, depth=DEPTH, heads=HEADS, context=CONTEXT)


def autoencoder_kl(widths: tuple[int, ...] = (8, 8, 8, 8), layers: int = 1) -> Any:
    """A small autoencoder as diffusers makes it, with random weights."""
    diffusers = pytest.importorskip("diffusers")
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * len(widths), "up_block_types": ("UpDecoderBlock2D",) * len(widths)}
    return diffusers.AutoencoderKL(block_out_channels=widths, layers_per_block=layers, norm_num_groups=4, **kinds)


def published_layout(width: int = WIDTH, depth: int = DEPTH, tokens: int = SIDE**2, context: int = CONTEXT) -> dict[str, Tensor]:
    """Random numbers under the published names and shapes."""
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (width, 4, 2, 2),
        "x_embedder.proj.bias": (width,),
        "pos_embed": (context + 1, tokens, width),
        "final_layer.linear.weight": (32, width),
        "final_layer.linear.bias": (32,),
        "final_layer.adaLN_modulation.1.weight": (2 * width, width),
        "final_layer.adaLN_modulation.1.bias": (2 * width,),
    }
    third = width // 3
    sizes = {"t_embedder": width, "time_embedder": width}
    sizes |= {"y_embedder.x_emb": third, "y_embedder.y_emb": third, "y_embedder.angle_emb": width - 2 * third}
    for name, size in sizes.items():
        shapes |= {f"{name}.mlp.0.weight": (size, 256), f"{name}.mlp.0.bias": (size,)}
        shapes |= {f"{name}.mlp.2.weight": (size, size), f"{name}.mlp.2.bias": (size,)}
    for i in range(depth):
        block = f"blocks.{i}"
        for name, out, into in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("cttn.out_proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
            ("adaLN_modulation.1", 11 * width, width),
        ):
            shapes |= {f"{block}.{name}.weight": (out, into), f"{block}.{name}.bias": (out,)}
        shapes |= {f"{block}.cttn.in_proj_weight": (3 * width, width), f"{block}.cttn.in_proj_bias": (3 * width,)}
        shapes |= {f"{block}.cttn.bias_k": (1, 1, width), f"{block}.cttn.bias_v": (1, 1, width)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5 / 2 for name, shape in shapes.items()}


# -- the layout, written down a second time ---------------------------------------------------------------------------------------------


def reference(w: dict[str, Tensor], x: Tensor, t: Tensor, action: Tensor, context: Tensor, rel_t: Tensor, heads: int) -> Tensor:
    """x [B, 4, h, w], t [B] (of 1,000), action [B, 3], context [B, n, 4, h, w] oldest first, rel_t [B] -> [B, 8, h, w]."""
    b, _, height, width = x.shape

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def embed(name: str, value: Tensor) -> Tensor:
        angles = value[:, None] * torch.exp(-math.log(10_000) * torch.arange(128) / 128)
        h = linear(f"{name}.mlp.0", torch.cat([torch.cos(angles), torch.sin(angles)], 1))
        return linear(f"{name}.mlp.2", h * torch.sigmoid(h))

    def patches(images: Tensor) -> Tensor:
        cut = images.reshape(len(images), 4, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(len(images), -1, 16)
        return cut @ w["x_embedder.proj.weight"].reshape(-1, 16).T + w["x_embedder.proj.bias"]

    def norm(value: Tensor) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.reshape(b, part.shape[1], heads, -1) for part in (q, k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).reshape(b, q.shape[1], -1)

    condition = embed("t_embedder", t) + embed("time_embedder", rel_t)
    names = ("x_emb", "y_emb", "angle_emb")
    condition = condition + torch.cat([embed(f"y_embedder.{name}", action[:, i]) for i, name in enumerate(names)], 1)
    condition = condition * torch.sigmoid(condition)
    h = patches(x) + w["pos_embed"][-1]
    seen = patches(context.flatten(0, 1)).reshape(b, context.shape[1], -1, h.shape[-1]) + w["pos_embed"][:-1]
    seen = seen.reshape(b, -1, h.shape[-1])
    for i in range(sum(name.endswith("mlp.fc1.weight") for name in w)):
        block = f"blocks.{i}"
        shift1, scale1, gate1, shift_k, scale_k, shift_q, scale_q, gate2, shift3, scale3, gate3 = linear(
            f"{block}.adaLN_modulation.1", condition
        )[:, None].split(h.shape[-1], -1)
        q, k, v = linear(f"{block}.attn.qkv", norm(h) * (1 + scale1) + shift1).split(h.shape[-1], -1)
        h = h + gate1 * linear(f"{block}.attn.proj", attention(q, k, v))
        read = norm(seen) * (1 + scale_k) + shift_k
        parts = [(f"{block}.cttn", j, source) for j, source in enumerate((norm(h) * (1 + scale_q) + shift_q, read, read))]
        q, k, v = (source @ w[f"{name}.in_proj_weight"].chunk(3)[j].T + w[f"{name}.in_proj_bias"].chunk(3)[j] for name, j, source in parts)
        k = torch.cat([k, w[f"{block}.cttn.bias_k"].expand(b, 1, -1)], 1)
        v = torch.cat([v, w[f"{block}.cttn.bias_v"].expand(b, 1, -1)], 1)
        h = h + gate2 * linear(f"{block}.cttn.out_proj", attention(q, k, v))
        u = linear(f"{block}.mlp.fc1", norm(h) * (1 + scale3) + shift3)
        u = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        h = h + gate3 * linear(f"{block}.mlp.fc2", u)
    shift, scale = linear("final_layer.adaLN_modulation.1", condition)[:, None].chunk(2, -1)
    out = linear("final_layer.linear", norm(h) * (1 + scale) + shift)
    return out.reshape(b, height // 2, width // 2, 2, 2, 8).permute(0, 5, 1, 3, 2, 4).reshape(b, 8, height, width)


def group(frames: Tensor, offsets: Tensor, valid: Tensor | None = None) -> Context:
    there = torch.ones_like(offsets, dtype=torch.bool) if valid is None else valid
    unread, actions = torch.zeros(*offsets.shape, 5), torch.zeros(*offsets.shape, 3)
    return Context((ContextFrames(frames, offsets, unread, there, actions, unread, unread, offsets),))


def condition(actions: Tensor) -> Condition:
    zero = torch.zeros(len(actions), 1, 5)
    return condition_of(actions[:, None], zero, zero, torch.zeros(len(actions)))


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "x": torch.randn(3, 4, 2 * SIDE, 2 * SIDE),
        "context": torch.randn(3, CONTEXT, 4, 2 * SIDE, 2 * SIDE),
        "action": torch.tensor([[-0.07, 0.0, 0.1], [0.3, -0.2, -3.0], [4.0, 2.5, 0.5]]),
        "t": torch.tensor([0.0, 500.0, 999.0]),
    }


def net_of(state: dict[str, Tensor]) -> NWMNet:
    net = NWMNet(TINY)
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def test_a_state_dict_of_the_published_layout_gives_what_the_layout_defines(inputs: dict[str, Tensor]) -> None:
    state = published_layout()
    wanted = reference(state, inputs["x"], inputs["t"], inputs["action"], inputs["context"], torch.full((3,), 8 / 128), HEADS)
    offsets = torch.tensor([[11, 10, 9, 8]]).expand(3, -1)  # eight frames ahead of the newest
    action = torch.cat([inputs["action"][:, :2], inputs["action"][:, 2:] / math.pi], 1)
    given = net_of(state).bind(condition(action), (group(inputs["context"], offsets),))(inputs["x"][:, None], inputs["t"])
    assert wanted.abs().mean() > 0.1  # gates are open: nothing is right by being zero
    assert (given[:, 0] - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_context_frames_are_put_in_order_and_missing_ones_are_the_oldest_again(inputs: dict[str, Tensor]) -> None:
    net, frames = net_of(published_layout()), inputs["context"]
    shown = lambda *args: net.bind(condition(inputs["action"]), (group(*args),)).context  # noqa: E731
    in_order = shown(frames, torch.tensor([[4, 3, 2, 1]]).expand(3, -1))
    assert torch.equal(in_order, shown(frames.flip(1), torch.tensor([[1, 2, 3, 4]]).expand(3, -1)))
    valid = torch.tensor([[True, True, False, False]]).expand(3, -1)
    few = shown(frames.flip(1), torch.tensor([[1, 2, 0, 0]]).expand(3, -1), valid)
    assert torch.equal(few, shown(frames[:, [2, 2, 2, 3]], torch.tensor([[4, 3, 2, 1]]).expand(3, -1)))


def test_the_context_is_normalised_once_and_for_all(inputs: dict[str, Tensor]) -> None:
    context = group(inputs["context"], torch.arange(4, 0, -1).expand(3, -1))
    shown = net_of(published_layout()).bind(condition(inputs["action"]), (context,))
    assert shown.context.mean(-1).abs().max() < 1e-5 and (shown.context.var(-1, correction=0) - 1).abs().max() < 1e-3


def test_rows_do_not_affect_one_another(inputs: dict[str, Tensor]) -> None:
    net, offsets = net_of(published_layout()), torch.tensor([[4, 3, 2, 1]])
    context, first = group(inputs["context"], offsets.expand(3, -1)), group(inputs["context"][1:2], offsets)
    whole = net.bind(condition(inputs["action"]), (context,))(inputs["x"][:, None], inputs["t"])
    one = net.bind(condition(inputs["action"][1:2]), (first,))(inputs["x"][1:2, None], inputs["t"][1:2])
    assert torch.allclose(whole[1:2], one, atol=1e-5)


@pytest.mark.parametrize(("name", "millions"), [("S", 49.2), ("B", 195.3), ("L", 686.5), ("XL", 1012.0)])
def test_the_published_sizes_are_known_by_their_state_dicts(name: str, millions: float) -> None:
    width, depth, heads = PUBLISHED[f"CDiT-{name}/2"]
    with torch.device("meta"):
        net = NWMNet(NWMNetConfig(width=width, depth=depth, heads=heads))
    assert config_of(net.state_dict()) == net.config
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert net.state_dict().keys() == published_layout(width=6, depth=depth).keys()


# -- a whole checkpoint -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files as published, but tiny: `tiny.pth.tar` with training's leftovers, and the autoencoder beside it."""
    monkeypatch.setitem(nets.PUBLISHED, "CDiT-tiny/2", (WIDTH, DEPTH, HEADS))
    state = {f"_orig_mod.{name}": tensor for name, tensor in published_layout().items()}
    held = {"model": {}, "ema": state, "opt": {"lr": 1e-4}, "args": argparse.Namespace(model="CDiT"), "epoch": 3, "train_steps": 100_000}
    torch.save(held, tmp_path / "tiny.pth.tar")
    torch.manual_seed(2)
    autoencoder_kl().save_pretrained(tmp_path / nwm.AUTOENCODER)
    return tmp_path


def clip(frames: int = 6, rows: int = 2) -> Clip:
    pixels = torch.randint(0, 256, (rows, frames, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    there = torch.ones(rows, frames, dtype=torch.bool)
    return Clip(pixels, torch.zeros(rows, frames, 3), torch.zeros(rows, frames, 5), there)


def test_a_published_file_dreams_and_the_same_seed_dreams_the_same(folder: Path) -> None:
    world = load_world(f"nwm:{folder}/tiny.pth.tar", device="cpu", denoise_steps=6)
    assert load_world(f"nwm:{folder}/tiny.pth.tar", device="cpu").settings.sampler.denoise_steps == 250
    state = world.start(clip(), rng.make_keys([1, 2]))
    actions = torch.tensor([[[-1 / 15, 0.0, 0.25]], [[-1 / 3, 0.0, 0.0]]])
    after, shown = world.step(state, actions)
    assert shown.pixels.shape == (2, 1, 64, 64, 3) and shown.perf["network_evaluations"] == 6
    assert torch.allclose(after.poses[0], torch.tensor([0.25, 0, 0, math.pi / 4, 0]), atol=1e-6)
    assert torch.allclose(after.poses[1], torch.zeros(5), atol=1e-6)
    again = world.step(state, actions)[1]
    assert torch.equal(shown.pixels, again.pixels)
    alone = world.start(clip(rows=1), rng.make_keys([1]))
    assert (world.step(alone, actions[:1])[1].pixels.int() - shown.pixels[:1].int()).abs().max() <= 1


def test_half_precision_and_the_deterministic_sampler_run(folder: Path) -> None:
    world = load_world(f"nwm:{folder}/tiny.pth.tar,sampler=ddim", device="cpu", dtype="bfloat16", denoise_steps=3)
    full = load_world(f"nwm:{folder}/tiny.pth.tar,sampler=ddim", device="cpu", denoise_steps=3)
    shown = [w.step(w.start(clip(), rng.make_keys([1, 2])), torch.zeros(2, 1, 3))[1].pixels.float() for w in (world, full)]
    assert (shown[0] - shown[1]).abs().mean() < 4  # grey levels


def test_what_is_remembered_is_the_frame_shown_encoded_again(folder: Path) -> None:
    world = load_world(f"nwm:{folder}/tiny.pth.tar", device="cpu", denoise_steps=2)
    after, shown = world.step(world.start(clip(), rng.make_keys([1, 2])), torch.zeros(2, 1, 3))
    seen = world.start(Clip(shown.pixels, torch.zeros(2, 1, 3), torch.zeros(2, 1, 5), torch.ones(2, 1, dtype=torch.bool)), after.keys)
    query = world.query(after.poses, torch.zeros(2, 1, 5), after.times)
    newest = world.read(after.memories, query)[0].frames[0].latents[:, 0]
    assert torch.allclose(newest, seen.latents[:, 0], atol=1e-5)


def test_a_step_decodes_each_latent_once(folder: Path) -> None:
    world = load_world(f"nwm:{folder}/tiny.pth.tar", device="cpu", denoise_steps=2)
    state, decoded = world.start(clip(), rng.make_keys([1, 2])), []
    handle = world.autoencoder.model.decoder.register_forward_pre_hook(lambda module, args: decoded.append(len(args[0])))
    world.step(state, torch.zeros(2, 1, 3))
    handle.remove()  # the weights are shared by all worlds of this file
    assert decoded == [2]


def test_what_training_left_beside_the_weights_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map in the present format; files of the older one, which have none, are still read."""
    given: list[bool] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: (given.append(kwargs["mmap"]), load(*args, **kwargs))[1])
    torch.save({"ema": published_layout()}, folder / "old.pth.tar", _use_new_zipfile_serialization=False)
    new, old = (nwm.read_published(folder / f"{name}.pth.tar") for name in ("tiny", "old"))
    assert given == [True, False]
    assert new.keys() == old.keys() and all(torch.equal(tensor, old[name]) for name, tensor in new.items())


def test_a_jump_is_told_by_the_time_ahead(folder: Path) -> None:
    """Eight frames ahead at once: the network's time is 8/128 and its displacement is the whole one."""
    world = load_world(f"nwm:{folder}/tiny.pth.tar", device="cpu", denoise_steps=2)
    state = world.start(clip(), rng.make_keys([1, 2]))
    told: list[Tensor] = []
    world.net.time_embedder.register_forward_pre_hook(lambda module, args: told.append(args[0]))
    after, _ = world.step(state, torch.zeros(2, 1, 3), stride=8)
    assert torch.equal(told[0], torch.full((2,), 8 / 128)) and torch.equal(after.times, state.times + 8)


def test_the_autoencoder_is_never_replaced_in_silence(folder: Path) -> None:
    elsewhere = folder / "away"
    (folder / nwm.AUTOENCODER).rename(elsewhere)
    with pytest.raises(ValueError, match=r"needs Stable Diffusion's autoencoder.*vae="):
        load_world(f"nwm:{folder}/tiny.pth.tar")
    assert load_world(f"nwm:{folder}/tiny.pth.tar,vae={elsewhere},dataset=scand", device="cpu").kinematics == Displacement(spacing=0.38)


class Attack:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("attacked"),))


def test_weights_that_carry_code_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    torch.save({"ema": published_layout(), "args": Attack()}, folder / "evil.pth.tar", pickle_module=pickle)
    with pytest.raises(ValueError, match=r"evil\.pth\.tar.*cannot be read safely|not a file of weights"):
        load_world(f"nwm:{folder}/evil.pth.tar")
    assert not (folder / "attacked").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nwm:nowhere.pth.tar", "no such file"),
        ("nwm:{}/tiny.pth.tar,size=XL", "may be followed by"),
        ("nwm:{}/tiny.pth.tar,dataset=mars", "dataset must be one of"),
        ("nwm:{}/tiny.pth.tar,sampler=euler", "sampler of published NWM weights must be one of"),
    ],
)
def test_a_wrong_name_says_what_is_allowed(folder: Path, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_world(name.format(folder))


def test_published_weights_know_one_memory_only(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"memory must be one of \['none'\], got 'worldpack'"):
        load_world(f"nwm:{folder}/tiny.pth.tar", memory="worldpack")
    with pytest.raises(ValueError, match="memory of published NWM weights must be 'none'"):
        nwm.NWMConfig(memory="worldpack")


def test_published_weights_plan_on_data_without_a_description(folder: Path, tmp_path: Path) -> None:
    """Data that do not say what they are, are RECON: NWM's own prior and spacing."""
    pytest.importorskip("h5py")
    data = write_processed(tmp_path / "drives", count=3, dataset=None)
    few = {"tasks": 2, "samples": 3, "elites": 2, "repeats": 1, "rank": (2,), "policy_steps": 2, "denoise_steps": 2, "context": 6}
    args = ReconArgs(data, (f"nwm:{folder}/tiny.pth.tar",), device="cpu", out=tmp_path / "out", **few)  # type: ignore[arg-type]
    report = evaluate(args, progress=False)
    assert [row["system"] for row in report["planning"]][3:] == ["NWM (published)", "NWM (published) + policy x2"]
    assert report["prior"] == "NWM's for recon" and report["spacing_m"] == 0.25
    assert "drives that they may have learned from" in report["warning"] and report["warning"] in (args.out / "table.md").read_text()
    (data / "traj_names.txt").write_text("jackal_0\njackal_1\njackal_2\n")  # the test drives, by whoever wrote that
    assert "warning" not in evaluate(args, progress=False)
    with pytest.raises(ValueError, match="holds rows made with sampler="):
        evaluate(replace(args, checkpoint=(f"nwm:{folder}/tiny.pth.tar,sampler=ddim",)), progress=False)


def test_an_environment_dreams_with_published_weights(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    data = write_processed(tmp_path / "drives", count=1, dataset=None)
    env = gym.make("wmgym:NWM-Recon-v0", checkpoint=f"nwm:{folder}/tiny.pth.tar", data=str(data), denoise_steps=2, device="cpu")
    seen, info = env.reset(seed=1)
    assert seen.shape == (64, 64, 3) and info["memory_frames"] >= 1
    assert env.step(np.array([-1 / 15, 0, 0], np.float32))[0].shape == (64, 64, 3)


# -- the autoencoder --------------------------------------------------------------------------------------------------------------------


def test_many_frames_go_through_the_autoencoder_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    coder = KLAutoencoder(autoencoder_kl().eval(), 64)
    frames = torch.randint(0, 256, (1, 5, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = coder.encode(frames)
        images = coder.decode(latents)
        monkeypatch.setattr(kl_autoencoder, "AT_ONCE", 2)
        parts: list[int] = []
        for half in (coder.model.encoder, coder.model.decoder):
            half.register_forward_pre_hook(lambda module, args: parts.append(len(args[0])))
        assert torch.allclose(coder.encode(frames), latents, atol=1e-5) and torch.allclose(coder.decode(latents), images, atol=1e-5)
    assert parts == [2, 2, 1] * 2 and latents.shape == (1, 5, 4, 8, 8) and images.shape == (1, 5, 3, 64, 64)
    assert coder.latent_shape == (4, 8, 8)
    with pytest.raises(ValueError, match="frame_size must be a multiple of 8, got 60"):
        KLAutoencoder(coder.model, 60)


def test_the_autoencoder_computes_what_diffusers_computes(tmp_path: Path) -> None:
    theirs = autoencoder_kl((8, 16, 16), layers=2)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    ours = load_kl_autoencoder(tmp_path, frame_size=32)
    frames = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        latents = theirs.encode(frames.movedim(-1, 1).float() / 127.5 - 1).latent_dist.mean * theirs.config.scaling_factor
        assert torch.allclose(ours.encode(frames), latents, atol=1e-6)
        assert torch.allclose(ours.decode(latents), theirs.decode(latents / theirs.config.scaling_factor).sample, atol=1e-5)


def test_attention_weights_under_their_old_names_are_the_same_weights(tmp_path: Path) -> None:
    model = autoencoder_kl()
    model.save_pretrained(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = model.state_dict()
    for now, before in old.items():
        state = {name.replace(f"attentions.0.{now}.", f"attentions.0.{before}."): tensor for name, tensor in state.items()}
    assert any("proj_attn" in name for name in state)
    save_file(state, tmp_path / WEIGHTS)
    loaded = load_kl_autoencoder(tmp_path, 64).model.state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.items())


def test_another_autoencoders_weights_are_refused(tmp_path: Path) -> None:
    """Whether a tensor has another shape, is missing or is left over: what was asked for is not what would be computed."""
    model = autoencoder_kl()
    model.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = "decoder.conv_out.bias"
    wrong = {
        "does not hold an autoencoder that diffusers can read: .*size mismatch": {"encoder.conv_in.weight": torch.zeros(1)},
        rf"does not hold this autoencoder: '{name}' is missing": {k: t for k, t in state.items() if k != name},
        "does not hold this autoencoder: config.json has no 'decoder.up_blocks.0.resnets.2": autoencoder_kl(layers=2).state_dict(),
    }
    for words, tensors in wrong.items():
        save_file(tensors, tmp_path / WEIGHTS)
        with pytest.raises(ValueError, match=words):
            load_kl_autoencoder(tmp_path, 64)
    (tmp_path / WEIGHTS).write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="does not hold an autoencoder that diffusers can read"):
        load_kl_autoencoder(tmp_path, 64)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_an_autoencoder_is_a_folder_of_two_files(tmp_path: Path, name: str) -> None:
    autoencoder_kl().save_pretrained(tmp_path)
    assert load_kl_autoencoder(tmp_path, 64).latent_shape == (4, 8, 8)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"there is no {name}"):
        load_kl_autoencoder(tmp_path, 64)


def test_action_normalisation_keeps_the_offset_and_comes_back() -> None:
    moves = Displacement()
    assert moves.action(torch.zeros(5)).tolist() == pytest.approx([-1 / 3, 0, 0])
    assert moves.action(torch.tensor([0.25, 0, 0, 0, 0])).tolist() == pytest.approx([-1 / 15, 0, 0])  # one waypoint ahead
    egomotion = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)) * torch.tensor([1, 1, 0, 1, 0])
    assert torch.allclose(moves.motion(moves.action(egomotion)), egomotion, atol=1e-5)
