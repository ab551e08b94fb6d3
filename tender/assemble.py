"""Makes the machine that a Vm holds: sets the console, attaches each device, and asks a backend for the rest.

The machine owns all of this through its `struct vm_handle`. vm.py runs it. pool.py leases one machine to one Vm after
another.
"""

import os

from tender.annotations import CAPTURE, DISCARD, BackendLike, ConsoleTarget, IsolationLayer
from tender.backend import create
from tender.backend.machine import RING_MODES, Machine
from tender.config import (
    LAYERS,
    BlockFile,
    GivenDevice,
    NetFd,
    OtherDevice,
    Tap,
    VmConfig,
    check_backend,
    path_text,
)
from tender.config import descriptor as config_descriptor
from tender.devices import opening
from tender.errors import ConfigError, DeviceError, HostError
from tender.image import Device, Image
from tender.manifest import match
from tender.native import CData, both_told, descriptor, ffi, host_error, lib, open_into, says, vm_handle
from tender.printable import printable


def assemble(image: Image, config: VmConfig, *, console: ConsoleTarget, backend: BackendLike) -> Machine:
    """Makes a machine that is ready to run `image` as `config` says.

    Raises:
        ConfigError: `console` or `backend` is wrong.
        ManifestError: The devices given are not those that the image declares.
        ImageError: The image does not fit into the memory, or is closed.
        DeviceError: A device or the console cannot be attached.
        HostError: The host refuses the machine, or lacks an isolation layer that `config` requires.
    """
    check_backend(backend)
    attachments = match(image.name, image.devices, config)
    handle = vm_handle()
    refused = lib.tn_vm_make(handle)
    if refused:
        raise host_error("a VM cannot be made", -refused)
    try:
        _set_console(handle, console)
        manifest = _attach(handle, image, attachments, config, backend)
        image.check_fits(config.mem_bytes)
        machine = create(
            backend,
            handle,
            image=image,
            mem_bytes=config.mem_bytes,
            manifest=manifest,
            cmdline=config.cmdline,
            net_ring=config.net_ring,
            debuggable=config.debuggable,
            flight_recorder=config.flight_recorder,
        )
        if config.require:
            _check_layers(machine, config.require)
    except BaseException:
        lib.tn_vm_close(handle)  # at once, because the exception's traceback may keep the handle
        raise
    return machine


def _check_layers(machine: Machine, required: tuple[IsolationLayer, ...]) -> None:
    missing = [name for name in LAYERS if name in required and name not in machine.isolation]
    if missing:
        layer, backend = LAYERS.index(missing[0]), machine.name.encode()
        raise HostError(
            says("layers_missing", ", ".join(missing)),
            code="isolation-missing",
            **both_told(lambda told: lib.tn_isolation_cure(layer, backend, told)),
        )


# ---- the console


def _set_console(handle: CData, console: object) -> None:
    answer = lib.tn_vm_set_console(lib.tn_vm(handle), _console_fd(handle, console))
    if answer < 0:
        raise DeviceError(f"console: {console}: {os.strerror(-answer)}", errno=-answer, code="device-console")


def _console_fd(handle: CData, console: object) -> int:
    """Returns the descriptor that the console goes to, or the number that C has for DISCARD or for Python."""
    if console == DISCARD:
        return int(lib.CONSOLE_DISCARD)
    if console == CAPTURE:
        return int(lib.CONSOLE_PYTHON)
    if isinstance(console, int) and not isinstance(console, bool):
        return config_descriptor("console", console)
    if isinstance(console, os.PathLike):
        return _open_console(handle, path_text("console", console))
    if callable(console):
        return int(lib.CONSOLE_PYTHON)
    raise ConfigError(
        f"console: {console!r} is not a descriptor, a path object, a callable, "
        f"CAPTURE ({CAPTURE.value!r}) or DISCARD ({DISCARD.value!r})",
        hint="for a file, give pathlib.Path(name)",
    )


def _open_console(handle: CData, path: str) -> int:
    file = descriptor()
    why, errno, hints = open_into(file, path, lib.FILE_CONSOLE)
    if why:
        raise DeviceError(f"console: {printable(path)}: {why}", errno=errno, code="device-console", **hints)
    fd = int(file.fd)
    lib.tn_vm_add_console(handle, file)
    return fd


# ---- devices


def _attach(
    handle: CData,
    image: Image,
    attachments: tuple[tuple[Device, GivenDevice], ...],
    config: VmConfig,
    backend: BackendLike,
) -> CData:
    """Opens each device, and returns the manifest as the guest will see it."""
    if not attachments:
        return ffi.addressof(image.elf.c, "manifest")  # the machine keeps image.elf
    manifest = ffi.new("struct mft *")
    patience, reattach = opening.Patience(config.lock_wait), config.net_reattach
    elf, ring = image.elf.c, RING_MODES[config.net_ring]
    ffi.memmove(manifest, ffi.addressof(elf, "manifest"), ffi.sizeof("struct mft"))
    mode = lib.tn_ring_mode(elf, config.mem_bytes, ring, backend.encode())
    attached: list[tuple[str, GivenDevice]] = []
    for declared, device in attachments:
        number, entry = declared.handle, manifest.e + declared.handle
        try:
            opening.attach(handle, number, device, elf, mode, entry, patience, reattach)
        except DeviceError as error:
            if error.code in ("tap-busy", "block-locked"):
                _refuse_twice(error, declared, device, attached)
            raise
        attached.append((declared.name, device))
    return manifest


def _refuse_twice(
    error: DeviceError, declared: Device, device: GivenDevice, attached: list[tuple[str, GivenDevice]]
) -> None:
    """Raises a clearer error if another device of this very VM has what `device` asks for."""
    for name, other in attached:
        if _same_thing(device, other):
            raise DeviceError(
                f"{error.message.partition(': in use already')[0]}: in use already: "
                f"given to this guest twice, as {name} and as {declared.name}",
                errno=error.errno,
                code=error.code,
                hint=f"give {declared.name} another one",
            ) from error


def _same_thing(one: GivenDevice, other: GivenDevice) -> bool:
    """Whether both are one interface, or one file by whatever name."""
    if isinstance(one, OtherDevice) or isinstance(other, OtherDevice):
        return False
    if isinstance(one, (Tap, NetFd)) or isinstance(other, (Tap, NetFd)):
        return isinstance(one, Tap) and isinstance(other, Tap) and one.name == other.name
    try:
        return os.path.samefile(*(it.path if isinstance(it, BlockFile) else it.fd for it in (one, other)))
    except OSError:
        return False
