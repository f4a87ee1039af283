"""The one training loop: gradient clipping, EMA, TensorBoard, and a resume that continues bit for bit.

Nothing random outlives a step: step n draws its batch and its noise from (seed, n). So the state is the weights, their moving
average, the optimisers' tensors and the step's number, and a killed run continues as if it had not been.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from wmgym.checkpoint import read_file, write_tensors
from wmgym.progress import Progress


@dataclass(frozen=True)
class LoopConfig:
    steps: int
    warmup: int = 200
    decay: float = 0.4  # share of the steps over which the learning rate falls to zero
    clip: float = 1.0  # norm of the gradient
    ema: float = 0.999
    seed: int = 0
    save_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be positive, got {self.steps}")

    def rate(self, step: int) -> float:
        """Factor on the learning rates: warm-up, plateau, linear decay."""
        falling = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, (step + 1) / self.warmup, falling)


@dataclass(frozen=True)
class Draw:
    """The randomness of one step."""

    step: int
    numpy: np.random.Generator
    torch: torch.Generator


TIMED_STEPS = 3  # before the duration is estimated, by the shortest of them: the first may compile, and some do more than others

# parts of a step, as torch's profiler shows them; the functions that compute losses mark the first two by `record_function`
DRAWING, FORWARD, BACKWARD, OPTIMISER = PHASES = ("drawing batches", "forward pass", "backward pass", "optimiser step")

Losses = dict[str, Tensor]
Step = Callable[[Draw], tuple[Losses, dict[str, Tensor]]]  # -> losses ("total" is minimised), and the batch in case it is bad


def draw(seed: int, step: int, device: torch.device | str) -> Draw:
    """Generators that depend on (seed, step) alone."""
    sequence = np.random.SeedSequence([seed, step])
    generator = torch.Generator(device).manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
    return Draw(step, np.random.default_rng(sequence), generator)


class Average:
    """Exponential moving average of a module's parameters; it warms up, so that early weights are soon forgotten."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {k: v.detach().clone() for k, v in module.named_parameters()}

    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.parameters.values()), [p.detach() for p in module.parameters()], 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            parameter.data.copy_(self.parameters[name])


@dataclass(frozen=True)
class Training:
    """What is trained, and how."""

    module: nn.Module
    optimisers: dict[str, torch.optim.Optimizer]
    step_losses: Step
    period: int = 1  # steps whose number is a multiple of it do more than others


class Trainer:
    """A training that goes on: `step` changes the weights and their moving average once."""

    def __init__(self, training: Training, config: LoopConfig, device: torch.device | str) -> None:
        self.training, self.config, self.device = training, config, device
        self.average = Average(training.module, config.ema)
        self.rates = {key: [group["lr"] for group in o.param_groups] for key, o in training.optimisers.items()}

    def step(self, number: int) -> tuple[Losses, dict[str, Tensor]]:
        """Step `number`: its losses and the gradient's norm, and its batch."""
        module, config = self.training.module, self.config
        losses, batch = self.training.step_losses(draw(config.seed, number, self.device))
        with record_function(BACKWARD):
            losses["total"].backward()
        with record_function(OPTIMISER):
            losses["gradient_norm"] = nn.utils.clip_grad_norm_(module.parameters(), config.clip)
            for key, optimiser in self.training.optimisers.items():
                for group, rate in zip(optimiser.param_groups, self.rates[key], strict=True):
                    group["lr"] = rate * config.rate(number)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
        self.average.update(module, number)
        return losses, batch


def fit(
    module: nn.Module,
    optimisers: dict[str, torch.optim.Optimizer],
    step_losses: Step,
    config: LoopConfig,
    out: Path,
    *,
    name: str,
    device: torch.device | str = "cpu",
    on_save: Callable[[int, nn.Module], dict[str, float]] | None = None,
    writer: Any = None,
    progress: bool = True,
) -> Average:
    """Minimise, from `out/NAME-state.safetensors` if it is there. Returns the averaged weights.

    on_save(step, module with averaged weights) is called at each save and returns figures to log.
    """
    trainer = Trainer(Training(module, optimisers, step_losses), config, device)
    average = trainer.average
    state_file = out / f"{name}-state.safetensors"
    step = _restore(state_file, module, average, optimisers) if state_file.exists() else 0
    monitor = LossMonitor()
    began, first = time.perf_counter(), step
    clock, shortest = began, math.inf
    with Progress(total=config.steps, initial=step, desc=name, unit="step", disable=not progress, mininterval=5) as bar:
        while step < config.steps:
            losses, batch = trainer.step(step)
            monitor.update(step, losses)
            step += 1
            bar.update()
            if progress and step <= first + TIMED_STEPS:
                if torch.device(device).type == "cuda":
                    torch.cuda.synchronize(device)
                clock, last = time.perf_counter(), clock
                shortest = min(shortest, clock - last)
                if step == first + TIMED_STEPS:
                    bar.write(estimate(name, config.steps - step, shortest, torch.device(device)), file=sys.stderr)
            saves = step % config.save_every == 0 or step == config.steps
            if (monitor.checks_every_step or saves or step % config.log_every == 0) and (bad := monitor.first_bad()) is not None:
                _refuse(out, name, state_file, bad, batch if bad[0] == step - 1 else step_losses(draw(config.seed, bad[0], device))[1])
            if step % config.log_every == 0:
                recent = monitor.means()
                bar.set_postfix({k: f"{v:.4f}" for k, v in recent.items()})
                figures = {**recent, "rate": config.rate(step - 1)}
                _log(out, writer, name, step, {**figures, "steps_per_second": (step - first) / (time.perf_counter() - began)})
            if saves:
                _save(state_file, module, average, optimisers, trainer.rates, step)
                if on_save:
                    own = {k: v.detach().clone() for k, v in module.named_parameters()}
                    average.copy_to(module)
                    _log(out, writer, f"{name}-held-out", step, on_save(step, module))
                    with torch.no_grad():
                        for k, v in module.named_parameters():
                            v.copy_(own[k])
    average.copy_to(module)
    return average


def estimate(name: str, steps: int, seconds: float, device: torch.device) -> str:
    """How long `steps` more steps of `seconds` each will take, and what to do where a processor would need days."""
    left = steps * seconds
    days = left / 86_400
    words = f"{days:.1f} days" if days >= 1 else f"{left / 3600:.1f} hours" if left >= 3600 else f"{left / 60:.0f} minutes"
    text = f"{name}: about {words} for {steps} steps of {seconds:.2g} s on {device}"
    if days >= 1 and device.type == "cpu":
        text += "; this is work for a GPU: choose fewer --steps, a smaller --batch or --size, or another --device"
    return text


class LossMonitor:
    """Running means of the losses, and the first step at which one was not finite.

    Both stay on the device. On a GPU looking at them waits for it, so that is done now and then; on a CPU
    (`checks_every_step`) at every step.
    """

    MEMORY = 0.98

    def __init__(self) -> None:
        self.checks_every_step = True
        self._names: list[str] = []
        self._means = self._bad = torch.empty(0)

    def update(self, step: int, losses: Losses) -> None:
        values = torch.stack([value.detach().float() for value in losses.values()])
        if not self._names:
            self._names, self.checks_every_step = list(losses), values.device.type == "cpu"
            self._means = values.clone()
            self._bad = torch.full((1 + len(values),), -1.0, dtype=torch.float64, device=values.device)
        self._means.lerp_(values, 1 - self.MEMORY)
        fresh = ~values.isfinite().all() & (self._bad[0] < 0)
        self._bad = torch.where(fresh, torch.cat([self._bad.new_full((1,), step), values.double()]), self._bad)

    def means(self) -> dict[str, float]:
        return dict(zip(self._names, self._means.tolist(), strict=True))

    def first_bad(self) -> tuple[int, str, float] | None:
        """Step, name and value of what was first not finite."""
        step, *values = self._bad.tolist()
        if step < 0:
            return None
        which, value = next((n, v) for n, v in zip(self._names, values, strict=True) if not math.isfinite(v))
        return int(step), which, value


def _refuse(out: Path, name: str, state_file: Path, bad: tuple[int, str, float], batch: dict[str, Tensor]) -> None:
    step, which, value = bad
    file = out / f"{name}-bad-batch.safetensors"
    write_tensors(file, {k: v.contiguous() for k, v in batch.items()}, {"step": str(step)})
    what = {"total": "loss", "gradient_norm": "gradient"}.get(which, which)
    raise ValueError(f"the {what} became {value} at step {step}; the batch is in {file}, the last good state in {state_file}")


def _log(out: Path, writer: Any, name: str, step: int, figures: dict[str, float]) -> None:
    with open(out / "log.jsonl", "a") as file:
        file.write(json.dumps({"what": name, "step": step, **{k: round(v, 5) for k, v in figures.items()}}) + "\n")
    if writer is not None:
        for key, value in figures.items():
            writer.add_scalar(f"{name}/{key}", value, step)


def _save(
    path: Path,
    module: nn.Module,
    average: Average,
    optimisers: dict[str, torch.optim.Optimizer],
    base: dict[str, list[float]],
    step: int,
) -> None:
    tensors = {f"module/{k}": v.detach().contiguous() for k, v in module.state_dict().items()}
    tensors |= {f"average/{k}": v.contiguous() for k, v in average.parameters.items()}
    for key, optimiser in optimisers.items():
        tensors |= {f"optimiser/{key}/{name}": value for name, value in optimiser_tensors(optimiser).items()}
    write_tensors(path, tensors, {"step": str(step), "rates": json.dumps(base)})


def _restore(path: Path, module: nn.Module, average: Average, optimisers: dict[str, torch.optim.Optimizer]) -> int:
    tensors, header = read_file(path)
    own = {k.removeprefix("module/"): v for k, v in tensors.items() if k.startswith("module/")}
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(f"{path} belongs to another model: {' '.join(str(error).split())[:200]}") from error
    for k, v in average.parameters.items():
        v.copy_(tensors[f"average/{k}"])
    for key, optimiser in optimisers.items():
        prefix = f"optimiser/{key}/"
        restore_optimiser(optimiser, {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return int(header["step"])


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers of each parameter, as tensors by name."""
    state = optimiser.state_dict()["state"]
    return {f"{i}/{entry}": torch.as_tensor(value).clone().contiguous() for i, entries in state.items() for entry, value in entries.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, entry = name.split("/")
        state.setdefault(int(index), {})[entry] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
