"""Descriptors that the words of a command name: only what the command was given counts."""

from tender.errors import DeviceError
from tender.native import ffi, lib


def check_inherited(fd: int, *, is_net: bool) -> None:
    """Raises DeviceError if `fd` is one of Tender's own, or not open."""
    error = ffi.new("struct device_error *")
    if lib.tn_device_check_inherited(fd, is_net, error) < 0:
        raise DeviceError(
            ffi.string(error.text).decode(),
            errno=error.os_error,
            hint="it was not open when tender was executed; open it for the command: "
            f"{fd}<>FILE in a shell, pass_fds=[{fd}] in Python's subprocess",
        )
