"""Training: a loop that all systems share, and their objectives."""
