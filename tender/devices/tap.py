"""Attaching to an existing TAP interface, with an answer to each way in which that fails.

The rules are solo5-hvt's: the interface exists, is up, and is single-queue; TAP without packet information.
Nothing is created and nothing needs root if the interface is the user's (`ip tuntap add ... user NAME`).
"""

import posix  # not os: its ABCs cost a tenth of the command's start

from tender.config import NetFd, Tap, parse_mac
from tender.errors import DeviceError
from tender.native import CData, ffi, lib

_ENOENT, _EPERM, _EACCES, _EBUSY, _EINVAL, _ENODEV, _ENAMETOOLONG, _ENETDOWN = 2, 1, 13, 16, 22, 19, 36, 100
_AF_INET, _SOCK_DGRAM = 2, 2


class NetAttachment:
    """An open network descriptor, with the MAC and MTU that the guest will see. close() it when done."""

    def __init__(self, fd: int, mac: bytes, mtu: int) -> None:
        self.fd = fd
        self.mac = mac
        self.mtu = mtu

    def close(self) -> None:
        if self.fd >= 0:
            posix.close(self.fd)
            self.fd = -1


def attach(device: Tap | NetFd) -> NetAttachment:
    """Opens `device`. Raises DeviceError that says what is wrong with the interface and what to type."""
    mac = parse_mac(device.mac) if device.mac else bytes(6)
    if mac == bytes(6):
        random = bytearray(posix.urandom(6))
        random[0] = random[0] & 0xFE | 0x02  # unicast, locally administered
        mac = bytes(random)
    if isinstance(device, Tap):
        fd, mtu = _open_tap(device.name)
        return NetAttachment(fd, mac, mtu)
    try:
        fd = posix.dup(device.fd)
    except OSError as error:
        raise _error(
            f"@{device.fd}", error.errno or 0, hint="the descriptor must be open in this process"
        ) from error
    posix.set_blocking(fd, False)
    return NetAttachment(fd, mac, device.mtu)


def _error(name: str, errno: int, *, hint: str = "", code: str = "device-net") -> DeviceError:
    return DeviceError(
        f"Could not attach interface: {name}: {posix.strerror(errno)}", errno=errno, hint=hint, code=code
    )


def _open_tap(name: str) -> tuple[int, int]:
    if len(name.encode("utf-8", "surrogateescape")) >= lib.IFNAMSIZ:
        raise _error(name, _ENAMETOOLONG, hint="interface names have at most 15 characters")
    with _Socket() as sock:
        flags = _flags(sock, name)
        mtu = _mtu(sock, name) if flags is not None else 0
    if flags is None:
        raise _error(
            name,
            _ENOENT,
            code="tap-missing",
            hint=f"make it: ip tuntap add {name} mode tap user {_user()} && ip link set {name} up",
        )
    if not flags & (lib.IFF_UP | lib.IFF_RUNNING):
        raise _error(name, _ENETDOWN, code="tap-down", hint=f"switch it on: ip link set {name} up")
    try:
        fd = posix.open("/dev/net/tun", posix.O_RDWR | posix.O_NONBLOCK | posix.O_CLOEXEC)
    except OSError as error:
        raise _tun_error(name, error.errno or 0) from error
    try:
        _bind(fd, name)
        return fd, mtu
    except BaseException:
        posix.close(fd)
        raise


def _tun_error(name: str, errno: int) -> DeviceError:
    hint = {
        _ENOENT: "load the driver: modprobe tun; in a container: --device /dev/net/tun",
        _ENODEV: "load the driver: modprobe tun",
        _EACCES: "let your user open it: chmod 0666 /dev/net/tun (as root; the TAP's owner is checked apart)",
        _EPERM: "this container may not open it: --device /dev/net/tun",
    }.get(errno, "")
    return DeviceError(
        f"Could not attach interface: {name}: /dev/net/tun: {posix.strerror(errno)}",
        errno=errno,
        hint=hint,
        code="tun-unavailable",
    )


def _request(name: str) -> CData:
    request = ffi.new("struct ifreq *")
    request.ifr_name = name.encode("utf-8", "surrogateescape")
    return request


def _bind(fd: int, name: str) -> None:
    """Binds `fd` to the interface, as a TAP without packet information."""
    request = _request(name)
    request.ifr_flags = lib.IFF_TAP | lib.IFF_NO_PI
    answer = lib.tn_ioctl_ptr(fd, lib.TUNSETIFF, request)
    if answer < 0:
        raise _bind_error(name, -answer)
    if ffi.string(request.ifr_name) != name.encode("utf-8", "surrogateescape"):
        raise _error(name, _EINVAL, hint="the name must be that of one interface, not a pattern")


def _bind_error(name: str, errno: int) -> DeviceError:
    hint, code = "", "device-net"
    if errno == _EPERM:
        owner = _owner(name)
        hint = f"it belongs to {owner}: make it yours: ip tuntap add {name} mode tap user {_user()}"
        code = "tap-denied"
    elif errno == _EBUSY:
        hint = "another process has it open; stop that one, or make another TAP"
        code = "tap-busy"
    elif errno == _EINVAL:
        hint = f"{name} exists, but not as a single-queue TAP (a tun, multi-queue or ordinary interface)"
        code = "tap-kind"
    return _error(name, errno, hint=hint, code=code)


def _owner(name: str) -> str:
    try:
        with open(f"/sys/class/net/{name}/owner") as file:
            uid = int(file.read())
    except (OSError, ValueError):
        return "another user"
    if uid < 0:
        return "root"
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _user() -> str:
    import os

    return os.environ.get("USER") or str(os.getuid())


class _Socket:
    """A datagram socket's descriptor, for interface ioctls; the socket module is not imported for it."""

    def __enter__(self) -> int:
        import _socket

        self._socket = _socket.socket(_AF_INET, _SOCK_DGRAM)
        return self._socket.fileno()

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _flags(sock: int, name: str) -> int | None:
    """The interface's flags, None if there is no such interface."""
    request = _request(name)
    answer = lib.tn_ioctl_ptr(sock, lib.SIOCGIFFLAGS, request)
    if answer == -_ENODEV:
        return None
    if answer < 0:
        raise _error(name, -answer)
    return int(request.ifr_flags) & 0xFFFF


def _mtu(sock: int, name: str) -> int:
    request = _request(name)
    answer = lib.tn_ioctl_ptr(sock, lib.SIOCGIFMTU, request)
    if answer < 0:
        raise _error(name, -answer)
    return int(request.ifr_mtu)
