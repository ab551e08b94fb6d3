"""The VM that users hold: it runs the machine that assemble.py makes, and says how that ended.

Vm(image, config)   attaches every device and makes the machine: all errors of set-up are raised here
  .run()            blocks, with the GIL released, until the guest ends      (or .start() and .wait())
  .stop()           from any thread
  .close()          any number of times; leaving a `with` block does it
"""

import os
import select
import sys
import time
from _thread import TIMEOUT_MAX
from collections.abc import Callable, Iterator
from errno import EAGAIN, EALREADY, EBUSY, ECHILD, EDEADLK, EINPROGRESS, EPERM, ESTALE
from types import ModuleType
from typing import TYPE_CHECKING, Self, TypeVar

from tender import log, outcome
from tender.annotations import CAPTURE, Backend, BackendLike, ConsoleTarget, IsolationLayer
from tender.assemble import assemble
from tender.backend.machine import Machine
from tender.backend.sandbox import setup_failed
from tender.config import VmConfig, path_text, standing
from tender.errors import ConfigError, HostError, VmStateError
from tender.image import Image, check_image
from tender.native import CData, descriptor, ffi, host_error, lib
from tender.result import BootTimeline, Counters, VmResult
from tender.values import Owner

if TYPE_CHECKING:
    from tender.debug.memory_use import MemoryUse
    from tender.debug.registers import Registers
    from tender.debug.symbols import Frame, Symbol
    from tender.debug.target import GuestState
    from tender.debug.trace import Hypercall

T = TypeVar("T")

# The module is imported here and not at each start. A failed import is not remembered: it searches all of sys.path
# again, which needs descriptors.
_interpreters: ModuleType | None
try:
    if sys.version_info >= (3, 13):
        import _interpreters
    else:
        import _xxsubinterpreters as _interpreters  # type: ignore[import-not-found, no-redef]
except ImportError:  # this Python is built without it
    _interpreters = None

_CAPTURE_MAX = 1 << 20
_POLL_MAX_S = 1e6
_STATES = {
    ESTALE: "the Vm is closed",
    ECHILD: "the Vm was created before fork(): KVM binds it to the process that made it",
    EBUSY: "the Vm is inside run() on another thread: call stop() and let run() return",
    EDEADLK: "the Vm is inside run() on this thread: return from the console callable first",
    EALREADY: "a Vm runs once; make another from the same Image",
}
"""What bindings/python/owner.h answers if the state of a Vm does not allow a call."""


# No object of the library refers to itself in any way. So what a user drops without close() is given back at once, and
# does not wait for the garbage collector.


class _Captured:
    """The last of a console's bytes, and how many came before."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.lost = 0

    def take(self, data: bytes) -> None:
        self.data += data
        over = len(self.data) - _CAPTURE_MAX
        if over > 0:
            del self.data[:over]
            self.lost += over


class Vm(Owner):
    """One virtual machine, which runs one guest once.

    A Vm is made whole or not at all. It is a context manager that closes itself. Any thread may use it.

    Args:
        image: What runs. It may be closed once the Vm is made.
        config: Memory, arguments and devices. None: `VmConfig()`.
        console: Where the guest's console goes. A descriptor (1, the default, is standard output), which stays yours. A
            `pathlib.Path` or another os.PathLike: a file that is created or appended to. `CAPTURE` or `DISCARD`. Or a
            callable, which gets each write as bytes on the thread that runs the VM; what it raises ends the run.
        backend: "kvm", "sandbox" (a process behind a seccomp filter), or "auto": KVM if this host has it, else the
            sandbox.

    Raises:
        ConfigError: An argument is wrong.
        ManifestError: The devices given are not those that the image declares.
        ImageError: The image does not fit into the memory, or is closed.
        DeviceError: A device or the console cannot be attached.
        KvmUnavailable: KVM was asked for, and cannot be had.
        HostError: The host refuses the machine, or lacks an isolation layer that the configuration requires.

    Attributes:
        config: The configuration.
        image_name: The name of the image.
        backend: What the guest runs on: `Backend.KVM` or `Backend.SANDBOX`.
        fallback: Why "auto" did not become KVM; empty if it did, and if a backend was asked for.
    """

    def __init__(
        self,
        image: Image,
        config: VmConfig | None = None,
        *,
        console: ConsoleTarget = 1,
        backend: BackendLike = "auto",
    ) -> None:
        start_ns: int = lib.tn_monotonic_ns()
        check_image("Vm", image)
        config = checked_config("Vm", config)
        machine = assemble(image, config, console=console, backend=backend)
        self._hold(machine, machine.handle, config=config, console=console, start_ns=start_ns)
        if machine.notice:
            log.tell("vm", "INFO", machine.notice)

    def _hold(
        self, machine: Machine, handle: CData, *, config: VmConfig, console: ConsoleTarget, start_ns: int
    ) -> None:
        """Begins the life of this Vm with a machine that has not run.

        Args:
            handle: The `struct vm_handle *` by which this Vm has the machine: the machine's own, or that of a lease.
        """
        self._machine, self._handle = machine, handle
        self.config, self.image_name = config, machine.image_name
        self.backend: Backend = machine.name
        self.fallback, self._notice = machine.fallback, machine.notice
        self._state = "new"  # new, running, ended: for people; what may be done is decided in C
        self._result: VmResult | None = None
        self._failure: BaseException | None = None
        self._pid = os.getpid()
        self._done = descriptor()  # readable once the thread of start() is done; open once there is one
        self._end: CData = None  # the same for fileno(), and for run() too; made when somebody asks
        self._captured = _Captured() if console == CAPTURE else None
        self._on_console = console if self._captured is None else self._captured.take
        self._on_network: Callable[[str], object] = _warn
        # In whose words the result names a way out. cli/run.py sets the other.
        self._told: int = lib.TOLD_LIBRARY
        self._start_ns, self._created_ns = start_ns, int(lib.tn_monotonic_ns())

    @property
    def _lost_bytes(self) -> int:
        return 0 if self._captured is None else self._captured.lost

    # ---- running

    def run(self, timeout: float | None = None) -> VmResult:
        """Runs the guest to its end, and returns how it ended.

        It blocks, and other Python threads go on. On the main thread Python's signal handlers run meanwhile.

        Args:
            timeout: The guest's time limit in seconds. When it is over the guest is stopped, and the result's reason is
                "timeout". None: no limit.

        Raises:
            ConfigError: `timeout` is not a time.
            VmStateError: The VM has run before, or is closed.
            HostError: The host refuses the run.
            Exception: What the console callable or a signal handler raised. It ends the run.
        """
        limit_ns = nanoseconds("timeout", timeout)
        turn = ffi.new("int *")
        try:
            self._begun(lib.tn_run_begin(self._handle, limit_ns, turn))
            self._state = "running"
            self._result = result = self._run()
            self._state = "ended"
            lib.tn_run_leave(self._handle, turn)
            return result
        except BaseException:
            lib.tn_run_leave(self._handle, turn)
            if turn[0]:
                self._state = "ended"
            raise

    def _run(self) -> VmResult:
        report = ffi.new("struct run_report *")
        event = ffi.addressof(report, "event")
        while True:
            lib.tn_signals_hold()  # a signal caught before is raised on the way into tn_run() at the latest
            answer = lib.tn_run(self._handle, report)
            if answer == -ECHILD:
                raise VmStateError(
                    "fork() inside run(): the guest is the parent's; a child ends with os._exit()"
                )
            self._checked(answer)
            if event.kind == lib.EVENT_CONSOLE:
                assert callable(self._on_console)
                self._on_console(ffi.buffer(lib.tn_run_console(self._handle, event), event.len)[:])
            elif event.kind == lib.EVENT_NETWORK:
                self._tell_net_news()
            elif event.kind == lib.EVENT_SETUP_FAILED:
                raise setup_failed(event.number, event.os_error)
            elif report.over:
                return self._make_result(report)

    def _tell_net_news(self) -> None:
        at, text = ffi.new("uint32_t *"), ffi.new("char[]", lib.NET_NEWS_BYTES)
        while (answer := lib.tn_net_news(self._handle, at, text)) == 1:
            self._on_network(ffi.string(text).decode("utf-8", "replace"))
        self._checked(answer)

    def _begun(self, answer: int) -> None:
        if answer == -EBUSY:
            raise VmStateError(f"the Vm runs already: {_STATES[EALREADY]}")
        self._checked(answer)

    @staticmethod
    def _checked(answer: int) -> None:
        """Raises VmStateError or HostError for an error that owner.h answers."""
        if -answer in _STATES:
            raise VmStateError(_STATES[-answer])
        if answer < 0:
            hint = "threads count as processes: ulimit -u" if answer == -EAGAIN else ""
            raise host_error("the run's thread cannot be had", -answer, hint=hint)

    def stop(self) -> None:
        """Ends the guest soon, wherever it is: it computes, waits, or writes to a full pipe.

        It does not wait for the end. Any thread may call it at any time. Before the run it ends the run at once; after
        the end it does nothing.
        """
        lib.tn_stop(self._handle)

    def _leave_interfaces(self) -> None:
        """Switches off what outlives this process at its TAP interfaces.

        For a guest that is being stopped, because this process may be killed before close().
        """
        lib.tn_leave_headers(self._handle)

    def start(self, timeout: float | None = None) -> None:
        """Runs the guest on a thread of its own. `wait()` returns the result.

        Args:
            timeout: The guest's time limit in seconds, as for `run()`.

        Raises:
            ConfigError: `timeout` is not a time.
            VmStateError: The VM has run before, is closed, or is used in a subinterpreter.
            HostError: The thread cannot be made.
        """
        limit_ns = nanoseconds("timeout", timeout)
        if not _is_main_interpreter():  # C's thread would run Python in the main one
            raise VmStateError(
                "start() is for the main interpreter: in a subinterpreter call run() on a thread"
            )
        ffi.def_extern(name="run_started")(_run_started)
        turn = ffi.new("int *")
        key = id(turn)
        try:
            _STARTED[key] = (self, turn)
            self._begun(lib.tn_start(self._handle, limit_ns, key, lib.run_started, self._done, turn))
        except BaseException:
            if not turn[0]:  # there is no thread that takes it
                _STARTED.pop(key, None)
            raise

    def wait(self, timeout: float | None = None) -> VmResult:
        """Waits for the end of a guest that `start()` runs, and returns its result.

        Args:
            timeout: How many seconds to wait; None: as long as it takes. It limits the wait and not the guest:
                `start(timeout)` limits the guest, and then the result's reason is "timeout".

        Raises:
            ConfigError: `timeout` is not a time.
            TimeoutError: The guest still runs after `timeout` seconds. It goes on.
            VmStateError: The VM was not started by `start()`, or is closed.
            Exception: What the console callable raised. It has ended the run.
        """
        limit = seconds("wait", timeout)
        if os.getpid() != self._pid:
            raise VmStateError("the Vm was created before fork(): its run is the parent's")
        if self._result is None and self._failure is None:
            done = self._done  # close() may put another there, but does not close this one
            if done.fd < 0:
                raise VmStateError(self._no_wait())
            if not _readable(done.fd, limit):
                raise TimeoutError(f"the guest still runs after {limit:g} seconds of wait(): stop() ends it")
        if self._failure is not None:
            try:
                raise self._failure
            finally:
                del self  # the traceback has this frame
        assert self._result is not None  # the thread of start() leaves one or the other
        return self._result

    def fileno(self) -> int:
        """Returns a descriptor that is readable from the end of the run on.

        It is for select, asyncio's add_reader() and the loops of GUIs. It may be asked for at any time, and stays the
        same until the VM is closed. It is not readable before the run and while the guest runs, by `start()` or by
        `run()` on another thread. It becomes readable when `wait()` returns at once, or when `run()` has returned or
        raised. The VM closes it: do not read, write or close it.

        Raises:
            VmStateError: The VM is closed, or was made before a fork() of this process.
            HostError: This process may open no more descriptors.
        """
        if os.getpid() != self._pid:
            raise VmStateError("the Vm was created before fork(): its run is the parent's")
        if self._end is None:
            self._end = descriptor()
        end = self._end
        answer = lib.tn_done(self._handle, end)
        if answer < 0 and -answer not in _STATES:
            raise host_error("no descriptor for the end of the run", -answer)
        self._checked(answer)
        return int(end.fd)

    def _no_wait(self) -> str:
        if self._closed:
            return _STATES[ESTALE]
        return (
            "the Vm was not started"
            if self._state == "new"
            else "the Vm has no result to wait for: run() is under way and returns it, or has raised an exception"
        )

    @property
    def _closed(self) -> bool:
        return bool(self._handle.owned == ffi.NULL)

    @property
    def pid(self) -> int:
        """The process that the guest runs in: this one on KVM, else the sandbox's, and -1 once that is gone.

        Raises:
            VmStateError: The VM is closed.
        """
        pid = ffi.new("int *")
        self._checked(lib.tn_pid(self._handle, pid))
        return int(pid[0])

    @property
    def isolation(self) -> tuple[IsolationLayer, ...]:
        """The isolation layers that stand around the guest; on KVM `kvm` alone, because your process is not confined.

        `uid`: its user is not root outside. `capabilities`: it has none. The other layers are named for what the kernel
        calls them.

        Raises:
            VmStateError: The VM is closed.
        """
        layers = ffi.new("uint32_t *")
        self._checked(lib.tn_isolation(self._handle, layers))
        return standing(layers[0])

    def _look(self) -> CData:
        shared = ffi.new("struct vm_shared *")
        self._checked(lib.tn_look(self._handle, shared))
        return shared

    @property
    def counters(self) -> Counters:
        """What was counted so far, also while the guest runs.

        Raises:
            VmStateError: The VM is closed.
        """
        return outcome.counters(self._look(), console_lost_bytes=self._lost_bytes)

    @property
    def boot(self) -> BootTimeline:
        """When each step of the boot was reached, so far.

        Raises:
            VmStateError: The VM is closed.
        """
        return outcome.boot(self._look(), start=self._start_ns, vm_created=self._created_ns)

    def memory(self, gpa: int, length: int) -> bytes:
        """Returns a copy of guest memory, also after the guest has ended.

        While the guest runs, a write of it may be half done.

        Args:
            gpa: The guest-physical address of the first byte.
            length: How many bytes.

        Raises:
            ConfigError: The bytes are not all in the guest's memory.
            VmStateError: The VM is closed.
            HostError: The memory cannot be read: in the sandbox that below 64 KiB, and all of a process that was killed.
        """
        if gpa < 0 or length < 0 or gpa + length > self.config.mem_bytes:
            self._checked(lib.tn_pid(self._handle, ffi.new("int *")))
            raise ConfigError(f"memory: [{gpa:#x}, {gpa + length:#x}) is not in the guest's memory")
        into = bytearray(length)
        buffer, done = ffi.from_buffer(into), 0
        while True:
            got = lib.tn_read(self._handle, gpa + done, buffer + done, length - done)
            if -got in _STATES:
                raise VmStateError(_STATES[-got])
            if got <= 0 and done < length:
                raise HostError(
                    f"memory: {gpa + done:#x} cannot be read: {os.strerror(-got)}",
                    errno=-got,
                    code="sandbox-memory",
                    hint="`tender doctor` says which rule is in the way" if got == -EPERM else "",
                )
            done += got
            if done == length:
                return bytes(into)

    def registers(self) -> "Registers":
        """Returns the registers of the guest's vCPU, of a guest that runs, waits or has ended.

        Before the run they are those that it begins with: `rip` is the image's entry point. A running guest stands
        still for some milliseconds; on KVM for longer, because another process looks.

        Raises:
            VmStateError: The VM is closed.
            HostError: The guest's process is gone, or the kernel does not let us look into it.
        """
        return self._look_into(lambda state: state.registers())

    def core(self, path: str | os.PathLike[str]) -> None:
        """Writes a core of a guest that runs, waits or has ended, for gdb and other tools.

        It has registers, all memory that the guest has touched, and what is known about the run. A running guest stands
        still until its memory is copied.

        Args:
            path: The file, which must not exist. It is whole, or it is not there.

        Raises:
            ConfigError: `path` is no path.
            VmStateError: The VM is closed.
            HostError: The file cannot be written, or the guest cannot be looked into.
        """
        from tender.debug.core import save_core

        name = path_text("core", path)
        self._look_into(lambda state: save_core(state, path=name, resume=getattr(state, "detach", None)))

    def backtrace(self) -> "tuple[Frame, ...]":
        """Returns the guest's stack, the innermost frame first, of a guest that runs, waits or has ended.

        Names and source lines come from the image's file. Without a file the one frame has only its address.

        Raises:
            VmStateError: The VM is closed.
            HostError: The guest's process is gone, or the kernel does not let us look into it.
        """
        from tender.debug.of_vm import backtrace

        return backtrace(self)

    def hypercalls(self) -> "Iterator[Hypercall]":
        """Records the guest's hypercalls from this call on, and returns them as they are answered, until the run ends.

        The guest is not stopped. A hypercall that is recorded takes some 20 to 50 ns longer. Calls that come faster than
        they are taken are missing: their `index` has a gap. The recording ends when the iterator is closed or dropped.

        Raises:
            VmStateError: The VM is closed.
        """
        from tender.debug.of_vm import hypercalls

        self._checked(lib.tn_pid(self._handle, ffi.new("int *")))
        return hypercalls(self)

    def symbol(self, name: str) -> "Symbol | None":
        """Returns where a function or a variable of the image lies, for `memory()`.

        Args:
            name: The name, as in the image's file or as people read it (demangled).

        Returns:
            The symbol, or None if the image has none of that name.

        Raises:
            ConfigError: `name` is no text.
            VmStateError: The VM is closed.
            ImageError: The image's file is gone, or the image was not made of a file.
        """
        from tender.debug.of_vm import symbol

        self._checked(lib.tn_pid(self._handle, ffi.new("int *")))

        if not isinstance(name, str):
            raise ConfigError(f"symbol: a name is a str, not {type(name).__name__}")
        return symbol(self, name)

    def memory_use(self) -> "MemoryUse":
        """Returns how much of its memory the guest has touched, and how much of its heap it uses.

        The guest goes on meanwhile. The heap is known of guests of MirageOS and of our guest library, by the symbols in the
        image's file. Its numbers are the guest's own.

        Raises:
            VmStateError: The VM is closed.
            HostError: The guest's process is gone, or the kernel does not let us look into it.
        """
        from tender.debug.of_vm import memory_use

        return memory_use(self)

    def _look_into(self, visit: "Callable[[GuestState], T]") -> "T":
        """Returns what `visit` returns of the guest, which stands still meanwhile."""
        from tender.debug.of_vm import look_into

        return look_into(self, visit)

    def _make_result(self, report: CData) -> VmResult:
        shared = ffi.addressof(report, "shared")
        return outcome.result(
            ffi.addressof(report, "event"),
            backend=self.backend,
            isolation=standing(report.isolation),
            timed_out=bool(report.timed_out),
            told=self._told,
            console=None if self._captured is None else bytes(self._captured.data),
            counters=outcome.counters(shared, console_lost_bytes=self._lost_bytes),
            boot=outcome.boot(shared, start=self._start_ns, vm_created=self._created_ns),
        )

    # ---- the end

    def close(self) -> None:
        """Stops a guest that `start()` runs, and gives everything back.

        Any thread may call it, any number of times.

        Raises:
            VmStateError: Another thread is inside `run()`, or the console callable calls it.
        """
        while (answer := self._release()) == -EINPROGRESS:
            done = self._done  # held: another close() puts another there
            self.stop()
            if done.fd >= 0:
                _readable(done.fd, None)
            else:  # start() is about to have one, or the other close() is done
                time.sleep(0.001)
        self._checked(answer)
        self._done, self._end = descriptor(), None

    def _release(self) -> int:
        """Gives everything back at once, or answers as owner.h does for a run that is under way."""
        return int(lib.tn_vm_close(self._handle))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.close()
        except VmStateError:
            raise
        except BaseException:  # an interrupt, while the thread of start() is waited for
            self.close()
            raise

    def __repr__(self) -> str:
        state = "closed" if self._closed else self._state
        return f"<Vm {self.image_name!r} {self.config.mem_bytes >> 20} MiB {state}>"


_STARTED: dict[int, tuple[Vm, CData]] = {}
"""What a thread of start() is to run, until it has begun, by a number that C carries to it."""


def _is_main_interpreter() -> bool:
    return _interpreters is None or bool(_interpreters.get_current() == _interpreters.get_main())


def _run_started(key: int) -> None:
    vm, _ = _STARTED.pop(key)
    try:
        vm._state = "running"
        vm._result = vm._run()
    except BaseException as error:
        below = error.__traceback__ and error.__traceback__.tb_next
        if below is not None:
            below.tb_frame.clear()  # of _run(), which has the Vm
        vm._failure = error
    finally:
        vm._state = "ended"
        del vm


def _readable(fd: int, limit: float | None) -> bool:
    """Whether `fd` becomes readable before the limit.

    By select.poll(), which gevent and eventlet replace by one that lets others run.
    """
    end = None if limit is None else time.monotonic() + limit
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    while True:
        left = _POLL_MAX_S if end is None else min(max(0.0, end - time.monotonic()), _POLL_MAX_S)
        if ready.poll(left * 1000):
            return True
        if end is not None and time.monotonic() >= end:
            return False


def _warn(text: str) -> None:
    log.tell("vm", "WARNING", text)


def checked_config(what: str, config: object) -> VmConfig:
    """Returns `config`, or the default one for None. Raises ConfigError for any other value."""
    if config is None:
        return VmConfig()
    if not isinstance(config, VmConfig):
        raise ConfigError(f"{what}: config {config!r} is not a VmConfig")
    return config


def seconds(what: str, value: object) -> float | None:
    """Returns a time limit in seconds; None: no limit, also for a time that no clock reaches.

    Raises ConfigError for a value that is not a time.
    """
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigError(f"{what}: {value!r} is not a number of seconds")
    if value < 0:
        raise ConfigError(f"{what}: {value!r} is negative, which is not a time limit")
    if value != value:
        raise ConfigError(f"{what}: {value!r} is not a number of seconds")
    return None if value >= TIMEOUT_MAX else float(value)


def nanoseconds(what: str, value: object) -> int:
    """Returns the same in nanoseconds, as C takes it: NO_LIMIT is no limit."""
    limit = seconds(what, value)
    return lib.NO_LIMIT if limit is None else int(limit * 1e9)


def run(
    image: Image | str | os.PathLike[str],
    config: VmConfig | None = None,
    *,
    console: ConsoleTarget = 1,
    timeout: float | None = None,
    backend: BackendLike = "auto",
) -> VmResult:
    """Boots a unikernel, runs it to its end, gives everything back, and returns how it ended.

    Args:
        image: An `Image`, or the path of an ELF file.
        config: As for `Vm`.
        console: As for `Vm`.
        timeout: The guest's time limit in seconds, as for `Vm.run()`.
        backend: As for `Vm`.

    Raises:
        ConfigError: An argument is wrong.
        ManifestError: The devices given are not those that the image declares.
        ImageError: The file is not a unikernel that can run here, or does not fit into the memory.
        DeviceError: A device or the console cannot be attached.
        KvmUnavailable: KVM was asked for, and cannot be had.
        HostError: The host refuses the machine or the run, or lacks an isolation layer that is required.
        Exception: What the console callable or a signal handler raised. It ends the run.
    """
    timeout = seconds("timeout", timeout)
    if isinstance(image, Image):
        with Vm(image, config, console=console, backend=backend) as vm:
            return vm.run(timeout)
    with Image.open(image) as opened, Vm(opened, config, console=console, backend=backend) as vm:
        return vm.run(timeout)
