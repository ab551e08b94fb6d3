"""The doors a guest runs behind, and the choice between them.

A door is a class as `Door` says: KvmVm (kvm.py) and SandboxVm (sandbox.py). Each makes
the whole machine from the same values, or raises.
"""

import posix  # not os: its ABCs cost a tenth of the command's start

from tender.config import one_of
from tender.errors import HostError

TYPE_CHECKING: bool = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, Literal, Protocol

    from tender.annotations import Backend, IsolationLayer, NetRing
    from tender.image import Image
    from tender.native import CData

    class Door(Protocol):
        """A machine that is ready to run: what vm.py knows of it."""

        handle: CData  # the VM that it is a part of
        fallback: str  # why it is not KVM although nobody asked for that; empty: it was asked for

        @property
        def name(self) -> "Literal['kvm', 'sandbox']": ...

        def isolation(self, layers: int) -> "tuple[IsolationLayer, ...]":
            """The layers around the guest's process, by name, of which the VM was found to have `layers`."""

        def write_boot_info(self, image: Image, manifest: CData, cmdline: bytes) -> None:
            """What the guest will be told; until the first run it may be said again."""

        def keep(self, image: Image) -> bool:
            """Before the first run: this machine is to be reset() after it, if it can. Raises HostError."""

        def reset(self) -> None:
            """As it was before the first run, but for the boot info. Raises HostError; it is then only to be closed."""


BACKENDS: "Final" = ("auto", "kvm", "sandbox")
_DOORS: "dict[str, Callable[..., Door]]" = {}
_HOST: "set[str]" = set()
"""What was found on this host and holds as long as this process: "fit", KVM has a vendor's module under it."""


def check_backend(backend: object) -> "Backend":
    """`backend` if it is one of BACKENDS. Raises ConfigError, which lists them."""
    return one_of("backend", backend, BACKENDS)


def create(
    backend: "Backend",
    handle: "CData",
    *,
    image: "Image",
    mem_bytes: int,
    manifest: "CData",
    cmdline: bytes,
    net_ring: "NetRing" = "off",
) -> "Door":
    """The machine, behind the door asked for; with "auto" KVM's if it can be had, else the sandbox's.

    handle    the VM that it becomes a part of, and ends with
    net_ring  as in VmConfig; "off" also for a guest without a network device. The sandbox has no ring

    Raises ConfigError for an unknown backend, ImageError, KvmUnavailable, HostError.
    """
    check_backend(backend)
    reason = ""
    if backend != "sandbox":
        reason = _unfit() if backend == "auto" else ""
        if not reason:
            try:
                return _door("kvm")(
                    handle,
                    image=image,
                    mem_bytes=mem_bytes,
                    manifest=manifest,
                    cmdline=cmdline,
                    net_ring=net_ring,
                )
            except HostError as error:
                if backend != "auto" or not error.code.startswith("kvm"):
                    raise
                reason = error.message
    try:
        door = _door("sandbox")(handle, image=image, mem_bytes=mem_bytes, manifest=manifest, cmdline=cmdline)
    except HostError as error:
        if reason:
            error.hint = f"{error.hint}\nand no KVM: {reason}".lstrip()
            error.command_hint = f"{error.command_hint}\nand no KVM: {reason}".lstrip()
        raise
    door.fallback = reason
    return door


def may_be_kvm(backend: "Backend") -> bool:
    """Whether create() will try KVM, as far as a look can tell."""
    return backend == "kvm" or (backend == "auto" and _exists("/dev/kvm") and not _unfit())


def ring_mode(image: "Image", mem_bytes: int, net_ring: "NetRing") -> int:
    """enum vm_ring_mode of a guest with a network on KVM; `net_ring` as in VmConfig."""
    from tender.native import lib  # here: words are judged without it

    if net_ring == "off":
        return int(lib.RING_NONE)
    wanted = {"inline": lib.RING_INLINE, "on": lib.RING_WORKER}.get(net_ring, lib.RING_ADAPTIVE)
    return int(lib.tn_ring_mode(image.elf.c, mem_bytes, wanted))


def _door(name: str) -> "Callable[..., Door]":
    """The class; imported when it is first wanted, for a run wants one of them."""
    door = _DOORS.get(name)
    if door is None:
        if name == "kvm":
            from tender.backend.kvm import KvmVm as door
        else:
            from tender.backend.sandbox import SandboxVm as door
        _DOORS[name] = door  # type: ignore[assignment]
    return door  # type: ignore[return-value]


def _unfit() -> str:
    """Why KVM should not be used although it may open, found out without a trial; empty if there is no reason.

    A KVM without a vendor's module under it interprets guests in software, more or less of each: the doctor's
    trial tells how it stands with this one.
    """
    if "fit" in _HOST:
        return ""
    if _exists("/sys/module/kvm_intel") or _exists("/sys/module/kvm_amd"):
        _HOST.add("fit")
        return ""
    if not _exists("/sys/module/kvm"):
        return ""
    if not _exists("/dev/kvm"):
        return ""  # opening it gives the better reason
    return "/dev/kvm is neither kvm_intel's nor kvm_amd's; `tender doctor` tries it"


def _exists(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return False
    return True
