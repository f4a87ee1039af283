"""Episodes on disk and in memory: one episode format, readers of published datasets, and latents for training."""
