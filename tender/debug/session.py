"""A debugger's session, in the child of a guard: it attaches to a guest or starts one, and serves one client.

tender debug PID             a unix socket in a private directory, which gdb connects to
tender debug --stdio PID     stdin and stdout: gdb's `target remote | ...`
tender debug --listen PLACE  a unix socket or a TCP port, for other clients
"""

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tender.debug.attach import attach
from tender.debug.elf_file import ElfFile
from tender.debug.find import Guest
from tender.debug.gdb_server import End, GdbServer
from tender.debug.guard import Journal
from tender.debug.image_check import first_difference
from tender.debug.peers import may_debug
from tender.debug.start import start
from tender.debug.target import DebugError, Target
from tender.errors import ImageError
from tender.printable import printable


class Left(Exception):
    """The session has ended before there was a client: by a signal, or because nobody waits for it."""


@dataclass(frozen=True)
class Subject:
    """What is debugged.

    Attributes:
        guest: A guest that runs; None: one is started.
        image: The name of its ELF file that the user gave, else empty.
        program: The native command that starts a guest.
        words: Its words.
        descriptors: Its standard descriptors.
    """

    guest: Guest | None = None
    image: str = ""
    program: str = ""
    words: tuple[str, ...] = ()
    descriptors: tuple[int, int, int] = (0, 1, 2)

    def open(self, journal: Journal) -> tuple[Target, Guest]:
        """Attaches to the guest, or starts it. Raises DebugError."""
        if self.guest is not None:
            return attach(self.guest, journal), self.guest
        guest = start(self.program, self.words, self.descriptors)
        return attach(guest, journal, seized=True), guest


class Session:
    """One session. `say` is given lines for the user: a warning, and its hint."""

    def __init__(self, journal: Journal, subject: Subject, say: Callable[[str, str], None]) -> None:
        self._journal, self._subject, self._say = journal, subject, say
        self._server: GdbServer | None = None
        self._target: Target | None = None
        self.image, self._image_fd = "", -1
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, self._leave)

    def _leave(self, *_: object) -> None:
        if self._server is None:
            raise Left
        self._server.leave()

    def open(self) -> None:
        """Attaches to the guest, or starts it. Raises DebugError, ImageError."""
        self._target, guest = self._subject.open(self._journal)
        try:
            self._check_image(self._target, guest)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets the guest go on as if nobody had looked. One that was started for this session ends with it."""
        if self._target is not None:
            if self._subject.guest is None:
                self._target.kill()
            self._target.detach()
            self._target = None
        self._journal.guest = None

    def _check_image(self, target: Target, guest: Guest) -> None:
        given = self._subject.image
        path = given or guest.image
        if not path:
            self._say("the image of this guest is not found: there are no symbols", "name it: --image FILE")
            return
        try:
            elf = ElfFile.open(path)
        except ImageError as error:
            if given:
                raise
            self._say(error.message, "name the image: --image FILE")
            return
        with contextlib.closing(elf):
            at = first_difference(elf, target)
            self._image_fd = os.dup(elf.fileno()) if at is None else -1
        if at is not None:
            told = f"{printable(path)}: it is not the image of this guest: the code at {at:#x} differs"
            if given:
                raise ImageError(told)
            self._say(told, "name the file that the guest was started from: --image FILE")
            return
        self.image = os.path.abspath(path)

    def serve(self, reader: int, writer: int) -> End:
        """Serves one client. The guest is attached."""
        assert self._target is not None
        attached = self._subject.guest is not None
        self._server = GdbServer(
            self._target, reader, writer, image=self.image, image_fd=self._image_fd, attached=attached
        )
        end = self._server.serve()
        self._target = None
        self._journal.guest = None
        return end


def accepted(
    listening: socket.socket, reported: int = -1, refused: Callable[[], None] = lambda: None
) -> socket.socket:
    """Waits for a client of this user or of root. Raises Left if nobody has the other end of the pipe `reported` any more.

    `refused` is called for the first client of another user.
    """
    poller = select.poll()
    poller.register(listening, select.POLLIN)
    if reported >= 0:
        poller.register(reported, 0)  # POLLERR
    is_told = False
    while listening.fileno() in dict(poller.poll()):
        client = listening.accept()[0]
        if may_debug(client):
            return client
        client.close()
        if not is_told:
            is_told = True
            refused()
    raise Left


@contextmanager
def listening_at(place: str) -> Iterator[tuple[socket.socket, str]]:
    """Listens at PATH or HOST:PORT. Yields the socket, and what gdb's `target remote` takes.

    Raises DebugError: the place is in use, or is not of this host.
    """
    host, port = _host_and_port(place)
    if port is None:
        with _unix(place) as it:
            yield it, place
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as it:
        it.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            it.bind((host, port))
        except OSError as error:
            raise DebugError(f"{printable(place)}: {error.strerror}", errno=error.errno or 0) from None
        it.listen(1)
        shown = f"[{host}]" if ":" in host else host
        yield it, f"{shown}:{it.getsockname()[1]}"


def _host_and_port(place: str) -> tuple[str, int | None]:
    """Returns port None for a path."""
    host, separator, port = place.rpartition(":")
    if "/" in place or not separator or not port.isdecimal():
        return "", None
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    host = "127.0.0.1" if host == "localhost" else host
    if int(port) > 65535:
        raise DebugError(f"{printable(place)}: a port is at most 65535")
    if host != "::1" and not _is_loopback(host):
        raise DebugError(
            f"{printable(place)}: a debugger listens on this host only",
            hint=f"--listen 127.0.0.1:{port}, and `ssh -L {port}:127.0.0.1:{port} HOST` from elsewhere",
        )
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return socket.inet_pton(socket.AF_INET, host)[0] == 127
    except OSError:
        return False


@contextmanager
def _unix(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as it:
        former = os.umask(0o177)
        try:
            it.bind(path)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise DebugError(
                f"{printable(path)}: {why}", hint="name another path, or remove the old socket"
            ) from None
        finally:
            os.umask(former)
        try:
            it.listen(1)
            yield it
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
