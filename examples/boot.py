"""Boots one unikernel. Its console is this program's output, and its status is this program's.

python examples/boot.py app.elf [ARGUMENT ...]
"""

import sys

import tender


def main(path: str, *args: str) -> int:
    config = tender.VmConfig(mem=64, args=args)
    result = tender.run(path, config, timeout=60)
    ms = result.boot.since_start_ms("first_console")
    print(f"ended: {result.reason}, status {result.status}", file=sys.stderr)
    print(f"ran on {result.backend}, first output after {ms} ms", file=sys.stderr)
    return result.status


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(main(*sys.argv[1:]))
