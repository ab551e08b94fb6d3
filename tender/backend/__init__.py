"""The machines a guest runs on, and the choice between them.

A machine is a class that makes the whole of it from the same values, or raises: KvmVm (kvm.py), SandboxVm (sandbox.py),
and Machine (machine.py), their base, for any other.
"""

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
    net_ring  as in VmConfig, for a guest with a network

    Raises ConfigError for an unknown backend, ImageError, KvmUnavailable, HostError.
    """
    check_backend(backend)
    from tender.native import ffi  # here: words are judged without it

    choice, refused = ffi.new("struct machine_choice *"), ffi.new("struct machine_error *")
    name = _choose(choice, backend, refused)
    while True:
        try:
            machine = _door(name)(
                handle,
                image=image,
                mem_bytes=mem_bytes,
                manifest=manifest,
                cmdline=cmdline,
                net_ring=net_ring,
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
                error.hint = f"{error.hint}\n{earlier}".lstrip()
                error.command_hint = f"{error.command_hint}\n{earlier}".lstrip()
            raise


def _text(of: "CData") -> str:
    from tender.native import ffi

    return str(ffi.string(of), "utf-8", "replace")


def _choose(choice: "CData", backend: str, refused: "CData") -> str:
    """The machine to try next (machine_choose() of bindings/vm/lifecycle.h); empty: there is no other."""
    from tender.native import ffi, lib

    name = lib.tn_machine_choose(choice, backend.encode(), refused)
    return "" if name == ffi.NULL else ffi.string(name).decode()


def _door(name: Any) -> "Callable[..., Machine]":
    """The class; imported when it is first wanted, for a run wants one of them."""
    if name not in _DOORS:
        if name == "kvm":
            from tender.backend import kvm

            _DOORS[name] = kvm.KvmVm
        elif name == "sandbox":
            from tender.backend import sandbox

            _DOORS[name] = sandbox.SandboxVm
        else:
            from tender.backend.machine import Machine

            _DOORS[name] = lambda handle, **values: Machine(handle, name=name, **values)
    return _DOORS[name]
