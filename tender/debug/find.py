"""Finds the guests of a process, from outside: by /proc and by the debug note of Tender's programs.

A VM registers nowhere. The command and the library have a list of the VMs of their process (bindings/machine/runner.h),
and the program of the sandbox has one guest. What is read here belongs to another process, perhaps to a hostile guest's:
it is bounded and checked, and the shared memory of a sandbox is found by the kernel's word, /proc/PID/maps.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from errno import EACCES, EPERM, ESRCH
from typing import NamedTuple

from tender.debug import ptrace
from tender.debug.access import refusal
from tender.debug.note import VERSION, Read, read_note
from tender.debug.target import DebugError
from tender.native import ffi
from tender.printable import printable

_VMS_MAX = 1 << 16
_STEPS_MAX = 1 << 18  # in all walks of a list that changes meanwhile
_PATH_MAX = 4096
_MAPS_BYTES_MAX = 16 << 20  # of /proc/PID/maps: 65,530 mappings with names of usual length
_MEMORY_MAX = 1 << 32
_MEMORY_NAME = "/memfd:tender-vm"  # MEMORY_NAME of bindings/machine/sandbox/spawn.c
_DELETED = " (deleted)"
_MARKS = (b"/tender", b"memfd:tender", b"_native.abi3.so")
"""A process without any of these in its mappings is none of Tender's, unless its program was renamed."""


@dataclass(frozen=True)
class Guest:
    """A guest that runs, and where its state lies. Addresses are those of the process `pid` unless said otherwise.

    Attributes:
        backend: "kvm" or "sandbox".
        pid: The process whose thread executes the guest.
        tid: That thread. 0: on KVM, a VM that does not run now.
        holder: The process that made the VM: `pid` itself on KVM and for the native command, the library's else.
        image: The path of the ELF file, if it is known and the file can be opened, else empty.
        mem_bytes: The size of guest memory.
        memory_hva: Where guest address 0 lies (0 in the sandbox).
        shared_hva: Where `struct vm_shared` lies.
        note: The numbers of the debug note of the program or library that runs it, by name (bindings/core/debug_note.h).
        base: Where that program or library is loaded; the note's addresses are relative to it.
        image_name: The path that its process was given, also if nothing can be opened by it; empty: it has none.
        born: When that process began, by born(); 0: not known.
        values: Further values that the backend's target needs, by name. On KVM: `vm`, the address of its `struct vm`;
            `vcpu_fd`; `run_hva`, where `struct kvm_run` lies. In the sandbox: `memory_end`, the end of the memory
            that is shared with its holder.
    """

    backend: str
    pid: int
    tid: int
    holder: int
    image: str
    mem_bytes: int
    memory_hva: int
    shared_hva: int
    note: dict[str, int]
    base: int
    values: dict[str, int]
    image_name: str = ""
    born: int = 0


@dataclass(frozen=True)
class Program:
    """A process in which Tender's code lies, and where: what has to be read once, and is true until it executes another.

    Attributes:
        pid: The process.
        notes: The debug notes of its program and libraries, each with its load address.
        sandboxed: The guest of a program of the sandbox.
    """

    pid: int
    notes: tuple[tuple[dict[str, int], int], ...] = ()
    sandboxed: Guest | None = None

    def guests(self) -> Iterator[Guest]:
        """Yields the guests that the process executes now, not those of its children. Raises OSError or DebugError."""
        if self.sandboxed:
            yield self.sandboxed
        for note, base in self.notes:
            yield from _on_kvm_in(self.pid, note, base)


def born(pid: int) -> int:
    """Returns when a process began, in clock ticks since the boot; 0 if there is none, or it has ended. Source: proc(5).

    With it a process is told from a later one with the same number.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0


class Map(NamedTuple):
    """A line of /proc/PID/maps."""

    start: int
    end: int
    rights: str
    offset: int
    name: str


def guests_of(pid: int) -> Sequence[Guest]:
    """Returns the guests that a process runs or holds, the sandbox processes of a library's VMs too.

    Raises DebugError: there is no such process, it holds no guest, or the kernel does not let us look (the message says
    which rule, the hint what to type).
    """
    try:
        process = int(_field(_status(pid), "Tgid"))
        found = list(_guests_in(process))
    except FileNotFoundError:
        raise _gone(pid) from None
    except OSError as error:
        raise _refused(pid, error) from None
    if not found:
        raise DebugError(
            f"process {pid}: it runs no guest",
            code="debug-no-guest",
            hint="`tender ps` lists the guests here",
        )
    return found


def guests() -> Sequence[Guest]:
    """Returns the guests of all processes that the kernel lets us look into."""
    found: dict[tuple[int, int, int], Guest] = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            if any(mark in _maps_text(name) for mark in _MARKS):
                for guest in _guests_in(int(name)):
                    found.setdefault((guest.pid, guest.tid, guest.memory_hva), guest)
        except (OSError, DebugError):  # it has ended, or is somebody else's
            continue
    return sorted(found.values(), key=lambda guest: (guest.pid, guest.memory_hva))


def program_of(pid: int) -> Program | None:
    """Returns what a process has of Tender, or None if it has nothing.

    Raises OSError, or DebugError: what it has is of another version.
    """
    text = _maps_text(pid)
    if not any(mark in text for mark in _MARKS):
        if not text and _field(_status(pid), "VmSize"):
            raise PermissionError(EPERM, "maps")
        return None
    maps = _maps(text)
    notes: list[tuple[dict[str, int], int]] = []
    for start in tender_files(pid, maps):
        note, base = read_note(_reader(pid), start)
        if not note:
            continue
        _check_version(pid, note)
        if "the_vm" in note:
            for guest in _sandboxed(pid, maps, note, base):
                return Program(pid, sandboxed=guest)
        else:
            notes.append((note, base))
    return Program(pid, notes=tuple(notes)) if notes else None


def maps_of(pid: int) -> list[Map]:
    """Returns the mappings of a process in ascending order. Raises OSError."""
    return _maps(_maps_text(pid))


def _maps_text(pid: int | str) -> bytes:
    """Returns the whole lines of /proc/PID/maps, up to a bound: a hostile process has mappings with long names."""
    with open(f"/proc/{pid}/maps", "rb") as file:
        text = file.read(_MAPS_BYTES_MAX)
    return text[: text.rfind(b"\n") + 1]


def _maps(text: bytes) -> list[Map]:
    return [_map(line) for line in text.decode("utf-8", "surrogateescape").split("\n") if line]


def _map(line: str) -> Map:
    """Reads a line. The kernel writes a newline in a name as \\012."""
    fields = line.split(maxsplit=5)
    start, _, end = fields[0].partition("-")
    name = fields[5].rstrip("\n").replace("\\012", "\n") if len(fields) > 5 else ""
    return Map(int(start, 16), int(end, 16), fields[1], int(fields[2], 16), name)


def _guests_in(pid: int) -> Iterator[Guest]:
    """Raises OSError or DebugError."""
    maps = maps_of(pid)
    if not maps:
        if not _field(_status(pid), "VmSize"):
            return  # it is ending, or a thread of the kernel
        raise PermissionError(EPERM, "maps")
    for start in tender_files(pid, maps):
        note, base = read_note(_reader(pid), start)
        if not note:
            continue
        _check_version(pid, note)
        if "the_vm" in note:
            yield from _sandboxed(pid, maps, note, base)
        else:
            yield from _held(pid, note, base)


def tender_files(pid: int, maps: list[Map]) -> list[int]:
    """Returns where the program of a process, and the library's core, begin in its memory."""
    program = os.readlink(f"/proc/{pid}/exe")
    starts: dict[str, int] = {}
    for map in maps:
        if not map.offset and (map.name == program or "/_native.abi3.so" in map.name):
            starts.setdefault(map.name, map.start)
    return list(starts.values())


_OF_PROGRAM = {
    "config",
    "config_mem_bytes",
    "config_alone",
    "program_end",
    "handler_stack_top",
    "shared_held",
}
_OF_HOLDER = {
    *("vms", "vm_next", "vm_link", "vm_process", "vm_thread", "vm_machine", "vm_image", "vm_memory_hva"),
    *(
        "vm_memory_bytes",
        "vm_shared",
        "machine_ops",
        "machine_name",
        "kvm_vcpu_fd",
        "kvm_run",
        "syscall",
        "shared_held",
    ),
}


def _check_version(pid: int, note: dict[str, int]) -> None:
    version, shared = note.get("version"), note.get("shared_bytes")
    is_whole = (_OF_PROGRAM if "the_vm" in note else _OF_HOLDER) <= note.keys()
    if version != VERSION or shared != ffi.sizeof("struct vm_shared") or not is_whole:
        program = printable(os.path.basename(os.readlink(f"/proc/{pid}/exe")))
        raise DebugError(
            f"process {pid}: {program} is of another version of Tender (its debug note is {version}.{shared}, and "
            f"this one reads {VERSION}.{ffi.sizeof('struct vm_shared')})",
            code="debug-version",
            hint="use the `tender debug` of the version that runs the guest, or start the guest again",
        )


# ---- the sandbox


def _sandboxed(pid: int, maps: list[Map], note: dict[str, int], base: int) -> Iterator[Guest]:
    """The guest of a tender-sandbox. Its memory may contain anything, and the kernel tells where it is."""
    shared = next((map for map in maps if _is_memory_of_vm(map)), None)
    if shared is None:
        return  # it has not begun yet
    config = shared.start + note["config"]
    mem_bytes = _word(pid, config + note["config_mem_bytes"])
    if not 0 < mem_bytes <= _MEMORY_MAX or mem_bytes % 4096:
        mem_bytes = max((map.end for map in maps if map.start < _MEMORY_MAX), default=0)
    alone = _word(pid, config + note["config_alone"], 4)
    parent = int(_field(_status(pid), "PPid"))
    name = shared.name.removesuffix(_DELETED).removeprefix(_MEMORY_NAME)
    yield Guest(
        backend="sandbox",
        pid=pid,
        tid=pid,
        holder=pid if alone else parent,
        image=_image(parent, name.removeprefix(":")),  # its own root directory is empty
        mem_bytes=mem_bytes,
        memory_hva=0,
        shared_hva=shared.start,
        note=note,
        base=base,
        values={"memory_end": shared.end},
        image_name=name.removeprefix(":"),
        born=born(pid),
    )


def _is_memory_of_vm(map: Map) -> bool:
    return (
        not map.offset
        and map.start >= _MEMORY_MAX
        and map.rights == "rw-s"
        and re.match(rf"{_MEMORY_NAME}(:|{re.escape(_DELETED)}$)", map.name) is not None
    )


# ---- the list of a process


def _held(pid: int, note: dict[str, int], base: int) -> Iterator[Guest]:
    sandboxed = False
    for vm, machine, backend in _machines(pid, note, base):
        sandboxed |= backend == b"sandbox"
        if backend == b"kvm":
            yield _on_kvm(pid, vm, machine, note, base)
    if sandboxed:
        for child in _children(pid):
            try:
                maps = maps_of(child)
                for start in tender_files(child, maps):
                    of_child, there = read_note(_reader(child), start)
                    if "the_vm" in of_child:
                        _check_version(child, of_child)
                        found = _sandboxed(child, maps, of_child, there)
                        yield from (guest for guest in found if guest.holder == pid)
            except FileNotFoundError:
                continue  # it has just ended
            except PermissionError as error:
                raise _refused(child, error) from None


def _on_kvm_in(pid: int, note: dict[str, int], base: int) -> Iterator[Guest]:
    for vm, machine, backend in _machines(pid, note, base):
        if backend == b"kvm":
            yield _on_kvm(pid, vm, machine, note, base)


def _machines(pid: int, note: dict[str, int], base: int) -> Iterator[tuple[int, int, bytes]]:
    """Yields the VMs in the list of a process, each with its machine and the name of its backend."""
    vms = _vms(pid, note, base)
    own = int(_field(_status(pid), "NSpid").split()[-1]) if vms else 0
    for vm in vms:
        if _word(pid, vm + note["vm_process"], 4) != own:
            continue  # a copy that a fork has of its parent's
        machine = _word(pid, vm + note["vm_machine"])
        ops = _word(pid, machine + note["machine_ops"]) if machine else 0
        yield vm, machine, _string(pid, _word(pid, ops + note["machine_name"]), 16) if ops else b""


def _on_kvm(pid: int, vm: int, machine: int, note: dict[str, int], base: int) -> Guest:
    image = os.fsdecode(_string(pid, _word(pid, vm + note["vm_image"]), _PATH_MAX))
    return Guest(
        backend="kvm",
        pid=pid,
        tid=_thread(pid, _word(pid, vm + note["vm_thread"], 4)),
        holder=pid,
        image=_image(pid, image),
        mem_bytes=min(_word(pid, vm + note["vm_memory_bytes"]), _MEMORY_MAX),
        memory_hva=_word(pid, vm + note["vm_memory_hva"]),
        shared_hva=_word(pid, vm + note["vm_shared"]),
        note=note,
        base=base,
        values={
            "vm": vm,
            "vcpu_fd": _word(pid, machine + note["kvm_vcpu_fd"], 4),
            "run_hva": _word(pid, machine + note["kvm_run"]),
        },
        born=born(pid),
        image_name=image,
    )


def _vms(pid: int, note: dict[str, int], base: int) -> list[int]:
    """Returns the addresses of the VMs in the list, which may change while it is read."""
    head = base + note["vms"]
    found, link = list[int](), head
    for _ in range(_STEPS_MAX):
        vm = _word(pid, link)
        if not vm or len(found) == _VMS_MAX:
            break
        if _word(pid, vm + note["vm_link"]) == link:
            found.append(vm)
            link = vm + note["vm_next"]
        else:  # it was removed, or another was put before it
            found, link = [], head
    return found


def _thread(pid: int, number: int) -> int:
    """Returns our number of a thread, which has another number in a pid namespace; 0: there is none."""
    if not number or len(_field(_status(pid), "NSpid").split()) == 1:
        return number
    for name in os.listdir(f"/proc/{pid}/task"):
        if _field(_status(f"{pid}/task/{name}"), "NSpid").split()[-1:] == [str(number)]:
            return int(name)
    return 0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for name in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{name}/children") as file:
                found += [int(word) for word in file.read().split()]
        except FileNotFoundError:
            continue
    return found


# ---- pieces


def _image(viewer: int, path: str) -> str:
    """Returns a path by which we can open a file that the process `viewer` has by this path, or nothing."""
    if not path:
        return ""
    try:
        if not path.startswith("/"):
            path = os.path.join(os.readlink(f"/proc/{viewer}/cwd"), path)
        apart = os.stat(f"/proc/{viewer}/ns/mnt").st_ino != os.stat("/proc/self/ns/mnt").st_ino
        if apart or os.readlink(f"/proc/{viewer}/root") != os.readlink("/proc/self/root"):
            path = f"/proc/{viewer}/root{path}"
    except OSError:
        pass  # the path as it is may do
    return path if os.path.isfile(path) and os.access(path, os.R_OK) else ""


def _word(pid: int, address: int, length: int = 8) -> int:
    """Returns a word of a process; 0 where it has no memory."""
    data = ptrace.read_memory(pid, address, length)
    return int.from_bytes(data, "little") if len(data) == length else 0


def _string(pid: int, address: int, limit: int) -> bytes:
    """Returns a string of a process without its NUL, or nothing if it is longer than the limit."""
    found = b""
    while address and len(found) <= limit:
        piece = ptrace.read_memory(pid, address + len(found), 256 - (address + len(found)) % 256)
        found += piece
        if b"\0" in piece or not piece:
            break
    text, end, _ = found.partition(b"\0")
    return text if end and len(text) <= limit else b""


def _reader(pid: int) -> Read:
    return lambda address, length: ptrace.read_memory(pid, address, length)


def _status(pid: int | str) -> str:
    with open(f"/proc/{pid}/status", errors="replace") as file:
        return file.read()


def _field(status: str, name: str) -> str:
    found = re.search(rf"^{name}:\s*(.*)$", status, re.MULTILINE)
    return found[1] if found else ""


def _gone(pid: int) -> DebugError:
    return ptrace.Gone(
        f"process {pid}: there is no such process", errno=ESRCH, hint="`tender ps` lists the guests here"
    )


def _refused(pid: int, error: OSError) -> DebugError:
    if error.errno == ESRCH:
        return _gone(pid)
    if error.errno not in (EPERM, EACCES):
        return DebugError(f"process {pid}: {error.strerror}", errno=error.errno or 0)
    why, hint = refusal(pid)
    return DebugError(f"process {pid}: {why}", errno=EPERM, code="debug-denied", hint=hint)
