"""Options of `wmgym eval recon`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from wmgym.agents.cem import NWM_CEM, NWM_HORIZON, NWM_REPEATS, CEMConfig
from wmgym.agents.objectives import IMAGE_OBJECTIVES
from wmgym.agents.proposals import DreamConfig
from wmgym.benchmarks import recon as protocol
from wmgym.experiments.support.report import check_positive, check_seed

PLANNING = "planning"
EVALUATIONS = (PLANNING, *protocol.ISOLATED)


@dataclass(frozen=True)
class ReconArgs:
    """Plan to views 2 s ahead on RECON or data in its layout, and compare the plans with what was driven.

    Needs a folder of drives, and checkpoints of setting recon (without any, only the baselines are evaluated). Writes a folder with
    table.md, result.json, paths.png, frames.png, far.png and every judged frame in images/. Before it starts, it prints how many frames
    it will dream; `wmgym bench model` measures frames per second. A killed run resumes: type the same command again.
    """

    data: Path
    """Folder of RECON's HDF5 files or of processed trajectories (wmgym collect --format recon makes one)."""
    checkpoint: tuple[str, ...] = ()
    """Paths or hub names of models of setting recon, or nwm:PATH for published NWM weights. Without any: the baselines alone."""
    system: str | None = None
    """System that runs the weights; by default each checkpoint's own."""
    modes: tuple[str, ...] | None = None
    """Memories of each checkpoint; by default its system's reference and default memory. Published weights have only none."""
    evaluations: tuple[str, ...] = (PLANNING,)
    """Of planning, time, rollout_1fps, rollout_4fps."""
    dataset: str = "recon"
    """Which published dataset the data are, unless their folder says so in dataset.json: decides the spacing and the planner's prior."""
    split: Path | None = None
    """A navigation_eval.pkl that names the tasks, with time.pkl and rollout.pkl beside it for frames far ahead (without those, tasks are
    spread over its drives). By default the split in the data's folder, or else tasks spread over all drives."""
    train_data: Path | None = None
    """Drives that the policy is trained on and the prior is measured on; by default those of --data without a task."""
    tasks: int = 100
    """How many tasks, at most."""
    context: int = 64
    """Frames that a world observes before each task, at most. NWM reads the last four."""
    objective: str = "auto"
    """Distance between a dreamed frame and the goal: lpips, dreamsim, ssim, latent. auto: the one of the folder's finished rows, else
    lpips if its weights are installed, else latent."""
    horizon: int = NWM_HORIZON
    """Steps of a plan."""
    samples: int = NWM_CEM.samples
    """CEM: candidates in each iteration."""
    elites: int = NWM_CEM.elites
    """CEM: best candidates, whose mean is the plan."""
    iterations: int = NWM_CEM.iterations
    """CEM: rounds of sampling."""
    repeats: int = NWM_REPEATS
    """Dreams of each candidate, whose costs are averaged."""
    rank: tuple[int, ...] = (16, 32)
    """Also let each world rank this many proposals of the policy; empty: no such rows."""
    policy_steps: int = 600
    """Training steps of the policy; 0: no policy."""
    seconds: tuple[int, ...] = protocol.SECONDS
    """How far ahead single frames are judged."""
    as_released: bool = False
    """Reproduce two errors of NWM's released code: rollouts lose the normalisation's offset, and displacements stay in the frame of the
    start."""
    denoise_steps: int | None = None
    """Denoising steps per frame; by default the checkpoint's."""
    seed: int = 100
    """Seed of tasks, noise and candidates."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, ..."""
    dtype: str = "auto"
    """float32 or bfloat16. auto: that of the folder's finished rows, else bfloat16 where the device multiplies it natively, else
    float32."""
    lanes: int = 4
    """Tasks planned in one batch."""
    at_once: int = 512
    """Dreams in one batch, at most."""
    out: Path = Path("runs/recon")
    """Folder for the results."""

    def __post_init__(self) -> None:
        for names, known in ((self.evaluations, EVALUATIONS), ((self.objective,), ("auto", *IMAGE_OBJECTIVES))):
            for name in names:
                if name not in known:
                    raise ValueError(f"must be one of {', '.join(known)}, got {name!r}")
        check_positive(self, "tasks", "context", "horizon", "repeats", "lanes", "at_once", "rank", "seconds")
        if self.horizon < 2:
            raise ValueError(f"horizon must be at least 2 (an RPE compares successive steps), got {self.horizon}")
        if self.policy_steps < 0:
            raise ValueError(f"policy_steps must not be negative, got {self.policy_steps}")
        check_seed(self.seed)
        _ = self.cem

    @property
    def cem(self) -> CEMConfig:
        return replace(NWM_CEM, samples=self.samples, elites=self.elites, iterations=self.iterations)

    @property
    def dreams(self) -> DreamConfig:
        return DreamConfig(self.repeats, self.at_once, self.as_released)
