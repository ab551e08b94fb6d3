"""What a VM is to be, as immutable values: memory, arguments, devices.

Values hold names and numbers only (NetFd and BlockFd, which hold a descriptor, refuse to be pickled);
nothing is opened here. `tender.devices` opens, `tender.manifest` decides what belongs to which device.
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
CMDLINE_MAX = 8191  # characters, without the final NUL
FD_MAX = 0x7FFFFFFF  # a descriptor is an int of C

LAYERS: Final = tuple(IsolationLayer)
"""The isolation layers that may stand around a guest, in the order of the bits of enum isolation_layer (core/layers.h)."""

BACKENDS: Final = tuple(Backend)
"""Machines by name, in the order in which "auto" tries them: bindings/machine/machines.c has it too."""

_UNITS = {"": MIB, "k": 1 << 10, "m": MIB, "g": 1 << 30}


def standing(bits: int) -> tuple[IsolationLayer, ...]:
    """The names of the layers whose bits are set."""
    return tuple(name for i, name in enumerate(LAYERS) if bits & 1 << i)


def one_of(what: str, value: object, words: tuple[Word, ...]) -> Word:
    """`value` if it is one of `words`. Raises ConfigError, which lists them."""
    for word in words:
        if isinstance(value, str) and value == word:
            return word
    raise ConfigError(f"{what}: {value!r} is none of {', '.join(words)}")


def check_backend(backend: object) -> Backend:
    """`backend` if it is one of BACKENDS. Raises ConfigError, which lists them."""
    return one_of("backend", backend, BACKENDS)


def check_layers(names: Iterable[object]) -> tuple[IsolationLayer, ...]:
    """The names of isolation layers as a tuple. Raises ConfigError for one that is none."""
    return tuple(one_of("require", name, LAYERS) for name in _strings("require", names))


def check_lock_wait(value: object) -> float:
    """Seconds to wait for a lock. Raises ConfigError for what is no such time."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigError(f"lock_wait: {value!r} is not a number of seconds")
    if not 0 <= value < 1e9:
        raise ConfigError(f"lock_wait: {value!r} is not a time from 0 to 1e9 seconds")
    return float(value)


def parse_mem(text: str | int) -> int:
    """Bytes of memory named by `text`: `64` (MiB, as solo5-hvt), `64M`, `64Mi`, `64MiB`, `1G`; not rounded.

    Raises ConfigError for anything else, and for zero.
    """
    lowered = str(text).strip().lower()
    number = lowered.rstrip("ibgmk")
    unit = lowered[len(number) :]
    if unit[:1] in ("k", "m", "g") and unit[1:] in ("i", "b", "ib"):
        unit = unit[0]
    number = number.strip()
    if not (number.isascii() and number.isdigit()) or unit not in _UNITS or int(number) == 0:
        raise ConfigError(
            f"mem: {text!r} is not an amount of memory", hint="write MiB, or a unit: 64, 64M, 1G"
        )
    return int(number) * _UNITS[unit]


def floor_mem(mem_bytes: int) -> int:
    """Rounded down to 2 MiB, at least 2 MiB; of any amount, also one that no guest can have."""
    return max(mem_bytes // MEM_GRANULE * MEM_GRANULE, MEM_GRANULE)


def round_mem(mem_bytes: int) -> int:
    """The amount a guest really gets: that of floor_mem(). Raises ConfigError above 4 GiB."""
    rounded = floor_mem(mem_bytes)
    if rounded > MEM_MAX:
        raise ConfigError(
            f"guest memory size {rounded} bytes exceeds the max size {MEM_MAX} bytes", **cure("mem-max")
        )
    return rounded


def parse_mac(text: str) -> bytes:
    """The six bytes of `XX:XX:XX:XX:XX:XX`, an interface's. Raises ConfigError for anything else."""
    parts = text.split(":")
    if len(parts) != 6 or not all(1 <= len(p) <= 2 and all(c in _HEX for c in p) for p in parts):
        raise ConfigError(f"MAC address {text!r} is not of the form XX:XX:XX:XX:XX:XX")
    mac = bytes(int(part, 16) for part in parts)
    if mac[0] & 1:
        raise ConfigError(
            f"MAC address {text!r} is of a group (multicast or broadcast), and no interface's",
            hint="the first byte must be even: 02:00:00:00:00:01",
        )
    return mac


_HEX = "0123456789abcdefABCDEF"


def _check_mac(what: str, mac: object) -> None:
    if mac is not None:
        parse_mac(_text(f"{what}: mac", mac))


# A value of a wrong type is refused where it is given. Later it would be taken for something else, or its failure
# for a fault of the guest.


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
    """`value` if it is the number of a descriptor. Raises ConfigError for what cannot be one."""
    fd = _number(what, value)
    if not 0 <= fd <= FD_MAX:
        raise ConfigError(f"{what}: {value} is not a descriptor")
    return fd


def path_text(what: str, path: object) -> str:
    """The text of a path. Raises ConfigError for what is none."""
    if not isinstance(path, str):
        if not isinstance(path, os.PathLike):
            raise ConfigError(f"{what}: {path!r} is not a path")
        path = os.fspath(path)
    return _text(what, path)


def _strings(what: str, values: object) -> tuple[str, ...]:
    """A sequence of strings as a tuple. Raises ConfigError for one string, which is a sequence too, and for no strings."""
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
    """An existing TAP interface by name; `mac` is the guest's address (None: a random local one)."""

    kind, named, opened = DeviceKind.NET, True, False
    name: str = field(kw_only=False)
    mac: str | None = None

    def __post_init__(self) -> None:
        _check_mac("Tap", self.mac)
        if not _text("Tap: name", self.name):
            raise ConfigError("Tap: the interface has no name")


class _Descriptor(Value):
    """A value with the number of a descriptor, which only this process has: it is copied, but not pickled."""

    __slots__ = ()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(f"{type(self).__name__} holds a descriptor of this process and cannot be pickled")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self


@value
class NetFd(_Descriptor):
    """An inherited descriptor whose read() and write() carry one Ethernet frame each: a TAP, a socketpair.

    It stays the caller's: a VM works on a duplicate. It is switched to non-blocking. `mtu` in bytes, without
    the 14 of the Ethernet header.
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
    """Raises ConfigError unless a disk can have sectors of `size` bytes."""
    if size < 512 or size > 32768 or size & (size - 1):
        raise ConfigError(
            "Block size must be a multiple of 2 greater than or equal 512",
            hint=f"got {size}: sector sizes are the powers of two from 512 to 32768",
        )


class BlockFile(Value):
    """A file or block device by path. `sector_size` in bytes is what the guest sees as its block size.

    An image of another format than raw (qcow2, VMDK, VDI, VHD, VHDX) is refused unless `raw` says that its bytes are
    the disk's.
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
    """An inherited descriptor of a file or block device; it stays the caller's. `raw` as for BlockFile."""

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
    """A device of a kind that has no keyword of VmConfig: `kind` is its name in abi/devices.def, and `words` are what
    options would say of it, by their names without dashes: `OtherDevice("net", {"net": "tap0"})`."""

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

    mem    memory: MiB as an int, or text with a unit (`"64M"`); a multiple of 2 MiB, 2 MiB to 4 GiB
    args   the guest's arguments, joined with single spaces into its command line (at most 8191 bytes)
    net    a device for each network the unikernel declares: `{"service0": Tap("tap0")}`; a bare device
           serves the only one
    block  the same for block devices: `{"storage": BlockFile("disk.img")}`
    devices  devices of other kinds, by name
    net_reattach  whether a TAP whose interface is deleted while the guest runs is attached to the next one of its name
    net_ring  whether a guest with a network gets a ring in shared memory for its frames, in the last 2 MiB of `mem`:
           "auto" (with KVM and two processors, if memory allows), "on" (on one processor too, and always served by a
           thread of its own), "inline" (served on the guest's own thread: the same order every time), "off"
    require  isolation layers without which the guest is not run, of LAYERS: ("landlock", "seccomp-filter")
    lock_wait  seconds that a Vm waits, while it is made, for disks that another has locked: the time for all of them
    """

    __slots__ = ("mem_bytes", "args", "net", "block", "devices", "net_ring", "net_reattach", "require",
                 "lock_wait")  # fmt: skip
    mem_bytes: int
    args: tuple[str, ...]
    net: tuple[tuple[str, NetDevice], ...]
    block: tuple[tuple[str, BlockDevice], ...]
    devices: tuple[tuple[str, OtherDevice], ...]
    net_ring: NetRing
    net_reattach: bool
    require: tuple[IsolationLayer, ...]
    lock_wait: float

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

    def with_args(self, args: tuple[str, ...] | list[str]) -> "VmConfig":
        """The same with other arguments. Raises ConfigError as the constructor does."""
        return self._with(args=_words(args))

    @property
    def cmdline(self) -> bytes:
        """The guest's command line, as it will find it in its memory."""
        return cmdline(self.args)


def cmdline(args: tuple[str, ...]) -> bytes:
    """The words joined with single spaces, undecodable bytes kept. Raises ConfigError past 8191 bytes, and for what no
    bytes stand for."""
    try:
        line = " ".join(args).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"args: {error.object[error.start]!r} of a guest argument is half of a character",
            hint="a byte that is no text is written as os.fsdecode() does: '\\udc80' to '\\udcff'",
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
    """Devices by name; a bare one has none: manifest.match gives it to the only device of its kind."""
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
