"""LoopNav (Lian et al. 2025): observe a place, walk away, dream the way back, and compare the dream with the truth.

    exploration, observed            the way back, dreamed along the true actions
    A --------------> B [--> C]      ------------------------------------------> A

Courses are "ABA" and "ABCA" at a range in blocks, and "turn", a loop that only turns. Each dream is judged frame by frame (PSNR, SSIM,
and LPIPS where its weights are installed). A loop's score is the mean over its leg; a course's score is the mean over loops with a
bootstrap 95 % interval. `cells.py` makes and stores the scores, `tables.py` summarises them.

The released scripts contradict each other. This protocol differs from them as follows:

* Terminal frames are the last 21, 31, 61, 101 at the paper's 20 frames/s. One step here is 0.2 s, so they are a quarter, rounded up.
* The walker stands still for 3 s after its arrival. LoopNav's recorder drops idle ticks, so those frames are not judged here.
* PSNR of equal frames is infinite; it counts as 60 dB (`metrics.image.BEST_PSNR`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wmgym.benchmarks.rollout import Walk
from wmgym.benchmarks.tables import Group
from wmgym.data.episode import RETURN, Episode, Header, episodes_below, load_episode, read_header

TASKS = ("turn", "ABA", "ABCA")
RANGES = (5, 15, 30, 50)  # blocks
TERMINAL = {5: 21, 15: 31, 30: 61, 50: 101}  # frames at the end of the leg, at PAPER_RATE
PAPER_RATE, RATE = 20, 5  # frames per second: LoopNav's, ours
PREFACE = """\
# LoopNav

Means over loops with 95 % bootstrap intervals over loops. PSNR in dB; `drift` is the distance in blocks between the dreamed and the true
pose at the end of the leg. Terminal frames are the last 21, 31, 61, 101 at the paper's 20 frames/s: 6, 8, 16, 26 of our steps of 0.2 s.
`copy` repeats the last observed frame (for the next frame: the one before); `ceiling` is the autoencoder's reconstruction of the truth.
"""


KNOWN = """
`splatting` draws all observed pixels into the view, by true depth and poses; unseen pixels have the mean colour of their row.
`true history` is the leg with every frame made from the true frames before it.
"""


@dataclass(frozen=True, order=True)
class Course:
    """A task at a range."""

    task: str
    range: int | None  # blocks; None for "turn"

    @property
    def name(self) -> str:
        return self.task if self.range is None else f"{self.task}-{self.range}"

    @property
    def walker(self) -> str:
        """The walker that walks it, by the name in an episode's metadata."""
        return "turn-loop" if self.task == "turn" else f"loop-{self.name}"

    @property
    def terminal(self) -> int | None:
        """How many frames at the end of the leg are also scored alone."""
        return None if self.range not in TERMINAL else math.ceil(TERMINAL[self.range] * RATE / PAPER_RATE)

    @property
    def group(self) -> Group:
        """Its rows in the tables."""
        return Group(self.name, {"task": self.task, "range": self.range}, self.terminal)


def courses(tasks: Sequence[str] = TASKS, ranges: Sequence[int] = RANGES) -> tuple[Course, ...]:
    """Every task at every range; "turn" has none."""
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    for reach in ranges:
        if reach not in RANGES:
            raise ValueError(f"range must be one of {', '.join(map(str, RANGES))}, got {reach}")
    pairs = [(task, reach) for task in tasks for reach in ((None,) if task == "turn" else ranges)]
    return tuple(Course(task, reach) for task, reach in dict.fromkeys(pairs))


def loop_of(episode: Episode) -> Walk:
    """An episode cut where the way back begins, and where it ends; ValueError if the episode is no loop."""
    split = episode.return_first
    if split is None or split < 1:
        raise ValueError(f"the episode of walker {episode.meta.walker!r} is no loop: it has no frames before a {RETURN!r} segment")
    end = next((s.first for s in episode.meta.segments if s.first > split and s.name != RETURN), len(episode))
    depth = None if episode.depth is None else episode.depth[:end]
    return Walk(episode.frames[:end], episode.actions[:end], episode.poses[:end], split, episode.meta.seed, depth, episode.meta.depth)


def find_loops(folder: Path, wanted: Sequence[Course], count: int) -> dict[Course, list[Path]]:
    """The first `count` completed loops of each course in a folder and its subfolders; ValueError if there are fewer."""
    by_walker: dict[str, list[Path]] = {}
    for path in episodes_below(folder):
        header = read_header(path)
        if _is_loop(header):
            by_walker.setdefault(header.meta.walker, []).append(path)
    found = {course: by_walker.get(course.walker, [])[:count] for course in wanted}
    for course, paths in found.items():
        if len(paths) < count:
            collect = f"`wmgym collect Minecraft-v0 --walker {course.walker} --seed 100 --out {folder}/{course.walker}`"
            raise ValueError(f"{folder} holds {len(paths)} loops of {course.name}, {count} are asked for; collect more with {collect}")
    return found


def _is_loop(header: Header) -> bool:
    return header.meta.outcome == "done" and any(s.name == RETURN and s.first > 0 for s in header.meta.segments)


def read_loops(paths: Iterable[Path], *, depth: bool = False) -> list[Walk]:
    """depth: with their depth images; ValueError if they have none."""
    return [loop_of(load_episode(path, depth=depth)) for path in paths]
