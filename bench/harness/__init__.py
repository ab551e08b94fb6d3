"""The benchmarks of a checkout: `python bench NAME`. An installed Tender has only the part in tender/bench/."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
