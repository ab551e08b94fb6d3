"""VMs made ahead: taking one costs a fraction of making one.

    pool = VmPool(image, config, size=4)
    pool.run(args)  or  with pool.take(args) as vm: vm.run()

Behind KVM a machine that has run is reset in place and serves again: its vCPU gets all of the state that a fresh
one has, its memory is the image's once more. Behind the sandbox nothing of a process that a guest has had is used
again: the pool holds fresh processes that wait to be told to go.
"""

import os
from errno import ECHILD, ESTALE

from tender import log
from tender.annotations import CAPTURE, BackendLike, ConsoleTarget
from tender.assemble import assemble
from tender.backend.machine import Machine
from tender.config import BlockFd, BlockFile, Tap, VmConfig, check_backend
from tender.errors import ConfigError, TenderError, VmStateError
from tender.image import Image, check_image
from tender.native import lib, vm_handle
from tender.result import VmResult
from tender.values import Owner
from tender.vm import Vm, checked_config, seconds

_SIZE_MAX = 4096


class VmPool(Owner):
    """Up to `size` idle machines of one image and configuration, ready to run. Any thread may take one.

    image    must stay open as long as the pool
    config   of all of them; each has the devices to itself, so a pool with a TAP or a disk to write has size 1
    console  as for Vm, the same for all; a callable may be called from several threads at once

    Raises what Vm() raises, and ConfigError for a size that is not 1 to 4096.
    """

    def __init__(
        self,
        image: Image,
        config: VmConfig | None = None,
        *,
        size: int = 1,
        console: ConsoleTarget = CAPTURE,
        backend: BackendLike = "auto",
    ) -> None:
        self._idle: list[Machine] = []
        self._closed = True
        self._pid = os.getpid()
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= _SIZE_MAX:
            raise ConfigError(f"VmPool: size {size!r} is not a number from 1 to {_SIZE_MAX}")
        check_image("VmPool", image)
        check_backend(backend)
        self.image, self.config, self.size = image, checked_config("VmPool", config), size
        self._console, self._backend = console, backend
        if size > 1:
            _check_shared(self.config, size)
        self._closed = False
        try:
            for _ in range(size):
                self._idle.append(self._make())
        except BaseException:
            self.close()  # at once: the exception's traceback may keep this object
            raise
        if self._idle[0].notice:
            log.tell("pool", "INFO", self._idle[0].notice)

    def _make(self) -> Machine:
        machine = assemble(self.image, self.config, console=self._console, backend=self._backend)
        try:
            machine.keep(self.image)
        except BaseException:
            machine.close()
            raise
        return machine

    def take(self, args: tuple[str, ...] | list[str] | None = None) -> Vm:
        """A VM that has not run, with the pool's arguments or these; closing it gives its machine back.

        If none is idle, one is made. Raises ConfigError for the arguments, VmStateError if the pool is closed, and
        what Vm() raises.
        """
        config = self.config if args is None else self.config.with_args(args)
        if self._closed:
            raise VmStateError("the VmPool is closed")
        if os.getpid() != self._pid:
            raise VmStateError("the VmPool was created before fork(): make one in this process")
        start_ns: int = lib.tn_monotonic_ns()
        machine = self._take_idle() or self._make()
        if config is not self.config:
            machine.write_boot_info(config.cmdline)
        return LeasedVm(self, machine, config=config, console=self._console, start_ns=start_ns)

    def run(
        self, args: tuple[str, ...] | list[str] | None = None, *, timeout: float | None = None
    ) -> VmResult:
        """Takes a VM, runs it to its end, gives it back. Raises what take() and Vm.run() raise."""
        timeout = seconds("timeout", timeout)
        with self.take(args) as vm:
            return vm.run(timeout)

    def _take_idle(self) -> Machine | None:
        try:
            return self._idle.pop()  # one call: two threads never have the same
        except IndexError:
            return None

    def _give_back(self, machine: Machine) -> None:
        """A machine whose run is over, or that never ran, becomes an idle one, or is closed."""
        try:
            if not self._closed and len(self._idle) < self.size:
                machine = self._renew(machine)
                self._idle.append(machine)
            else:
                machine.close()
        except TenderError:
            machine.close()  # this host refused: the next take() makes a machine, or says why it cannot
        self._keep_to_size()  # several threads may have found space for one

    def _keep_to_size(self) -> None:
        while len(self._idle) > (0 if self._closed else self.size):
            extra = self._take_idle()
            if extra is not None:
                extra.close()

    def _renew(self, machine: Machine) -> Machine:
        if not machine.reusable:
            machine.close()  # first: its devices are the next one's
            return self._make()
        machine.reset()
        machine.write_boot_info(self.config.cmdline)
        return machine

    @property
    def idle(self) -> int:
        """How many wait to be taken."""
        return len(self._idle)

    def close(self) -> None:
        """Closes the idle VMs; those taken go on, and are closed when they are given back. Idempotent; any thread."""
        self._closed = True
        self._keep_to_size()

    def __enter__(self) -> "VmPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.idle} of {self.size} idle"
        return f"<VmPool {self.image.name!r} {state}>"


class LeasedVm(Vm):
    """A Vm whose machine is a pool's. close() gives the machine back."""

    def __init__(
        self, pool: VmPool, machine: Machine, *, config: VmConfig, console: ConsoleTarget, start_ns: int
    ) -> None:
        handle = vm_handle()  # this Vm's alone: whoever keeps the Vm after close() does not reach the machine
        answer = lib.tn_vm_move(machine.handle, handle)
        self._pool = pool
        self._hold(machine, handle, config=config, console=console, start_ns=start_ns)
        self._checked(answer)

    def _release(self) -> int:
        answer: int = lib.tn_vm_move(self._handle, self._machine.handle)
        if answer == 0:
            self._pool._give_back(self._machine)
        return super()._release() if answer == -ECHILD else 0 if answer == -ESTALE else answer


def _check_shared(config: VmConfig, size: int) -> None:
    """Raises ConfigError for a device that only one VM at a time can have."""
    for name, device in (*config.net, *config.block):
        if isinstance(device, Tap) or (isinstance(device, (BlockFile, BlockFd)) and not device.read_only):
            kind = "a TAP interface" if isinstance(device, Tap) else "a disk to write"
            raise ConfigError(
                f"VmPool: size {size}: {name or 'its device'} is {kind}, which one VM has to itself",
                hint="size=1" if isinstance(device, Tap) else "size=1, or read_only=True for the disk",
            )
