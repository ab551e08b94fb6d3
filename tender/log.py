"""The library's log: `logging`, under the name `tender`.

A program that configures no logging hears nothing: the logger `tender` has a NullHandler. One that has not imported
`logging` cannot have asked for a line, so the library does not import it either, which would take as long as all of the
package. No guest can cause a line: each one tells what the host has done.
"""

import sys
from typing import Literal


def tell(module: str, level: Literal["INFO", "WARNING"], text: str) -> None:
    """Logs one line as `tender.MODULE`."""
    if "logging" not in sys.modules:
        return
    import logging

    root = logging.getLogger("tender")
    if not root.handlers:
        root.addHandler(logging.NullHandler())
    root.getChild(module).log(getattr(logging, level), "%s", text)
