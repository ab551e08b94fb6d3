"""All that `tender audit` finds in one image, as plain data for JSON (docs/schemas/audit.schema.json).

Any file is hostile: each read has a bound, nothing is mapped, and no number in the file decides how long a loop is. What
a bound leaves out is said: `complete` is false.
"""

import hashlib
import os
import re
import struct
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tender.cli import call_sites, inspect, symbols
from tender.cli.audit import components, instructions, policy
from tender.cli.audit.components import Component, Evidence
from tender.cli.symbols import File, Section, Symbol
from tender.errors import ImageError
from tender.image import Image
from tender.native import ffi, lib, open_file

SCHEMA = 1
FILE_MAX = 1 << 30
CODE_MAX = 64 << 20
LISTED_MAX = 8  # addresses of sites
_PIECE = 4 << 20
_OVERLAP = 1 << 10
_HEADERS_MAX = 256
_PHDR = struct.Struct("<II48x")
_GNU_STACK = 0x6474E551
_EXEC, _WRITE = 1, 2
_GATE_CALL = re.compile(
    rb"[\x48\x49](?:\x83[\xc0-\xc7](.)|\x05(.{4})|\x81[\xc0-\xc7](.{4}))(?:\x41)?\xff[\xd0-\xd7\xe0-\xe7]",
    re.DOTALL,
)
"""An addition to a register, then a call or jump to what is in it: how guest_kernel/gate.c calls a slot."""


def audit(path: str, required: Sequence[policy.Requirement]) -> dict[str, Any]:
    """Returns what is known of the image. Raises ImageError if it is none, HostError if the host has no memory."""
    fd, why, _, hint = open_file(path, lib.FILE_IMAGE)
    if fd < 0:
        raise ImageError(why, file=path, code="image-open", hint=hint)
    try:
        size = os.fstat(fd).st_size
        if size > FILE_MAX:
            raise ImageError(
                f"{size} bytes: an audit reads at most {FILE_MAX}",
                file=path,
                code="image-open",
                hint="'tender inspect' reads files of any size",
            )
        with Image.open(path) as image:
            return _describe(image, fd, size, required)
    finally:
        os.close(fd)


def _describe(image: Image, fd: int, size: int, required: Sequence[policy.Requirement]) -> dict[str, Any]:
    file = File(fd)
    sections = symbols.sections_of(file)
    names = {symbols.section_name(file, section): section for section in reversed(sections)}
    named = list(symbols.named_symbols(file, sections))
    digest, found = _whole_file(file, size)
    found |= _by_sections(file, names) | _by_symbols(image, file, named)
    if image.extensions:
        found.add(Component("tender-guest", "", Evidence.NOTE))
    listed = components.merged(found)
    code = _code(image, file, named)
    verdicts = [policy.verdict(asked, listed) for asked in required]
    counts = code.counts
    return {
        "schema": SCHEMA,
        "file": image.name,
        "sha256": digest,
        "size": size,
        "build_id": next(filter(None, (symbols.build_id_of(file, s) for s in sections if s.kind == symbols.NOTES)), ""),
        "abi": {"target": image.abi_target, "version": image.abi_version},
        "extensions": list(image.extensions),
        "devices": [{"handle": d.handle, "name": d.name, "kind": str(d.kind)} for d in image.devices],
        "hypercalls": _hypercalls(image, file),
        "ports": [
            {"instruction": name, "port": port if port >= 0 else None, "sites": len(sites)}
            for (name, port), sites in sorted(code.ports.items())
            if not _is_hypercall(name, port)
        ],
        "segments": [{"start": s.start, "end": s.end, "rights": inspect.rights(s.flags)} for s in image.segments],
        "writable_code": any(s.flags & _EXEC and s.flags & _WRITE for s in image.segments),
        "executable_stack": _executable_stack(file),
        "instructions": {
            name: {
                "sites": len(count.sites),
                "at_most": len(count.sites) + count.unsure,
                "addresses": sorted(count.sites)[:LISTED_MAX],
            }
            for name, count in sorted(counts.items())
            if name not in ("in", "out")
        },
        "code": {"bytes": code.code_bytes, "decoded_bytes": code.decoded_bytes, "complete": code.complete},
        "entropy": _most(counts, instructions.RANDOM),
        "ends_sandbox": sorted(name for name in counts if name in instructions.ENDS_SANDBOX and _ends(code, name)),
        "hardening": {
            "stack_protector": any(symbol.name == "__stack_chk_fail" for symbol in named),
            "unwind_tables": _has(names, ".eh_frame") or _has(names, ".debug_frame"),
            "debug_lines": _has(names, ".debug_line"),
            "symbols": len(named),
        },
        "components": [{"name": c.name, "version": c.version, "evidence": str(c.evidence)} for c in listed],
        "required": [
            {"requirement": v.requirement.text, "met": v.met, "present": v.present, "found": list(v.found)}
            for v in verdicts
        ],
        "error": None,
    }  # fmt: skip


def _has(names: dict[str, Section], name: str) -> bool:
    return name in names and names[name].size > 0


def _whole_file(file: File, size: int) -> tuple[str, set[Component]]:
    """Returns the SHA-256 of the file, and what texts in it show. It is read once."""
    digest, found, hits = hashlib.sha256(), set[Component](), dict[bytes, int]()
    at, kept = 0, b""
    while at < size and (piece := file.read(at, min(_PIECE, size - at))):
        at += len(piece)
        digest.update(piece)
        found |= components.in_bytes(kept + piece, hits)
        kept = piece[-_OVERLAP:]
    return digest.hexdigest(), found


def _by_sections(file: File, names: dict[str, Section]) -> set[Component]:
    comment = names.get(".comment")
    if not comment:
        return set()
    return components.in_comment(file.read(comment.offset, min(comment.size, components.COMMENT_MAX)))


def _by_symbols(image: Image, file: File, named: Sequence[Symbol]) -> set[Component]:
    """Returns what names of symbols show, and the bytes at some of them."""
    found, ends, sys_at, packages_at = set[Component](), dict[str, int](), -1, -1
    for symbol in named:
        if symbol.name in components.SYMBOLS:
            found.add(Component(components.SYMBOLS[symbol.name][0], "", Evidence.SYMBOL))
        elif symbol.name in components.AT_SYMBOL:
            version = components.version_text(_at(image, file, symbol.address, 64))
            found.add(Component(components.AT_SYMBOL[symbol.name][0], version, Evidence.SYMBOL))
        elif symbol.name.startswith("caml"):
            if components.OCAML_VERSION.fullmatch(symbol.name):
                sys_at = symbol.address if sys_at < 0 else min(sys_at, symbol.address)
            elif components.OCAML_PACKAGES.fullmatch(symbol.name):
                packages_at = symbol.address
            elif symbol.name.endswith("data_end"):
                ends[symbol.name.replace("data_end", "data_begin")] = symbol.address
    above = sorted(ends.values())
    if sys_at >= 0:
        version = components.ocaml_version(_at(image, file, sys_at, _length(sys_at, above)))
        found.add(Component("ocaml", version, Evidence.SYMBOL))
    if packages_at >= 0:
        data = _at(image, file, packages_at, _length(packages_at, above))
        found |= {
            Component(f"opam:{n}", v, Evidence.BUILD) for n, v in components.ocaml_packages(data, packages_at)
        }
    return found


def _length(start: int, ends: Sequence[int]) -> int:
    """Returns how much data follows `start`, up to the next end of a module."""
    return min(next((end - start for end in ends if end > start), 0), components.DATA_MAX)


def _at(image: Image, file: File, address: int, size: int) -> bytes:
    """Returns the bytes that the file has for an address."""
    for s in image.segments:
        if s.start <= address < s.start + s.file_bytes:
            return file.read(s.file_offset + address - s.start, min(size, s.start + s.file_bytes - address))
    return b""


def _segments_of_code(image: Image, file: File) -> list[tuple[int, bytes, bool]]:
    """Returns address and bytes of the code, and whether these are all."""
    left, found = CODE_MAX, []
    for s in image.segments:
        if s.flags & _EXEC:
            size = min(s.file_bytes, left)
            left -= size
            found.append((s.start, file.read(s.file_offset, size), size == s.file_bytes))
    return found


def _code(image: Image, file: File, named: Sequence[Symbol]) -> instructions.Findings:
    functions = {symbol.address: symbol.size for symbol in named if symbol.function}
    functions.setdefault(image.entry, 0)
    found = instructions.Findings()
    for start, code, whole in _segments_of_code(image, file):
        instructions.look_through(code, start, sorted(functions.items()), found)
        found.complete = found.complete and whole
    return found


def _hypercalls(image: Image, file: File) -> dict[str, dict[str, int]]:
    """Returns how many call sites each hypercall has, and how many calls of its slot of the gate page."""
    sites = Counter(site.number for site in call_sites.patched(image))
    slots: Counter[int] = Counter()
    if "gate" in image.extensions:
        for _, code, _ in _segments_of_code(image, file):
            for match in _GATE_CALL.finditer(code):
                offset = int.from_bytes(next(filter(None, match.groups())), "little")
                slots[
                    offset // lib.TENDER_GATE_SLOT_BYTES if offset % lib.TENDER_GATE_SLOT_BYTES == 0 else 0
                ] += 1
    return {
        ffi.string(name).decode(): {"call_sites": sites[number], "gate_calls": slots[number]}
        for number in range(1, lib.TENDER_HYPERCALL_MAX)
        if (sites[number] or slots[number]) and (name := lib.tn_hypercall_name(number))
    }


def _is_hypercall(name: str, port: int) -> bool:
    return name == "out" and 0 < port - lib.HVT_PORT_BASE < lib.HVT_HYPERCALL_MAX


def _ends(code: instructions.Findings, name: str) -> bool:
    """Whether the instruction ends a run: an `out` of a hypercall does not, nor one that kicks the network ring."""
    if name not in ("in", "out", "ins", "outs"):
        return bool(code.counts[name].sites)
    others = [
        port for instruction, port in code.ports if instruction == name and not _is_hypercall(name, port)
    ]
    return any(port != lib.HVT_PORT_NET_KICK for port in others)


def _most(counts: dict[str, instructions.Count], names: Sequence[str]) -> dict[str, int]:
    found = [counts[name] for name in names if name in counts]
    sites = sum(len(count.sites) for count in found)
    return {"sites": sites, "at_most": sites + sum(count.unsure for count in found)}


def _executable_stack(file: File) -> bool | None:
    """Returns what the file says of the stack; None: nothing."""
    header = file.read(0, 64)
    (offset,) = struct.unpack_from("<Q", header, 32)
    entry_bytes, count = struct.unpack_from("<HH", header, 54)
    if entry_bytes != _PHDR.size:
        return None
    table = file.read(offset, min(count, _HEADERS_MAX) * _PHDR.size)
    for kind, flags in _PHDR.iter_unpack(table[: len(table) - len(table) % _PHDR.size]):
        if kind == _GNU_STACK:
            return bool(flags & _EXEC)
    return None
