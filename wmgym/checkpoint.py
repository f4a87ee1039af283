"""Checkpoints: a model and its config <-> safetensors, bit for bit. Names of worlds -> bundled file, path or hub name.

A checkpoint is one `NAME.safetensors`, or several `NAME-00001-of-00002.safetensors` where one would be larger than allowed. The
config is JSON in the header of each, so a file says by itself what it is. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wmgym.memory.packing import layout
from wmgym.systems import nwm, worldpack
from wmgym.world_model import WorldModel

FORMAT = "wmgym-1"
BUNDLED = Path(__file__).parent / "weights"
SYSTEMS = {"worldpack": (worldpack.WorldPackConfig, worldpack.build)}


# -- config <-> JSON ------------------------------------------------------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """A frozen dataclass as plain data."""
    return asdict(config)


def from_dict(kind: Any, data: dict[str, Any]) -> Any:
    """Plain data as a frozen dataclass of type `kind`; an unknown field raises `ValueError`, a missing one has its default."""
    hints = get_type_hints(kind)
    unknown = set(data) - set(hints)
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {sorted(unknown)[0]!r}")
    values = {}
    for f in fields(kind):
        if f.name not in data:
            continue  # written before the field existed: its default is what that version did
        value = data[f.name]
        if is_dataclass(hints[f.name]):
            value = from_dict(hints[f.name], value)
        values[f.name] = _tuples(value)
    return kind(**values)


def _tuples(value: Any) -> Any:
    """JSON's lists, which were tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# -- writing --------------------------------------------------------------------------------------------------------------------------


def save(
    path: Path | str,
    model: WorldModel,
    config: Any,
    *,
    dtype: torch.dtype | None = None,
    max_bytes: int | None = None,
    notes: dict[str, Any] | None = None,
) -> list[Path]:
    """Write a model to `path` (ends in .safetensors), in several files where one would exceed `max_bytes`. Returns the files."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a checkpoint's name ends in .safetensors, got {path.name!r}")
    kept = {k: dtype if dtype and v.is_floating_point() else v.dtype for k, v in model.state_dict().items()}
    tensors = {k: v.detach().to("cpu", kept[k]).contiguous() for k, v in model.state_dict().items()}
    header = {"format": FORMAT, "config": json.dumps(to_dict(config)), "notes": json.dumps(notes or {})}
    shards = _shards(tensors, max_bytes)
    count = len(shards)
    names = [path] if count == 1 else [path.with_name(f"{path.stem}-{i:05d}-of-{count:05d}.safetensors") for i in range(1, count + 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, shard in zip(names, shards, strict=True):
        write_atomically(name, shard, header)
    for old in {path, *_siblings(path)} - set(names):  # of a save in more or fewer files: now they would be read instead
        old.unlink(missing_ok=True)
    return names


def write_atomically(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """A safetensors file that is there whole or not at all; what stood there before survives a full disk or a kill."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata=header)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _shards(tensors: dict[str, Tensor], max_bytes: int | None) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    room = max_bytes or 2**62
    used = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() + 256  # and its place in the header
        if shards[-1] and used + size > room - 8192:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    return shards


# -- reading --------------------------------------------------------------------------------------------------------------------------


def load(path: Path | str) -> tuple[WorldModel, Any, dict[str, Any]]:
    """A model from its file or files -> (model on the CPU in float32, config, notes). Any defect is one `ValueError`."""
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    header: dict[str, str] = {}
    for part in _parts(path):
        found, told = read_file(part)
        if header and told != header:
            raise ValueError(f"{part}: belongs to another save than the other parts of {path.name}")
        tensors.update(found)
        header = told
    try:
        config_data = json.loads(header["config"])
        kind, build = SYSTEMS[config_data["system"]]
        config = from_dict(kind, config_data)
        notes = json.loads(header.get("notes", "{}"))
        model = build(config)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{path}: not a wmgym checkpoint that this version can read ({error!r})") from error
    _check_same(path, model.state_dict(), tensors)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False), config, notes


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of one of our files."""
    try:
        with safe_open(str(path), "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(f"{path}: format is {header.get('format')!r}, this version reads {FORMAT!r}")
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error


def _parts(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    parts = _siblings(path)
    if not parts:
        raise ValueError(f"{path}: no such checkpoint")
    count = int(parts[0].stem.rsplit("-", 1)[1])
    if len(parts) != count:
        raise ValueError(f"{path}: {count} parts belong together, found {len(parts)}")
    return parts


def _siblings(path: Path) -> list[Path]:
    """The files of a checkpoint that was written in several."""
    pattern = re.compile(re.escape(path.stem) + r"-\d{5}-of-\d{5}\.safetensors")
    return sorted(p for p in path.parent.glob("*.safetensors") if pattern.fullmatch(p.name))


def _check_same(path: Path, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    if missing := sorted(set(wanted) - set(found)):
        raise ValueError(f"{path}: lacks {len(missing)} tensors, {missing[0]!r} among them")
    if extra := sorted(set(found) - set(wanted)):
        raise ValueError(f"{path}: holds {len(extra)} tensors that the model has not, {extra[0]!r} among them")
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape:
            raise ValueError(f"{path}: {name} has shape {tuple(found[name].shape)}, the config asks for {tuple(tensor.shape)}")


# -- worlds by name -------------------------------------------------------------------------------------------------------------------


def bundled() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted({re.sub(r"-\d{5}-of-\d{5}$", "", p.stem) for p in BUNDLED.glob("*.safetensors")})


def resolve(checkpoint: str) -> Path:
    """A bundled name, a path or a hub name ("hub:OWNER/NAME") -> a path. Only a hub name may touch the network."""
    if checkpoint in bundled():
        return BUNDLED / f"{checkpoint}.safetensors"
    if checkpoint.startswith("hub:"):
        return _from_hub(checkpoint.removeprefix("hub:"))
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        path = path / "model.safetensors"
    if path.suffix == ".safetensors":
        _parts(path)
        return path
    names = ", ".join(bundled()) or "none here"
    allowed = f"a bundled name ({names}), a .safetensors file, its folder, or 'hub:OWNER/NAME'"
    raise ValueError(f"checkpoint must be {allowed}, got {checkpoint!r}")


def _from_hub(name: str) -> Path:
    return _fetched(name, ["*.safetensors"]) / "model.safetensors"


def _fetched(name: str, patterns: list[str]) -> Path:
    """The folder of a hub's repository."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError("checkpoints from a hub need huggingface_hub: pip install 'wmgym[hub]'") from error
    return Path(snapshot_download(name, allow_patterns=patterns))


def load_world(
    checkpoint: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    memory: str | None = None,
    memory_budget: int | None = None,
    denoise_steps: int | None = None,
    pose_source: str | None = None,
) -> WorldModel:
    """A world ready to run. Weights live once per (checkpoint, device, dtype) in a process; settings are light views of them."""
    device = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be 'auto' or one that this machine has, got {device!r}") from error
    dtype = dtype if dtype != "auto" else ("bfloat16" if device.startswith("cuda") else "float32")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype must be 'auto', 'float32', 'bfloat16' or 'float16', got {dtype!r}")
    if checkpoint.startswith(nwm.PREFIX):
        stamp = nwm.parse(checkpoint).weights.stat().st_mtime_ns
        model, config = _published(checkpoint, stamp, device, dtype)
        memory_of: Callable[..., Any] = nwm.memory_of
    else:
        path = resolve(checkpoint)
        stamp = max(part.stat().st_mtime_ns for part in _parts(path))
        model, config = _weights(str(path), stamp, device, dtype)
        memory_of = worldpack.memory_of
    config = replace(
        config,
        memory=memory if memory is not None else config.memory,
        memory_budget=memory_budget if memory_budget is not None else config.memory_budget,
        pose_source=pose_source if pose_source is not None else config.pose_source,
        sampler=replace(config.sampler, denoise_steps=denoise_steps if denoise_steps is not None else config.sampler.denoise_steps),
    )
    layout(config.memory)
    view = WorldModel(
        model.autoencoder,
        model.net,
        model.motion_head,
        model.kinematics,
        (memory_of(config, device=device),),
        config.sampler,
        reward_head=model.reward_head,
        pose_source=config.pose_source,
        through_pixels=model.through_pixels,
    )
    return view.eval()


@lru_cache(maxsize=8)
def _weights(path: str, stamp: int, device: str, dtype: str) -> tuple[WorldModel, Any]:
    model, config, _ = load(path)
    return model.to(device, getattr(torch, dtype)), config


@lru_cache(maxsize=2)
def _published(checkpoint: str, stamp: int, device: str, dtype: str) -> tuple[WorldModel, Any]:
    source = nwm.parse(checkpoint)
    name = source.autoencoder
    folder = _fetched(name.removeprefix("hub:"), ["config.json", "*.safetensors"]) if name.startswith("hub:") else Path(name).expanduser()
    if not folder.exists():
        get = "download stabilityai/sd-vae-ft-ema there, or say 'nwm:PATH,vae=PATH' or 'nwm:PATH,vae=hub:stabilityai/sd-vae-ft-ema'"
        raise ValueError(f"{source.weights} needs Stable Diffusion's autoencoder, which is not at {folder}: {get}")
    model, config = nwm.load_published(source, folder)
    return model.to(device, getattr(torch, dtype)), config
