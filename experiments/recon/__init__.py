"""`wmgym eval recon`: NWM's planning table on RECON, or on data in its layout, and single frames far ahead.

args       the options
drives     the data: drives, tasks, and drives without a task
methods    what is compared: baselines, a policy, and each checkpoint with each memory
rows       one row per task: plans, and frames far ahead
cells      rows on disk, from which a killed run resumes
pictures   every judged frame as a file, and plots
program    the run and its report
"""

from wmgym.experiments.recon.args import ReconArgs
from wmgym.experiments.recon.program import evaluate

__all__ = ["ReconArgs", "evaluate"]
