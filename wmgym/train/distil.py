"""`wmgym distil`: a checkpoint of few denoising steps from one of more.

    checkpoint (teacher) --+--> batches of its own training --> jumps (`distil_loss.py`) --> student --> model.safetensors
    episodes --> latents --+

The student is the teacher's network, fine-tuned; autoencoder and heads stay as they are. Its config has the student's number of steps, so
the checkpoint is used like any other. Batches are those of the system's own training (`systems.System.denoising`).
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from wmgym import systems
from wmgym.checkpoint import choose_device, from_dict, load, resolve, save
from wmgym.core import Clip
from wmgym.data.episode import list_episodes
from wmgym.data.latents import Latents
from wmgym.files import as_json, json_object, open_run_folder, write_atomically
from wmgym.metrics.image import gradient_energy, judge
from wmgym.systems import System
from wmgym.train.distil_loss import Jumps, distil_losses
from wmgym.train.held_out import dream_on, held_out_clip, split, split_of
from wmgym.train.loop import FORWARD, Draw, LoopConfig, fit
from wmgym.train.provenance import options_in_words, told
from wmgym.train.reward import encode_once
from wmgym.train.run import RunArgs, half_precision, make_optimisers
from wmgym.world_model import SamplerConfig, WorldModel

METHOD = "progressive distillation, all of the teacher's steps of a jump at once"
MEASURED_STEPS = (1, 2, 4)
FREE = ("device", "out", "steps", "save_every")  # what a run may be resumed with otherwise


@dataclass(frozen=True)
class DistilArgs:
    """Fine-tune a checkpoint so that fewer denoising steps do.

    Needs the checkpoint and episodes of its setting. Writes OUT/model.safetensors, which dreams in `denoise_steps` steps, and
    OUT/result.json with PSNR, SSIM and sharpness of teacher and student at 1, 2 and 4 steps on held-out episodes. A killed run resumes:
    type the same command again.
    """

    checkpoint: str
    """The teacher: bundled name, path or hub name."""
    data: tuple[Path, ...]
    """Folders of episodes (wmgym collect)."""
    out: Path
    """Folder for the run. If it holds one, that run is resumed."""
    denoise_steps: int = 1
    """Steps of the student."""
    teacher_steps: int | None = None
    """Steps of the teacher: a multiple of the student's; by default the checkpoint's own."""
    contrast: float = 1.0
    """Weight of the term against blur."""
    training: str = "{}"
    """Options of the system's own training, as JSON, which decide the batches: '{"modes": "none:1,worldpack:1"}' for worldpack."""
    steps: int = 2000
    """Training steps."""
    batch: int = 32
    """Examples per step."""
    matrix_rate: float = 2e-3
    """Learning rate of Muon, on the matrices between hidden layers."""
    rate: float = 1e-4
    """Learning rate of AdamW, on the rest of the network."""
    decay: float = 0.4
    """Share of the steps over which the learning rates fall to zero."""
    ema: float = 0.999
    """Decay of the weights' moving average."""
    episodes: int = 1000
    """Greatest number of training episodes."""
    save_every: int = 500
    """Steps between saves."""
    seed: int = 0
    """Seed of batches and noise."""
    device: str = "auto"
    """auto, cpu, cuda."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "episodes", "save_every", "denoise_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.contrast < 0:
            raise ValueError(f"contrast must not be negative, got {self.contrast}")


def train(args: DistilArgs, progress: bool = True) -> dict[str, Any]:
    """Distil or resume; the figures of teacher and student (also in `result.json`)."""
    device = torch.device(choose_device(args.device))
    loaded = load(resolve(args.checkpoint))
    teacher, own = loaded.model.to(device), loaded.config.sampler
    system = systems.get(loaded.config.system)
    options = _training_options(args, system, loaded.config.setting)
    jumps = Jumps(args.denoise_steps, own.denoise_steps if args.teacher_steps is None else args.teacher_steps, own.shift, own.name)
    config = replace(loaded.config, sampler=SamplerConfig("euler", jumps.student_steps, jumps.shift))
    held_out, training = split([path for folder in args.data for path in list_episodes(folder)])
    chosen = np.linspace(0, len(training) - 1, min(args.episodes, len(training))).round().astype(int)
    made_with = {**asdict(args), "teacher": teacher.provenance.weights}
    open_run_folder(args.out, made_with, FREE, {f.name: f.default for f in fields(DistilArgs)})
    data = encode_once(args.out / "latents.safetensors", teacher, [training[i] for i in chosen])
    student = copy.deepcopy(teacher).with_settings(sampler=config.sampler)
    clip = held_out_clip(held_out, device)
    _fit(teacher, student, config, data.to(device) if device.type == "cuda" else data, jumps, options, args, clip, progress)
    rows = compare({"teacher": teacher, "student": student}, clip)
    command = f"wmgym distil {options_in_words(args)}"
    notes = told(command, args.data, (args.checkpoint,), int(data.lengths.sum()))
    notes |= {"teacher": teacher.provenance.weights, "teacher_steps": jumps.teacher_steps}
    notes |= {"method": f"{METHOD}; {args.contrast:g} times the difference of contrast", "held_out": rows}
    save(args.out / "model.safetensors", student, config, notes=notes)
    report = {"checkpoint": str(args.out / "model.safetensors"), **notes}
    write_atomically(args.out / "result.json", as_json(report))
    return report


def _training_options(args: DistilArgs, system: System, setting: str) -> RunArgs:
    """Options of the system's own training, with the batch and the learning rates of this one."""
    if system.denoising is None or system.train is None:
        known = [name for name in systems.names() if systems.get(name).denoising is not None]
        raise ValueError(f"{args.checkpoint}: system {system.name!r} cannot be distilled, only {', '.join(known)}")
    module, kind, _ = system.train.split(":")
    given = json_object(args.training, "training")
    shared = sorted({f.name for f in fields(RunArgs)} & given.keys())
    if shared:
        allowed = f"options that only `wmgym train {system.name}` has"
        raise ValueError(f"training must hold {allowed}, got {shared[0]!r}, which every training has")
    ours = {name: getattr(args, name) for name in ("data", "out", "batch", "matrix_rate", "rate", "save_every")}
    return from_dict(getattr(importlib.import_module(module), kind), {**given, **ours, "setting": setting})


def _fit(
    teacher: WorldModel,
    student: WorldModel,
    config: Any,
    data: Latents,
    jumps: Jumps,
    options: RunArgs,
    args: DistilArgs,
    clip: Clip,
    progress: bool,
) -> None:
    """Fit the student's network, which ends with its averaged weights."""
    device, denoising = student.device, systems.get(config.system).denoising
    assert denoising is not None
    module, function = denoising.split(":")
    draw_one = getattr(importlib.import_module(module), function)(options, student, config, data)

    def losses(draw: Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        example = draw_one(draw)
        jump = int(draw.numpy.integers(jumps.student_steps))
        with record_function(FORWARD), half_precision(device):
            velocity, contrast = distil_losses(example, teacher.net, student.net, jumps, jump, draw.torch)
        parts = {"velocity": velocity.detach(), "contrast": contrast.detach()}
        return {"total": velocity + args.contrast * contrast, **parts}, {"latents": example.latents}

    def measure(step: int, net: nn.Module) -> dict[str, float]:
        rows = compare({"student": student}, clip, (jumps.student_steps,))
        return {name: row[name] for row in rows for name in ("next_psnr", "dream_psnr", "sharpness")}

    student.net.train().requires_grad_(True)
    warmup = max(1, min(100, args.steps // 10))
    loop = LoopConfig(args.steps, warmup=warmup, decay=args.decay, ema=args.ema, seed=args.seed, save_every=args.save_every)
    optimisers = make_optimisers(student.net, student.net.matrices(), options)
    fit(student.net, optimisers, losses, loop, args.out, name="student", device=device, on_save=measure, progress=progress)
    student.net.eval().requires_grad_(False)


def compare(networks: Mapping[str, WorldModel], clip: Clip, steps: tuple[int, ...] = MEASURED_STEPS) -> list[dict[str, Any]]:
    """Dreams of the last quarter of held-out episodes, by network and number of steps: PSNR and SSIM of the first frame and of all.

    `sharpness` is the gradient energy of all dreamed frames over the truth's. Empty if the episodes are too short to be dreamed.
    """
    begin = split_of(clip, next(iter(networks.values())).chunk)
    if begin is None:
        return []
    rows = []
    truth = clip.frames[:, begin:].cpu().numpy()
    for name, world in networks.items():
        for count in steps:
            view = world.with_settings(sampler=replace(world.settings.sampler, denoise_steps=count))
            frames = dream_on(view, clip, begin).cpu().numpy()
            scores = {f"next_{k}": v for k, v in _means(frames[:, :1], truth[:, :1]).items()}
            scores |= {f"dream_{k}": v for k, v in _means(frames, truth).items()}
            sharpness = gradient_energy(_flat(frames)).mean() / gradient_energy(_flat(truth)).mean()
            rows.append({"network": name, "denoise_steps": count, **scores, "sharpness": float(sharpness)})
    return rows


def _means(frames: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """PSNR and SSIM of films uint8 [B, T, H, W, 3], means over all frames."""
    return {name: float(values.mean()) for name, values in judge(_flat(frames), _flat(truth)).items()}


def _flat(films: np.ndarray) -> np.ndarray:
    """[B, T, H, W, 3] -> [B * T, H, W, 3]."""
    return films.reshape(-1, *films.shape[2:])
