"""Work that is killed (SIGKILL) at a random moment and then finished: run as a program, `python tests/kills.py TIMES FOLDER [KIND ...]`.

Each piece of work runs in a fork of this process, which has imported everything and computed nothing. Exit code 0: each finished result
equals the one of work that nobody disturbed, byte for byte.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

Result = dict[str, bytes]


@dataclass(frozen=True)
class Work:
    """What is done in a folder, and what must come of it."""

    prepare: Callable[[Path], None]  # before the work begins
    do: Callable[[Path], None]
    result: Callable[[Path], Result]  # of finished work
    check: Callable[[Path, Result], None] = lambda folder, wanted: None  # of killed work


def fork(do: Callable[[Path], None], folder: Path, kill_after: float | None = None) -> float:
    """Do it in another process, which is killed after some seconds or, with None, never. Returns how long it ran."""
    begun, tell = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(tell, b"1")
            do(folder)
            code = 0
        except BaseException:  # noqa: BLE001  # the parent raises
            traceback.print_exc()
        finally:
            os._exit(code)
    os.read(begun, 1)
    start = time.perf_counter()
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    took = time.perf_counter() - start
    os.close(begun), os.close(tell)
    assert code == 0 or (kill_after is not None and code == -signal.SIGKILL), f"work in {folder} ended with code {code}"
    return took


def survives(work: Work, times: int, folder: Path) -> int:
    """Kill it `times` times at moments spread over its duration, and finish it each time. How often it was still under way."""
    whole = folder / "whole"
    work.prepare(whole)
    took = fork(work.do, whole)
    wanted, rng, hit = work.result(whole), np.random.default_rng(0), 0
    for i in range(times):
        out = folder / f"{i:03d}"
        work.prepare(out)
        fork(work.do, out, took * (i + rng.random()) / times)
        work.check(out, wanted)
        hit += not _finished(work, out, wanted)
        fork(work.do, out)
        assert work.result(out) == wanted, f"{out} differs from {whole}"
    return hit


def _finished(work: Work, out: Path, wanted: Result) -> bool:
    try:
        return work.result(out) == wanted
    except (OSError, ValueError):
        return False


def files_below(folder: Path, pattern: str) -> Result:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern)) if not path.name.startswith(".")}


# -- what is killed ---------------------------------------------------------------------------------------------------------------------


def episode() -> Work:
    """An episode is saved in the place of another one."""
    from wmgym.data.episode import Episode, Metadata, load_episode, save_episode

    def make(seed: int, length: int) -> Episode:
        frames = np.random.default_rng(seed).integers(0, 256, (length, 64, 64, 3), np.uint8)
        flags = np.zeros(length, bool)
        poses, rewards = np.zeros((length, 5), np.float32), np.zeros(length, np.float32)
        return Episode(frames, np.zeros(length, np.int64), poses, rewards, flags, flags, Metadata("x", seed, "w"))

    old, new = make(0, 100), make(1, 300)

    def prepare(out: Path) -> None:
        save_episode(out / "e.safetensors", old)

    def check(out: Path, wanted: Result) -> None:
        frames = load_episode(out / "e.safetensors").frames
        assert np.array_equal(frames, old.frames) or np.array_equal(frames, new.frames)

    return Work(prepare, lambda out: save_episode(out / "e.safetensors", new), lambda out: files_below(out, "*.safetensors"), check)


def state() -> Work:
    """A state file is saved in the place of another one."""
    from safetensors import safe_open

    import wmgym
    from wmgym.envs.memory_cards.env import MemoryCardsEnv

    env = MemoryCardsEnv()
    env.reset(seed=0)
    first = {**env.save_state(), "seen": np.zeros((500, 48, 48, 3), np.uint8)}  # large, so that there is time to be killed
    env.step(4)
    second = {**env.save_state(), "seen": np.ones((500, 48, 48, 3), np.uint8)}

    class Here:
        unwrapped = property(lambda self: self)

        def save_state(self) -> object:
            return first

    def prepare(out: Path) -> None:
        out.mkdir(parents=True)
        wmgym.save_state_file(first, out / "s.safetensors")

    def check(out: Path, wanted: Result) -> None:
        loaded = wmgym.load_state_file(out / "s.safetensors", Here())
        assert (loaded["elapsed"], loaded["seen"].max()) in ((0, 0), (1, 1))

    def result(out: Path) -> Result:
        """What the file holds; safetensors writes the entries of its header in a random order."""
        with safe_open(out / "s.safetensors", "np") as file:
            arrays = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118  # not a dict
            return arrays | {key: text.encode() for key, text in file.metadata().items()}

    return Work(prepare, lambda out: wmgym.save_state_file(second, out / "s.safetensors"), result, check)


def evaluation() -> Work:
    """Cells of an evaluation."""
    import tempfile

    from standins import clip
    from tiny import tiny_checkpoint

    from wmgym.benchmarks.cells import Settings, evaluate
    from wmgym.benchmarks.rollout import Walk
    from wmgym.checkpoint import load_world
    from wmgym.experiments.support.judged import reconstruct

    path = tiny_checkpoint(Path(tempfile.mkdtemp(dir=os.environ["KILLS"])))
    worlds = {mode: load_world(path, device="cpu", dtype="float32", memory=mode) for mode in ("none", "worldpack")}
    walks = [Walk(**clip(12 + i, x=float(i)), split=4, seed=i) for i in range(3)]

    def do(out: Path) -> None:
        groups = {"a": lambda: walks, "b": lambda: walks[:2]}
        evaluate(groups, list(worlds), worlds.__getitem__, lambda frames: reconstruct(worlds["none"], frames), out, Settings())

    return Work(lambda out: None, do, lambda out: files_below(out, "cells/*"))


def training() -> Work:
    """The whole of a training run, from episodes to a model."""
    from test_training import arguments, collect

    from wmgym.checkpoint import combined, digests_of, read_file
    from wmgym.nets.cdit import SIZES
    from wmgym.train import run
    from wmgym.train.worldpack import train

    SIZES["TINY"] = {"width": 32, "depth": 1, "heads": 2}
    run._writer = lambda out: None  # TensorBoard takes longer to import than all this
    data = collect(Path(os.environ["KILLS"]) / "data")

    def result(out: Path) -> Result:
        """The tensors; the headers hold durations."""
        names = ("autoencoder", "latents", "net-state", "model")
        return {name: combined(digests_of(read_file(out / f"{name}.safetensors")[0])).encode() for name in names}

    def do(out: Path) -> None:
        train(arguments(data, out, steps=4, autoencoder_steps=2, save_every=2), progress=False)

    return Work(lambda out: None, do, result)


KINDS = {"episode": episode, "state": state, "evaluation": evaluation, "training": training}

if __name__ == "__main__":
    times, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    os.environ["KILLS"] = str(folder)
    for kind in sys.argv[3:] or KINDS:
        hit = survives(KINDS[kind](), times, folder / kind)
        print(f"{kind}: {hit} of {times} were killed before they had finished", flush=True)
