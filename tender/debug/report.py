"""Crash reports: what a person needs to know about a guest that stands still, from its state and its image.

`capture` copies what a report needs, so a live guest goes on soon. `report_of` then makes the report as plain data of the
schema "tender.report/1" (docs/cli.md describes it), in a confined child: image and core may be hostile. report_text.py
and report_html.py show it. All texts in the data are the guest's or a file's: whoever shows them makes them harmless.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tender.debug.confined import Died, run_confined
from tender.debug.core_format import MEMORY_START
from tender.debug.cpu_parts import CpuParts, Unfinished
from tender.debug.exceptions import PAGE_FAULT, exception_named, vector_of
from tender.debug.memory_use import heap_use, probe_in
from tender.debug.own_code import library_of, own_frame, source_of
from tender.debug.registers import SHOWN, Registers
from tender.debug.symbols import Frame, Symbols
from tender.debug.target import Facts, GuestState, Mapping, Where
from tender.errors import ImageError, TenderError

SCHEMA = "tender.report/1"
HYPERCALLS_MAX = 16
_FRAMES_MAX = 64
_PAGE = 4096
_COPY_MAX = 64 << 20
_STACK_BELOW, _STACK_ABOVE = 16 << 10, 256 << 10
_NULL_MAX = 64 << 10
_NEAR_STACK = 1 << 20

Report = dict[str, Any]


@dataclass(frozen=True)
class Captured:
    """A GuestState that was copied: it needs neither the process nor the file any more."""

    known: Facts
    stands: Where
    state: Registers
    memory: Sequence[Mapping]
    runs: Sequence[tuple[int, int]]
    pieces: Sequence[tuple[int, bytes]]
    """Copied memory by address, in ascending order. What no piece has reads as zeros, or, if it is in `runs`, not at all."""
    fault_state: Registers | None = None

    def facts(self) -> Facts:
        return self.known

    def where(self) -> Where:
        return self.stands

    def registers(self) -> Registers:
        return self.state

    def mappings(self) -> Sequence[Mapping]:
        return self.memory

    def touched(self) -> Sequence[tuple[int, int]]:
        return self.runs

    def cpu_parts(self) -> CpuParts:
        return CpuParts()

    def unfinished(self) -> Unfinished | None:
        return None

    def read(self, gpa: int, length: int) -> bytes:
        found = bytearray()
        for it in self.memory:
            if gpa < it.start or length <= 0:
                break
            if gpa < it.end:
                size = min(length, it.end - gpa)
                data = self._read(gpa, size)
                found += data
                if len(data) < size:
                    break
                gpa, length = gpa + size, length - size
        return bytes(found)

    def _read(self, gpa: int, size: int) -> bytes:
        size = self._first_missing(gpa, gpa + size) - gpa
        found = bytearray(size)
        for start, data in self.pieces[self._piece_at(gpa) :]:
            if start >= gpa + size:
                break
            low, high = max(gpa, start), min(gpa + size, start + len(data))
            if low < high:
                found[low - gpa : high - gpa] = data[low - start : high - start]
        return bytes(found)

    def _piece_at(self, gpa: int) -> int:
        return max(0, bisect.bisect_right(self.pieces, gpa, key=lambda it: it[0]) - 1)

    def _first_missing(self, gpa: int, end: int) -> int:
        """Returns the first address in [gpa, end) that may hold something and was not copied, or `end`."""
        first = max(0, bisect.bisect_right(self.runs, gpa, key=lambda it: it[0]) - 1)
        for low, high in self.runs[first:]:
            if low >= end:
                break
            at, stop = max(low, gpa), min(high, end)
            for start, data in self.pieces[self._piece_at(at) :]:
                if at >= stop or start > at:
                    break
                at = max(at, start + len(data))
            if at < stop:
                return at
        return end


def capture(state: GuestState, limit: int = _COPY_MAX) -> Captured:
    """Copies what a report needs: all memory that was touched, or, if that is more than `limit`, the stacks first."""
    registers = state.registers()
    fault_registers = getattr(state, "fault_registers", None)
    fault_state = fault_registers() if fault_registers is not None else None
    mappings, runs = tuple(state.mappings()), tuple(state.touched())
    wanted = []
    for it in (registers, fault_state):
        if it is not None:
            wanted.append((max(0, it.rsp - _STACK_BELOW), it.rsp + _STACK_ABOVE))
            wanted.append((max(0, it.rip - _PAGE), it.rip + _PAGE))
    wanted += runs
    copied: list[tuple[int, bytes]] = []
    left = limit
    for low, high in wanted:
        for start, end in _without(copied, low, high):
            data = state.read(start, min(end - start, left)) if left > 0 else b""
            if data:
                copied.append((start, data))
                left -= len(data)
    copied.sort()
    runs = tuple(_without_zeros(runs, copied))
    return Captured(state.facts(), state.where(), registers, mappings, runs, copied, fault_state)


def _without_zeros(
    runs: Sequence[tuple[int, int]], copied: Sequence[tuple[int, bytes]]
) -> Iterator[tuple[int, int]]:
    """Returns the runs without the pages that hold zeros, as a core has them. What was not copied stays as it is."""
    zeros = bytes(_PAGE)
    for start, end in runs:
        first = start
        for at, data in copied:
            if at >= end:
                break
            low, high = max(start, -(-at // _PAGE) * _PAGE), min(end, at + len(data))
            for page in range(low, high - _PAGE + 1, _PAGE):
                if data[page - at : page - at + _PAGE] == zeros:
                    if first < page:
                        yield first, page
                    first = page + _PAGE
        if first < end:
            yield first, end


def _without(copied: list[tuple[int, bytes]], low: int, high: int) -> list[tuple[int, int]]:
    parts = [(low, high)]
    for start, data in copied:
        end = start + len(data)
        parts = [
            part for a, b in parts for part in ((a, min(b, start)), (max(a, end), b)) if part[0] < part[1]
        ]
    return parts


# ---- making


def report_of(state: GuestState, *, image: str = "", core: str = "") -> Report:
    """Makes the report in a confined child. If the child dies, it is one without symbols, and says so.

    Args:
        state: The guest; its copy (`capture`), if it is live.
        image: The path of its ELF file; empty: the one that the state names.
        core: The path of a core that was just written of it, if there is one.
    """
    facts = state.facts()
    path = image or facts.image
    try:
        made: Report = run_confined(lambda: make_report(state, path, core=core))
    except Died as died:
        made = make_report(state, "", core=core)
        made["notes"].insert(0, f"no symbols: the reader of {path or 'the image'} {died}")
    return made


def fitted(report: Report, limit: int) -> Report:
    """Returns the report, without its longest parts if its JSON has more than `limit` bytes. Its notes say so."""
    import json

    fits = dict(report)
    for name in ("memory", "source", "vcpu_stack", "stack", "hypercalls", "devices", "timeline", "counters"):
        if len(json.dumps(fits)) * 2 <= limit:  # what is no text becomes longer
            break
        if fits[name]:
            fits[name] = type(fits[name])()
            fits["notes"] = [*fits["notes"], f"{name}: left out, because the line would be too long"]
    return fits


def report_of_core(path: str, image: str = "") -> Report:
    """Makes the report of a core. All of the core is read in a confined child.

    Raises ImageError: it is no core; the message says why, also if the child died of it.
    """

    def made() -> Report:
        from tender.debug.core import CoreFile

        try:
            with CoreFile(path) as core:
                return make_report(core, image or core.facts().image, core=path)
        except TenderError as error:
            return {"error": error.to_dict()}

    try:
        report: Report = run_confined(made)
    except Died as died:
        raise ImageError(f"the reader of the core {died}", file=path, code="core") from None
    if "error" in report:
        error = report["error"]
        raise ImageError(str(error.get("message")), code=str(error.get("code")), hint=str(error.get("hint")))
    return report


def make_report(state: GuestState, image: str, *, core: str = "") -> Report:
    """Makes the report here, without a child. `image` may be empty."""
    facts, registers, notes = state.facts(), state.registers(), []
    symbols = None
    if image:
        try:
            symbols = Symbols.open(image)
        except ImageError as error:
            notes.append(f"no symbols: {error.message}")
    else:
        notes.append("no symbols: the image is not known")
    frames, fault_frames, interrupted = _stacks(state, registers, symbols)
    fault = _fault(state, vector_of(frames, state.read), interrupted, symbols)
    shown = fault_frames or frames
    report: Report = {
        "schema": SCHEMA,
        "tender": facts.version,
        "backend": facts.backend,
        "pid": facts.pid,
        "core": core,
        "image": image or facts.image,
        "build_id": facts.build_id,
        "sha256": facts.digest,
        "arguments": facts.arguments,
        "reason": facts.reason,
        "message": facts.message,
        "status": facts.status,
        "where": str(state.where()),
        "fault": fault,
        "stack": _plain(shown),
        "own_frame": own_frame(shown),
        "vcpu_stack": _plain(_above(frames, fault_frames)) if fault_frames else [],
        "source": source_of(shown),
        "registers": {name: getattr(interrupted or registers, name) for name in SHOWN},
        "code": state.read((interrupted or registers).rip, 16).hex(),
        "memory": _memory(state, symbols),
        "hypercalls": [dict(it) for it in facts.hypercalls[-HYPERCALLS_MAX:]],
        "counters": dict(facts.counters),
        "timeline": dict(facts.timeline),
        "devices": [dict(it) for it in facts.devices],
        "notes": notes,
        "next": _next(facts, core, image),
    }
    if symbols is not None:
        symbols.close()
    return report


def _plain(frames: Sequence[Frame]) -> list[dict[str, object]]:
    return [{**frame.to_dict(), "library": library_of(frame)} for frame in frames]


def _above(frames: Sequence[Frame], fault_frames: Sequence[Frame]) -> Sequence[Frame]:
    """The frames of a handler, without those of the code that it interrupted, which are in the other stack."""
    same = 0
    for frame, other in zip(reversed(frames), reversed(fault_frames), strict=False):
        if frame != other:
            break
        same += 1
    return frames[: len(frames) - same]


def _stacks(
    state: GuestState, registers: Registers, symbols: Symbols | None
) -> tuple[Sequence[Frame], Sequence[Frame], Registers | None]:
    """The vCPU's stack, that of the fault if it is another one, and the registers at the fault."""
    if symbols is None:
        return [Frame(pc=registers.rip)], [], None
    frames = symbols.backtrace(registers, state.read, _FRAMES_MAX)
    fault_registers = getattr(state, "fault_registers", None)
    interrupted = fault_registers() if fault_registers is not None else getattr(state, "fault_state", None)
    if interrupted is None or interrupted.rip == registers.rip:
        interrupted = symbols.interrupted(registers, state.read)
    fault = state.facts().fault or {}
    rip = fault.get("rip")
    if isinstance(rip, int) and rip != registers.rip and (interrupted is None or interrupted.rip == rip):
        interrupted = _registers_of(fault, interrupted or registers)  # the stack has no RFLAGS of it
    if interrupted is None:
        return frames, [], None
    return frames, symbols.backtrace(interrupted, state.read, _FRAMES_MAX), interrupted


def _registers_of(fault: dict[str, object], registers: Registers) -> Registers:
    """The registers at a fault, as far as the monitor or the guest's own report has them."""
    told = fault.get("registers")
    named = {**(told if isinstance(told, dict) else fault), "rip": fault.get("rip")}
    known = {name: it for name, it in named.items() if name in Registers.__slots__ and isinstance(it, int)}
    return registers._with(**known)


def _fault(
    state: GuestState, vector: int | None, interrupted: Registers | None, symbols: Symbols | None
) -> dict[str, object] | None:
    facts = state.facts()
    fault = facts.fault
    told = fault.get("registers") if fault else None
    address = told.get("cr2") if isinstance(told, dict) else (fault or {}).get("cr2")
    rip = (fault or {}).get("rip", interrupted.rip if interrupted else None)
    if not isinstance(rip, int):
        return None
    made: dict[str, object] = {"rip": rip, "exception": exception_named(vector), "address": None, "what": ""}
    if vector not in (None, PAGE_FAULT):
        return made
    is_sure = vector == PAGE_FAULT or (fault or {}).get("error_code") or isinstance(told, dict)
    if isinstance(address, int) and (address or is_sure):
        rsp = (interrupted or state.registers()).rsp
        made |= {"address": address, "what": what_lies_at(address, state.mappings(), rsp, symbols)}
    code = (fault or {}).get("error_code")
    if isinstance(code, int):
        made["access"] = _access(code)
    return made


def _access(error_code: int) -> str:
    """What a page fault tried. Source: Intel SDM volume 3, 4.7."""
    kind = "execute" if error_code & 16 else "write" if error_code & 2 else "read"
    return f"{kind}, {'not allowed' if error_code & 1 else 'not mapped'}"


def what_lies_at(address: int, mappings: Sequence[Mapping], rsp: int, symbols: Symbols | None) -> str:
    """Says what a person should know about an address: its place in memory, and the symbol there."""
    if address < _NULL_MAX:
        return "a null pointer" if not address else f"a null pointer + {address}"
    if address >> 47 not in (0, 0x1FFFF):
        return "no address that the processor can use"
    end = max((it.end for it in mappings), default=0)
    here = next((it for it in mappings if it.start <= address < it.end), None)
    symbol = symbols.at(address) if symbols is not None else None
    name = f"{symbol.shown}+{address - symbol.address:#x}, " if symbol else ""
    segment = symbols.elf.segment_at(address) if symbols is not None else None
    if address >= end:
        return f"beyond the guest's memory, which ends at {end:#x}"
    if 0 < rsp - address <= _NEAR_STACK and (here is None or not here.flags & 2):
        return f"{name}{rsp - address} bytes below the stack pointer: the stack has overflowed"
    if here is None:
        return f"{name}memory that is not mapped"
    if here.flags & 1:
        return f"{name}text of the image: not writable"
    if not here.flags & 2:
        return f"{name}read-only data of the image"
    if abs(address - rsp) < 8 << 10:
        return f"{name}the stack: {abs(address - rsp)} bytes {'above' if address >= rsp else 'below'} the stack pointer"
    if segment is not None:
        return f"{name}data of the image"
    return f"{name}the heap or a stack: memory behind the image"


def _memory(state: GuestState, symbols: Symbols | None) -> dict[str, object]:
    probe = probe_in(symbols) if symbols is not None else None
    use = heap_use(probe, state.read) if probe else None
    return {
        "total_bytes": state.facts().mem_bytes,
        "touched_bytes": sum(max(0, high - max(low, MEMORY_START)) for low, high in state.touched()),
        "heap": use.to_dict() if use else None,
    }


def _next(facts: Facts, core: str, image: str) -> list[str]:
    from tender.printable import quoted

    if core:
        return [
            f"gdb {quoted(image or facts.image or 'IMAGE')} {quoted(core)}",
            f"tender report --html=report.html {quoted(core)}",
        ]
    if facts.reason == "live":
        return [f"tender debug {facts.pid}", f"tender core {facts.pid}"]
    name = quoted(image or facts.image or "IMAGE")
    arguments = f" {facts.arguments}" if facts.arguments.isprintable() and facts.arguments else ""
    return [f"tender debug {name}{arguments}", f"tender --core=. {name}{arguments}"]
