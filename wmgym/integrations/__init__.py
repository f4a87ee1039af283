"""Adapters to other libraries, one file each. Only that file imports the library."""
