"""Mixture of contexts (Cai et al. 2025): each query reads the past frames that are most similar to it, and no others. No parameters."""

from __future__ import annotations

import torch
from torch import Tensor


def routed(q: Tensor, past: Tensor, mask: Tensor | None, tokens: int, count: int) -> Tensor:
    """Which keys each query of each head reads: bool [B, heads, Q, M + own].

    q: [B, Q, heads, d]; past: keys [B, M, heads, d] of frames of `tokens` tokens each; mask: bool [B, M + own], which keys of the past and
    of the chunk itself exist; None: all. A query reads its own chunk and the `count` frames whose mean keys have the largest products with
    it.
    """
    means = past.unflatten(1, (-1, tokens)).mean(2)  # [B, n, heads, d]
    scores = torch.einsum("bqhd,bnhd->bhqn", q, means).float()
    own = q.shape[1]
    exists = torch.ones(len(q), past.shape[1] + own, dtype=torch.bool, device=q.device) if mask is None else mask
    there = exists[:, : past.shape[1]].unflatten(1, (-1, tokens)).any(2)
    scores = torch.where(there[:, None, None], scores, -torch.inf)
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(min(count, scores.shape[-1]), -1).indices, True)
    kept = torch.cat([chosen.repeat_interleave(tokens, -1), chosen.new_ones(*chosen.shape[:3], own)], -1)
    return kept & exists[:, None, None]
