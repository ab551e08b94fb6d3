"""`tender metrics`: the guests of this host for a monitoring system: as text, as a file, or over HTTP."""

import ipaddress
import os
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tender.cli import say
from tender.cli.option_table import listed
from tender.cli.words import Words
from tender.errors import ConfigError, TenderError
from tender.printable import printable
from tender.watch.exporter import Exporter, Looking

STATUS_FAILED = 1
_BACKLOG = 16

USAGE = f"""\
usage: tender metrics --once | --textfile=FILE [--interval=SECONDS] | --listen=PLACE

Give metrics of all guests of this host to a monitoring system. Status 0, or 1 if the file or the place
cannot be used.

{listed("metrics")}"""


def main(argv: list[str]) -> int:
    """Gives metrics, and returns the exit status."""
    words = Words(
        "metrics", argv, flags=("--once",), valued=("--textfile", "--listen", "--interval"), usage=USAGE
    )
    interval_s = words.seconds("--interval", 0, least=1, most=86400)
    ways = len(words.flags & {"--once"}) + sum(name in words.values for name in ("--textfile", "--listen"))
    if "--help" not in words.flags and ways != 1:
        words.refuse("one of --once, --textfile=FILE and --listen=HOST:PORT|PATH is needed")
    if interval_s and "--textfile" not in words.values:
        words.refuse("--interval belongs to --textfile")
    status = words.answered()
    if status is not None:
        return status
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        if "--listen" in words.values:
            _listen(words.values["--listen"])
        elif "--textfile" in words.values:
            _keep(words.values["--textfile"], interval_s)
        else:
            say.out(Looking().text(classic=False).removesuffix("\n"))
        return 0
    except TenderError as error:
        say.error(f"metrics: {error.message}")
        say.hint(error.hint)
        return STATUS_FAILED
    except KeyboardInterrupt:
        return 0


def _end(number: int, frame: object) -> None:
    """These signals end it as ^C does: a service is stopped like that."""
    raise KeyboardInterrupt


# ---- a file


def _keep(path: str, interval_s: float) -> None:
    """Writes the file, once or again and again."""
    looking = Looking()
    while True:
        _write(path, looking.text(classic=True).encode())
        if not interval_s:
            return
        time.sleep(interval_s)


def _write(path: str, data: bytes) -> None:
    """Puts a whole file in the place of the old one, in one step. Raises ConfigError."""
    directory, name = os.path.split(path)
    made = ""
    try:
        if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise ConfigError(f"{printable(path)}: it is no regular file", hint="--once prints to stdout")
        # The name of the unfinished file does not end in .prom, so no collector reads it.
        fd, made = tempfile.mkstemp(prefix=f".{name}.", suffix=".part", dir=directory or ".")
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)
        os.replace(made, path)
        made = ""
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no name of a file"
        raise ConfigError(f"{printable(path)}: {why}") from None
    finally:
        if made:
            with suppress(OSError):
                os.unlink(made)


# ---- HTTP


def _listen(place: str) -> None:
    with listening(place) as (it, shown):
        say.notice(f"metrics: serving {shown}")
        if it.family != socket.AF_UNIX and not ipaddress.ip_address(it.getsockname()[0]).is_loopback:
            say.notice("metrics: whoever reaches this address can read them")
        Exporter(it, Looking().text).serve()


@contextmanager
def listening(place: str) -> Iterator[tuple[socket.socket, str]]:
    """Listens at PATH or HOST:PORT. Yields the socket, and what a person calls it. Raises ConfigError."""
    host, separator, port = place.rpartition(":")
    try:
        if "/" in place:
            it, shown = _at_path(place), f"{printable(place)} (HTTP)"
        elif separator and port.isascii() and port.isdecimal():
            it, shown = _at_port(host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port))
        else:
            raise ConfigError(
                f"--listen={printable(place)}: it is neither HOST:PORT nor a path with a slash",
                hint="--listen=127.0.0.1:9669, or --listen=./tender.sock",
            )
    except (OSError, OverflowError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else ""
        raise ConfigError(f"--listen={printable(place)}: {why or error}") from None
    try:
        yield it, shown
    finally:
        it.close()
        if "/" in place:
            with suppress(OSError):
                os.unlink(place)


def _at_port(host: str, port: int) -> tuple[socket.socket, str]:
    if port > 65535:
        raise OverflowError("a port is at most 65535")
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    it = socket.socket(family, kind)
    try:
        it.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        it.bind(address)
        it.listen(_BACKLOG)
    except BaseException:
        it.close()
        raise
    shown = f"[{host}]" if ":" in host else host
    return it, f"http://{shown}:{it.getsockname()[1]}/metrics"


def _at_path(path: str) -> socket.socket:
    """A socket that nobody listens at any more is replaced. Only this user may connect."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode) and _is_left(path):
            os.unlink(path)
    it = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        it.bind(path)
        it.listen(_BACKLOG)
    except BaseException:
        it.close()
        raise
    finally:
        os.umask(mask)
    return it


def _is_left(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as it:
        try:
            it.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
    return False
