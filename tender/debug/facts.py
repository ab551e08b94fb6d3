"""What a guest's process says about its run: `struct vm_shared`, boot info and the image file, as Facts.

Both backends have these in the same form. A guest that has broken out may have written all of it. So each number is taken
as it is, each text and list has a bound, and what cannot be true is left out.
"""

import struct
from collections.abc import Callable

from tender import _version
from tender.debug import ptrace
from tender.debug.find import Guest
from tender.debug.image_file import facts_of_file
from tender.debug.target import DebugError, Facts
from tender.debug.trace import recorded
from tender.native import DEVICE_KINDS, CData, ffi, lib
from tender.outcome import boot, counters, explain, guest_fault
from tender.printable import printable
from tender.result import Counters

ENDED_KINDS = frozenset(range(1, lib.EVENT_NETWORK)) - {lib.EVENT_INTERRUPTED, lib.EVENT_CONSOLE}
"""The kinds of events that end a run: event_ends_run() of bindings/core/vm.h."""
_ASKED_ENDS = ("exit", "stopped", "timeout", "signal")
# The ends whose `rip` is where the guest failed. In the sandbox a hypercall leaves one too, that of the gate.
_KINDS_WITH_RIP = frozenset(
    (
        lib.EVENT_TRANSLATION_FAULT,
        lib.EVENT_UNHANDLED_EXIT,
        lib.EVENT_INTERNAL_ERROR,
        lib.EVENT_HANDLER_FAULT,
    )
)
_SHARED_BYTES: int = ffi.sizeof("struct vm_shared")
_BOOT_INFO = struct.Struct("<QQQQQIIQ")  # abi/tender_abi.h, struct hvt_boot_info
_ENTRY = struct.Struct("<68sI16s8sB7x")  # struct mft_entry
_ENTRIES_MAX, _TEXT_MAX = 64, 8192

Read = Callable[[int, int], bytes]


class Shared:
    """The `struct vm_shared` of a guest, in the memory of its process."""

    def __init__(self, guest: Guest) -> None:
        self._pid, self._at = guest.pid, guest.shared_hva

    def read(self) -> bytes:
        """Returns all of it."""
        return self._read(0, _SHARED_BYTES)

    def event_kind(self) -> int:
        """Returns the kind of the last event."""
        return self._word(ffi.offsetof("struct vm_shared", "event") + ffi.offsetof("struct vm_event", "kind"))

    def told(self) -> int:
        """Returns what the thread tells the debugger: TOLD_..."""
        return self._word(ffi.offsetof("struct vm_shared", "told"))

    def answer(self, told: int) -> None:
        """Answers it."""
        self._put("told", told)

    def is_held(self) -> bool:
        """Returns whether a debugger is attached, or has been killed."""
        return bool(self._word(ffi.offsetof("struct vm_shared", "held")))

    def tries(self) -> int:
        """Returns how often the thread has waited for a debugger or its guard."""
        return self._word(ffi.offsetof("struct vm_shared", "told_tries"))

    def hold(self, held: bool) -> None:
        """Says that a debugger is attached, or not any more."""
        self._put("told_tries", 0)
        self._put("held", int(held))

    def _word(self, offset: int) -> int:
        return int.from_bytes(self._read(offset, 4), "little")

    def _put(self, name: str, value: int) -> None:
        data = value.to_bytes(4, "little")
        ptrace.write_memory(self._pid, self._at + ffi.offsetof("struct vm_shared", name), data)

    def _read(self, offset: int, length: int) -> bytes:
        data = ptrace.read_memory(self._pid, self._at + offset, length)
        if len(data) < length:
            raise DebugError(f"process {self._pid}: the state of its VM cannot be read")
        return data


def facts_of(guest: Guest, shared: bytes, read: Read) -> Facts:
    """Returns the facts of a guest from the bytes of its `struct vm_shared` and its memory."""
    words = _words(shared)
    devices, arguments = boot_info(read)
    build_id, digest = facts_of_file(guest.image)
    reason, message, status, fault = _end(words, guest.backend)
    return Facts(
        version=_version.__version__,
        backend=guest.backend,
        pid=guest.pid,
        image=guest.image,
        build_id=build_id,
        digest=digest,
        arguments=arguments,
        mem_bytes=guest.mem_bytes,
        reason=reason,
        message=message,
        status=status,
        fault=fault,
        devices=devices,
        counters=counters(words, console_lost_bytes=0).to_dict(),
        timeline=boot(words, start=0, vm_created=0).to_dict(),
        hypercalls=recorded(guest),
    )


def has_ended_well(shared: bytes, backend: str) -> bool:
    """Whether the run has ended by itself, or because somebody asked for it."""
    return _end(_words(shared), backend)[0] in _ASKED_ENDS


def _words(shared: bytes) -> CData:
    """Returns the bytes of a `struct vm_shared` as one."""
    words = ffi.new("struct vm_shared *")
    ffi.memmove(words, shared, min(len(shared), _SHARED_BYTES))
    return words


def _end(words: CData, backend: str) -> tuple[str, str, int | None, dict[str, object] | None]:
    """Returns reason, message, status and fault of the end, if the run has ended."""
    event = words.event
    if event.kind not in ENDED_KINDS:
        return "live", "", None, None
    reason, status, message = explain(ffi.addressof(words, "event"), backend)
    fault = None
    if event.registers_valid:
        fault = guest_fault(event).to_dict()
    elif event.kind == lib.EVENT_HALT and event.cookie_valid:
        fault = {
            name: int(getattr(event.trap, name)) for name in ("rip", "cr2", "rsp", "rflags", "error_code")
        }
    elif event.rip and event.kind in _KINDS_WITH_RIP:
        fault = {"rip": int(event.rip)}
    return str(reason), message, status, fault


def boot_info(read: Read) -> tuple[list[dict[str, object]], str]:
    """Returns the devices and the command line that the guest was given. A guest cannot change them on KVM."""
    data = read(lib.HVT_BOOT_INFO_GPA, _BOOT_INFO.size)
    if len(data) < _BOOT_INFO.size:
        return [], ""
    _, _, _, cmdline, manifest, _, _, _ = _BOOT_INFO.unpack(data)
    text = read(cmdline, _TEXT_MAX).partition(b"\0")[0].decode("utf-8", "replace") if cmdline else ""
    head = read(manifest, 8) if manifest else b""
    entries = min(int.from_bytes(head[4:8], "little"), _ENTRIES_MAX)
    table = read(manifest + 8, entries * _ENTRY.size) if entries else b""
    devices: list[dict[str, object]] = []
    for at in range(0, len(table) - _ENTRY.size + 1, _ENTRY.size):
        name, kind, parameters, _, attached = _ENTRY.unpack_from(table, at)
        if kind in DEVICE_KINDS and attached:
            devices.append(_device(name.partition(b"\0")[0], kind, parameters, at // _ENTRY.size))
    return devices, text


def _device(name: bytes, kind: int, parameters: bytes, handle: int) -> dict[str, object]:
    device: dict[str, object] = {
        "name": printable(name.decode("latin-1")),
        "kind": DEVICE_KINDS[kind][0],
        "handle": handle,
    }
    if device["kind"] == "net":
        device |= {"mac": parameters[:6].hex(":"), "mtu": int.from_bytes(parameters[6:8], "little")}
    elif device["kind"] == "block":
        capacity, block_size = struct.unpack_from("<QH", parameters)
        device |= {"capacity": capacity, "block_size": block_size}
    return device


def counters_of(shared: bytes) -> Counters:
    """Returns what the bytes of a `struct vm_shared` count."""
    return counters(_words(shared), console_lost_bytes=0)
