"""The motion that an action causes when nothing blocks it.

A dream integrates these motions, and a learned head corrects what they do not model (a wall, a slope). torch is imported inside the
functions, so that settings can be listed without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from wmgym.constants import constant

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Kinematics(Protocol):
    """Egomotion of actions, and which of its components the world may change."""

    @property
    def action_size(self) -> int:
        """Length of a continuous action; 0 for discrete actions, which `num_actions` counts."""
        ...

    @property
    def num_actions(self) -> int: ...

    @property
    def uncertain(self) -> tuple[bool, ...]:
        """Components of the egomotion that a learned head may correct, such as a step that a wall can block."""
        ...

    @property
    def field_of_view(self) -> float:
        """Radians, vertical."""
        ...

    @property
    def aspect(self) -> float:
        """Width of the view divided by its height."""
        ...

    def motion(self, actions: Tensor) -> Tensor:
        """Actions int64 [...] or float32 [..., A] -> egomotion float32 [..., 5] (metres, radians)."""
        ...

    def mask(self, device: torch.device | str = "cpu") -> Tensor:
        """float32 [5]: 1 where a correction is allowed."""
        ...


@dataclass(frozen=True)
class DiscreteKinematics:
    """One fixed egomotion per action."""

    egomotion: tuple[tuple[float, ...], ...]  # one row per action: forward, left, up, turn, tilt (metres, radians)
    uncertain: tuple[bool, ...]
    field_of_view: float
    aspect: float = 1.0

    action_size = 0

    @property
    def num_actions(self) -> int:
        return len(self.egomotion)

    def motion(self, actions: Tensor) -> Tensor:
        import torch

        return constant(self.egomotion, torch.float32, actions.device)[actions]

    def mask(self, device: torch.device | str = "cpu") -> Tensor:
        import torch

        return constant(self.uncertain, torch.float32, device)


@dataclass(frozen=True)
class Displacement:
    """Continuous actions: a displacement in the frame of the pose it starts from, normalised as in NWM for one dataset.

    (x, y) is divided by `spacing` and mapped linearly from [low, high] to [-1, 1], so standing still is (-1/3, 0), not 0. The turn is
    divided by pi. A displacement over several steps may lie outside of [-1, 1].
    """

    spacing: float = 0.25  # metres between waypoints, about the length of one step
    low: tuple[float, float] = (-2.5, -4.0)  # x, y in waypoints
    high: tuple[float, float] = (5.0, 4.0)
    rate: float = 4.0  # frames per second
    field_of_view: float = 1.309  # radians, vertical
    aspect: float = 4 / 3  # width divided by height of the view, before it is scaled to a square frame

    action_size = 3
    num_actions = 0
    uncertain = (False,) * 5  # actions are measured displacements

    def __post_init__(self) -> None:
        if not (self.spacing > 0 and self.rate > 0 and self.aspect > 0 and 0 < self.field_of_view < math.pi):
            raise ValueError(f"spacing, rate, aspect and field_of_view must be positive (the last below pi), got {self}")
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")

    def motion(self, actions: Tensor) -> Tensor:
        """Normalised displacements [..., 3] -> egomotion float32 [..., 5]."""
        import torch

        low, span = self._scale(actions.device)
        xy = ((actions[..., :2].float() + 1) / 2 * span + low) * self.spacing
        still = torch.zeros_like(xy[..., :1])
        return torch.cat([xy, still, actions[..., 2:].float() * math.pi, still], -1)

    def action(self, egomotion: Tensor) -> Tensor:
        """The inverse of `motion`: egomotion [..., 5] -> float32 [..., 3]. Height and tilt are ignored."""
        import torch

        low, span = self._scale(egomotion.device)
        xy = 2 * (egomotion[..., :2].float() / self.spacing - low) / span - 1
        return torch.cat([xy, egomotion[..., 3:4].float() / math.pi], -1)

    def mask(self, device: torch.device | str = "cpu") -> Tensor:
        """float32 [5]: zeros, since no correction is allowed."""
        import torch

        return torch.zeros(5, device=device)

    def _scale(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        import torch

        low = constant(self.low, torch.float32, device)
        return low, constant(self.high, torch.float32, device) - low
