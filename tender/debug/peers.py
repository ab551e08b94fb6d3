"""Who has connected to a TCP port of this host: the kernel says which user has the other end of a loopback connection.

A unix socket's mode keeps other users out. A port has none, so each client is looked up in /proc/net/tcp (proc(5)).
"""

import os
import socket
import struct

_ESTABLISHED = "01"  # include/net/tcp_states.h
_ROWS_BYTES_MAX = 64 << 20


def may_debug(client: socket.socket) -> bool:
    """Whether a client is a process of this user or of root. Any client of a unix socket is."""
    if client.family == socket.AF_UNIX:
        return True
    user = user_of_peer(client)
    return user is not None and user in (0, os.geteuid())


def user_of_peer(client: socket.socket) -> int | None:
    """Returns the user of the other end of a loopback connection; None: it has ended, or is not of this host.

    A socket that its process has closed counts as root's in the kernel's table, so only established ones are looked at.
    """
    name = "tcp6" if client.family == socket.AF_INET6 else "tcp"
    try:
        theirs, ours = _shown(client.getpeername()), _shown(client.getsockname())
        with open(f"/proc/self/net/{name}", encoding="ascii") as file:
            text = file.read(_ROWS_BYTES_MAX)
    except (OSError, ValueError):
        return None
    for row in text.split("\n")[1:]:
        words = row.split()
        if len(words) > 7 and words[1:4] == [theirs, ours, _ESTABLISHED]:
            return int(words[7])
    return None


def _shown(address: tuple[str, int]) -> str:
    """An address as the kernel's table shows it: words of 32 bits in the processor's order, in hexadecimal."""
    host, port = address[:2]
    packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"
