"""The embedded voxel engine: a seeded block world, its physics and its renderer, compiled by numba."""
