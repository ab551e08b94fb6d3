"""The benchmarks of a checkout: `python bench NAME`. What a user measures with is tender/bench/; the rest is here."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
