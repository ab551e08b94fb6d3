"""QEMU's monitor (QMP): commands as JSON, one per line, over a socketpair."""

import json
import socket
from typing import Any

from .errors import KvmboxError

REPLY_LIMIT_S = 300.0


class Monitor:
    """The host's end of the connection."""

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(REPLY_LIMIT_S)
        self._stream = end.makefile("rwb")

    def greet(self) -> None:
        """The first exchange. Raises KvmboxError if QEMU did not start."""
        self._line()
        self.call("qmp_capabilities")

    def call(self, command: str, **arguments: object) -> Any:
        """QEMU's answer to a command. Raises KvmboxError if QEMU refuses the command, or ends."""
        request = json.dumps({"execute": command, "arguments": arguments})
        try:
            self._stream.write(request.encode() + b"\n")
            self._stream.flush()
        except OSError as error:
            raise KvmboxError("QEMU ended") from error
        while True:
            reply = self._line()
            if "error" in reply:
                raise KvmboxError(f"QEMU refused {command}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]  # all other replies are events

    def _line(self) -> dict[str, Any]:
        try:
            line = self._stream.readline()
        except OSError as error:
            raise KvmboxError(f"QEMU's monitor gave no answer: {error}") from error
        if not line:
            raise KvmboxError("QEMU ended")
        reply: dict[str, Any] = json.loads(line)
        return reply
