"""Writes the fuzzers' first inputs, a directory a target.

elf_image   good ELFs of several shapes, and one file for every rule that refuses
hypercall   every call, with lengths, handles and addresses at the edges, in the records of fuzz_hypercall.c

Usage: python tests/fuzz/make_seeds.py DIRECTORY   (from the top of the project)
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))  # at the end: an installed tender comes first

from elf_cases import ACCEPTED, REFUSED  # noqa: E402


def hypercalls() -> Iterator[tuple[str, bytes]]:
    """A file for every number: eight records whose words are edges of handles, offsets, addresses and lengths."""
    words = (0, 1, 2, 512, 0xFFFFF, 0x100000, 0x190000, 0x1FFF00, 1 << 63, (1 << 64) - 1)
    for number in range(10):
        records = b""
        for i, (first, second) in enumerate(list(product(words, words))[number :: len(words)][:8]):
            body = struct.pack(
                "<QQQQQ", i % 4, first, 0x190000 if i % 2 else second, 512 if i % 3 else second, 0
            )
            records += struct.pack("<BxxxI", number, 0x180000 + i * 64) + body
        yield f"number-{number}", records


def main() -> int:
    """Writes one file for each case and returns the process's status."""
    if len(sys.argv) != 2:
        sys.stderr.write((__doc__ or "") + "\n")
        return 2
    targets = {
        "elf_image": [*ACCEPTED, *((name, data) for name, data, _ in REFUSED)],
        "hypercall": list(hypercalls()),
    }
    for target, seeds in targets.items():
        directory = Path(sys.argv[1]) / target
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in seeds:
            (directory / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
