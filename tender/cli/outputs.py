"""Decides where --console and --json go, before anything else: it checks descriptors and opens the report's file.

So an output that cannot be written is an error before the guest runs. Nothing here waits for a reader. The report comes
first, because it also tells what is refused afterwards.
"""

import os
import stat

from tender.cli.options import FLAGS, NAMED, SHORT, VALUED, RunOptions, UsageError, json_target
from tender.native import OUTPUT_HINT, ffi, lib, open_file, says
from tender.printable import printable

_FD_HINTS = {
    lib.DEVICE_NOT_INHERITED: "it was not open when tender was started; open it for the command: {fd}>FILE in a shell",
    lib.DEVICE_PATH_ONLY: "open it with O_WRONLY, without O_PATH",
    lib.DEVICE_FILE_READ_ONLY: "open it for writing: {fd}>FILE in a shell",
    lib.DEVICE_NET_UNCONNECTED: "connect() it first",
}


def with_report(options: RunOptions) -> RunOptions:
    """Returns `options` with `json_fd`. Raises UsageError for a descriptor or a file that the report cannot go to."""
    if isinstance(options.json, int):
        if options.json != 2:
            _check("--json", options.json)
            files = _inputs(options) + _written(options)
            _check_apart("--json", options.json, os.fstat(options.json), files)
        return options._with(json_fd=options.json)
    if options.json is None:
        return options
    fd, why, _, hint = open_file(options.json, lib.FILE_REPORT)
    if fd < 0:
        raise UsageError(f"--json={printable(options.json)}: {why}", hint=hint)
    _check_apart("--json", options.json, os.fstat(fd), _inputs(options) + _written(options))
    return options._with(json_fd=fd)


def check_console(options: RunOptions) -> None:
    """Raises UsageError for a descriptor that the console cannot go to. A file is opened with the VM."""
    if options.console is None or options.console == 1:
        return
    if isinstance(options.console, int):
        _check("--console", options.console)
    about = _about(options.console)
    if about is not None:
        _check_apart("--console", options.console, about, _inputs(options))


def _inputs(options: RunOptions) -> list[tuple[int | str, str]]:
    """Returns the files that the guest is made of, and what each is."""
    disks = [
        (setting.value, "a disk of the guest") for setting in options.settings if setting.what == "block"
    ]
    return [(options.image, "the image"), *disks]


def _written(options: RunOptions) -> list[tuple[int | str, str]]:
    """Returns the same for the other outputs: those given by name, and those of the program that started this one.

    Two descriptors of that program may be one file: that is its decision.
    """
    by_name = isinstance(options.json, str)
    files: list[tuple[int | str, str]] = []
    if options.console is not None and (by_name or isinstance(options.console, str)):
        files.append((options.console, says("where_console")))
    return [*files, (2, "where stderr goes")] if by_name else files


def _about(file: int | str) -> os.stat_result | None:
    try:
        return os.stat(file)
    except (OSError, ValueError):
        return None


def _check_apart(
    option: str, target: int | str, about: os.stat_result, files: list[tuple[int | str, str]]
) -> None:
    """Raises UsageError if `target` is one of `files`, by whatever name: it would be written over."""
    if not stat.S_ISREG(about.st_mode):
        return
    for file, what in files:
        other = _about(file)
        if other is not None and os.path.samestat(other, about):
            shown = f"fd:{target}" if isinstance(target, int) else printable(target)
            raise UsageError(says("written_over", option, shown, what), hint="name another file")


def salvaged(argv: list[str]) -> RunOptions:
    """Returns what can be known of words that parse_args() refuses: the image, and where the report goes."""
    json: int | str | None = None
    image_known = True
    others = []  # words that may name what a report would be written over
    at = 0
    while at < len(argv) and argv[at].startswith("-") and argv[at] != "--":
        head, equals, value = argv[at].partition("=")
        base = SHORT.get(head, head).partition(":")[0]
        at += 1
        if base == "--json":
            try:
                json = json_target(value) if equals else 2
            except UsageError:
                json = None
        elif base in VALUED + NAMED:
            others.append(value)
            if not equals and argv[at : at + 1] != [] and not argv[at].startswith("--"):
                others.append(argv[at])
                at += 1
        elif base not in FLAGS and not equals:
            image_known = False  # the next word may be the value of this one
    at += argv[at : at + 1] == ["--"]
    options = RunOptions(image="".join(argv[at : at + 1]) if image_known else "", json=json)
    others += argv[at : at + 2]  # this word may be a value, and then the next one is the image
    try:
        kept = with_report(options)
        if kept.json is not None and kept.json != 2:
            files: list[tuple[int | str, str]] = [(name, "") for word in others for name in _names_in(word)]
            _check_apart("--json", kept.json, os.fstat(kept.json_fd), files)
    except UsageError:
        return options._with(json=None)
    return kept


def _names_in(word: str) -> list[int | str]:
    """Returns the files and descriptors that a value may name: after a device's name, before suffixes."""
    names: list[int | str] = []
    for name in (word, word.partition("=")[2]):
        for _ in range(3):
            names.append(int(name[1:]) if name[:1] == "@" and name[1:].isdecimal() else name)
            name = name.removesuffix(":ro").removesuffix(":rw").removesuffix(":raw")
    return names


def _check(option: str, fd: int) -> None:
    error = ffi.new("struct device_error *")
    if lib.tn_file_check_output(fd, error) < 0:
        hint = _FD_HINTS.get(error.problem, OUTPUT_HINT).format(fd=fd)
        raise UsageError(f"{option}=fd:{fd}: {ffi.string(error.text).decode()}", hint=hint)


def empty(fd: int) -> None:
    """Empties a file before the report is written to it. A pipe, a socket or a terminal has nothing to empty."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        os.ftruncate(fd, 0)
