"""`tender report`: says what a person needs to know about a core or about a guest that runs.

A guest that runs is stopped only while its registers and memory are copied.
"""

import os
from typing import Any

from tender.cli import report as results
from tender.cli import say
from tender.cli.looking import STATUS_FAILED, failed, misused
from tender.cli.option_table import listed
from tender.errors import TenderError
from tender.printable import printable

USAGE = f"""\
usage: tender report [--json] [--html=FILE] [--image=FILE] CORE|PID

Show where a guest stands and why it ended: the stack with source lines, registers, memory and the last
hypercalls. CORE is a file of `tender core` or --core; PID is a process that runs a guest, which goes on
after a moment. Status 0, or 1 if there is no such core or guest, or it cannot be read.

{listed("report")}"""


def main(argv: list[str]) -> int:
    """Prints one report, and returns the exit status."""
    as_json, html, image, words, wrong = False, "", "", [], ""
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word in ("--help", "-h"):
            say.out(USAGE)
            return 0
        if word == "--json":
            as_json = True
        elif name in ("--html", "--image"):
            if not equals and rest:
                value = rest.pop(0)
            if not value:
                wrong = wrong or f"{name} needs a file: {name}=FILE"
            html, image = (value, image) if name == "--html" else (html, value)
        elif word.startswith("-"):
            wrong = wrong or f"Invalid option: `{printable(word)}'"
        else:
            words.append(word)
    if wrong or len(words) != 1:
        return misused("report", wrong or "one CORE or PID is needed", USAGE)
    try:
        return _show(_made(words[0], image), as_json=as_json, html=html)
    except TenderError as error:
        return failed("report", argv, error)


def _made(word: str, image: str) -> dict[str, Any]:
    from tender.debug.report import capture, report_of, report_of_core

    if image:
        _check_image(image)
    if not (word.isascii() and word.isdigit()) or os.path.exists(word):
        return report_of_core(word, image)
    from tender.debug.attach import looking_at
    from tender.debug.find import guests_of

    with looking_at(guests_of(int(word))[0]) as target:
        copied = capture(target)
    return report_of(copied, image=image)


def _check_image(image: str) -> None:
    """Raises ImageError if the image that the user has named cannot be read. One that a core names may be missing."""
    from tender.debug.elf_file import ElfFile

    ElfFile.open(image).close()


def _show(report: dict[str, Any], *, as_json: bool, html: str) -> int:
    if html:
        from tender.debug.report_html import html_of

        if not _write(html, html_of(report)):
            return STATUS_FAILED
    if as_json:
        say.out(results.to_json(report))
    elif not html:
        from tender.debug.report_text import text_of

        say.out(text_of(report, color=say.wants_color(1)).removesuffix("\n"))
    return 0


def _write(path: str, text: str) -> bool:
    try:
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no name of a file"
        say.error(f"report: {printable(path)}: {why}")
        return False
    return True
