"""Noise and how to remove it. Knows nothing of video."""
