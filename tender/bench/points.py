"""The named points between which a boot is measured, and a record of one boot.

    library  start  vm_created  first_run  first_exit  first_console  guest_exit  closed
    process  spawn                                     first_console  console_eof reaped
    run      spawn                                     first_console  last_console  console_eof  reaped
    spawned  spawn                                     console_seen               reaped

`start` and `spawn` are zero. A sample does not contain a point that was not reached.
"""

LIBRARY_POINTS = ("start", "vm_created", "first_run", "first_exit", "first_console", "guest_exit", "closed")
PROCESS_POINTS = ("spawn", "first_console", "console_eof", "reaped")
RUN_POINTS = ("spawn", "first_console", "last_console", "console_eof", "reaped")
SPAWNED_POINTS = ("spawn", "console_seen", "reaped")

MEANING = {
    "start": "Vm() is called in a process that has opened the Image",
    "vm_created": "Vm() returns: memory is mapped, and KVM has the VM, its memory slot, its vCPU and its registers",
    "first_run": "just before the first KVM_RUN",
    "first_exit": "the guest's first exit has reached the monitor",
    "first_console": "library: the guest's first console byte was written; process: it was seen on the pipe",
    "console_seen": "the guest's first console byte was seen on the pipe, by another process",
    "last_console": "the last part of the guest's output was seen on the pipe: a guest that prints at its end ends here",
    "guest_exit": "the guest has ended",
    "closed": "Vm.close() returns: the kernel has everything back",
    "spawn": "just before posix_spawn",
    "console_eof": "the last descriptor of the pipe was closed: the process is exiting",
    "reaped": "wait4 gave its status",
}


class Sample:
    """One boot: nanoseconds from the first point to each point that was reached, and the cost of the boot.

    cpu_ns: CPU time, user and kernel, of the whole boot (library: of the thread, including close()).
    first_console_cpu_ns: CPU time of a process when its first console byte was seen; only in counted mode.
    """

    __slots__ = ("points_ns", "cpu_ns", "minor_faults", "first_console_cpu_ns")

    def __init__(
        self,
        points_ns: "dict[str, int]",
        *,
        cpu_ns: int,
        minor_faults: int,
        first_console_cpu_ns: "int | None" = None,
    ) -> None:
        self.points_ns = points_ns
        self.cpu_ns = cpu_ns
        self.minor_faults = minor_faults
        self.first_console_cpu_ns = first_console_cpu_ns

    def to_dict(self) -> "dict[str, object]":
        return {name: getattr(self, name) for name in self.__slots__}
