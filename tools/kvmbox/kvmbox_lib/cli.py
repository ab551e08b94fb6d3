"""The commands of kvmbox, and the steps from an idle machine to a VM that is ready for one command."""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from . import bochs, disc, tsc
from . import kernel as kernels
from .cache import Cache
from .channel import Channel
from .errors import Interrupted, KvmboxError, say
from .initramfs import INIT_SOURCE, INTEL_MODULES, MODULES, compile_init, initramfs
from .job import Job
from .kernel import Kernel
from .machine import BootFiles, Machine, Shape, find_virtiofsd
from .signals import TIMED_OUT, Signals
from .snapshot import boot, resume, save

FAILED = 125  # kvmbox itself failed; 126 and 127 mean that the command cannot run or does not exist
BROKEN_PIPE = 141
MEM_MIN_MIB = 256
CPUS = 2  # as in the smallest machines of users; counting needs one processor, and Bochs has one

DESCRIPTION = """\
Run a command on a real /dev/kvm, on a machine that has none.

    kvmbox fetch [PACKAGE]           fetch a kernel through apt; `run` does this if there is none
    kvmbox run [options] -- CMD...   run CMD in the test VM; output and exit status are CMD's own
"""

STATUS = """\
Status: CMD's own; 128+n if signal n ended CMD; 124 at a time limit; 125 if kvmbox failed; 126 if CMD cannot run;
127 if CMD does not exist.
"""


def main(arguments: list[str]) -> int:
    """Run kvmbox, and return its exit status. Every error is reported on stderr."""
    try:
        options = _parse(arguments)
        if options.verb == "fetch":
            sys.stdout.write(f"{kernels.fetch(Cache.default(), options.package)}\n")
            return 0
        return run(options)
    except KvmboxError as error:
        say("\n".join([str(error), *getattr(error, "__notes__", [])]))
        return FAILED
    except Interrupted as error:
        if error.status == TIMED_OUT:
            say("the time limit is over: the test VM was ended")
        return error.status
    except BrokenPipeError:
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        say(str(error))
        return FAILED


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse only the words before `--`, so that no option of CMD is taken for an option of kvmbox."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    options = _parser().parse_args(arguments[:at])
    options.command = arguments[at + 1 :]
    if options.verb == "run":
        if not options.command:
            raise KvmboxError("no command: kvmbox run [options] -- CMD...")
        if options.mem < MEM_MIN_MIB:
            raise KvmboxError(
                f"--mem {options.mem}: the test VM does not boot with less than {MEM_MIN_MIB} MiB"
            )
        _fit_to_cpu(options)
    return options


def _fit_to_cpu(options: argparse.Namespace) -> None:
    """Set the number of CPUs. Raises KvmboxError for an option that only the other kind of test VM has."""
    intel = options.cpu == "intel"
    if options.smp is None:
        options.smp = 1 if intel or options.icount else CPUS
    if options.smp < 1:
        raise KvmboxError(f"--smp {options.smp}: the test VM has at least one CPU")
    if intel and options.smp != 1:
        raise KvmboxError(f"--smp {options.smp}: the Intel test VM has one CPU")
    if intel and (options.icount or options.rw):
        raise KvmboxError(f"{'--icount' if options.icount else '--rw'}: not possible with --cpu intel")
    for option, given in (
        ("--with", options.files),
        ("--without", options.without),
        ("--ept 0", not options.ept),
    ):
        if given and not intel:
            raise KvmboxError(f"{option}: only with --cpu intel")


class _Parser(argparse.ArgumentParser):
    """A parser that reports a wrong option with kvmbox's own status, because 2 could be CMD's."""

    def error(self, message: str) -> NoReturn:
        raise KvmboxError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = _Parser("kvmbox", None, DESCRIPTION, STATUS, formatter_class=plain)
    verbs = parser.add_subparsers(dest="verb", required=True)
    fetch = verbs.add_parser("fetch", help="fetch a kernel")
    fetch.add_argument("package", nargs="?", help=f"default: {kernels.DEFAULT_PACKAGES[0]}")
    usage = "kvmbox run [options] -- CMD..."
    add = verbs.add_parser("run", help="run a command in the test VM", usage=usage).add_argument
    add("--rw", action="append", metavar="PATH", help="CMD may write here too; may be given more than once")
    add("--stdin", action="store_true", help="CMD reads kvmbox's stdin; otherwise its stdin is empty")
    add("--timeout", type=float, metavar="SECONDS", help="end CMD after this time, with status 124")
    add("--idle-timeout", type=float, metavar="SECONDS", help="the same, after this time without output")
    add("--mem", type=int, default=2048, metavar="MIB", help="the test VM's memory (2048)")
    smp = f"the test VM's CPUs, which take turns on one thread ({CPUS}; with --icount or --cpu intel 1)"
    add("--smp", type=int, metavar="N", help=smp)
    add(
        "--cpu",
        choices=("amd", "intel"),
        default="amd",
        help="amd: QEMU, kvm_amd; intel: Bochs, kvm_intel (slow)",
    )
    add("--ept", type=int, choices=(0, 1), default=1, help="intel: 0 loads KVM without nested paging (1)")
    add("--with", action="append", dest="files", metavar="PATH", help="intel: CMD needs this too; repeatable")
    add("--without", action="append", metavar="PATH", help="intel: CMD does not need this; repeatable")
    add("--icount", action="store_true", help="one instruction takes one ns, so CPU times repeat")
    add("--cold", action="store_true", help="boot; neither make nor resume a snapshot")
    add(
        "--kernel",
        type=Path,
        metavar="DIR",
        help="an unpacked kernel package, or / (default: the last fetched)",
    )
    add("--qemu", default="qemu-system-x86_64", metavar="PROGRAM", help="another qemu-system-x86_64")
    add("--timing", action="store_true", help="report on stderr when each stage was done")
    return parser


class Stopwatch:
    """The stages of a run and the time when each was over, for --timing."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._stages: list[str] = []

    def mark(self, stage: str) -> None:
        """Note that the stage is over."""
        self._stages.append(f"{stage} {time.monotonic() - self._start:.2f}")

    def text(self) -> str:
        """All stages, each with its seconds from the start."""
        return ", ".join(self._stages)


def run(options: argparse.Namespace) -> int:
    """Run options.command in a VM, and return its status. Raises KvmboxError if there cannot be a VM."""
    stopwatch = Stopwatch()
    with ExitStack() as ending:
        signals = ending.enter_context(Signals(options.timeout))
        open_vm = _intel_vm if options.cpu == "intel" else _amd_vm
        channel = ending.enter_context(open_vm(options, stopwatch))
        stopwatch.mark("vm")
        try:
            job = Job(channel, signals, 0 if options.stdin else None, options.idle_timeout)
            environment = {**os.environb, b"KVMBOX": options.cpu.encode()}
            status = job.run(options.command, os.getcwd(), environment)
        finally:
            signals.ignore()
    stopwatch.mark("end")
    if options.timing:
        say(stopwatch.text())
    return status


@contextmanager
def _amd_vm(options: argparse.Namespace, stopwatch: Stopwatch) -> Iterator[Channel]:
    """Prepare a VM in QEMU, and yield the channel to it when it is ready for a command."""
    tsc_mhz = 1000 if options.icount else tsc.frequency_mhz()  # with --icount, one tick per nanosecond
    shape = Shape(options.qemu, options.mem, options.smp, options.icount, tsc_mhz)
    require_programs(shape)
    cache = Cache.default()
    kernel = Kernel(options.kernel or kernels.newest(cache))
    key, files = boot_files(cache, kernel, MODULES)
    stopwatch.mark("files")
    paths = shared_paths(options.rw or [])
    with _ready_vm(cache, shape, key, files, paths, cold=options.cold) as machine:
        yield machine.channel


@contextmanager
def _intel_vm(options: argparse.Namespace, stopwatch: Stopwatch) -> Iterator[Channel]:
    """The same with a VM in Bochs."""
    bochs.require_programs()
    cache = Cache.default()
    kernel = Kernel(options.kernel or kernels.newest(cache))
    _, files = boot_files(cache, kernel, INTEL_MODULES)
    shape = bochs.BochsShape(cpu=options.cpu, mem_mib=options.mem, ept=bool(options.ept))
    programs = [found for name in disc.PROGRAMS.split() if (found := shutil.which(name))]
    present = [name for name in disc.FILES if os.path.exists(name)]
    named = [os.getcwd(), *(options.files or [])]
    with tempfile.TemporaryDirectory(prefix="kvmbox-") as directory:
        place = Path(directory)
        without = [Path(os.path.abspath(path)) for path in options.without or []]
        contents = disc.contents(
            (Path(os.path.abspath(path)) for path in (*programs, *present, *named)), without
        )
        with cache.in_use():
            disc.write_disc(
                place / "disc", kernel.image, files.initrd, shape.kernel_arguments(), contents, without
            )
        stopwatch.mark("disc")
        with bochs.BochsMachine(shape, place) as machine:
            machine.start(place / "disc")
            machine.await_boot()
            yield machine.channel


def require_programs(shape: Shape) -> None:
    """Raises a KvmboxError that names all packages to install at once."""
    missing = []
    if not shutil.which(shape.qemu):
        missing.append("qemu-system-x86")
    elif not find_virtiofsd():
        missing.append("virtiofsd")
    if not shutil.which("cc"):
        missing.append("gcc libc6-dev")
    if not shutil.which("zstd"):
        missing.append("zstd")
    if missing:
        raise KvmboxError(f"programs are missing: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise KvmboxError("only root can share the host's / with the test VM: run kvmbox as root")


def shared_paths(read_write: list[str]) -> list[str]:
    """The paths that CMD may write to, the cwd first. Raises KvmboxError for a path that does not exist."""
    paths = [os.getcwd()] if os.getcwd() != "/" else []
    for path in map(os.path.realpath, read_write):
        if not os.path.exists(path):
            raise KvmboxError(f"--rw {path}: no such file or directory")
        paths.append(path)
    return paths


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _identity(path: Path) -> tuple[str, int, int]:
    info = path.stat()
    return str(path), info.st_size, info.st_mtime_ns


def _sources(*names: str) -> list[bytes]:
    """The source of the parts of kvmbox that decide what an entry contains."""
    here = Path(__file__).parent
    return [(INIT_SOURCE if name == INIT_SOURCE.name else here / name).read_bytes() for name in names]


def boot_files(cache: Cache, kernel: Kernel, modules: list[str]) -> tuple[str, BootFiles]:
    """The key of everything that boots, and the boot files, which are made if they do not exist."""
    sources = _sources(INIT_SOURCE.name, "kernel.py", "initramfs.py")
    key = _key(kernel.release, _identity(kernel.image), modules, sources)

    def make(place: Path) -> None:
        compile_init(place / "init")
        (place / "initrd").write_bytes(initramfs(kernel, modules, (place / "init").read_bytes()))
        (place / "vmlinux").write_bytes(kernels.vmlinux(kernel.image.read_bytes()))

    place = cache.entry(f"boot-{key}", make)
    return key, BootFiles(vmlinux=place / "vmlinux", initrd=place / "initrd")


@contextmanager
def _ready_vm(
    cache: Cache, shape: Shape, boot_key: str, files: BootFiles, paths: list[str], *, cold: bool
) -> Iterator[Machine]:
    """A VM that has its root. It is resumed from a snapshot, or booted if that fails."""
    machine = None
    if not cold:
        name = "warm-" + _key(boot_key, shape, _identity(shape.qemu_path()), _sources("machine.py"))
        try:
            place = cache.entry(name, lambda place: save(shape, files, place))
            machine = _started(Machine(shape, files), cache, paths, lambda vm: resume(vm, place))
        except (KvmboxError, OSError) as error:
            say(f"no snapshot to resume ({error}); booting instead")
            cache.remove(name)
    if machine is None:
        machine = _started(Machine(shape, files), cache, paths, boot)
    with machine:
        yield machine


def _started(machine: Machine, cache: Cache, paths: list[str], start: Callable[[Machine], None]) -> Machine:
    """Start the machine and give it its root. If that fails, the machine is ended."""
    with ExitStack() as ending:
        ending.enter_context(machine)
        with cache.in_use():
            start(machine)
            machine.share_root(paths)
        ending.pop_all()
    return machine
