"""The episode format: one safetensors file per episode, without pickle.

Alignment, everywhere in the project: frame t is the observation *after* action t. Frame 0 is the observation of `reset`; its action is
the no-op (zeros) and its reward 0. Frames are uncompressed uint8. Metadata (environment, seed, walker, segments, versions) is JSON in the
file's header and can be read without the arrays. Depth images (depth.py) are optional and are read only on request.

Needs neither torch nor a decoder: NumPy and safetensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from wmgym.data.depth import DepthCamera
from wmgym.files import write_atomically
from wmgym.version import __version__

SCHEMA = 1
HEADER_KEY = "wmgym_episode"
SUFFIX = ".safetensors"
ARRAYS = ("frames", "actions", "poses", "rewards", "terminated", "truncated")
DEPTH = "depth"  # the array that not every episode has
CHECKSUMS = "checksums"  # uint8 [1 + n, 32]: SHA-256 of the metadata and of the n arrays, by name. Files of version 0.1 have none.
RECORDED = "recon:"  # an `env_id` of recorded drives begins so; their seed says nothing
RETURN = "return"  # name of the segment in which a walker returns to its start


@dataclass(frozen=True)
class Segment:
    """A part of an episode with one purpose. It ends where the next segment begins.

    `first` is the frame after the segment's first action. The frame of `reset` belongs to the first segment.
    """

    name: str
    first: int
    goal: tuple[float, float, float] | None = None  # x, y, z of the feet

    def __post_init__(self) -> None:
        if self.first < 0:
            raise ValueError(f"segment {self.name!r} must begin at frame 0 or later, got {self.first}")


@dataclass(frozen=True)
class Metadata:
    """The origin of an episode, in JSON-able values."""

    env_id: str
    seed: int  # given to `reset`, which decides the world
    walker: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    start: tuple[float, ...] | None = None  # the pose given to `reset` as the option `start`
    segments: tuple[Segment, ...] = ()
    outcome: str = "done"  # or "aborted: <why>"
    depth: DepthCamera | None = None  # of the episode's depth images, if it has any
    action_space: dict[str, Any] = field(default_factory=dict)
    observation_space: dict[str, Any] = field(default_factory=dict)
    wmgym_version: str = __version__
    gymnasium_version: str = gym.__version__
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"episode schema {self.schema} is unknown, this version reads schema {SCHEMA}")
        firsts = [segment.first for segment in self.segments]
        if firsts != sorted(firsts):
            raise ValueError(f"segments must be in temporal order, got first frames {firsts}")

    @property
    def world(self) -> tuple[str, int] | None:
        """What decides the episode's world: its environment and seed; None for recordings of a world that is not known."""
        return None if self.seed < 0 or self.env_id.startswith(RECORDED) else (self.env_id, self.seed)

    def to_json(self) -> str:
        values = asdict(self)
        if self.depth is None:
            del values["depth"]  # so that older versions read the file
        return json.dumps(values, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Metadata:
        values = json.loads(text)
        segments = tuple(Segment(s["name"], s["first"], _floats(s["goal"])) for s in values.pop("segments"))
        camera = values.pop("depth", None)
        depth = None if camera is None else DepthCamera(**{**camera, "eye": _floats(camera["eye"])})
        return Metadata(**{**values, "start": _floats(values["start"])}, segments=segments, depth=depth)


@dataclass(frozen=True)
class Episode:
    """The arrays of an episode of T frames, and its metadata. Arrays of a wrong shape or dtype raise `ValueError`."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    actions: np.ndarray  # [T] int64, or [T, A] float32
    poses: np.ndarray  # float32 [T, 5]: x, y, z, yaw, pitch
    rewards: np.ndarray  # float32 [T]
    terminated: np.ndarray  # bool [T]
    truncated: np.ndarray  # bool [T]
    meta: Metadata
    depth: np.ndarray | None = None  # float32 [T, H, W], metres along the optical axis (depth.py); None: not recorded, or not read

    def __post_init__(self) -> None:
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[-1] != 3:
            raise ValueError(f"frames must be uint8 [T, H, W, 3], got {self.frames.dtype} {list(self.frames.shape)}")
        if len(self) < 1:
            raise ValueError("an episode must have at least the frame of reset, got 0 frames")
        for name, dtype, shape in (
            ("poses", np.float32, (len(self), 5)),
            ("rewards", np.float32, (len(self),)),
            ("terminated", np.bool_, (len(self),)),
            ("truncated", np.bool_, (len(self),)),
        ):
            value = getattr(self, name)
            if value.dtype != dtype or value.shape != shape:
                raise ValueError(f"{name} must be {np.dtype(dtype)} {list(shape)}, got {value.dtype} {list(value.shape)}")
        if self.actions.ndim not in (1, 2) or len(self.actions) != len(self):
            raise ValueError(f"actions must be [{len(self)}] or [{len(self)}, A], got {list(self.actions.shape)}")
        for name in ("poses", "rewards", "actions"):
            value = getattr(self, name)
            if not np.isfinite(value).all():
                raise ValueError(f"{name} must be finite, got {value[~np.isfinite(value)].flat[0]} among them")
        if self.depth is not None:
            self._check_depth(self.depth)
        for segment in self.meta.segments:
            if segment.first >= len(self):
                raise ValueError(f"segment {segment.name!r} begins at frame {segment.first}, after the last of {len(self)}")

    def _check_depth(self, depth: np.ndarray) -> None:
        if depth.dtype != np.float32 or depth.shape != self.frames.shape[:3]:
            raise ValueError(f"depth must be float32 {list(self.frames.shape[:3])}, got {depth.dtype} {list(depth.shape)}")
        if not (depth > 0).all():  # false for NaN too
            raise ValueError(f"depth must be positive, got {depth[~(depth > 0)].flat[0]} among it")
        if self.meta.depth is None:
            raise ValueError("an episode with depth images needs their camera in its metadata, got depth=None there")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def steps(self) -> int:
        """Actions taken: one fewer than frames."""
        return len(self) - 1

    @property
    def return_first(self) -> int | None:
        """First frame of the way back; the frames before it are exploration. None if there is no way back."""
        return return_first(self.meta)


@dataclass(frozen=True)
class Header:
    """The parts of an episode that can be read without its frames."""

    meta: Metadata
    length: int  # frames
    frame_shape: tuple[int, int, int]  # H, W, 3

    @property
    def steps(self) -> int:
        return self.length - 1


def return_first(meta: Metadata) -> int | None:
    """First frame of the segment that returns to the start; None if there is none."""
    return next((segment.first for segment in meta.segments if segment.name == RETURN), None)


def save_episode(path: Path | str, episode: Episode) -> None:
    """Write an episode. The file is written completely or not at all."""
    path = Path(path)
    names: tuple[str, ...] = (*ARRAYS, DEPTH)
    meta = episode.meta
    if episode.depth is None:  # never recorded, or left out when the episode was read
        names, meta = ARRAYS, replace(meta, depth=None)
    arrays = {name: np.ascontiguousarray(getattr(episode, name)) for name in names}
    text = meta.to_json()
    digests = [_digest(text.encode()), *(_array_digest(arrays[name]) for name in sorted(names))]
    checksums = {CHECKSUMS: np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)}
    write_atomically(path, save({**arrays, **checksums}, metadata={HEADER_KEY: text}))


def read_header(path: Path | str) -> Header:
    """Metadata and length of an episode file. ValueError if it is not one."""
    path = Path(path)
    with _open(path) as file:
        return _header(path, file)


def load_episode(path: Path | str, first: int = 0, last: int | None = None, *, depth: bool = False) -> Episode:
    """The episode in a file, or its frames `first` (included) to `last` (excluded); only those are read from the disk.

    The segments of a part are counted from its own first frame. depth: also read its depth images; ValueError if it has none. A damaged
    file raises ValueError: the arrays' checksums are verified where the whole episode is read.
    """
    path = Path(path)
    with _open(path) as file:
        header = _header(path, file)
        last = header.length if last is None else last
        if not 0 <= first < last <= header.length:
            raise ValueError(f"{path} has {header.length} frames, cannot read {first} to {last}")
        if depth and header.meta.depth is None:
            raise ValueError(f"{path} has no depth images; record them with `wmgym collect --depth`")
        arrays = {}
        for name in (*ARRAYS, DEPTH) if depth else ARRAYS:
            try:
                arrays[name] = file.get_slice(name)[first:last]
            except SafetensorError as error:
                raise ValueError(f"{path} is damaged, cannot read {name}: {error}") from error
        if (first, last) == (0, header.length):
            _check_arrays(path, file, header.meta, arrays)
    meta = replace(header.meta, segments=_cut(header.meta.segments, first, last))
    try:
        return Episode(meta=meta, **arrays)
    except ValueError as error:
        raise ValueError(f"{path} is not a valid episode: {error}") from error


def read_array(path: Path | str, name: str) -> np.ndarray:
    """One of an episode's arrays, without reading the others."""
    path = Path(path)
    with _open(path) as file:
        header = _header(path, file)
        try:
            array = file.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged, cannot read {name}: {error}") from error
        _check_arrays(path, file, header.meta, {name: array})
    return array


def list_episodes(folder: Path | str) -> list[Path]:
    """The episode files of a folder, in order; ValueError if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; make one with `wmgym collect Minecraft-v0 --steps 10000 --out {folder}`")
    paths = sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
    if not paths:
        raise ValueError(f"{folder} holds no episodes; collect some with `wmgym collect Minecraft-v0 --steps 10000 --out {folder}`")
    return paths


def episodes_below(folder: Path) -> list[Path]:
    """The episode files of a folder and of its direct subfolders, in order; ValueError if there are none."""
    folders = [f for f in (folder, *sorted(p for p in folder.glob("*") if p.is_dir())) if next(f.glob(f"*{SUFFIX}"), None)]
    return [path for f in folders or [folder] for path in list_episodes(f)]


def describe_space(space: gym.Space) -> dict[str, Any]:
    """A Gymnasium space as JSON-able values."""
    kind = type(space).__name__
    if isinstance(space, gym.spaces.Discrete):
        return {"type": kind, "n": int(space.n), "start": int(space.start)}
    if isinstance(space, gym.spaces.MultiDiscrete):
        return {"type": kind, "nvec": space.nvec.tolist()}
    if isinstance(space, gym.spaces.Box):
        bounds = {"low": _bound(space.low), "high": _bound(space.high)}
        return {"type": kind, "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, gym.spaces.Dict):
        return {"type": kind, "spaces": {key: describe_space(part) for key, part in space.spaces.items()}}
    return {"type": kind, "repr": repr(space)}


def _bound(values: np.ndarray) -> Any:
    """A bound as one number if all entries are equal, else as a list; infinities as text, since JSON has none."""
    flat = [float(v) if np.isfinite(v) else str(v) for v in values.reshape(-1)]
    return flat[0] if len(set(flat)) == 1 else flat


def _floats(values: list[float] | None) -> Any:
    return None if values is None else tuple(float(v) for v in values)


def _cut(segments: tuple[Segment, ...], first: int, last: int) -> tuple[Segment, ...]:
    ends = [segment.first for segment in segments[1:]] + [last]
    kept = [(s, end) for s, end in zip(segments, ends) if end > first and s.first < last]
    return tuple(replace(s, first=max(0, s.first - first)) for s, _ in kept)


def _open(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        return safe_open(str(path), framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file (cut short or another format?): {error}") from error


def _header(path: Path, file: Any) -> Header:
    text: str | None = (file.metadata() or {}).get(HEADER_KEY)
    if text is None:
        raise ValueError(f"{path} is a safetensors file, but not an episode: its header has no {HEADER_KEY!r}")
    if _checksums(path, file)[:1] not in ([], [_digest(text.encode())]):
        raise ValueError(f"{path} is damaged: its metadata does not match its checksum")
    try:
        meta = Metadata.from_json(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} has metadata that this version cannot read: {error}") from error
    missing = sorted({*ARRAYS, *((DEPTH,) if meta.depth is not None else ())} - set(file.keys()))
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    shape = file.get_slice("frames").get_shape()
    if len(shape) != 4:
        raise ValueError(f"{path} has frames of shape {shape}, expected [T, H, W, 3]")
    return Header(meta, shape[0], (shape[1], shape[2], shape[3]))


def _checksums(path: Path, file: Any) -> list[bytes]:
    """The checksums in a file; none in files of version 0.1."""
    if CHECKSUMS not in file.keys():  # noqa: SIM118  # not a dict
        return []
    stored = file.get_tensor(CHECKSUMS)
    if stored.dtype != np.uint8 or stored.ndim != 2 or not len(stored):
        raise ValueError(f"{path} is damaged: its checksums are not readable")
    return [row.tobytes() for row in stored]


def _check_arrays(path: Path, file: Any, meta: Metadata, arrays: Mapping[str, np.ndarray]) -> None:
    """ValueError unless whole arrays match their checksums."""
    names = sorted((*ARRAYS, DEPTH) if meta.depth is not None else ARRAYS)
    stored = dict(zip(names, _checksums(path, file)[1:]))
    wrong = [name for name, array in arrays.items() if stored and stored.get(name) != _array_digest(array)]
    if wrong:
        raise ValueError(f"{path} is damaged: {', '.join(wrong)} do not match their checksums; copy or collect it again")


def _array_digest(array: np.ndarray) -> bytes:
    return _digest(f"{array.dtype} {array.shape}".encode(), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _digest(*parts: Any) -> bytes:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.digest()
