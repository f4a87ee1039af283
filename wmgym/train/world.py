"""The course of every training of a world model, once its system has said what a step learns from.

warm start --> autoencoder --> latents --> network and heads, measured on held-out episodes at every save --> model.safetensors
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wmgym.data.latents import Latents
from wmgym.nets.autoencoder import Autoencoder
from wmgym.train import reward
from wmgym.train.held_out import HeldOutFilms
from wmgym.train.loop import LoopConfig, Losses, Training, fit
from wmgym.train.run import Run, RunArgs, finish, fit_autoencoder, make_latents, warm_start
from wmgym.world_model import WorldModel


def train_world(
    run: Run,
    model: WorldModel,
    config: Any,
    training_of: Callable[[Latents], Training],
    views: Mapping[str, WorldModel],
    command: str,
    told: Mapping[str, Any] | None = None,
    *,
    file: str = "model",
    base: str | None = None,
) -> dict[str, Any]:
    """Train or resume; the report. views: the model with each of its memories, by name, for the held-out films. told: for the notes.
    file: name of the checkpoint in the run's folder. base: checkpoint that it is a delta on."""
    warm_start(model, run.args)
    assert isinstance(model.autoencoder, Autoencoder)
    fit_autoencoder(run, model.autoencoder)
    data = make_latents(run, model)
    figures = _fit_parts(run, model, training_of(data), views)
    return finish(run, model, config, data, {**(told or {}), **figures}, command, file, base)


def loop_config(args: RunArgs) -> LoopConfig:
    """The loop of network and heads."""
    warmup = max(1, min(200, args.steps // 10))
    return LoopConfig(args.steps, warmup=warmup, decay=args.decay, ema=args.ema, seed=args.seed + 1, save_every=args.save_every)


def trained_parts(model: WorldModel, data: Latents) -> tuple[nn.ModuleDict, reward.Examples | None]:
    """The network and the heads that the model has, and the examples of its reward head, if it has one."""
    trained = nn.ModuleDict({name: part for name, part in (("net", model.net), ("motion_head", model.motion_head)) if part is not None})
    if model.reward_head is None:
        return trained, None
    events = reward.Examples(model.reward_head, data)
    trained["reward_head"] = events.head
    return trained, events


def with_total(parts: Mapping[str, Tensor]) -> Losses:
    """The sum of the losses, which is minimised, and each of them for the log."""
    return {"total": torch.stack(list(parts.values())).sum(), **{name: value.detach() for name, value in parts.items()}}


def _fit_parts(run: Run, model: WorldModel, training: Training, views: Mapping[str, WorldModel]) -> dict[str, float]:
    """Fit network and heads; the figures of the end."""
    args = run.args
    films, head = HeldOutFilms(views, run.held_out, run.device, args.out, run.writer), reward.HeldOutEvents(model, run.held_out)

    def measure(step: int, module: nn.Module) -> dict[str, float]:
        return {**films(step), **head()}

    fit(
        training.module, training.optimisers, training.step_losses, loop_config(args), args.out,
        name="net", device=run.device, on_save=measure, writer=run.writer, progress=run.progress,
    )  # fmt: skip
    model.eval()
    return measure(args.steps, training.module)
