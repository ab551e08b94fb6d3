"""The test VM's initramfs: init.c, linked statically, and the modules it loads, as an uncompressed cpio archive.

/init, /dev, /modules/order (the names in the order to load them, one per line), /modules/NAME.ko
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .errors import KvmboxError
from .kernel import Kernel

INIT_SOURCE = Path(__file__).resolve().parent.parent / "init.c"

# Debian's cloud kernel has all of these built in, except kvm-amd, tun and overlay.
MODULES = ["virtio_pci", "virtio_console", "virtiofs", "overlay", "tun", "kvm-amd"]
INTEL_MODULES = ["ata_piix", "sr_mod", "isofs", "overlay", "tun", "kvm-intel"]

FILE = 0o100644
PROGRAM = 0o100755
DIRECTORY = 0o040755


@dataclass(frozen=True)
class Entry:
    """One file or directory of the archive. The mode includes the file type."""

    name: str
    mode: int
    data: bytes = b""


def cpio(entries: list[Entry]) -> bytes:
    """A cpio archive in the format that the kernel reads ("newc", initramfs-buffer-format.rst)."""
    archive = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += bytes(-len(archive) % 4)
        archive += entry.data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def compile_init(out: Path) -> None:
    """Compile init.c. Raises KvmboxError with the compiler's messages."""
    if not shutil.which("cc"):
        raise KvmboxError("cc is missing: apt-get install gcc libc6-dev")
    command = ["cc", "-std=c11", "-Os", "-static", "-s", "-Wall", "-Wextra", "-o", str(out), str(INIT_SOURCE)]
    # A compiler that is killed leaves its files behind. Here they are removed with the unfinished cache entry.
    environment = {**os.environ, "TMPDIR": str(out.parent)}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise KvmboxError(f"could not compile {INIT_SOURCE} (apt-get install gcc libc6-dev?):\n{done.stderr}")


def initramfs(kernel: Kernel, names: list[str], init: bytes) -> bytes:
    """The archive for this kernel, with the named modules and the modules that they need."""
    modules = kernel.modules(names)
    order = "".join(f"{name}\n" for name, _ in modules).encode()
    return cpio(
        [
            Entry("dev", DIRECTORY),
            Entry("init", PROGRAM, init),
            Entry("modules", DIRECTORY),
            Entry("modules/order", FILE, order),
            *(Entry(f"modules/{name}.ko", FILE, data) for name, data in modules),
        ]
    )
