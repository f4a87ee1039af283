"""Echo-Memory (King et al. 2026, "A controlled study of memory in action world models"): families of memory on one video network.

    newest frame ----------------------------------+--> context --> VideoDiT + the family's delta --> chunk
    the family's memory: frames, means, state, ... -+

The video network is frozen. Each family has a delta of its own, `echo-FAMILY-SETTING`, trained by `wmgym train echo` with one recipe. All
of them read the newest frame (the anchor); a family adds what it remembers beyond it.

context-K       the anchor and K - 1 frames that together show most of the target view; context-1, the anchor alone, is the reference
weight          the newest frames, fading with distance
length-R        their means over R frames; `packing="multiscale"` adds copies at 2 R and 4 R
hybrid-R        means that fade
spatial         the mean of all latents, read as one more frame; spatial-none, -concat and -cross read it otherwise (`nets/summary.py`)
block_wise      a recurrent state per spatial token
ssm_hybrid      a causal convolution along time
geometry        frames of depth, fused into points and drawn into the target view
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from wmgym.core import Memory
from wmgym.memory.bank import bytes_per_frame, check_budget
from wmgym.memory.compressed import CompressedMemory
from wmgym.memory.packing import Layout
from wmgym.memory.recurrent import StateMemory
from wmgym.memory.retrieval import RetrievalConfig
from wmgym.memory.routed import RoutedMemory
from wmgym.memory.summary import SummaryMemory
from wmgym.memory.trajectory import TrajectoryMemory
from wmgym.nets.echo import EchoDiT
from wmgym.nets.video_dit import VideoDiTConfig
from wmgym.rng import make_keys
from wmgym.systems.latent import build_model
from wmgym.systems.system import MemoryChoice, MemoryHost, System
from wmgym.systems.video import VideoConfig, coverage_of, taken_over
from wmgym.world_model import WorldModel

ANCHOR = "context-1"
SOURCES = 8  # frames besides the anchor whose points geometry draws
PACKINGS = ("mean", "multiscale")
LARGEST_RATIO = 8


@dataclass(frozen=True)
class Family:
    """One family: the read-out of its delta, and what it remembers besides the anchor."""

    readout: str = "context"  # of `nets.echo.READOUTS`
    retrieved: int = 0  # frames chosen by the view
    ratio: int = 0  # frames per mean of the newest ones; 0: these are not read
    decay: float = 1.0  # of the gain, per frame of distance


FAMILIES = {
    ANCHOR: Family(),
    "context-5": Family(retrieved=4),
    "context-20": Family(retrieved=19),
    "weight": Family(ratio=1, decay=0.9),
    **{f"length-{r}": Family(ratio=r) for r in (2, 4, 8)},
    **{f"hybrid-{r}": Family(ratio=r, decay=0.95) for r in (2, 4)},
    "spatial": Family("summary-frame"),
    "spatial-none": Family("summary-none"),
    "spatial-concat": Family("summary-condition"),
    "spatial-cross": Family("summary-cross"),
    "block_wise": Family("block_wise"),
    "ssm_hybrid": Family("convolution"),
    "geometry": Family("geometry", retrieved=SOURCES),
}


@dataclass(frozen=True)
class EchoConfig(VideoConfig):
    system: str = "echo"
    memory: str = "block_wise"
    family: str = "block_wise"  # whose delta the network has; "": none

    def __post_init__(self) -> None:
        if self.family not in ("", *FAMILIES):
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {self.family!r}")
        super().__post_init__()


@dataclass(frozen=True)
class EchoOptions:
    """Keywords of `Echo-*` envs."""

    packing: str = "mean"  # of weight, length-R and hybrid-R: "mean", or "multiscale" with copies at 2 and 4 times the ratio
    routing: int = 0  # past frames that each query reads, those most similar to it (mixture of contexts); 0: all

    def __post_init__(self) -> None:
        if self.packing not in PACKINGS:
            raise ValueError(f"packing must be one of {', '.join(PACKINGS)}, got {self.packing!r}")
        if type(self.routing) is not int or self.routing < 0:
            raise ValueError(f"routing must be a whole number of frames, 0 or more, got {self.routing!r}")


def compressed_frames(net: VideoDiTConfig) -> int:
    """Frames behind the anchor that are compressed: within the window of the backbone's training, in whole means of the largest ratio."""
    return LARGEST_RATIO * max(1, ((net.window - 1) * net.chunk - 1) // LARGEST_RATIO)


def _memories(name: str, host: MemoryHost) -> tuple[Memory[Any], ...]:
    family, net, network = FAMILIES[name], host.config.net, host.network
    assert isinstance(network, EchoDiT)
    if family.readout != (network.readout or "context"):
        has = f"that of {host.config.family!r}" if host.config.family else "none"
        raise ValueError(f"memory {name!r} needs its own delta, and these weights have {has}")
    _check_options(name, host.options)
    if family.ratio:
        packed = host.options.packing == "multiscale"
        behind = compressed_frames(net)
        compressed = CompressedMemory(net.latent_shape, behind, family.ratio, family.decay, packed, net.action_size)
        return (_routed(compressed, host.options),)
    frames = frames_memory(family, host.config)
    check_budget(frames.budget, 1, frames.blank(host.device))
    if family.readout.startswith("summary"):
        return frames, SummaryMemory(net.latent_shape)
    if network.state_shapes:
        return (StateMemory(frames, network.state_shapes),)
    return (_routed(frames, host.options),)


def _check_options(name: str, options: EchoOptions) -> None:
    """ValueError for a keyword that would have no effect."""
    family = FAMILIES[name]
    if options.packing != "mean" and not family.ratio:
        raise ValueError(f"packing belongs to weight, length-R and hybrid-R, got packing={options.packing!r} with memory {name!r}")
    if options.routing and not (family.ratio or family.retrieved):
        raise ValueError(f"routing belongs to memories of several frames, got routing={options.routing} with memory {name!r}")


def _routed(memory: Memory[Any], options: EchoOptions) -> Memory[Any]:
    return RoutedMemory(memory, options.routing) if options.routing else memory


def frames_memory(family: Family, config: EchoConfig) -> TrajectoryMemory:
    """The anchor and the frames that a family retrieves: those of the last chunk are not retrieved."""
    net = config.net
    layout = Layout(((1, 0),), (family.retrieved, 0))
    retrieval = RetrievalConfig(method="coverage", exclusion=net.chunk)
    budget = config.memory_budget if family.retrieved else 1
    return TrajectoryMemory(layout, retrieval, net.latent_shape, budget, net.action_size, coverage=coverage_of(net))


def build(config: EchoConfig) -> WorldModel:
    """The model with new weights."""
    readout = FAMILIES[config.family].readout if config.family else ""
    return build_model(config, partial(EchoDiT, readout=readout), SYSTEM)


def on_video(config: VideoConfig, deltas: tuple[str, ...]) -> EchoConfig:
    """The config for the weights of a video network, with the delta of one family or with none."""
    family = deltas[0] if deltas else ""
    return EchoConfig(**taken_over(config), memory=family or ANCHOR, family=family)


def context_cost(world: WorldModel) -> dict[str, Any]:
    """What a family writes and reads.

    tokens_read: keys of an attention per chunk, besides the chunk's own. A recurrent state is no key: each token reads the state of its
    place. frames_kept and bytes are those of a full memory; bytes_per_frame is what an episode adds with each frame, 0 where nothing grows.
    """
    net, readout, cost = world.net.config, world.net.readout, {"tokens_read": 0, "frames_kept": 0, "bytes_per_frame": 0, "bytes": 0}
    for memory in world.settings.memories:
        memory = memory.memory if isinstance(memory, RoutedMemory) else memory
        if isinstance(memory, StateMemory):
            cost["bytes"] += int(memory.footprint(memory.init(1, make_keys([0], world.device))).bytes)  # of the state alone
            memory = memory.frames
        if isinstance(memory, TrajectoryMemory):
            each, shown = bytes_per_frame(memory.blank()), 1 + net.chunk if readout == "geometry" else memory.layout.num_frames
            cost["frames_kept"], cost["bytes_per_frame"] = memory.budget, each if memory.budget > 1 else 0
            cost["bytes"] += memory.budget * each
            cost["tokens_read"] += net.tokens * shown
        elif isinstance(memory, CompressedMemory):
            cost["frames_kept"] = 1 + memory.frames
            cost["bytes"] += cost["frames_kept"] * bytes_per_frame(memory.blank())
            cost["tokens_read"] += net.tokens * memory.num_read
        else:
            cost["bytes"] += int(memory.footprint(memory.init(1, make_keys([0], world.device))).bytes)
            cost["tokens_read"] += net.tokens if readout in ("summary-frame", "summary-cross") else 0
    if world.settings.options is not None and world.settings.options.routing:
        cost["tokens_read"] = min(cost["tokens_read"], net.tokens * world.settings.options.routing)
    return cost


SYSTEM = System(
    name="echo",
    config=EchoConfig,
    build=build,
    memories={name: MemoryChoice(partial(_memories, name), deltas=(name,)) for name in FAMILIES},
    default_memory="block_wise",
    reference=ANCHOR,
    options=EchoOptions,
    comparisons=(
        ("block_wise", ANCHOR),
        ("geometry", ANCHOR),
        ("context-5", ANCHOR),
        ("context-20", "context-5"),
        ("block_wise", "context-20"),
        ("block_wise", "ssm_hybrid"),
        ("spatial-cross", "spatial"),
    ),
    context_cost=context_cost,
    train="wmgym.train.echo:TrainArgs:train",
    train_delta="wmgym train echo --family {delta} --base BASE --data DATA --out OUT",
    base="video",
    on_base=on_video,
    base_name=lambda name: f"net.backbone.{name.removeprefix('net.')}" if name.startswith("net.") else name,
)
