"""`wmgym train worldpack`: autoencoder, then latents, then CDiT and motion head, in one resumable command.

    episodes --> autoencoder --> latents of every frame, once --> CDiT on all four memory modes + heads --> model.safetensors

One set of weights is trained across the modes none, packing, retrieval and worldpack (one mode per batch), so that they can be
compared on equal terms. The batches' contexts come from the same memory code that dreams use. A motion head is trained beside it, and
a reward head where the data hold rewards (reward.py).
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from wmgym import rng
from wmgym.checkpoint import FORMAT, load, read_file, resolve, save, write_atomically
from wmgym.core import Clip
from wmgym.data import recon
from wmgym.data.episode import list_episodes, load_episode, read_header
from wmgym.data.episode import write_atomically as write_bytes
from wmgym.data.latents import Latents, encode
from wmgym.geometry import relative_pose
from wmgym.kinematics import Displacement
from wmgym.memory.retrieval import RetrievalConfig
from wmgym.nets.autoencoder import Autoencoder, AutoencoderConfig, to_uint8
from wmgym.systems.worldpack import WorldPackConfig, build, memory_of, preset
from wmgym.train import rehearsal, reward
from wmgym.train.loop import Draw, LoopConfig, fit
from wmgym.world_model import Batch, WorldModel

HELD_OUT = 50  # one episode in so many is kept for measuring
REHEARSED = 1.5  # stretches dreamed at a time, in batches


@dataclass(frozen=True)
class TrainArgs:
    """Fit a WorldPack world model on a folder of episodes."""

    data: tuple[Path, ...]
    """Folders of episodes (wmgym collect); for world recon, of RECON's HDF5 files or processed trajectories."""
    out: Path
    """Folder for the run. If it holds one, that run is resumed."""
    size: str = "TINY"
    """Size of the network: TINY, S, B, L or XL."""
    world: str = "minecraft"
    """Whose kinematics: minecraft, or recon (what an action means is told by the data)."""
    dataset: str = "recon"
    """World recon only: which published dataset the data are, if their folder does not say it in dataset.json."""
    frame_size: int = 64
    """World recon only: side of the frames that images are brought to."""
    furthest: int = 1
    """World recon only: half of the examples are jumps of up to so many frames at once (NWM: 64)."""
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
    """Start from the weights of this checkpoint: of the same size, of this world or another."""
    modes: str = "none:2,packing:2,retrieval:3,worldpack:4"
    """Memory modes and how often each is trained."""
    matrix_rate: float = 2e-2
    """Learning rate of Muon, on the blocks' matrices."""
    rate: float = 1e-3
    """Learning rate of AdamW, on the rest."""
    decay: float = 0.4
    """Share of the steps over which the learning rates fall to zero."""
    context_noise: float = 0.1
    """Noise on context latents, so that the dream bears its own errors."""
    context_drop: float = 0.5
    """Share of examples in which recent frames are hidden, so that the others are learned to be used."""
    revisits: float = 0.5
    """Share of examples drawn for a view that something long past resembles: only these teach what a memory is for."""
    rehearsal: float = 0.25
    """Share of batches whose recent frames the model dreamed itself, so that it learns to find back to the truth."""
    rehearsal_frames: int = 16
    """Frames dreamed at a stretch, at most."""
    rehearse_every: int = 100
    """Steps between such dreams. A run is saved at multiples of it, so that it resumes with the same ones."""
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
    max_frames: int = field(default=1_000_000)
    """Read at most so many frames."""

    def __post_init__(self) -> None:
        if self.furthest < 1 or (self.furthest > 1 and self.world != Displacement.name):
            raise ValueError(f"furthest must be positive, and 1 but in world {Displacement.name!r}, got {self.furthest}")
        if self.rehearsal > 0 and self.save_every % self.rehearse_every:
            raise ValueError(f"save_every must be a multiple of rehearse_every {self.rehearse_every}, got {self.save_every}")

    def mode_weights(self) -> dict[str, float]:
        pairs = dict(item.split(":") for item in self.modes.split(","))
        return {k: float(v) for k, v in pairs.items()}


def train(args: TrainArgs, progress: bool = True) -> dict[str, Any]:
    """Train or resume; the figures of the end."""
    device = device_of(args.device)
    torch.manual_seed(args.seed)
    paths, displacement = _episodes(args, progress)
    held_out, training = paths[::HELD_OUT], [p for i, p in enumerate(paths) if i % HELD_OUT]
    training = training or held_out  # a single episode is both: enough for a test of the machinery
    frame_size = _frame_size(paths)
    args.out.mkdir(parents=True, exist_ok=True)
    claim(args, FREE)
    writer = _writer(args.out)
    coder_config = AutoencoderConfig(kind="pixels" if args.pixels else "conv", channels=args.latent_channels, frame_size=frame_size)
    config = replace(preset(args.size, args.world, coder_config, displacement), outcomes=reward.outcomes(training))
    model = build(config, device)
    _warm_start(model, args)
    assert isinstance(model.autoencoder, Autoencoder)
    if not args.pixels and args.autoencoder is None:
        _fit_autoencoder(model.autoencoder, training, args, device, writer, progress)
    data = _latents(model, training, args.out / "latents.safetensors", device, progress, normalise=args.autoencoder is None)
    figures = _fit_net(model, config, data, held_out, args, device, writer, progress)
    command = f"wmgym train worldpack {words(args)}"
    notes = {"command": command, "data": [str(d) for d in args.data], "frames": int(data.lengths.sum()), **figures}
    save(args.out / "model.safetensors", model, config, notes=notes)
    report = {"checkpoint": str(args.out / "model.safetensors"), **notes}
    write_bytes(args.out / "result.json", json.dumps(report, indent=2).encode())
    return report


def _episodes(args: TrainArgs, progress: bool) -> tuple[list[Path], Displacement | None]:
    """Files of episodes, and what their actions mean in world recon. There each drive is made one, once, in `out/episodes`."""
    if args.world != Displacement.name:
        return [path for folder in args.data for path in list_episodes(folder)], None
    datasets = [recon.read_dataset(folder, args.dataset) for folder in args.data]
    for folder, dataset in zip(args.data, datasets, strict=True):
        if dataset.displacement != datasets[0].displacement:
            raise ValueError(f"{folder}: {dataset} differs from {datasets[0]} of {args.data[0]}: one model has one meaning of an action")
    args.out.mkdir(parents=True, exist_ok=True)
    claim(args, FREE)
    files: list[Path] = []
    with tqdm(total=sum(len(recon.list_trajectories(folder)) for folder in args.data), desc="read", disable=not progress) as bar:
        for number, (folder, dataset) in enumerate(zip(args.data, datasets, strict=True)):
            files += recon.convert(folder, args.out / "episodes" / str(number), dataset, args.frame_size, bar)
    return files, datasets[0].displacement


def _frame_size(paths: list[Path]) -> int:
    """Side of the frames, which must be square and of one size: known before anything is trained."""
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


def _fit_autoencoder(model: Autoencoder, paths: list[Path], args: TrainArgs, device: torch.device, writer: Any, progress: bool) -> None:
    """Fit the autoencoder, unless `out/autoencoder.safetensors` is there."""
    done = args.out / "autoencoder.safetensors"
    if done.exists():
        model.load_state_dict({k: v.to(device) for k, v in read_file(done)[0].items()})
        return
    frames = _frames(paths, args.max_frames, every=3)
    latent_shape = model.config.latent_shape
    model.train()

    def losses(draw: Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        batch = torch.from_numpy(frames[np.sort(draw.numpy.integers(len(frames), size=args.autoencoder_batch))]).to(device)
        noise = 0.05 * torch.randn((len(batch), *latent_shape), generator=draw.torch, device=device)
        with half_precision(device):
            total, squared = model.loss(batch, noise)
        return {"total": total, "psnr": -10 * (squared.detach() / 4).log10()}, {"frames": batch}

    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    config = LoopConfig(args.autoencoder_steps, warmup=100, decay=0.5, seed=args.seed, save_every=1000)
    fit(model, {"adam": optimiser}, losses, config, args.out, name="autoencoder", device=device, writer=writer, progress=progress)
    write_atomically(done, model.state_dict(), {"format": FORMAT})


def _frames(paths: list[Path], most: int, every: int) -> np.ndarray:
    """Every n-th frame of the episodes: neighbours are alike, and memory is finite."""
    parts, count = [], 0
    for path in paths:
        parts.append(load_episode(path).frames[::every])
        count += len(parts[-1])
        if count >= most:
            break
    return np.concatenate(parts)


# -- latents --------------------------------------------------------------------------------------------------------------------------


def _latents(world: WorldModel, paths: list[Path], cache: Path, device: torch.device, progress: bool, *, normalise: bool) -> Latents:
    """Latents of all training frames, and with `normalise` the autoencoder's statistics from them. Kept in a file for the next start."""
    model = world.autoencoder
    assert isinstance(model, Autoencoder)
    if cache.exists():
        tensors, _ = read_file(cache)
        model.mean.copy_(tensors.pop("mean"))
        model.std.copy_(tensors.pop("std"))
        return Latents(**tensors)
    if normalise:
        model.mean.zero_()
        model.std.fill_(1)

    @torch.inference_mode()
    def encoder(frames: Tensor) -> Tensor:
        with half_precision(device):
            return torch.cat([model.encode(part.to(device)).float() for part in frames.split(256)])

    model.eval()
    data = encode(paths, encoder, model.config.frame_size, action_size=world.kinematics.action_size, progress=progress)
    if normalise:
        there = torch.arange(data.latents.shape[1]) < data.lengths[:, None]
        sample = data.latents[there][::7].float()
        mean, std = sample.mean((0, 2, 3)), sample.std((0, 2, 3)).clamp(min=1e-3)
        model.mean.copy_(mean)
        model.std.copy_(std)
        for episode in data.latents:  # in place: the block may be most of the memory
            episode.copy_((episode.float() - mean[:, None, None]) / std[:, None, None])
    tensors = {name: tensor for name, tensor in vars(data).items() if tensor is not None}
    write_atomically(cache, tensors | {"mean": model.mean, "std": model.std}, {"format": FORMAT})
    return data


# -- network --------------------------------------------------------------------------------------------------------------------------


def draw_batch(
    data: Latents,
    draw: Draw,
    size: int,
    revisits: float = 0.0,
    retrieval: RetrievalConfig | None = None,
    jumps: tuple[Displacement, int] | None = None,
) -> Batch:
    """Examples with their whole past as a memory; the mode decides what of it is read. `revisits`: see `rehearsal.moments`.

    With `jumps` (what actions mean, and how far at most) half of the examples are further ahead than one step, told the whole displacement.
    """
    rows, first = rehearsal.moments(data, draw, size, revisits, retrieval=retrieval)
    before, target = first - 1, first[:, None]
    actions = data.actions[rows[:, None], target]
    if jumps is not None:
        moves, furthest = jumps
        ahead = draw.numpy.integers(1, furthest, size) * (draw.numpy.random(size) < 0.5)
        target = torch.minimum(target + torch.from_numpy(ahead).to(target)[:, None], data.lengths.to(target)[rows][:, None] - 1)
        actions = moves.action(relative_pose(data.poses[rows[:, None], target], data.poses[rows, before][:, None]))
    return Batch(
        (rehearsal.past(data, rows, first),),
        data.latents[rows, before],
        data.poses[rows, before],
        actions,
        data.latents[rows[:, None], target],
        data.poses[rows[:, None], target],
        target,
    )


def next_batch(
    data: Latents,
    stretch: rehearsal.Stretch | None,
    draw: Draw,
    args: TrainArgs,
    retrieval: RetrievalConfig,
    jumps: tuple[Displacement, int] | None = None,
) -> Batch:
    """A batch of true pasts, or now and then one whose recent frames were dreamed."""
    if stretch is not None and draw.numpy.random() < args.rehearsal:
        return rehearsal.draw_batch(data, stretch, draw, args.batch)
    return draw_batch(data, draw, args.batch, args.revisits, retrieval, jumps)


def _fit_net(
    model: WorldModel,
    config: WorldPackConfig,
    data: Latents,
    held_out: list[Path],
    args: TrainArgs,
    device: torch.device,
    writer: Any,
    progress: bool,
) -> dict[str, float]:
    weights = args.mode_weights()
    memories = {mode: (memory_of(config, mode, device),) for mode in weights}
    odds = np.array(list(weights.values())) / sum(weights.values())
    data = data.to(device) if device.type == "cuda" else data
    trained = nn.ModuleDict({name: part for name, part in (("net", model.net), ("motion_head", model.motion_head)) if part is not None})
    earned = reward.Examples(model.reward_head, data) if model.reward_head is not None else None
    if earned is not None:
        trained["reward_head"] = earned.head
    matrices = [p for p in model.net.blocks.parameters() if p.ndim == 2 and min(p.shape) > 16]
    ids = {id(p) for p in matrices}
    optimisers: dict[str, torch.optim.Optimizer] = {
        "muon": torch.optim.Muon(matrices, lr=args.matrix_rate, weight_decay=0.01),
        "adam": torch.optim.AdamW([p for p in trained.parameters() if id(p) not in ids], args.rate, betas=(0.9, 0.95), weight_decay=0.0),
    }
    if args.compile:
        model.net.denoise = torch.compile(model.net.denoise)  # type: ignore[method-assign, assignment]
    model.train()
    stretch: rehearsal.Stretch | None = None
    dreamed: reward.DreamedExamples | None = None
    jumps = (model.kinematics, args.furthest) if isinstance(model.kinematics, Displacement) and args.furthest > 1 else None
    length = min(args.rehearsal_frames, int(data.lengths.max()) - 1)
    rehearsed = round(REHEARSED * args.batch)

    def losses(draw: Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        mode = list(memories)[draw.numpy.choice(len(odds), p=odds)]
        nonlocal stretch, dreamed
        if args.rehearsal > 0 and draw.step % args.rehearse_every == 0 and length > 1:
            where = rehearsal.moments(data, draw, rehearsed, args.revisits, length, config.retrieval)
            with half_precision(device):
                stretch = rehearsal.dream(model, memories[mode], data, draw, where, length)
            if earned is not None:
                dreamed = reward.DreamedExamples(earned.head, reward.dreamed_pairs(earned.head, data, [stretch])[0])
        batch = next_batch(data, stretch, draw, args, config.retrieval, jumps)
        model.memories = memories[mode]
        with half_precision(device):
            parts = model.loss(batch, draw.torch, args.context_noise, args.context_drop)
            if earned is not None:
                parts["reward"] = earned.loss(draw, args.batch, args.context_noise)
                if dreamed is not None and dreamed.complete:
                    parts["dreamed_reward"] = reward.DREAMED * dreamed.loss(draw, args.batch, args.context_noise)
        figures = {"total": torch.stack(list(parts.values())).sum(), **{k: v.detach() for k, v in parts.items()}}
        return figures, {"latents": batch.latents, "poses": batch.poses, "actions": batch.actions}

    watch = reward.Watch(_Watch(model, held_out, memories, device, args.out, writer), model, held_out)
    warmup = max(1, min(200, args.steps // 10))
    loop = LoopConfig(args.steps, warmup=warmup, decay=args.decay, ema=args.ema, seed=args.seed + 1, save_every=args.save_every)
    fit(trained, optimisers, losses, loop, args.out, name="net", device=device, on_save=watch, writer=writer, progress=progress)
    model.memories = (memory_of(config, device=device),)
    model.eval()
    return watch(args.steps, trained)


class _Watch:
    """Held-out episodes, dreamed at every save: the next frame after a true past, and the quarter after it on the dream's own."""

    FRAMES = 96

    def __init__(
        self, model: WorldModel, paths: list[Path], memories: dict[str, Any], device: torch.device, out: Path, writer: Any
    ) -> None:
        self.model, self.memories, self.device, self.out, self.writer = model, memories, device, out, writer
        episodes = [load_episode(p) for p in paths[:12]]
        self.episodes = [e for e in episodes if len(e) >= self.FRAMES] or [max(episodes, key=len)]

    def __call__(self, step: int, trained: nn.Module) -> dict[str, float]:
        frames = min([self.FRAMES, *(len(e) for e in self.episodes)])
        if frames < 2:
            return {}
        model = self.model
        was = model.memories
        model.eval()
        split = frames - max(1, frames // 4)
        clip = self._clip(frames)
        seen = Clip(clip.frames[:, :split], clip.actions[:, :split], clip.poses[:, :split], clip.valid[:, :split])
        figures = {}
        films = [clip.frames[:, split:]]
        keys = rng.make_keys(list(range(len(self.episodes))), self.device)
        for mode, memories in self.memories.items():
            model.memories = memories
            state = model.start(seen, keys)
            dreamed = []
            for t in range(split, frames):
                state, shown = model.step(state, clip.actions[:, t : t + 1])
                dreamed.append(shown.pixels[:, 0])
            film = torch.stack(dreamed, 1)
            films.append(film)
            figures[f"{mode}_next"] = _psnr(film[:, 0], clip.frames[:, split])
            figures[f"{mode}_dream"] = _psnr(film, clip.frames[:, split:])
        figures["autoencoder"] = _psnr(to_uint8(model.autoencoder.decode(model.encode(clip.frames[:, split:]))), clip.frames[:, split:])
        figures["copy"] = _psnr(clip.frames[:, split - 1 : split].expand_as(clip.frames[:, split:]), clip.frames[:, split:])
        self._show(step, films)
        model.memories = was
        model.train()
        return figures

    def _clip(self, frames: int) -> Clip:
        def stack(name: str) -> Tensor:
            return torch.from_numpy(np.stack([getattr(e, name)[:frames] for e in self.episodes])).to(self.device)

        there = torch.ones(len(self.episodes), frames, dtype=torch.bool, device=self.device)
        return Clip(stack("frames"), stack("actions"), stack("poses"), there)

    def _show(self, step: int, films: list[Tensor]) -> None:
        """Truth above the modes, as a strip and a film."""
        import cv2

        folder = self.out / "samples"
        folder.mkdir(exist_ok=True)
        strip = torch.cat([torch.cat(list(film[0, ::3]), 1) for film in films], 0).cpu().numpy()
        cv2.imwrite(str(folder / f"{step:06d}.png"), strip[..., ::-1])
        moving = torch.cat([torch.cat(list(film[:6]), 2) for film in films], 1).cpu().numpy()  # [T, rows * H, lanes * W, 3]
        video = cv2.VideoWriter(str(folder / f"{step:06d}.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (moving.shape[2], moving.shape[1]))
        for frame in moving:
            video.write(frame[..., ::-1])
        video.release()
        if self.writer is not None:
            self.writer.add_image("truth above dreams", strip, step, dataformats="HWC")


def _psnr(a: Tensor, b: Tensor) -> float:
    """Mean over frames of the peak signal-to-noise ratio in dB."""
    error = (a.float() - b.float()).square().flatten(-3).mean(-1).clamp(min=1e-3)
    return float((10 * (255**2 / error).log10()).mean())


# -- helpers --------------------------------------------------------------------------------------------------------------------------


def device_of(name: str) -> torch.device:
    """The device of a name; of "auto" a GPU if there is one."""
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


def half_precision(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 where the processor multiplies it natively, else float32."""
    native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


def _warm_start(model: WorldModel, args: TrainArgs) -> None:
    """Load what `init` and `autoencoder` name. What another world's actions or outcomes shape otherwise starts fresh; blocks must fit."""
    if args.init is not None:
        own, other = model.state_dict(), load(resolve(args.init))[0].state_dict()
        fits = {k: v for k, v in other.items() if k in own and v.shape == own[k].shape}
        lacking = next((k for k in own if k.startswith(("autoencoder.", "net.blocks.")) and k not in fits), None)
        if lacking is not None:
            raise ValueError(f"{args.init} has other shapes than this model: {lacking} does not fit; choose its --size or no --init")
        model.load_state_dict(fits, strict=False)
    if args.autoencoder is not None:
        try:
            model.autoencoder.load_state_dict(load(resolve(args.autoencoder))[0].autoencoder.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{args.autoencoder} has other shapes than this model: {' '.join(str(error).split())[:200]}") from error


FREE = frozenset({"steps", "decay", "device", "save_every", "compile", "out"})  # what a run may be resumed with otherwise


def claim(args: Any, free: frozenset[str]) -> None:
    """Write `args.out/args.json`; a folder that holds another run is refused. What is `free` may change."""
    file = args.out / "args.json"
    now = json.loads(json.dumps(asdict(args), default=str))
    if file.exists():
        before = json.loads(file.read_text())
        changed = sorted(k for k in now if k not in free and now[k] != before.get(k, getattr(type(args), k, None)))
        if changed:
            name = changed[0]
            raise ValueError(f"{args.out} holds a run with {name}={before.get(name)!r}, asked for {now[name]!r}; choose another --out")
    write_bytes(file, json.dumps(now, indent=2).encode())


def _writer(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out))


def words(args: Any) -> str:
    """The options of a command that are not at their default, as they are typed."""
    default = {field.name: field.default for field in fields(args)}
    changed = {k: v for k, v in vars(args).items() if v != default[k]}
    return " ".join(f"--{k.replace('_', '-')} {' '.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in changed.items())
