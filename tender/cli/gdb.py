"""Finds gdb, for the commands that start it."""

import shutil

from tender.debug.target import DebugError

_NAMES = ("gdb", "gdb-multiarch")


def find_gdb() -> str:
    """Returns the path of a gdb. Raises DebugError: there is none."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        raise DebugError(
            "there is no gdb in PATH",
            hint="apt install gdb; or use another client, as lldb: tender debug --listen PATH PID",
        )
    return found
