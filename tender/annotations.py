"""Types for annotations: what an argument may be where not every value of its type is right.

The values that a check compares with stand beside the check; a test holds them equal to these.
"""

import os
from collections.abc import Callable
from typing import Final, Literal

Machine = Literal["kvm", "sandbox"]
"""What a guest runs on: a row of bindings/machine/machines.c."""

Backend = Literal["auto", Machine]

CAPTURE: Final = "capture"
"""console=CAPTURE: the console's bytes are in `VmResult.console` (the last MiB; what was lost is counted)."""

DISCARD: Final = "discard"
"""console=DISCARD: the console goes nowhere."""

Console = int | os.PathLike[str] | Callable[[bytes], object] | Literal["capture", "discard"]
"""A descriptor, a path object, a callable that gets each write, tender.CAPTURE or tender.DISCARD."""

NetRing = Literal["auto", "on", "inline", "off"]

IsolationLayer = Literal[
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

BootStep = Literal["start", "vm_created", "first_run", "first_exit", "first_console", "guest_exit"]
"""The fields of BootTimeline."""
