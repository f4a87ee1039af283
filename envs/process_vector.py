"""A vector env whose lanes run in processes of their own, for worlds that hold a processor each (a physics engine, a server).

    class MyVectorEnv(ProcessVectorEnv):
        def __init__(self, num_envs=1, size=64, **how):
            super().__init__("my.module:MyEnv", {"size": size}, num_envs, **how)

Each process holds some lanes, each lane one single env: so lane i is the single env that was reset with seed + i, by construction.
Observations, rewards and flags lie in memory that all processes share; the rest goes through a pipe. `processes=0` runs all lanes
in this process, one after the other: for branches, and to look for errors.

A process is a fresh Python (neither forked nor the caller's program again), so no `if __name__ == "__main__"` is needed, and it
ends when its pipe does, so none outlives its parent.
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from wmgym.vectors import LanesEnv, Mask, VectorConfig, as_tensors, check_count, lane_seeds, load_generator

Arrays = dict[str, NDArray[Any]]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0", "NUMBA_NUM_THREADS": "1"}  # a process is one core's worth
WHOLE = ""  # the name of an observation that is one array
PATIENCE = 5.0  # seconds that a process has to end by itself


class WorkerDied(RuntimeError):
    """A process of a vector env ended without being asked to. The env is closed."""


class ProcessVectorEnv(LanesEnv):
    """N lanes of the single env `entry_point` ("module:Class", made with `kwargs`), which must know `save_state` where states are
    wanted. Observations are a Box, or a Dict of Boxes.

    processes: how many share the lanes; by default one per core, at most one per lane; 0: none, all lanes run here.
    autoreset_mode: "next_step", "same_step" or "disabled" (then an ended lane rests, with its flags set, until it is reset).
    obs_type: "numpy", or "torch": observations are tensors on the CPU. max_episode_steps: another name of `horizon`.
    lane_keys: reset options that may be given as an array with a row per lane.
    """

    in_processes = True  # so this process's own time says nothing of the work

    def __init__(
        self,
        entry_point: str,
        kwargs: dict[str, Any],
        num_envs: int = 1,
        *,
        processes: int | None = None,
        max_episode_steps: int | None = None,
        autoreset_mode: str | AutoresetMode = "next_step",
        obs_type: str = "numpy",
        lane_keys: Sequence[str] = ("start", "goal"),
    ) -> None:
        config = VectorConfig.read(num_envs, autoreset_mode, obs_type, kwargs.get("horizon"), max_episode_steps)
        kwargs = kwargs if config.horizon is None else {**kwargs, "horizon": config.horizon}
        if processes is not None and (isinstance(processes, bool) or not isinstance(processes, (int, np.integer)) or processes < 0):
            raise ValueError(f"processes must be a whole number, 0 for none, got {processes!r}")
        self._entry_point, self._kwargs, self._lane_keys = entry_point, kwargs, tuple(lane_keys)
        self._single = one = _load(entry_point)(**kwargs)  # never reset: it checks the keywords and knows the spaces
        self._prepare(config, (one.observation_space, one.action_space), one.metadata, one.render_mode)
        self._wanted = min(self.num_envs, _cores() if processes is None else int(processes))
        self._workers: list[_Process | _Here] = []
        self._shared: Arrays = {}
        self._infos: list[dict[str, Any]] = []

    # ---- lanes ----

    def _is_per_lane(self, key: str, value: Any) -> bool:
        return key in self._lane_keys and np.ndim(value) == 2

    def _open(self, mask: Mask, seeds: Sequence[int | None], wishes: Sequence[dict[str, Any]]) -> None:
        before = self.save_state() if self._is_running and any(wishes) else None
        self._start()
        try:
            self._infos = self._call("reset", lambda lanes: [(mask[i], seeds[i], wishes[i]) for i in lanes])
        except Exception:
            if before is not None and self._workers:
                self.load_state(before)
            raise

    def _advance(self, actions: Any, moving: Mask) -> NDArray[np.float64]:
        told = self._check_actions(actions)
        self._infos = self._call("step", lambda lanes: [(moving[i], told[i]) for i in lanes])
        return np.where(moving, self._shared[".rewards"], 0.0)

    def _flags(self) -> tuple[Mask, Mask]:
        return self._shared[".terminated"].copy(), self._shared[".truncated"].copy()

    def _observe(self) -> Any:
        arrays = {name: array.copy() for name, array in self._shared.items() if not name.startswith(".")}
        seen = arrays.get(WHOLE, arrays)
        return as_tensors(seen) if self.obs_type == "torch" else seen

    def _info(self, lanes: Mask) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for lane in np.flatnonzero(lanes).tolist():
            batch = self._add_info(batch, self._infos[lane], lane)
        return batch

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """One frame per lane."""
        self._check_running()
        return tuple(self._call("render", lambda lanes: None)) if self.render_mode is not None else None

    def close_extras(self, **kwargs: Any) -> None:
        """End the processes; those that do not hear are killed."""
        self._end()
        self._single.close()

    @property  # type: ignore[misc]  # one per lane, as in SyncVectorEnv
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """Each lane's random number generator as it stands: copies, since the lanes' own are in their processes."""
        self._start()
        return tuple(load_generator(state) for state, _ in self._call("generators", lambda lanes: None))

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """What each lane's generator was seeded with."""
        self._start()
        return tuple(seed for _, seed in self._call("generators", lambda lanes: None))

    # ---- more than Gymnasium asks ----

    @property
    def horizon(self) -> int:
        return self._single.horizon

    def save_state(self) -> dict[str, Any]:
        """All that the future depends on. `state["lanes"][i]` is what the single env's `load_state` takes."""
        self._check_running()
        lanes = tuple(self._call("save", lambda lanes: None))
        return {"lanes": lanes, **{name: self._shared[f".{name}"].copy() for name in ("terminated", "truncated")}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a value of `save_state`, bit for bit."""
        if not isinstance(state, Mapping) or "lanes" not in state:
            raise ValueError("load_state takes what the save_state of a vector env gave")
        if len(state["lanes"]) != self.num_envs:
            raise ValueError(f"the saved state has {len(state['lanes'])} lanes, this env has {self.num_envs}")
        self._start()
        before = self.save_state() if self._is_running else None
        try:
            self._call("load", lambda lanes: [state["lanes"][i] for i in lanes])
        except Exception:
            if before is not None and self._workers:
                self._call("load", lambda lanes: [before["lanes"][i] for i in lanes])
            raise
        for name in ("terminated", "truncated"):
            self._shared[f".{name}"][:] = np.asarray(state[name], bool)
        self._single.horizon = int(state["lanes"][0]["horizon"])
        self._is_running = True

    def branch(self, n: int, seeds: int | Sequence[int] | None = None) -> ProcessVectorEnv:
        """n futures of each lane, next to each other, as a vector env in this process that never resets by itself.

        They keep the generators of their lanes, or get new ones from `seeds`: one number, to which the branch's number is added,
        or one per branch. This env is untouched.
        """
        return branch_of(self._entry_point, self._kwargs, self.save_state(), n, seeds, self.obs_type)

    def get_action_meanings(self) -> list[str]:
        """What each action does, in words."""
        return self._single.get_action_meanings()

    # ---- parts ----

    def _start(self) -> None:
        """Make the lanes, when they are first needed."""
        if self.closed:
            raise gym.error.ClosedEnvironmentError("this vector env is closed")
        if self._workers:
            return
        layout = _layout(self.single_observation_space, self.num_envs)
        with _shared_file(layout) as file:
            self._shared = _views(file, layout)
            shares = [list(map(int, part)) for part in np.array_split(np.arange(self.num_envs), max(1, self._wanted))]
            made = (self._entry_point, self._kwargs, layout)
            kind = _Process if self._wanted else _Here
            self._workers = [kind(file, lanes, made) for lanes in shares]
        try:
            self._gather()
        except Exception:
            self._end()
            raise

    def _end(self) -> None:
        workers, self._workers, self._is_running = self._workers, [], False
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.join()

    def _call(self, what: str, args: Callable[[list[int]], Any]) -> list[Any]:
        """Ask all processes at once; the answers, lane by lane. What went wrong in a lane is raised after all have answered."""
        for worker in self._workers:
            worker.send(what, args(worker.lanes))
        return self._gather()

    def _gather(self) -> list[Any]:
        answers: list[Any] = []
        wrong: BaseException | None = None
        try:
            for worker in self._workers:
                try:
                    answers += worker.receive()
                except Exception as error:  # noqa: BLE001  raised below, when all have answered
                    if wrong is None or isinstance(error, WorkerDied):
                        wrong = error
        except BaseException:  # Ctrl-C: answers are still under way, and would be taken for those to the next question
            self.close()
            raise
        if isinstance(wrong, WorkerDied):
            self.close()
        if wrong is not None:
            raise wrong
        return answers

    def _check_actions(self, actions: Any) -> NDArray[Any]:
        told = np.asarray(actions)
        space = self.single_action_space
        if told.shape != (self.num_envs, *(space.shape or ())):
            raise ValueError(f"actions must have the shape {[self.num_envs, *(space.shape or ())]}, got {list(told.shape)}")
        if isinstance(space, spaces.Discrete):
            if not np.issubdtype(told.dtype, np.integer) or (told < space.start).any() or (told >= space.start + space.n).any():
                raise ValueError(f"actions must be integers from {space.start} to {space.start + space.n - 1}, got {actions!r}")
        elif not all(space.contains(each) for each in told.astype(space.dtype)):
            raise ValueError(f"actions must lie in {space}, got {actions!r}")
        return told


def branch_of(
    entry_point: str, kwargs: dict[str, Any], state: dict[str, Any], n: int, seeds: int | Sequence[int] | None, obs_type: str = "numpy"
) -> ProcessVectorEnv:
    """n futures of each lane of a vector env's state, in this process."""
    lanes = [lane for lane in state["lanes"] for _ in range(check_count("n", n))]
    given = lane_seeds(seeds, len(lanes))
    for i, seed in enumerate(given):
        if seed is not None:
            generator, real = seeding.np_random(seed)
            lanes[i] = {**lanes[i], "np_random": generator.bit_generator.state, "seed": real}
    flags = {key: np.repeat(np.asarray(state[key], bool), n) for key in ("terminated", "truncated")}
    branches = ProcessVectorEnv(entry_point, kwargs, len(lanes), processes=0, autoreset_mode="disabled", obs_type=obs_type)
    branches.load_state({"lanes": tuple(lanes), **flags})
    return branches


# ---- lanes, in whatever process ----


class _Lanes:
    """Some lanes' single envs; what they see goes to rows of the shared arrays, what else they tell is returned, lane by lane."""

    def __init__(self, entry_point: str, kwargs: dict[str, Any], lanes: list[int], shared: Arrays) -> None:
        self._envs = {i: _load(entry_point)(**kwargs) for i in lanes}
        self._shared = shared
        self._infos: dict[int, dict[str, Any]] = {i: {} for i in lanes}

    def reset(self, wishes: list[tuple[bool, int | None, dict[str, Any]]]) -> list[dict[str, Any]]:
        for (i, env), (chosen, seed, options) in zip(self._envs.items(), wishes, strict=True):
            if chosen:
                seen, self._infos[i] = env.reset(seed=seed, options=options or None)
                self._show(i, seen, 0.0, False, False)
        return list(self._infos.values())

    def step(self, actions: list[tuple[bool, Any]]) -> list[dict[str, Any]]:
        for (i, env), (moves, action) in zip(self._envs.items(), actions, strict=True):
            if moves:
                seen, reward, terminated, truncated, self._infos[i] = env.step(action)
                self._show(i, seen, reward, terminated, truncated)
        return list(self._infos.values())

    def render(self, _: None) -> list[Any]:
        return [env.render() for env in self._envs.values()]

    def generators(self, _: None) -> list[tuple[Any, int | None]]:
        return [(env.np_random.bit_generator.state, env.np_random_seed) for env in self._envs.values()]

    def save(self, _: None) -> list[Any]:
        return [env.save_state() for env in self._envs.values()]

    def load(self, states: list[Any]) -> list[None]:
        for env, state in zip(self._envs.values(), states, strict=True):
            env.load_state(state)
        return [None] * len(states)

    def close(self) -> None:
        for env in self._envs.values():
            env.close()

    def _show(self, i: int, seen: Any, reward: float, terminated: bool, truncated: bool) -> None:
        for name, value in seen.items() if isinstance(seen, Mapping) else ((WHOLE, seen),):
            self._shared[name][i] = value
        self._shared[".rewards"][i] = reward
        self._shared[".terminated"][i], self._shared[".truncated"][i] = terminated, truncated


class _Here:
    """Lanes of this process, behind the same calls as `_Process`."""

    def __init__(self, file: Any, lanes: list[int], made: tuple[Any, ...]) -> None:
        entry_point, kwargs, layout = made
        self.lanes = lanes
        self._work = _Lanes(entry_point, kwargs, lanes, _views(file, layout))
        self._answer: Callable[[], list[Any]] = list

    def send(self, what: str, arg: Any) -> None:
        self._answer = lambda: getattr(self._work, what)(arg)

    def receive(self) -> list[Any]:
        return self._answer()

    def end(self) -> None:
        self._work.close()

    def join(self) -> None:
        pass


class _Process:
    """Lanes of another process. Requests and answers are (name, argument) and (answer, error) through a pipe."""

    def __init__(self, file: Any, lanes: list[int], made: tuple[Any, ...]) -> None:
        self.lanes = lanes
        ours, theirs = socket.socketpair()
        program = f"from wmgym.envs.process_vector import serve; serve({theirs.fileno()}, {file.fileno()})"
        env = {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen([sys.executable, "-c", program], pass_fds=(theirs.fileno(), file.fileno()), env=env)
        theirs.close()
        self._pipe = Connection(ours.detach())
        self.send("begin", (*made, lanes))

    def send(self, what: str, arg: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # told by `receive`
            self._pipe.send((what, arg))

    def receive(self) -> list[Any]:
        try:
            answer, error = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            code = self._process.wait(PATIENCE)
            raise WorkerDied(
                f"the process of lanes {self.lanes} died (exit code {code}; a negative one is the signal that killed it); "
                "the vector env is closed, make a new one"
            ) from None
        if error is not None:
            raise error
        return answer

    def end(self) -> None:
        self.send("end", None)
        with contextlib.suppress(OSError):
            self._pipe.close()

    def join(self) -> None:
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(pipe_fd: int, file_fd: int) -> None:
    """What a process does: answer until it is told to end, or its parent is gone."""
    pipe = Connection(pipe_fd)
    work: _Lanes | None = None
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        while True:
            what, arg = pipe.recv()
            if what == "end":
                break
            try:
                if what == "begin":
                    entry_point, kwargs, layout, lanes = arg
                    with os.fdopen(file_fd, "r+b", closefd=True) as file:
                        work = _Lanes(entry_point, kwargs, lanes, _views(file, layout))
                    answer: list[Any] = []
                else:
                    answer = getattr(work, what)(arg)
            except Exception as error:  # noqa: BLE001  the parent raises it
                pipe.send((None, _portable(error)))
            else:
                pipe.send((answer, None))
    if work is not None:
        work.close()


def _portable(error: Exception) -> Exception:
    """The error itself if it can be sent, else its story."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # noqa: BLE001  whatever an exception of somebody else's may do
        return RuntimeError("".join(traceback.format_exception(error)))


# ---- shared memory ----

Layout = list[tuple[str, tuple[int, ...], str]]  # name, shape, dtype


def _layout(space: gym.Space, lanes: int) -> Layout:
    parts = space.spaces if isinstance(space, spaces.Dict) else {WHOLE: space}
    if not all(isinstance(part, spaces.Box) for part in parts.values()):
        raise ValueError(f"observations must be a Box or a Dict of Boxes, got {space}")
    seen = [(name, (lanes, *part.shape), str(part.dtype)) for name, part in parts.items()]  # type: ignore[misc]
    return [*seen, (".rewards", (lanes,), "float64"), (".terminated", (lanes,), "bool"), (".truncated", (lanes,), "bool")]


def _sizes(layout: Layout) -> list[int]:
    """Bytes of each array, up to whole cache lines."""
    return [-(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64 for _, shape, dtype in layout]


def _shared_file(layout: Layout) -> Any:
    """A file without a name, in memory where the system has such a place: it is gone when the last process is."""
    file = tempfile.TemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)  # noqa: SIM115  the caller closes it
    file.truncate(sum(_sizes(layout)))
    return file


def _views(file: Any, layout: Layout) -> Arrays:
    memory = mmap.mmap(file.fileno(), sum(_sizes(layout)))
    starts = np.cumsum([0, *_sizes(layout)])
    return {
        name: np.frombuffer(memory, dtype, int(np.prod(shape)), int(start)).reshape(shape)
        for (name, shape, dtype), start in zip(layout, starts)
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load(entry_point: str) -> Any:
    module, _, name = entry_point.partition(":")
    return getattr(importlib.import_module(module), name)
