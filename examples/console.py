"""Shows two ways to get a guest's console: captured as a whole, and each write as it comes.

python examples/console.py app.elf
"""

import sys

from tender import CAPTURE, Image, Vm, VmConfig


def captured(image: Image) -> bytes:
    """Returns all that the guest wrote. Only the last MiB is kept; counters tell what was lost."""
    with Vm(image, VmConfig(mem=16), console=CAPTURE) as vm:
        result = vm.run(timeout=60).check()
    assert result.console is not None  # with CAPTURE it is bytes
    return result.console


def line_by_line(image: Image) -> list[str]:
    """Returns the same text as lines. The callable runs on the thread that runs the VM."""
    lines: list[str] = []
    rest = b""

    def write(data: bytes) -> None:
        nonlocal rest
        *whole, rest = (rest + data).split(b"\n")
        lines.extend(line.decode("utf-8", "replace") for line in whole)

    with Vm(image, VmConfig(mem=16), console=write) as vm:
        vm.run(timeout=60).check()
    return lines


def main(path: str) -> None:
    with Image.open(path) as image:
        print(f"captured {len(captured(image))} bytes")
        for number, line in enumerate(line_by_line(image), start=1):
            print(f"{number}: {line}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(sys.argv[1])
