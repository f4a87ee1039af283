"""Protocols as functions over worlds: what is dreamed, against what it is held, and how sure the numbers are."""
