"""Conditions of networks from the parts that tests vary."""

from __future__ import annotations

import torch
from torch import Tensor

from wmgym.core import Condition
from wmgym.geometry import compose


def condition(actions: Tensor, egomotion: Tensor, relative: Tensor, pitch: Tensor) -> Condition:
    """A chunk whose first pose has this pitch [B] and whose poses, seen from it, are `relative` [B, F, 5]; its times are 1, 2, ..."""
    first = torch.cat([torch.zeros(len(pitch), 4), pitch[:, None]], 1)
    poses = compose(first[:, None].expand_as(relative), relative)
    times = torch.arange(1, relative.shape[1] + 1).expand(relative.shape[:2])
    return Condition(actions, egomotion, poses, times, first, first)
