"""Navigation World Models (Bar et al. 2024) with the published weights.

    last 4 frames --autoencoder--> latents --> CDiT-S/B/L/XL, 250 of 1,000 DDPM steps --> next latent --> frame, encoded again
    displacement and time ahead, noise step ------- adaLN-Zero --^

`checkpoint="nwm:PATH"` opens a file such as `0100000.pth.tar` and uses its moving average of the weights. The autoencoder is Stable
Diffusion's, by default from the folder `sd-vae-ft-ema` beside the file. `nwm:PATH,vae=PATH_OR_HUB_NAME,dataset=scand,sampler=ddim` sets
the other options.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wmgym.data.recon import DATASETS
from wmgym.diffusion.ddpm import ANCESTRAL
from wmgym.hub import PREFIX as HUB
from wmgym.hub import fetch
from wmgym.kinematics import Displacement
from wmgym.memory.packing import Layout
from wmgym.memory.retrieval import RetrievalConfig
from wmgym.memory.trajectory import TrajectoryMemory
from wmgym.nets.autoencoder import FrameCoder
from wmgym.nets.kl_autoencoder import load_kl_autoencoder
from wmgym.nets.nwm import NWMNet, NWMNetConfig, config_of
from wmgym.systems.system import Loader, MemoryChoice, MemoryHost, System
from wmgym.world_model import SamplerConfig, WorldModel

PREFIX = "nwm:"
AUTOENCODER = "sd-vae-ft-ema"
FACTOR = 8  # pixels per latent cell along a side
RECENT = Layout(((4, 0),))  # the network takes four whole frames


@dataclass(frozen=True)
class NWMConfig:
    system: str = "nwm"
    setting: str = "recon"
    memory: str = "none"  # the network reads four frames at full resolution and nothing else
    memory_budget: int = 64  # frames in memory
    pose_source: str = "actions"
    through_pixels: bool = True  # as published: each frame is decoded and encoded again
    net: NWMNetConfig = field(default_factory=NWMNetConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig("ddpm", 250))
    displacement: Displacement = field(default_factory=Displacement)

    def __post_init__(self) -> None:
        if self.memory != "none":
            raise ValueError(f"memory of published NWM weights must be 'none' (they read four frames), got {self.memory!r}")
        if self.net.context != RECENT.num_frames:
            raise ValueError(f"these weights take {self.net.context} context frames, this version gives {RECENT.num_frames}")


def _memories(host: MemoryHost) -> tuple[TrajectoryMemory, ...]:
    config = host.config
    return (TrajectoryMemory(RECENT, config.retrieval, config.net.latent_shape, config.memory_budget, Displacement.action_size),)


def build(config: NWMConfig, autoencoder: FrameCoder) -> WorldModel:
    """The model with new weights."""
    net = NWMNet(config.net)
    return WorldModel(autoencoder, net, config.displacement, SYSTEM.settings(net, config))


@dataclass(frozen=True)
class Source:
    """The parts of a `nwm:` name."""

    weights: Path
    autoencoder: str  # a path, or "hub:OWNER/NAME"
    dataset: str
    sampler: str


def parse(name: str) -> Source:
    """Parse "nwm:PATH,vae=PATH,dataset=NAME,sampler=NAME"."""
    path, *rest = name.removeprefix(PREFIX).split(",")
    given = dict(part.partition("=")[::2] for part in rest)
    unknown = sorted(set(given) - {"vae", "dataset", "sampler"})
    if unknown:
        raise ValueError(f"checkpoint 'nwm:PATH' may be followed by ,vae=PATH ,dataset=NAME ,sampler=NAME, got {unknown[0]!r} in {name!r}")
    sampler = given.get("sampler", "ddpm")
    if sampler not in ANCESTRAL:
        raise ValueError(f"sampler of published NWM weights must be one of {sorted(ANCESTRAL)}, got {sampler!r}")
    dataset = given.get("dataset", "recon")
    if dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {sorted(DATASETS)}, got {dataset!r}")
    weights = Path(path).expanduser()
    if not weights.is_file():
        raise ValueError(f"{weights}: no such file; checkpoint 'nwm:PATH' needs published weights such as 0100000.pth.tar")
    return Source(weights, given.get("vae", str(weights.parent / AUTOENCODER)), dataset, sampler)


def read_published(path: Path) -> dict[str, Tensor]:
    """The moving average in a published file, with wrappers' prefixes removed from the names. Only tensors are unpickled."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the file also holds the training's options
            # mmap reads only what is used: the file also holds the raw weights and the optimiser's state, twice their size
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))  # older files are not zip files
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: not a file of weights that can be unpickled safely: {' '.join(str(error).split())[:300]}") from error
    state: Any = held.get("ema", held) if isinstance(held, dict) else held
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: holds no state dict under 'ema'")
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): tensor for name, tensor in state.items()}


def load_published(name: str) -> tuple[WorldModel, NWMConfig, str]:
    """The model of a `nwm:` name (float32, on the CPU), the config that its weights imply, and the SHA-256 of their file."""
    source = parse(name)
    autoencoder = _autoencoder_folder(source)
    with open(source.weights, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    state = read_published(source.weights)
    net = config_of(state)
    sampler = SamplerConfig(source.sampler, NWMConfig().sampler.denoise_steps)
    config = NWMConfig(net=net, sampler=sampler, displacement=DATASETS[source.dataset].displacement)
    coder = load_kl_autoencoder(autoencoder, frame_size=FACTOR * net.latent_side)
    if coder.latent_shape != net.latent_shape:
        raise ValueError(f"{autoencoder} makes latents of {coder.latent_shape}, the network takes {net.latent_shape}")
    model = build(config, coder)
    try:
        model.net.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{source.weights} does not hold {net}: {' '.join(str(error).split())[:300]}") from error
    return model.eval().requires_grad_(False), config, digest


def _autoencoder_folder(source: Source) -> Path:
    """The folder of the autoencoder. Only a hub name uses the network."""
    name = source.autoencoder
    folder = fetch(name, ["config.json", "*.safetensors"]) if name.startswith(HUB) else Path(name).expanduser()
    if not folder.exists():
        get = "download stabilityai/sd-vae-ft-ema there, or use 'nwm:PATH,vae=PATH' or 'nwm:PATH,vae=hub:stabilityai/sd-vae-ft-ema'"
        raise ValueError(f"{source.weights} needs Stable Diffusion's autoencoder, which is not at {folder}: {get}")
    return folder


SYSTEM = System(
    name="nwm",
    config=NWMConfig,
    build=None,  # only its loader makes models
    memories={"none": MemoryChoice(_memories, title="NWM (published)")},
    default_memory="none",
    loader=Loader(PREFIX, "'nwm:PATH' (published NWM weights)", lambda name: parse(name).weights.stat().st_mtime_ns, load_published),
)
