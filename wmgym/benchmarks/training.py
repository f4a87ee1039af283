"""How fast a system trains: examples per second, where the time of a step goes, and how close it comes to the machine's matrix products.

Batches are random latents, which cost as much as those of episodes. All figures are from one run, the peak included, so shares can be
compared between machines. Times by phase and by kernel are from torch's profiler: on a CPU of operators, on a GPU of its kernels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from wmgym import systems
from wmgym.checkpoint import choose_dtype
from wmgym.systems import System
from wmgym.train.loop import PHASES, LoopConfig, Trainer

WARMUP = 2  # steps before the clock starts
PROFILED = 8  # steps at most whose operations are counted and profiled
PEAK_SIDE = {"cpu": 1536, "cuda": 8192}  # of the square matrices that measure the peak
PEAK_ROUNDS = 5
OTHER = "other"
KERNELS = {  # kind -> parts of the names of operators (CPU) and kernels (GPU); the first kind that fits counts
    "attention": ("attention", "flash", "fmha", "sdpa"),
    "normalisation": ("norm",),
    "matrix products": ("mm", "matmul", "gemm", "cutlass", "nvjet", "cublas"),
}
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch counts attention on GPUs only


def training_times(name: str, size: str, batch: int, device: torch.device, steps: int, compile: bool = False) -> dict[str, Any]:
    """The report for a system (`systems.get`) with a network of `size`, timed over `steps` steps of `batch` examples."""
    make = synthetic_of(systems.get(name))
    trainer = Trainer(make(size, batch, device, compile), LoopConfig(WARMUP + steps), device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    numbers = _ordinary_steps(trainer.training.period, WARMUP + steps)
    timed = numbers[WARMUP:]
    for number in [0, *numbers[:WARMUP]]:
        trainer.step(number)
    seconds = [_seconds(partial(trainer.step, number), wait) for number in timed]
    report: dict[str, Any] = {
        "precision": choose_dtype("auto", device.type),
        "steps": steps,
        "ms_per_step": 1e3 * statistics.median(seconds),
        "examples_per_second": batch / statistics.median(seconds),
    }
    if trainer.training.period > 1:
        report["ms_of_each_longer_step"] = 1e3 * _seconds(lambda: trainer.step(0), wait)
        report["steps_from_one_longer_step_to_the_next"] = trainer.training.period
    chosen = timed[:PROFILED]
    slices, phases = profiled(trainer, chosen)
    report["share_of_time_by_phase"] = shares(slices, lambda part: _phase_of(part.start, phases), PHASES)
    report["share_of_time_by_kernel"] = shares(slices, lambda part: kind_of(part.name), KERNELS)
    counted = Trainer(make(size, batch, device, False), LoopConfig(WARMUP + steps), device) if compile else trainer
    performed = operations(counted, chosen)
    peak, rate = matmul_peak(device), performed / sum(seconds[: len(chosen)])
    report["matrix_products"] = {
        "gflop_per_step": performed / len(chosen) / 1e9,
        "gflop_per_second": rate / 1e9,
        "measured_peak_gflop_per_second": peak / 1e9,
        "share_of_peak": rate / peak,
    }
    return report


def synthetic_of(system: System) -> Callable[..., Any]:
    """The function that makes a system's training on random latents; ValueError if it has none."""
    if system.synthetic is None:
        have = [name for name in systems.names() if systems.get(name).synthetic is not None]
        raise ValueError(f"system must be one whose training can be timed ({', '.join(have)}), got {system.name!r}")
    module, function = system.synthetic.split(":")
    return getattr(import_module(module), function)


def _ordinary_steps(period: int, count: int) -> list[int]:
    """The first `count` numbers of steps that do no more than others (`Training.period`)."""
    numbers = (n for n in range(1, 2 * count + 2) if period == 1 or n % period)
    return [n for n, _ in zip(numbers, range(count), strict=False)]


def _seconds(function: Callable[[], object], wait: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


# -- where the time goes ----------------------------------------------------------------------------------------------------------------


class Slice(NamedTuple):
    """One operator or kernel that ran."""

    start: float  # microseconds: when it was called
    name: str
    duration: float  # microseconds, without what it called


class Phase(NamedTuple):
    """One phase of one step (`loop.PHASES`)."""

    start: float
    end: float
    name: str


def profiled(trainer: Trainer, numbers: list[int]) -> tuple[list[Slice], list[Phase]]:
    """What ran in these steps, and when their phases were."""
    on_gpu = torch.device(trainer.device).type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as record:
        for number in numbers:
            trainer.step(number)
        if on_gpu:
            torch.cuda.synchronize()
    events = [event for event in record.events() or [] if event.device_type == DeviceType.CPU]
    phases = [Phase(event.time_range.start, event.time_range.end, event.name) for event in events if event.name in PHASES]
    return [part for event in events for part in _slices(event, on_gpu)], sorted(phases)


def _slices(event: Any, on_gpu: bool) -> Iterator[Slice]:
    if not on_gpu:
        yield Slice(event.time_range.start, event.name, event.self_cpu_time_total)
        return
    for kernel in event.kernels:
        yield Slice(event.time_range.start, kernel.name, kernel.duration)


def shares(slices: list[Slice], name_of: Callable[[Slice], str], names: Any) -> dict[str, float]:
    """Each name's share of the time of all slices, and the rest as "other"."""
    total = sum(part.duration for part in slices)
    spent = dict.fromkeys([*names, OTHER], 0.0)
    for part in slices:
        spent[name_of(part)] += part.duration
    return {name: value / total for name, value in spent.items()}


def kind_of(name: str) -> str:
    """The kind of an operator or a kernel."""
    lower = name.lower()
    return next((kind for kind, parts in KERNELS.items() if any(part in lower for part in parts)), OTHER)


def _phase_of(start: float, phases: list[Phase]) -> str:
    return next((phase.name for phase in phases if phase.start <= start < phase.end), OTHER)


# -- matrix products --------------------------------------------------------------------------------------------------------------------


def operations(trainer: Trainer, numbers: list[int]) -> float:
    """Floating-point operations of the matrix products, convolutions and attention of these steps."""
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            _CPU_ATTENTION: lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v),
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
                lambda grad, q, k, v, *_, out_shape=None, **__: sdpa_backward_flop_count(grad, q, k, v)
            ),
        },
    )
    with counter:
        for number in numbers:
            trainer.step(number)
    return float(counter.get_total_flops())


def matmul_peak(device: torch.device) -> float:
    """Operations per second of a large matrix product in the precision of training: the fastest of some rounds."""
    side = PEAK_SIDE[device.type]
    dtype = getattr(torch, choose_dtype("auto", device.type))
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    torch.mm(a, b)
    return 2 * side**3 / min(_seconds(lambda: torch.mm(a, b), wait) for _ in range(PEAK_ROUNDS))
