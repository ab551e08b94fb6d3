"""VMs made ahead: taking one costs a fraction of making one.

    pool = VmPool(image, config, size=4)
    pool.run(args)  or  with pool.take(args) as vm: vm.run()

A pool holds machines and leases each to one Vm after another. On KVM a machine that has run is reset in place and serves
again: its vCPU gets all of the state that a fresh one has, and its memory is the image's once more. In the sandbox
nothing of a process that a guest has had is used again: the pool holds fresh processes that wait for their first run.
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
    """Up to `size` idle machines of one image and configuration, ready to run.

    Any thread may take one. It is a context manager that closes itself.

    Args:
        image: What all of them run. It must stay open as long as the pool.
        config: The configuration of all of them. Each VM has its devices to itself, so a pool with a TAP interface, or
            with a disk that guests may write, has size 1.
        size: How many idle machines the pool keeps, 1 to 4096.
        console: As for `Vm`, the same for all. A callable may be called by several threads at once.
        backend: As for `Vm`.

    Raises:
        ConfigError: `size` is not in its range or too large for these devices, or another argument is wrong.
        ManifestError: The devices given are not those that the image declares.
        ImageError: The image does not fit into the memory, or is closed.
        DeviceError: A device or the console cannot be attached.
        KvmUnavailable: KVM was asked for, and cannot be had.
        HostError: The host refuses a machine, or lacks an isolation layer that the configuration requires.

    Attributes:
        image: The image.
        config: The configuration.
        size: How many idle machines the pool keeps.
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
        """Leases a VM that has not run.

        Closing the VM gives its machine back to the pool. If no machine is idle, one is made.

        Args:
            args: The guest's arguments for this run. None: those of the pool's configuration.

        Raises:
            ConfigError: The arguments are wrong.
            VmStateError: The pool is closed, or was made before a fork() of this process.
            TenderError: A machine had to be made, and `Vm()` raised this.
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
        """Takes a VM, runs it to its end, and gives it back.

        Args:
            args: As for `take()`.
            timeout: The guest's time limit in seconds, as for `Vm.run()`.

        Raises:
            ConfigError: The arguments or the time limit are wrong.
            VmStateError: The pool is closed, or was made before a fork() of this process.
            TenderError: What `take()` and `Vm.run()` raise.
            Exception: What the console callable or a signal handler raised. It ends the run.
        """
        timeout = seconds("timeout", timeout)
        with self.take(args) as vm:
            return vm.run(timeout)

    def _take_idle(self) -> Machine | None:
        try:
            return self._idle.pop()  # one call, so two threads never get the same machine
        except IndexError:
            return None

    def _give_back(self, machine: Machine) -> None:
        """Makes a machine idle whose run is over or that never ran, or closes it."""
        try:
            if not self._closed and len(self._idle) < self.size:
                machine = self._renew(machine)
                self._idle.append(machine)
            else:
                machine.close()
        except TenderError:
            machine.close()  # the host refused: the next take() makes a machine, or says why it cannot
        self._keep_to_size()  # several threads may have found space for one

    def _keep_to_size(self) -> None:
        while len(self._idle) > (0 if self._closed else self.size):
            extra = self._take_idle()
            if extra is not None:
                extra.close()

    def _renew(self, machine: Machine) -> Machine:
        if not machine.reusable:
            machine.close()  # first, because the next one has the same devices
            return self._make()
        machine.reset()
        machine.write_boot_info(self.config.cmdline)
        return machine

    @property
    def idle(self) -> int:
        """How many machines wait to be taken."""
        return len(self._idle)

    def close(self) -> None:
        """Closes the idle machines.

        VMs that are taken go on, and are closed when they are given back. Any thread may call it, any number of times.
        """
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
        handle = vm_handle()  # this Vm's alone: a Vm that is kept after close() does not reach the machine
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
    """Checks that so many VMs can share the devices. Raises ConfigError."""
    for name, device in (*config.net, *config.block):
        if isinstance(device, Tap) or (isinstance(device, (BlockFile, BlockFd)) and not device.read_only):
            kind = "a TAP interface" if isinstance(device, Tap) else "a disk to write"
            raise ConfigError(
                f"VmPool: size {size}: {name or 'its device'} is {kind}, which one VM has to itself",
                hint="size=1" if isinstance(device, Tap) else "size=1, or read_only=True for the disk",
            )
