"""`wmgym collect`: episodes of scripted walkers in a ground-truth environment, one file per episode, with several processes.

Episode k (its world, walker and actions) depends only on the arguments and k, not on the number of processes. A killed run resumes:
finished files are kept, and at most the episodes in progress are lost.

Seeds. The world of episode k has the seed `seed * 1_000_000 + k` (or `+ k % worlds`), so collections with different `seed` never share a
world. Use different seeds for training and evaluation. Here 0 to 99 are for training, 100 and above for evaluation.

Longer than 400 lines: half of them make a collection survive killed workers, which no other program needs.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numba
import numpy as np
import tyro

from wmgym import settings
from wmgym.agents import robot
from wmgym.agents.maze_walkers import random_start
from wmgym.agents.pathfinding import Region
from wmgym.agents.scripted import Walker, find_program, make_walker, world_of
from wmgym.data import recon
from wmgym.data.episode import Episode, Header, Metadata, describe_space, load_episode, read_header, save_episode
from wmgym.data.loopnav import write_trajectory
from wmgym.files import as_json, json_object, open_run_folder, write_atomically, write_png
from wmgym.openings import frame_of
from wmgym.progress import Progress
from wmgym.registration import nearest_ids
from wmgym.settings import Setting

WORLDS_PER_SEED = 1_000_000
ATTEMPTS = 10  # walks tried for one episode before giving up
FORMATS = {"episodes": ".safetensors", "loopnav": ".safetensors", "recon": recon.SUFFIX}


@dataclass(frozen=True)
class CollectArgs:
    """Collect episodes of scripted walkers in a ground-truth environment.

    Writes a folder with one file per episode and result.json. The time grows with steps, and with the time of an env step
    (`wmgym bench truth`); loop walkers repeat walks that fail. A killed run resumes: type the same command again.
    """

    env_id: Annotated[str, tyro.conf.Positional] = "Minecraft-v0"
    """Id of a ground truth, as `wmgym list` shows it."""
    walker: str | None = None
    """Walker: random, look-around, explorer, turn-loop, loop-ABA-5 ... loop-ABCA-50; in Memory Maze also oracle; in Memory Cards
    cards-random and zig-zag. Several walkers are drawn by weight: "explorer:3,look-around:1". Default: the setting's, which is
    explorer in Minecraft and Memory Maze, cards-random in Memory Cards."""
    steps: int = 10_000
    """Total number of steps. A later run with a larger number adds episodes to the same folder."""
    out: Path = Path("data/episodes")
    """Folder for the episodes."""
    seed: int = 0
    """Seed of worlds and walkers. Different seeds never share a world. Convention: below 100 for training, from 100 for evaluation."""
    episode_length: int = 500
    """Steps per episode of walkers without an end of their own (random, explorer)."""
    processes: int = 0
    """Number of processes; 0: one per core."""
    env_kwargs: str = "{}"
    """Keywords for the environment, as JSON: '{"size": 128}'."""
    preview: bool = False
    """Write preview.png, with one row per episode for the first episodes, time from left to right."""
    worlds: int | None = None
    """Number of different worlds; default: one per episode. In shared worlds, walks start at different places."""
    format: str = "episodes"
    """File format: episodes; loopnav: episodes, and also videos and rows in LoopNav's released layout in OUT/loopnav (loop walkers only);
    or recon: RECON's released layout (HDF5, JPEGs, odometry at 4 Hz), Minecraft only."""
    depth: bool = False
    """Also store depth images (metres along the optical axis). Available for Minecraft-v0 with backend voxel and for Memory Maze, not with
    format recon."""

    def __post_init__(self) -> None:
        for name in ("steps", "episode_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("seed", "processes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.worlds is not None and not 1 <= self.worlds <= WORLDS_PER_SEED:
            raise ValueError(f"worlds must be between 1 and {WORLDS_PER_SEED}, got {self.worlds}")
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.depth and self.format == "recon":
            raise ValueError("format 'recon' cannot store depth: use --format episodes, or leave out --depth")
        for name in parse_walkers(self.walkers)[0]:
            find_program(name, setting_of(self.env_id).name)
            if self.format == "loopnav" and not name.startswith("loop-"):
                raise ValueError(f"format 'loopnav' is for loop walkers such as loop-ABA-5, got {name!r}")
        json_object(self.env_kwargs, "env_kwargs")

    @property
    def walkers(self) -> str:
        """The given walkers, or the setting's default."""
        return setting_of(self.env_id).walkers if self.walker is None else self.walker


def collect(args: CollectArgs, progress: bool = True) -> dict[str, Any]:
    """Collect until there are enough steps. Returns a report, which is also written to `result.json`."""
    out = Path(args.out)
    begun = time.perf_counter()
    if args.format == "recon":
        recon.check_hdf5()
    env = _make_env(args)  # before the folder is made, so that a wrong keyword leaves none
    if args.depth and "depth" not in env.metadata:
        raise ValueError(f"{args.env_id!r} with {args.env_kwargs} measures no depth; leave out --depth")
    _open_folder(out, args)
    if args.format == "recon":
        recon.write_dataset(out, robot.DATASET)
    processes = args.processes or os.cpu_count() or 1
    lengths: dict[int, Header] = {}
    reused, aborted = 0, []
    with Progress(total=args.steps, unit="step", desc="collect", disable=not progress) as bar:
        for index, new in _episodes(args, processes, lengths):
            aborted += new or []
            reused += new is None
            bar.update(lengths[index].steps)
    if args.format == "loopnav":
        for index in sorted(lengths):
            write_trajectory(load_episode(episode_path(out, index)), out / "loopnav", f"episode-{index:06d}")
    if args.preview:
        contact_sheet([episode_path(out, k, args.format) for k in sorted(lengths)], out / "preview.png")
    seconds = time.perf_counter() - begun
    steps = sum(header.steps for header in lengths.values())
    names = sorted({header.meta.walker for header in lengths.values()})
    report = {
        "out": str(out),
        "episodes": len(lengths),
        "steps": steps,
        "reused_episodes": reused,
        "walkers": {name: sum(header.meta.walker == name for header in lengths.values()) for name in names},
        "aborted_walks": sorted(aborted),
        "seconds": round(seconds, 2),
        "steps_per_second": round(steps / seconds, 1),
    }
    write_atomically(out / "result.json", as_json(report))
    return report


def episode_path(out: Path, index: int, format: str = "episodes") -> Path:
    return out / f"episode-{index:06d}{FORMATS[format]}"


def setting_of(env_id: str) -> Setting:
    """The setting of a ground truth; Minecraft's for an environment without a setting."""
    return settings.of_truth(env_id) or settings.get("minecraft")


def _without_goal(env_id: str) -> dict[str, Any]:
    """Keywords for the task "free" if the default task has a goal, since walkers choose their own goals."""
    setting = settings.of_truth(env_id)
    if setting is None or "free" not in setting.tasks:
        return {}
    return {"task": "free"} if next(iter(setting.tasks.values())).needs_goal else {}


def parse_walkers(text: str) -> tuple[tuple[str, ...], np.ndarray]:
    """ "explorer:3,look-around" -> names and probabilities."""
    names, weights = [], []
    for part in text.split(","):
        name, _, weight = part.strip().partition(":")
        try:
            value = float(weight) if weight else 1.0
        except ValueError:
            value = math.nan
        if not name or not 0 < value < math.inf:
            raise ValueError(f"walker must be names with positive weights such as 'explorer:3,look-around:1', got {part!r} in {text!r}")
        names.append(name)
        weights.append(value)
    return tuple(names), np.array(weights) / sum(weights)


def record(
    env: gym.Env, walker_name: str, seed: int, rng: np.random.Generator, length: int, somewhere: bool = False, depth: bool = False
) -> Episode:
    """One episode of a walker. `env` needs a frame (alone or as `pov`) in its observation and a pose in its info.

    A walk that fails is returned as far as it went, with the outcome in its metadata. With `somewhere` the walk begins at
    a random place of the world, not at the one that the seed gives. With `depth`, depth images are also recorded.
    """
    observation, info = env.reset(seed=seed)
    start = _random_start(env, info["pose"], rng) if somewhere else None
    if start is not None:
        observation, info = env.reset(seed=seed, options={"start": start})
    walker = make_walker(walker_name, env, rng)
    space = env.action_space
    idle = np.zeros(space.shape or (), space.dtype)
    depths = [env.unwrapped.depth()] if depth else []  # type: ignore[attr-defined]  # `metadata["depth"]` says that it has this method
    rows: list[tuple[Any, ...]] = [(_frame(observation), idle, info["pose"], 0.0, False, False)]
    while not (rows[-1][4] or rows[-1][5]) and (len(rows) <= length or not walker.open_ended):
        action = walker.act(info["pose"])
        if action is None:
            break
        observation, reward, terminated, truncated, info = env.step(action)
        rows.append((_frame(observation), action, info["pose"], reward, terminated, truncated))
        if depth:
            depths.append(env.unwrapped.depth())  # type: ignore[attr-defined]
    frames, actions, poses, rewards, ends, cuts = zip(*rows)
    spec = env.spec
    meta = Metadata(
        env_id=spec.id if spec is not None else type(env.unwrapped).__name__,
        seed=seed,
        walker=walker_name,
        env_kwargs=dict(spec.kwargs) if spec is not None else {},
        start=None if start is None else tuple(float(v) for v in start),
        segments=tuple(segment for segment in walker.segments if segment.first < len(rows)),
        outcome=_outcome(walker, bool(ends[-1] or cuts[-1])),
        action_space=describe_space(space),
        observation_space=describe_space(env.observation_space),
        depth=env.metadata["depth"] if depth else None,
    )
    return Episode(
        frames=np.stack(frames),
        actions=np.asarray(actions, np.float32 if np.issubdtype(space.dtype, np.floating) else np.int64),
        poses=np.asarray(poses, np.float32),
        rewards=np.asarray(rewards, np.float32),
        terminated=np.asarray(ends, np.bool_),
        truncated=np.asarray(cuts, np.bool_),
        meta=meta,
        depth=np.stack(depths) if depth else None,
    )


def contact_sheet(paths: list[Path], file: Path, rows: int = 12, columns: int = 16) -> None:
    """An image of the first episodes: one row per episode, time from left to right."""
    lines = []
    for path in paths[:rows]:
        drive = recon.read_trajectory(path) if path.suffix == recon.SUFFIX else None
        episode = load_episode(path) if drive is None else None
        index = np.linspace(0, len(drive or episode or ()) - 1, columns).round().astype(int)
        frames = drive.frames(index, 64) if drive is not None else episode.frames[index]  # type: ignore[union-attr]
        lines.append(np.concatenate([np.pad(frame, ((1, 1), (1, 1), (0, 0))) for frame in frames], 1))
    write_png(file, np.concatenate(lines, 0))


def _outcome(walker: Walker, over: bool) -> str:
    """Whether a walk failed: the environment ended the episode before the walker had finished. Endless walkers cannot fail."""
    if walker.outcome != "running":
        return walker.outcome
    return "aborted: the environment ended the episode" if over and not walker.open_ended else "done"


def _frame(observation: Any) -> np.ndarray:
    return np.array(frame_of(observation), copy=True)


def _random_start(env: gym.Env, pose: np.ndarray, rng: np.random.Generator, reach: int = 40) -> np.ndarray | None:
    """A random pose that can be reached on foot from this one; None if the world has no map of solid cells."""
    if world_of(env) == "memory_maze":
        return random_start(env.unwrapped.ball.maze, rng)  # type: ignore[attr-defined]
    if not hasattr(env.unwrapped, "solid"):
        return None
    region = Region.around(env.unwrapped.solid, (math.floor(pose[0]), math.floor(pose[1]), math.floor(pose[2] + 0.01)), reach)
    cell = region.cell_of(pose)
    if cell is None:
        return None
    cells = region.flood(cell, 2.0 * reach).cells()
    x, y, z = cells[int(rng.integers(len(cells)))]
    yaw = int(rng.integers(-12, 12)) * math.radians(15)
    return np.array([x + 0.5, y + 0.5, z, yaw, 0.0], np.float32)


# One episode, in whatever process

_ENVS: dict[tuple[str, str, str], gym.Env] = {}  # one environment per process, kept between episodes


def _make_env(args: CollectArgs) -> gym.Env:
    key = (args.env_id, args.env_kwargs, args.format)
    if key not in _ENVS:
        defaults = _without_goal(args.env_id) | (robot.CAMERA if args.format == "recon" else {})
        try:
            _ENVS[key] = gym.make(args.env_id, disable_env_checker=True, **{**defaults, **json_object(args.env_kwargs, "env_kwargs")})
        except (gym.error.Error, TypeError) as error:
            nearest = f"; nearest: {', '.join(nearest_ids(args.env_id))}" if isinstance(error, gym.error.UnregisteredEnv) else ""
            raise ValueError(f"cannot make the environment {args.env_id!r}: {error}{nearest}") from error
    return _ENVS[key]


def _world_seed(args: CollectArgs, index: int, attempt: int) -> int:
    """Seed of the world for an attempt. Each attempt uses another world of this seed; in shared worlds it uses another place."""
    world = (index + attempt * 99_991) % WORLDS_PER_SEED if args.worlds is None else index % args.worlds
    return args.seed * WORLDS_PER_SEED + world


def _collect_one(args: CollectArgs, index: int) -> list[str]:
    """Collect and write episode `index`. Returns the walks that failed before a successful one."""
    env = _make_env(args)
    names, chances = parse_walkers(args.walkers)
    name = names[int(np.random.default_rng([args.seed, index]).choice(len(names), p=chances))]
    failures: list[str] = []
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([args.seed, index, attempt])
        world, somewhere = _world_seed(args, index, attempt), args.worlds is not None
        episode = record(env, name, world, rng, args.episode_length, somewhere, args.depth)
        if episode.meta.outcome == "done":
            path = episode_path(Path(args.out), index, args.format)
            if args.format == "recon":
                robot.save_drive(path, env, episode)
            else:
                save_episode(path, episode)
            return failures
        failures.append(f"{name} in world {episode.meta.seed}: {episode.meta.outcome.removeprefix('aborted: ')}")
    raise ValueError(f"episode {index}: {ATTEMPTS} walks in a row failed: {'; '.join(failures)}")


def _existing(args: CollectArgs, index: int) -> Header | None:
    """The episode, or None if its file is missing or damaged; it is then collected again."""
    try:
        return _header(args, index)
    except ValueError:
        return None


def _header(args: CollectArgs, index: int) -> Header:
    path = episode_path(Path(args.out), index, args.format)
    if args.format != "recon":
        return read_header(path)
    text, length, shape = recon.read_meta(path)
    return Header(Metadata.from_json(text), length, shape)


# Many episodes


def _open_folder(out: Path, args: CollectArgs) -> None:
    """Open the run folder. ValueError if it was made with other arguments."""
    if not (out / "args.json").is_file() and out.is_dir() and next(out.glob(f"episode-*{FORMATS[args.format]}"), None) is not None:
        raise ValueError(f"{out} holds episodes but no args.json to tell how they were made; use another folder")
    free = {"steps", "out", "processes", "preview", "format"}  # may differ when a run resumes
    open_run_folder(out, {**asdict(args), "walker": args.walkers}, free, {f.name: f.default for f in fields(CollectArgs)})
    for leftover in out.glob(".episode-*.tmp"):  # of a run that was killed
        leftover.unlink(missing_ok=True)


def _episodes(args: CollectArgs, processes: int, headers: dict[int, Header]) -> Iterator[tuple[int, list[str] | None]]:
    """Fill `headers` until there are enough steps. Yields each episode and its failed walks (None: the file existed already)."""
    pool: ProcessPoolExecutor | None = None
    spawn = multiprocessing.get_context("spawn")
    lives, ends = spawn.Pipe(duplex=False)  # workers exit when `ends` is closed
    running: dict[Future[list[str]], int] = {}
    index = 0

    def enough() -> bool:
        """Whether the collected steps, plus those expected from walks in progress, are enough."""
        done = sum(header.steps for header in headers.values())
        each = done / len(headers) if headers else args.episode_length
        return done + len(running) * each >= args.steps

    try:
        while True:
            while not enough() and len(running) < processes:
                header = _existing(args, index)
                if header is not None:
                    headers[index] = header
                    yield index, None
                elif processes == 1:
                    failures = _collect_one(args, index)
                    headers[index] = _header(args, index)
                    yield index, failures
                else:
                    if pool is None:
                        _warm_up(args)
                        pool = ProcessPoolExecutor(processes, spawn, initializer=_begin_worker, initargs=(lives,))
                    with _without_interrupts():
                        future = pool.submit(_collect_one, args, index)  # starts a process while there are too few
                    running[future] = index
                index += 1
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                done = running.pop(future)
                failures = future.result()
                headers[done] = _header(args, done)
                yield done, failures
        _drop_surplus(args, headers)
    except BrokenProcessPool as error:
        raise OSError(f"a collecting process died (out of memory?); run the same command again to continue: {error}") from error
    except (KeyboardInterrupt, GeneratorExit):
        ends.close()  # episodes in progress are dropped
        raise
    finally:
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        ends.close()
        lives.close()


def _drop_surplus(args: CollectArgs, headers: dict[int, Header]) -> None:
    """Delete episodes that a single process would not have started, so that the folder does not depend on the number of processes."""
    total = 0
    for index in sorted(headers):
        if total >= args.steps:
            del headers[index]
            episode_path(Path(args.out), index, args.format).unlink(missing_ok=True)
        else:
            total += headers[index].steps


def _warm_up(args: CollectArgs) -> None:
    """Compile once before the processes start. They load the result from the cache on disk."""
    env = _make_env(args)
    _, info = env.reset(seed=args.seed * WORLDS_PER_SEED)
    env.step(env.action_space.sample())
    if args.depth:
        env.unwrapped.depth()  # type: ignore[attr-defined]
    if hasattr(env.unwrapped, "solid"):
        _random_start(env, info["pose"], np.random.default_rng(0), reach=4)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Delay Ctrl-C until after the block. Processes that are started in it ignore Ctrl-C; their parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(lives: Connection) -> None:
    """Set up a worker process: one core, and exit when its parent or its run ends."""
    numba.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait_for([parent.sentinel, lives])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
