"""Low-rank adapters, one set per row of a batch (LoRA, Hu et al. 2021): y = W x + up (down x).

The weights W are shared and frozen. `core.Adapters` holds the down and up matrices of each row. N rows with N sets of adapters need one
batched product, forward and backward.
"""

from __future__ import annotations

from torch import Tensor, nn

from wmgym.core import Adapters


def linear(layer: nn.Linear, x: Tensor, adapters: Adapters | None, name: str) -> Tensor:
    """A linear layer on x [B, ..., in], plus each row's adapter if there is one for `name`: [B, ..., out]."""
    out = layer(x)
    if adapters is None or name not in adapters.layers:
        return out
    down, up = (part.to(x.dtype) for part in adapters.layers[name])  # [B, r, in], [B, out, r]
    flat = x.flatten(1, -2)  # [B, M, in]
    return out + (flat @ down.transpose(1, 2) @ up.transpose(1, 2)).view_as(out)
