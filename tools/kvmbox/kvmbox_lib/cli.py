"""The commands of kvmbox, and the way from an idle machine to a box that is ready for one command."""

import argparse
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from . import kernel as kernels
from .cache import Cache
from .errors import BoxError, Interrupted, say
from .initramfs import INIT_SOURCE, compile_init, initramfs
from .job import Job
from .kernel import Kernel
from .machine import C_VIRTIOFSD, RUST_VIRTIOFSD, BootFiles, Machine, Shape
from .signals import TIMED_OUT, Signals
from .snapshot import boot, resume, save

FAILED = 125  # of kvmbox's own account; 126 and 127 are a command that cannot run or is not there
BROKEN_PIPE = 141
MEM_MIN_MIB = 256

DESCRIPTION = """\
Run a command on a real /dev/kvm, on a machine that has none.

    kvmbox fetch [PACKAGE]           fetch a kernel through apt; run does it by itself if there is none
    kvmbox run [options] -- CMD...   run CMD in the box; output and exit status are CMD's own
"""

STATUS = """\
Status: CMD's own, 128+n if signal n ended it; 124 time limit; 125 kvmbox failed; 126 or 127 CMD cannot run.
"""


def main(arguments: list[str]) -> int:
    """The exit status; all errors are said on stderr."""
    try:
        options = _parse(arguments)
        if options.verb == "fetch":
            sys.stdout.write(f"{kernels.fetch(Cache.default(), options.package)}\n")
            return 0
        return run(options)
    except BoxError as error:
        say("\n".join([str(error), *getattr(error, "__notes__", [])]))
        return FAILED
    except Interrupted as error:
        if error.status == TIMED_OUT:
            say("the time limit is over, and so is the box")
        return error.status
    except BrokenPipeError:
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        say(str(error))
        return FAILED


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Options are cut off at `--` here, so that none of CMD's is taken for ours."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    options = _parser().parse_args(arguments[:at])
    options.command = arguments[at + 1 :]
    if options.verb == "run":
        if not options.command:
            raise BoxError("no command: kvmbox run [options] -- CMD...")
        if options.mem < MEM_MIN_MIB:
            raise BoxError(f"--mem {options.mem}: the box does not boot with less than {MEM_MIN_MIB} MiB")
    return options


class _Parser(argparse.ArgumentParser):
    """One whose refusals have kvmbox's own status: 2 could be CMD's."""

    def error(self, message: str) -> NoReturn:
        raise BoxError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = _Parser("kvmbox", None, DESCRIPTION, STATUS, formatter_class=plain)
    verbs = parser.add_subparsers(dest="verb", required=True)
    fetch = verbs.add_parser("fetch", help="fetch a kernel")
    fetch.add_argument("package", nargs="?", help=f"default: {kernels.DEFAULT_PACKAGES[0]}")
    usage = "kvmbox run [options] -- CMD..."
    add = verbs.add_parser("run", help="run a command in the box", usage=usage).add_argument
    add("--rw", action="append", metavar="PATH", help="CMD may write here too; repeatable")
    add("--stdin", action="store_true", help="CMD reads kvmbox's stdin; otherwise its stdin is empty")
    add("--timeout", type=float, metavar="SECONDS", help="end it all after this time, status 124")
    add("--idle-timeout", type=float, metavar="SECONDS", help="the same, after this time without output")
    add("--mem", type=int, default=2048, metavar="MIB", help="the box's memory (2048)")
    add("--smp", type=int, default=1, metavar="N", help="the box's CPUs, taking turns on one thread (1)")
    add("--icount", action="store_true", help="one instruction is one ns: CPU times are repeatable counts")
    add("--cold", action="store_true", help="boot, neither making nor resuming a snapshot")
    add("--kernel", type=Path, metavar="DIR", help="unpacked kernel package, or / (the last fetched)")
    add("--qemu", default="qemu-system-x86_64", metavar="PROGRAM")
    add("--timing", action="store_true", help="say on stderr when what was done")
    return parser


class Stopwatch:
    """Stages and when they were over, for --timing."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._stages: list[str] = []

    def mark(self, stage: str) -> None:
        """The stage is over."""
        self._stages.append(f"{stage} {time.monotonic() - self._start:.2f}")

    def text(self) -> str:
        """All stages, in seconds from the start."""
        return ", ".join(self._stages)


def run(options: argparse.Namespace) -> int:
    """Run options.command in a box; raises BoxError if there is none to be had."""
    stopwatch = Stopwatch()
    shape = Shape(qemu=options.qemu, mem_mib=options.mem, smp=options.smp, icount=options.icount)
    require_programs(shape)
    with Signals(options.timeout) as signals:
        cache = Cache.default()
        kernel = Kernel(options.kernel or kernels.newest(cache))
        key, files = boot_files(cache, kernel)
        stopwatch.mark("files")
        paths = shared_paths(options.rw or [])
        with _ready_box(cache, shape, key, files, paths, cold=options.cold) as machine:
            stopwatch.mark("box")
            try:
                job = Job(machine.channel, signals, 0 if options.stdin else None, options.idle_timeout)
                environment = {**os.environb, b"KVMBOX": b"1"}
                status = job.run(options.command, os.getcwd(), environment)
            finally:
                signals.ignore()
        stopwatch.mark("end")
    if options.timing:
        say(stopwatch.text())
    return status


def require_programs(shape: Shape) -> None:
    """Raises BoxError that names all packages to install, not one at a time."""
    missing = []
    if not shutil.which(shape.qemu):
        missing.append("qemu-system-x86")
    elif not any(map(shutil.which, (C_VIRTIOFSD, RUST_VIRTIOFSD, "virtiofsd"))):
        missing.append("virtiofsd")
    if not shutil.which("cc"):
        missing.append("gcc libc6-dev")
    if not shutil.which("zstd"):
        missing.append("zstd")
    if missing:
        raise BoxError(f"programs are missing: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise BoxError("only root can share the host's / with the box: run it as root")


def shared_paths(read_write: list[str]) -> list[str]:
    """The paths CMD may write to: the cwd first; raises BoxError for one that is not there."""
    paths = [os.getcwd()] if os.getcwd() != "/" else []
    for path in map(os.path.realpath, read_write):
        if not os.path.exists(path):
            raise BoxError(f"--rw {path}: not there")
        paths.append(path)
    return paths


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _identity(path: Path) -> tuple[str, int, int]:
    info = path.stat()
    return str(path), info.st_size, info.st_mtime_ns


def _sources(*names: str) -> list[bytes]:
    """The text of the parts of kvmbox that decide what an entry holds."""
    here = Path(__file__).parent
    return [(INIT_SOURCE if name == INIT_SOURCE.name else here / name).read_bytes() for name in names]


def boot_files(cache: Cache, kernel: Kernel) -> tuple[str, BootFiles]:
    """The key of all that boots, and the files; made if not there."""
    key = _key(
        kernel.release, _identity(kernel.image), _sources(INIT_SOURCE.name, "kernel.py", "initramfs.py")
    )

    def make(place: Path) -> None:
        compile_init(place / "init")
        (place / "initrd").write_bytes(initramfs(kernel, (place / "init").read_bytes()))
        (place / "vmlinux").write_bytes(kernels.vmlinux(kernel.image.read_bytes()))

    place = cache.entry(f"boot-{key}", make)
    return key, BootFiles(vmlinux=place / "vmlinux", initrd=place / "initrd")


@contextmanager
def _ready_box(
    cache: Cache, shape: Shape, boot_key: str, files: BootFiles, paths: list[str], *, cold: bool
) -> Iterator[Machine]:
    """A box with its root in place: resumed, or booted if that does not work out."""
    machine = None
    if not cold:
        name = "warm-" + _key(boot_key, shape, _identity(shape.qemu_path()), _sources("machine.py"))
        try:
            place = cache.entry(name, lambda place: save(shape, files, place))
            machine = _started(Machine(shape, files), cache, paths, lambda box: resume(box, place))
        except (BoxError, OSError) as error:
            say(f"no snapshot to resume ({error}); booting instead")
            cache.remove(name)
    if machine is None:
        machine = _started(Machine(shape, files), cache, paths, boot)
    with machine:
        yield machine


def _started(machine: Machine, cache: Cache, paths: list[str], start: Callable[[Machine], None]) -> Machine:
    """The machine, started and with its root; one that fails on the way is ended."""
    with ExitStack() as ending:
        ending.enter_context(machine)
        with cache.in_use():
            start(machine)
            machine.share_root(paths)
        ending.pop_all()
    return machine
