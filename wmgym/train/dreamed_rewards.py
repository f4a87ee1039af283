"""`wmgym train reward`: fine-tune a checkpoint's reward head on its own dreams.

    true past --> t0 --- dreamed along the true actions ---> pairs of dreamed frames with the true rewards of the steps --> reward head

A head that was trained only on true frames mistakes flicker in a dream for an event, and an agent that learns in the dream exploits this.
Only the head is trained. Dreams are made with each memory and each number of denoising steps that are given. Half of the stretches contain
a reward. Each set of dreams is stored in `out/`, so that a killed run resumes after the last one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wmgym import systems
from wmgym.checkpoint import choose_device, load, read_file, resolve, save, write_tensors
from wmgym.data.episode import list_episodes
from wmgym.data.latents import Latents
from wmgym.files import as_json, open_run_folder, write_atomically
from wmgym.metrics.events import count_events
from wmgym.nets.heads import RewardHead
from wmgym.progress import Progress
from wmgym.train import rehearsal, reward
from wmgym.train.held_out import split
from wmgym.train.loop import Draw, LoopConfig, draw, fit
from wmgym.train.provenance import chain, options_in_words
from wmgym.train.reward import Pairs
from wmgym.train.run import half_precision
from wmgym.world_model import WorldModel

EARNING = 0.5  # share of the stretches that contain a reward
NOISE = 0.2  # on the latents that the head is trained on: dreams contain few events, and the head would memorise them


@dataclass(frozen=True)
class RewardArgs:
    """Fit the reward head of a checkpoint to its own dreams.

    Needs a checkpoint with a reward head, and episodes of its setting with rewards. Writes a folder with model.safetensors, in which only
    the head differs, and result.json with the head's hits before and after. The time grows with stretches, frames, memories and denoising
    steps, since most of it is dreaming. A killed run resumes: type the same command again.
    """

    data: tuple[Path, ...]
    """Folders of episodes (wmgym collect)."""
    checkpoint: str
    """Checkpoint with a reward head: bundled name, path or hub name."""
    out: Path
    """Folder for the run. If it holds one, that run is resumed."""
    memories: tuple[str, ...] | None = None
    """Memories to dream with; by default the system's default and "none"."""
    denoise_steps: tuple[int, ...] = (1, 2, 4)
    """Numbers of denoising steps to dream with."""
    stretches: int = 128
    """Stretches per memory and number of denoising steps."""
    frames: int = 24
    """Frames per stretch."""
    steps: int = 600
    """Training steps of the head."""
    batch: int = 256
    """Pairs of frames per step, half of them dreamed."""
    episodes: int = 400
    """Greatest number of training episodes."""
    seed: int = 0
    """Seed of stretches, noise and batches."""
    device: str = "auto"
    """auto, cpu, cuda."""

    def __post_init__(self) -> None:
        for name in ("stretches", "steps", "batch", "episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.frames < 2:
            raise ValueError(f"frames must be at least 2 (the head is trained on pairs of dreamed frames), got {self.frames}")
        if self.memories == () or not self.denoise_steps or min(self.denoise_steps) < 1:
            raise ValueError("memories must name at least one memory, and denoise_steps must contain positive numbers")


def train(args: RewardArgs, progress: bool = True) -> dict[str, Any]:
    """Dream, fit the head, and report its predictions before and after (also in `result.json`)."""
    device = torch.device(choose_device(args.device))
    torch.manual_seed(args.seed)
    loaded = load(resolve(args.checkpoint))
    model, config, notes = loaded.model.to(device).eval(), loaded.config, loaded.notes
    system = systems.get(config.system)
    memories = tuple(dict.fromkeys(map(system.memory_name, args.memories or (system.default_memory, systems.REFERENCE))))
    head = model.reward_head
    if head is None:
        raise ValueError(f"{args.checkpoint} has no reward head: its training episodes contained no rewards")
    open_run_folder(args.out, asdict(args), {"device", "out"}, {f.name: f.default for f in fields(RewardArgs)})
    held_out, training = split([path for folder in args.data for path in list_episodes(folder)])
    chosen = np.linspace(0, len(training) - 1, min(args.episodes, len(training))).round().astype(int)
    parts = {"train": [training[i] for i in chosen], "held-out": held_out[: max(1, args.episodes // 8)]}
    dreams: dict[str, list[rehearsal.Stretch]] = {}
    data: dict[str, Latents] = {}
    worlds = {name: model.with_settings(memories=system.settings(model.net, replace(config, memory=name)).memories) for name in memories}
    lots = [(name, steps) for name in memories for steps in args.denoise_steps]
    with Progress(total=len(lots) * len(parts), desc="dream", unit="lot", disable=not progress) as bar:
        for part, files in parts.items():
            data[part] = reward.encode_with(model, files).to(device)
            count = args.stretches if part == "train" else max(8, args.stretches // 4)
            for number, (mode, steps) in enumerate(lots):
                file = args.out / f"dreams-{part}-{mode}-{steps}.safetensors"
                lot = draw(args.seed + (part == "train"), number, device)
                dreams.setdefault(part, []).append(_dream(worlds[mode], data[part], lot, count, args.frames, steps, file))
                bar.update()
    lessons, events = reward.dreamed_pairs(head, data["train"], dreams["train"])
    tests, held_events = reward.dreamed_pairs(head, data["held-out"], dreams["held-out"])
    shown = int((lessons.outcomes != int(head.log_prior.argmax())).sum())
    report: dict[str, Any] = {"dreamed_pairs": len(lessons.outcomes), "events": events, "events_that_dreams_show": shown}
    report |= {f"before_{name}": value for name, value in _figures(head, data["held-out"], tests).items()}
    _fit(head, data["train"], lessons, args, device, progress)
    figures = {**_figures(head, data["held-out"], tests), "dreamed_events": float(held_events)}
    report |= {f"after_{name}": value for name, value in figures.items()}
    own = f"wmgym train reward {options_in_words(args)}"
    told = {"command": f"{notes.get('command', '')}; {own}", "commands": chain(own, args.data, (args.checkpoint,))}
    save(args.out / "model.safetensors", model, config, notes={**notes, **figures, **told})
    report["checkpoint"] = str(args.out / "model.safetensors")
    write_atomically(args.out / "result.json", as_json(report))
    return report


def draw_rewarded(data: Latents, draw: Draw, size: int, steps: int) -> tuple[Tensor, Tensor]:
    """Draw episodes and first times [size] of stretches of `steps` frames. A share `EARNING` of them contains a reward.

    If the data have no rewards, all stretches are drawn uniformly.
    """
    assert data.rewards is not None
    time = torch.arange(data.latents.shape[1], device=data.rewards.device)
    lengths = data.lengths.to(time.device)
    rows, times = torch.nonzero((data.rewards != 0) & (time > 0) & (time < lengths[:, None]) & (lengths[:, None] > steps), as_tuple=True)
    chosen = round(EARNING * size) if len(rows) else 0
    anywhere = [x.to(time.device) for x in data.draw(draw.numpy, size - chosen, steps)]
    which = torch.from_numpy(draw.numpy.integers(max(1, len(rows)), size=chosen)).to(time.device)
    back = torch.from_numpy(draw.numpy.integers(steps, size=chosen)).to(time.device)
    first = (times[which] - back).clamp(min=1).minimum(lengths[rows[which]] - steps)
    return torch.cat([anywhere[0], rows[which]]), torch.cat([anywhere[1], first])


def _dream(world: WorldModel, data: Latents, draw: Draw, count: int, frames: int, steps: int, file: Path) -> rehearsal.Stretch:
    """Dream one set of stretches, or read it from its file."""
    device = data.latents.device
    if file.is_file():
        tensors, _ = read_file(file)
        return rehearsal.Stretch(**{name: value.to(device) for name, value in tensors.items()})
    length = min(frames, int(data.lengths.max()) - 1)
    with half_precision(device):
        stretch = rehearsal.dream(world, data, draw, draw_rewarded(data, draw, count, length), length, steps)
    stretch = replace(stretch, latents=stretch.latents.half())
    write_tensors(file, {name: value.cpu() for name, value in vars(stretch).items()})
    return stretch


def _fit(head: RewardHead, data: Latents, pairs: Pairs, args: RewardArgs, device: torch.device, progress: bool) -> None:
    """Train the head. Half of each batch is dreamed and half is true; in both all outcomes are drawn equally often."""
    true, dreamed = reward.Examples(head, data), reward.DreamedExamples(head, pairs)

    def losses(draw: Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        parts = {"true": true.loss(draw, args.batch - args.batch // 2, NOISE), "dreamed": dreamed.loss(draw, args.batch // 2, NOISE)}
        return {"total": parts["true"] + reward.DREAMED * parts["dreamed"], **{k: v.detach() for k, v in parts.items()}}, {}

    optimiser = torch.optim.AdamW(head.parameters(), 1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    head.train().requires_grad_(True)
    loop = LoopConfig(args.steps, warmup=min(50, args.steps), decay=0.5, ema=0.99, seed=args.seed, save_every=args.steps)
    fit(head, {"adam": optimiser}, losses, loop, args.out, name="head", device=device, progress=progress)
    head.eval().requires_grad_(False)


def _figures(head: RewardHead, data: Latents, tests: Pairs) -> dict[str, float]:
    """Counts on true steps (`reward_`) and dreamed steps (`dreamed_`): `true` rewards, `said` (predicted) rewards, and `hits`."""
    said, true = reward.predicted_rewards(head, tests), torch.tensor([earned for earned, _ in head.outcomes])[tests.outcomes.cpu()]
    counts = count_events(said.numpy(), true.numpy())
    return {**reward.measure(head, data), **{f"dreamed_{name}": float(getattr(counts, name)) for name in ("true", "said", "hits")}}
