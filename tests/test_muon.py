"""Muon against torch's own, and against what it approximates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wmgym.train.loop import optimiser_tensors, restore_optimiser
from wmgym.train.muon import Muon, orthogonalised

SHAPES = [(12, 8), (8, 12), (8, 8), (12, 8)]


def layers(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def descend(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimiser.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_are_those_of_torch(dtype: torch.dtype) -> None:
    ours, theirs = layers(), layers()
    settings = {"lr": 0.02, "weight_decay": 0.01}
    descend(Muon(ours, **settings, dtype=dtype), ours, 5)
    descend(torch.optim.Muon(theirs, **settings), theirs, 5)
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(ours, layers(), strict=True))
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).detach().abs().max()) < 0.02 * moved  # torch's products are in bfloat16


def test_singular_values_become_about_one_and_directions_stay() -> None:
    matrices = torch.randn(3, 20, 12, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    for x in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonalised(x))
        assert float(values.min()) > 0.6 and float(values.max()) < 1.3
    inner = u.mT @ orthogonalised(matrices) @ v.mT  # diagonal: the same singular vectors
    off = inner - torch.diag_embed(torch.diagonal(inner, dim1=-2, dim2=-1))
    assert float(off.abs().max()) < 1e-4


def test_a_matrix_does_not_depend_on_the_others_of_its_shape() -> None:
    matrices = torch.randn(4, 9, 7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonalised(matrices)[2:3], orthogonalised(matrices[2:3]), atol=1e-6, rtol=0)


def test_its_state_is_torchs_and_is_read_back(tmp_path: object) -> None:
    parameters = layers()
    descend(torch.optim.Muon(parameters, lr=0.02, weight_decay=0.01), parameters, 2)
    theirs = torch.optim.Muon(parameters, lr=0.02, weight_decay=0.01)
    descend(theirs, parameters, 2)
    ours = Muon(parameters, lr=0.02, weight_decay=0.01)
    restore_optimiser(ours, optimiser_tensors(theirs))
    for parameter in parameters:
        assert torch.equal(ours.state[parameter]["momentum_buffer"], theirs.state[parameter]["momentum_buffer"])


def test_parameters_without_a_gradient_and_zero_gradients_stay_finite() -> None:
    parameters = layers()
    optimiser = Muon(parameters, lr=0.1, weight_decay=0.0, dtype=torch.float32)
    parameters[0].grad = torch.zeros_like(parameters[0])
    before = [p.detach().clone() for p in parameters]
    optimiser.step()
    for a, b in zip(parameters, before, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"Muon optimises matrices, got a parameter of shape \[3\]"):
        Muon([nn.Parameter(torch.zeros(3))])
