"""Ground-truth worlds: the simulators that the world models imagine."""
