"""Saved states on disk, bit for bit: arrays as safetensors, everything else as JSON in the header. No pickle.

state = env.unwrapped.save_state()
wmgym.save_state_file(state, "here.safetensors")
env.unwrapped.load_state(wmgym.load_state_file("here.safetensors", env))
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wmgym import tree
from wmgym.checkpoint import checksum, digests_of
from wmgym.files import replacing

FORMAT = "wmgym state 2"
PLAIN = (bool, int, float, str, type(None))
UNCHECKED = {"format", "plain", "arrays"}  # all header keys of older files, which have no checksum


def save_state_file(state: Any, path: str | Path) -> None:
    """Write the value of `save_state` to a file. An existing file is replaced atomically."""
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    arrays: list[str] = []
    for name, value in tree.leaves(state).items():
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        elif isinstance(value, (np.ndarray, np.generic)):
            arrays.append(name)
            tensors[name] = torch.from_numpy(np.array(value))
        elif isinstance(value, PLAIN):
            plain[name] = value
        else:
            raise ValueError(f"this state cannot be written to a file: {name} is of type {type(value).__name__}")
    header = {"format": FORMAT, "plain": json.dumps(plain), "arrays": json.dumps(arrays)}
    with replacing(path) as draft:
        save_file(tensors, draft, {**header, "checksum": checksum(digests_of(tensors), header)})


def load_state_file(path: str | Path, env: Any) -> Any:
    """Read a state for `env`, which must have been reset once: the structure of its own state is the template.

    A damaged file, or the state of another kind of env, raises `ValueError`.
    """
    path = Path(path)
    template = env.unwrapped.save_state()
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(f"{path} is not a saved state of wmgym: its format is {header.get('format')!r}, not {FORMAT!r}")
            values: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} is not a saved state of wmgym: {error}") from None
    if header.keys() != UNCHECKED and header.get("checksum") != checksum(digests_of(values), header):
        raise ValueError(f"{path}: damaged: its contents do not match the checksum in its header")
    for name in json.loads(header["arrays"]):
        values[name] = values[name].numpy()
    values |= json.loads(header["plain"])
    ours = tree.leaves(template).keys()
    if ours != values.keys():
        raise ValueError(f"{path} is the state of another kind of env: these entries differ: {', '.join(sorted(ours ^ values.keys())[:5])}")
    return tree.like(template, values)
