"""Turns the words about devices into the devices of a VmConfig, once the image has told the names.

Settings are applied in their order, so the last one for a name wins, whether the name was written or left out. Nothing
is opened here.
"""

from collections.abc import Iterable

from tender.cli.nearest import by_nearness, nearest
from tender.cli.options import BY_NAME, Setting, UsageError, invalid_option
from tender.config import BlockDevice, BlockFd, BlockFile, NetDevice, NetFd, OtherDevice, Tap
from tender.devices.opening import check_given
from tender.errors import ConfigError
from tender.image import Device
from tender.manifest import declares
from tender.native import says
from tender.printable import printable, quoted

_WORDS = {"net": "network", "block": "block"}


def resolve(
    settings: Iterable[Setting], devices: Iterable[Device], image: str
) -> tuple[dict[str, NetDevice], dict[str, BlockDevice], dict[str, OtherDevice]]:
    """Returns the network devices, the block devices and those of other kinds, by name.

    Raises UsageError for a name that `image` does not declare, and for a value that no device can have.
    """
    chosen: dict[tuple[str, str], dict[str, Setting]] = {}
    devices = tuple(devices)
    for setting in settings:
        kind = BY_NAME[f"--{setting.what}"].device
        name = setting.name or _only(kind, devices, image, setting)
        if (name, kind) not in [(device.name, device.kind) for device in devices]:
            raise _undeclared(name, kind, devices, image, setting)
        chosen.setdefault((kind, name), {})[setting.what] = setting
    net: dict[str, NetDevice] = {}
    block: dict[str, BlockDevice] = {}
    others: dict[str, OtherDevice] = {}
    for (kind, name), by_what in chosen.items():
        if kind == "net" and "net" in by_what:
            net[name] = _net(by_what["net"], by_what.get("net-mac"))
        elif kind == "block" and "block" in by_what:
            block[name] = _block(by_what["block"], by_what.get("block-sector-size"))
        elif kind in by_what:
            others[name] = _other(kind, by_what)
    return net, block, others


def _net(device: Setting, mac_setting: Setting | None) -> NetDevice:
    mac = None if mac_setting is None else str(mac_setting.value)
    if mac is not None and not mac.strip("0:"):
        mac = None  # all zeros ask for a random address, as with solo5-hvt
    if isinstance(device.value, int):
        return NetFd(device.value, mac=mac)
    return Tap(device.value, mac=mac)


def _block(device: Setting, size_setting: Setting | None) -> BlockDevice:
    sector_size = 512 if size_setting is None else int(size_setting.value)
    try:
        if isinstance(device.value, int):
            return BlockFd(device.value, read_only=device.read_only, sector_size=sector_size, raw=device.raw)
        return BlockFile(device.value, read_only=device.read_only, sector_size=sector_size, raw=device.raw)
    except ConfigError as error:
        option = (size_setting or device).option
        raise invalid_option(option, error.message, error.command_hint) from None


def _other(kind: str, by_what: dict[str, Setting]) -> OtherDevice:
    for what, setting in by_what.items():
        try:
            check_given(OtherDevice(kind, {what: str(setting.value)}))
        except ConfigError as error:
            raise invalid_option(
                setting.option, error.message, f"write {BY_NAME[f'--{what}'].form}"
            ) from None
    return OtherDevice(kind, {what: str(setting.value) for what, setting in by_what.items()})


def _only(kind: str, devices: tuple[Device, ...], image: str, setting: Setting) -> str:
    names = [device.name for device in devices if device.kind == kind]
    if len(names) == 1:
        return names[0]
    is_fd = isinstance(setting.value, int) and setting.what in ("net", "block")
    value = f"@{setting.value}" if is_fd else setting.value
    if setting.what == "block":
        value = f"{value}{':raw' if setting.raw else ''}{':ro' if setting.read_only else ''}"
    if names:
        reason = f"{printable(image)} declares {len(names)} {_WORDS.get(kind, kind)} devices: say which"
        way_out = "\n".join(quoted(f"--{setting.what}:{name}={value}") for name in names)
    else:
        reason = f"{printable(image)} declares no {_WORDS.get(kind, kind)} device"
        way_out = declares(devices, image)
    return _refuse(reason, setting, way_out)


def _refuse(reason: str, setting: Setting, way_out: str) -> str:
    raise invalid_option(setting.option, reason, way_out)


def _undeclared(
    name: str, kind: str, devices: tuple[Device, ...], image: str, setting: Setting
) -> UsageError:
    same_name = [device for device in devices if device.name == name]
    ordered = by_nearness(name, [device.name for device in devices if device.kind == kind])
    if same_name:
        way_out = f"{printable(name)} is a {_WORDS.get(same_name[0].kind, same_name[0].kind)} device"
        if same_name[0].kind in _WORDS:
            way_out += f": use --{same_name[0].kind}:{printable(name)}=..."
    else:
        way_out = declares(devices, image, first=ordered)
        near = nearest(name, ordered)
        if near:
            rest = setting.option[len(f"--{setting.what}:{name}=") :]
            option = quoted(f"--{setting.what}:{near}={rest}")
            way_out = f"did you mean {option}?\n{way_out}"
    return invalid_option(setting.option, says("undeclared", printable(name)), way_out)
