"""Muon (Jordan et al. 2024): momentum whose update of a matrix is orthogonalised, for the matrices between hidden layers.

torch has this optimiser too (`torch.optim.Muon`). It orthogonalises one matrix after the other, always in bfloat16. This one takes all
matrices of a shape in one batch of products, and float32 where the processor has no instructions for bfloat16 and emulates them. Otherwise
updates, settings and the optimiser's state are torch's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration
ITERATIONS = 5
TINY = 1e-7


class Muon(torch.optim.Optimizer):
    """Momentum with Nesterov's look-ahead, orthogonalised; the rate is scaled by sqrt(rows / columns) of matrices that are tall.

    matrices: 2-D parameters, or ValueError. dtype: of the orthogonalisation.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon optimises matrices, got a parameter of shape {list(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change all matrices that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                self._change(parameters, shape, group)
        return loss

    def _change(self, parameters: list[nn.Parameter], shape: torch.Size, group: dict[str, Any]) -> None:
        """All matrices of one shape."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        buffers = [self._buffer(p) for p in parameters]
        momentum, rate = group["momentum"], group["lr"]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum)
        updates = orthogonalised(torch.stack(ahead), self.dtype).to(parameters[0].dtype)
        tensors: list[Tensor] = list(parameters)
        torch._foreach_mul_(tensors, 1 - rate * group["weight_decay"])
        torch._foreach_add_(tensors, list(updates.unbind()), alpha=-rate * math.sqrt(max(1.0, shape[0] / shape[1])))

    def _buffer(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def orthogonalised(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Matrices [n, rows, columns] with their singular values moved to about 1 (0.7 to 1.2), by Newton-Schulz iterations in `dtype`."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.to(dtype)
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=TINY)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
