"""Rehearsal: the past is true, the recent frames are the model's own, the target is the truth."""

from dataclasses import replace

import torch

from wmgym import rng
from wmgym.core import Clip
from wmgym.data.latents import Latents
from wmgym.memory import bank
from wmgym.nets.autoencoder import AutoencoderConfig
from wmgym.nets.cdit import CDiTConfig
from wmgym.systems.worldpack import WorldPackConfig, build, memory_of
from wmgym.train import rehearsal
from wmgym.train.loop import Draw, draw
from wmgym.world_model import WorldModel

SHAPE = (48, 4, 4)
STEPS = 5


def small() -> tuple[WorldModel, WorldPackConfig]:
    torch.manual_seed(0)
    coder = AutoencoderConfig(kind="pixels", factor=4, frame_size=16)
    config = WorldPackConfig(autoencoder=coder, net=CDiTConfig(latent_shape=SHAPE, width=32, depth=1, heads=2))
    model = build(config)
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, config


def episodes(count: int = 3, length: int = 40) -> Latents:
    generator = torch.Generator().manual_seed(1)
    latents = torch.rand(count, length, *SHAPE, generator=generator) * 2 - 1
    poses = torch.rand(count, length, 5, generator=generator)
    return Latents(latents, poses, torch.randint(10, (count, length), generator=generator), torch.full((count,), length))


def starts(data: Latents, draw: Draw) -> tuple[Draw, tuple[torch.Tensor, torch.Tensor]]:
    where = rehearsal.draw_starts(data, draw, 4, 0.0, STEPS)
    return draw, where


def test_a_rehearsed_stretch_is_what_the_world_dreams_along_the_true_actions() -> None:
    """Two ways agree: dreaming from the block of latents, and starting a world on the frames and telling it the true poses."""
    model, config = small()
    data = episodes()
    before = model.settings
    stretch = rehearsal.dream(model, data, *starts(data, draw(0, 0, "cpu")), STEPS)
    assert stretch.latents.shape == (4, STEPS, *SHAPE)
    # the first dreamed frame depends on nothing but the true past, its key and the action
    again = rehearsal.dream(model, data, *starts(data, draw(0, 0, "cpu")), STEPS)
    assert torch.equal(stretch.latents, again.latents)
    source = draw(0, 0, "cpu")
    rows, first = data.draw(source.numpy, 4, STEPS)
    keys = rng.make_keys([int(seed) for seed in source.numpy.integers(2**63, size=4)])
    assert torch.equal(rows, stretch.rows)
    world = model.with_settings(sampler=replace(model.settings.sampler, denoise_steps=2))
    for lane in range(4):
        row, begin = int(rows[lane]), int(first[lane])
        frames = model.autoencoder.decode(data.latents[row, :begin])  # pixel patches: nothing is lost but the rounding
        pixels = ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)
        seen = Clip(pixels[None], data.actions[row, None, :begin], data.poses[row, None, :begin], torch.ones(1, begin, dtype=torch.bool))
        state = world.start(seen, keys[lane : lane + 1])
        state, _ = world.step(state, data.actions[row, begin][None, None])
        assert torch.allclose(state.latents[0, 0], stretch.latents[lane, 0], atol=0.05)  # up to 8-bit frames
    assert model.settings is before and before.pose_source == config.pose_source


def test_recent_frames_are_dreamed_the_past_and_the_target_are_true() -> None:
    model, config = small()
    data = episodes()
    model = model.with_settings(memories=(memory_of(config, "none"),))
    stretch = rehearsal.dream(model, data, *starts(data, draw(0, 1, "cpu")), STEPS)
    batch = rehearsal.draw_batch(data, stretch, draw(0, 2, "cpu"), 32)
    memory, target = batch.memories[0], batch.times[:, 0]
    times = memory.times.values
    assert torch.equal(times.amax(1), target - 1)  # all that came before the target is remembered, once
    assert torch.equal((times >= 0).sum(1), target)
    slots, there = bank.newest(memory, STEPS + 3)
    held = bank.take(memory, slots)
    lengths = set()
    for lane in range(32):
        matches = [i for i in range(4) if torch.equal(stretch.latents[i, :1].flatten(), _frame(memory, lane, int(stretch.first[i])))]
        (source,) = [i for i in matches if bool((data.latents[stretch.rows[i], target[lane]] == batch.latents[lane, 0]).all())]
        row, first = int(stretch.rows[source]), int(stretch.first[source])
        lengths.add(int(target[lane]) - first)
        for age, (latent, exists) in enumerate(zip(held.latents[lane], there[lane], strict=True)):
            time = int(target[lane]) - 1 - age
            if exists:
                expected = stretch.latents[source, time - first] if time >= first else data.latents[row, time]
                assert torch.equal(latent, expected)
                assert bool(held.observed[lane, age]) == (time < first)
                assert torch.equal(held.actions[lane, age], data.actions[row, time])
                assert torch.equal(held.egomotion[lane, age], data.frames.egomotion[row, time])
        assert torch.equal(batch.poses[lane, 0], data.poses[row, target[lane]])
        assert int(batch.actions[lane, 0]) == int(data.actions[row, target[lane]])
    assert lengths == set(range(1, STEPS))


def _frame(memory: bank.Bank, lane: int, time: int) -> torch.Tensor:
    """The latent that a lane remembers of a time, or nothing."""
    slot = (memory.times.values[lane] == time).nonzero()
    return bank.take(memory, slot[None, 0].expand(len(memory.times.values), 1)).latents[lane, 0].flatten() if len(slot) else torch.zeros(0)
