"""Lanes in processes: who dies is named, nobody is left over, and nothing is left in memory. (test_minecraft_vector.py has the rest.)"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
from process_env import DIE, ODD, STUMBLE

from wmgym.envs.process_vector import ProcessVectorEnv, WorkerDied

LANES = 5


def counting(processes: int | None = 2, **how: Any) -> ProcessVectorEnv:
    kwargs = {key: how.pop(key) for key in ("horizon", "broken", "only_in") if key in how}
    return ProcessVectorEnv("process_env:CountingEnv", kwargs, LANES, processes=processes, **how)


@pytest.fixture
def vec() -> Iterator[ProcessVectorEnv]:
    vec = counting()
    yield vec
    vec.close()


def children() -> list[psutil.Process]:
    """The lanes' processes; other tests may have left Python's own resource tracker."""
    return [each for each in psutil.Process().children(recursive=True) if "process_vector" in " ".join(each.cmdline())]


def test_lanes_are_shared_out_and_seen_in_order(vec: ProcessVectorEnv) -> None:
    seen, info = vec.reset(seed=10)
    assert seen["count"][:, 1].tolist() == [10, 11, 12, 13, 14]
    assert len(set(info["pid"])) == 2 and os.getpid() not in info["pid"]
    for t in range(1, 8):
        seen, rewards, terminated, truncated, info = vec.step(np.zeros(LANES, int))
        step = t if t <= 5 else t - 6  # the sixth resets
        assert (seen["count"][:, 0] == step).all() and (rewards == step).all()
        assert (truncated == (t == 5)).all() and not terminated.any()
    assert vec.observation_space.contains(seen)


def test_a_lane_is_the_same_in_one_process_in_many_and_in_none() -> None:
    shown = []
    for processes in (0, 1, 2, None):
        vec = counting(processes)
        seen, _ = vec.reset(seed=3)
        shown.append([seen["noise"], *(vec.step([0] * LANES)[0]["noise"] for _ in range(8))])
        vec.close()
    for other in shown[1:]:
        np.testing.assert_array_equal(shown[0], other)


def test_the_last_observation_of_an_episode_is_of_the_kind_that_was_asked_for() -> None:
    vec = counting(0, autoreset_mode="same_step", horizon=2, obs_type="torch")
    vec.reset(seed=0)
    vec.step([0] * LANES)
    seen, *_, info = vec.step([0] * LANES)
    assert info["_final_obs"].all() and isinstance(seen["count"], torch.Tensor)
    assert [last["count"].tolist() for last in info["final_obs"]] == [[2, lane] for lane in range(LANES)]
    assert all(isinstance(last["count"], torch.Tensor) for last in info["final_obs"])
    assert seen["count"][:, 0].tolist() == [0] * LANES
    vec.close()


def test_a_process_that_dies_is_named_and_takes_nobody_along(vec: ProcessVectorEnv) -> None:
    vec.reset(seed=0)
    before = children()
    with pytest.raises(WorkerDied, match=r"lanes \[0, 1, 2\] died \(exit code -9"):
        vec.step([0, DIE, 0, 0, 0])
    assert vec.closed
    psutil.wait_procs(before, timeout=10)
    assert not any(process.is_running() for process in before)
    with pytest.raises((gym.error.ClosedEnvironmentError, gym.error.ResetNeeded)):
        vec.reset()


def test_a_process_that_dies_between_two_calls_is_noticed_by_the_next(vec: ProcessVectorEnv) -> None:
    _, info = vec.reset(seed=0)
    os.kill(int(info["pid"][4]), signal.SIGKILL)
    time.sleep(0.1)
    with pytest.raises(WorkerDied, match=r"lanes \[3, 4\]"):
        vec.step([0] * LANES)


def test_an_error_in_a_lane_is_the_callers_error_and_the_env_goes_on(vec: ProcessVectorEnv) -> None:
    vec.reset(seed=0)
    with pytest.raises(ValueError, match="stumbled"):
        vec.step([0, STUMBLE, 0, 0, 0])
    with pytest.raises(RuntimeError, match="odd"):  # one that cannot be sent is told
        vec.step([0, 0, 0, 0, ODD])
    seen, _ = vec.reset(seed=0)
    assert (seen["count"][:, 0] == 0).all() and vec.step([0] * LANES)[1].tolist() == [1] * LANES


def test_a_world_that_does_not_open_is_told() -> None:
    vec = counting(broken=True)
    with pytest.raises(RuntimeError, match="no world today"):
        vec.reset()
    vec.close()


def test_a_world_that_cannot_be_made_leaves_no_process() -> None:
    vec = counting(only_in=os.getpid())
    before = len(children())
    for _ in range(2):
        with pytest.raises(OSError, match="no room"):
            vec.reset()
        assert len(children()) == before


def test_closing_ends_all_processes_and_may_be_repeated(vec: ProcessVectorEnv) -> None:
    vec.reset(seed=0)
    started, files = children(), psutil.Process().num_fds()
    assert len(started) >= 2
    vec.close()
    vec.close()
    assert not any(process.is_running() for process in started)
    assert psutil.Process().num_fds() < files


def test_nobody_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    """And no `if __name__ == "__main__"` is needed to make one."""
    program = tmp_path / "train.py"
    program.write_text(
        "import os, signal\nfrom wmgym.envs.process_vector import ProcessVectorEnv\n"
        "vec = ProcessVectorEnv('process_env:CountingEnv', {}, 2, processes=2)\n_, info = vec.reset()\n"
        "print(*info['pid'], flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=env)
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize("keywords", [{"processes": -1}, {"processes": True}, {"obs_type": "jax"}, {"autoreset_mode": "never"}])
def test_a_wrong_keyword_is_named(keywords: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        counting(**keywords)
    assert all(repr(value) in str(caught.value) for value in keywords.values())
