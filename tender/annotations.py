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
    KVM = "kvm"
    SANDBOX = "sandbox"


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
    """The kinds of devices that Tender knows (source: Solo5's mft_abi.h, MFT_DEV_NET_BASIC and MFT_DEV_BLOCK_BASIC)."""

    NET = "net"
    BLOCK = "block"


class NetRing(Word):
    """Whether a guest gets a ring in shared memory for its frames: see `VmConfig`."""

    AUTO = "auto"
    ON = "on"
    INLINE = "inline"
    OFF = "off"


NetRingLike = NetRing | Literal["auto", "on", "inline", "off"]
"""A `NetRing`, or its string."""


class IsolationLayer(Word):
    """What may stand between a guest and the host, in the order of enum isolation_layer (bindings/core/layers.h)."""

    USER_NAMESPACE = "user-namespace"
    NETWORK_NAMESPACE = "network-namespace"
    MOUNT_NAMESPACE = "mount-namespace"
    PID_NAMESPACE = "pid-namespace"
    IPC_NAMESPACE = "ipc-namespace"
    EMPTY_ROOT = "empty-root"
    LANDLOCK = "landlock"
    SECCOMP_FILTER = "seccomp-filter"
    UID = "uid"
    CAPABILITIES = "capabilities"
    KVM = "kvm"


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
