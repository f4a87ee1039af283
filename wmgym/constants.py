"""Small tables of numbers as tensors, made once for each device.

Making a tensor of Python numbers on a GPU copies from the host and waits for the device, and no CUDA graph may contain such a copy. So what
runs in a step takes its tables from here. Nobody may edit them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@lru_cache(maxsize=256)
def constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """`values`, numbers or tuples of them, as a tensor. Equal arguments give the same tensor."""
    import torch  # here, so that settings can be listed without it

    with torch.inference_mode(False):  # a tensor of inference mode could not be used in training later
        return torch.tensor(values, dtype=dtype, device=device)
