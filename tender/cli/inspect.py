"""`tender inspect`: shows what a monitor finds in a file. It needs no KVM and boots nothing.

The parser that boots a file also reads here what decides whether the file can run (segments, notes). symbols.py reads
what only people want to know (symbols, build id), which may be missing or broken in any file.
"""

from typing import Any

from tender.cli import call_sites, explain, report, say
from tender.cli.option_table import listed
from tender.cli.symbols import Details, read_details, symbol_at
from tender.errors import ImageError, TenderError
from tender.image import Image
from tender.native import DEVICE_KINDS
from tender.printable import printable

USAGE = f"""\
usage: tender inspect [--json] [--symbols] [--at=ADDRESS] IMAGE

Show the ABI, the devices, the segments and the symbols of the unikernel IMAGE. Needs no KVM. Status 0 if
the file can be loaded, 1 if not.

{listed("inspect")}"""

_EXEC, _WRITE, _READ = 1, 2, 4


def main(argv: list[str]) -> int:
    """Prints the description of one image, and returns the exit status: 1 if the image is refused."""
    options = [word for word in argv if word.startswith("-")]
    files = [word for word in argv if not word.startswith("-")]
    if "--help" in options or "-h" in options:
        say.out(USAGE)
        return 0
    addresses = [word.partition("=")[2] for word in options if word.startswith("--at=")]
    wrong = [w for w in options if w not in ("--json", "--symbols", "--") and not w.startswith("--at=")]
    wrong += [f"--at={address}" for address in addresses if _number(address) is None]
    if wrong or len(files) != 1:
        say.error(
            f"inspect: Invalid option: `{printable(wrong[0])}'" if wrong else "inspect: one IMAGE is needed"
        )
        say.plain(USAGE)
        return 1
    if addresses:
        where = symbol_at(files[0], _number(addresses[-1]) or 0)
        say.out(where) if where else say.error(f"inspect: {printable(files[0])}: no symbol there")
        return 0 if where else 1
    try:
        return _inspect(files[0], as_json="--json" in options, symbols="--symbols" in options)
    except TenderError as error:
        if isinstance(error, ImageError):
            error.hint = explain.image_hint(files[0]) or error.command_hint
        say.error(error.message)
        say.hint(error.hint)
        if "--json" in options:
            say.out(report.to_json({"schema": 1, "file": files[0], "error": error.to_dict()}))
        return 1


def _number(word: str) -> int | None:
    try:
        return int(word, 0)
    except ValueError:
        return None


def _inspect(path: str, *, as_json: bool, symbols: bool) -> int:
    with Image.open(path) as image:
        found = describe(image, read_details(path))
    if not symbols:
        del found["functions"]
    say.out(report.to_json(found) if as_json else text(found))
    return 0


def describe(image: Image, details: Details) -> dict[str, Any]:
    """Returns all that is known of the image as plain data for JSON."""
    needed = call_sites.least_bytes(image)
    types = dict(DEVICE_KINDS.values())
    entry_symbol = next((s.name for s in details.functions if s.address == image.entry), "")
    return {
        "schema": 1,
        "file": image.name,
        "abi": {"target": image.abi_target, "version": image.abi_version},
        "extensions": list(image.extensions),
        "sites": len(call_sites.patched(image)),
        "entry": image.entry,
        "entry_symbol": entry_symbol,
        "build_id": details.build_id,
        "memory": {"image_end": max(image.kernel_end, image.bss_end), "least_bytes": needed},
        "devices": [
            {"handle": d.handle, "name": d.name, "kind": d.kind, "type": types.get(d.kind, d.kind)}
            for d in image.devices
        ],
        "segments": [
            {
                "start": s.start,
                "end": s.end,
                "rights": rights(s.flags),
                "file_offset": s.file_offset,
                "file_bytes": s.file_bytes,
                "mem_bytes": s.mem_bytes,
            }
            for s in image.segments
        ],
        "symbol_count": details.symbol_count,
        "symbols_complete": details.complete,
        "functions": [
            {"name": s.name, "address": s.address, "size": s.size}
            for s in sorted(details.functions, key=lambda s: (s.address, s.name))
        ],
        "error": None,
    }


def rights(flags: int) -> str:
    """Returns the flags of an ELF segment as `r-x`."""
    return "".join(
        letter if flags & bit else "-" for letter, bit in (("r", _READ), ("w", _WRITE), ("x", _EXEC))
    )


def text(found: dict[str, Any]) -> str:
    """Returns the description for a person."""
    abi, memory = found["abi"], found["memory"]
    symbol = f" ({printable(found['entry_symbol'])})" if found["entry_symbol"] else ""
    lines = [
        f"{printable(found['file'])}: a unikernel for {abi['target']}, ABI version {abi['version']}",
        "",
        f"entry     {found['entry']:#x}{symbol}",
        f"build id  {found['build_id'] or 'none'}",
        f"extension {', '.join(found['extensions']) or 'none'}",
        f"sites     {found['sites']} call sites in its text, which the sandbox turns into jumps",
        f"memory    the image ends at {memory['image_end']:#x}: it needs {memory['least_bytes'] >> 20} MiB"
        " at least, and space for its heap and stack",
        f"symbols   {found['symbol_count'] or 'none'}{'' if found['symbols_complete'] else ', and more'}",
        "",
        "devices" if found["devices"] else "devices   none",
    ]
    for device in found["devices"]:
        lines.append(f"  {device['handle']:>2}  {device['type']:<12}  {printable(device['name'])}")
    lines += ["", "segments", "  start       end         rights  in file   in memory"]
    for s in found["segments"]:
        lines.append(
            f"  {s['start']:#010x}  {s['end']:#010x}"
            f"  {s['rights']}     {s['file_bytes']:<8}  {s['mem_bytes']}"
        )
    if "functions" in found:
        lines += ["", "functions"]
        for f in found["functions"]:
            lines.append(f"  {f['address']:#010x}  {f['size']:>6}  {printable(f['name'])}")
    return "\n".join(lines)
