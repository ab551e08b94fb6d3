"""The exceptions of Tender: one tree, each with a stable `code`, and a `hint` that says the way out.

A guest that exits with 3 is no exception but a VmResult; these are raised when a VM could not be made or
used. `str(error)` is one line that names the thing, the value and the reason.
"""

from typing import TypedDict, Unpack

from tender.printable import printable


class Hints(TypedDict, total=False):
    """The way out of an error, as arguments of it."""

    hint: str
    command_hint: str


class Told(Hints, total=False):
    """The arguments of every error behind its message."""

    code: str


class TenderError(Exception):
    """The root: `code` is a stable short name for programs, `hint` a line (or lines) on what to do.

    command_hint is the same for who typed a command, where that differs: options in place of arguments.
    """

    default_code = "error"

    def __init__(self, message: str, *, code: str = "", hint: str = "", command_hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint
        self.command_hint = command_hint or hint

    def to_dict(self) -> dict[str, object]:
        """The error as plain data: error, code, message, hint."""
        return {
            "error": type(self).__name__,
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
        }


class ConfigError(TenderError, ValueError):
    """A value of the configuration is wrong, whatever the image and the host are; a ValueError too."""

    default_code = "config"


class ImageError(TenderError):
    """The file is not a unikernel that can run here; `file` names it, `offset` says where it goes wrong."""

    default_code = "image"

    def __init__(self, message: str, *, file: str = "", offset: int = 0, **told: Unpack[Told]) -> None:
        super().__init__(f"{printable(file)}: {message}" if file else message, **told)
        self.file = file
        self.offset = offset


class ManifestError(TenderError):
    """The devices given are not the devices that the unikernel declares; `missing` lists those left out."""

    default_code = "manifest"

    def __init__(
        self, message: str, *, missing: tuple[tuple[str, str], ...] = (), **told: Unpack[Told]
    ) -> None:
        super().__init__(message, **told)
        self.missing = missing


class HostError(TenderError):
    """The host refused something; `errno` is kept (0 where there is none)."""

    default_code = "host"

    def __init__(self, message: str, *, errno: int = 0, **told: Unpack[Told]) -> None:
        super().__init__(message, **told)
        self.errno = errno

    def to_dict(self) -> dict[str, object]:
        return {**super().to_dict(), "errno": self.errno}


class KvmUnavailable(HostError):
    """There is no usable /dev/kvm here."""

    default_code = "kvm"


class DeviceError(HostError):
    """A TAP, a block file or a console could not be attached."""

    default_code = "device"


class VmStateError(TenderError):
    """The VM is not in a state that allows this: run twice, used after close, used in a forked child."""

    default_code = "state"
