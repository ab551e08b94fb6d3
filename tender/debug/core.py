"""Cores: writes the state of a guest into a file, and reads such a file as a guest that stands still.

`save_core` takes any GuestState. What has to be read while the guest stands still is read first; it then goes on, and the
rest (digest, fsync) costs it nothing. `CoreFile` reads a core, which may be hostile: all of it is checked, and nothing
of its size is allocated. core_format.py has the layout.

The rule of the writer: under the final name there is a whole core or none, and a failure leaves no file behind.
"""

import contextlib
import errno as errnos
import fcntl
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import NoReturn, Self

from tender.debug import core_format as form
from tender.debug.core_format import MEMORY_END, MEMORY_START, PAGE, Note
from tender.debug.cpu_parts import CpuParts, Unfinished
from tender.debug.image_file import facts_of_file, open_image, open_without_waiting
from tender.debug.registers import Registers
from tender.debug.target import DebugError, Facts, GuestState, Mapping, Where
from tender.errors import ImageError
from tender.printable import printable, quoted

KEEP_DEFAULT = 10
"""How many cores a directory keeps, if nothing else is said."""
KEEP_MAX = 100_000

_PIECE = 1 << 20
_NO_PAGE = bytes(PAGE)
_JSON_MAX = 24 << 10
_NAME_MAX = 64
_STALE_S = 3600
_NAMES = re.compile(r"core\.(?P<image>[A-Za-z0-9._-]{1,64})\.\d{1,10}\.(?P<time>\d{8}T\d{6})(-\d+)?")
_NO_UNNAMED_FILES = (errnos.EOPNOTSUPP, errnos.EISDIR, errnos.EINVAL, errnos.ENOSYS)
"""open(2), O_TMPFILE: the file system, or a kernel before 3.11, does not have them."""
_PARTS = re.compile(r"\.core\.[0-9a-f]{16}\.part")

_SIGNALS = {
    "live": 0,
    "exit": 0,
    "stopped": 0,
    "signal": 3,
    "timeout": 14,
    "abort": 6,
    "translation-fault": 11,
    "bad-access": 11,
    "sandbox-fault": 11,
    "unsupported-instruction": 4,
    "unhandled-exit": 4,
    "bad-port": 31,
    "bad-hypercall": 31,
    "forbidden-syscall": 31,
}
"""Why the guest ended, as the signal that debuggers show. Others: SIGABRT."""


@dataclass(frozen=True)
class SavedCore:
    """A core that was written.

    Attributes:
        path: The file.
        file_bytes: Its size; it is that of guest memory, because most of it is a hole.
        disk_bytes: What it takes on the disk.
        stopped_s: How long the guest stood still, in seconds.
    """

    path: str
    file_bytes: int
    disk_bytes: int
    stopped_s: float


# ---- writing


def save_core(
    state: GuestState,
    *,
    path: str = "",
    directory: str = "",
    keep: int = KEEP_DEFAULT,
    resume: Callable[[], object] | None = None,
    began: float | None = None,
    reason: str = "",
) -> SavedCore:
    """Writes a core of a guest that stands still.

    Args:
        state: The guest.
        path: The name of the file, which must not exist. Empty: `directory` gets a file core.IMAGE.PID.TIME.
        directory: The directory, if there is no `path`.
        keep: How many cores with such names the directory keeps; the oldest of the others are deleted.
        resume: Called as soon as the guest may go on.
        began: When the guest was stopped, by time.monotonic(). None: now.
        reason: Why the guest was stopped, if its process cannot tell: "timeout".

    Raises DebugError: the file cannot be made, with the errno. No file is left then.
    """
    began = time.monotonic() if began is None else began
    parent, name = os.path.split(path) if path else (directory, "")
    shown = path or directory
    if "\0" in path:
        _refuse(shown, OSError(errnos.EINVAL, ""))
    folder = _open_directory(parent or ".", shown)
    try:
        if name and _exists(name, folder):
            raise FileExistsError(errnos.EEXIST, "")  # before the guest stands still for nothing
        with _Part(folder, shown) as part:
            facts, resumed = write_core(state, part.fd, resume=resume, reason=reason)
            about = part.finish()
            final = part.publish([name] if name else _names(facts))
        if not name:
            _delete_old(folder, keep, final)
    except OSError as error:
        _refuse(shown, error)
    finally:
        os.close(folder)
    return SavedCore(
        path=os.path.join(parent, final),
        file_bytes=about.st_size,
        disk_bytes=about.st_blocks * 512,
        stopped_s=resumed - began,
    )


def write_core(
    state: GuestState, fd: int, *, resume: Callable[[], object] | None = None, reason: str = ""
) -> tuple[Facts, float]:
    """Writes a core into an empty file. Returns the guest's facts, and when it could go on, by time.monotonic().

    Raises DebugError, and OSError for the file.
    """
    seen = _copy(state, fd)
    if resume is not None:
        resume()
    resumed = time.monotonic()
    seen.facts = ended_for(seen.facts, reason)
    _complete(seen, fd)
    return seen.facts, resumed


def ended_for(facts: Facts, reason: str) -> Facts:
    """Returns the facts of a guest that was stopped, with the reason why. Others stay as they are."""
    if facts.reason != "stopped" or reason != "timeout":
        return facts
    return _with(facts, reason=reason, message="its time limit is over")


def check_directory(directory: str) -> None:
    """Raises DebugError if no core can be written into the directory."""
    folder = _open_directory(directory, directory)
    try:
        with _Part(folder, directory):
            pass
    except OSError as error:
        _refuse(directory, error)
    finally:
        os.close(folder)


def _refuse(shown: str, error: OSError, parent: str = "") -> NoReturn:
    number = error.errno or errnos.EIO
    hints = {
        errnos.ENOENT: f"make the directory first: mkdir -p {quoted(parent)}" if parent else "",
        errnos.ENOTDIR: "a directory is needed there",
        errnos.EACCES: "choose a directory that you may write to",
        errnos.EROFS: "choose a directory on another file system",
        errnos.EEXIST: "choose another name, or remove the file",
        errnos.ENOSPC: "a core takes as much as the guest has touched; choose another directory",
        errnos.EDQUOT: "choose a directory on another file system",
        errnos.EFBIG: "the limit is too low: ulimit -f unlimited",
    }
    raise DebugError(
        f"core: {printable(shown)}: {os.strerror(number)}",
        errno=number,
        code="core",
        hint=hints.get(number, ""),
    ) from None


def _open_directory(directory: str, shown: str) -> int:
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except ValueError:  # a zero byte in the name
        _refuse(shown, OSError(errnos.EINVAL, ""))
    except OSError as error:
        _refuse(shown, error, directory)


class _Part:
    """A file that has no name until it is published, so that nothing is left of it if this process is killed.

    Where the file system or a missing /proc does not allow that, it has a temporary name and a lock, which ends with this
    process: `_sweep` removes files whose lock is free.
    """

    def __init__(self, folder: int, shown: str) -> None:
        self._folder, self._name = folder, ""
        try:
            _sweep(folder)
            self.fd = self._open_unnamed()
            if self.fd < 0:
                self.fd = self._open_named()
        except OSError as error:
            _refuse(shown, error)

    def _open_unnamed(self) -> int:
        """Returns -1 where there are no such files."""
        try:
            fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._folder)
        except OSError as error:
            if error.errno in _NO_UNNAMED_FILES:
                return -1
            raise
        if os.path.exists(_of_descriptor(fd)):
            return fd
        os.close(fd)
        return -1

    def _open_named(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            self._name = f".core.{secrets.token_hex(8)}.part"
            fd = os.open(self._name, flags, 0o600, dir_fd=self._folder)
            with contextlib.suppress(OSError):  # no locks there: only its age tells
                fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:  # else it was swept before it had its lock
                return fd
            os.close(fd)

    def finish(self) -> os.stat_result:
        os.fsync(self.fd)
        return os.fstat(self.fd)

    def publish(self, names: Sequence[str]) -> str:
        """Gives the file the first of these names that is free, and returns it. Raises FileExistsError if none is."""
        for name in names:
            try:
                self._link(name)
            except FileExistsError:
                continue
            os.fsync(self._folder)
            return name
        raise FileExistsError(errnos.EEXIST, os.strerror(errnos.EEXIST))

    def _link(self, name: str) -> None:
        if not self._name:  # the link in /proc is followed to the file
            os.link(_of_descriptor(self.fd), name, dst_dir_fd=self._folder)
            return
        try:
            os.link(self._name, name, src_dir_fd=self._folder, dst_dir_fd=self._folder, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errnos.EPERM, errnos.EOPNOTSUPP, errnos.EMLINK, errnos.ENOSYS):
                raise
            if _exists(name, self._folder):  # a file system without hard links
                raise FileExistsError(errnos.EEXIST, "") from None
            os.rename(self._name, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        else:
            os.unlink(self._name, dir_fd=self._folder)
        self._name = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._name:
            with contextlib.suppress(OSError):  # the directory has gone, and the file with it
                os.unlink(self._name, dir_fd=self._folder)
        os.close(self.fd)


def _of_descriptor(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _sweep(folder: int) -> None:
    """Removes the temporary files of writers that were killed. What cannot be removed stays."""
    for name in os.listdir(folder):
        if not _PARTS.fullmatch(name):
            continue
        with contextlib.suppress(OSError):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    _sweep_one(folder, name, fd)
            finally:
                os.close(fd)


def _sweep_one(folder: int, name: str, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # its writer is alive
    except OSError:  # no locks there
        if time.time() - os.fstat(fd).st_mtime < _STALE_S:
            return
    os.unlink(name, dir_fd=folder)


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _names(facts: Facts) -> list[str]:
    image = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(facts.image))[:_NAME_MAX] or "guest"
    name = f"core.{image}.{max(facts.pid, 0)}.{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    return [name, *(f"{name}-{i}" for i in range(2, 100))]


def _delete_old(folder: int, keep: int, newest: str) -> None:
    """Deletes the oldest of the files with our names. What cannot be deleted stays."""
    ours = []
    for name in os.listdir(folder):
        if (match := _NAMES.fullmatch(name)) is None:
            continue
        with contextlib.suppress(OSError):
            about = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISREG(about.st_mode):
                ours.append((name == newest, match["time"], about.st_mtime_ns, name))
    for *_, name in sorted(ours)[: -max(keep, 1)]:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)


@dataclass
class _Seen:
    """What was read while the guest stood still, except for its memory."""

    facts: Facts
    where: Where
    registers: Registers
    fault: Registers
    mappings: list[Mapping]
    parts: CpuParts
    call: Unfinished | None


def _copy(state: GuestState, fd: int) -> _Seen:
    """Reads the guest, and writes its memory at the places where it belongs."""
    facts, where, registers = state.facts(), state.where(), state.registers()
    mappings = [
        Mapping(max(it.start, MEMORY_START), it.end, it.flags)
        for it in state.mappings()
        if it.end > MEMORY_START
    ]
    parts, call = state.cpu_parts(), state.unfinished()
    at = end = MEMORY_START
    for mapping in mappings:
        if mapping.start < at or mapping.end <= mapping.start or (mapping.start | mapping.end) % PAGE:
            raise DebugError(
                "core: the guest's memory is described in a way that cannot be right", code="core"
            )
        at = end = mapping.end
    for start, stop in _overlap(state.touched(), mappings):
        _copy_run(state, fd, start, stop)
    os.ftruncate(fd, end)
    return _Seen(facts, where, registers, _fault_registers(state, facts, registers), mappings, parts, call)


def _overlap(runs: Sequence[tuple[int, int]], mappings: Sequence[Mapping]) -> Iterator[tuple[int, int]]:
    for start, end in runs:
        for mapping in mappings:
            low, high = max(start, mapping.start), min(end, mapping.end)
            if low < high:
                yield low, high


def _copy_run(state: GuestState, fd: int, start: int, end: int) -> None:
    while start < end:
        data = state.read(start, min(end - start, _PIECE))
        for low, high in _runs_of_data(data):
            _write_all(fd, data[low:high], start + low)
        start += len(data) or PAGE  # a page that cannot be read stays a hole


def _runs_of_data(data: bytes) -> Iterator[tuple[int, int]]:
    """The runs of pages of `data` that are not zeros."""
    run = -1
    for at in range(0, len(data), PAGE):
        is_zero = data[at : at + PAGE] == _NO_PAGE[: len(data) - at]
        if is_zero and run >= 0:
            yield run, at
            run = -1
        elif not is_zero and run < 0:
            run = at
    if run >= 0:
        yield run, len(data)


def _write_all(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done


def _fault_registers(state: GuestState, facts: Facts, registers: Registers) -> Registers:
    """Returns the registers where the fault was, as far as they are known.

    A guest that handles its exceptions stands in its handler when it ends, and says where the exception was. The unwind
    tables of the image lead back there, if it has some for its handlers.
    """
    fault = facts.fault
    rip = fault.get("rip") if fault else None
    if fault is None or not isinstance(rip, int) or rip == registers.rip:
        return registers
    given = fault.get("registers")
    named = {
        name: word
        for name, word in (given if isinstance(given, dict) else fault).items()
        if isinstance(word, int)
    }
    known = {it: named[it] & form.WORD_MAX for it in named if it != "xsave" and it in Registers.__slots__}
    unwound = _unwound(state, facts, registers, rip)
    return (unwound or registers)._with(**(known | {"rip": rip & form.WORD_MAX}))


def _unwound(state: GuestState, facts: Facts, registers: Registers, rip: int) -> Registers | None:
    from tender.debug.registers import DWARF
    from tender.debug.symbols import Symbols

    try:
        symbols = Symbols.open(facts.image)
        at = registers.by_dwarf()
        for depth in range(16):
            caller = symbols.caller(at, state.read, is_return=depth > 0)
            if caller is None:
                return None
            at = caller
            if at.get(16) == rip:
                return registers._with(
                    **{DWARF[number]: word for number, word in at.items() if number < len(DWARF)}
                )
    except (ImageError, NotImplementedError, OSError, ValueError):
        pass
    return None


def _complete(seen: _Seen, fd: int) -> None:
    """Writes what lies in front of memory."""
    facts = seen.facts
    image = _ImageFile(facts.image)
    facts = _with(facts, digest=facts.digest or image.digest, build_id=facts.build_id or image.build_id)
    signal = _SIGNALS.get(facts.reason, 6)
    if signal == 6 and facts.fault:
        signal = 11
    threads = [seen.fault] if seen.fault == seen.registers else [seen.fault, seen.registers]
    notes = []
    for number, registers in enumerate(threads, 1):
        notes.append(Note("CORE", form.NT_PRSTATUS, form.prstatus(registers, thread=number, signal=signal)))
        if number == 1:
            name, line = os.path.basename(facts.image) or "guest", f"{facts.image} {facts.arguments}"
            notes.append(Note("CORE", form.NT_PRPSINFO, form.prpsinfo(name, line, facts.pid)))
        xstate = form.xstate_for_gdb(registers.xsave, amd=_is_amd())
        if xstate:
            legacy = bytearray(xstate[: form.FXSAVE_BYTES])
            legacy[form.XCR0_OFFSET :] = bytes(form.FXSAVE_BYTES - form.XCR0_OFFSET)
            notes.append(Note("CORE", form.NT_FPREGSET, bytes(legacy)))
            notes.append(Note("LINUX", form.NT_X86_XSTATE, xstate))
    if image.parts:
        notes.append(Note("CORE", form.NT_FILE, form.file_note(os.path.abspath(facts.image), image.parts)))
    notes += [Note(form.OWNER, kind, data) for kind, data in _own_notes(facts, seen)]
    _write_all(fd, form.pack_head(form.pack_notes(notes), seen.mappings), 0)


def _own_notes(facts: Facts, seen: _Seen) -> Iterator[tuple[int, bytes]]:
    said = asdict(facts)
    image = {
        "version": 1,
        "flags": [] if seen.where != Where.ENDED else ["ended"],
        "path": said.pop("image"),
        "build_id": said.pop("build_id"),
        "sha256": said.pop("digest"),
        "arguments": said.pop("arguments"),
        "mem_bytes": said.pop("mem_bytes"),
        "memory": [[it.start, it.end, it.flags] for it in seen.mappings],
    }
    made = {
        form.TNS1: form.cpu_note(seen.registers, seen.parts),
        form.TNSD: _json(said.pop("devices")),
        form.TNSI: _json(image),
        form.TNSC: _json(said.pop("counters")),
    }
    if seen.call is not None:
        made[form.TNSR] = _json(form.resume_note(seen.call))
    said["where"] = seen.where.value
    hypercalls = list(said["hypercalls"])
    while len(_json(said)) > _JSON_MAX and hypercalls:  # the oldest first
        hypercalls = hypercalls[len(hypercalls) // 4 + 1 :]
        said["hypercalls"] = hypercalls
    yield from (made | {form.TNSF: _json(said)}).items()


def _json(value: object) -> bytes:
    return json.dumps(value, default=str, ensure_ascii=True, separators=(",", ":")).encode()


def _with(facts: Facts, **changed: object) -> Facts:
    return Facts(**({it.name: getattr(facts, it.name) for it in fields(facts)} | changed))


def _is_amd() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return "AuthenticAMD" in file.read(256)
    except OSError:
        return False


class _ImageFile:
    """What a core says of the image's file. A file that cannot be read is left out."""

    def __init__(self, path: str) -> None:
        self.build_id, self.digest = facts_of_file(path)
        self.parts: list[tuple[int, int, int]] = []
        with contextlib.suppress(OSError, ValueError):
            if path:
                with open_image(path) as file:
                    self._read(file.fileno())

    def _read(self, fd: int) -> None:
        header = form.ELF_HEADER.unpack(
            os.pread(fd, form.ELF_HEADER.size, 0).ljust(form.ELF_HEADER.size, b"\0")
        )
        at, size, count = header[5], header[9], min(header[10], 256)
        if header[0][:4] != b"\x7fELF" or size != form.PROGRAM_HEADER.size:
            return
        table = os.pread(fd, count * size, at)
        for i in range(len(table) // size):
            kind, _, offset, address, _, file_bytes, _, _ = form.PROGRAM_HEADER.unpack_from(table, i * size)
            start, end = address // PAGE * PAGE, address + file_bytes
            if kind == form.PT_LOAD and file_bytes and address >= MEMORY_START and end <= MEMORY_END:
                self.parts.append((start, -(-end // PAGE) * PAGE, max(offset - address + start, 0)))


# ---- reading


class CoreFile:
    """A core as a GuestState.

    Raises ImageError: the file is no core of Tender, or it is broken; the message names it.

    Attributes:
        path: The file.
        signal: The signal that debuggers show; 0: the guest had not ended.
    """

    def __init__(self, path: str) -> None:
        self.path, self._fd = path, -1
        try:
            self._fd = open_without_waiting(path)
            about = os.fstat(self._fd)
            if not stat.S_ISREG(about.st_mode):
                raise ValueError("not a regular file")
            self._read(os.pread(self._fd, MEMORY_START, 0), about.st_size)
        except OSError as error:
            self.close()
            self._fail(error.strerror or str(error))
        except (ValueError, RecursionError) as error:
            self.close()
            self._fail(str(error).split("\n")[0])

    def _fail(self, reason: str) -> NoReturn:
        raise ImageError(printable(reason), file=self.path, code="core") from None

    def close(self) -> None:
        """Closes the file. It may be called again."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, head: bytes, size: int) -> None:
        notes: list[Note] = []
        self._mappings: list[Mapping] = []
        at = MEMORY_START
        for it in form.unpack_headers(head):
            if it.kind == form.PT_NOTE and not notes:
                if it.offset + it.file_bytes > len(head):
                    raise ValueError("a core of another program: its notes lie where Tender's have memory")
                notes = list(form.unpack_notes(head[it.offset : it.offset + it.file_bytes]))
            elif it.kind == form.PT_LOAD:
                end = it.address + it.mem_bytes
                if (
                    it.offset != it.address
                    or it.file_bytes != it.mem_bytes
                    or it.address < at
                    or end > MEMORY_END
                ):
                    raise ValueError("a core of another program: its memory does not lie at its addresses")
                if (it.address | end) % PAGE or not it.mem_bytes or it.flags > 7:
                    raise ValueError("its memory is described in a way that cannot be right")
                if end > size:
                    raise ValueError(f"cut short: it has {size} bytes of {end}")
                self._mappings.append(Mapping(it.address, end, it.flags))
                at = end
        self._take_notes(notes)

    def _take_notes(self, notes: Sequence[Note]) -> None:
        own = {note.kind: note.data for note in notes if note.owner == form.OWNER}
        threads = [note.data for note in notes if note.owner == "CORE" and note.kind == form.NT_PRSTATUS]
        if form.TNSI not in own:
            raise ValueError("a core of another program: Tender's notes are missing")
        if not threads:
            raise ValueError("it has no registers")
        self.notes = own
        xsave, self._parts = form.unpack_cpu_note(own[form.TNS1]) if form.TNS1 in own else (b"", CpuParts())
        self._call = form.unfinished_of_note(_parsed(own.get(form.TNSR, b"null")))
        self._fault = form.registers_of_prstatus(threads[0])._with(xsave=xsave)
        self._registers = form.registers_of_prstatus(threads[-1])._with(xsave=xsave)
        self.signal = form.signal_of_prstatus(threads[0])
        self._facts, self._where = _facts_of(own)

    def facts(self) -> Facts:
        """Returns what is known of the guest. Texts are as in the file: printable() before they are shown."""
        return self._facts

    def where(self) -> Where:
        """Returns where the guest stood."""
        return self._where

    def registers(self) -> Registers:
        """Returns the vCPU's registers."""
        return self._registers

    def fault_registers(self) -> Registers:
        """Returns the registers where the fault was: the vCPU's, unless the guest had handled the exception itself."""
        return self._fault

    def cpu_parts(self) -> CpuParts:
        """Returns what the processor had besides its registers, as far as it was known."""
        return self._parts

    def unfinished(self) -> Unfinished | None:
        """Returns the hypercall that the guest was in, if it was in one."""
        return self._call

    def mappings(self) -> Sequence[Mapping]:
        """Returns the guest's memory."""
        return self._mappings

    def read(self, gpa: int, length: int) -> bytes:
        """Returns memory, as GuestState.read(). Raises ImageError if the file cannot be read."""
        found = bytearray()
        for it in self._mappings:
            if gpa < it.start or length <= 0:
                break
            if gpa < it.end:
                data = self._pread(gpa, min(length, it.end - gpa))
                found += data
                gpa, length = gpa + len(data), length - len(data)
        return bytes(found)

    def _pread(self, at: int, length: int) -> bytes:
        if self._fd < 0:
            self._fail("the file is closed")
        try:
            data = os.pread(self._fd, length, at)
        except OSError as error:
            self._fail(error.strerror or str(error))
        if not data:
            self._fail("the file became shorter while it was read")
        return data

    def touched(self) -> Sequence[tuple[int, int]]:
        """Returns the parts of memory that are no holes of the file."""
        runs: list[tuple[int, int]] = []
        for it in self._mappings:
            runs += [(max(low, it.start), min(high, it.end)) for low, high in self._data(it.start, it.end)]
        return runs

    def _data(self, at: int, end: int) -> Iterator[tuple[int, int]]:
        while at < end:
            try:
                low = os.lseek(self._fd, at, os.SEEK_DATA)
                high = os.lseek(self._fd, low, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errnos.ENXIO:  # this file system cannot tell
                    yield at, end
                return
            low, high = low // PAGE * PAGE, -(-high // PAGE) * PAGE
            if low < end:
                yield low, min(high, end)
            at = max(high, at + PAGE)


def _facts_of(own: dict[int, bytes]) -> tuple[Facts, Where]:
    image = _object(own, form.TNSI)
    said = _object(own, form.TNSF)
    said |= {
        "image": image.get("path"),
        "build_id": image.get("build_id"),
        "digest": image.get("sha256"),
        "arguments": image.get("arguments"),
        "mem_bytes": image.get("mem_bytes"),
        "counters": _object(own, form.TNSC),
        "devices": _parsed(own.get(form.TNSD, b"[]")),
    }
    accepted: dict[str, object] = {}
    for it in fields(Facts):
        value, default = said.get(it.name), getattr(Facts(), it.name)
        if it.name in ("devices", "hypercalls"):
            if isinstance(value, list):
                accepted[it.name] = tuple(entry for entry in value if isinstance(entry, dict))
        elif it.name == "status":
            accepted[it.name] = value if type(value) is int else None
        elif it.name == "fault":
            accepted[it.name] = value if isinstance(value, dict) else None
        elif type(value) is type(default):
            accepted[it.name] = value
    where = said.get("where")
    return Facts(**accepted), Where(where) if where in list(Where) else Where.GUEST  # type: ignore[arg-type]


def _object(own: dict[int, bytes], kind: int) -> dict[str, object]:
    value = _parsed(own.get(kind, b"{}"))
    return value if isinstance(value, dict) else {}


def _parsed(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("one of Tender's notes is no JSON") from None
