"""Benchmark protocols as functions over worlds: what is dreamed, what it is compared with, and how certain the numbers are.

rollout   dream recorded walks along their true actions
cells     dream, judge and store one memory on one group of walks
tables    means, intervals and paired differences of cells
loopnav, replay, recon, revisit, loopmem, known, mirror, landmarks   the protocols
judges, vision_judges   marks for a landmark that must still be there, from the ground truth or from a model
speed, training, memorising   times
"""
