"""Serves metrics over HTTP, to clients that may be slow or hostile.

There is one thread. A client gets one answer and is closed; it has a few seconds for its request and a few for the
answer; a request has a bounded size, and the oldest of too many clients is closed. However many ask, guests are looked at
once in a second at most. Nothing is done while nobody asks.

Source: RFC 9112 (HTTP/1.1), as far as GET and HEAD need it.
"""

import selectors
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from tender.watch.openmetrics import CLASSIC, OPENMETRICS, Look, families_of, text_of
from tender.watch.running import Watch
from tender.watch.trend import Trend

CLIENTS_MAX = 32
REQUEST_MAX = 8192
PATIENCE_S = 5.0
FRESH_S = 1.0
_INDEX = b"Tender's guests of this host: /metrics\n"


class Looking:
    """Looks at guests, not more often than FRESH_S, and says what it has seen as text."""

    def __init__(self) -> None:
        self._watch = Watch()
        self._trends: defaultdict[str, Trend] = defaultdict(Trend)
        self._look: Look | None = None
        self._at = 0.0

    def text(self, *, classic: bool) -> str:
        """Returns the metrics."""
        if self._look is None or time.monotonic() - self._at >= FRESH_S:
            begin = time.monotonic()
            guests = self._watch.look()
            self._at = time.monotonic()
            growths = {}
            for guest in guests:
                trend = self._trends[guest.id]
                trend.add(guest.looked_ns / 1e9, guest.touched_bytes)
                growth = trend.growth(guest.mem_bytes) if guest.counters else None
                if growth:
                    growths[guest.id] = growth
            for gone in self._trends.keys() - {guest.id for guest in guests}:
                del self._trends[gone]
            number = self._look.number + 1 if self._look else 1
            self._look = Look(guests, growths, self._at - begin, number)
        return text_of(families_of(self._look), classic=classic)


@dataclass
class _Client:
    """A connection.

    Attributes:
        socket: Its socket.
        until: When it is closed, on the monotonic clock.
        request: What has come.
        answer: What has to be sent; None: the request is not whole.
    """

    socket: socket.socket
    until: float
    request: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None


class Exporter:
    """An HTTP server on a socket that listens.

    Args:
        listening: The socket, which the caller closes.
        text: Returns the metrics; called with classic=True for clients that do not know OpenMetrics.
    """

    def __init__(self, listening: socket.socket, text: Callable[..., str]) -> None:
        self._listening, self._text = listening, text
        self._clients: dict[int, _Client] = {}
        self._selector = selectors.DefaultSelector()
        listening.setblocking(False)
        self._selector.register(listening, selectors.EVENT_READ)

    def serve(self) -> None:
        """Serves until an exception ends it, as a signal's handler raises one."""
        try:
            while True:
                self.step()
        finally:
            for client in list(self._clients.values()):
                self._close(client)
            self._selector.close()

    def step(self) -> None:
        """Waits for the next event, and serves it."""
        now = time.monotonic()
        first = min((client.until for client in self._clients.values()), default=None)
        for key, _ in self._selector.select(None if first is None else max(first - now, 0)):
            if key.fileobj is self._listening:
                self._accept()
            elif key.fd in self._clients:
                self._serve(self._clients[key.fd])
        now = time.monotonic()
        for client in [client for client in self._clients.values() if client.until <= now]:
            self._close(client)

    def _accept(self) -> None:
        try:
            accepted, _ = self._listening.accept()
        except OSError:  # it has gone, or there are too many descriptors: then the oldest client has to go
            if self._clients:
                self._close(next(iter(self._clients.values())))
            return
        accepted.setblocking(False)
        if len(self._clients) >= CLIENTS_MAX:
            self._close(next(iter(self._clients.values())))
        self._clients[accepted.fileno()] = _Client(accepted, time.monotonic() + PATIENCE_S)
        self._selector.register(accepted, selectors.EVENT_READ)

    def _serve(self, client: _Client) -> None:
        try:
            if client.answer is None:
                self._receive(client)
            if client.answer is not None:
                client.answer = client.answer[client.socket.send(client.answer) :]
                if not client.answer:
                    self._finish(client)
        except BlockingIOError:
            pass
        except OSError:
            self._close(client)

    def _receive(self, client: _Client) -> None:
        more = client.socket.recv(REQUEST_MAX)
        client.request += more
        if b"\r\n\r\n" in client.request or b"\n\n" in client.request:
            client.answer = memoryview(self._answer(bytes(client.request)))
        elif len(client.request) >= REQUEST_MAX:
            client.answer = memoryview(_response(431, "Request Header Fields Too Large", b"too large\n"))
        elif not more:
            self._close(client)
            return
        if client.answer is not None:
            client.until = time.monotonic() + PATIENCE_S
            self._selector.modify(client.socket, selectors.EVENT_WRITE)

    def _answer(self, request: bytes) -> bytes:
        head, *fields = request.split(b"\n")
        words = head.split()
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(400, "Bad Request", b"a request of HTTP/1.1 is needed\n")
        method, target = words[0], words[1].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response(405, "Method Not Allowed", b"GET /metrics\n", ("Allow", "GET, HEAD"))
        body, kind = _INDEX, "text/plain; charset=utf-8"
        if target == b"/metrics":
            accepts = b" ".join(it for it in fields if it.lower().startswith(b"accept:")).lower()
            classic = b"application/openmetrics-text" not in accepts
            body, kind = self._text(classic=classic).encode(), CLASSIC if classic else OPENMETRICS
        elif target != b"/":
            return _response(404, "Not Found", _INDEX)
        return _response(200, "OK", body, ("Content-Type", kind), bodiless=method == b"HEAD")

    def _finish(self, client: _Client) -> None:
        """What else the client has sent is read and thrown away: closing would reset the connection under the answer."""
        try:
            client.socket.shutdown(socket.SHUT_WR)
            client.socket.recv(REQUEST_MAX)
        except OSError:
            pass
        self._close(client)

    def _close(self, client: _Client) -> None:
        del self._clients[client.socket.fileno()]
        self._selector.unregister(client.socket)
        client.socket.close()


def _response(
    status: int, reason: str, body: bytes, *fields: tuple[str, str], bodiless: bool = False
) -> bytes:
    named = {"Content-Type": "text/plain; charset=utf-8", **dict(fields)}
    named |= {"Content-Length": str(len(body)), "Connection": "close"}
    head = f"HTTP/1.1 {status} {reason}\r\n" + "".join(f"{name}: {text}\r\n" for name, text in named.items())
    return head.encode() + b"\r\n" + (b"" if bodiless else body)
