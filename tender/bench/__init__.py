"""Benchmarks: `tender bench NAME`, and bench/ in a checkout. Nothing here is on the run road."""
