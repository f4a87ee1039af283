"""WorldTrace (Wu et al. 2026, "Addressable memory for video world models"): training-free memory of keys and values.

    recent window (verbatim) + N_s slots, read at positions by rank: every summary stays inside the trained range, at any length

The weights are the video network's; a memory is a choice. N_s + recent + the present chunk are L_train chunks, so that every memory with
constant state reads the same number of keys.

none         the recent window alone: L_train - 1 chunks
field        canonical averages of what left the window
naive_mean   averages of rotated keys: phases cancel (the control)
landmark     scene entries, verbatim and frozen
sink         the first chunk is kept, the others are recent
pose         beyond the paper: the newest 2 chunks, and those that together show most of the target view
full         beyond the paper: everything up to the budget, at true positions
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial

from wmgym.memory.bank import check_budget
from wmgym.memory.chunk_archive import ChunkArchive
from wmgym.memory.coverage import CoverageConfig
from wmgym.memory.slots import POSITIONS, SlotMemory, Writer
from wmgym.memory.writers import LandmarkWriter, MeanWriter
from wmgym.nets.video_dit import VideoDiTConfig
from wmgym.systems import video
from wmgym.systems.system import MemoryChoice, MemoryHost, System
from wmgym.systems.video import VideoConfig, chunk_sizes
from wmgym.world_model import WorldModel

NEWEST = 2  # chunks that memory `pose` always reads


@dataclass(frozen=True)
class WorldTraceConfig(VideoConfig):
    system: str = "worldtrace"
    memory: str = "landmark"


@dataclass(frozen=True)
class WorldTraceOptions:
    """Keywords of `WorldTrace-*` envs."""

    memory_positions: str = "slot_rank"  # slot_rank, block_rel, centroid, absolute
    memory_slots: int = 4  # N_s; the recent window has the rest of L_train - 1 chunks
    landmark_threshold: float = 0.15  # cosine distance of pooled keys beyond which a chunk is a new scene
    landmark_compare: str = "all"  # with all landmarks, or the "last" one
    landmark_overflow: str = "keep"  # with all slots taken: "keep" them, or "replace" the oldest

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
    coverage = CoverageConfig(net.field_of_view, net.aspect)
    archive = ChunkArchive(**chunk_sizes(host), budget=host.config.memory_budget, recent=NEWEST, chosen=chosen, coverage=coverage)
    check_budget(archive.budget // archive.chunk, 1, archive.blank(host.device))
    return (archive,)


def build(config: WorldTraceConfig) -> WorldModel:
    """The model with fresh weights."""
    return video.build(config, SYSTEM)


def on_video(config: VideoConfig, deltas: tuple[str, ...]) -> WorldTraceConfig:
    """The config that runs a video network's weights."""
    return WorldTraceConfig(**{f.name: getattr(config, f.name) for f in fields(VideoConfig) if f.name not in ("system", "memory")})


SYSTEM = System(
    name="worldtrace",
    config=WorldTraceConfig,
    build=build,
    memories={
        "none": MemoryChoice(video.recent_window),
        **{kind: MemoryChoice(partial(_slots, kind)) for kind in ("field", "naive_mean", "landmark", "sink")},
        **{kind: MemoryChoice(partial(_archive, kind)) for kind in ("pose", "full")},
    },
    default_memory="landmark",
    options=WorldTraceOptions,
    comparisons=(("landmark", "none"), ("field", "none"), ("pose", "none"), ("pose", "landmark"), ("field", "naive_mean")),
    base="video",
    on_base=on_video,
)
