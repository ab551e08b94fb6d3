"""The machines that a guest runs on, and the choice between them.

KvmVm (kvm.py) and SandboxVm (sandbox.py) take the same values. Each makes a whole machine or raises. Machine (machine.py),
their base, serves any other backend.
"""

from collections.abc import Callable
from functools import partial

from tender.annotations import Backend, BackendLike, NetRingLike
from tender.backend.kvm import KvmVm
from tender.backend.machine import Machine
from tender.backend.sandbox import SandboxVm
from tender.config import check_backend
from tender.errors import HostError
from tender.image import Image
from tender.native import CData, ffi, lib

_CLASSES: dict[str, Callable[..., Machine]] = {"kvm": KvmVm, "sandbox": SandboxVm}


def create(
    backend: BackendLike,
    handle: CData,
    *,
    image: Image,
    mem_bytes: int,
    manifest: CData,
    cmdline: bytes,
    net_ring: NetRingLike = "off",
    debuggable: bool = False,
    flight_recorder: bool = False,
) -> Machine:
    """Makes a machine of `backend`; with "auto", of the first of BACKENDS that this host has.

    Args:
        backend: The backend.
        handle: The `struct vm_handle *` that owns the machine.
        image: What runs.
        mem_bytes: The size of guest memory in bytes.
        manifest: The `struct mft *` that the guest sees.
        cmdline: The guest's command line.
        net_ring: As in VmConfig, for a guest with a network.
        debuggable: As in VmConfig.
        flight_recorder: As in VmConfig.

    Raises:
        ConfigError: The backend is unknown.
        ImageError: The image does not fit, or is closed.
        KvmUnavailable: KVM was asked for, and cannot be had.
        HostError: The host refuses the machine.
    """
    check_backend(backend)
    choice, refused = ffi.new("struct machine_choice *"), ffi.new("struct machine_error *")
    name = _choose(choice, backend, refused)
    while True:
        made = _CLASSES.get(name) or partial(Machine, name=Backend(name))
        try:
            machine = made(
                handle,
                image=image,
                mem_bytes=mem_bytes,
                manifest=manifest,
                cmdline=cmdline,
                net_ring=net_ring,
                debuggable=debuggable,
                flight_recorder=flight_recorder,
            )
            machine.fallback, machine.notice = _text(choice.why), _text(choice.notice)
            return machine
        except HostError as error:
            refused.code = error.code.encode()[: ffi.sizeof(refused.code) - 1]
            refused.text = error.message.encode("utf-8", "replace")[: ffi.sizeof(refused.text) - 1]
            name = _choose(choice, backend, refused)
            if name:
                continue
            if choice.title:
                earlier = f"and no {_text(choice.title)}: {_text(choice.why)}"
                error._set_hints(
                    *(f"{hint}\n{earlier}".lstrip() for hint in (error.hint, error.command_hint))
                )
            raise


def _text(of: CData) -> str:
    return str(ffi.string(of), "utf-8", "replace")


def _choose(choice: CData, backend: str, refused: CData) -> str:
    """Returns the backend to try next (machine_choose() of bindings/vm/lifecycle.h), or nothing if there is no other."""
    name = lib.tn_machine_choose(choice, backend.encode(), refused)
    return "" if name == ffi.NULL else ffi.string(name).decode()
