"""What every training of a world model shares: its folder, episodes, autoencoder, latents, held-out films and result.

    episodes --> autoencoder --> latents of every frame, once --> the system's own objective --> model.safetensors

A run is resumable at each arrow. The objective is the system's (`train/worldpack.py`, ...); the loop is `train/loop.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wmgym import settings
from wmgym.checkpoint import choose_device, choose_dtype, load, read_file, resolve, save, write_tensors
from wmgym.data import recon
from wmgym.data.episode import list_episodes, load_episode, read_header
from wmgym.data.latents import Latents, encode
from wmgym.files import as_json, open_run_folder, write_atomically
from wmgym.geometry import walk
from wmgym.kinematics import Displacement, Kinematics
from wmgym.nets.autoencoder import Autoencoder, AutoencoderConfig
from wmgym.progress import Progress
from wmgym.train.held_out import split
from wmgym.train.loop import Draw, LoopConfig, fit
from wmgym.train.muon import Muon
from wmgym.train.provenance import options_in_words, told
from wmgym.world_model import WorldModel

FREE = frozenset({"steps", "decay", "device", "save_every", "compile", "out"})  # what a run may be resumed with otherwise


@dataclass(frozen=True)
class RunArgs:
    """Options that all trainings of world models share."""

    data: tuple[Path, ...]
    """Folders of episodes (wmgym collect); for setting recon, of RECON's HDF5 files or processed trajectories."""
    out: Path
    """Folder for the run. If it holds one, that run is resumed."""
    size: str = "TINY"
    """Size of the network: TINY, S, B, L or XL."""
    setting: str = "minecraft"
    """Where the episodes were walked: minecraft, memory_maze, memory_cards, or recon (whose data say what an action means)."""
    dataset: str = "recon"
    """Setting recon only: which published dataset the data are, if their folder does not say it in dataset.json."""
    frame_size: int = 64
    """Setting recon only: side of the frames that images are brought to."""
    steps: int = 20_000
    """Training steps of the network."""
    batch: int = 64
    """Examples per step."""
    autoencoder_steps: int = 4_000
    """Training steps of the autoencoder."""
    autoencoder_batch: int = 32
    """Frames per step of the autoencoder."""
    autoencoder: str | None = None
    """Take the autoencoder of this checkpoint (name or path) instead of training one."""
    latent_channels: int = 12
    """Channels of the latents."""
    pixels: bool = False
    """Fold pixels into patches instead of learning an autoencoder."""
    init: str | None = None
    """Start from the weights of this checkpoint: of the same size, of this setting or another."""
    matrix_rate: float = 2e-2
    """Learning rate of Muon, on the matrices between hidden layers."""
    rate: float = 1e-3
    """Learning rate of AdamW, on the rest."""
    decay: float = 0.4
    """Share of the steps over which the learning rates fall to zero."""
    ema: float = 0.999
    """Decay of the weights' moving average."""
    save_every: int = 500
    """Steps between saves."""
    seed: int = 0
    """Of weights, batches and noise."""
    device: str = "auto"
    """auto, cpu, cuda."""
    compile: bool = False
    """Compile the network (slow to start, faster steps)."""
    max_frames: int = 1_000_000
    """Read at most so many frames for the autoencoder."""

    def __post_init__(self) -> None:
        settings.get(self.setting)
        for name in ("steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True)
class Run:
    """A training run that has begun: what its arguments lead to."""

    args: RunArgs
    device: torch.device
    training: list[Path]
    held_out: list[Path]
    displacement: Displacement | None  # what actions mean, where the data say it
    coder: AutoencoderConfig
    writer: Any  # of TensorBoard, or None
    progress: bool


def begin(args: RunArgs, progress: bool) -> Run:
    """Open or resume a run's folder and find its episodes. Whatever is wrong is said before anything is trained."""
    device = torch.device(choose_device(args.device))
    torch.manual_seed(args.seed)
    paths, displacement = _episodes(args, progress)
    held_out, training = split(paths)
    kind = "pixels" if args.pixels else "conv"
    coder = AutoencoderConfig(kind=kind, channels=args.latent_channels, frame_size=_frame_size(paths))
    _open_folder(args)  # after a look at the episodes: a wrong --data must not leave a folder that refuses the right one
    return Run(args, device, training, held_out, displacement, coder, _writer(args.out), progress)


def finish(
    run: Run,
    model: WorldModel,
    config: Any,
    data: Latents,
    figures: Mapping[str, Any],
    command: str,
    file: str = "model",
    base: str | None = None,
) -> dict[str, Any]:
    """Write the model and `result.json`; the report."""
    args = run.args
    own, made_from = f"{command} {options_in_words(args)}", (args.init, args.autoencoder, base)
    notes = {**told(own, args.data, made_from, int(data.lengths.sum())), **figures}
    path = args.out / f"{file}.safetensors"
    save(path, model, config, notes=notes, base=base)
    report = {"checkpoint": str(path), **notes}
    write_atomically(args.out / "result.json", as_json(report))
    return report


def _open_folder(args: RunArgs) -> None:
    open_run_folder(args.out, asdict(args), FREE, {f.name: f.default for f in fields(args)}, {"world": "setting"})


# -- episodes -------------------------------------------------------------------------------------------------------------------------


def _episodes(args: RunArgs, progress: bool) -> tuple[list[Path], Displacement | None]:
    """Files of episodes, and what their actions mean where the data say it. There each drive is made one, once, in `out/episodes`."""
    if not settings.get(args.setting).needs_data:
        return [path for folder in args.data for path in list_episodes(folder)], None
    datasets = [recon.read_dataset(folder, args.dataset) for folder in args.data]
    for folder, dataset in zip(args.data, datasets, strict=True):
        if dataset.displacement != datasets[0].displacement:
            raise ValueError(f"{folder}: {dataset} differs from {datasets[0]} of {args.data[0]}: one model has one meaning of an action")
    _open_folder(args)
    files: list[Path] = []
    with Progress(total=sum(len(recon.list_trajectories(folder)) for folder in args.data), desc="read", disable=not progress) as bar:
        for number, (folder, dataset) in enumerate(zip(args.data, datasets, strict=True)):
            files += recon.convert(folder, args.out / "episodes" / str(number), dataset, args.frame_size, bar)
    return files, datasets[0].displacement


def _frame_size(paths: list[Path]) -> int:
    """Side of the frames, which must be square and of one size."""
    headers = [read_header(path) for path in paths]
    side = headers[0].frame_shape[0]
    for path, header in zip(paths, headers, strict=True):
        if header.frame_shape != (side, side, 3):
            height, width, _ = header.frame_shape
            raise ValueError(f"{path}: frames are {height} x {width}, expected {side} x {side} as in {paths[0].name}")
    if max(header.length for header in headers) < 2:
        raise ValueError(f"{paths[0].parent}: no episode has more than one frame: nothing to learn from")
    return side


# -- autoencoder ----------------------------------------------------------------------------------------------------------------------


def fit_autoencoder(run: Run, model: Autoencoder) -> None:
    """Fit the autoencoder, unless it was given, folds pixels, or lies in `out/autoencoder.safetensors`."""
    args = run.args
    if args.pixels or args.autoencoder is not None:
        return
    done = args.out / "autoencoder.safetensors"
    if done.exists():
        model.load_state_dict({k: v.to(run.device) for k, v in read_file(done)[0].items()})
        return
    frames = _some_frames(run.training, args.max_frames, every=3)
    model.train()

    def losses(draw: Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        batch = torch.from_numpy(frames[np.sort(draw.numpy.integers(len(frames), size=args.autoencoder_batch))]).to(run.device)
        noise = 0.05 * torch.randn((len(batch), *model.latent_shape), generator=draw.torch, device=run.device)
        with half_precision(run.device):
            total, squared = model.loss(batch, noise)
        return {"total": total, "psnr": -10 * (squared.detach() / 4).log10()}, {"frames": batch}

    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    loop = LoopConfig(args.autoencoder_steps, warmup=100, decay=0.5, seed=args.seed, save_every=1000)
    fit(
        model, {"adam": optimiser}, losses, loop, args.out,
        name="autoencoder", device=run.device, writer=run.writer, progress=run.progress,
    )  # fmt: skip
    write_tensors(done, model.state_dict())


def _some_frames(paths: list[Path], most: int, every: int) -> np.ndarray:
    """Every n-th frame of the episodes: neighbours are alike, and memory is finite."""
    parts, count = [], 0
    for path in paths:
        parts.append(load_episode(path).frames[::every])
        count += len(parts[-1])
        if count >= most:
            break
    return np.concatenate(parts)


# -- latents --------------------------------------------------------------------------------------------------------------------------


def make_latents(run: Run, world: WorldModel) -> Latents:
    """Latents of all training frames, and the autoencoder's statistics from them unless it was given. Kept in `out/latents.safetensors`."""
    model, cache = world.autoencoder, run.args.out / "latents.safetensors"
    assert isinstance(model, Autoencoder)
    if cache.exists():
        tensors, _ = read_file(cache)
        if len(tensors["lengths"]) != len(run.training):
            found = f"{cache} holds {len(tensors['lengths'])} episodes, there are {len(run.training)} for training now"
            raise ValueError(f"{found}; delete it, or use another --out")
        model.mean.copy_(tensors.pop("mean"))
        model.std.copy_(tensors.pop("std"))
        return Latents(**tensors)
    normalise = run.args.autoencoder is None
    if normalise:
        model.mean.zero_()
        model.std.fill_(1)

    @torch.inference_mode()
    def encoder(frames: Tensor) -> Tensor:
        with half_precision(run.device):
            return torch.cat([model.encode(part.to(run.device)).float() for part in frames.split(256)])

    model.eval()
    data = encode(run.training, encoder, model.frame_size, action_size=world.kinematics.action_size, progress=run.progress)
    if normalise:
        there = torch.arange(data.latents.shape[1]) < data.lengths[:, None]
        sample = data.latents[there][::7].float()
        mean, std = sample.mean((0, 2, 3)), sample.std((0, 2, 3)).clamp(min=1e-3)
        model.mean.copy_(mean)
        model.std.copy_(std)
        for episode in data.latents:  # in place: the block may be most of the memory
            episode.copy_((episode.float() - mean[:, None, None]) / std[:, None, None])
    write_tensors(cache, {**data.tensors(), "mean": model.mean, "std": model.std})
    return data


def random_latents(moves: Kinematics, shape: tuple[int, int, int], episodes: int = 32, frames: int = 300, seed: int = 0) -> Latents:
    """Latents of noise along random walks: what a training draws its batches from where only its speed matters."""
    generator = torch.Generator().manual_seed(seed)
    count, size = (episodes, frames), moves.action_size
    noise = torch.randn((*count, *shape), generator=generator, dtype=torch.float16)
    chosen = torch.randint(max(1, moves.num_actions), count, generator=generator)
    actions = 2 * torch.rand((*count, size), generator=generator) - 1 if size else chosen
    start = torch.zeros(episodes, 5)
    poses = torch.cat([start[:, None], walk(start, moves.motion(actions)[:, 1:])], 1)
    return Latents(noise, poses, actions, torch.full((episodes,), frames))


# -- network --------------------------------------------------------------------------------------------------------------------------


def make_optimisers(model: nn.Module, matrices: Iterable[nn.Parameter], args: RunArgs) -> dict[str, torch.optim.Optimizer]:
    """Muon on the matrices that a network names, AdamW on the rest."""
    chosen = list(matrices)
    dtype = torch.bfloat16 if choose_dtype("auto", chosen[0].device.type) == "bfloat16" else torch.float32
    ids = {id(p) for p in chosen}
    return {
        "muon": Muon(chosen, lr=args.matrix_rate, weight_decay=0.01, dtype=dtype),
        "adam": torch.optim.AdamW([p for p in model.parameters() if id(p) not in ids], args.rate, betas=(0.9, 0.95), weight_decay=0.0),
    }


def warm_start(model: WorldModel, args: RunArgs) -> None:
    """Load what `init` and `autoencoder` name. What another setting's actions, outcomes or frames shape starts fresh; the parts that hold
    the network's matrices (its blocks) must fit."""
    if args.init is not None:
        own, other = model.state_dict(), load(resolve(args.init)).model.state_dict()
        fits = {k: v for k, v in other.items() if k in own and v.shape == own[k].shape}
        matrices = {id(p) for p in model.net.matrices()}
        inner = {f"net.{k.split('.')[0]}." for k, p in model.net.named_parameters() if id(p) in matrices}
        lacking = next((k for k in own if k.startswith(("autoencoder.", *inner)) and k not in fits), None)
        if lacking is not None:
            raise ValueError(f"{args.init} has other shapes than this model: {lacking} does not fit; choose its --size or no --init")
        model.load_state_dict(fits, strict=False)
    if args.autoencoder is not None:
        try:
            model.autoencoder.load_state_dict(load(resolve(args.autoencoder)).model.autoencoder.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{args.autoencoder} has other shapes than this model: {' '.join(str(error).split())[:200]}") from error


def half_precision(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 where the processor multiplies it natively, else float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=choose_dtype("auto", device.type) == "bfloat16")


def _writer(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out))
