"""Opens what a VM is given, of whatever kind it is.

C has the rules, the locks and the words for what is wrong (bindings/devices/device.h). The module of a kind beside this
one, if there is one, knows the ways out.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

from tender.config import BlockFd, GivenDevice, NetFd, OtherDevice, parse_mac
from tender.errors import ConfigError, DeviceError, Hints
from tender.native import DEVICE_KINDS, CData, answered, check, descriptor, ffi, lib
from tender.values import Owner

_LOOK_S = 0.05
"""Seconds between two attempts to get a lock that another process has."""


class Patience:
    """How long its holder waits for locks: the time for all of them together."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def wait(self) -> bool:
        """Waits a moment, and returns False if the time is over. Signals are handled, and their handlers may raise."""
        left = self._until - time.monotonic()
        if left > 0:
            time.sleep(min(left, _LOOK_S))
        return left > 0


class LockedFd(BlockFd):
    """The descriptor of an OpenDevice, whose checks and lock hold for its duplicates."""

    opened = True


class TapFd(NetFd):
    """An open TAP interface that was found by its name, as a device for a VM."""

    named = True


class OpenDevice(Owner):
    """An open device. `entry` has what the guest will see of it. close() closes it."""

    def __init__(self, device: GivenDevice, name: str) -> None:
        self.device = device
        self.owner = descriptor()
        self.entry = ffi.new("struct mft_entry *", {"type": _type(device.kind), "name": _bytes(name)})

    @property
    def fd(self) -> int:
        return int(self.owner.fd)

    def close(self) -> None:
        """Closes the descriptor.

        An error only says that the guest did not flush. It is ignored, because the descriptor is gone: close(2).
        """
        lib.tn_descriptor_close(self.owner)


def open_device(
    device: GivenDevice,
    name: str = "",
    *,
    image: CData = ffi.NULL,
    patience: Patience | None = None,
    **said: object,
) -> OpenDevice:
    """Opens `device` to serve as `name` of a guest.

    Args:
        device: What to open.
        name: The name that the guest declares.
        image: The `struct elf_image *` of the guest.
        patience: How long to wait for a lock that another process has.
        said: Fields of `struct device_settings` that replace the device's.

    Raises:
        DeviceError: It says what is wrong with the device and what to type.
    """
    made = OpenDevice(device, name)
    _ask(
        lambda settings, error: lib.tn_device_open(settings, image, made.entry, error, made.owner),
        device, made.entry, patience, **said,
    )  # fmt: skip
    return made


def attach(
    vm: CData, handle: int, device: GivenDevice, image: CData, ring_mode: int, entry: CData,
    patience: Patience, reattach: bool,
) -> None:  # fmt: skip
    """Opens `device` as device `handle` of a `struct vm_handle *`, which owns it then.

    `entry` is its entry of the manifest. Raises DeviceError.
    """
    _ask(
        lambda settings, error: lib.tn_vm_attach(vm, handle, settings, image, ring_mode, entry, error),
        device, entry, patience, reattach=reattach,
    )  # fmt: skip


def _ask(
    ask: Callable[[CData, CData], int],
    device: GivenDevice,
    entry: CData,
    patience: Patience | None,
    **said: object,
) -> None:
    settings, _kept = _settings(device, **said)
    error = ffi.new("struct device_error *")
    while (answer := answered(lambda: ask(settings, error), error)) < 0:
        if answer != -1:
            check(answer, "a device cannot be attached")
        if error.problem != lib.DEVICE_LOCKED or patience is None or not patience.wait():
            name = settings.source or settings.shown
            shown = ffi.string(name).decode("utf-8", "surrogateescape") if name else f"@{settings.fd}"
            raise refused(device.kind, error, shown, device, entry)


def check_given(device: GivenDevice) -> None:
    """For the command: checks a device without opening it.

    Raises:
        DeviceError: Its descriptor is one of Tender's own, or is not open.
        ConfigError: Its words do not describe a device of its kind.
    """
    settings, _kept = _settings(device)
    error = ffi.new("struct device_error *")
    fd = settings.fd
    if fd >= 0 and lib.tn_device_check_inherited(_type(device.kind), fd, error) < 0:
        raise DeviceError(
            ffi.string(error.text).decode(),
            errno=error.os_error,
            hint="it was not open when tender was started; open it for the command: "
            f"{fd}<>FILE in a shell, pass_fds=[{fd}] in Python's subprocess",
        )


def refused(
    kind: str, error: CData, shown: str, device: GivenDevice | None = None, entry: CData = None
) -> DeviceError:
    """Returns the DeviceError that a filled `struct device_error *` stands for, with the way out."""
    code, hints = f"device-{kind}", Hints()
    if error.problem == lib.DEVICE_CONSOLE:
        code, hints = "device-console", {"hint": "name another file for the console"}
    else:
        with suppress(ModuleNotFoundError):  # a kind without a module has no ways out
            code, hints = import_module(f"tender.devices.{kind}").way_out(error, shown, device, entry)
    text = ffi.string(error.text).decode("utf-8", "surrogateescape")
    return DeviceError(text, errno=error.os_error, code=code, **hints)


def _settings(device: GivenDevice, **said: object) -> tuple[CData, list[CData]]:
    """Returns a `struct device_settings *` and what it points to.

    Raises ConfigError for words that do not describe a device of its kind.
    """
    settings = ffi.new("struct device_settings *", {"fd": -1, "mtu": 1500, "sector_size": 512})
    kept: list[CData] = []

    def text(of: str) -> CData:
        kept.append(ffi.new("char[]", _bytes(of)))
        return kept[-1]

    if isinstance(device, OtherDevice):
        for option, word in device.words:
            if not lib.tn_device_configure(_type(device.kind), settings, text(option), text(word)):
                raise ConfigError(f"{word!r} is not a value of {option!r}")
    else:
        said = {"opened": device.opened, "named": device.named, **device._fields(), **said}
    for field, value in said.items():
        if field == "mac":
            settings.mac = parse_mac(str(value)) if value else bytes(6)
        elif isinstance(value, str):
            setattr(settings, "shown" if field == "shown" else "source", text(value))
        else:
            setattr(settings, field, value)
    return settings, kept


def _type(kind: str) -> int:
    return next((type for type, (name, _) in DEVICE_KINDS.items() if name == kind), 0)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
