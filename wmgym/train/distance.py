"""`wmgym train distance`: a distance in steps between two frames, for goal images (`nets.distance`).

    episodes --> a checkpoint's autoencoder --> latents, once --> pairs of frames, with the steps between them --> distance.safetensors

Labels are differences in time, so nothing but frames is needed. Bins of steps are drawn equally often. Half of the pairs of the bin "more"
are from one episode, and half from two. Pairs of one episode that are far apart in time may show the same place, after a loop: the network
learns how often.

The distance is bound to its autoencoder, whose SHA-256 is in the file's header.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmgym.checkpoint import choose_device, from_dict, load, read_file, resolve, to_dict, write_tensors
from wmgym.data.episode import list_episodes, load_episode
from wmgym.data.latents import Latents
from wmgym.files import as_json, open_run_folder, write_atomically
from wmgym.metrics import image
from wmgym.metrics.statistics import bootstrap_interval, rank_correlation
from wmgym.nets.distance import DistanceConfig, StepDistance
from wmgym.train.held_out import split
from wmgym.train.loop import Draw, LoopConfig, draw, fit
from wmgym.train.provenance import options_in_words
from wmgym.train.reward import encode_once, encode_with

FILE = "distance.safetensors"
HEADER = "distance"  # entry of the file's header: config and autoencoder
NOISE = 0.1  # on the latents, which in dreams are not exact
PAIRS = 256  # of each held-out episode
HELD_OUT = 40  # episodes at most


@dataclass(frozen=True)
class DistanceArgs:
    """Learn the distance in steps between two frames, as a planning objective for goal images (`wmgym plan --objective steps`).

    Needs episodes and a checkpoint, whose autoencoder encodes them. Writes a folder with distance.safetensors, and result.json with the
    rank correlation of predicted and true steps on held-out episodes, beside those of latent distance and SSIM. A killed run resumes:
    type the same command again.
    """

    data: tuple[Path, ...]
    """Folders of episodes (wmgym collect)."""
    checkpoint: str
    """Checkpoint whose autoencoder is used: bundled name, path or hub name."""
    out: Path
    """Folder for the run. If it holds one, that run is resumed."""
    most: int = 32
    """Steps from which on a distance is "more"."""
    reversible: bool = True
    """Draw half of the pairs in reverse order, for worlds in which a move can be taken back."""
    width: int = 64
    """Channels of the network."""
    steps: int = 2000
    """Training steps."""
    batch: int = 128
    """Pairs of frames per step."""
    episodes: int = 400
    """Greatest number of training episodes."""
    save_every: int = 200
    """Steps between saves."""
    seed: int = 0
    """Seed of weights, pairs and noise."""
    device: str = "auto"
    """auto, cpu, cuda."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "episodes", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        DistanceConfig(most=self.most, width=self.width)


def train(args: DistanceArgs, progress: bool = True) -> dict[str, Any]:
    """Encode, fit, and report the rank correlations on held-out episodes (also in `result.json`)."""
    device = torch.device(choose_device(args.device))
    model = load(resolve(args.checkpoint)).model.to(device).eval()
    held_out, training = split([path for folder in args.data for path in list_episodes(folder)])
    chosen = np.linspace(0, len(training) - 1, min(args.episodes, len(training))).round().astype(int)
    made_with = {**asdict(args), "autoencoder": model.provenance.autoencoder}
    open_run_folder(args.out, made_with, {"device", "out", "save_every"}, {f.name: f.default for f in fields(DistanceArgs)})
    torch.manual_seed(args.seed)
    net = StepDistance(DistanceConfig(model.autoencoder.latent_shape, args.most, args.width)).to(device)
    data = encode_once(args.out / "latents.safetensors", model, [training[i] for i in chosen])
    fit_distance(net, data.to(device), args, progress)
    command, folders = f"wmgym train distance {options_in_words(args)}", [str(folder) for folder in args.data]
    told = {"command": command, "data": folders, "frames": int(data.lengths.sum())}
    save(args.out / FILE, net, model.provenance.autoencoder, told)
    paths = held_out[:HELD_OUT]
    tests = encode_with(model, paths).to(device)
    report = {"distance": str(args.out / FILE), **told, **measure(net, tests, paths, args.seed)}
    write_atomically(args.out / "result.json", as_json(report))
    return report


def fit_distance(net: StepDistance, data: Latents, args: DistanceArgs, progress: bool = False) -> None:
    """Train the network on pairs of frames of `data`, from the state in `args.out` if there is one."""
    starts, lengths = net.config.starts, data.lengths.numpy()
    if lengths.max() <= net.config.most:
        raise ValueError(f"no training episode has more than most={net.config.most} steps: collect longer ones, or give a smaller --most")

    def losses(draw: Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        first, second, bins = draw_pairs(lengths, starts, draw.numpy, args.batch, args.reversible)
        pairs = torch.stack([data.latents[first[0], first[1]], data.latents[second[0], second[1]]]).float()
        pairs += NOISE * torch.randn(pairs.shape, generator=draw.torch, device=pairs.device)
        return {"total": net.loss(pairs[0], pairs[1], torch.from_numpy(bins).to(pairs.device))}, {"pairs": pairs}

    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    net.train().requires_grad_(True)
    loop = LoopConfig(args.steps, warmup=min(50, args.steps), decay=0.5, ema=0.99, seed=args.seed, save_every=args.save_every)
    fit(net, {"adam": optimiser}, losses, loop, args.out, name="distance", device=data.latents.device, progress=progress)
    net.eval().requires_grad_(False)


def draw_pairs(
    lengths: np.ndarray, starts: tuple[int, ...], rng: np.random.Generator, size: int, reversible: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of frames, and the numbers of their bins [size], all bins equally often.

    A frame is given by the row of its episode and its time: int64 [2, size]. Within an episode the first frame is the earlier one, or with
    `reversible` either. lengths: frames of each episode, of which one has more than `starts[-1]`.
    """
    more = len(starts) - 1
    bins = rng.integers(more + 1, size=size)
    ends = np.array([*starts[1:], lengths.max()])
    gaps = rng.integers(np.array(starts)[bins], ends[bins])
    room = (lengths - gaps[:, None]).clip(min=0).cumsum(1)  # first frames that have a second one, summed over episodes
    flat = rng.integers(room[:, -1])
    rows = (room <= flat[:, None]).sum(1)
    times = room[np.arange(size), rows] - 1 - flat
    rows_after, times_after = rows.copy(), times + gaps
    if len(lengths) > 1:
        foreign = (bins == more) & (rng.random(size) < 0.5)
        others = (rows + rng.integers(1, len(lengths), size=size)) % len(lengths)
        rows_after[foreign] = others[foreign]
        times_after[foreign] = rng.integers(lengths[others])[foreign]
    first, second = np.stack([rows, times]), np.stack([rows_after, times_after])
    if reversible:
        swapped = rng.random(size) < 0.5
        first, second = np.where(swapped, second, first), np.where(swapped, first, second)
    return first, second, bins


@torch.no_grad()
def measure(net: StepDistance, data: Latents, paths: list[Path], seed: int) -> dict[str, Any]:
    """Spearman's rank correlation of predicted and true steps in each of the episodes `paths`: the mean, with its interval over episodes.

    Pairs are 1 to `most` steps apart, uniformly. Controls are the mean squared error of latents and 1 - SSIM of frames. A value is missing
    where no episode has different distances.
    """
    found: dict[str, list[float]] = {"steps": [], "latent": [], "ssim": []}
    for row, path in enumerate(paths):
        frames, rng = torch.from_numpy(load_episode(path).frames), draw(seed, row, "cpu").numpy
        gaps = rng.integers(1, min(net.config.most, len(frames) - 1) + 1, size=PAIRS) if len(frames) > 2 else np.ones(0, int)
        if len(set(gaps)) < 2:
            continue
        times = rng.integers(len(frames) - gaps)
        a, b = (data.latents[row, t].float() for t in (times, times + gaps))
        costs = {
            "steps": net.log_steps(a, b),
            "latent": (a - b).square().mean((1, 2, 3)),
            "ssim": 1 - image.ssim(frames[times], frames[times + gaps]),
        }
        for name, values in costs.items():
            found[name].append(rank_correlation(values.cpu().numpy(), gaps))
    rows = []
    for name, correlations in found.items():
        if known := [value for value in correlations if np.isfinite(value)]:
            mean = bootstrap_interval(known)
            rows.append({"objective": name, "episodes": len(known), "spearman": mean.mean, "low": mean.low, "high": mean.high})
    return {"rank_correlations": rows}


# -- files ----------------------------------------------------------------------------------------------------------------------------


def save(path: Path, net: StepDistance, autoencoder: str, notes: dict[str, Any]) -> None:
    """Write a distance. autoencoder: SHA-256 of the autoencoder that it belongs to (`Provenance.autoencoder`)."""
    header = {HEADER: json.dumps({"config": to_dict(net.config), "autoencoder": autoencoder}), "notes": json.dumps(notes)}
    write_tensors(path, {name: value.cpu() for name, value in net.state_dict().items()}, header)


def load_distance(path: Path | str, autoencoder: str) -> StepDistance:
    """Read a distance. ValueError if the file is damaged or is none, or if it belongs to another autoencoder.

    autoencoder: SHA-256 of the world's autoencoder (`Provenance.autoencoder`).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `wmgym train distance` writes OUT/{FILE}")
    tensors, header = read_file(path)
    if HEADER not in header:
        raise ValueError(f"{path}: is no distance; `wmgym train distance` writes OUT/{FILE}")
    about = json.loads(header[HEADER])
    if about["autoencoder"] != autoencoder:
        raise ValueError(
            f"{path}: belongs to the autoencoder with SHA-256 {about['autoencoder'][:16]}, this world has {autoencoder[:16] or 'none'}: "
            "train a distance with its checkpoint (`wmgym train distance --checkpoint`)"
        )
    net = StepDistance(from_dict(DistanceConfig, about["config"]))
    net.load_state_dict(tensors)
    return net.eval().requires_grad_(False)
