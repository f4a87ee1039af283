"""The speed of the Prismarine backend on one core: frames of 50 ms at 128 x 128, chunk borders, resets, and lanes side by side.

Frame rates use processor time of this thread and of the Node process, so that other programs on the machine hardly affect them. The
latencies of a user (`worst_*_ms`, resets, lanes) are wall-clock time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wmgym.envs.minecraft.prismarine.engine import PrismarineBackend
from wmgym.envs.minecraft.vector_env import MinecraftVectorEnv

SIDE = 128
SEEDS = (7, 8, 9)
LANES = 4
ROUND = 100  # frames timed together


def bench(seconds: float = 3.0) -> dict[str, float]:
    """Measure each frame rate for about `seconds`.

    turning_frames_per_second, sprinting_frames_per_second: frames per second of processor time.
    worst_sprint_ms: the longest frame while chunk borders are crossed.
    known_world_ms, new_world_ms: reset to a world in memory, and to a new one.
    start_ms: starting a process and opening its first world.
    vector_steps_per_second_4: env steps of 0.2 s per second, summed over four lanes.
    """
    begin = time.perf_counter()
    engine = PrismarineBackend()
    engine.reset(SEEDS[0], None)
    result = {"start_ms": 1e3 * (time.perf_counter() - begin)}

    def turn() -> None:
        engine.tick((), (0.0, 3.0))
        engine.render(SIDE, SIDE)

    def sprint() -> None:
        engine.tick(("forward", "sprint", "jump"), (0.0, 0.0))
        engine.render(SIDE, SIDE)

    result["turning_frames_per_second"], _ = _rate(engine, turn, seconds)
    result["sprinting_frames_per_second"], result["worst_sprint_ms"] = _rate(engine, sprint, seconds)
    result["known_world_ms"] = 1e3 * min(_clock(lambda: engine.reset(SEEDS[0], None)) for _ in range(3))
    result["new_world_ms"] = 1e3 * min(_clock(lambda: engine.reset(seed, None)) for seed in SEEDS[1:])  # noqa: B023  # called here
    engine.close()
    vec = MinecraftVectorEnv(LANES, task="free", backend="prismarine", size=SIDE, horizon=10**9)
    vec.reset(seed=SEEDS[0])
    steps = _clock(lambda: [vec.step(np.full(LANES, 6)) for _ in range(ROUND)])
    result["vector_steps_per_second_4"] = LANES * ROUND / steps
    vec.close()
    return result


def _rate(engine: PrismarineBackend, run: Callable[[], None], seconds: float) -> tuple[float, float]:
    """Frames per second of processor time, and the longest frame in ms."""
    for _ in range(20):
        run()
    done, worst, begun = 0, 0.0, _used(engine)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or done < ROUND:
        worst = max(worst, _clock(run))
        done += 1
    return done / (_used(engine) - begun), 1e3 * worst


def _used(engine: PrismarineBackend) -> float:
    """Processor seconds that this thread and the engine's process have used so far."""
    assert engine._process is not None
    fields = Path(f"/proc/{engine._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return time.thread_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _clock(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
