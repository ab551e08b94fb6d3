"""Benchmarks: `tender bench NAME`, and bench/ in a checkout. Nothing here is on the path of a run."""
