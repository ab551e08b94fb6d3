"""The words that the library takes and gives, as enumerations, and types for annotations.

Each word is a string too: `Backend.KVM == "kvm"`, and JSON and messages show "kvm". Where the library takes a word it
takes the plain string as well, and a type checker knows which strings are right: that is what the `...Like` types say.
"""

import os
from collections.abc import Callable
from enum import StrEnum
from typing import Final, Literal


class Word(StrEnum):
    """A word of the library: a string in every respect, also for repr()."""

    def __repr__(self) -> str:
        return repr(self.value)


class Backend(Word):
    """What a guest runs on.

    `AUTO` asks for the first one of the others that this host has. The others are the rows of
    bindings/machine/machines.c, in their order.
    """

    AUTO = "auto"
    """KVM if this host has it, else the sandbox."""
    KVM = "kvm"
    """A virtual machine of the kernel's KVM."""
    SANDBOX = "sandbox"
    """A process behind a seccomp filter."""


BackendLike = Backend | Literal["auto", "kvm", "sandbox"]
"""A `Backend`, or its string."""


class Console(Word):
    """Where a guest's console goes when it is neither a file nor a function: see `ConsoleTarget`."""

    CAPTURE = "capture"
    """The bytes are in `VmResult.console`: the last MiB of them. `Counters.console_lost_bytes` counts the rest."""

    DISCARD = "discard"
    """The bytes go nowhere."""


CAPTURE: Final = Console.CAPTURE
"""`console=CAPTURE`: the console's bytes are in `VmResult.console`, the last MiB of them."""

DISCARD: Final = Console.DISCARD
"""`console=DISCARD`: the console's bytes go nowhere."""

ConsoleTarget = int | os.PathLike[str] | Callable[[bytes], object] | Console | Literal["capture", "discard"]
"""A descriptor, a path object, a callable that gets each write as bytes, `CAPTURE` or `DISCARD`."""


class DeviceKind(Word):
    """The kinds of devices that Tender knows.

    Source: Solo5's mft_abi.h.
    """

    NET = "net"
    """A network, MFT_DEV_NET_BASIC."""
    BLOCK = "block"
    """A disk, MFT_DEV_BLOCK_BASIC."""


class NetRing(Word):
    """Whether a guest with a network gets a ring in shared memory for its frames."""

    AUTO = "auto"
    """On KVM with two processors, if the memory allows it."""
    ON = "on"
    """On one processor too, and always served by a thread of its own."""
    INLINE = "inline"
    """Served by the guest's own thread, in the same order every time."""
    OFF = "off"
    """No ring."""


NetRingLike = NetRing | Literal["auto", "on", "inline", "off"]
"""A `NetRing`, or its string."""


class IsolationLayer(Word):
    """What may stand between a guest and the host.

    The order is that of enum isolation_layer (bindings/machine/layers.h). Source: namespaces(7), landlock(7), seccomp(2)
    and capabilities(7) say what each layer keeps from the guest's process.
    """

    USER_NAMESPACE = "user-namespace"
    """Its process has user numbers of its own."""
    NETWORK_NAMESPACE = "network-namespace"
    """Its process has no network interface except those that it was given."""
    MOUNT_NAMESPACE = "mount-namespace"
    """Its process has mounts of its own."""
    PID_NAMESPACE = "pid-namespace"
    """Its process sees no other process."""
    IPC_NAMESPACE = "ipc-namespace"
    """Its process has no System V object or message queue of others."""
    EMPTY_ROOT = "empty-root"
    """Its process has an empty directory as root."""
    LANDLOCK = "landlock"
    """The kernel refuses its process each action that Landlock can, except on descriptors that are open."""
    SECCOMP_FILTER = "seccomp-filter"
    """Its process may make few system calls, with checked arguments."""
    UID = "uid"
    """Its user is not root outside."""
    CAPABILITIES = "capabilities"
    """Its process has no capability."""
    KVM = "kvm"
    """It runs in a virtual machine of KVM."""


IsolationLayerLike = (
    IsolationLayer
    | Literal[
        "user-namespace",
        "network-namespace",
        "mount-namespace",
        "pid-namespace",
        "ipc-namespace",
        "empty-root",
        "landlock",
        "seccomp-filter",
        "uid",
        "capabilities",
        "kvm",
    ]
)
"""An `IsolationLayer`, or its string."""

BootStep = Literal["start", "vm_created", "first_run", "first_exit", "first_console", "guest_exit"]
"""The fields of `BootTimeline`."""
