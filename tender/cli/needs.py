"""Explains that the native part of the package cannot be imported: a package is missing, or is for another Python."""

import sys

from tender.cli import say

NEEDED = {"_cffi_backend": "cffi", "cffi": "cffi"}  # the package of each module
NATIVE = ("tender._native", "_native")  # the first if it is not found, the second if it cannot be loaded


def explain(error: ImportError) -> bool:
    """Says so if that is what failed, and returns whether it is."""
    if error.name not in NEEDED and error.name not in NATIVE:
        return False
    package = NEEDED.get(error.name or "", "tender")
    version = ".".join(map(str, sys.version_info[:2]))
    say.error(f"the Python package {package}, which is needed, cannot be imported: {error}")
    say.error(f"{sys.executable} (Python {version}) looked for it in {', '.join(sys.path)}")
    again = f"{sys.executable} -m pip install --force-reinstall {package}" if package != "tender" else ""
    anew = "install tender again: it was installed for another machine, Python or C library, or its environment was moved"
    say.hint(f"{again}; or {anew}" if again else anew)
    return True
