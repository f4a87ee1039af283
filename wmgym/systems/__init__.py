"""One file per system: what it is made of, its presets, and how it is built."""
