"""Benchmark protocols as functions over worlds: what is dreamed, what it is compared with, and how certain the numbers are.

rollout   dream recorded walks along their true actions
cells     dream, judge and store one memory on one group of walks
tables    means, intervals and paired differences of cells
loopnav, replay, recon, revisit   the protocols
speed     times
"""
