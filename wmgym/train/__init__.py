"""Training: one loop, and what it fits."""
