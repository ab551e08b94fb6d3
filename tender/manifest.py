"""Which given device serves which declared device: each exactly one, or an error that names it."""

from collections.abc import Iterable

from tender.config import GivenDevice, VmConfig
from tender.cures import cure
from tender.errors import Hints, ManifestError
from tender.image import Device
from tender.native import DEVICE_KINDS, says
from tender.printable import printable, quoted

_VALUE = {"net": "TAP", "block": "FILE"}
_EXAMPLE = {"net": "Tap(...)", "block": "BlockFile(...)"}

Attachment = tuple[Device, GivenDevice]


def match(image_name: str, devices: tuple[Device, ...], config: VmConfig) -> tuple[Attachment, ...]:
    """Returns each declared device with what serves it, in the order of handles.

    A device that is given without a name serves the only one of its kind.

    Raises:
        ManifestError: A name is not declared, a declared device has nothing that serves it, or one has two.
    """
    if not devices and not config.net and not config.block and not config.devices:
        return ()
    given: dict[int, GivenDevice] = {}
    for name, device in (*config.net, *config.block, *config.devices):
        declared = _find(image_name, devices, device.kind, name)
        if declared.handle in given:
            raise ManifestError(f"{printable(declared.name)}: attached twice", code="device-twice")
        given[declared.handle] = device
    left = [device for device in devices if device.handle not in given]
    if left:
        raise _missing(image_name, left)
    return tuple((device, given[device.handle]) for device in devices)


def _find(image_name: str, devices: tuple[Device, ...], kind: str, name: str) -> Device:
    of_kind = [device for device in devices if device.kind == kind]
    if name:
        for device in of_kind:
            if device.name == name:
                return device
        raise ManifestError(
            says("undeclared", printable(name)),
            code="device-unknown",
            hint=declares(devices, image_name, first=[device.name for device in of_kind]),
        )
    if len(of_kind) != 1:
        what = f"{len(of_kind)} {kind} devices" if of_kind else f"no {kind} device"
        name, example, value = (
            of_kind[0].name if of_kind else "",
            _EXAMPLE.get(kind, "..."),
            _VALUE.get(kind, "..."),
        )
        hints = cure(
            "device-unnamed", kind=kind, name=name, quoted=quoted(name), example=example, value=value
        )
        raise ManifestError(
            f"{printable(image_name)} declares {what}, so a {kind} device must be given with a name"
            if of_kind
            else f"{printable(image_name)} declares {what}",
            code="device-unnamed",
            **(hints if of_kind else {}),
        )
    return of_kind[0]


def declares(devices: Iterable[Device], image_name: str, *, first: Iterable[str] = ()) -> str:
    """Returns `app.elf declares: net service0, block storage`, with the names in `first` before the others."""
    order = {name: index for index, name in enumerate(first)}
    listed = sorted(devices, key=lambda device: order.get(device.name, len(order)))
    if not listed:
        return f"{printable(image_name)} declares no devices"
    names = ", ".join(f"{device.kind} {printable(device.name)}" for device in listed)
    return f"{printable(image_name)} declares: {names}"


def _missing(image_name: str, left: list[Device]) -> ManifestError:
    types = dict(DEVICE_KINDS.values())
    lines = [
        says("unattached", printable(device.name), types.get(device.kind, "<undefined type>"))
        for device in left
    ]
    lines.append(says("attach_all"))
    known = [device for device in left if device.kind in _VALUE]
    hints: Hints = {"hint": "this kind of device is not known here"}
    if known:
        options = " ".join(f"--{it.kind}:{quoted(it.name)}={_VALUE[it.kind]}" for it in known)
        arguments = ", ".join(f"{kind}={{{_named(known, kind)}}}" for kind in _VALUE if _named(known, kind))
        hints = cure("device-missing", arguments=arguments, options=options, image=quoted(image_name))
    return ManifestError(
        "\n".join(lines),
        missing=tuple((device.name, device.kind) for device in left),
        code="device-missing",
        **hints,
    )


def _named(devices: list[Device], kind: str) -> str:
    return ", ".join(f"{device.name!r}: {_EXAMPLE[kind]}" for device in devices if device.kind == kind)
