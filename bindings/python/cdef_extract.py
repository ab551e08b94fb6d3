"""Takes the marked text out of headers for `ffi.cdef()`; refuses lines that it does not know.

The text between `/* <name> */` and `/* </name> */` may contain comments, `#define NAME integer`, enums, structs,
unions, typedefs and prototypes. A line that begins with another `#` is an error, so that a conditional or an
expression cannot silently differ between the compiler and cffi.
"""

import re
from pathlib import Path

_REGION = re.compile(r"/\* <([a-z]+:[a-z]+)> \*/(.*?)/\* </\1> \*/", re.DOTALL)
_DEFINE = re.compile(r"#define\s+[A-Za-z_]\w*\s+(0x[0-9a-fA-F]+|\d+|\(-\d+\))\s*$")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


def extract(header: Path) -> str:
    """Returns the marked regions of `header`, in order, as text for cffi.

    ValueError: a mark or a line is not valid; it names the file and the line.
    """
    text = header.read_text()
    regions = _REGION.findall(text)
    if not regions or 2 * len(regions) != text.count("/* <"):
        raise ValueError(f"{header}: marks are missing or do not pair")
    out = []
    for _name, body in regions:
        for line in _COMMENT.sub(" ", body).splitlines():
            stripped = line.strip()
            if stripped.startswith("#") and not _DEFINE.match(stripped):
                raise ValueError(f"{header}: cffi cannot read this line: {stripped}")
            out.append(
                re.sub(r"\((-\d+)\)", r"\1", line.rstrip()) if stripped.startswith("#") else line.rstrip()
            )
    return "\n".join(line for line in out if line) + "\n"


def names(cdef: str) -> list[str]:
    """Returns every constant that `cdef` defines: macros and enumerators."""
    found = re.findall(r"#define\s+(\w+)", cdef)
    for body in re.findall(r"enum\s+\w*\s*\{(.*?)\}", cdef, re.DOTALL):
        found += re.findall(r"(\w+)\s*(?:=[^,}]*)?(?:,|$)", body.strip())
    return found
