"""Writes error_texts.c: strerror() with the texts of this build's Python, for a C library with other texts.

So the command and Python's path print the same text for the same error, byte for byte. Numbers without a text are
"Unknown error N", as in Python.
"""

import os
import sys

LAST = 255


def main(target: str) -> None:
    """Writes the C file `target`."""
    with open(target, "w") as file:
        file.write("/* The texts of errors by number; written by bindings/command/gen_error_texts.py. */\n")
        file.write(
            "#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n\nstatic const char text[] =\n"
        )
        at, places = 1, {}
        for number in range(1, LAST + 1):
            words = os.strerror(number)
            if words.startswith("Unknown error"):
                continue
            places[number] = at
            at += len(words) + 1
            file.write(f'    "\\0{words}"\n')
        file.write("    ;\nstatic const uint16_t places[] = {\n")
        file.write("".join(f"    [{number}] = {place},\n" for number, place in places.items()))
        file.write(
            "};\n\nchar *strerror(int number)\n{\n"
            "    static char unknown[40];\n"
            "    if (number == 0)\n"
            '        return (char *)(uintptr_t)"Success";\n'
            "    if (number > 0 && (size_t)number < sizeof places / sizeof *places && places[number])\n"
            "        return (char *)(uintptr_t)text + places[number];\n"
            '    (void)snprintf(unknown, sizeof unknown, "Unknown error %d", number);\n'
            "    return unknown;\n}\n"
        )


if __name__ == "__main__":
    main(sys.argv[1])
