"""`tender core`: writes a core of a running guest, and opens a core in gdb.

The work is done by tender.debug: find.py and attach.py stop the guest from outside, core.py writes the file. Two
forms of this command are typed by no user: the observer of a run's end (at_end.py), and the process that looks into a VM
of the library (tender.debug.of_vm).
"""

import os
import stat
import time
from typing import TYPE_CHECKING

from tender.cli import say
from tender.cli.gdb import find_gdb
from tender.cli.looking import failed, misused, only_guest
from tender.cli.option_table import listed
from tender.errors import ImageError, TenderError
from tender.printable import printable, quoted

if TYPE_CHECKING:
    from tender.debug.core import SavedCore
    from tender.debug.find import Guest

USAGE = f"""\
usage: tender core [--output=FILE] PID
       tender core open CORE [ARGUMENTS OF GDB]

Write a core of the guest that process PID runs or holds: registers, memory and what is known about it,
for gdb and other tools. The guest stands still meanwhile, and goes on. Without --output the file is
core.IMAGE.PID.TIME in the current directory.

`open` starts gdb with a core and the image that it belongs to.

Status 0 if the core was written, 1 if not; with `open` the status of gdb.

{listed("core")}"""


def main(argv: list[str]) -> int:
    """Serves one command line, and returns the exit status."""
    if argv[:1] == ["--at-end"]:
        from tender.cli import at_end

        return at_end.main(argv[1:])
    if argv[:1] == ["of-vm"]:
        return _of_vm(argv[1:])
    if "--help" in argv or "-h" in argv:
        say.out(USAGE)
        return 0
    try:
        if argv[:1] == ["open"]:
            return _open(argv[1:])
        return _write(argv)
    except TenderError as error:
        return failed("core", argv, error)


def _of_vm(argv: list[str]) -> int:
    from tender.debug.of_vm import serve

    try:
        return serve(argv)
    except TenderError as error:
        say.error(error.message)
        say.hint(error.hint)
        return 1


def _wrong(text: str) -> int:
    return misused("core", text, USAGE)


def _write(argv: list[str]) -> int:
    words, path, pids = list(argv), "", []
    while words:
        word = words.pop(0)
        if word in ("-o", "--output") and words:
            path = words.pop(0)
        elif word.startswith("--output="):
            path = word.partition("=")[2]
        elif word.startswith("-"):
            return _wrong(f"Invalid option: `{printable(word)}'")
        else:
            pids.append(word)
    if len(pids) != 1 or not (pids[0].isascii() and pids[0].isdigit() and 0 < int(pids[0][:11]) < 1 << 31):
        return _wrong(
            "one PID is needed" if len(pids) != 1 else f"{printable(pids[0])} is not the number of a process"
        )
    saved = core_of(only_guest(int(pids[0])), path=path, directory="." if not path else "")
    say.out(told(saved))
    return 0


def told(saved: "SavedCore") -> str:
    """Returns the line about a core that was written."""
    return (
        f"{printable(saved.path)}: {_size(saved.disk_bytes)} on disk, {_size(saved.file_bytes)} of guest memory; "
        f"the guest stood still for {saved.stopped_s * 1000:.1f} ms"
    )


def say_core(core: "SavedCore | TenderError") -> None:
    """Says where the core of an abnormal end is, and what to do with it; or why there is none."""
    if isinstance(core, TenderError):
        say.error(f"--core: no core: {core.message.removeprefix('core: ')}")
        say.hint(core.command_hint)
        return
    say.notice(f"core: {printable(core.path)}")
    say.hint(f"look into it: tender core open {quoted(core.path)}")


def _size(size: int) -> str:
    return f"{size >> 10} KiB" if size < 10 << 20 else f"{size >> 20} MiB"


def core_of(
    guest: "Guest", *, path: str = "", directory: str = "", keep: int = 100_000, reason: str = ""
) -> "SavedCore":
    """Stops a guest, writes a core, and lets it go on. `reason`: why it was stopped. Raises DebugError."""
    from tender.debug.attach import looking_at, prepare
    from tender.debug.core import save_core

    prepare(guest)
    began = time.monotonic()
    with looking_at(guest) as target:
        return save_core(
            target,
            path=path,
            directory=directory,
            keep=keep,
            resume=target.detach,
            began=began,
            reason=reason,
        )


# ---- open


def _open(argv: list[str]) -> int:
    if not argv or argv[0].startswith("-"):
        return _wrong("one CORE is needed")
    from tender.debug.core import CoreFile

    with CoreFile(argv[0]) as core:
        facts = core.facts()
    gdb = find_gdb()
    image = _image(facts.image, facts.digest, os.path.dirname(argv[0]))
    os.execv(gdb, [gdb, *argv[1:], "--", image, os.path.abspath(argv[0])])


def _image(path: str, digest: str, near: str) -> str:
    """Returns the file that the core's guest ran: where it was, or next to the core. Raises ImageError."""
    from tender.debug.image_file import digest_of, open_image

    others: list[str] = []
    for place in dict.fromkeys((path, os.path.join(near, os.path.basename(path)))):
        try:
            if not stat.S_ISREG(os.stat(place).st_mode):
                continue  # a device may do something when it is opened
            with open_image(place) as file:
                found = digest_of(file)
        except (OSError, ValueError):
            continue
        if found == digest:
            return os.path.abspath(place)
        others.append(place)
    if others:
        raise ImageError(
            f"not the file that this guest ran: its SHA-256 is not {printable(digest[:16])}...",
            file=others[0],
            hint=f"put the old file next to the core, or use this one all the same: gdb {quoted(others[0])} CORE",
        )
    raise ImageError(
        "the image cannot be found, here or next to the core",
        file=path,
        hint="put it next to the core, or name it yourself: gdb IMAGE CORE",
    )
