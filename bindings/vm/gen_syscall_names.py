"""Writes syscall_names.inc: the names of Linux's system calls by number, taken from the compiler's headers.

Each table is one text. An array maps a number to the place in the text where its name begins (0: there is no such
call). An array of pointers would cost hundreds of relocations at each start of the launcher.
"""

import re
import subprocess
import sys

TABLES = {"x86_64": "asm/unistd_64.h", "i386": "asm/unistd_32.h"}


def names(compiler: list[str], header: str) -> dict[int, str]:
    """Returns number to name from one of the kernel's headers."""
    done = subprocess.run(
        [*compiler, "-E", "-dM", "-"],
        input=f"#include <{header}>\n",
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.findall(r"#define __NR_(\w+) (\d+)$", done.stdout, re.MULTILINE)
    return {int(number): name for name, number in found}


def main(target: str, *compiler: str) -> None:
    """Writes the C file `target`."""
    with open(target, "w") as file:
        file.write(
            "/* The names of system calls by number; written by bindings/vm/gen_syscall_names.py. */\n"
        )
        for table, header in TABLES.items():
            found = sorted(names(list(compiler), header).items())
            file.write(f"\nstatic const char text_{table}[] =\n")
            file.write("".join(f'    "\\0{name}"\n' for _, name in found))
            file.write(f"    ;\nstatic const uint16_t names_{table}[] = {{\n")
            at = 1
            for number, name in found:
                file.write(f"    [{number}] = {at},\n")
                at += len(name) + 1
            file.write("};\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
