"""Metrics: per-frame image errors, trajectory errors, rare events, and confidence intervals."""
