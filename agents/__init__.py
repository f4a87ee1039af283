"""Things that act: scripted walkers, planners, learners."""
