"""The Intel test VM as a process: Bochs, whose processor has VMX with EPT, so that Debian's kvm_intel loads.

    kvmbox ──pty── COM2: the frames of channel.py ──┐
           ──file─ COM1: console, on failure only ──┤ Bochs ── CD-ROM: disc.py's
           ──pty── its words and its screen, two ───┘

It has one processor, no virtio and some 70 million instructions a second. Bochs' exit status says nothing: a VM
ends by the frame with the command's status, and Bochs is then killed.
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

BOOT_LIMIT_S = 900.0  # a minute when idle; other loads on the machine stretch it
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
# What Linux in the test VM takes for the time: instructions by this number are a second.
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
    """What makes one Intel test VM unlike another."""

    cpu: str
    mem_mib: int
    ept: bool

    def kernel_arguments(self) -> str:
        """The kernel's command line; init.c hands the last word to kvm_intel."""
        return f"{KERNEL_ARGUMENTS} KVMBOX_KVM_INTEL=ept={int(self.ept)}"


def configuration(shape: BochsShape, image: Path, place: Path, channel: str) -> str:
    """Bochs' configuration file; it and the disc decide what the test VM is."""
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
    """Raises KvmboxError that names all packages to install."""
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    missing += [package for path, package in FILES.items() if not path.exists()]
    if missing:
        raise KvmboxError(f"programs are missing: apt-get install {' '.join(dict.fromkeys(missing))}")
    if os.geteuid() != 0:
        raise KvmboxError("only root can copy all files that a command may need: run it as root")


class Terminal:
    """Our end of a pseudo terminal, as channel.py wants it."""

    def __init__(self) -> None:
        self._end, theirs = pty.openpty()
        tty.setraw(theirs)
        self.name = os.ttyname(theirs)
        self.theirs = theirs  # held open: Bochs opens it by its name

    def fileno(self) -> int:
        return self._end

    def sendall(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._end, data[:1024]) :]

    def recv(self, size: int) -> bytes:
        try:
            return os.read(self._end, size)
        except OSError:  # EIO: nobody has the other end
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
    """One Intel test VM; leaving it as a context ends it and all that belongs to it."""

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
        """Start Bochs; the test VM boots from the disc `image`."""
        (self._place / "bochsrc").write_text(configuration(self._shape, image, self._place, self._line.name))
        (self._place / "commands").write_text(
            "c\n"
        )  # Debian's Bochs has its debugger on, and waits for a word
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
        """Keep what Bochs says, and read away what it draws: it draws on a terminal of its own making, names that
        here, and stands still once nobody has read some kilobytes of it."""
        said = b""
        drawn = -1
        with open(self._place / "screen", "wb", buffering=0) as shown:
            while data := self._screen.recv(65536):
                shown.write(data)
                if drawn < 0:
                    said += data
                    if found := SCREEN.search(said):
                        drawn = os.open(found[1], os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
                        tty.setraw(drawn)  # no echo: it would be Bochs' keyboard
                        threading.Thread(target=_drain, args=(drawn,), daemon=True).start()

    def await_boot(self) -> None:
        """Until init.c has loaded KVM and the disc is the root; raises KvmboxError if that fails."""
        self.channel.expect_ready(BOOT_LIMIT_S, self._panic)
        values = [str(time.time_ns()), secrets.token_hex(32)]
        self.channel.send(Kind.SETUP, fields(os.fsencode(value) for value in values))
        self.channel.expect_ready(BOOT_LIMIT_S, self._panic)

    def _panic(self) -> str:
        """A kernel that stands still, and for good, has said so: an early exception halts the processor."""
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
