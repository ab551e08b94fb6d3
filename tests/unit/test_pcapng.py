"""The file of `tender capture`: its blocks, byte for byte, as pcapng's specification has them."""

import io
import struct

from tender.debug.pcapng import Direction, Writer


def blocks(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        kind, size = struct.unpack_from("<II", data)
        assert size % 4 == 0 and struct.unpack_from("<I", data, size - 4)[0] == size
        found.append((kind, data[8 : size - 4]))
        data = data[size:]
    return found


def options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while True:
        code, length = struct.unpack_from("<HH", data)
        if not code:
            assert data[4:] == b""
            return found
        found[code] = data[4 : 4 + length]
        data = data[4 + length + -length % 4 :]


def test_a_file_has_a_section_interfaces_packets_and_statistics() -> None:
    file = io.BytesIO()
    writer = Writer(file, "tender", 1000)
    first = writer.interface("tap0", "service0", bytes(range(6)))
    second = writer.interface("tap1", "service1", b"")
    writer.packet(second, (5 << 32) + 7, b"\1\2\3\4\5", 99, Direction.OUT)
    writer.statistics(first, 1, 3, 2)
    assert (first, second) == (0, 1)

    (section, one, two, packet, counts) = blocks(file.getvalue())
    assert section[0] == 0x0A0D0D0A
    assert struct.unpack_from("<IHHq", section[1]) == (0x1A2B3C4D, 1, 0, -1)
    assert options(section[1][16:]) == {4: b"tender"}
    assert one[0] == two[0] == 1
    assert struct.unpack_from("<HHI", one[1]) == (1, 0, 1000)
    assert options(one[1][8:]) == {2: b"tap0", 3: b"service0", 6: bytes(range(6)), 9: b"\x09"}
    assert options(two[1][8:]) == {2: b"tap1", 3: b"service1", 9: b"\x09"}
    assert packet[0] == 6
    assert struct.unpack_from("<IIIII", packet[1]) == (1, 5, 7, 5, 99)
    assert packet[1][20:28] == b"\1\2\3\4\5\0\0\0"
    assert options(packet[1][28:]) == {2: struct.pack("<I", 2)}
    assert counts[0] == 5
    assert struct.unpack_from("<III", counts[1]) == (0, 0, 1)
    assert options(counts[1][12:]) == {4: struct.pack("<Q", 3), 5: struct.pack("<Q", 2)}
