"""How good a dream is: per-frame image metrics and honest intervals."""
