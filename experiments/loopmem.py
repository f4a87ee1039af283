"""`wmgym eval loopmem`: dream along camera paths that come back, with any number of checkpoints and memories, in one table.

Writes one folder: `args.json`, `result.json`, `table.md`, `strips.png` (the truth, and each row's dream of the first walk), and one file
per finished cell in `cells/`. A killed run resumes from those. The paths are walked in the ground truth of the checkpoints' setting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from wmgym.agents.paths import path_program
from wmgym.benchmarks import loopmem
from wmgym.benchmarks.loopmem import Features
from wmgym.benchmarks.rollout import Walk
from wmgym.experiments.support.camera_walks import returned, views_again, walks_of_path
from wmgym.experiments.support.judged import DreamArgs, encoded
from wmgym.experiments.support.pictures import check_plots, plot_strips
from wmgym.experiments.support.report import check_positive, check_seed, show_in, write_result
from wmgym.experiments.support.rows import comparisons, find_rows, row_cells, setting_of_all, untrained_row
from wmgym.files import json_object, open_run_folder, write_atomically
from wmgym.metrics import clip
from wmgym.progress import Progress
from wmgym.registration import default_checkpoint


@dataclass(frozen=True)
class LoopMemArgs(DreamArgs):
    """Dream along commanded camera paths that return to earlier views, and measure how well what comes back agrees with what was there.

    Needs checkpoints of one setting with a camera. Writes a folder with table.md, result.json and strips.png. The time grows with worlds,
    memories, paths, walks and the lengths of the paths. A killed run resumes: type the same command again.
    """

    worlds: tuple[str, ...] = (default_checkpoint("minecraft"),)
    """Checkpoints, each with the memories to compare: CHECKPOINT or CHECKPOINT=MEMORY,MEMORY; SYSTEM@CHECKPOINT runs it as another system
    that stands on its weights. Without memories: all of the system."""
    paths: tuple[str, ...] = ("aba-2", "aba-8", "ababa-2", "polygon-3-2", "pan-90", "pan-180", "pan-360", "wander-16")
    """Of aba-N, ababa-N, polygon-K-N, pan-D, wander-N, stroll-N and mirror-D: legs of N chunks of 4 steps, K legs, D degrees."""
    walks: int = 20
    """Walks of each path."""
    untrained: bool = True
    """Also a row with the first checkpoint's network and fresh weights."""
    clip: str | None = None
    """Folder of a CLIP model (config.json, model.safetensors), such as ViT-B/32, for `pac_clip`. Nothing is downloaded."""
    options: str = field(default="{}", kw_only=True)
    """The system's own keywords as JSON, such as {"memory_positions": "centroid"}; systems that do not know them are run without."""
    env_kwargs: str = "{}"
    """Keywords for the ground truth, as JSON."""
    seed: int = 100
    """Seed of worlds, walks and noise. Training uses 0 to 99 and evaluation 100 and above, so they never share a world."""
    lanes: int = 16
    """Walks dreamed in one batch."""
    out: Path = Path("runs/loopmem")
    """Folder for the results."""

    def __post_init__(self) -> None:
        if not (self.worlds and self.paths):
            raise ValueError("worlds and paths must each name at least one")
        check_positive(self, "walks", "lanes")
        check_seed(self.seed)
        json_object(self.env_kwargs, "env_kwargs")
        json_object(self.options, "options")


def evaluate(args: LoopMemArgs, progress: bool = True) -> dict[str, Any]:
    """Make the cells that are missing, then the report (also in `result.json`)."""
    check_plots()
    models = {} if args.clip is None else {"clip": clip.load(args.clip, args.device)}
    rows = find_rows(args.worlds, args)
    first = rows[0].world()
    setting = setting_of_all(rows)
    for path in args.paths:
        path_program(path, setting)  # unknown names are refused before any work
    weights, judge = sorted({row.world().provenance.weights for row in rows}), first.provenance.autoencoder
    free = {"paths", "device", "lanes", "out", "worlds"}  # change no finished cell
    open_run_folder(args.out, {**asdict(args), "weights": weights, "features": judge, "dtype": first.dtype_name}, free)
    features: dict[str, Features] = {"": partial(encoded, first), **models}
    if args.untrained:
        rows = [*rows, untrained_row(args, args.worlds[0], rows[0], args.seed)]
    found: dict[str, dict[str, Any]] = {}
    with Progress(disable=not progress, unit="frame") as bar:
        for path in args.paths:
            is_good = partial(returned, setting=setting)
            walks_of = cache(partial(walks_of_path, args.out, path, args.walks, setting, is_good, args.seed, args.env_kwargs, progress))
            score = partial(_score, walks_of, setting, features)
            found[path] = row_cells(args.out, path, rows, walks_of, score, seed=args.seed, lanes=args.lanes, progress=show_in(bar))
    summary = loopmem.summarise(found, comparisons(rows))
    shown = ["frozen", *(row.name for row in rows)]
    plot_strips(args.out, args.paths, shown)
    what = f"features of the autoencoder of {rows[0].name!r}"
    report = {"worlds": list(args.worlds), "walks": args.walks, "features": what, "clip": args.clip, **summary, "out": str(args.out)}
    write_result(args.out, report)
    write_atomically(args.out / "table.md", loopmem.markdown(summary, what).encode())
    return report


def _score(walks_of: Callable[[], Sequence[Walk]], setting: str, features: dict[str, Features], leg: np.ndarray, k: int) -> dict[str, Any]:
    walk = walks_of()[k]
    pairs, there = views_again(walk, setting)
    return loopmem.score(np.concatenate([walk.frames[: walk.split], leg]), walk, pairs[there], features)
