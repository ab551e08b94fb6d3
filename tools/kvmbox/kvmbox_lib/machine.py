"""The test VM as processes: QEMU, and virtiofsd, which serves the host's / to it.

    kvmbox ──socketpair── QMP monitor ─────────┐
           ──socketpair── virtio-serial port ──┤ QEMU ──unix socket── virtiofsd
           ──memfd─────── RAM, shared ─────────┘  (vhost-user: it reads the test VM's RAM)
           ──memfd─────── serial console, shown on failure only

Nothing here has a name in a file system, so kvmbox leaves nothing behind, however it ends: QEMU
gets SIGKILL when its parent dies, and virtiofsd ends with its connection to QEMU.
"""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .channel import Channel, Kind, fields
from .errors import KvmboxError
from .monitor import Monitor

BOOT_LIMIT_S = 300.0  # a boot takes 5 s on an idle machine, 20 s with --icount, and longer on a busy machine
ROOT_LIMIT_S = 300.0
LOG_SHOWN = 3000  # bytes of each log
ROOT_PORT = "share"
PR_SET_PDEATHSIG = 1  # linux/prctl.h

KERNEL_ARGUMENTS = " ".join(
    (
        "console=ttyS0 quiet panic=-1",
        "norandmaps",  # TCG finds translated code by virtual address, so ASLR makes every exec three times slower
        "cryptomgr.notests=1",  # 0.9 s of self-tests
        "mitigations=off nokaslr audit=0 nowatchdog",
        "tsc=reliable no_timer_check rcupdate.rcu_expedited=1 random.trust_cpu=on",
    )
)

# Where virtiofsd may be. Debian 12's is in C and a part of qemu-system-common. Later ones are in Rust, in a package of
# their own, with other options. Debian 13 has a link to it at the first of these paths.
VIRTIOFSDS = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "virtiofsd")


@dataclass(frozen=True)
class Shape:
    """The properties by which VMs differ."""

    qemu: str
    mem_mib: int
    smp: int
    icount: bool
    tsc_mhz: int  # of the counter that the kernel's clock counts, see tsc.py

    def qemu_path(self) -> Path:
        """Raises KvmboxError if there is no such program."""
        path = shutil.which(self.qemu)
        if path is None:
            raise KvmboxError(f"{self.qemu} is missing: apt-get install qemu-system-x86")
        return Path(path)


@dataclass(frozen=True)
class BootFiles:
    """A cache entry of kind "boot"."""

    vmlinux: Path
    initrd: Path


@dataclass(frozen=True)
class Wires:
    """The descriptors that QEMU inherits."""

    ram: int
    channel: int
    monitor: int
    console: int
    share: int | None  # to virtiofsd; None for a VM that is made for a snapshot


def qemu_command(shape: Shape, files: BootFiles, wires: Wires, incoming: bool) -> list[str]:
    """QEMU's command line. It defines the test VM completely."""
    # QEMU 7.2 reads the stack of a far return with supervisor's rights, in whatever ring the return is made. With SMAP,
    # a `lret` of a program, or of tender-sandbox's guest, then causes an oops of the kernel.
    cpu = "max,-smap"
    if shape.icount:
        # A REP counts one instruction per iteration. Without these two features, strings move 8 bytes per iteration.
        cpu += ",-erms,-fsrm"
    command = [str(shape.qemu_path()), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    # One thread for all vCPUs. With one thread each, QEMU 7.2 loses a race when the kernel patches its own code.
    command += ["-accel", "tcg,thread=single", "-cpu", cpu, "-smp", str(shape.smp)]
    command += ["-M", "q35", "-bios", "qboot.rom", "-m", str(shape.mem_mib)]
    ram = f"memory-backend-file,id=ram,size={shape.mem_mib}M,share=on,mem-path=/proc/self/fd/{wires.ram}"
    command += ["-object", ram, "-machine", "memory-backend=ram"]
    arguments = f"{KERNEL_ARGUMENTS} tsc_early_khz={1000 * shape.tsc_mhz}"
    command += ["-kernel", str(files.vmlinux), "-initrd", str(files.initrd), "-append", arguments]
    command += ["-chardev", f"socket,id=channel,fd={wires.channel}", "-device", "virtio-serial-pci"]
    command += ["-device", "virtserialport,chardev=channel,name=kvmbox"]
    console = f"file,id=console,path=/proc/self/fd/{wires.console}"
    command += ["-chardev", console, "-serial", "chardev:console"]
    command += ["-chardev", f"socket,id=monitor,fd={wires.monitor}", "-mon", "chardev=monitor,mode=control"]
    command += ["-device", f"pcie-root-port,id={ROOT_PORT},slot=1,chassis=1"]
    if wires.share is not None:
        command += ["-chardev", f"socket,id=share,fd={wires.share}"]
    if shape.icount:
        command += ["-icount", "shift=0,sleep=off"]
    if incoming:
        command += ["-incoming", "defer"]
    return command


def find_virtiofsd() -> str | None:
    """The path of virtiofsd, or None."""
    return next(filter(None, map(shutil.which, VIRTIOFSDS)), None)


def virtiofsd_command(listener: int) -> list[str]:
    """The command line of the virtiofsd that is installed. Raises KvmboxError if none is."""
    program = find_virtiofsd()
    if program is None:
        raise KvmboxError("virtiofsd is missing: apt-get install virtiofsd (Debian 12: qemu-system-common)")
    says = subprocess.run([program, "--help"], capture_output=True, text=True, errors="replace").stdout
    if "--shared-dir" not in says:
        options = "source=/,cache=always,sandbox=chroot,log_level=err,no_posix_lock,no_flock"
        return [program, f"--fd={listener}", "-o", options]
    options = "--shared-dir=/ --cache=always --sandbox=chroot --log-level=error"
    # Without --no-announce-submounts, a mount over one of the host's mount points, such as /proc, fails with EREMOTE.
    return [program, f"--fd={listener}", *options.split(), "--no-announce-submounts"]


def die_with_parent() -> Callable[[], None]:
    """For preexec_fn: let the kernel kill the child when kvmbox dies, even by SIGKILL."""
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return ask


class Machine:
    """One VM. Leaving the context ends it and everything that belongs to it."""

    def __init__(self, shape: Shape, files: BootFiles) -> None:
        self.shape = shape
        self.ram = os.memfd_create("kvmbox-ram")
        os.ftruncate(self.ram, shape.mem_mib << 20)
        self._files = files
        self._children: list[subprocess.Popen[bytes]] = []
        self._console = os.memfd_create("kvmbox-console")
        self._log = os.memfd_create("kvmbox-log")
        self._ours: list[socket.socket] = []

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for child in self._children:
            child.kill()
        for child in self._children:
            child.wait()
        if isinstance(error, KvmboxError):
            error.add_note(self._diagnosis())
        for end in self._ours:
            end.close()
        for fd in (self.ram, self._console, self._log):
            os.close(fd)

    def start(self, *, shared: bool, incoming: bool = False) -> None:
        """Start the processes. The test VM boots, or with `incoming` waits for a state to resume."""
        channel, channel_theirs = socket.socketpair()
        monitor, monitor_theirs = socket.socketpair()
        self._ours += [channel, monitor]
        theirs = [channel_theirs, monitor_theirs]
        share = self._start_virtiofsd() if shared else None
        if share:
            theirs.append(share)
        wires = Wires(
            ram=self.ram,
            channel=channel_theirs.fileno(),
            monitor=monitor_theirs.fileno(),
            console=self._console,
            share=share.fileno() if share else None,
        )
        inherited = [self.ram, self._console, *(end.fileno() for end in theirs)]
        self._spawn(qemu_command(self.shape, self._files, wires, incoming), inherited)
        for end in theirs:
            end.close()
        self.channel = Channel(channel)
        self.monitor = Monitor(monitor)
        self.monitor.greet()

    def await_boot(self) -> None:
        """Wait until init.c has loaded KVM. Raises KvmboxError if it does not."""
        self.channel.expect_ready(BOOT_LIMIT_S)

    def share_root(self, read_write: Sequence[str]) -> None:
        """Give the booted VM the host's / and the time. Writes to `read_write` paths reach the host."""
        # The device is plugged in only now, because a VM with this device cannot be saved.
        device = {"driver": "vhost-user-fs-pci", "chardev": "share", "tag": "host", "bus": ROOT_PORT}
        self.monitor.call("device_add", **device)
        seed = "" if self.shape.icount else secrets.token_hex(32)
        values = [str(time.time_ns()), seed, *read_write]
        self.channel.send(Kind.SETUP, fields(os.fsencode(value) for value in values))
        self.channel.expect_ready(ROOT_LIMIT_S)

    def _start_virtiofsd(self) -> socket.socket:
        """Our end of a connection to a new virtiofsd. The socket's name is private and removed immediately."""
        connection = socket.socket(socket.AF_UNIX)
        with socket.socket(socket.AF_UNIX) as listener:
            with tempfile.TemporaryDirectory(prefix="kvmbox-") as place:
                listener.bind(f"{place}/share")
                listener.listen(1)
                connection.connect(f"{place}/share")
            self._spawn(virtiofsd_command(listener.fileno()), [listener.fileno()])
        return connection

    def _spawn(self, command: list[str], inherited: list[int]) -> None:
        """Start a child in a session of its own, so that the terminal's ^C reaches only the command in the VM."""
        self._children.append(
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=inherited,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        )

    def _diagnosis(self) -> str:
        """The last messages of the test VM and its processes."""
        shown = []
        for name, fd in (("console", self._console), ("QEMU and virtiofsd", self._log)):
            size = os.fstat(fd).st_size
            text = os.pread(fd, LOG_SHOWN, max(0, size - LOG_SHOWN)).decode(errors="replace").strip()
            if text:
                shown.append(f"--- {name}:\n{text}")
        return "\n".join(shown)
