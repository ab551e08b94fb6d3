"""`tender sdk`: says where the files for building a unikernel are, and the one command that builds it.

The files are installed inside the package: sdk/include (headers), and sdk/lib (linker script, library).
"""

from collections.abc import Callable
from pathlib import Path

import tender
from tender.cli import say
from tender.cli.option_table import COMMAND_OPTIONS, listed
from tender.printable import printable, quoted

WHOLE = """eval "gcc $(tender sdk --cflags) app.c $(tender sdk --ldflags) -o app.elf\""""

USAGE = f"""\
usage: tender sdk [{" | ".join(name for name, _ in COMMAND_OPTIONS["sdk"])}]

Without an option it prints a recipe with comments for a unikernel of your own.

{listed("sdk")}

  gcc $(tender sdk --cflags) app.c $(tender sdk --ldflags) -o app.elf

Flags are quoted for a shell. If the name of the package's directory has a
space, write `eval "gcc $(tender sdk --cflags) ..."`, which keeps them whole."""

# For code without an operating system below it: no relocation at run time, no red zone (a trap pushes onto the same
# stack), no stack protector (its canary is in TLS). The guest library is built with these flags too.
CFLAGS = [
    *("-std=gnu11", "-O2", "-g", "-ffreestanding", "-fno-pic", "-fno-pie", "-mcmodel=small", "-mno-red-zone"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none", "-U_FORTIFY_SOURCE"),
]
# Segments are aligned to 4 KiB. The linker script refuses a file without a build id.
LDFLAGS = [
    *("-nostdlib", "-static", "-no-pie", "-Wl,--build-id=sha1"),
    *("-Wl,-z,max-page-size=0x1000", "-Wl,-z,noexecstack"),
]

EXAMPLE = """\
#include <tender/guest.h>

TENDER_MANIFEST(0); /* or: TENDER_MANIFEST(2, TENDER_NET("service"), TENDER_BLOCK("storage")); */

int main(int argc, char **argv)
{
    printf("Hello from a unikernel, %s\\n", argc ? argv[0] : "whoever you are");
    return 0;
}"""


def main(argv: list[str]) -> int:
    """Prints what was asked for, and returns the exit status: 1 if this installation has no SDK."""
    if argv in (["--help"], ["-h"]):
        say.out(USAGE)
        return 0
    option = argv[0] if argv else ""
    if len(argv) > 1 or option not in _ANSWERS:
        say.error(f"sdk: Invalid option: `{printable(' '.join(argv))}'")
        say.plain(USAGE)
        return 1
    root = sdk_root()
    if option != "--example" and not (root / "lib" / "guest.ld").is_file():
        say.error(f"sdk: {root}: no guest library in this installation")
        say.hint("install the built package: make build, or pip install .")
        return 1
    say.out(_ANSWERS[option](root))
    if option in ("--cflags", "--ldflags") and quoted(str(root)) != str(root):
        say.hint(f"a shell splits $(tender sdk {option}) at the space in it; this keeps it whole: {WHOLE}")
    return 0


def sdk_root() -> Path:
    """Returns the directory `sdk` of the installed package."""
    return Path(tender.__path__[0]).resolve() / "sdk"


def cflags(root: Path) -> str:
    """Returns the compiler's flags as one shell line."""
    return " ".join([*CFLAGS, quoted(f"-I{root / 'include'}")])


def ldflags(root: Path) -> str:
    """Returns the linker's flags as one shell line. They follow the sources."""
    lib = root / "lib"
    return " ".join([*LDFLAGS, quoted(f"-Wl,-T,{lib / 'guest.ld'}"), quoted(f"-L{lib}"), "-ltender_guest"])


def recipe(root: Path) -> str:
    """Returns commands that lead from an empty directory to a running unikernel, ready to paste."""
    return f"""\
# A unikernel in three steps. Paste them into a shell.

# 1. The program. The headers say what a guest may do: {root / "include" / "tender" / "guest.h"}
cat > app.c <<'END'
{EXAMPLE}
END

# 2. Build it: freestanding C, linked with the guest library by its linker script.
gcc {cflags(root)} \\
    app.c -o app.elf \\
    {ldflags(root)}

# 3. Look at it, and run it.
tender inspect app.elf
tender app.elf world

# In a Makefile: gcc $(shell tender sdk --cflags) app.c $(shell tender sdk --ldflags) -o app.elf"""


_ANSWERS: dict[str, Callable[[Path], str]] = {
    "": recipe,
    "--cflags": cflags,
    "--ldflags": ldflags,
    "--include": lambda root: str(root / "include"),
    "--lib": lambda root: str(root / "lib"),
    "--script": lambda root: str(root / "lib" / "guest.ld"),
    "--example": lambda root: EXAMPLE,
    "--guests": lambda root: str(root.parent / "guests"),
}
