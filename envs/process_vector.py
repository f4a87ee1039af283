"""A vector env whose lanes run in worker processes, for worlds that each keep one core busy (a physics engine, a server).

    class MyVectorEnv(ProcessVectorEnv):
        def __init__(self, num_envs=1, size=64, **options):
            super().__init__("my.module:MyEnv", {"size": size}, num_envs, **options)

Each worker runs some lanes, and each lane is one single env. Lane i therefore equals the single env that was reset with seed + i.
Observations, rewards and flags are in shared memory; everything else goes through a pipe. `processes=0` runs all lanes in the
calling process, one after the other, which suits branches and debugging.

A worker is a new Python interpreter: it is not forked and does not import the caller's script, so `if __name__ == "__main__"` is not
needed. It exits when its pipe closes, so no worker outlives its parent.

Longer than 400 lines: the two ends of one protocol, which are only understood together.
"""

from __future__ import annotations

import contextlib
import copy
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

from wmgym.envs.checks import check_state_keys
from wmgym.vectors import LanesEnv, Mask, VectorConfig, as_tensors, check_actions, check_count, lane_seeds, load_generator

Arrays = dict[str, NDArray[Any]]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0", "NUMBA_NUM_THREADS": "1"}  # each worker uses one core
UNNAMED = ""  # the key of an observation that is a single array
EXIT_TIMEOUT = 5.0  # seconds that a worker has to exit before it is killed


FLAGS = ("terminated", "truncated")
STATE = ("lanes", *FLAGS, "observation", "infos")  # keys of a saved state


class WorkerDied(RuntimeError):
    """A worker process of a vector env exited unexpectedly. The env is closed."""


class ProcessVectorEnv(LanesEnv):
    """N lanes of a single env.

    entry_point: class of the single env, as "module:Class". Its observations are a Box or a Dict of Boxes. States and branches need
        its `save_state` and `load_state`.
    kwargs: keywords of the single env.
    processes: number of workers; by default one per core, at most one per lane. 0 runs all lanes in the calling process.
    autoreset_mode: "next_step", "same_step" or "disabled" (an ended lane rests, with its flags set, until it is reset).
    obs_type: "numpy", or "torch" for tensors on the CPU.
    max_episode_steps: another name of `horizon`.
    lane_keys: reset options that may be given as an array with one row per lane.
    """

    in_processes = True  # the processor time of the calling process does not include the lanes' work

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
        self._single = one = _load(entry_point)(**kwargs)  # never reset; it checks the keywords and has the spaces
        metadata = {key: value for key, value in one.metadata.items() if key != "depth"}  # only single envs measure it
        self._prepare(config, (one.observation_space, one.action_space), metadata, one.render_mode)
        self._num_processes = min(self.num_envs, _cores() if processes is None else int(processes))
        self._workers: list[_Process | _Inline] = []
        self._shared: Arrays = {}
        self._infos: list[dict[str, Any]] = []

    # ---- lanes ----

    def _is_per_lane(self, key: str, value: Any) -> bool:
        return key in self._lane_keys and np.ndim(value) == 2

    def _open(self, mask: Mask, seeds: Sequence[int | None], options: Sequence[dict[str, Any]]) -> None:
        before = self.save_state() if self._is_running and any(options) else None
        self._start()
        try:
            self._infos = self._call("reset", lambda lanes: [(mask[i], seeds[i], options[i]) for i in lanes])
        except Exception:
            if before is not None and self._workers:
                self.load_state(before)
            raise

    def _advance(self, actions: Any, moving: Mask) -> NDArray[np.float64]:
        checked = check_actions(actions, self.single_action_space, self.num_envs)
        self._infos = self._call("step", lambda lanes: [(moving[i], checked[i]) for i in lanes])
        return np.where(moving, self._shared[".rewards"], 0.0)

    def _flags(self) -> tuple[Mask, Mask]:
        return self._shared[".terminated"].copy(), self._shared[".truncated"].copy()

    def _observe(self) -> Any:
        observation = self._arrays()
        return as_tensors(observation) if self.obs_type == "torch" else observation

    def _arrays(self) -> Any:
        """The newest observation of all lanes as numpy arrays, copied out of the shared memory."""
        arrays = {name: array.copy() for name, array in self._shared.items() if not name.startswith(".")}
        return arrays.get(UNNAMED, arrays)

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
        """End the workers. Those that do not exit in time are killed."""
        self._end()
        self._single.close()

    @property  # type: ignore[misc]  # one per lane, as in SyncVectorEnv
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """Copies of the lanes' random number generators, in their present state. The originals are in the workers."""
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
        """Steps after which an episode is truncated."""
        return self._single.horizon

    def save_state(self) -> dict[str, Any]:
        """Everything that the future depends on, as a value. `state["lanes"][i]` is a state of the single env.

        "observation" and "infos" are what each lane showed last: an ended lane shows them again until it is reset.
        """
        self._check_running()
        lanes = tuple(self._call("save", lambda lanes: None))
        flags = {name: self._shared[f".{name}"].copy() for name in FLAGS}
        return {"lanes": lanes, **flags, "observation": self._arrays(), "infos": tuple(copy.deepcopy(self._infos))}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a value of `save_state`, bit for bit. ValueError if it is not one, or has another number of lanes."""
        check_state_keys(state, STATE)
        if len(state["lanes"]) != self.num_envs:
            raise ValueError(f"the saved state has {len(state['lanes'])} lanes, this env has {self.num_envs}")
        self._start()
        before = self.save_state() if self._is_running else None
        try:
            self._load_lanes(state)
        except Exception:
            if before is not None and self._workers:
                self._load_lanes(before)
            raise
        for name in FLAGS:
            self._shared[f".{name}"][:] = np.asarray(state[name], bool)
        for name, values in _named(state["observation"]):
            self._shared[name][:] = values
        self._single.horizon = int(state["lanes"][0]["horizon"])
        self._is_running = True

    def _load_lanes(self, state: dict[str, Any]) -> None:
        self._infos = self._call("load", lambda lanes: [(state["lanes"][i], copy.deepcopy(state["infos"][i])) for i in lanes])

    def branch(self, n: int, seeds: int | Sequence[int] | None = None) -> ProcessVectorEnv:
        """n futures of each lane, next to each other, as a vector env in the calling process that never resets by itself.

        Branches keep the generators of their lanes, or get new ones from `seeds`: either one number, to which the branch's index is
        added, or one number per branch. This env is untouched.
        """
        return branch_of(self._entry_point, self._kwargs, self.save_state(), n, seeds, self.obs_type)

    def get_action_meanings(self) -> list[str]:
        """What each action does, in words."""
        return self._single.get_action_meanings()

    # ---- parts ----

    def _start(self) -> None:
        """Start the workers, unless they run."""
        if self.closed:
            raise gym.error.ClosedEnvironmentError("this vector env is closed")
        if self._workers:
            return
        layout = _layout(self.single_observation_space, self.num_envs)
        with _shared_file(layout) as file:
            self._shared = _views(file, layout)
            shares = [list(map(int, part)) for part in np.array_split(np.arange(self.num_envs), max(1, self._num_processes))]
            recipe = (self._entry_point, self._kwargs, layout)
            kind = _Process if self._num_processes else _Inline
            self._workers = [kind(file, lanes, recipe) for lanes in shares]
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

    def _call(self, method: str, args: Callable[[list[int]], Any]) -> list[Any]:
        """Call a method of `_Lanes` in all workers at once: the answers, lane by lane. An error is raised after all have answered."""
        for worker in self._workers:
            worker.send(method, args(worker.lanes))
        return self._gather()

    def _gather(self) -> list[Any]:
        answers: list[Any] = []
        failure: BaseException | None = None
        try:
            for worker in self._workers:
                try:
                    answers += worker.receive()
                except Exception as error:  # noqa: BLE001  raised below, when all have answered
                    if failure is None or isinstance(error, WorkerDied):
                        failure = error
        except BaseException:  # Ctrl-C: the answers not yet received would be mistaken for answers to the next call
            self.close()
            raise
        if isinstance(failure, WorkerDied):
            self.close()
        if failure is not None:
            raise failure
        return answers


def branch_of(
    entry_point: str, kwargs: dict[str, Any], state: dict[str, Any], n: int, seeds: int | Sequence[int] | None, obs_type: str = "numpy"
) -> ProcessVectorEnv:
    """n futures of each lane of a vector env's state, in the calling process."""
    lanes = [lane for lane in state["lanes"] for _ in range(check_count("n", n))]
    for i, seed in enumerate(lane_seeds(seeds, len(lanes))):
        if seed is not None:
            generator, used = seeding.np_random(seed)
            lanes[i] = {**lanes[i], "np_random": generator.bit_generator.state, "seed": used}
    flags = {key: np.repeat(np.asarray(state[key], bool), n) for key in FLAGS}
    observation = {name: np.repeat(values, n, 0) for name, values in _named(state["observation"])}
    infos = tuple(info for info in state["infos"] for _ in range(n))
    branches = ProcessVectorEnv(entry_point, kwargs, len(lanes), processes=0, autoreset_mode="disabled", obs_type=obs_type)
    branches.load_state({"lanes": tuple(lanes), **flags, "observation": observation.get(UNNAMED, observation), "infos": infos})
    return branches


def lane_state(state: Any, observation: Any, info: dict[str, Any], *, truncated: bool = False) -> dict[str, Any]:
    """A vector env's state with one lane, from the state of a single env and what it shows."""
    batch = {name: np.asarray(values)[None] for name, values in _named(observation)}
    flags = {"terminated": np.zeros(1, bool), "truncated": np.array([truncated])}
    return {"lanes": (state,), **flags, "observation": batch.get(UNNAMED, batch), "infos": (info,)}


def _named(observation: Any) -> list[tuple[str, Any]]:
    """The arrays of an observation, with their names in the shared memory."""
    return list(observation.items()) if isinstance(observation, Mapping) else [(UNNAMED, observation)]


# ---- lanes, in whatever process ----


class _Lanes:
    """The single envs of some lanes. Observations go to rows of the shared arrays; methods return the rest, lane by lane."""

    def __init__(self, entry_point: str, kwargs: dict[str, Any], lanes: list[int], shared: Arrays) -> None:
        self._envs = {i: _load(entry_point)(**kwargs) for i in lanes}
        self._shared = shared
        self._infos: dict[int, dict[str, Any]] = {i: {} for i in lanes}

    def reset(self, requests: list[tuple[bool, int | None, dict[str, Any]]]) -> list[dict[str, Any]]:
        for (i, env), (chosen, seed, options) in zip(self._envs.items(), requests, strict=True):
            if chosen:
                observation, self._infos[i] = env.reset(seed=seed, options=options or None)
                self._publish(i, observation, 0.0, False, False)
        return list(self._infos.values())

    def step(self, actions: list[tuple[bool, Any]]) -> list[dict[str, Any]]:
        for (i, env), (moves, action) in zip(self._envs.items(), actions, strict=True):
            if moves:
                observation, reward, terminated, truncated, self._infos[i] = env.step(action)
                self._publish(i, observation, reward, terminated, truncated)
        return list(self._infos.values())

    def render(self, _: None) -> list[Any]:
        return [env.render() for env in self._envs.values()]

    def generators(self, _: None) -> list[tuple[Any, int | None]]:
        return [(env.np_random.bit_generator.state, env.np_random_seed) for env in self._envs.values()]

    def save(self, _: None) -> list[Any]:
        return [env.save_state() for env in self._envs.values()]

    def load(self, states: list[tuple[Any, dict[str, Any]]]) -> list[dict[str, Any]]:
        for (i, env), (state, info) in zip(self._envs.items(), states, strict=True):
            env.load_state(state)
            self._infos[i] = info
        return list(self._infos.values())

    def close(self) -> None:
        for env in self._envs.values():
            env.close()

    def _publish(self, i: int, observation: Any, reward: float, terminated: bool, truncated: bool) -> None:
        for name, value in _named(observation):
            self._shared[name][i] = value
        self._shared[".rewards"][i] = reward
        self._shared[".terminated"][i], self._shared[".truncated"][i] = terminated, truncated


class _Inline:
    """Lanes in the calling process, behind the same methods as `_Process`."""

    def __init__(self, file: Any, lanes: list[int], recipe: tuple[Any, ...]) -> None:
        entry_point, kwargs, layout = recipe
        self.lanes = lanes
        self._work = _Lanes(entry_point, kwargs, lanes, _views(file, layout))
        self._answer: Callable[[], list[Any]] = list

    def send(self, method: str, arg: Any) -> None:
        self._answer = lambda: getattr(self._work, method)(arg)

    def receive(self) -> list[Any]:
        return self._answer()

    def end(self) -> None:
        self._work.close()

    def join(self) -> None:
        pass


class _Process:
    """Lanes in a worker process. A pipe carries requests (method, argument) and replies (answer, error)."""

    def __init__(self, file: Any, lanes: list[int], recipe: tuple[Any, ...]) -> None:
        self.lanes = lanes
        ours, theirs = socket.socketpair()
        program = f"from wmgym.envs.process_vector import serve; serve({theirs.fileno()}, {file.fileno()})"
        env = {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen([sys.executable, "-c", program], pass_fds=(theirs.fileno(), file.fileno()), env=env)
        theirs.close()
        self._pipe = Connection(ours.detach())
        self.send("begin", (*recipe, lanes))

    def send(self, method: str, arg: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `receive` reports it
            self._pipe.send((method, arg))

    def receive(self) -> list[Any]:
        try:
            answer, error = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            code = self._process.wait(EXIT_TIMEOUT)
            raise WorkerDied(
                f"the process of lanes {self.lanes} died (exit code {code}; a negative code is the signal that killed it); "
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
            self._process.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(pipe_fd: int, file_fd: int) -> None:
    """The loop of a worker process: answer requests until "end" arrives or the parent is gone."""
    pipe = Connection(pipe_fd)
    work: _Lanes | None = None
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        while True:
            method, arg = pipe.recv()
            if method == "end":
                break
            try:
                if method == "begin":
                    entry_point, kwargs, layout, lanes = arg
                    with os.fdopen(file_fd, "r+b", closefd=True) as file:
                        work = _Lanes(entry_point, kwargs, lanes, _views(file, layout))
                    answer: list[Any] = []
                else:
                    answer = getattr(work, method)(arg)
            except Exception as error:  # noqa: BLE001  the parent raises it
                pipe.send((None, _portable(error)))
            else:
                pipe.send((answer, None))
    if work is not None:
        work.close()


def _portable(error: Exception) -> Exception:
    """The error itself if it can be pickled, else a RuntimeError with its traceback."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # noqa: BLE001  an env's own exception may raise anything when it is pickled
        return RuntimeError("".join(traceback.format_exception(error)))


# ---- shared memory ----

Layout = list[tuple[str, tuple[int, ...], str]]  # name, shape, dtype


def _layout(space: gym.Space, lanes: int) -> Layout:
    parts = space.spaces if isinstance(space, spaces.Dict) else {UNNAMED: space}
    if not all(isinstance(part, spaces.Box) for part in parts.values()):
        raise ValueError(f"observations must be a Box or a Dict of Boxes, got {space}")
    arrays = [(name, (lanes, *part.shape), str(part.dtype)) for name, part in parts.items()]  # type: ignore[misc]
    return [*arrays, (".rewards", (lanes,), "float64"), (".terminated", (lanes,), "bool"), (".truncated", (lanes,), "bool")]


def _sizes(layout: Layout) -> list[int]:
    """Bytes of each array, rounded up to whole cache lines."""
    return [-(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64 for _, shape, dtype in layout]


def _shared_file(layout: Layout) -> Any:
    """An unnamed file, in memory where the system has /dev/shm. It vanishes with the last process that holds it."""
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
