"""Gives a guest a disk: it writes it, and a second guest reads it.

python examples/disk.py disk.elf disk.img

The file is made if it does not exist. Its content is overwritten.
"""

import os
import sys

from tender import BlockFile, Image, VmConfig, VmResult, run

DISK_BYTES = 1 << 20


def main(path: str, disk: str) -> None:
    with open(disk, "ab") as file:
        os.ftruncate(file.fileno(), DISK_BYTES)

    def boot(device: BlockFile, *args: str) -> VmResult:
        config = VmConfig(mem=16, args=args, block={"storage": device})
        return run(image, config, timeout=60).check()

    with Image.open(path) as image:
        print([f"{it.kind} {it.name}" for it in image.devices])
        wrote = boot(BlockFile(disk)).counters
        read = boot(BlockFile(disk, read_only=True), "--verify").counters
    print(f"{wrote.block_write_bytes} bytes written, {read.block_read_bytes} bytes read")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(*sys.argv[1:])
