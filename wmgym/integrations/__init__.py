"""Adapters to other libraries, one file each; the library is imported in that file only."""
