"""Ground-truth environments, against which dreams are measured."""
