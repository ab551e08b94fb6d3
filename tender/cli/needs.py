"""What is said where the native part of the package cannot be imported: what it needs is missing, or fits another Python."""

import sys

from tender.cli import say

NEEDED = {"_cffi_backend": "cffi", "cffi": "cffi"}  # the package of a module
NATIVE = ("tender._native", "_native")  # not found; found, and not loaded


def explain(error: ImportError) -> bool:
    """Says it, if that is what failed."""
    if error.name not in NEEDED and error.name not in NATIVE:
        return False
    package = NEEDED.get(error.name or "", "tender")
    version = ".".join(map(str, sys.version_info[:2]))
    say.error(f"the Python package {package}, which this needs, cannot be imported: {error}")
    say.error(f"it was looked for by {sys.executable} (Python {version}) in {', '.join(sys.path)}")
    again = f"{sys.executable} -m pip install --force-reinstall {package}" if package != "tender" else ""
    anew = "install tender anew: it was installed for another machine, Python or C library, or its environment was moved"
    say.hint(f"{again}; or {anew}" if again else anew)
    return True
