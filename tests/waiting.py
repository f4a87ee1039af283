"""Finds where code waits for a device, or copies to it from memory of the host, without a device.

Tensors on torch's "meta" device have shapes and no contents, so what reads a content or makes a shape of it cannot run there. Code that
asks for `device.type == "cpu"` takes the way that it takes on a GPU. A copy between host and device could run; `Device` refuses it, because
on a GPU it waits, and no CUDA graph may contain it. Tables of `wmgym.constants` may be copied, since that happens once.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = "meta"
_MAKE = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)  # from Python numbers: a copy from the host
_CONTENT = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero", "item", "unique_dim", "_unique", "_unique2"}


class WaitsForDevice(AssertionError):
    """What was refused."""


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, operation.overloadpacket.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = [x for x in given if x.device.type == DEVICE]
        if there and (name in _CONTENT or (name == "repeat_interleave" and "output_size" not in kwargs)):
            raise WaitsForDevice(f"{operation} reads a content")
        index = tree_leaves(args[1]) if name in ("index", "index_put", "index_put_") else []
        if there and any(x is not None and x.dtype is torch.bool for x in index):
            raise WaitsForDevice(f"{operation} with a mask has as many results as the mask has entries")
        host = [x for x in given if x.device.type == "cpu" and x.ndim]  # a number is an argument of the kernel, not a copy
        to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if (there and host) or (there and to == "cpu") or (given and not there and to == DEVICE):
            raise WaitsForDevice(f"{operation} copies between host and device: {[(x.device.type, list(x.shape)) for x in given]}")
        return operation(*args, **kwargs)


class _Functions(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _MAKE and sys._getframe(1).f_globals.get("__name__") != "wmgym.constants" and not isinstance(args[-1], Tensor):
            device = kwargs.get("device") or (args[0].device if function is Tensor.new_tensor else torch.get_default_device())
            if torch.device(device).type == DEVICE:
                raise WaitsForDevice(f"{function.__name__} copies {args[-1]!r} to the device")
        if function in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device.type == DEVICE:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, (list, range)) for part in index):
                raise WaitsForDevice(f"indexing with {index!r} copies the list to the device")
        return function(*args, **kwargs)


class Device:
    """A context in which waiting for `DEVICE` raises `WaitsForDevice`."""

    def __enter__(self) -> None:
        self._modes = (_Functions(), _Operations())
        for mode in self._modes:
            mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
