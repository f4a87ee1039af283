"""Checkpoints: a model and its config <-> safetensors files, bit for bit. A checkpoint is named by a bundled name, a path or a hub name.

A checkpoint is one `NAME.safetensors`, or several `NAME-00001-of-00002.safetensors` if one file would be too large. The header of each
file holds the config as JSON and a checksum, so a file needs no other file to be identified and checked. A delta holds only the tensors
that a system adds to a base, and names the base by the SHA-256 of its weights. Nothing is unpickled.

Longer than 400 lines: what is written and what is read of one file format, and the names that lead to it.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from wmgym import hub, systems
from wmgym.files import replacing
from wmgym.systems import System
from wmgym.world_model import Provenance, WorldModel

FORMAT = "wmgym-2"
DTYPES = ("float32", "bfloat16", "float16")
UNCHECKED = "wmgym-1"  # the format of version 0.1.0, without a checksum
BUNDLED = Path(__file__).parent / "weights"


# -- config <-> JSON ------------------------------------------------------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """A frozen dataclass as plain data."""
    return asdict(config)


def from_dict(kind: Any, data: Mapping[str, Any], renamed: Mapping[str, str] | None = None) -> Any:
    """Plain data as a frozen dataclass of type `kind`. An unknown field raises `ValueError`; a missing one gets its default.

    renamed: names of fields in older versions -> present names.
    """
    hints = get_type_hints(kind)
    data = {(renamed or {}).get(name, name): value for name, value in data.items()}
    unknown = set(data) - set(hints)
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {sorted(unknown)[0]!r}")
    values = {}
    for f in fields(kind):
        if f.name not in data:
            continue  # the file is older than the field; the default reproduces the older behaviour
        value = data[f.name]
        if is_dataclass(hints[f.name]):
            value = from_dict(hints[f.name], value)
        values[f.name] = _tuples(value)
    return kind(**values)


def _tuples(value: Any) -> Any:
    """Lists, to which JSON converts tuples, as tuples again."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# -- checksums ------------------------------------------------------------------------------------------------------------------------


def digests_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of each tensor, over its dtype, shape and bytes."""
    found = {}
    for name, tensor in tensors.items():
        digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        found[name] = digest.hexdigest()
    return found


def combined(digests: Mapping[str, str]) -> str:
    """SHA-256 of named tensors. It does not depend on their order or on how they are divided into files."""
    return hashlib.sha256("\n".join(f"{name} {digest}" for name, digest in sorted(digests.items())).encode()).hexdigest()


def digest_of(module: nn.Module) -> str:
    """SHA-256 of a module's weights."""
    return combined(digests_of(module.state_dict()))


def checksum(digests: Mapping[str, str], header: Mapping[str, str]) -> str:
    """SHA-256 of a file, over its tensors and all entries of its header except this one."""
    entries = {f"header {key}": hashlib.sha256(value.encode()).hexdigest() for key, value in header.items() if key != "checksum"}
    return combined({**digests, **entries})


# -- writing --------------------------------------------------------------------------------------------------------------------------


def save(
    path: Path | str,
    model: WorldModel,
    config: Any,
    *,
    dtype: torch.dtype | None = None,
    max_bytes: int | None = None,
    notes: dict[str, Any] | None = None,
    base: str | None = None,
) -> list[Path]:
    """Write a model to `path` (ends in .safetensors), in several files if one would exceed `max_bytes`. Returns the files.

    base: name of the checkpoint that this one is a delta on. Tensors equal to the base's are left out.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a checkpoint's file name must end in .safetensors, got {path.name!r}")
    tensors = {
        name: tensor.detach().to("cpu", dtype if dtype and tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    header = {"config": json.dumps(to_dict(config)), "notes": json.dumps(notes or {})}
    if base is not None:
        below = read(resolve(base, beside=path.parent))
        system = systems.get(config.system)
        own = below.config["system"] == config.system
        known = {name if own else system.base_name(name): tensor for name, tensor in below.tensors.items()}
        tensors = {k: t for k, t in tensors.items() if not (k in known and known[k].shape == t.shape and torch.equal(known[k].to(t), t))}
        header["base"] = json.dumps({"name": base, "sha256": below.sha256})
    header["sha256"] = combined(digests_of(tensors))  # over all parts together, so that parts of another save are refused
    shards = _shards(tensors, max_bytes)
    count = len(shards)
    names = [path] if count == 1 else [path.with_name(f"{path.stem}-{i:05d}-of-{count:05d}.safetensors") for i in range(1, count + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_tensors(name, shard, header)
    for old in {path, *_siblings(path)} - set(names):  # files of an earlier save in another number of parts would be read instead
        old.unlink(missing_ok=True)
    return names


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with format and checksum atomically: it appears complete or not at all."""
    named = {name: tensor.contiguous() for name, tensor in tensors.items()}
    entries = {**(header or {}), "format": FORMAT}
    try:
        with replacing(path) as temporary:
            save_file(named, temporary, metadata={**entries, "checksum": checksum(digests_of(named), entries)})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def _shards(tensors: dict[str, Tensor], max_bytes: int | None) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    room = max_bytes or 2**62
    used = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() + 256  # plus its entry in the header
        if shards[-1] and used + size > room - 8192:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    return shards


# -- reading --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """Contents of the files of one checkpoint."""

    tensors: dict[str, Tensor]
    header: dict[str, str]  # the same in all parts
    sha256: str  # of all tensors

    @property
    def config(self) -> dict[str, Any]:
        return json.loads(self.header["config"])

    @property
    def base(self) -> dict[str, str] | None:
        """Name and SHA-256 of the checkpoint that this one is a delta on."""
        return json.loads(self.header["base"]) if "base" in self.header else None


@dataclass(frozen=True)
class Loaded:
    """A model read from its files, on the CPU in float32."""

    model: WorldModel
    config: Any
    notes: dict[str, Any]


def load(path: Path | str, *, system: str | None = None, deltas: tuple[str, ...] = ()) -> Loaded:
    """Read a model from its files. Any defect raises `ValueError`.

    system, deltas: use the file as the base of another system with these deltas, which are in the same folder or bundled.
    """
    path = Path(path)
    stored = read(path)
    with _naming(path):
        found, notes = stored.config["system"], json.loads(stored.header.get("notes", "{}"))
        chosen = systems.get(system or found)
        below = stored.base and (stored.base["name"], stored.base["sha256"])
    parts = [_base_of(path, *below), stored] if below else [stored]
    if chosen.name != found or deltas:
        base, config = parts[0], _config_on(chosen, path, parts[0], deltas)
        parts = [base, *(_delta(chosen, delta, config, path, base) for delta in deltas)]
    else:
        config = _config(chosen, path, stored)
    if chosen.build is None:
        raise ValueError(f"{path}: system {chosen.name!r} has no checkpoints of this format")
    with _naming(path):
        model = chosen.build(config)
    tensors: dict[str, Tensor] = {}
    for part in parts:
        own = part.config["system"] == chosen.name
        tensors |= {name if own else chosen.base_name(name): tensor for name, tensor in part.tensors.items()}
    _check_same(path, model.state_dict(), tensors)
    model.load_state_dict(tensors)
    sha256 = stored.sha256 if len(parts) == 1 else hashlib.sha256("\n".join(part.sha256 for part in parts).encode()).hexdigest()
    model.provenance = Provenance(chosen.name, config.setting, config.memory, sha256, digest_of(model.autoencoder))
    return Loaded(model.eval().requires_grad_(False), config, notes)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn any error that a file's header causes into a `ValueError` that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{path}: not a wmgym checkpoint that this version can read ({error!r})") from error


def _config(system: System, path: Path, stored: Stored) -> Any:
    with _naming(path):
        return from_dict(system.config, stored.config, system.renamed)


def _config_on(system: System, path: Path, base: Stored, deltas: tuple[str, ...]) -> Any:
    """The config of a system that uses another system's weights as its base."""
    found = base.config["system"]
    if system.base != found or system.on_base is None:
        wanted = f"weights of its own or of system {system.base!r}" if system.base else "weights of its own"
        raise ValueError(f"{path}: holds weights of system {found!r}; system {system.name!r} needs {wanted}")
    return system.on_base(_config(systems.get(found), path, base), deltas)


def _base_of(path: Path, name: str, sha256: str) -> Stored:
    """The base checkpoint of a delta. ValueError if its weights are not those that the delta was made for."""
    base = read(resolve(name, beside=path.parent))
    if base.sha256 != sha256:
        raise ValueError(f"{path}: is a delta on {name!r} with SHA-256 {sha256[:16]}, the {name!r} here has {base.sha256[:16]}")
    return base


def _delta(system: System, delta: str, config: Any, path: Path, base: Stored) -> Stored:
    """A delta of a system, in the folder of a checkpoint or bundled."""
    name = delta_name(system.name, delta, config.setting)
    if name not in {*_names(path.parent), *bundled()}:
        there = sorted(n for n in {*_names(path.parent), *bundled()} if n.startswith(f"{system.name}-"))
        train = system.train_delta.format(delta=delta, setting=config.setting)
        raise ValueError(f"{name}: no such delta; available: {', '.join(there) or 'none'}. To train it: {train}")
    stored = read(resolve(name, beside=path.parent))
    if stored.base is None or stored.base["sha256"] != base.sha256:
        wanted = stored.base["sha256"][:16] if stored.base else "no base at all"
        raise ValueError(f"{name}: is a delta on weights with SHA-256 {wanted}, {path} has {base.sha256[:16]}")
    return stored


def delta_name(system: str, delta: str, setting: str) -> str:
    """Name of a delta's checkpoint, such as "come-stm-memory-maze"."""
    return f"{system}-{delta}-{setting}".replace("_", "-")


def read(path: Path | str) -> Stored:
    """Read all files of a checkpoint. ValueError if a part is missing, damaged or of another save."""
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    digests: dict[str, str] = {}
    header: dict[str, str] = {}
    for part in _parts(path):
        found, own, checked = _read_checked(part)
        own.pop("checksum", None)
        if header and own != header:
            raise ValueError(f"{part}: belongs to another save than the other parts of {path.name}")
        tensors |= found
        digests |= checked
        header = own
    if "config" not in header:
        raise ValueError(f"{path}: holds no config, so it is not a checkpoint of a world")
    sha256 = combined(digests)
    if header.get("sha256", sha256) != sha256:
        raise ValueError(f"{path}: parts of this save are missing or belong to another save")
    return Stored(tensors, header, sha256)


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file that `write_tensors` wrote. A damaged file raises `ValueError`."""
    tensors, header, _ = _read_checked(path)
    return tensors, header


def _read_checked(path: Path) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Tensors, header and the SHA-256 of each tensor."""
    try:
        with safe_open(str(path), "pt") as file:
            header = dict(file.metadata() or {})
            if header.get("format") not in (FORMAT, UNCHECKED):
                raise ValueError(f"{path}: format is {header.get('format')!r}, this version reads {FORMAT!r} and {UNCHECKED!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error})") from error
    digests = digests_of(tensors)
    if header["format"] == UNCHECKED and "checksum" not in header:
        warnings.warn(f"{path} was written by wmgym 0.1 without a checksum: damage to it cannot be detected", stacklevel=4)
    elif header.get("checksum") != checksum(digests, header):
        raise ValueError(f"{path}: damaged: its contents do not match the checksum in its header; copy or download it again")
    return tensors, header, digests


def _parts(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    parts = _siblings(path)
    if not parts:
        raise ValueError(f"{path}: no such checkpoint")
    count = int(parts[0].stem.rsplit("-", 1)[1])
    if len(parts) != count:
        raise ValueError(f"{path}: {len(parts)} of {count} parts found")
    return parts


def _siblings(path: Path) -> list[Path]:
    """The parts of a checkpoint that was written as several files."""
    pattern = re.compile(re.escape(path.stem) + r"-\d{5}-of-\d{5}\.safetensors")
    return sorted(p for p in path.parent.glob("*.safetensors") if pattern.fullmatch(p.name))


def _check_same(path: Path, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    if missing := sorted(set(wanted) - set(found)):
        raise ValueError(f"{path}: {len(missing)} tensors are missing, {missing[0]!r} among them")
    if extra := sorted(set(found) - set(wanted)):
        raise ValueError(f"{path}: holds {len(extra)} tensors that the model does not have, {extra[0]!r} among them")
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape:
            raise ValueError(f"{path}: {name} has shape {tuple(found[name].shape)}, the config needs {tuple(tensor.shape)}")


# -- checkpoints by name----------------------------------------------------------------------------------------------------------------


def _names(folder: Path) -> Iterable[str]:
    """Names of the checkpoints in a folder."""
    return sorted({re.sub(r"-\d{5}-of-\d{5}$", "", p.stem) for p in folder.glob("*.safetensors")})


def bundled() -> list[str]:
    """Names of the checkpoints that are part of the package."""
    return list(_names(BUNDLED))


def resolve(checkpoint: str, *, beside: Path | None = None) -> Path:
    """A bundled name, a path or a hub name ("hub:OWNER/NAME") -> a path. Only a hub name uses the network.

    beside: a folder that is searched for a name first.
    """
    for folder in (beside, BUNDLED):
        if folder is not None and checkpoint in _names(folder):
            return folder / f"{checkpoint}.safetensors"
    if checkpoint.startswith(hub.PREFIX):
        return hub.fetch(checkpoint, ["*.safetensors"]) / "model.safetensors"
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        path = path / "model.safetensors"
    if path.suffix == ".safetensors":
        _parts(path)
        return path
    names = ", ".join(bundled()) or "none here"
    allowed = f"a bundled name ({names}), a .safetensors file, its folder, or 'hub:OWNER/NAME'"
    raise ValueError(f"checkpoint must be {allowed}, got {checkpoint!r}")


def load_world(
    checkpoint: str,
    *,
    system: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    memory: str | None = None,
    memory_budget: int | None = None,
    denoise_steps: int | None = None,
    pose_source: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> WorldModel:
    """A world that is ready to run. A process loads weights once per (checkpoint, device, dtype); the result is a light view of them.

    system: default: the checkpoint's. options: the system's own keywords; an unknown one raises `TypeError`.
    """
    device, dtype = choose_device(device), choose_dtype(dtype, choose_device(device))
    published = systems.loader_of(checkpoint)
    path = resolve(checkpoint) if published is None else Path()
    chosen = published[0] if published is not None else systems.get(system) if system else _system_in(path)
    own = chosen.read_options(options or {})  # check keywords and the memory's name before anything is loaded
    deltas = chosen.choice(memory).deltas if memory is not None else ()
    if published is not None:
        model, config = _published(checkpoint, published[1].stamp(checkpoint), device, dtype)
    else:
        model, config = _weights(str(path), _stamp(path), chosen.name, deltas, device, dtype)
    config = replace(
        config,
        memory=chosen.memory_name(memory if memory is not None else config.memory),
        memory_budget=memory_budget if memory_budget is not None else config.memory_budget,
        pose_source=pose_source if pose_source is not None else config.pose_source,
        sampler=replace(config.sampler, denoise_steps=denoise_steps if denoise_steps is not None else config.sampler.denoise_steps),
    )
    settings = chosen.settings(model.net, config, own)
    view = model.with_settings(**{f.name: getattr(settings, f.name) for f in fields(settings)})
    view.provenance = replace(model.provenance, memory=config.memory)
    return view


def choose_device(device: str) -> str:
    """ "auto" is a GPU if there is one. ValueError if this machine does not have the device."""
    device = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be 'auto' or one that this machine has, got {device!r}") from error
    return device


def choose_dtype(dtype: str, device: str) -> str:
    """ "auto" is bfloat16 on a GPU and on processors with instructions for it, else float32. A slow choice warns once."""
    fast = device != "cpu" or multiplies_bfloat16()
    dtype = dtype if dtype != "auto" else ("bfloat16" if fast else "float32")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be 'auto', {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    if dtype != "float32" and not fast:
        _warn_slow(dtype)
    return dtype


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 matrix products (AVX-512 BF16 or AMX). Without them bfloat16 is emulated and
    takes tens of times longer than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
def _warn_slow(dtype: str) -> None:
    warnings.warn(f"dtype={dtype!r} is slow on this processor, which has no instructions for it: use 'auto' or 'float32'", stacklevel=4)


def notes_of(path: Path) -> dict[str, Any]:
    """The notes of a checkpoint, without its weights: how it was made, and its figures."""
    return json.loads(_header(path).get("notes", "{}"))


def _system_in(path: Path) -> System:
    """The system named in a checkpoint's header."""
    with _naming(path):
        return systems.get(json.loads(_header(path)["config"])["system"])


def _header(path: Path) -> dict[str, str]:
    """The header of a checkpoint's first file."""
    try:
        with safe_open(str(_parts(path)[0]), "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error})") from error


def _stamp(path: Path) -> int:
    """A number that changes when a file of the checkpoint or of its folder changes, where its base may be."""
    return max(part.stat().st_mtime_ns for part in [*_parts(path), *path.parent.glob("*.safetensors")])


@lru_cache(maxsize=8)
def _weights(path: str, stamp: int, system: str, deltas: tuple[str, ...], device: str, dtype: str) -> tuple[WorldModel, Any]:
    loaded = load(path, system=system, deltas=deltas)
    return loaded.model.to(device, getattr(torch, dtype)), loaded.config


@lru_cache(maxsize=2)
def _published(checkpoint: str, stamp: Any, device: str, dtype: str) -> tuple[WorldModel, Any]:
    published = systems.loader_of(checkpoint)
    assert published is not None
    system, loader = published
    model, config, sha256 = loader.load(checkpoint)
    model.provenance = Provenance(system.name, config.setting, config.memory, sha256, digest_of(model.autoencoder))
    return model.to(device, getattr(torch, dtype)), config
