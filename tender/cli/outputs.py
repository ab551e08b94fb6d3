"""Where --console and --json go, settled before anything else: a descriptor judged, the report's file open.

So what cannot be written is an error before the guest runs, and nothing here waits for a reader.
"""

import posix

from tender.cli.options import RunOptions, UsageError
from tender.native import OUTPUT_HINT, ffi, lib, open_file

_FILE_TYPE, _REGULAR = 0o170000, 0o100000  # S_IFMT and S_IFREG of stat.h
_FD_HINTS = {
    lib.DEVICE_NOT_INHERITED: "it was not open when tender was executed; open it for the command: {fd}>FILE in a shell",
    lib.DEVICE_PATH_ONLY: "open it with O_WRONLY, without O_PATH",
    lib.DEVICE_FILE_READ_ONLY: "open it for writing: {fd}>FILE in a shell",
    lib.DEVICE_NET_UNCONNECTED: "connect() it first",
}


def settled(options: RunOptions) -> RunOptions:
    """`options` with `json_fd`. Raises UsageError for a descriptor or a file that cannot be written to."""
    if isinstance(options.console, int) and options.console != 1:
        _check("--console", options.console)
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


def _check(option: str, fd: int) -> None:
    error = ffi.new("struct device_error *")
    if lib.tn_file_check_output(fd, error) < 0:
        hint = _FD_HINTS.get(error.problem, OUTPUT_HINT).format(fd=fd)
        raise UsageError(f"{option}=fd:{fd}: {ffi.string(error.text).decode()}", hint=hint)


def empty(fd: int) -> None:
    """What a file held before is no part of the report; a pipe, a socket or a terminal holds nothing."""
    if posix.fstat(fd).st_mode & _FILE_TYPE == _REGULAR:
        posix.ftruncate(fd, 0)
