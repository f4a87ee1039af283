"""The embedded voxel engine: a seeded block world, its physics and its pictures, in numba."""
