"""The frames of a guest's networks, from outside: a packet socket of the kernel on each TAP interface of the guest.

The guest is not stopped, and nothing in its process is changed: the interface's name is read from its descriptor
(/proc/PID/fdinfo), and the kernel copies the frames. So the frames of the network ring are seen too. A network that is no
TAP (a socket pair) has no interface, and cannot be looked at from outside.
"""

import select
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from errno import EPERM

from tender.debug import ptrace
from tender.debug.facts import boot_info
from tender.debug.find import Guest
from tender.debug.pcapng import Direction, Writer
from tender.debug.target import DebugError
from tender.printable import printable

SNAPLEN = 1 << 18
"""The longest frame of a TAP with offloads, and more."""
_DEVICE_BYTES, _FD_AT = 128, 4  # struct vm_device of bindings/core/vm.h
_ETH_P_ALL = 3  # linux/if_ether.h
_PACKET_OUTGOING, _SOL_PACKET, _PACKET_STATISTICS = 4, 263, 6  # linux/if_packet.h
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35  # asm-generic/socket.h
_BUFFER_BYTES = 16 << 20
_BATCH = 512


@dataclass(frozen=True)
class Network:
    """A network of a guest.

    Attributes:
        name: The device's name in the manifest.
        interface: The TAP interface; empty: it is none.
        mac: The guest's MAC address.
    """

    name: str
    interface: str
    mac: bytes


def networks_of(guest: Guest) -> list[Network]:
    """Returns the networks of a guest. Raises DebugError: its process cannot be looked into."""
    rows, _ = boot_info(lambda gpa, length: ptrace.read_memory(guest.pid, guest.memory_hva + gpa, length))
    vm = guest.values["vm"] if guest.backend == "kvm" else guest.base + guest.note["the_vm"]
    found = []
    for row in rows:
        if row["kind"] != "net":
            continue
        at = vm + guest.note["vm_devices"] + int(str(row["handle"])) * _DEVICE_BYTES + _FD_AT
        data = ptrace.read_memory(guest.pid, at, 4)
        fd = int.from_bytes(data, "little") if len(data) == 4 else -1
        mac = bytes.fromhex(str(row["mac"]).replace(":", ""))
        found.append(Network(str(row["name"]), _interface(guest.pid, fd), mac))
    return found


def _interface(pid: int, fd: int) -> str:
    """Returns the interface of a descriptor of a TAP, by the line `iff:` that the kernel's tun_chr_show_fdinfo() writes."""
    with suppress(OSError), open(f"/proc/{pid}/fdinfo/{fd}", encoding="utf-8", errors="replace") as file:
        for line in file.read(4096).split("\n"):
            key, _, value = line.partition(":")
            if key == "iff":
                return value.strip()
    return ""


class Capture:
    """Copies frames of networks into a file.

    Attributes:
        frames: How many frames were written.
        dropped: How many the kernel had no space for.
    """

    def __init__(self, networks: list[Network], writer: Writer, snaplen: int = SNAPLEN) -> None:
        self.frames = self.dropped = 0
        self._writer, self._snaplen = writer, snaplen
        self._buffer = bytearray(snaplen)
        self._sockets: dict[int, tuple[socket.socket, int]] = {}
        self._counts: dict[int, int] = {}
        try:
            for network in networks:
                opened = _opened(network.interface)
                number = writer.interface(network.interface, network.name, network.mac)
                self._sockets[opened.fileno()] = opened, number
                self._counts[number] = 0
        except BaseException:
            self.close()
            raise

    def take(self, seconds: float, limit: float = float("inf")) -> None:
        """Writes what comes, and returns after that time at the latest, or when `limit` frames are written in all."""
        ready, _, _ = select.select(list(self._sockets), [], [], seconds)
        for fd in ready:
            opened, number = self._sockets[fd]
            for _ in range(_BATCH):
                if self.frames >= limit or not self._one(opened, number):
                    break
        self._writer.flush()

    def _one(self, opened: socket.socket, number: int) -> bool:
        try:
            length, extra, _, address = opened.recvmsg_into([self._buffer], 64, socket.MSG_TRUNC)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:  # the interface is down or deleted; it may come back
            return False
        stamp = next(
            (data for level, kind, data in extra if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS)),
            b"",
        )
        now_ns = time.time_ns()
        if len(stamp) == 16:
            seconds, nanoseconds = struct.unpack("<qq", stamp)
            now_ns = seconds * 10**9 + nanoseconds
        direction = Direction.IN if address[2] == _PACKET_OUTGOING else Direction.OUT
        frame = bytes(memoryview(self._buffer)[: min(length, self._snaplen)])
        self._writer.packet(number, now_ns, frame, length, direction)
        self.frames += 1
        self._counts[number] += 1
        return True

    def end(self) -> None:
        """Writes the statistics. Raises OSError."""
        for opened, number in self._sockets.values():
            with suppress(OSError):
                _, dropped = struct.unpack("<II", opened.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
                self.dropped += dropped
                received = self._counts[number] + dropped
                self._writer.statistics(number, time.time_ns(), received, dropped)
        self._writer.flush()

    def close(self) -> None:
        """Closes the sockets."""
        for opened, _ in self._sockets.values():
            opened.close()


def _opened(interface: str) -> socket.socket:
    """Returns a packet socket for all frames of an interface. Raises DebugError."""
    try:
        opened = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0
        )
    except OSError as error:
        raise DebugError(
            f"{printable(interface)}: {error.strerror}",
            errno=error.errno or 0,
            hint="a packet socket needs CAP_NET_RAW: sudo" if error.errno == EPERM else "",
        ) from None
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        with suppress(OSError):  # needs CAP_NET_ADMIN
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        opened.bind((interface, _ETH_P_ALL))
    except OSError as error:
        opened.close()
        raise DebugError(
            f"{printable(interface)}: {error.strerror}",
            errno=error.errno or 0,
            hint="the interface lies in another network namespace: run this there, by ip netns exec or nsenter",
        ) from None
    return opened
