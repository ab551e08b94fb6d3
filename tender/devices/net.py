"""What to do about a TAP interface or a descriptor that cannot be a guest's network.

C says why it cannot be one (bindings/devices/net/tap.c).
"""

import os
import pwd
from errno import EACCES, ENODEV, ENOENT, EPERM
from itertools import count

from tender.cures import cure
from tender.errors import Hints
from tender.native import CData, lib
from tender.printable import quoted

_CODES = {
    lib.DEVICE_TAP_MISSING: "tap-missing",
    lib.DEVICE_TAP_DOWN: "tap-down",
    lib.DEVICE_TAP_DENIED: "tap-denied",
    lib.DEVICE_TAP_BUSY: "tap-busy",
    lib.DEVICE_TAP_KIND: "tap-kind",
    lib.DEVICE_TUN: "tun-unavailable",
}
_FD_HINTS = {
    lib.DEVICE_NET_STREAM: "use a socket of type SOCK_DGRAM or SOCK_SEQPACKET",
    lib.DEVICE_NET_UNCONNECTED: "connect() it to the peer that the frames are for",
    lib.DEVICE_NET_KIND: "give a TAP interface, or a connected SOCK_DGRAM or SOCK_SEQPACKET socket",
    lib.DEVICE_PATH_ONLY: "open it without O_PATH",
}
_TUN_HINTS = {
    ENODEV: "load the driver, as root: modprobe tun",
    EACCES: "let your user open it: chmod 0666 /dev/net/tun (as root; the owner of the TAP is checked separately)",
}
_TUN_CURES = {ENOENT: "tun-missing", EPERM: "tun-container"}


def way_out(error: CData, shown: str, device: object, entry: object) -> tuple[str, Hints]:
    """Returns the code of an error, and what to type."""
    code = _CODES.get(error.problem, "device-net")
    if error.problem == lib.DEVICE_TUN and error.os_error in _TUN_CURES:
        return code, cure(_TUN_CURES[error.os_error])
    return code, {"hint": _hint(error.problem, error.os_error, shown)}


def _hint(problem: int, errno: int, word: str) -> str:
    name = quoted(word)
    if problem == lib.DEVICE_TAP_MISSING:
        return f"make it: {_making(name)}"
    if problem in (lib.DEVICE_TAP_DOWN, lib.DEVICE_TAP_KIND) and _is_other_kind(name):
        return _other_kind_hint(name)
    if problem == lib.DEVICE_TAP_DOWN:
        return f"switch it on: {_root()}ip link set {name} up"
    if problem == lib.DEVICE_TAP_DENIED:
        return f"it belongs to {_owner(name)}; make your own: {_making(_free_name())}"
    if problem == lib.DEVICE_TAP_BUSY:
        return "another process has it open; stop that one, or make another TAP"
    if problem == lib.DEVICE_TAP_KIND:
        return f"{name} exists, but not as a single-queue TAP (a tun, multi-queue or ordinary interface)"
    if problem == lib.DEVICE_TAP_NAME_LONG:
        return "interface names have at most 15 characters"
    if problem == lib.DEVICE_TAP_PATTERN:
        return "the name must be that of one interface, not a pattern"
    if problem in _FD_HINTS:
        return _FD_HINTS[problem]
    if problem == lib.DEVICE_DESCRIPTOR:
        return "the descriptor must be open in this process"
    return _TUN_HINTS.get(errno, "") if problem == lib.DEVICE_TUN else ""


def _is_other_kind(name: str, sys_class_net: str = "/sys/class/net") -> bool:
    return os.path.exists(f"{sys_class_net}/{name}") and not os.path.exists(
        f"{sys_class_net}/{name}/tun_flags"
    )


def _other_kind_hint(name: str, sys_class_net: str = "/sys/class/net") -> str:
    make = _making(_free_name())
    if os.path.exists(f"{sys_class_net}/{name}/bridge"):
        return f"{name} is a bridge: attach a TAP that is one of its ports: {make} master {name}"
    return f"{name} is not a TAP interface; make one: {make}"


def _owner(name: str) -> str:
    try:
        with open(f"/sys/class/net/{name}/owner") as file:
            uid = int(file.read())
    except (OSError, ValueError):
        return "another user"
    if uid < 0:
        return "root"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _making(name: str) -> str:
    owner = f" user {_user()}" if os.geteuid() else ""
    return f"{_root()}ip tuntap add {name} mode tap{owner} && {_root()}ip link set {name} up"


def _free_name(sys_class_net: str = "/sys/class/net") -> str:
    """Returns the first name tap0, tap1, ... that no interface has."""
    names = (f"tap{i}" for i in count())
    return next(name for name in names if not os.path.lexists(f"{sys_class_net}/{name}"))


def _root() -> str:
    """Returns what stands before a command that only root may execute."""
    return "sudo " if os.geteuid() else ""


def _user() -> str:
    try:
        return quoted(pwd.getpwuid(os.getuid()).pw_name)
    except KeyError:
        return str(os.getuid())
