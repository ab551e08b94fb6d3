"""Writes the fuzzer's first inputs: good ELFs of several shapes, and one file for every rule that refuses.

Usage: python tests/fuzz/make_seeds.py DIRECTORY   (from the top of the project)
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))  # at the end: an installed tender comes first

from elf_cases import ACCEPTED, REFUSED  # noqa: E402


def main() -> int:
    """Writes one file for each case and returns the process's status."""
    if len(sys.argv) != 2:
        sys.stderr.write((__doc__ or "") + "\n")
        return 2
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in [*ACCEPTED, *((name, data) for name, data, _ in REFUSED)]:
        (directory / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
