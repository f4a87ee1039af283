"""Memories: `init / read / write` over a value. What a memory gives the network is a `Context`."""
