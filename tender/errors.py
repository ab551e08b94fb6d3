"""The exceptions of Tender: one tree, each with a stable `code` and a `hint` that says the way out.

They are raised when a VM cannot be made or used. A guest that exits with 3 is a VmResult and not an exception.
`str(error)` is one line that names the thing, the value and the reason.
"""

from typing import TypedDict, Unpack

from tender.printable import printable


class Hints(TypedDict, total=False):
    """The way out of an error, as its arguments."""

    hint: str
    command_hint: str


class Told(Hints, total=False):
    """The arguments of every error after its message."""

    code: str


class TenderError(Exception):
    """The root of Tender's exceptions.

    Attributes:
        message: What is wrong, as in `str(error)`.
        code: A short stable name for programs, as "tap-missing".
        hint: What to do, in one line or more. It may be empty. A traceback shows it below the message.
        command_hint: The same for a user of the command: it names options where `hint` names arguments.
    """

    default_code = "error"

    def __init__(self, message: str, *, code: str = "", hint: str = "", command_hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self._set_hints(hint, command_hint or hint)

    def _set_hints(self, hint: str, command_hint: str) -> None:
        """Sets the way out, also in the note that Python shows below the message of a traceback."""
        self.hint = hint
        self.command_hint = command_hint
        vars(self).pop("__notes__", None)
        if hint:
            self.add_note(f"hint: {hint}")

    def to_dict(self) -> dict[str, object]:
        """Returns the error as plain data for JSON: `error` (the class), `code`, `message` and `hint`."""
        return {
            "error": type(self).__name__,
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
        }


class ConfigError(TenderError, ValueError):
    """An argument or a value of a configuration is wrong, for any image and any host.

    It is a ValueError too.
    """

    default_code = "config"


class ImageError(TenderError):
    """The file is not a unikernel that can run here.

    Attributes:
        file: The name of the file.
        offset: The place of the mistake in the file, in bytes; 0 if it has no place.
    """

    default_code = "image"

    def __init__(self, message: str, *, file: str = "", offset: int = 0, **told: Unpack[Told]) -> None:
        super().__init__(f"{printable(file)}: {message}" if file else message, **told)
        self.file = file
        self.offset = offset


class ManifestError(TenderError):
    """The devices of the configuration are not the devices that the unikernel declares.

    Attributes:
        missing: The name and the kind of each declared device that was not given.
    """

    default_code = "manifest"

    def __init__(
        self, message: str, *, missing: tuple[tuple[str, str], ...] = (), **told: Unpack[Told]
    ) -> None:
        super().__init__(message, **told)
        self.missing = missing


class HostError(TenderError):
    """The host refused something.

    Attributes:
        errno: The error number of the system call, 0 if there is none.
    """

    default_code = "host"

    def __init__(self, message: str, *, errno: int = 0, **told: Unpack[Told]) -> None:
        super().__init__(message, **told)
        self.errno = errno

    def to_dict(self) -> dict[str, object]:
        """Returns the error as plain data for JSON: that of `TenderError`, and `errno`."""
        return {**super().to_dict(), "errno": self.errno}


class KvmUnavailable(HostError):
    """This host has no usable /dev/kvm."""

    default_code = "kvm"


class DeviceError(HostError):
    """A network, a disk or a console could not be attached."""

    default_code = "device"


class VmStateError(TenderError):
    """The VM is not in a state that allows this.

    It has run already, it is closed, or it was made before a fork() of this process.
    """

    default_code = "state"
