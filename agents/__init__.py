"""Agents: scripted walkers, planners and learners."""
