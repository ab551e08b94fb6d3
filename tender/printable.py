"""Untrusted text on its way to a terminal: names of files and devices, symbols, arguments, reasons.

A file's names and a command's words may hold any byte. What could move a cursor, end a line or colour one is
shown as an escape, so a line of ours stays one line and says who wrote it. Nothing else prints such text.
"""

import shlex


def printable(text: str, *, keep: str = "") -> str:
    """`text` with each character that is not printable as `\\xNN` or `\\uNNNN`; those in `keep` stay.

    A byte that is no UTF-8 (a lone surrogate of Python's) is shown as that byte: `\\xff`.
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
    """`text` with each byte that is no UTF-8 as `\\xff`, and all else as it is: what any encoder takes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def quoted(word: str) -> str:
    """`word` as a shell takes it, on one line and without a character that a terminal would obey."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(map(_in_dollar_quotes, word)) + "'"


def _in_dollar_quotes(letter: str) -> str:
    if letter in "\\'":
        return "\\" + letter
    if letter.isprintable():
        return letter
    # octal, of three digits always: a hexadecimal escape would take a digit that follows
    return "".join(f"\\{byte:03o}" for byte in letter.encode("utf-8", "surrogateescape"))
