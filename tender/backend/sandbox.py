"""The sandbox: the guest as ring-3 code of a process of its own, tender-sandbox, behind a seccomp filter.

C opens it (bindings/machine/sandbox/sandbox_ops.c). Here are its program, and the words for what is refused.
"""

import os
from typing import Any

from tender.annotations import Backend
from tender.backend.machine import Machine
from tender.config import LAYERS
from tender.errors import HostError
from tender.native import CData, both_told, ffi, lib, says

PROGRAM = __file__.rpartition("/backend/")[0] + "/tender-sandbox"


_NAME = Backend.SANDBOX  # a look-up in the class costs a call in Python 3.11


class SandboxVm(Machine):
    """A process that has the guest's memory and waits for its first run. Raises HostError, ImageError."""

    patched = True

    def __init__(self, handle: CData, *, program: str = PROGRAM, **values: Any) -> None:
        super().__init__(handle, name=_NAME, program=program, **values)

    def _refused(self, error: CData, program: str) -> HostError:
        is_shared = error.step == lib.SETUP_SHARED
        what = says("sandbox_memory") if is_shared else f"{program} cannot be started"
        return _failed(what, error.os_error, step=error.step)


ISOLATION = LAYERS[: LAYERS.index("kvm")]
"""The layers that may stand around the sandbox."""


def _failed(what: str, errno: int, *, step: int) -> HostError:
    hints = both_told(lambda told: lib.tn_setup_step_hint(step, errno, told))
    return HostError(says("sandbox_failed", what, os.strerror(errno)), errno=errno, code="sandbox", **hints)


def setup_failed(step: int, errno: int) -> HostError:
    """Returns the HostError for an EVENT_SETUP_FAILED of the program."""
    name = lib.tn_setup_step_name(step)
    return _failed(f"step {step}" if name == ffi.NULL else ffi.string(name).decode(), errno, step=step)
