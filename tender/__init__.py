"""Tender: a minimal monitor for unikernels.

Everything public is here; the example in README.md is run by the tests. The names are loaded when they are
first used: what needs no native part works where that cannot be loaded. In the source tree, whose package has none, the
import itself fails and says what to do.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tender._version import __version__
    from tender.annotations import (
        CAPTURE,
        DISCARD,
        Backend,
        BackendLike,
        BootStep,
        Console,
        ConsoleTarget,
        DeviceKind,
        IsolationLayer,
        IsolationLayerLike,
        NetRing,
        NetRingLike,
    )
    from tender.config import BlockFd, BlockFile, NetFd, Tap, VmConfig
    from tender.errors import (
        ConfigError,
        DeviceError,
        HostError,
        ImageError,
        KvmUnavailable,
        ManifestError,
        TenderError,
        VmStateError,
    )
    from tender.image import Device, Image
    from tender.native import Segment
    from tender.pool import VmPool
    from tender.result import BootTimeline, Counters, ExitReason, GuestFailed, GuestFault, Trap, VmResult
    from tender.vm import Vm, run
    from tender.watch.running import GuestRates, RunningGuest, RunState, running

# The modules that have the names. Those that need no native part come first.
_MODULES = (
    "_version",
    "annotations",
    "errors",
    "config",
    "native",
    "image",
    "result",
    "vm",
    "pool",
    "watch.running",
)

__all__ = [
    "CAPTURE",
    "DISCARD",
    "Backend",
    "BackendLike",
    "BlockFd",
    "BlockFile",
    "BootStep",
    "BootTimeline",
    "ConfigError",
    "Console",
    "ConsoleTarget",
    "Counters",
    "Device",
    "DeviceError",
    "DeviceKind",
    "ExitReason",
    "GuestFailed",
    "GuestFault",
    "GuestRates",
    "HostError",
    "Image",
    "ImageError",
    "IsolationLayer",
    "IsolationLayerLike",
    "KvmUnavailable",
    "ManifestError",
    "NetFd",
    "NetRing",
    "NetRingLike",
    "RunState",
    "RunningGuest",
    "Segment",
    "Tap",
    "TenderError",
    "Trap",
    "Vm",
    "VmConfig",
    "VmPool",
    "VmResult",
    "VmStateError",
    "__version__",
    "run",
    "running",
]


def _refuse_sources() -> None:
    """Raises ImportError if Python found the package of the source tree and not the installed one."""
    directory = __path__[0]
    if os.path.exists(f"{directory}/_native.abi3.so") or not os.path.exists(
        f"{directory}/../bindings/python/native.c"
    ):
        return
    from importlib.util import find_spec

    if find_spec("tender._native") is None:  # an editable installation finds it elsewhere
        # The error has this package's name, so `python -m tender` shows a line and no traceback.
        raise ImportError(
            f"{directory} holds the sources of the package, and Python finds them before the package that is installed: "
            "start Python in another directory, or as `python -P`",
            name="tender",
            path=__file__,
        )


_refuse_sources()


def __getattr__(name: str) -> object:
    for where in _MODULES if name in __all__ else ():
        found = vars(import_module(f"tender.{where}"))
        if name in found:
            return globals().setdefault(name, found[name])
    raise AttributeError(f"module 'tender' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
