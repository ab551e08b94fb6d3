"""Where --console and --json go, settled before anything else: a descriptor judged, the report's file open.

So what cannot be written is an error before the guest runs, and nothing here waits for a reader. The report comes
first: whatever is refused afterwards is told in it too.
"""

import posix

from tender.cli.options import FLAGS, NAMED, SHORT, VALUED, RunOptions, UsageError, json_target
from tender.native import OUTPUT_HINT, ffi, lib, open_file

_FILE_TYPE, _REGULAR = 0o170000, 0o100000  # S_IFMT and S_IFREG of stat.h
_FD_HINTS = {
    lib.DEVICE_NOT_INHERITED: "it was not open when tender was executed; open it for the command: {fd}>FILE in a shell",
    lib.DEVICE_PATH_ONLY: "open it with O_WRONLY, without O_PATH",
    lib.DEVICE_FILE_READ_ONLY: "open it for writing: {fd}>FILE in a shell",
    lib.DEVICE_NET_UNCONNECTED: "connect() it first",
}


def with_report(options: RunOptions) -> RunOptions:
    """`options` with `json_fd`. Raises UsageError for a descriptor or a file that --json cannot be written to."""
    if isinstance(options.json, int):
        if options.json != 2:
            _check("--json", options.json)
        return options._with(json_fd=options.json)
    if options.json is None:
        return options
    fd, why, _, hint = open_file(options.json, lib.FILE_REPORT)
    if fd < 0:
        from tender.printable import printable

        raise UsageError(f"--json={printable(options.json)}: {why}", hint=hint)
    return options._with(json_fd=fd)


def check_console(options: RunOptions) -> None:
    """Raises UsageError for a descriptor that --console cannot be written to; a file is opened with the VM."""
    if isinstance(options.console, int) and options.console != 1:
        _check("--console", options.console)


def salvaged(argv: list[str]) -> RunOptions:
    """Of words that parse_args() refuses: the image, as far as it is known, and where the report goes, if it can."""
    json: int | str | None = None
    image_known = True
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
            at += not equals and argv[at : at + 1] != [] and not argv[at].startswith("--")
        elif base not in FLAGS and not equals:
            image_known = False  # the next word may be this one's value
    at += argv[at : at + 1] == ["--"]
    options = RunOptions(image="".join(argv[at : at + 1]) if image_known else "", json=json)
    try:
        return with_report(options)
    except UsageError:
        return options._with(json=None)


def _check(option: str, fd: int) -> None:
    error = ffi.new("struct device_error *")
    if lib.tn_file_check_output(fd, error) < 0:
        hint = _FD_HINTS.get(error.problem, OUTPUT_HINT).format(fd=fd)
        raise UsageError(f"{option}=fd:{fd}: {ffi.string(error.text).decode()}", hint=hint)


def empty(fd: int) -> None:
    """What a file held before is no part of the report; a pipe, a socket or a terminal holds nothing."""
    if posix.fstat(fd).st_mode & _FILE_TYPE == _REGULAR:
        posix.ftruncate(fd, 0)
