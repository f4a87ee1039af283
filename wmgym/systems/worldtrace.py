"""WorldTrace (Wu et al. 2026, "Addressable memory for video world models"): training-free memory of keys and values.

    recent window (verbatim) + N_s slots, read at positions by rank, which stay in the trained range for episodes of any length

The weights are the video network's, for every memory. N_s slots, the recent window and the present chunk are L_train chunks together, so
every memory with constant state reads the same number of keys.

none         only the recent window: L_train - 1 chunks
field        means of unrotated keys and values of the chunks that left the window
naive_mean   means of rotated keys, in which phases cancel (the control)
landmark     the first chunk of each new scene, verbatim
sink         the first chunk, and recent ones
pose         not in the paper: the newest 2 chunks, and those that together show most of the target view
latents      not in the paper: the same chunks as `pose`, stored as latents, their keys computed anew in each step
full         not in the paper: all chunks up to the budget, at true positions
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from wmgym.memory.bank import check_budget
from wmgym.memory.chunk_archive import ChunkArchive
from wmgym.memory.latent_chunks import LatentChunks
from wmgym.memory.slots import POSITIONS, SlotMemory, Writer
from wmgym.memory.writers import LandmarkWriter, MeanWriter
from wmgym.nets.video_dit import VideoDiTConfig
from wmgym.systems import video
from wmgym.systems.system import MemoryChoice, MemoryHost, System
from wmgym.systems.video import VideoConfig, chunk_sizes, coverage_of, taken_over
from wmgym.world_model import WorldModel

NEWEST = 2  # recent chunks that memories `pose` and `latents` always read


@dataclass(frozen=True)
class WorldTraceConfig(VideoConfig):
    system: str = "worldtrace"
    memory: str = "landmark"


@dataclass(frozen=True)
class WorldTraceOptions:
    """Keywords of `WorldTrace-*` envs."""

    memory_positions: str = "slot_rank"  # slot_rank, block_rel, centroid, absolute (`memory/slots.py`)
    memory_slots: int = 4  # N_s; the recent window has the other of the L_train - 1 past chunks
    landmark_threshold: float = 0.15  # a chunk is a new scene above this cosine distance of pooled keys
    landmark_compare: str = "all"  # a chunk is compared with "all" landmarks, or with the "last" one
    landmark_overflow: str = "keep"  # if all slots are full: "keep" them, or "replace" the oldest

    def __post_init__(self) -> None:
        if self.memory_positions not in POSITIONS:
            raise ValueError(f"memory_positions must be one of {list(POSITIONS)}, got {self.memory_positions!r}")
        self.landmarks()

    def landmarks(self) -> LandmarkWriter:
        return LandmarkWriter(self.memory_slots, self.landmark_threshold, self.landmark_compare, self.landmark_overflow)


def _slots(kind: str, host: MemoryHost) -> tuple[SlotMemory, ...]:
    net: VideoDiTConfig = host.config.net
    options: WorldTraceOptions = host.options
    count = 1 if kind == "sink" else options.memory_slots
    recent = net.window - 1 - count
    if recent < 1:
        most = f"memory_slots must be at most {net.window - 2}, so that one of L_train = {net.window} chunks is recent"
        raise ValueError(f"{most}, got {count}")
    writers: dict[str, Writer] = {}
    if kind in ("field", "naive_mean"):
        writers[kind] = MeanWriter(count, net.chunk, kind == "naive_mean", net.phases)
    elif kind == "sink":
        writers[kind] = LandmarkWriter(1)
    else:
        writers[kind] = options.landmarks()
    return (SlotMemory(**chunk_sizes(host), recent=recent, writer=writers[kind], positions=options.memory_positions),)


def _archive(kind: str, host: MemoryHost) -> tuple[ChunkArchive, ...]:
    net: VideoDiTConfig = host.config.net
    chosen = net.window - 1 - NEWEST if kind == "pose" else 0
    archive = ChunkArchive(**chunk_sizes(host), budget=host.config.memory_budget, recent=NEWEST, chosen=chosen, coverage=coverage_of(net))
    check_budget(archive.budget // archive.chunk, 1, archive.blank(host.device))
    return (archive,)


def _latents(host: MemoryHost) -> tuple[LatentChunks, ...]:
    net: VideoDiTConfig = host.config.net
    sizes = (net.latent_shape, net.chunk, host.config.memory_budget, NEWEST, net.window - 1 - NEWEST, net.action_size)
    return (LatentChunks(*sizes, chunk_sizes(host)["dtype"], coverage_of(net)),)


def build(config: WorldTraceConfig) -> WorldModel:
    """The model with new weights."""
    return video.build(config, SYSTEM)


def on_video(config: VideoConfig, deltas: tuple[str, ...]) -> WorldTraceConfig:
    """The config for the weights of a video network."""
    return WorldTraceConfig(**taken_over(config))


SYSTEM = System(
    name="worldtrace",
    config=WorldTraceConfig,
    build=build,
    memories={
        "none": MemoryChoice(video.recent_window),
        **{kind: MemoryChoice(partial(_slots, kind)) for kind in ("field", "naive_mean", "landmark", "sink")},
        **{kind: MemoryChoice(partial(_archive, kind)) for kind in ("pose", "full")},
        "latents": MemoryChoice(_latents),
    },
    default_memory="landmark",
    options=WorldTraceOptions,
    comparisons=(
        ("landmark", "none"),
        ("field", "none"),
        ("pose", "none"),
        ("pose", "landmark"),
        ("latents", "pose"),
        ("field", "naive_mean"),
    ),
    base="video",
    on_base=on_video,
)
