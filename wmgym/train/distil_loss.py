"""Distillation of a rectified flow to few steps: one jump of the student learns what the teacher's smaller steps come to.

    teacher  1 -----> 3/4 -----> 1/2 -----> 1/4 -----> 0      here two steps of the teacher for each jump
    student  1 ----------------> 1/2 ----------------> 0

This is progressive distillation (Salimans and Ho 2022, algorithm 2) in the velocity of a rectified flow, with all of the teacher's steps of
a jump at once. The network gets no new input (shortcut models take the size of the step), no average of the student serves as a target
(consistency models), and sampling takes as many evaluations as the student has jumps.

The student's best answer under squared error is a mean over what it cannot tell apart, which is blurred. So a second term compares the
contrast of what the two arrive at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wmgym.diffusion.flow import Velocity, corrupt, levels
from wmgym.diffusion.samplers import SAMPLERS

_FLAT = 1e-6  # added to variances, whose root has no slope at 0


@dataclass(frozen=True)
class Denoising:
    """True latents, and the velocity that a network of the system gives for their noisy versions, in the contexts of its training."""

    latents: Tensor  # float32 [B, T, C, h, w]
    valid: Tensor  # bool [B, T]: frames that exist
    velocity: Callable[[Any], Velocity]  # network -> velocity of noisy latents [B, T, C, h, w] at levels [B]


@dataclass(frozen=True)
class Jumps:
    """The student's jumps, and the teacher's steps in each of them."""

    student_steps: int
    teacher_steps: int
    shift: float = 1.0  # of both (`diffusion.flow.levels`)
    sampler: str = "euler"  # the teacher's

    def __post_init__(self) -> None:
        if self.student_steps < 1 or self.teacher_steps <= self.student_steps or self.teacher_steps % self.student_steps:
            allowed = f"a multiple of the student's {self.student_steps}, and more"
            raise ValueError(f"the teacher's steps must be {allowed}, got {self.teacher_steps}")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"the teacher's sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}")

    def teacher_levels(self, jump: int) -> tuple[float, ...]:
        """Levels of the teacher's steps in jump `jump`: from the student's level to its next one."""
        each = self.teacher_steps // self.student_steps
        return levels(self.teacher_steps, self.shift)[jump * each : (jump + 1) * each + 1]


def distil_losses(
    example: Denoising, teacher: Any, student: Any, jumps: Jumps, jump: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Losses of the student's jump number `jump` from noisy true latents: (velocity, contrast).

    velocity: mean squared error against the mean velocity of the teacher over the jump. contrast: mean squared difference of the standard
    deviations over a frame's cells, per channel, of the latents that both arrive at, divided by the squared size of the jump. If the
    student's answer is the teacher's times a factor, both terms are alike in size.
    """
    data = example.latents
    begin, *_, end = path = jumps.teacher_levels(jump)
    noise = torch.randn(data.shape, generator=generator, device=data.device)
    level = data.new_full((len(data),), begin)
    x = corrupt(data, noise, level)
    with torch.no_grad():
        target = SAMPLERS[jumps.sampler](example.velocity(teacher), x, path).float()
    velocity = example.velocity(student)(x, level).float()
    error = (velocity - (target - x) / (end - begin)).square().mean((2, 3, 4))
    flatter = (contrast(x + (end - begin) * velocity) - contrast(target)).square().mean(2) / (end - begin) ** 2
    there = example.valid.sum()
    return (error * example.valid).sum() / there, (flatter * example.valid).sum() / there


def contrast(latents: Tensor) -> Tensor:
    """Standard deviation over the cells of each frame, per channel: [B, T, C, h, w] -> [B, T, C]."""
    return (latents.var((3, 4), correction=0) + _FLAT).sqrt()
