"""WorldPack (Oshima et al. 2025): CDiT + trajectory packing + pose-scored memory retrieval.

    frames --autoencoder--> latents --> bank --+-- newest 1, 2, 8 frames at levels 0, 1, 2 ---+
                                               +-- 8 frames retrieved by pose at level 2 -----+--> CDiT --> next latent
    action, egomotion, noise level ------------------------------------------------------ adaLN-Zero --^

The ablation of section 6.3 uses the same weights with other memories: "none" (four recent frames, as in NWM), "packing", "retrieval"
(one recent and three retrieved frames), "worldpack".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from wmgym import settings
from wmgym.kinematics import Displacement
from wmgym.memory.bank import check_budget
from wmgym.memory.coverage import CoverageConfig
from wmgym.memory.packing import Layout
from wmgym.memory.retrieval import METHODS, RetrievalConfig
from wmgym.memory.trajectory import TrajectoryMemory
from wmgym.nets.autoencoder import AutoencoderConfig
from wmgym.nets.cdit import SIZES, CDiT, CDiTConfig
from wmgym.systems.latent import LatentConfig, build_model, pose_source, sizes
from wmgym.systems.system import MemoryChoice, MemoryHost, System
from wmgym.world_model import WorldModel

# The ablation of section 6.3: NWM's four recent frames, packing alone, retrieval alone, and both.
LAYOUTS = {
    "none": Layout(((4, 0),)),
    "packing": Layout(((1, 0), (2, 1), (16, 2))),
    "retrieval": Layout(((1, 0),), (3, 0)),
    "worldpack": Layout(((1, 0), (2, 1), (8, 2)), (8, 2)),
}


def layout(memory: str) -> Layout:
    """The layout of a memory. An unknown name raises `ValueError`."""
    if memory not in LAYOUTS:
        raise ValueError(f"memory must be one of {sorted(LAYOUTS)}, got {memory!r}")
    return LAYOUTS[memory]


@dataclass(frozen=True)
class WorldPackOptions:
    """Keywords of `WorldPack-*` envs. None: as the checkpoint's config says."""

    retrieval: str | None = None  # how frames are chosen: "score" or "coverage" (`memory/retrieval.py`)
    suppression: int | None = None  # steps, for "score": a chosen frame excludes its neighbours

    def __post_init__(self) -> None:
        if self.retrieval is not None and self.retrieval not in METHODS:
            raise ValueError(f"retrieval must be one of {', '.join(METHODS)}, got {self.retrieval!r}")
        if self.suppression is not None and (type(self.suppression) is not int or self.suppression < 0):
            raise ValueError(f"suppression must be a whole number of steps, 0 or more, got {self.suppression!r}")

    def applied_to(self, config: RetrievalConfig) -> RetrievalConfig:
        """The config with these values. ValueError for a suppression that would have no effect."""
        method = config.method if self.retrieval is None else self.retrieval
        if self.suppression is None:
            return replace(config, method=method)
        if method != "score":
            raise ValueError(f"suppression belongs to retrieval='score', got suppression={self.suppression} with retrieval={method!r}")
        return replace(config, method=method, suppression=self.suppression)


@dataclass(frozen=True)
class WorldPackConfig(LatentConfig):
    system: str = "worldpack"
    memory: str = "worldpack"  # a layout's name
    net: CDiTConfig = field(default_factory=CDiTConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)

    def __post_init__(self) -> None:
        layout(self.memory)
        super().__post_init__()


def preset(
    size: str = "TINY",
    setting: str = "minecraft",
    autoencoder: AutoencoderConfig | None = None,
    displacement: Displacement | None = None,
) -> WorldPackConfig:
    """A config with a network size from `nets.cdit.SIZES`."""
    if size not in SIZES:
        raise ValueError(f"size must be one of {sorted(SIZES)}, got {size!r}")
    autoencoder = autoencoder or AutoencoderConfig()
    displacement = displacement or Displacement()
    moves = settings.kinematics(setting, displacement)
    net = CDiTConfig(**{**sizes(autoencoder, moves), **SIZES[size]})
    ahead, aside = settings.get(setting).reach
    return WorldPackConfig(
        setting=setting,
        pose_source=pose_source(moves),
        autoencoder=autoencoder,
        net=net,
        retrieval=RetrievalConfig(sigma_s=ahead, sigma_l=aside),
        displacement=displacement,
    )


def memory_of(config: WorldPackConfig, mode: str, options: WorldPackOptions | None = None) -> TrajectoryMemory:
    """The memory of a mode (`LAYOUTS`)."""
    net, retrieval = config.net, (options or WorldPackOptions()).applied_to(config.retrieval)
    coverage = CoverageConfig(net.field_of_view, net.aspect)
    return TrajectoryMemory(layout(mode), retrieval, net.latent_shape, config.memory_budget, net.action_size, coverage=coverage)


def _memories(mode: str, host: MemoryHost) -> tuple[TrajectoryMemory, ...]:
    memory = memory_of(host.config, mode, host.options)
    check_budget(memory.budget, 1, memory.blank(host.device))
    return (memory,)


def build(config: WorldPackConfig) -> WorldModel:
    """The model with new weights."""
    return build_model(config, CDiT, SYSTEM)


PAPER_LATENTS = (28, 2)  # latent side and patch of the paper


def context_cost(world: WorldModel) -> dict[str, Any]:
    """Frames in the context, and their tokens in units of a full frame: here, at the paper's size, and as the paper prints it."""
    (memory,) = world.settings.memories
    shown: Layout = memory.layout  # type: ignore[attr-defined]  # a TrajectoryMemory
    config: CDiTConfig = world.net.config
    return {
        "frames": shown.num_frames,
        "effective_frames": round(shown.effective_frames(config.latent_shape[1], config.patch), 2),
        "at_28x28_patch_2": round(shown.effective_frames(*PAPER_LATENTS), 2),
        "in_the_paper": {"none": 4.0, "worldpack": 2.84}.get(world.provenance.memory),
    }


SYSTEM = System(
    name="worldpack",
    config=WorldPackConfig,
    build=build,
    memories={mode: MemoryChoice(partial(_memories, mode)) for mode in LAYOUTS},
    default_memory="worldpack",
    options=WorldPackOptions,
    comparisons=(("worldpack", "none"), ("worldpack", "retrieval"), ("worldpack", "packing"), ("retrieval", "packing")),
    context_cost=context_cost,
    preset=preset,
    train="wmgym.train.worldpack:TrainArgs:train",
    synthetic="wmgym.train.worldpack:synthetic",
    denoising="wmgym.train.worldpack:denoising",
    renamed={"world": "setting"},
)
