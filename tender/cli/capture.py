"""`tender capture`: the frames of a guest's networks in a file that Wireshark and tshark open."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from tender import _version
from tender.cli import say
from tender.cli.looking import failed
from tender.cli.option_table import listed
from tender.cli.trace import handled, number, picked
from tender.errors import ConfigError, TenderError
from tender.printable import printable

if TYPE_CHECKING:
    from tender.debug.capture import Network
    from tender.debug.find import Guest

USAGE = f"""\
usage: tender capture --write=FILE [--net=NAME] [--snaplen=N] [--for=SECONDS] [--count=N] [--vm=N] PID

Write the frames that the guest of process PID sends and receives, from now on, into a pcapng file.
The guest is not stopped and needs no preparation. Its networks must be TAP interfaces, of the network
namespace in which this command runs. It needs CAP_NET_RAW. The end is the guest's, or Ctrl-C.

{listed("capture")}

Status 0; 1 if there is no such guest, if it has no such network, or if the file cannot be written."""

_WAIT_S = 0.1
_VALUED = ("-w", "--write", "--net", "--snaplen", "--for", "--count", "--vm")
_FAILED = 1


@dataclass
class Request:
    """What the command line asks for."""

    pid: int = 0
    path: str = ""
    network: str = ""
    snaplen: int = 0
    seconds: float = float("inf")
    count: float = float("inf")
    vm: int = 0


def main(argv: list[str]) -> int:
    """Serves one command line, and returns the exit status."""
    if argv[:1] in (["--help"], ["-h"]):
        say.out(USAGE)
        return 0
    try:
        return _capture(_read(argv))
    except TenderError as error:
        return failed("capture", argv, error)
    except OSError as error:
        say.error(f"capture: {printable(str(error.filename or 'output'))}: {error.strerror}")
    return _FAILED


def _read(argv: list[str]) -> Request:
    """Raises ConfigError."""
    words, request = list(argv), Request()
    while words:
        name, has_value, value = words[0].partition("=")
        if name in _VALUED:
            if not has_value and len(words) < 2:
                raise ConfigError(f"{name}: a value is needed", hint="tender capture --help")
            _take(request, name, value if has_value else words.pop(1))
        elif not request.pid:
            request.pid = number("PID", words[0], "capture")
        else:
            raise ConfigError(f"{printable(words[0])}: one PID is enough", hint="tender capture --help")
        del words[0]
    if not request.pid:
        raise ConfigError("a PID is needed", hint="`tender ps` lists the guests here")
    if not request.path:
        raise ConfigError("a file is needed", hint="--write=FILE, or --write=- for a pipe to Wireshark")
    return request


def _take(request: Request, name: str, value: str) -> None:
    if name in ("-w", "--write"):
        request.path = value
    elif name == "--net":
        request.network = value
    else:
        field = {"--snaplen": "snaplen", "--for": "seconds", "--count": "count", "--vm": "vm"}[name]
        setattr(request, field, number(name, value, "capture"))


def _networks(request: Request, guest: "Guest") -> "list[Network]":
    """Raises ConfigError."""
    from tender.debug.capture import networks_of

    found = networks_of(guest)
    names = ", ".join(it.name for it in found) or "none"
    wanted = [it for it in found if not request.network or it.name == request.network]
    if not wanted:
        asked = f"no network {printable(request.network)}" if request.network else "no network"
        raise ConfigError(f"process {guest.pid}: the guest has {asked}", hint=f"its networks: {names}")
    for network in wanted:
        if not network.interface:
            raise ConfigError(
                f"{network.name}: it is no TAP interface, so its frames cannot be seen from outside",
                hint="capture where the other end of its descriptor is",
            )
    return wanted


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield sys.stdout.buffer
        return
    with open(path, "wb") as file:
        yield file


def _capture(request: Request) -> int:
    from tender.debug.capture import SNAPLEN, Capture
    from tender.debug.pcapng import Writer
    from tender.debug.trace import lives

    guest = picked(request.pid, request.vm)
    networks = _networks(request, guest)
    asked: list[int] = []
    snaplen = min(request.snaplen or SNAPLEN, SNAPLEN)
    with handled(asked.append), _opened(request.path) as file:
        if request.path == "-":
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        capture = Capture(networks, Writer(file, f"tender {_version.__version__}", snaplen), snaplen)
        try:
            shown = ", ".join(f"{it.name} ({printable(it.interface)})" for it in networks)
            say.notice(f"capture: {shown}")
            end = time.monotonic() + request.seconds
            over = False
            while not over and capture.frames < request.count:
                over = bool(asked) or time.monotonic() >= end or not lives(guest.pid)
                capture.take(0 if over else _WAIT_S, request.count)
            capture.end()
        finally:
            capture.close()
    say.notice(f"capture: {capture.frames} frames" + (f", {capture.dropped} lost" if capture.dropped else ""))
    return 0
