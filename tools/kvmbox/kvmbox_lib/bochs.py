"""The Intel test VM as a process: Bochs. Its processor has VMX with EPT, so Debian's kvm_intel loads.

    kvmbox ──pty─── COM2: the frames of channel.py ────┐
           ──file── COM1: console, shown on failure ───┤ Bochs ── CD-ROM: the disc of disc.py
           ──pty ×2─ its messages, and its screen ─────┘

It has one processor, no virtio, and runs about 70 million instructions per second. Bochs' exit status means nothing.
A VM ends when the frame with the command's status comes. kvmbox then kills Bochs.
"""

import os
import pty
import re
import secrets
import shutil
import subprocess
import threading
import time
import tty
from dataclasses import dataclass
from pathlib import Path

from . import disc
from .channel import Channel, Kind, fields
from .errors import KvmboxError
from .machine import LOG_SHOWN, die_with_parent

BOOT_LIMIT_S = 900.0  # a boot takes a minute on an idle machine, and longer on a busy one
MODELS = {
    "intel": "corei7_skylake_x",
}
BIOS = Path("/usr/share/bochs/BIOS-bochs-latest")
VGA_BIOS = Path("/usr/share/bochs/VGABIOS-lgpl-latest")
TERMINAL_PLUGIN = Path("/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so")
PROGRAMS = {"bochs": "bochs", "xorriso": "xorriso", "cc": "gcc libc6-dev", "zstd": "zstd"}
FILES = {
    BIOS: "bochsbios",
    VGA_BIOS: "vgabios",
    TERMINAL_PLUGIN: "bochs-term",
    disc.ISOLINUX[0]: "isolinux",
    disc.ISOLINUX[1]: "syslinux-common",
}
PANIC = re.compile(rb"PANIC: |Kernel panic")
SCREEN = re.compile(rb'screen "(/dev/pts/\d+)"')
# Linux in the test VM takes this number of instructions for one second.
IPS = 100_000_000

KERNEL_ARGUMENTS = " ".join(
    (
        "console=ttyS0,115200 earlyprintk=serial,ttyS0,115200 quiet panic=-1",
        "norandmaps cryptomgr.notests=1 mitigations=off nokaslr audit=0 nowatchdog",
        "nosmp acpi=off tsc=reliable no_timer_check random.trust_cpu=on",
        "KVMBOX_CHANNEL=ttyS1 KVMBOX_DISC=/dev/sr0",
    )
)


@dataclass(frozen=True)
class BochsShape:
    """The properties by which Intel test VMs differ."""

    cpu: str
    mem_mib: int
    ept: bool

    def kernel_arguments(self) -> str:
        """The kernel's command line. init.c passes the last word to kvm_intel."""
        return f"{KERNEL_ARGUMENTS} KVMBOX_KVM_INTEL=ept={int(self.ept)}"


def configuration(shape: BochsShape, image: Path, place: Path, channel: str) -> str:
    """Bochs' configuration file. This file and the disc define the test VM completely."""
    return f"""\
config_interface: textconfig
display_library: term
cpu: model={MODELS[shape.cpu]}, count=1, ips={IPS}, reset_on_triple_fault=0
memory: guest={shape.mem_mib}, host={shape.mem_mib}
romimage: file={BIOS}
vgaromimage: file={VGA_BIOS}
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path={image}, status=inserted
boot: cdrom
clock: sync=none, time0=local
log: {place}/log
com1: enabled=1, mode=file, dev={place}/console
com2: enabled=1, mode=term, dev={channel}
panic: action=report
error: action=report
"""


def require_programs() -> None:
    """Raises a KvmboxError that names all packages to install."""
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    missing += [package for path, package in FILES.items() if not path.exists()]
    if missing:
        raise KvmboxError(f"programs are missing: apt-get install {' '.join(dict.fromkeys(missing))}")
    if os.geteuid() != 0:
        raise KvmboxError("only root can copy all files that a command may need: run kvmbox as root")


class Terminal:
    """Our end of a pseudo terminal, with the methods that channel.py needs."""

    def __init__(self) -> None:
        self._end, theirs = pty.openpty()
        tty.setraw(theirs)
        self.name = os.ttyname(theirs)
        self.theirs = theirs  # stays open, because Bochs opens the terminal by its name

    def fileno(self) -> int:
        return self._end

    def sendall(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._end, data[:1024]) :]

    def recv(self, size: int) -> bytes:
        try:
            return os.read(self._end, size)
        except OSError:  # EIO: no process has the other end open
            return b""

    def close(self) -> None:
        os.close(self._end)
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1


def _drain(fd: int) -> None:
    """Read until the other end is closed."""
    try:
        while os.read(fd, 65536):
            pass
    except OSError:  # EIO: Bochs has ended
        pass
    os.close(fd)


class BochsMachine:
    """One Intel test VM. Leaving the context ends it and everything that belongs to it."""

    def __init__(self, shape: BochsShape, place: Path) -> None:
        self._shape = shape
        self._place = place
        self._line, self._screen = Terminal(), Terminal()
        self._process: subprocess.Popen[bytes] | None = None
        self.channel = Channel(self._line)

    def __enter__(self) -> "BochsMachine":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
        if isinstance(error, KvmboxError):
            error.add_note(self._diagnosis())
        self._screen.close()
        self._line.close()

    def start(self, image: Path) -> None:
        """Start Bochs. The test VM boots from the disc `image`."""
        (self._place / "bochsrc").write_text(configuration(self._shape, image, self._place, self._line.name))
        # Debian's Bochs starts in its debugger, which waits for a command: continue.
        (self._place / "commands").write_text("c\n")
        command = ["bochs", "-q", "-f", str(self._place / "bochsrc"), "-rc", str(self._place / "commands")]
        self._process = subprocess.Popen(
            command,
            stdin=self._screen.theirs,
            stdout=self._screen.theirs,
            stderr=self._screen.theirs,
            env={**os.environ, "TERM": "linux"},
            cwd=self._place,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
        threading.Thread(target=self._read_screen, daemon=True).start()

    def _read_screen(self) -> None:
        """Keep Bochs' messages, and read and discard what Bochs draws.

        Bochs draws on a terminal that it makes itself, and prints that terminal's name here. It stops when some
        kilobytes of the drawing have not been read.
        """
        said = b""
        drawn = -1
        with open(self._place / "screen", "wb", buffering=0) as shown:
            while data := self._screen.recv(65536):
                shown.write(data)
                if drawn < 0:
                    said += data
                    if found := SCREEN.search(said):
                        drawn = os.open(found[1], os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
                        tty.setraw(drawn)  # without echo, which would be input from Bochs' keyboard
                        threading.Thread(target=_drain, args=(drawn,), daemon=True).start()

    def await_boot(self) -> None:
        """Wait until init.c has loaded KVM and the disc is the root. Raises KvmboxError if that fails."""
        self.channel.expect_ready(BOOT_LIMIT_S, self._panic)
        values = [str(time.time_ns()), secrets.token_hex(32)]
        self.channel.send(Kind.SETUP, fields(os.fsencode(value) for value in values))
        self.channel.expect_ready(BOOT_LIMIT_S, self._panic)

    def _panic(self) -> str:
        """Why the kernel has stopped for ever, or "". An early exception halts the processor after its message."""
        console = self._place / "console"
        said = console.read_bytes() if console.exists() else b""
        return "the test VM's kernel panicked" if PANIC.search(said) else ""

    def _diagnosis(self) -> str:
        shown = []
        for name in ("console", "log", "screen"):
            path = self._place / name
            if path.exists():
                text = path.read_bytes()[-LOG_SHOWN:].decode(errors="replace").strip()
                shown.append(f"--- {name}:\n{text}")
        return "\n".join(shown)
