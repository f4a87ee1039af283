"""Low-rank adapters (LoRA, Hu et al. 2021): y = W x + up (down x), with one set for each row of a batch, or one for all rows.

The weights W are shared and frozen. `core.Adapters` holds the down and up matrices of each row. N rows with N sets of adapters need one
batched product, forward and backward.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from wmgym import rng
from wmgym.core import Adapters

Shapes = Mapping[str, tuple[int, int]]  # layer's name -> width in, width out


def linear(layer: nn.Linear, x: Tensor, adapters: Adapters | None, name: str) -> Tensor:
    """A linear layer on x [B, ..., in], plus the adapter for `name` if there is one: [B, ..., out].

    With S sets of adapters the first B / S rows of x use the first set, and so on.
    """
    out = layer(x)
    if adapters is None or name not in adapters.layers:
        return out
    down, up = (part.to(x.dtype) for part in adapters.layers[name])  # [S, r, in], [S, out, r]
    flat = x.reshape(len(down), -1, x.shape[-1])
    return out + (flat @ down.transpose(1, 2) @ up.transpose(1, 2)).view_as(out)


def shapes_of(net: nn.Module, kinds: Collection[str]) -> dict[str, tuple[int, int]]:
    """The linear layers of a network whose names end in one of `kinds`."""
    found = {name: part for name, part in net.named_modules() if isinstance(part, nn.Linear) and name.rsplit(".", 1)[-1] in kinds}
    return {name: (part.in_features, part.out_features) for name, part in found.items()}


def fresh(shapes: Shapes, rank: int, keys: Tensor, dtype: torch.dtype = torch.float32) -> Adapters:
    """New adapters for each key (int64 [B, 2]). They change nothing yet: up is 0, down is random."""
    layers = {}
    for i, (name, (wide, out)) in enumerate(shapes.items()):
        down = rng.noise(rng.fold(keys, i), (rank, wide)).to(dtype) / math.sqrt(wide)
        layers[name] = (down, down.new_zeros(len(keys), out, rank))
    return Adapters(layers, torch.zeros_like(keys[:, 0]))


class LowRank(nn.Module):
    """Trained adapters that all rows share: a small difference between two networks."""

    def __init__(self, shapes: Shapes, rank: int) -> None:
        super().__init__()
        self.names = tuple(shapes)
        self.down = nn.ParameterList(nn.Parameter(torch.randn(rank, wide) / math.sqrt(wide)) for wide, _ in shapes.values())
        self.up = nn.ParameterList(nn.Parameter(torch.zeros(out, rank)) for _, out in shapes.values())

    def adapters(self) -> Adapters:
        layers = {name: (down[None], up[None]) for name, down, up in zip(self.names, self.down, self.up, strict=True)}
        return Adapters(layers, torch.zeros(1, dtype=torch.int64, device=self.down[0].device))
