"""Ground-truth environments: the worlds that the dreams are compared with."""
