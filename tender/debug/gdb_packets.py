"""The frames of gdb's remote protocol: `$DATA#CHECKSUM`, and the byte 0x03 that asks for a stop.

Whatever a client sends is accepted: what is no packet is left out, and the memory for it is bounded.
Source: "Overview" and "Binary Data" of appendix E of gdb's manual.
"""

import re

PACKET_BYTES = 0x20000
"""The longest packet that is taken, as qSupported tells gdb."""
INTERRUPT, RESEND = b"\x03", b"-"
_FRAME_BYTES = PACKET_BYTES + 4
_ESCAPE, _FLIP = 0x7D, 0x20
_ESCAPED = re.compile(rb"[#$}*]")


class Framing:
    """What has come in and is not a packet yet."""

    def __init__(self) -> None:
        self.acknowledges = True
        """Whether each packet is answered by a `+`, as it is until QStartNoAckMode."""
        self._came = bytearray()

    def take(self, data: bytes) -> None:
        """Adds what was read. What came before and can be no part of a packet is dropped."""
        self._came += data
        self._drop_what_is_none()

    def next(self) -> tuple[bytes | None, bytes] | None:
        """Returns the next packet, and what to send at once for it. None: nothing whole has come.

        The packet is without its frame; INTERRUPT for a 0x03 outside of packets; RESEND if the client wants the last answer
        once more; None for a broken one.
        """
        self._drop_what_is_none()
        if self._came[:1] in (INTERRUPT, RESEND):
            return bytes([self._came.pop(0)]), b""
        end = self._came.find(b"#")
        if self._came[:1] != b"$" or end < 0 or len(self._came) < end + 3:
            return None
        body, told = bytes(self._came[1:end]), bytes(self._came[end + 1 : end + 3])
        del self._came[: end + 3]
        if not self.acknowledges:
            return _unescaped(body), b""
        if told.lower() != b"%02x" % (sum(body) & 0xFF):
            return None, RESEND
        return _unescaped(body), b"+"

    def has_interrupt(self) -> bool:
        """Takes what came while the guest runs: whether a 0x03 is in front. Packets wait."""
        self._drop_what_is_none()
        if self._came[:1] != INTERRUPT:
            return False
        del self._came[0]
        return True

    def _drop_what_is_none(self) -> None:
        keep = re.search(rb"[$\x03-]" if self.acknowledges else rb"[$\x03]", self._came)
        del self._came[: keep.start() if keep else len(self._came)]
        if len(self._came) > _FRAME_BYTES and b"#" not in self._came[:_FRAME_BYTES]:
            self._came.clear()
        del self._came[4 * _FRAME_BYTES :]


def framed(data: bytes) -> bytes:
    """Returns a packet as it goes out."""
    body = _ESCAPED.sub(lambda it: bytes([_ESCAPE, it[0][0] ^ _FLIP]), data)
    return b"$%s#%02x" % (body, sum(body) & 0xFF)


def _unescaped(body: bytes) -> bytes:
    return re.sub(rb"}(.)", lambda it: bytes([it[1][0] ^ _FLIP]), body, flags=re.DOTALL)


def number(text: bytes) -> int:
    """Returns the number of at most 64 bits that these hexadecimal digits are. Raises ValueError for anything else."""
    if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", text):
        raise ValueError(f"no number: {text[:40]!r}")
    return int(text, 16)


def numbers(text: bytes, separator: bytes = b",") -> list[int]:
    """Returns the numbers between separators. Raises ValueError."""
    return [number(part) for part in text.split(separator)]


def from_hex(text: bytes) -> bytes:
    """Returns the bytes that these hexadecimal digits are. Raises ValueError."""
    return bytes.fromhex(text.decode("ascii"))
