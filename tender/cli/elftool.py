"""`tender solo5-elftool`, also under the name `solo5-elftool`: Solo5's tool of that name, for build systems.

Other programs parse what it prints. So formats, messages and statuses are Solo5's, and each message begins with
`solo5-elftool: `, however the tool was started. It answers for files of any target, and runs none.
"""

import json
import os
import stat
from collections.abc import Callable, Iterable

from tender import manifest_json
from tender._version import __version__
from tender.cli import say
from tender.errors import HostError, ManifestError, TenderError
from tender.image import TARGETS
from tender.manifest_json import DeclaredDevice
from tender.native import DEVICE_KINDS, lib, open_file, query_abi_fd, query_manifest_fd
from tender.printable import printable

PROGRAM = "solo5-elftool"
USAGE = f"""\
usage: {PROGRAM} COMMAND ...
{PROGRAM} version {__version__} (tender)

COMMAND is:
    gen-manifest SOURCE OUTPUT
        Read the manifest.json SOURCE, write C that declares it to OUTPUT. - is stdin or stdout
    query-abi BINARY
        Show which target and which version of its ABI the unikernel BINARY is for
    query-manifest BINARY
        Show the devices that the unikernel BINARY declares"""

_READ_BYTES = 1 << 16


def main(argv: list[str]) -> int:
    """Answers one command line, and returns the exit status: 1 for wrong words and for what is refused."""
    if argv[:1] in (["--help"], ["-h"]):
        say.out(USAGE)
        return 0
    commands: dict[str, tuple[int, Callable[..., None]]] = {
        "gen-manifest": (2, gen_manifest),
        "query-abi": (1, query_abi),
        "query-manifest": (1, query_manifest),
    }
    count, command = commands.get(argv[0] if argv else "", (-1, None))
    if command is None or len(argv) - 1 != count:
        say.plain(USAGE)
        return 1
    try:
        command(*argv[1:])
    except TenderError as error:
        say.plain(f"{PROGRAM}: {error.message}")
        return 1
    return 0


def query_abi(binary: str) -> None:
    """Prints the ABI note. Raises ImageError, HostError."""
    fd = _open_binary(binary)
    try:
        target, version = query_abi_fd(fd, binary)
    finally:
        os.close(fd)
    say.out(
        "{\n"
        '  "type": "solo5.abi",\n'
        f'  "target": "{TARGETS.get(target, "unknown")}",\n'
        f'  "version": {version}\n'
        "}"
    )


def query_manifest(binary: str) -> None:
    """Prints the manifest note. Raises ImageError, HostError."""
    fd = _open_binary(binary)
    try:
        found = query_manifest_fd(fd, binary)
    finally:
        os.close(fd)
    say.out(manifest_text((name, kind) for name, kind in found if kind < lib.MFT_RESERVED_FIRST))


def _open_binary(path: str) -> int:
    fd, why, errno, _ = open_file(path, lib.FILE_IMAGE)
    if fd < 0:
        raise HostError(f"{printable(path)}: {why}", errno=errno)
    return fd


def manifest_text(devices: Iterable[tuple[bytes, int]]) -> str:
    """Returns the answer of query-manifest: one line for each device."""
    lines = [
        f'    {{ "name": {_string(name)}, "type": "{DEVICE_KINDS.get(kind, ("", "<undefined type>"))[1]}" }}'
        for name, kind in devices
    ]
    return "\n".join(
        [
            "{",
            '  "type": "solo5.manifest",',
            f'  "version": {manifest_json.VERSION},',
            '  "devices": [',
            *([",\n".join(lines)] if lines else []),
            "  ]",
            "}",
        ]
    )


def _string(raw: bytes) -> str:
    """Returns a name as a JSON string. elftool writes names of letters and digits, but a file may have any bytes."""
    try:
        return json.dumps(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return json.dumps(raw.decode("latin-1"))


def gen_manifest(source: str, output: str) -> None:
    """Writes the C source for a manifest.json. A refused source leaves OUTPUT unchanged.

    Raises ManifestError, HostError.
    """
    fd = 0 if source == "-" else _open(source, os.O_RDONLY, "Could not open for reading")
    try:
        text = c_source(manifest_json.parse(_read(fd, source), printable(source)))
        if output != "-" and _same_file(fd, output):
            raise ManifestError(f"{printable(output)}: is SOURCE itself; name another OUTPUT")
    finally:
        if fd != 0:
            os.close(fd)
    if output == "-":
        say.out(text)
    else:
        _write(output, text.encode("ascii") + b"\n")


def c_source(devices: tuple[DeclaredDevice, ...]) -> str:
    """Returns a definition of the manifest note with the macros of Solo5's mft_abi.h."""
    entries = [
        "{ .type = MFT_RESERVED_FIRST }",
        *(f'{{ .type = MFT_DEV_{device.type}, .name = "{device.name}" }}' for device in devices),
    ]
    listed = "".join(f"        [{handle}] = {entry},\n" for handle, entry in enumerate(entries))
    return (
        f"/* The devices of this unikernel; made from its manifest.json by tender {__version__}. */\n"
        f"#define MFT_ENTRIES {len(entries)}\n"
        '#include "mft_abi.h"\n'
        "\n"
        "MFT1_NOTE_DECLARE_BEGIN\n"
        "{\n"
        "    .version = MFT_VERSION,\n"
        "    .entries = MFT_ENTRIES,\n"
        "    .e = {\n"
        f"{listed}"
        "    },\n"
        "}\n"
        "MFT1_NOTE_DECLARE_END"
    )


def _open(path: str, flags: int, failed: str) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _host_error(f"{printable(path)}: {failed}", error) from error


def _read(fd: int, source: str) -> bytes:
    """Returns the whole source, or one byte more than a manifest may have."""
    data = b""
    try:
        while len(data) <= manifest_json.SOURCE_BYTES_MAX:
            more = os.read(fd, min(_READ_BYTES, manifest_json.SOURCE_BYTES_MAX + 1 - len(data)))
            if not more:
                break
            data += more
    except OSError as error:
        raise _host_error(f"{printable(source)}: Could not read", error) from error
    return data


def _same_file(fd: int, path: str) -> bool:
    try:
        there, here = os.stat(path), os.fstat(fd)
    except OSError:
        return False  # opening it says why
    return stat.S_ISREG(here.st_mode) and os.path.samestat(there, here)


def _write(path: str, data: bytes) -> None:
    fd = _open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "Could not open for writing")
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        raise _host_error(f"{printable(path)}: Could not write", error) from error
    finally:
        os.close(fd)


def _host_error(what: str, error: OSError) -> HostError:
    return HostError(f"{what}: {error.strerror}", errno=error.errno or 0)
