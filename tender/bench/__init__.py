"""Benchmarks: `tender bench NAME`, and the base of bench/ in a checkout. A normal run uses nothing of this package."""
