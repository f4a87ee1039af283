"""The run: which rows are missing, making them, and the report."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from wmgym import systems
from wmgym.benchmarks import recon as protocol
from wmgym.diffusion.samplers import evaluations as network_evaluations
from wmgym.experiments.recon import pictures
from wmgym.experiments.recon.args import PLANNING, ReconArgs
from wmgym.experiments.recon.cells import Cells
from wmgym.experiments.recon.drives import Drives
from wmgym.experiments.recon.methods import COPY, LINE, TOLD, Method, Methods
from wmgym.experiments.recon.rows import Made, Maker, far_names
from wmgym.experiments.support.pictures import check_plots
from wmgym.experiments.support.report import write_result
from wmgym.files import open_run_folder, write_atomically
from wmgym.metrics.image import available, lpips_available
from wmgym.progress import Progress

FREE = frozenset("checkpoint modes evaluations rank objective device dtype lanes at_once out".split())  # decide no row, or its cell tells


def evaluate(args: ReconArgs, progress: bool = True) -> dict[str, Any]:
    """Make the rows that are missing, then the report (also in `result.json`)."""
    check_plots()
    drives, cells = Drives(args, progress), Cells(args.out / "cells")
    dtype = (cells.told("dtype") or "auto") if args.dtype == "auto" else args.dtype
    methods = Methods(args, drives.dataset.displacement, dtype)
    objective = args.objective
    if objective == "auto":
        objective = cells.told("objective") or ("lpips" if lpips_available() else "latent")
    maker = Maker(args, drives, methods, objective, tuple(cells.told("metrics") or available()), progress)
    wanted = [(evaluation, method) for evaluation in dict.fromkeys(args.evaluations) for method in methods.of(evaluation)]
    for evaluation, method in wanted:
        cells.check(f"{evaluation} {method.name}", maker.made_with(evaluation, method))
    open_run_folder(args.out, asdict(args), FREE | ({"tasks"} if args.train_data is not None else set()))
    if progress:
        print(f"recon: {_what_it_takes(maker, cells, wanted)}", file=sys.stderr)
        if warning := _warning(args, drives):
            print(f"recon: {warning}", file=sys.stderr)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {evaluation: {} for evaluation in args.evaluations}
    for evaluation, method in wanted:
        found[evaluation][method.name] = _rows(maker, cells, evaluation, method)
    _draw(args, drives, found)
    return _report(maker, found)


def _what_it_takes(maker: Maker, cells: Cells, wanted: list[tuple[str, Method]]) -> str:
    """What there is to do, said before hours go by."""
    frames = passes = rows = 0
    for evaluation, method in wanted:
        tasks = maker.drives.tasks(evaluation)
        left = len(tasks) - len(cells.rows(f"{evaluation} {method.name}", tasks))
        dreamed = left * maker.frames(evaluation, method)
        rows += left > 0
        frames += dreamed
        if dreamed:
            sampler = maker.methods.world(method).settings.sampler
            passes += dreamed * network_evaluations(sampler.name, sampler.denoise_steps)
    return f"{rows} rows to make, {frames:,} frames to dream, {passes:,} network evaluations"


def _warning(args: ReconArgs, drives: Drives) -> str:
    """Published weights were trained on most of the drives of their dataset."""
    spread = [name for name in dict.fromkeys(args.evaluations) if drives.split_file(name) is None]
    if not spread or not any(map(systems.loader_of, args.checkpoint)) or (args.data / "traj_names.txt").is_file():
        return ""
    return (
        f"Published weights are evaluated here ({', '.join(spread)}) on drives that they may have learned from: there is neither a split "
        f"(navigation_eval.pkl, time.pkl, rollout.pkl) nor a traj_names.txt of test drives in {args.data}."
    )


def _rows(maker: Maker, cells: Cells, evaluation: str, method: Method) -> list[dict[str, Any]]:
    """A row per task. Rows that are in the cell's file are not made again."""
    name, tasks, made_with = f"{evaluation} {method.name}", maker.drives.tasks(evaluation), maker.made_with(evaluation, method)
    rows = cells.rows(name, tasks)
    each = maker.frames(evaluation, method)
    unit, each = ("frame", each) if each else ("task", 1)
    with Progress(total=each * len(tasks), initial=each * len(rows), desc=name, unit=unit, disable=not maker.progress) as bar:
        while len(rows) < len(tasks):
            rows += maker.rows(evaluation, method, tasks[len(rows) : len(rows) + maker.args.lanes], bar.update)
            cells.write(name, made_with, rows)
            bar.update(each * len(rows) - bar.n)  # a world has reported all of them by then
    return rows


def _draw(args: ReconArgs, drives: Drives, found: Made) -> None:
    planning, far = found.get(PLANNING, {}), {name: rows for name, rows in found.items() if name != PLANNING}
    if planning:
        pictures.plot_paths({name: rows for name, rows in planning.items() if name != TOLD}, args.out / "paths.png")
        pictures.plot_plans(args.out, drives.tasks(PLANNING), list(planning))
    if far:
        worlds = {name: [method for method in rows if method != COPY] for name, rows in far.items()}
        shown = {name: (drives.tasks(name)[0], far_names(name, args.seconds), methods) for name, methods in worlds.items()}
        pictures.plot_far(args.out, shown, args.seconds)


def _report(maker: Maker, found: Made) -> dict[str, Any]:
    args, drives = maker.args, maker.drives
    planning, far = found.get(PLANNING, {}), {name: rows for name, rows in found.items() if name != PLANNING}
    references = (LINE, COPY, *(method.name for method in maker.methods.planning if method.is_reference))
    summary, warning = protocol.summarise(planning, far, references), _warning(args, drives)
    about = (
        f"Data `{args.data}` ({drives.dataset.name}, {len(drives.paths)} trajectories, spacing {drives.dataset.displacement.spacing:g} m). "
        f"CEM: {args.samples} candidates, {args.elites} elites, {args.iterations} iteration(s), {args.repeats} dreams each, "
        f"horizon {args.horizon}; objective {maker.objective}. Means with 95 % bootstrap intervals over drives."
    )
    report = {
        "data": str(args.data),
        "dataset": drives.dataset.name,
        "spacing_m": drives.dataset.displacement.spacing,
        "objective": maker.objective,
        "prior": maker.prior_name if planning else "not used",
        "tasks_from": {name: str(drives.split_file(name) or "spread over the trajectories") for name in found},
        "frame_metrics": ", ".join(maker.metrics),
        "as_released": args.as_released,
        **({"warning": warning} if warning else {}),
        **summary,
        "out": str(args.out),
    }
    write_result(args.out, report)
    text = f"**{warning}**\n\n{about}" if warning else about
    write_atomically(args.out / "table.md", protocol.markdown(summary, text).encode())
    return report
