"""`tender solo5-hvt`: exactly the command line of solo5-hvt, for scripts and managers that were written for it.

    solo5-hvt [--mem=N] [--net:NAME=IFACE|@FD] [--net-mac:NAME=MAC] [--block:NAME=PATH|@FD]
              [--block-sector-size:NAME=N] [--no-net-ring] [--net-reattach] [--] KERNEL [ARGS...]

There are two passes, as in solo5-hvt, because they decide which of two errors is reported. The first pass finds KERNEL,
which is then opened and checked. The second pass takes the options in order. It knows the manifest, and opens each device
at once. Then memory, disks and devices that nothing serves are checked, in that order. From there on the path is that of
`tender run`.

There are no hints. Each line on stderr is in solo5-hvt's words, and begins with the name by which the command was called.
"""

import os
import time
from errno import EINVAL, ERANGE
from typing import TYPE_CHECKING

from tender.cli import run, say, usage
from tender.cli.main import last_resort
from tender.cli.option_table import BLOCK, FLAG, NET, NET_MAC, SECTOR_SIZE
from tender.cli.options import (
    BY_NAME,
    NAME_MAX,
    RunOptions,
    UsageError,
    ambient,
    check_launcher,
    invalid_option,
)
from tender.config import (
    MIB,
    BlockDevice,
    BlockFd,
    BlockFile,
    NetDevice,
    NetFd,
    Tap,
    VmConfig,
    check_sector,
    floor_mem,
    parse_mac,
    round_mem,
)
from tender.errors import ConfigError, DeviceError, TenderError

if TYPE_CHECKING:  # words are checked without the native core
    from tender.devices.opening import OpenDevice, Patience
    from tender.image import Image

_BLANKS = " \t\n\v\f\r"
_DIGITS = "0123456789"
_HEX = _DIGITS + "abcdefABCDEF"
_IFACE_MAX = 19  # solo5-hvt looks at so many characters of IFACE
_INT_MAX = (1 << 31) - 1


def main(program: str, argv: list[str]) -> int:
    """Runs one command line of the program called `program`, and returns the process's exit status."""
    began_ns = time.monotonic_ns()
    say.speak_as(program, hints=False)
    try:
        return _main(program, argv, began_ns)
    except UsageError as error:
        return _refused(error, program)
    except TenderError:
        raise
    except run.MistakeWhileRunning as error:
        from tender.result import STATUS_HOST_FAILED

        return _mistake(error.__cause__, STATUS_HOST_FAILED)  # a manager may start the guest again
    except Exception as error:
        return _mistake(error, run.STATUS_CANNOT_START)  # after other statuses a manager starts it again


def _mistake(error: BaseException | None, status: int) -> int:
    assert isinstance(error, Exception)
    last_resort(error)
    return status


def _main(program: str, argv: list[str], began_ns: int) -> int:
    stopper = run.Stopper(deaf=False)
    at = 0
    while at < len(argv) and argv[at].startswith("-") and argv[at] != "--":
        if argv[at] in ("--help", "--version"):
            stopper.dismiss()
        if argv[at] == "--help":
            return _usage(program)
        if argv[at] == "--version":
            say.plain(usage.solo5_version(program))
            return 0
        at += 1
    words = argv[:at]
    kernel = argv[at + (argv[at : at + 1] == ["--"]) :]
    if not kernel:
        raise UsageError("Missing KERNEL operand", show_usage=True)
    check_launcher(run.variable("TENDER_LAUNCHER"))
    dumpcore = [word.partition("=")[2] for word in words if word.startswith("--dumpcore=")]
    options = RunOptions(
        dumpcore=_dump_directory(dumpcore[-1]) if dumpcore else "",
        **ambient(run.option_variables()),
        image=kernel[0],
        args=tuple(kernel[1:]),
        verbosity=0 if os.isatty(2) else -1,  # a manager stores stderr as the guest's console
    )
    devices = _Devices(options.lock_wait)
    try:
        return run.launch(
            options,
            lambda image: _configured(
                image, [word for word in words if not word.startswith("--dumpcore=")], options, devices
            ),
            began_ns,
            stopper,
        )
    except UsageError:
        raise
    except TenderError as error:
        return run.failed(error, options)
    finally:
        devices.close()


def _dump_directory(directory: str) -> str:
    """Returns the directory of --dumpcore. Raises UsageError, in the words of Solo5's debug build."""
    try:
        os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except (OSError, ValueError):
        raise UsageError("dumpcore: cannot open dir") from None
    if not os.access(directory, os.W_OK):
        raise UsageError("dumpcore: dir not writable")
    return directory


def _refused(error: UsageError, program: str) -> int:
    say.error(error.message)
    return _usage(program) if error.show_usage else run.STATUS_CANNOT_START


def _usage(program: str) -> int:
    say.plain(usage.solo5(program))
    return run.STATUS_CANNOT_START


def _configured(image: "Image", words: list[str], options: RunOptions, devices: "_Devices") -> VmConfig:
    """Makes the second pass, and then each check that solo5-hvt makes before the guest's start, in its order."""
    from tender.manifest import match
    from tender.native import says

    found: dict[str, object] = {}
    asked = options.mem_bytes
    for word in words:
        option = BY_NAME.get(word)
        if word.startswith("--mem="):
            asked = _mem(word[len("--mem=") :])
        elif option is not None and option.kind == FLAG and option.solo5 is not None:
            found[option.field] = option.sets
        else:
            devices.take(word, image)
    mem_bytes = floor_mem(asked)
    if mem_bytes != asked:
        say.notice(says("memory_adjusted", mem_bytes))
    round_mem(mem_bytes)
    image.check_fits(mem_bytes)
    net, block = devices.config(image)
    match(image.name, image.devices, VmConfig(net=net, block=block))
    options = options._with(mem_bytes=mem_bytes, **found)
    if options.net_reattach:
        run.check_reattach(net)
    return run.vm_config(options, net, block)


class _Devices:
    """The open devices that the options have attached so far. A Vm works on duplicates, so close() them afterwards."""

    def __init__(self, lock_wait: float) -> None:
        self._lock_wait = lock_wait
        self._patience: Patience | None = None
        self._open: dict[str, OpenDevice] = {}
        self._macs: dict[str, str] = {}
        self._sector_sizes: dict[str, int] = {}

    def take(self, word: str, image: "Image") -> None:
        """Takes one option. Raises UsageError, and DeviceError for a disk that cannot be opened."""
        head, equals, value = word.partition("=")
        base, _, name = head.partition(":")
        option = BY_NAME.get(base)
        takes = {NET: self._net, NET_MAC: self._mac, BLOCK: self._block, SECTOR_SIZE: self._sector_size}
        known = takes.get(option.kind) if option is not None else None
        if known is None or not equals or not _is_name(name):
            raise _invalid(word)
        known(word, name, value, image)

    def _net(self, word: str, name: str, value: str, image: "Image") -> None:
        from tender.devices import opening

        iface = _first_word(value)[:_IFACE_MAX]
        if not iface:
            raise _invalid(word)
        _check_declared(image, word, name, "net")
        try:
            device = _descriptor(iface) if iface.startswith("@") else Tap(iface)
            made = opening.open_device(device, name, image=image.elf.c)
        except DeviceError as error:
            raise _invalid(word, error.message) from error
        self._close(name)  # only now: until here the interface counts as busy
        self._open[name] = made

    def _mac(self, word: str, name: str, value: str, image: "Image") -> None:
        mac = _mac_prefix(value)
        if not mac:
            raise _invalid(word)
        try:
            parse_mac(mac)
        except ConfigError as error:
            raise _invalid(word, error.message) from None
        _check_declared(image, word, name, "net")
        self._macs[name] = mac

    def _block(self, word: str, name: str, value: str, image: "Image") -> None:
        from tender.devices import opening

        if not value:
            raise _invalid(word)
        _check_declared(image, word, name, "block")
        if value.startswith("@") and _all_in(value[1:], _DIGITS) and int(value[1:]) <= _INT_MAX:
            device: BlockDevice = BlockFd(int(value[1:]), raw=True)
            _check_inherited(device)
        else:
            device = BlockFile(value, raw=True)  # solo5-hvt takes any file
        self._close(name)  # first: it may have the lock of the same file
        self._patience = self._patience or opening.Patience(self._lock_wait)
        self._open[name] = opening.open_device(
            device, name, patience=self._patience, shown=value, sector_size=0
        )

    def _sector_size(self, word: str, name: str, value: str, image: "Image") -> None:
        size = _number_prefix(value)
        if size is None:
            raise _invalid(word)
        try:
            check_sector(size)
        except ConfigError as error:
            raise _invalid(word, error.message) from None
        _check_declared(image, word, name, "block")
        self._sector_sizes[name] = size

    def _close(self, name: str) -> None:
        if name in self._open:
            self._open.pop(name).close()

    def config(self, image: "Image") -> tuple[dict[str, NetDevice], dict[str, BlockDevice]]:
        """Returns the devices as a VmConfig takes them.

        Raises DeviceError for a disk whose size is not a whole number of sectors.
        """
        from tender.devices.opening import LockedFd, TapFd, open_device

        nets: dict[str, NetDevice] = {}
        disks: dict[str, BlockDevice] = {}
        for name in [device.name for device in image.devices if device.name in self._open]:
            made = self._open[name]
            if made.device.kind == "net":
                kind, seen = TapFd if isinstance(made.device, Tap) else NetFd, made.entry.u.net
                nets[name] = kind(made.fd, mac=self._macs.get(name, bytes(seen.mac).hex(":")), mtu=seen.mtu)
            else:
                disks[name] = LockedFd(made.fd, sector_size=self._sector_sizes.get(name, 512))
                open_device(disks[name], name).close()  # a check, now that the sector size is known
        return nets, disks

    def close(self) -> None:
        """Closes the descriptors. It may be called again."""
        for name in list(self._open):
            self._close(name)


def _invalid(word: str, reason: str = "") -> UsageError:
    return invalid_option(word, reason, show_usage=True)


def _check_declared(image: "Image", word: str, name: str, kind: str) -> None:
    if (name, kind) not in [(device.name, device.kind) for device in image.devices]:
        from tender.native import says

        raise _invalid(word, says("undeclared", name))


def _check_inherited(device: NetDevice | BlockDevice) -> None:
    from tender.devices.opening import check_given

    check_given(device)


def _descriptor(iface: str) -> NetFd:
    """Returns the descriptor of `@FD`. Raises DeviceError for a word that is not the number of one."""
    number = iface[1:].removeprefix("+")
    if not _all_in(number.removeprefix("-"), _DIGITS):
        errno = EINVAL
    elif number.startswith("-") or int(number) > _INT_MAX:
        errno = ERANGE
    else:
        device = NetFd(int(number))
        _check_inherited(device)
        return device
    raise DeviceError(f"Could not attach interface: {iface}: {os.strerror(errno)}", errno=errno)


# ---- values: as with scanf(), what follows a readable beginning is ignored


def _mem(text: str) -> int:
    """Returns the bytes of `--mem=TEXT` by the arithmetic of a 64-bit size_t. Raises UsageError for zero."""
    mib = _number_prefix(text) or 0
    mem_bytes = max(-(1 << 63), min(mib, (1 << 63) - 1)) * MIB % (1 << 64)
    if not mem_bytes:
        raise UsageError("Malformed argument to --mem")
    return mem_bytes


def _number_prefix(text: str) -> int | None:
    """Returns the signed decimal number that `text` begins with, after blanks; None if there is none."""
    text = text.lstrip(_BLANKS)
    sign = text[:1] if text[:1] in ("+", "-") else ""
    digits = _leading(text[len(sign) :], _DIGITS)
    if not digits:
        return None
    return int(sign + digits[:4300])  # int() refuses more digits; both are far above any bound


def _mac_prefix(text: str) -> str:
    """Returns the `XX:XX:XX:XX:XX:XX` that `text` begins with, of one or two digits each; empty if there is none."""
    parts = text.split(":", 5)
    parts[-1] = _leading(parts[-1], _HEX)[:2]
    if len(parts) != 6 or not all(1 <= len(part) <= 2 and _all_in(part, _HEX) for part in parts):
        return ""
    return ":".join(parts)


def _first_word(text: str) -> str:
    text = text.lstrip(_BLANKS)
    ends = [text.find(blank) for blank in _BLANKS if blank in text]
    return text[: min(ends)] if ends else text


def _leading(text: str, letters: str) -> str:
    return text[: len(text) - len(text.lstrip(letters))]


def _is_name(text: str) -> bool:
    return text.isascii() and text.isalnum() and len(text) <= NAME_MAX


def _all_in(text: str, letters: str) -> bool:
    return bool(text) and not text.strip(letters)
