"""Few-step distillation: against flows that are known, and the command, with both systems that have it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from test_reward import bordered
from tiny import CONFIG
from torch import Tensor, nn

from wmgym.checkpoint import load, load_world, read_file, save
from wmgym.cli import main
from wmgym.diffusion.flow import Velocity
from wmgym.nets.video_dit import VideoDiTConfig
from wmgym.systems import video, worldpack
from wmgym.train import distil
from wmgym.train.distil import DistilArgs, train
from wmgym.train.distil_loss import Denoising, Jumps, contrast, distil_losses
from wmgym.train.loop import draw
from wmgym.train.worldpack import denoising
from wmgym.world_model import SamplerConfig

MEAN, STD = 0.7, 0.4  # of the toy's data
REHEARSE = '{"rehearse_every": 2, "rehearsal_frames": 3}'


class ExactFlow:
    """The velocity E[noise - data | x] of data from N(MEAN, STD^2), whose flow from level s to t is known."""

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        t = level.view(-1, 1, 1, 1, 1)
        variance = (1 - t) ** 2 * STD**2 + t**2
        return -MEAN + (t - (1 - t) * STD**2) / variance * (x - (1 - t) * MEAN)

    @staticmethod
    def arrive(x: Tensor, begin: float, end: float) -> Tensor:
        def spread(t: float) -> float:
            return math.sqrt((1 - t) ** 2 * STD**2 + t**2)

        return (1 - end) * MEAN + spread(end) / spread(begin) * (x - (1 - begin) * MEAN)


class Affine(nn.Module):
    """A velocity a x + b, with a and b for each of a few levels."""

    def __init__(self, levels: tuple[float, ...]) -> None:
        super().__init__()
        self.levels = levels
        self.slope, self.offset = nn.Parameter(torch.zeros(len(levels))), nn.Parameter(torch.zeros(len(levels)))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        which = torch.tensor([min(range(len(self.levels)), key=lambda n: abs(self.levels[n] - float(v))) for v in level])
        return self.slope[which].view(-1, 1, 1, 1, 1) * x + self.offset[which].view(-1, 1, 1, 1, 1)


def examples(generator: torch.Generator, size: int = 16) -> Denoising:
    data = MEAN + STD * torch.randn(size, 1, 2, 4, 4, generator=generator)
    own: Callable[[Any], Velocity] = lambda net: net  # noqa: E731
    return Denoising(data, torch.ones(size, 1, dtype=torch.bool), own)


@pytest.mark.parametrize(("steps", "weight"), [(1, 0.0), (1, 1.0), (2, 1.0)])
def test_the_distilled_jump_is_the_exact_flow(steps: int, weight: float) -> None:
    """The map of a Gaussian flow is affine, so the student can be exact."""
    jumps, generator = Jumps(steps, 64 * steps, sampler="heun"), torch.Generator().manual_seed(0)
    ends = [jumps.teacher_levels(n)[0] for n in range(steps)] + [0.0]
    student, example = Affine(tuple(ends[:-1])), examples(generator)
    optimiser = torch.optim.LBFGS(student.parameters(), line_search_fn="strong_wolfe")

    def total() -> Tensor:
        pairs = [distil_losses(example, ExactFlow(), student, jumps, n, torch.Generator().manual_seed(n)) for n in range(steps)]
        loss = torch.stack([velocity + weight * flatter for velocity, flatter in pairs]).sum()
        optimiser.zero_grad()
        loss.backward()
        return loss

    optimiser.step(total)
    x = torch.randn(16, 1, 2, 4, 4, generator=generator)
    for begin, end in pairwise(ends):
        with torch.no_grad():
            after = x + (end - begin) * student(x, torch.full((16,), begin))
        torch.testing.assert_close(after, ExactFlow.arrive(x, begin, end), atol=2e-3, rtol=0)
        x = after


def test_the_teachers_steps_of_a_jump_end_where_the_students_begin() -> None:
    jumps = Jumps(2, 6, shift=3.0)
    first, second = jumps.teacher_levels(0), jumps.teacher_levels(1)
    assert len(first) == len(second) == 4 and first[0] == 1 and first[-1] == second[0] and second[-1] == 0
    assert first[-1] == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))  # the student's own level: `flow.levels(2, 3)`


def test_the_contrast_term_counters_shrinkage_and_ignores_a_shift() -> None:
    """An answer that is the teacher's times a factor costs both terms the same; a constant error costs no contrast."""
    generator, jumps = torch.Generator().manual_seed(0), Jumps(1, 2)
    still = torch.randn(8, 1, 3, 4, 4, generator=generator)
    still -= still.mean((3, 4), keepdim=True)
    example = Denoising(still, torch.ones(8, 1, dtype=torch.bool), lambda net: net)

    def to(target: Tensor) -> Velocity:
        return lambda x, level: (x - target) / level.view(-1, 1, 1, 1, 1)  # every step leads towards it in a straight line

    def losses(target: Tensor) -> tuple[float, float]:
        velocity, flatter = distil_losses(example, to(still), to(target), jumps, 0, torch.Generator().manual_seed(1))
        return float(velocity), float(flatter)

    velocity, flatter = losses(0.8 * still)
    assert velocity == pytest.approx(0.04 * float(still.square().mean()), rel=1e-3) and flatter == pytest.approx(velocity, rel=1e-3)
    velocity, flatter = losses(still + 0.5)
    assert velocity == pytest.approx(0.25, rel=1e-3) and flatter < 1e-9
    assert contrast(still).shape == (8, 1, 3)


def test_frames_that_do_not_exist_carry_no_loss() -> None:
    generator, valid = torch.Generator().manual_seed(0), torch.tensor([[True, False]])
    latents = torch.randn(1, 2, 1, 4, 4, generator=generator)
    found = []
    for last in (0.0, 9.0):
        spoilt = latents.clone()
        spoilt[:, 1] = last
        example, student = Denoising(spoilt, valid, lambda net: net), Affine((1.0, 0.5))
        pair = distil_losses(example, ExactFlow(), student, Jumps(2, 4), 1, torch.Generator().manual_seed(1))
        found.append([loss.item() for loss in pair])
    assert found[0] == found[1]


# -- the command ------------------------------------------------------------------------------------------------------------------------


def teacher(folder: Path, seed: int = 0) -> str:
    """A tiny checkpoint of four steps. Its matrices are large enough for Muon."""
    config = replace(CONFIG, net=replace(CONFIG.net, width=32), sampler=SamplerConfig("euler", 4))
    torch.manual_seed(seed)
    model = worldpack.build(config)
    for weight in model.net.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.1)
    save(folder / "teacher.safetensors", model.eval(), config)
    return str(folder / "teacher.safetensors")


def args(data: Path, checkpoint: str, out: Path, **changes: Any) -> DistilArgs:
    few = {"steps": 6, "batch": 4, "save_every": 2, "training": REHEARSE}
    return DistilArgs(checkpoint, (data,), out, **{**few, **changes})


def test_a_killed_run_ends_with_the_same_bits_and_an_ordinary_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, checkpoint = bordered(tmp_path / "data", length=24), teacher(tmp_path)
    whole = train(args(data, checkpoint, tmp_path / "whole"), progress=False)
    calls, real = [], distil.distil_losses

    def killed(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(distil, "distil_losses", killed)
        with pytest.raises(KeyboardInterrupt):
            train(args(data, checkpoint, tmp_path / "killed"), progress=False)
    resumed = train(args(data, checkpoint, tmp_path / "killed"), progress=False)
    ours, theirs = (read_file(Path(report["checkpoint"]))[0] for report in (resumed, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert resumed["held_out"] == whole["held_out"]
    assert json.loads((tmp_path / "whole" / "result.json").read_text()) == json.loads(json.dumps(whole))

    taught, loaded = load(checkpoint), load(whole["checkpoint"])
    assert loaded.config == replace(taught.config, sampler=SamplerConfig("euler", 1))
    assert loaded.notes["teacher"] == taught.model.provenance.weights and "--training" in loaded.notes["command"]
    assert loaded.model.provenance.autoencoder == taught.model.provenance.autoencoder
    before, after = taught.model.state_dict(), loaded.model.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"net"}  # autoencoder and heads are the teacher's
    assert load_world(whole["checkpoint"]).settings.sampler.denoise_steps == 1
    rows = [(row["network"], row["denoise_steps"]) for row in whole["held_out"]]
    assert rows == [(network, steps) for network in ("teacher", "student") for steps in (1, 2, 4)]
    measures = ("next_psnr", "next_ssim", "dream_psnr", "dream_ssim", "sharpness")
    assert all(math.isfinite(row[name]) for row in whole["held_out"] for name in measures)
    with pytest.raises(ValueError, match="was begun with teacher="):  # other weights at the same path
        train(args(data, teacher(tmp_path, seed=1), tmp_path / "killed"), progress=False)


def test_a_student_comes_nearer_to_what_the_teacher_dreams(tmp_path: Path) -> None:
    """Its loss falls, on new batches, well below that of the teacher's own single step."""
    data, checkpoint = bordered(tmp_path / "data", length=24), teacher(tmp_path)
    changes = {"steps": 20, "batch": 8, "save_every": 20, "rate": 1e-3, "matrix_rate": 5e-3, "ema": 0.9}
    report = train(args(data, checkpoint, tmp_path / "out", **changes), progress=False)
    assert report["method"].startswith("progressive distillation")
    system_options = distil._training_options(args(data, checkpoint, tmp_path), distil.systems.get("worldpack"), "minecraft")
    taught, learnt = load(checkpoint), load(report["checkpoint"])
    latents = distil.encode_once(tmp_path / "out" / "latents.safetensors", taught.model, [])
    draw_one = denoising(system_options, learnt.model, learnt.config, latents)
    found = []
    for net in (taught.model.net, learnt.model.net):
        lots = [draw(99, step, "cpu") for step in range(2, 8)]
        with torch.no_grad():
            found.append(sum(float(distil_losses(draw_one(d), taught.model.net, net, Jumps(1, 4), 0, d.torch)[0]) for d in lots))
    assert found[1] < 0.5 * found[0]


def test_the_video_network_is_distilled_by_the_same_program(tmp_path: Path) -> None:
    shape = CONFIG.autoencoder.latent_shape
    net = VideoDiTConfig(latent_shape=shape, width=32, depth=1, heads=2, chunk=2, window=3, patch=1)
    config = video.VideoConfig(pose_source="actions", autoencoder=CONFIG.autoencoder, net=net, sampler=SamplerConfig("euler", 4))
    save(tmp_path / "video.safetensors", video.build(config), config)
    data = bordered(tmp_path / "data", length=24)
    options = args(data, str(tmp_path / "video.safetensors"), tmp_path / "out", denoise_steps=2, training='{"gaps": 0.3}')
    report = train(options, progress=False)
    assert load(report["checkpoint"]).config == replace(config, sampler=SamplerConfig("euler", 2))
    assert len(report["held_out"]) == 6


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"contrast": -1.0}, "contrast must not be negative"),
        ({"denoise_steps": 4}, r"the teacher's steps must be a multiple of the student's 4, and more, got 4"),
        ({"teacher_steps": 3, "denoise_steps": 2}, r"a multiple of the student's 2, and more, got 3"),
        ({"training": "[1]"}, "training must be a JSON object"),
        ({"training": '{"modes": "none", "rehearsal": 0}'}, "positive shares"),
        ({"training": '{"batch": 4}'}, "only `wmgym train worldpack` has, got 'batch'"),
        ({"training": '{"mode": 4}'}, "has no field 'mode'"),
        ({"save_every": 3}, "save_every must be a multiple of rehearse_every 2, got 3"),
    ],
)
def test_bad_options_are_named_before_any_work(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    data, checkpoint = bordered(tmp_path / "data", episodes=2, length=24), teacher(tmp_path)
    with pytest.raises(ValueError, match=match):
        train(args(data, checkpoint, tmp_path / "out", **changes), progress=False)
    assert not (tmp_path / "out").exists()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, checkpoint = bordered(tmp_path / "data", length=24), teacher(tmp_path)
    words = ["distil", "--checkpoint", checkpoint, "--data", str(data), "--out", str(tmp_path / "out"), "--steps", "2", "--batch", "2"]
    assert main([*words, "--save-every", "2", "--training", REHEARSE]) == 0
    assert "sharpness" in capsys.readouterr().out
    assert main([*words[:2], "nowhere", *words[3:]]) == 1
    assert "checkpoint must be a bundled name" in capsys.readouterr().err
