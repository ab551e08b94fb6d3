"""Untrusted text on its way to a terminal: names of files and devices, symbols, arguments, reasons.

The names in a file and the words of a command may hold any byte. A byte that could move the cursor, end a line or colour
it is shown as an escape. So a line of ours stays one line, and nothing in it can pretend to be ours. No other code prints
such text.
"""

import shlex


def printable(text: str, *, keep: str = "") -> str:
    """Returns `text` with each character that is not printable as `\\xNN` or `\\uNNNN`, except those in `keep`.

    A byte that is not UTF-8 (a lone surrogate in Python) is shown as that byte: `\\xff`.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    number = ord(letter)
    if 0xDC80 <= number <= 0xDCFF:
        number -= 0xDC00
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def unicode_text(text: str) -> str:
    """Returns `text` with each byte that is not UTF-8 as `\\xff`, so that any encoder takes it."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def quoted(word: str) -> str:
    """Returns `word` as a shell takes it, on one line and without a character that a terminal would obey."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(map(_in_dollar_quotes, word)) + "'"


def _in_dollar_quotes(letter: str) -> str:
    if letter in "\\'":
        return "\\" + letter
    if letter.isprintable():
        return letter
    # Octal, always with three digits: a hexadecimal escape would take a digit that follows.
    return "".join(f"\\{byte:03o}" for byte in letter.encode("utf-8", "surrogateescape"))
