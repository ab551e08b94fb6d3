"""`tender audit IMAGE|DIR...`: shows what unikernels are made of and can do, and compares versions with what is asked.

One image is described; of several, or of a directory, each has one line. It needs no KVM and boots nothing.
"""

import os
import stat
from collections.abc import Iterator
from typing import Any

from tender.cli import explain, report, say
from tender.cli.audit import image as images
from tender.cli.audit import instructions, policy
from tender.cli.option_table import listed
from tender.errors import ImageError, TenderError
from tender.image import target_named
from tender.printable import printable

USAGE = f"""\
usage: tender audit [--json] [--verbose] [--require=NAME>=VERSION] IMAGE|DIR...

Show what unikernels are made of and what they can do: hypercalls, instructions of interest, libraries and
their versions. One image is described; of several, and of each in a directory, there is a line. Status 0 if
all is well, 1 if an image is refused or a required version is not there, 2 for wrong words.

{listed("audit")}"""

ENTRIES_MAX = 100_000
DEPTH_MAX = 32
_MAGIC = b"\x7fELF"
_SHOWN_COMPONENTS = 6


class _Words:
    """The words of the command line."""

    def __init__(self, argv: list[str]) -> None:
        self.json = self.verbose = self.help = False
        self.required: list[policy.Requirement] = []
        self.paths: list[str] = []
        self.wrong = ""
        words = iter(argv)
        for word in words:
            if word == "--":
                self.paths += words
            elif word == "--require" or word.startswith("--require="):
                value = next(words, "") if word == "--require" else word.partition("=")[2]
                asked = policy.requirement(value)
                if asked:
                    self.required.append(asked)
                else:
                    self.wrong = self.wrong or f"--require: `{printable(value)}' is not NAME>=VERSION"
            elif word.startswith("-") and len(word) > 1:
                self._flag(word)
            else:
                self.paths.append(word)
        if not self.paths and not self.wrong:
            self.wrong = "an IMAGE or a directory is needed"

    def _flag(self, word: str) -> None:
        self.json = self.json or word == "--json"
        self.verbose = self.verbose or word in ("--verbose", "-v")
        self.help = self.help or word in ("--help", "-h")
        if word not in ("--json", "--verbose", "-v", "--help", "-h"):
            self.wrong = self.wrong or f"Invalid option: `{printable(word)}'"


def main(argv: list[str]) -> int:
    """Audits the images of the command line, and returns the exit status."""
    words = _Words(argv)
    if words.help:
        say.out(USAGE)
        return 0
    if words.wrong:
        say.error(f"audit: {words.wrong}")
        if "--require" in words.wrong:
            say.hint(policy.FORM)
        else:
            say.plain(USAGE)
        return 2
    alone = len(words.paths) == 1 and not os.path.isdir(words.paths[0])
    status = 0
    for path in words.paths:
        if not os.path.isdir(path):
            status |= _one(path, words, described=alone, named=True) or 0
            continue
        audited = 0
        for file in _walk(path, words):
            answer = _one(file, words, described=False, named=False)
            audited += answer is not None
            status |= answer or 0
        if not audited:
            say.error(f"audit: {printable(path)}: no unikernel in this directory")
            status = 1
    return status


def _one(path: str, words: _Words, *, described: bool, named: bool) -> int | None:
    """Audits one file, and returns its status; None: it is no unikernel, and was only met on the way."""
    try:
        found = images.audit(path, words.required)
    except TenderError as error:
        if not named and _is_another_file(error):
            if words.verbose:
                say.error(f"audit: {printable(path)}: skipped: not a unikernel for hvt")
            return None
        if isinstance(error, ImageError) and not error.hint:
            error.hint = explain.image_hint(path) or error.command_hint
        say.error(error.message)
        say.hint(error.hint)
        if words.json:
            say.out(report.to_json({"schema": images.SCHEMA, "file": path, "error": error.to_dict()}))
        return 1
    if words.json:
        say.out(report.to_json(found))
    else:
        say.out(text(found) if described else line(found))
    missed = [row for row in found["required"] if not row["met"]]
    for row in missed:
        say.error(f"audit: {printable(path)}: {_missed(row)}")
    return 1 if missed else 0


def _is_another_file(error: TenderError) -> bool:
    """Whether the refusal means that the file is no unikernel, or one for another monitor."""
    return isinstance(error, ImageError) and error.code != "image-open" and target_named(error.message) != 1


def _missed(row: dict[str, Any]) -> str:
    found = ", ".join(row["found"]) or ("no version" if row["present"] else "nothing")
    return f"{row['requirement']} is required, found {found}"


def _walk(top: str, words: _Words) -> Iterator[str]:
    """Yields the ELF files below a directory in the order of their names. Symbolic links are not followed."""
    left, waiting = ENTRIES_MAX, [(top, 0)]
    while waiting:
        directory, depth = waiting.pop()
        try:
            with os.scandir(directory) as entries:
                found = []
                for entry in entries:
                    left -= 1
                    if left < 0:
                        say.error(
                            f"audit: {printable(top)}: more than {ENTRIES_MAX} entries; the rest is left out"
                        )
                        return
                    found.append(entry)
        except OSError as error:
            say.error(f"audit: {printable(directory)}: {error.strerror}")
            continue
        found.sort(key=lambda entry: entry.name)
        waiting += [
            (entry.path, depth + 1)
            for entry in reversed(found)
            if depth < DEPTH_MAX and entry.is_dir(follow_symlinks=False)
        ]
        for entry in found:
            if entry.is_file(follow_symlinks=False):
                if _is_elf(entry.path):
                    yield entry.path
                elif words.verbose:
                    say.error(f"audit: {printable(entry.path)}: skipped: not an ELF file")


def _is_elf(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and os.pread(fd, len(_MAGIC), 0) == _MAGIC
    except OSError:
        return False
    finally:
        os.close(fd)


def line(found: dict[str, Any]) -> str:
    """Returns one image in one line: name, ABI, size, devices, what is noteworthy, components."""
    kinds = ",".join(dict.fromkeys(device["kind"] for device in found["devices"])) or "no devices"
    parts = [f"{found['abi']['target']} {found['abi']['version']}", f"{found['size']} bytes", kinds]
    parts += [note for note, is_so in (
        ("no entropy", not found["entropy"]["at_most"]),
        ("no stack protector", not found["hardening"]["stack_protector"]),
        ("no debug lines", not found["hardening"]["debug_lines"]),
        ("ends in the sandbox by " + "/".join(found["ends_sandbox"]), found["ends_sandbox"]),
    ) if is_so]  # fmt: skip
    shown = [_component(c) for c in found["components"] if ":" not in c["name"]]
    others = len(found["components"]) - min(len(shown), _SHOWN_COMPONENTS)
    parts.append(
        ", ".join(shown[:_SHOWN_COMPONENTS]) + (f" and {others} more" if others else "")
        or "no known components"
    )
    return f"{printable(found['file'])}: {'; '.join(parts)}"


def _component(component: dict[str, str]) -> str:
    return printable(f"{component['name']} {component['version']}".rstrip())


def text(found: dict[str, Any]) -> str:
    """Returns the description of one image for a person."""
    abi, code, hardening = found["abi"], found["code"], found["hardening"]
    lines = [
        f"{printable(found['file'])}: a unikernel for {abi['target']}, ABI version {abi['version']}",
        "",
        f"sha256     {found['sha256']}",
        f"size       {found['size']} bytes",
        f"build id   {found['build_id'] or 'none'}",
        f"extension  {', '.join(found['extensions']) or 'none'}",
        f"devices    {', '.join(printable(d['name']) + ' (' + d['kind'] + ')' for d in found['devices']) or 'none'}",
        "",
        "hypercalls" if found["hypercalls"] else "hypercalls no call sites",
    ]
    for name, count in found["hypercalls"].items():
        gate = f", {_number(count['gate_calls'], 'call')} of the gate page" if count["gate_calls"] else ""
        lines.append(f"  {name:<12} {_number(count['call_sites'], 'call site')}{gate}")
    for port in found["ports"]:
        where = f"port {port['port']:#x}" if port["port"] is not None else "a port that is not constant"
        lines.append(f"  {port['instruction']:<12} {port['sites']} to {where}")
    lines += ["", "instructions" if found["instructions"] else "instructions of interest: none"]
    for name, count in found["instructions"].items():
        lines.append(f"  {name:<12} {_count(count)}{_first(count)}")
    share = 100 * code["decoded_bytes"] // code["bytes"] if code["bytes"] else 100
    lines += [
        f"  {share} % of {code['bytes']} bytes of code were decoded from functions' starts"
        + ("" if code["complete"] else "; a bound ended the search"),
        "",
        f"entropy    {_entropy(found['entropy'])}",
        f"sandbox    {_sandbox(found['ends_sandbox'])}",
        f"memory     {_memory(found)}",
        f"hardening  stack protector: {_yes(hardening['stack_protector'])}; unwind tables:"
        f" {_yes(hardening['unwind_tables'])}; lines for a debugger: {_yes(hardening['debug_lines'])};"
        f" {hardening['symbols']} symbols",
        "",
        "components" if found["components"] else "components none that is known",
    ]
    width = max((len(component["name"]) for component in found["components"]), default=0)
    for c in found["components"]:
        lines.append(
            f"  {printable(c['name']):<{width}}  {printable(c['version']) or '?':<12} by {c['evidence']}"
        )
    for row in found["required"]:
        lines.append(f"required   {row['requirement']}: {'yes' if row['met'] else 'no'}")
    return "\n".join(lines)


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _count(count: dict[str, Any]) -> str:
    sure, most = count["sites"], count["at_most"]
    return f"{sure}" if most == sure else f"at least {sure}, at most {most}" if sure else f"at most {most}"


def _first(count: dict[str, Any]) -> str:
    return f", the first at {count['addresses'][0]:#x}" if count["addresses"] else ""


def _entropy(count: dict[str, int]) -> str:
    if count["sites"]:
        return f"RDRAND or RDSEED: {_count(count)} site{'' if count['at_most'] == 1 else 's'}"
    if count["at_most"]:
        return f"RDRAND or RDSEED: {_count(count)}, none of them sure"
    return "no RDRAND or RDSEED: its random numbers may be poor"


def _sandbox(names: list[str]) -> str:
    if not names:
        return "no instruction that ends a run there"
    ends = [name for name in names if name in instructions.SYSTEM_CALLS]
    return f"{', '.join(names)}: ends a run there, if it is reached" + (" (a system call)" if ends else "")


def _memory(found: dict[str, Any]) -> str:
    writable = "writable code" if found["writable_code"] else "no segment is writable and executable"
    stack = {
        True: "wants an executable stack",
        False: "no executable stack",
        None: "the file says nothing of the stack",
    }
    return f"{writable}; {stack[found['executable_stack']]}; on KVM all data is executable, whatever the file says"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
