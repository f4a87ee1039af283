"""From disk to batches: one episode schema, clips and contexts cut from it, other people's datasets converted to it."""
