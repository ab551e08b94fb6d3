"""The machines a guest runs on, and the choice between them.

A machine is a class that makes the whole of it from the same values, or raises: KvmVm (kvm.py), SandboxVm (sandbox.py),
and OpenedVm (machine.py) for any other that C opens.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from tender.annotations import Backend, NetRing
from tender.config import one_of
from tender.errors import HostError

if TYPE_CHECKING:  # words are judged without the native core
    from tender.backend.machine import Machine
    from tender.image import Image
    from tender.native import CData

BACKENDS: Final = ("auto", "kvm", "sandbox")
"""Machines by name, in the order in which "auto" tries them: bindings/machine/machines.c has it too."""
_DOORS: "dict[str, Callable[..., Machine]]" = {}
_HOST: set[str] = set()
"""What was found on this host and holds as long as this process: "fit", KVM has a vendor's module under it."""


def check_backend(backend: object) -> Backend:
    """`backend` if it is one of BACKENDS. Raises ConfigError, which lists them."""
    return one_of("backend", backend, BACKENDS)


def create(
    backend: Backend,
    handle: "CData",
    *,
    image: "Image",
    mem_bytes: int,
    manifest: "CData",
    cmdline: bytes,
    net_ring: NetRing = "off",
) -> "Machine":
    """The machine asked for; with "auto" the first of BACKENDS that can be had.

    handle    the VM that it becomes a part of, and ends with
    net_ring  as in VmConfig; "off" also for a guest without a network device. The sandbox has no ring

    Raises ConfigError for an unknown backend, ImageError, KvmUnavailable, HostError.
    """
    check_backend(backend)
    names = BACKENDS[1:] if backend == "auto" else (backend,)
    first = reason = ""  # that could not be had, and why
    for name in names:
        unfit = _unfit() if backend == "auto" and name == "kvm" else ""
        try:
            if not unfit:
                machine = _door(name)(
                    handle,
                    image=image,
                    mem_bytes=mem_bytes,
                    manifest=manifest,
                    cmdline=cmdline,
                    net_ring=net_ring,
                )
                machine.fallback = reason
                return machine
        except HostError as error:
            if name == names[-1] or not error.code.startswith(name):  # else there is no such machine here
                if reason:
                    error.hint = f"{error.hint}\nand no {first.upper()}: {reason}".lstrip()
                    error.command_hint = f"{error.command_hint}\nand no {first.upper()}: {reason}".lstrip()
                raise
            unfit = error.message
        if not reason:
            first, reason = name, unfit
    raise AssertionError("the last machine is made or refused")


def may_be_kvm(backend: Backend) -> bool:
    """Whether create() will try KVM, as far as a look can tell."""
    return backend == "kvm" or (backend == "auto" and os.path.exists("/dev/kvm") and not _unfit())


def ring_mode(image: "Image", mem_bytes: int, net_ring: NetRing) -> int:
    """enum vm_ring_mode of a guest with a network on KVM; `net_ring` as in VmConfig."""
    from tender.native import lib  # here: words are judged without it

    if net_ring == "off":
        return int(lib.RING_NONE)
    wanted = {"inline": lib.RING_INLINE, "on": lib.RING_WORKER}.get(net_ring, lib.RING_ADAPTIVE)
    return int(lib.tn_ring_mode(image.elf.c, mem_bytes, wanted))


def _door(name: str) -> "Callable[..., Machine]":
    """The class; imported when it is first wanted, for a run wants one of them."""
    door = _DOORS.get(name)
    if door is None:
        door = _DOORS[name] = _class(name)
    return door


def _class(name: Any) -> "Callable[..., Machine]":
    if name == "kvm":
        from tender.backend.kvm import KvmVm

        return KvmVm
    if name == "sandbox":
        from tender.backend.sandbox import SandboxVm

        return SandboxVm
    from tender.backend.machine import OpenedVm

    return lambda handle, **values: OpenedVm(handle, name=name, **values)


def _unfit() -> str:
    """Why KVM should not be used although it may open, found out without a trial; empty if there is no reason.

    A KVM without a vendor's module under it interprets guests in software, more or less of each: the doctor's
    trial tells how it stands with this one.
    """
    if "fit" in _HOST:
        return ""
    if os.path.exists("/sys/module/kvm_intel") or os.path.exists("/sys/module/kvm_amd"):
        _HOST.add("fit")
        return ""
    if not os.path.exists("/sys/module/kvm"):
        return ""
    if not os.path.exists("/dev/kvm"):
        return ""  # opening it gives the better reason
    from tender.native import says

    return says("unfit_kvm")
