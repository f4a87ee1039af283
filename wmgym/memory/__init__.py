"""Memories: each one is `init / read / write` over a value. A memory hands the network a `Context` and nothing else."""
