"""Names of functions as people read them: OCaml by rules of our own, C++ and Rust by LLVM's demangler, if it is installed.

The extra `tender[debug]` installs pydemumble, which is LLVM's. Without it names of C++ and Rust stay as the file has them.
"""

import re
from collections.abc import Callable
from functools import lru_cache

_LENGTH_MAX = 2048
_OCAML = re.compile(r"caml(?=[A-Z])")
_OCAML_STAMP = re.compile(r"_[0-9]+(_code(_begin|_end)?)?$")
_OCAML_ESCAPE = re.compile(r"\$([0-9a-f]{2})")
_RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")


@lru_cache(maxsize=4096)
def demangle(name: str) -> str:
    """Returns the name as people read it; the name itself if it is not mangled or nobody knows how."""
    if len(name) > _LENGTH_MAX:
        return name
    if _OCAML.match(name):
        return _ocaml(name)
    library = _library() if name.startswith(("_Z", "_R")) else None
    if library is None:
        return name
    try:
        shown = library(name)
    except Exception:  # a hostile name in a library of others
        return name
    return _RUST_HASH.sub("", shown) if shown and shown.isprintable() else name


def _ocaml(name: str) -> str:
    """OCaml 5.1: camlStdlib__List$map_123; before: camlStdlib__List__map_123 or camlStdlib__List.map_123."""
    name = _OCAML_STAMP.sub("", name[4:])
    name = _OCAML_ESCAPE.sub(lambda match: _letter(int(match[1], 16)), name)
    return name.replace("__", ".").replace("$", ".")


def _letter(code: int) -> str:
    return chr(code) if 0x20 < code < 0x7F and code != 0x24 else f"${code:02x}"


@lru_cache(maxsize=1)
def _library() -> Callable[[str], str] | None:
    try:
        from pydemumble import demangle as library
    except Exception:  # not installed, or broken
        return None
    return lambda name: str(library(name))
