"""What a VM is to be, as immutable values: memory, arguments, devices.

Values hold names and numbers only. NetFd and BlockFd hold the number of a descriptor, and refuse to be pickled. Nothing
is opened here: `tender.devices` opens, and `tender.manifest` decides which device serves which name.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any, Final, Self, TypeVar

from tender.annotations import (
    Backend,
    DeviceKind,
    IsolationLayer,
    IsolationLayerLike,
    NetRing,
    NetRingLike,
)
from tender.cures import cure
from tender.errors import ConfigError
from tender.values import Value, value

Word = TypeVar("Word", bound=str)

MIB = 1 << 20
MEM_GRANULE = 2 * MIB
MEM_MAX = 4096 * MIB
MEM_DEFAULT = 512 * MIB
NET_RINGS: Final = tuple(NetRing)
# Bytes, without the final NUL. Source: Solo5's hvt_abi.h, whose command line has 8192 with it.
CMDLINE_MAX = 8191
FD_MAX = 0x7FFFFFFF  # a descriptor is an int of C

LAYERS: Final = tuple(IsolationLayer)
"""The isolation layers that may stand around a guest, in the order of enum isolation_layer (bindings/machine/layers.h)."""

BACKENDS: Final = tuple(Backend)
"""The backends by name, in the order in which "auto" tries them. bindings/machine/machines.c has the same order."""

_UNITS = {"": MIB, "k": 1 << 10, "m": MIB, "g": 1 << 30}


def standing(bits: int) -> tuple[IsolationLayer, ...]:
    """Returns the names of the layers whose bits are set."""
    return tuple(name for i, name in enumerate(LAYERS) if bits & 1 << i)


def one_of(what: str, value: object, words: tuple[Word, ...]) -> Word:
    """Returns the member of `words` that `value` is. Raises ConfigError, which lists them."""
    for word in words:
        if isinstance(value, str) and value == word:
            return word
    raise ConfigError(f"{what}: {value!r} is none of {', '.join(words)}")


def check_backend(backend: object) -> Backend:
    """Returns the member of BACKENDS that `backend` is. Raises ConfigError, which lists them."""
    return one_of("backend", backend, BACKENDS)


def check_layers(names: Iterable[object]) -> tuple[IsolationLayer, ...]:
    """Returns the names of isolation layers as a tuple. Raises ConfigError for a name that is not one."""
    return tuple(one_of("require", name, LAYERS) for name in _strings("require", names))


def check_lock_wait(value: object) -> float:
    """Returns the seconds to wait for a lock. Raises ConfigError for a value that is no such time."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigError(f"lock_wait: {value!r} is not a number of seconds")
    if not 0 <= value < 1e9:
        raise ConfigError(f"lock_wait: {value!r} is not a time from 0 to 1e9 seconds")
    return float(value)


def parse_mem(text: str | int) -> int:
    """Returns the bytes of memory that `text` names, not rounded: `64` (MiB, as solo5-hvt), `64M`, `64Mi`, `64MiB`, `1G`.

    Raises ConfigError for any other text, and for zero.
    """
    lowered = str(text).strip().lower()
    number = lowered.rstrip("ibgmk")
    unit = lowered[len(number) :]
    if unit[:1] in ("k", "m", "g") and unit[1:] in ("i", "b", "ib"):
        unit = unit[0]
    number = number.strip()
    forms = "write MiB, or a unit: 64, 64M, 1G"
    if not (number.isascii() and number.isdigit()) or unit not in _UNITS:
        raise ConfigError(f"mem: {text!r} is not an amount of memory", hint=forms)
    if int(number) == 0:
        raise ConfigError(f"mem: {text!r} is not an amount of memory", hint=f"the least is 2 MiB; {forms}")
    return int(number) * _UNITS[unit]


def floor_mem(mem_bytes: int) -> int:
    """Rounds down to a multiple of 2 MiB, at least 2 MiB. It takes any amount, also one that no guest can have."""
    return max(mem_bytes // MEM_GRANULE * MEM_GRANULE, MEM_GRANULE)


def round_mem(mem_bytes: int) -> int:
    """Returns the amount that a guest really gets, that of floor_mem(). Raises ConfigError above 4 GiB."""
    rounded = floor_mem(mem_bytes)
    if rounded > MEM_MAX:
        raise ConfigError(
            f"guest memory size {rounded} bytes exceeds the max size {MEM_MAX} bytes", **cure("mem-max")
        )
    return rounded


def parse_mac(text: str) -> bytes:
    """Returns the six bytes of the address `XX:XX:XX:XX:XX:XX` of an interface. Raises ConfigError for any other text."""
    parts = text.split(":")
    if len(parts) != 6 or not all(1 <= len(p) <= 2 and all(c in _HEX for c in p) for p in parts):
        raise ConfigError(f"MAC address {text!r} is not of the form XX:XX:XX:XX:XX:XX")
    mac = bytes(int(part, 16) for part in parts)
    if mac[0] & 1:
        raise ConfigError(
            f"MAC address {text!r} is the address of a group (multicast or broadcast) and not of an interface",
            hint="the first byte must be even: 02:00:00:00:00:01",
        )
    return mac


_HEX = "0123456789abcdefABCDEF"


def _check_mac(what: str, mac: object) -> None:
    if mac is not None:
        parse_mac(_text(f"{what}: mac", mac))


# A value of a wrong type is refused where it is given. Later it would be taken for another value, or its failure for a
# fault of the guest.


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{what}: {value!r} is not a string")
    if "\0" in value:
        raise ConfigError(f"{what}: {value!r} contains a NUL byte")
    return value


def _number(what: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{what}: {value!r} is not a whole number")
    return value


def _flag(what: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{what}: {value!r} is neither True nor False")
    return value


def descriptor(what: str, value: object) -> int:
    """Returns `value` if it can be the number of a descriptor. Raises ConfigError if not."""
    fd = _number(what, value)
    if not 0 <= fd <= FD_MAX:
        raise ConfigError(f"{what}: {value} is not a descriptor")
    return fd


def path_text(what: str, path: object) -> str:
    """Returns the text of a path. Raises ConfigError for a value that is not a path."""
    if not isinstance(path, str):
        if not isinstance(path, os.PathLike):
            raise ConfigError(f"{what}: {path!r} is not a path")
        path = os.fspath(path)
    return _text(what, path)


def _strings(what: str, values: object) -> tuple[str, ...]:
    """Returns a sequence of strings as a tuple.

    Raises ConfigError for a single string, which is a sequence too, and for items that are not strings.
    """
    if isinstance(values, (str, bytes)):
        raise ConfigError(
            f"{what}: {values!r} is one string, not a sequence of words",
            hint=f"{what}=({values!r},)",
        )
    try:
        words: tuple[object, ...] = tuple(values)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(f"{what}: {values!r} is not a sequence of words") from None
    strings = tuple(word for word in words if isinstance(word, str))
    if len(strings) != len(words):
        wrong = next(word for word in words if not isinstance(word, str))
        raise ConfigError(f"{what}: {wrong!r} is not a string")
    return strings


@value
class Tap(Value):
    """A network by the name of an existing TAP interface.

    Raises:
        ConfigError: The name is empty or no string, or `mac` is not the address of an interface.

    Attributes:
        name: The name of the interface.
        mac: The guest's address as "XX:XX:XX:XX:XX:XX". None: a random address that is local.
    """

    kind, named, opened = DeviceKind.NET, True, False
    name: str = field(kw_only=False)
    mac: str | None = None

    def __post_init__(self) -> None:
        _check_mac("Tap", self.mac)
        if not _text("Tap: name", self.name):
            raise ConfigError("Tap: the interface has no name")


class _Descriptor(Value):
    """A value with the number of a descriptor, which only this process has. It can be copied but not pickled."""

    __slots__ = ()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(f"{type(self).__name__} holds a descriptor of this process and cannot be pickled")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self


@value
class NetFd(_Descriptor):
    """A network by an open descriptor: a TAP interface, or a connected socket of type SOCK_DGRAM or SOCK_SEQPACKET.

    Each read() and write() of it carries one Ethernet frame. The descriptor stays yours: a VM works on a duplicate. It
    is switched to non-blocking, which a duplicate shares.

    Raises:
        ConfigError: `fd` is not a descriptor's number, `mtu` is out of its range, or `mac` is not an address.

    Attributes:
        fd: The number of the descriptor.
        mac: The guest's address as "XX:XX:XX:XX:XX:XX". None: a random address that is local.
        mtu: The longest payload of a frame in bytes, 68 to 65535, without the 14 bytes of the Ethernet header.
    """

    kind, named, opened = DeviceKind.NET, False, False  # named: tender.devices has opened it by its name
    fd: int = field(kw_only=False)
    mac: str | None = None
    mtu: int = 1500

    def __post_init__(self) -> None:
        _check_mac("NetFd", self.mac)
        descriptor("NetFd: fd", self.fd)
        if not 68 <= _number("NetFd: mtu", self.mtu) <= 65535:
            raise ConfigError(f"NetFd: mtu {self.mtu} is not in 68..65535")


def check_sector(size: int) -> None:
    """Checks that a disk can have sectors of `size` bytes. Raises ConfigError."""
    if size < 512 or size > 32768 or size & (size - 1):
        raise ConfigError(
            "Block size must be a multiple of 2 greater than or equal 512",
            hint=f"got {size}: sector sizes are the powers of two from 512 to 32768",
        )


class BlockFile(Value):
    """A disk by the path of a file or a block device.

    The file is locked while a VM has it: exclusively, or shared if it is read-only.

    Args:
        path: The file.
        read_only: Whether the guest's writes are refused.
        sector_size: The block size that the guest sees, in bytes: a power of two from 512 to 32768.
        raw: Takes the bytes of the file as the disk's, also where they look like another format. Without it a qcow2,
            VMDK, VDI, VHD or VHDX image is refused when the Vm is made.

    Raises:
        ConfigError: An argument is not one of its values.

    Attributes:
        path: The path as text.
        read_only: Whether the guest's writes are refused.
        sector_size: The block size that the guest sees, in bytes.
        raw: Whether the bytes of the file are the disk's in any case.
    """

    __slots__ = ("path", "read_only", "sector_size", "raw")
    kind, named, opened = DeviceKind.BLOCK, False, False
    path: str
    read_only: bool
    sector_size: int
    raw: bool

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        sector_size: int = 512,
        raw: bool = False,
    ) -> None:
        check_sector(_number("BlockFile: sector_size", sector_size))
        self.path = path_text("BlockFile: path", path)
        self.read_only = _flag("BlockFile: read_only", read_only)
        self.sector_size = sector_size
        self.raw = _flag("BlockFile: raw", raw)


@value
class BlockFd(_Descriptor):
    """A disk by an open descriptor of a file or a block device.

    The descriptor stays yours.

    Raises:
        ConfigError: An argument is not one of its values.

    Attributes:
        fd: The number of the descriptor.
        read_only: Whether the guest's writes are refused.
        sector_size: The block size that the guest sees, in bytes: a power of two from 512 to 32768.
        raw: As for `BlockFile`.
    """

    kind, named, opened = DeviceKind.BLOCK, False, False  # opened: by tender.devices, which has locked it
    fd: int = field(kw_only=False)
    read_only: bool = False
    sector_size: int = 512
    raw: bool = False

    def __post_init__(self) -> None:
        check_sector(_number("BlockFd: sector_size", self.sector_size))
        descriptor("BlockFd: fd", self.fd)
        _flag("BlockFd: read_only", self.read_only)
        _flag("BlockFd: raw", self.raw)


NetDevice = Tap | NetFd
BlockDevice = BlockFile | BlockFd


class OtherDevice(Value):
    """A device of a kind that has no argument of VmConfig.

    Args:
        kind: Its name in abi/devices.def.
        words: What options would say of it, by their names without dashes: `OtherDevice("net", {"net": "tap0"})`.

    Raises:
        ConfigError: `kind` is no string, or `words` has no strings by option.

    Attributes:
        kind: The name of its kind.
        words: Pairs of an option and its value.
    """

    __slots__ = ("kind", "words")
    kind: str
    words: tuple[tuple[str, str], ...]

    def __init__(self, kind: str, words: Mapping[str, str]) -> None:
        self.kind = _text("OtherDevice: kind", kind)
        if not isinstance(words, Mapping):
            raise ConfigError(f"OtherDevice: words: {words!r} has no values by option")
        self.words = tuple(
            (_text("OtherDevice: words", option), _text(f"OtherDevice: words: {option}", value))
            for option, value in words.items()
        )


GivenDevice = NetDevice | BlockDevice | OtherDevice


class VmConfig(Value):
    """Everything about a VM that is decided before it exists.

    Args:
        mem: The guest's memory: MiB as an int, or text with a unit (`"64M"`, `"1G"`). A multiple of 2 MiB, from 2 MiB
            to 4 GiB. Source: the limits of Solo5's hvt.
        args: The guest's arguments. They are joined with single spaces to its command line, at most 8191 bytes.
        net: A device for each network that the unikernel declares, by name: `{"service0": Tap("tap0")}`. A device
            without a name serves the only network.
        block: The same for disks: `{"storage": BlockFile("disk.img")}`.
        devices: Devices of other kinds, by name.
        net_ring: Whether a guest with a network gets a ring in shared memory for its frames, in the last 2 MiB of
            `mem`. "auto": on KVM with two processors, if the memory allows it. "on": on one processor too, and always
            served by a thread of its own. "inline": served by the guest's own thread, in the same order every time.
            "off": no ring.
        net_reattach: Whether a TAP whose interface is deleted while the guest runs is attached to the next interface of
            its name.
        require: Isolation layers without which the guest is not run: `("landlock", "seccomp-filter")`.
        lock_wait: How many seconds a Vm waits, while it is made, for disks that others have locked: the time for all of
            them together.
        debuggable: Whether any process of this user may debug the guest, also where the kernel's Yama allows that to a
            parent only. On KVM this is so for this whole process, and from then on.
        flight_recorder: Whether the guest's last hypercalls are recorded from its start, for cores and crash reports.

    Raises:
        ConfigError: An argument is wrong. The error names the argument and its value.

    Attributes:
        mem_bytes: The guest's memory in bytes.
        args: The guest's arguments.
        net: Pairs of a name and a device. The name is empty for a device that was given without one.
        block: The same for disks.
        devices: The same for devices of other kinds.
        net_ring: What was given.
        net_reattach: What was given.
        require: The layers that were given.
        lock_wait: Seconds.
        debuggable: What was given.
        flight_recorder: What was given.
    """

    __slots__ = ("mem_bytes", "args", "net", "block", "devices", "net_ring", "net_reattach", "require",
                 "lock_wait", "debuggable", "flight_recorder")  # fmt: skip
    mem_bytes: int
    args: tuple[str, ...]
    net: tuple[tuple[str, NetDevice], ...]
    block: tuple[tuple[str, BlockDevice], ...]
    devices: tuple[tuple[str, OtherDevice], ...]
    net_ring: NetRing
    net_reattach: bool
    require: tuple[IsolationLayer, ...]
    lock_wait: float
    debuggable: bool
    flight_recorder: bool

    def __init__(
        self,
        *,
        mem: int | str = 512,
        args: tuple[str, ...] | list[str] = (),
        net: Mapping[str, NetDevice] | NetDevice | None = None,
        block: Mapping[str, BlockDevice] | BlockDevice | None = None,
        devices: Mapping[str, OtherDevice] | OtherDevice | None = None,
        net_ring: NetRingLike = "auto",
        net_reattach: bool = False,
        require: Iterable[IsolationLayerLike] = (),
        lock_wait: float = 0,
        debuggable: bool = False,
        flight_recorder: bool = False,
    ) -> None:
        if not isinstance(mem, (int, str)) or isinstance(mem, bool):
            raise ConfigError(
                f"mem: {mem!r} is not an amount of memory",
                hint="give MiB as an int, or text with a unit: '64M'",
            )
        mem_bytes = parse_mem(mem)
        if round_mem(mem_bytes) != mem_bytes:
            raise ConfigError(
                f"mem: {mem} is not a multiple of 2 MiB between 2 MiB and 4 GiB",
                hint=f"the nearest below is {round_mem(mem_bytes) // MIB} MiB",
            )
        words = _words(args)
        networks = _named("net", net, (Tap, NetFd))
        self.mem_bytes = mem_bytes
        self.args = words
        self.net = networks
        self.block = _named("block", block, (BlockFile, BlockFd))
        self.devices = _named("devices", devices, (OtherDevice,))
        self.net_ring = one_of("net_ring", net_ring, NET_RINGS)
        self.net_reattach = _reattaches(net_reattach, networks)
        self.require = check_layers(require)
        self.lock_wait = check_lock_wait(lock_wait)
        self.debuggable = _flag("debuggable", debuggable)
        self.flight_recorder = _flag("flight_recorder", flight_recorder)

    def with_args(self, args: tuple[str, ...] | list[str]) -> "VmConfig":
        """Returns this configuration with other arguments for the guest.

        Args:
            args: The guest's arguments.

        Raises:
            ConfigError: They are not strings, or longer than 8191 bytes together.
        """
        return self._with(args=_words(args))

    @property
    def cmdline(self) -> bytes:
        """The guest's command line as the guest finds it in its memory, in bytes and without the final NUL."""
        return cmdline(self.args)


def cmdline(args: tuple[str, ...]) -> bytes:
    """Returns the words joined with single spaces. Bytes that are no text are kept.

    Raises ConfigError for more than 8191 bytes, for a NUL byte, and for a character that no bytes stand for.
    """
    try:
        line = " ".join(args).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"args: {error.object[error.start]!r} of a guest argument is half of a character",
            hint="write a byte that is no text as os.fsdecode() does: '\\udc80' to '\\udcff'",
        ) from None
    if len(line) > CMDLINE_MAX:
        from tender.native import says

        raise ConfigError(says("args_too_long", CMDLINE_MAX))
    if b"\0" in line:
        raise ConfigError("args: a guest argument contains a NUL byte")
    return line


def _words(args: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    words = _strings("args", args)
    cmdline(words)
    return words


def _reattaches(value: object, networks: tuple[tuple[str, NetDevice], ...]) -> bool:
    if _flag("net_reattach", value) and not any(device.named for _, device in networks):
        raise ConfigError(
            "net_reattach: no network is attached by an interface's name",
            hint="a descriptor is for its owner to attach again" if networks else "net=Tap(name) is one",
        )
    return bool(value)


def _named(what: str, devices: object, kinds: tuple[type, ...]) -> tuple[tuple[str, Any], ...]:
    """Returns devices by name. manifest.match() gives a device without a name to the only one of its kind."""
    if devices is None:
        return ()
    by_name = hasattr(type(devices), "items")
    named = tuple(devices.items()) if by_name else (("", devices),)  # type: ignore[attr-defined]
    for name, device in named:
        where = f"{what}: {_text(f'{what}: name', name)}" if by_name else what
        if not isinstance(device, kinds):
            raise ConfigError(
                f"{where}: {device!r} is none of {', '.join(kind.__name__ for kind in kinds)}",
                hint=f"write {kinds[0].__name__}({device!r})" if isinstance(device, str) else "",
            )
    return named
