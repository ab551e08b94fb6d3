"""The VM that users hold: it introduces image, devices and door to each other, runs, and says how it ended.

Vm(image, config)   attaches every device, makes the machine: all errors of set-up are raised here
  .run()            blocks, with the GIL released, until the guest ends      (or .start() and .wait())
  .stop()           from any thread
  .close()          idempotent; leaving a `with` block does it
"""

import posix  # not os: its ABCs cost a tenth of the command's start
from _thread import TIMEOUT_MAX, RLock, allocate_lock, start_new_thread

from tender.backend import check_backend, create
from tender.config import LAYERS, BlockDevice, NetDevice, NetFd, Tap, VmConfig, descriptor, path_text
from tender.errors import ConfigError, DeviceError, HostError, TenderError, VmStateError
from tender.image import Device, Image, check_image
from tender.native import CData, ffi, lib, open_file
from tender.values import Owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from typing import Final, Literal

    from tender.backend import Door
    from tender.devices.block import BlockAttachment, Patience
    from tender.devices.tap import NetAttachment
    from tender.result import BootTimeline, Counters, VmResult

    Console = int | os.PathLike[str] | Callable[[bytes], object] | Literal["capture", "discard"]

CAPTURE: "Final" = "capture"
"""console=CAPTURE: the console's bytes are in `VmResult.console` (the last MiB; what was lost is counted)."""

DISCARD: "Final" = "discard"
"""console=DISCARD: the console goes nowhere."""

_CAPTURE_MAX = 1 << 20


class Vm(Owner):
    """One virtual machine: made whole or not at all, run once, closed as often as you like.

    image    what runs; it may be closed afterwards
    config   memory, arguments, devices
    console  where the guest's console goes: a descriptor (default 1, standard output; it stays yours), a
             `pathlib.Path` or other os.PathLike (created or appended to), CAPTURE, DISCARD, or a callable
             that gets each write as bytes, on the thread that runs the VM; what it raises ends the run
    backend  "kvm", "sandbox" (a seccomp-confined process), or "auto": KVM if it can be had, else the sandbox;
             `backend` then says which, `fallback` why it is not KVM (empty if it is, or was not asked for)

    Raises ImageError (does not fit), ManifestError (devices), DeviceError, KvmUnavailable, HostError.
    """

    def __init__(
        self,
        image: Image,
        config: VmConfig | None = None,
        *,
        console: "Console" = 1,
        backend: str = "auto",
    ) -> None:
        self._closed = True  # until there is something to close
        self._start_ns: int = lib.tn_monotonic_ns()
        check_image("Vm", image)
        self.config = config = checked_config("Vm", config)
        self.image_name = image.name
        self._lock = RLock()  # a signal handler may call stop() while this thread holds it
        self._state = "new"  # new, running, ended
        self._pid = posix.getpid()
        self._timed_out = False
        self._result: VmResult | None = None
        self._failure: BaseException | None = None
        self._ended = allocate_lock()  # held from start() until the run is over
        self._door: Door | None = None
        self._attachments: list[NetAttachment | BlockAttachment] = []
        self._console_fd = -1  # ours to close
        self._captured: bytearray | None = None
        self._captured_lost = 0
        self._on_console: Callable[[bytes], object] | None = None
        check_backend(backend)
        attachments: tuple[tuple[Device, NetDevice | BlockDevice], ...] = ()
        if image.devices or config.net or config.block:
            from tender.manifest import match

            attachments = match(image.name, image.devices, config)
        self._reusable = False  # pool.py: its machine can be reset
        self._c = lib.tn_vm_new()
        if self._c == ffi.NULL:
            raise TenderError("no memory for a VM")
        self._closed = False
        try:
            self._set_console(console)
            self._manifest = manifest = self._attach(image, attachments)
            image.check_fits(config.mem_bytes)
            self._door = create(
                backend,
                self._c,
                image=image,
                mem_bytes=config.mem_bytes,
                manifest=manifest,
                cmdline=config.cmdline,
                net_ring=config.net_ring if config.net else "off",
            )
            self._created_ns: int = lib.tn_monotonic_ns()
            if config.require:
                self._check_layers(config.require)
            # Here, while a sandbox's process makes itself ready; and not behind the guest's end: that may be months
            # from now, when other files are in their place, or when no descriptor is left to read them with.
            from tender import outcome  # noqa: F401
        except BaseException:
            self.close()
            raise
        self.backend = self._door.name
        self.fallback = self._door.fallback

    # ---- set-up

    def _check_layers(self, required: tuple[str, ...]) -> None:
        assert self._door is not None
        missing = [name for name in LAYERS if name in required and name not in self._door.isolation]
        if missing:
            cure = lib.tn_isolation_cure(LAYERS.index(missing[0]), self._door.name == "kvm")
            raise HostError(
                f"required isolation layers are missing: {', '.join(missing)}",
                code="isolation-missing",
                hint=ffi.string(cure).decode(),
            )

    def _set_console(self, console: object) -> None:
        fd: int = lib.CONSOLE_PYTHON
        if console == DISCARD:
            fd = lib.CONSOLE_DISCARD
        elif console == CAPTURE:
            self._captured = bytearray()
            self._on_console = self._capture
        elif isinstance(console, int) and not isinstance(console, bool):
            fd = descriptor("console", console)
        elif hasattr(type(console), "__fspath__"):
            fd = self._console_fd = self._open_console(path_text("console", console))
        elif callable(console):
            self._on_console = console
        else:
            raise ConfigError(
                f"console: {console!r} is not a descriptor, a path object, a callable, CAPTURE or DISCARD",
                hint="for a file, give pathlib.Path(name)",
            )
        answer = lib.tn_vm_set_console(self._c, fd)
        if answer < 0:
            raise DeviceError(
                f"console: {console}: {posix.strerror(-answer)}", errno=-answer, code="device-console"
            )

    @staticmethod
    def _open_console(path: str) -> int:
        fd, why, errno, hint = open_file(path, lib.FILE_CONSOLE)
        if fd < 0:
            raise DeviceError(f"console: {path}: {why}", errno=errno, code="device-console", hint=hint)
        return fd

    def _capture(self, data: bytes) -> None:
        if self._captured is not None:
            self._captured += data
            over = len(self._captured) - _CAPTURE_MAX
            if over > 0:
                del self._captured[:over]
                self._captured_lost += over

    def _attach(
        self, image: Image, attachments: "tuple[tuple[Device, NetDevice | BlockDevice], ...]"
    ) -> CData:
        """Opens every device; returns the manifest as the guest will see it."""
        if not attachments:
            self._elf = image.elf  # the owner
            return ffi.addressof(image.elf.c, "manifest")
        manifest = ffi.new("struct mft *")
        patience: Patience | None = None
        ffi.memmove(manifest, ffi.addressof(image.elf.c, "manifest"), ffi.sizeof("struct mft"))
        for declared, device in attachments:
            entry = manifest.e[declared.handle]
            if isinstance(device, (Tap, NetFd)):
                self._attach_net(declared, device, entry, "net-offload" in image.extensions)
            else:
                patience = patience or self._patience()
                self._attach_block(declared, device, entry, patience)
            entry.attached = 1
        return manifest

    def _attach_net(self, declared: Device, device: "Tap | NetFd", entry: CData, offload: bool) -> None:
        from tender.devices import tap

        net = tap.attach(device, offload=offload)
        self._attachments.append(net)
        self._checked(declared.name, lib.tn_vm_attach_net(self._c, declared.handle, net.fd, offload))
        entry.u.net.mac = net.mac
        entry.u.net.mtu = net.mtu

    def _patience(self) -> "Patience":
        from tender.devices.block import Patience

        return Patience(self.config.lock_wait)

    def _attach_block(
        self, declared: Device, device: BlockDevice, entry: CData, patience: "Patience"
    ) -> None:
        from tender.devices import block

        disk = block.attach(declared.name, device, patience)
        self._attachments.append(disk)
        answer = lib.tn_vm_attach_block(self._c, declared.handle, disk.fd, disk.capacity, disk.read_only)
        self._checked(declared.name, answer)
        entry.u.block.capacity = disk.capacity
        entry.u.block.block_size = disk.sector_size

    @staticmethod
    def _checked(name: str, answer: int) -> None:
        if answer < 0:
            raise DeviceError(f"{name}: {posix.strerror(-answer)}", errno=-answer)

    # ---- running

    def run(self, timeout: "float | None" = None) -> "VmResult":
        """Runs the guest to its end and says how it ended. Blocks; signals handled by Python still are.

        timeout  seconds after which the guest is stopped; the result's reason is then "timeout"

        Raises VmStateError if it was run before, and whatever the console callable or a signal handler
        raised (the VM is then ended).
        """
        timeout = seconds("timeout", timeout)
        self._begin()
        try:
            result = self._run(timeout)
        finally:
            self._state = "ended"
        self._result = result
        return result

    def _begin(self) -> None:
        self._check_usable()
        with self._lock:
            self._check_usable()
            if self._state != "new":
                raise VmStateError("a Vm runs once; make another from the same Image")
            self._state = "running"

    def _is_in_fork(self) -> bool:
        """Whether this process is a forked child of the one that made the VM: all of it is the parent's."""
        return posix.getpid() != self._pid

    def _check_usable(self) -> None:
        if self._closed:
            raise VmStateError("the Vm is closed")
        if self._is_in_fork():
            raise VmStateError("the Vm was created before fork(): KVM binds it to the process that made it")

    def _hand_over(self, to: "Vm") -> None:
        """Everything that a Vm owns goes to another, whose constructor was not run; this one is closed then."""
        with self._lock:
            to.__dict__.update(self.__dict__)
            to._lock = RLock()
            to._ended = allocate_lock()
            to._state = "new"
            to._timed_out = False
            to._result = to._failure = None
            to._closed, self._closed = False, True
            self._door, self._c, self._attachments, self._console_fd = None, ffi.NULL, [], -1
        if to._captured is not None:
            to._captured, to._captured_lost = bytearray(), 0
            to._on_console = to._capture

    def _run(self, timeout: "float | None") -> "VmResult":
        assert self._door is not None
        event = lib.tn_vm_event(self._c)
        over = None if timeout is None else self._watch(timeout)
        try:
            while True:
                if self._is_in_fork():
                    raise VmStateError(
                        "fork() inside run(): the guest is the parent's; a child ends with os._exit()"
                    )
                self._run_held()
                if event.kind == lib.EVENT_CONSOLE:
                    assert self._on_console is not None
                    self._on_console(self._door.console(self._c, event.gpa, event.len))
                elif event.kind == lib.EVENT_SETUP_FAILED:
                    from tender.backend.sandbox import setup_failed

                    raise setup_failed(event.number, event.os_error)
                elif event.kind != lib.EVENT_INTERRUPTED:
                    return self._make_result(event)
        finally:
            if over is not None:
                over.release()

    def _run_held(self) -> None:
        """The door's run(). A signal that comes between Python's last look and the run's own wait is for the wait."""
        assert self._door is not None
        try:
            lib.tn_signals_hold()  # what was caught before is raised at the latest on the way into run()
            self._door.run(self._c)
        finally:
            lib.tn_signals_release()

    def _watch(self, timeout: float) -> "CData":
        """A thread that stops the VM after `timeout` seconds, unless the lock it returns is released first."""
        over = allocate_lock()
        over.acquire()
        done = allocate_lock()
        done.acquire()

        def wait() -> None:
            if not over.acquire(timeout=max(0.0, timeout)):
                with self._lock:
                    self._timed_out = True
                    if not self._closed:
                        lib.tn_vm_stop(self._c)
            done.release()

        lib.tn_signals_hold()
        try:
            start_new_thread(wait, ())
        finally:
            lib.tn_signals_release()
        return _Watch(over, done)

    def stop(self) -> None:
        """Ends the guest soon, wherever it is: computing, waiting in poll, writing to a full pipe.

        Any thread, any time; does not wait. Before run(), the run ends at once. After the end, nothing.
        """
        if self._is_in_fork():  # before the lock: a thread that is not here may have held it at fork()
            return
        with self._lock:
            if not self._closed:
                lib.tn_vm_stop(self._c)

    def start(self, timeout: "float | None" = None) -> None:
        """Runs the guest on a thread of its own; wait() gives the result. Raises VmStateError as run()."""
        timeout = seconds("timeout", timeout)
        self._begin()
        lib.tn_vm_signals_elsewhere(self._c)
        self._ended.acquire()

        claimed = allocate_lock()  # by the thread, or by an exception that came before the thread began

        def body() -> None:
            if not claimed.acquire(False):
                return
            try:
                self._result = self._run(timeout)
            except BaseException as error:
                self._failure = error
            finally:
                self._state = "ended"
                self._ended.release()

        try:
            start_new_thread(body, ())
        except BaseException:
            if claimed.acquire(False):
                self._state = "ended"
                self._ended.release()
            raise

    def wait(self, timeout: "float | None" = None) -> "VmResult | None":
        """The result once the guest has ended; None if `timeout` seconds pass first (it goes on).

        Raises what the console callable raised, and VmStateError if the VM was never started.
        """
        timeout = seconds("wait", timeout)
        if self._state == "new":
            raise VmStateError("the Vm was not started")
        if self._is_in_fork():
            raise VmStateError("the Vm was created before fork(): its run is the parent's")
        if self._state != "ended":  # a wait() that was interrupted may have left the lock held
            if not self._ended.acquire(timeout=-1 if timeout is None else timeout):
                return None
            self._ended.release()
        if self._failure is not None:
            raise self._failure
        return self._result

    @property
    def pid(self) -> int:
        """The process that the guest runs in: this one behind KVM, else the sandbox's (-1 when that is gone)."""
        with self._lock:
            self._check_usable()
            assert self._door is not None
            return self._door.pid

    @property
    def isolation(self) -> tuple[str, ...]:
        """The isolation layers that stand around the guest; behind KVM "kvm" alone, for your process is not confined.

        Of "user-namespace", "network-namespace", "mount-namespace", "pid-namespace", "ipc-namespace", "empty-root",
        "landlock", "seccomp-filter", "uid" (its user is not root outside) and "capabilities" (it has none).
        """
        with self._lock:
            self._check_usable()
            assert self._door is not None
            return self._door.isolation

    @property
    def counters(self) -> "Counters":
        """What was counted so far; at any time, also while it runs."""
        from tender import outcome

        with self._lock:  # against close() on another thread
            self._check_usable()
            return outcome.counters(lib.tn_vm_shared(self._c), console_lost_bytes=self._captured_lost)

    @property
    def boot(self) -> "BootTimeline":
        """When each step was reached, so far."""
        from tender import outcome

        with self._lock:  # against close() on another thread
            self._check_usable()
            shared = lib.tn_vm_shared(self._c)
            return outcome.boot(shared, start=self._start_ns, vm_created=self._created_ns)

    def memory(self, gpa: int, length: int) -> bytes:
        """A copy of guest memory, also after the guest has ended.

        Raises ConfigError outside of it, VmStateError after close(), HostError for memory that the guest itself could
        not read (below 64 KiB in the sandbox), or that is gone with a sandbox's killed process.
        """
        self._check_usable()
        if gpa < 0 or length < 0 or gpa + length > self.config.mem_bytes:
            raise ConfigError(f"memory: [{gpa:#x}, {gpa + length:#x}) is not in the guest's memory")
        with self._lock:  # against close() on another thread
            self._check_usable()
            assert self._door is not None
            return self._door.read(self._c, gpa, length)

    def _make_result(self, event: CData) -> "VmResult":
        from tender import outcome

        assert self._door is not None
        return outcome.result(
            event,
            backend=self.backend,
            isolation=self._door.isolation,
            timed_out=self._timed_out,
            console=None if self._captured is None else bytes(self._captured),
            counters=self.counters,
            boot=self.boot,
        )

    # ---- the end

    def close(self) -> None:
        """Stops the guest if it runs on a thread of start(), and releases everything. Idempotent.

        Raises VmStateError if another thread is inside run(), or the console callable calls it.
        """
        if self._closed:
            return
        if self._is_in_fork():
            self._forget()
            return
        if self._state == "running":
            if not self._ended.locked():
                raise VmStateError(
                    "the Vm is inside run() on another thread: call stop() and let run() return"
                )
            self.stop()
            self._ended.acquire()
            self._ended.release()
        with self._lock:
            self._closed = True
            self._release()

    def _forget(self) -> None:
        """In a forked child: closes the copies of descriptors. The machine, the TAP's state and every lock are the parent's.

        Guest memory was not inherited, and something else may lie at its address by now: it is not unmapped.
        """
        self._closed = True
        if self._door is not None:
            self._door.forget()
        for attachment in self._attachments:
            attachment.forget()
        if self._console_fd >= 0:
            posix.close(self._console_fd)
            self._console_fd = -1

    def _release(self) -> None:
        if self._door is not None:
            self._door.close()
        c, self._c = self._c, ffi.NULL
        lib.tn_vm_free(c)  # ends the ring's worker, if a run was left by an exception: before its devices go
        for attachment in self._attachments:
            attachment.close()
        if self._console_fd >= 0:
            posix.close(self._console_fd)
            self._console_fd = -1

    def __enter__(self) -> "Vm":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else self._state
        return f"<Vm {self.image_name!r} {self.config.mem_bytes >> 20} MiB {state}>"


def checked_config(what: str, config: object) -> VmConfig:
    """`config`, or the default one for None. Raises ConfigError for anything else."""
    if config is None:
        return VmConfig()
    if not isinstance(config, VmConfig):
        raise ConfigError(f"{what}: config {config!r} is not a VmConfig")
    return config


def seconds(what: str, value: object) -> "float | None":
    """A time limit; None: there is none, as for what no clock reaches. Raises ConfigError for what is no time."""
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigError(f"{what}: {value!r} is not a number of seconds")
    if not value >= 0:  # nan too
        raise ConfigError(f"{what}: {value!r} is not a time from 0 seconds on")
    return None if value >= TIMEOUT_MAX else float(value)


class _Watch:
    """The two ends of a time limit: release() cancels it and waits until its thread is done."""

    def __init__(self, over: CData, done: CData) -> None:
        self._over = over
        self._done = done
        self._pid = posix.getpid()

    def release(self) -> None:
        self._over.release()
        if posix.getpid() == self._pid:  # a forked child has no such thread
            self._done.acquire()


def run(
    image: "Image | str | os.PathLike[str]",
    config: VmConfig | None = None,
    *,
    console: "Console" = 1,
    timeout: "float | None" = None,
    backend: str = "auto",
) -> "VmResult":
    """Boots `image` (or the ELF at that path), runs it to its end, cleans up, and says how it ended.

    Raises what Image.open(), Vm() and Vm.run() raise.
    """
    timeout = seconds("timeout", timeout)
    if isinstance(image, Image):
        with Vm(image, config, console=console, backend=backend) as vm:
            return vm.run(timeout)
    with Image.open(image) as opened, Vm(opened, config, console=console, backend=backend) as vm:
        return vm.run(timeout)
