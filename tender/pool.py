"""VMs made ahead: taking one costs a fraction of making one.

    pool = VmPool(image, config, size=4)
    pool.run(args)  or  with pool.take(args) as vm: vm.run()

Behind KVM a machine that has run is reset in place and serves again: its vCPU gets all of the state that a fresh
one has, its memory is the image's once more. Behind the sandbox nothing of a process that a guest has had is used
again: the pool holds fresh processes that wait to be told to go.
"""

import posix
from _thread import allocate_lock

from tender.backend import check_backend
from tender.config import VmConfig
from tender.errors import ConfigError, TenderError, VmStateError
from tender.image import check_image
from tender.native import lib
from tender.values import Owner
from tender.vm import CAPTURE, Vm, checked_config, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tender.image import Image
    from tender.result import VmResult
    from tender.vm import Console

_SIZE_MAX = 4096


class VmPool(Owner):
    """Up to `size` idle VMs of one image and configuration, ready to run. Any thread may take one.

    image    must stay open as long as the pool
    config   of all of them; each has the devices to itself, so a pool with a TAP or a disk to write has size 1
    console  as for Vm, the same for all; a callable may be called from several threads at once

    Raises what Vm() raises, and ConfigError for a size that is not 1 to 4096.
    """

    def __init__(
        self,
        image: "Image",
        config: VmConfig | None = None,
        *,
        size: int = 1,
        console: "Console" = CAPTURE,
        backend: str = "auto",
    ) -> None:
        self._idle: list[Vm] = []
        self._closed = True
        self._pid = posix.getpid()
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= _SIZE_MAX:
            raise ConfigError(f"VmPool: size {size!r} is not a number from 1 to {_SIZE_MAX}")
        check_image("VmPool", image)
        check_backend(backend)
        self.image, self.config, self.size = image, checked_config("VmPool", config), size
        self._console, self._backend = console, backend
        self._lock = allocate_lock()
        self._closed = False
        try:
            for _ in range(size):
                self._idle.append(self._make())
        except BaseException:
            self.close()
            raise

    def _make(self) -> Vm:
        vm = Vm(self.image, self.config, console=self._console, backend=self._backend)
        try:
            assert vm._door is not None
            vm._reusable = vm._door.keep(vm._c, self.image)
        except BaseException:
            vm.close()
            raise
        return vm

    def take(self, args: "tuple[str, ...] | list[str] | None" = None) -> Vm:
        """A VM that has not run, with the pool's arguments or these; closing it gives its machine back.

        If none is idle, one is made. Raises ConfigError for the arguments, VmStateError if the pool is closed, and
        what Vm() raises.
        """
        config = self.config if args is None else self.config.with_args(args)
        with self._lock:
            if self._closed:
                raise VmStateError("the VmPool is closed")
            if posix.getpid() != self._pid:
                raise VmStateError("the VmPool was created before fork(): make one in this process")
            made = self._idle.pop() if self._idle else None
        start_ns = lib.tn_monotonic_ns()
        made = made or self._make()
        vm = _Taken.__new__(_Taken)
        made._hand_over(vm)
        vm._pool, vm._start_ns, vm.config = self, start_ns, config
        if config is not self.config:
            assert vm._door is not None
            vm._door.write_boot_info(vm._c, self.image, vm._manifest, config.cmdline)
        vm._created_ns = lib.tn_monotonic_ns()
        return vm

    def run(
        self, args: "tuple[str, ...] | list[str] | None" = None, *, timeout: "float | None" = None
    ) -> "VmResult":
        """Takes a VM, runs it to its end, gives it back. Raises what take() and Vm.run() raise."""
        timeout = seconds("timeout", timeout)
        with self.take(args) as vm:
            return vm.run(timeout)

    def _give_back(self, used: Vm) -> None:
        """A machine whose run is over, or that never ran, becomes an idle one, or is closed."""
        fresh = Vm.__new__(Vm)
        used._hand_over(fresh)
        fresh.config = self.config
        kept = False
        try:
            if self._wanted():
                fresh = self._renew(fresh)
                with self._lock:
                    kept = not self._closed and len(self._idle) < self.size
                    if kept:
                        self._idle.append(fresh)
        except TenderError:
            pass  # this host refused: the next take() makes a machine, or says why it cannot
        finally:
            if not kept:
                fresh.close()

    def _wanted(self) -> bool:
        with self._lock:
            return not self._closed and len(self._idle) < self.size

    def _renew(self, vm: Vm) -> Vm:
        if not vm._reusable:
            vm.close()  # first: its devices are the next one's
            return self._make()
        assert vm._door is not None
        vm._door.reset(vm._c)
        vm._door.write_boot_info(vm._c, self.image, vm._manifest, self.config.cmdline)
        return vm

    @property
    def idle(self) -> int:
        """How many wait to be taken."""
        with self._lock:
            return len(self._idle)

    def close(self) -> None:
        """Closes the idle VMs; those taken go on, and are closed when they are given back. Idempotent."""
        if posix.getpid() != self._pid:
            self._lock = allocate_lock()  # a forked child: a thread that is not here may hold the parent's
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for vm in idle:
            vm.close()

    def __enter__(self) -> "VmPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.idle} of {self.size} idle"
        return f"<VmPool {self.image.name!r} {state}>"


class _Taken(Vm):
    """A Vm whose machine goes back to its pool."""

    _pool: VmPool

    def _release(self) -> None:
        self._pool._give_back(self)
