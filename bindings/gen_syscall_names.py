"""Writes syscall_names.inc: the names of Linux's system calls by number, as the compiler's headers have them."""

import re
import subprocess
import sys

TABLES = {"x86_64": "asm/unistd_64.h", "i386": "asm/unistd_32.h"}


def names(compiler: list[str], header: str) -> dict[int, str]:
    """Number to name from one of the kernel's headers."""
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
        file.write("/* The names of system calls by number; written by bindings/gen_syscall_names.py. */\n")
        for table, header in TABLES.items():
            file.write(f"\nstatic const char *const names_{table}[] = {{\n")
            for number, name in sorted(names(list(compiler), header).items()):
                file.write(f'    [{number}] = "{name}",\n')
            file.write("};\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
