"""Saved states on disk: safetensors for what is an array, JSON in the header for the rest, no pickle; bit for bit.

    state = env.unwrapped.save_state()
    wmgym.save_state_file(state, "here.safetensors")
    env.unwrapped.load_state(wmgym.load_state_file("here.safetensors", env))
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wmgym import tree

FORMAT = "wmgym state 2"
PLAIN = (bool, int, float, str, type(None))


def save_state_file(state: Any, path: str | Path) -> None:
    """Write what `save_state` gave. The file is replaced as a whole or not at all."""
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    arrays: list[str] = []
    for name, value in tree.leaves(state).items():
        if isinstance(value, Tensor):
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        elif isinstance(value, (np.ndarray, np.generic)):
            arrays.append(name)
            tensors[name] = torch.from_numpy(np.array(value))
        elif isinstance(value, PLAIN):
            plain[name] = value
        else:
            raise ValueError(f"this state cannot be put on disk: {name} is of type {type(value).__name__}")
    header = {"format": FORMAT, "plain": json.dumps(plain), "arrays": json.dumps(arrays)}
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(tensors, draft, header)
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)


def load_state_file(path: str | Path, env: Any) -> Any:
    """Read a state for `env`, which must have been reset once: its own state tells what belongs where."""
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
    for name in json.loads(header["arrays"]):
        values[name] = values[name].numpy()
    values |= json.loads(header["plain"])
    ours = tree.leaves(template).keys()
    if ours != values.keys():
        raise ValueError(f"{path} is the state of another kind of env: they differ in {', '.join(sorted(ours ^ values.keys())[:5])}")
    return tree.like(template, values)
