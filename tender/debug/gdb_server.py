"""Serves gdb's remote protocol over two descriptors, in front of a target: one guest with one vCPU.

It serves what gdb 13 and lldb ask for; any other packet gets the empty answer, which means "not supported". Whatever a
client sends, it gets an answer: a packet that is wrong gets an error.

While the guest runs, the server waits for three things at once: bytes from gdb, signals (SIGCHLD tells that the guest's
process has stopped), and, as a last resort, a short time. A step can take as long as a hypercall does. During one, a timer
looks whether gdb has sent 0x03 or has gone.

gdb's packets that are left out on purpose: qXfer:memory-map (gdb would refuse what is not in it, and take text for ROM),
qXfer:auxv (gdb would look for a dynamic linker), vCont;t and non-stop (there is one vCPU).

Source: appendix E of gdb's manual; for lldb, docs/lldb-gdb-remote.txt of LLVM.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from enum import StrEnum
from errno import EINTR

from tender.debug.gdb_files import ImageFile
from tender.debug.gdb_monitor import monitor
from tender.debug.gdb_packets import (
    INTERRUPT,
    PACKET_BYTES,
    RESEND,
    Framing,
    framed,
    from_hex,
    number,
    numbers,
)
from tender.debug.gdb_registers import Layout
from tender.debug.registers import Registers
from tender.debug.target import DebugError, Ended, Stop, Target, Watch, Where

_POLL_S = 0.2  # if a signal was lost
_LOOK_S = 0.05  # during a step
_STOP_S = 10.0
"""The longest wait for a guest to stop after gdb has gone."""
_PIECE = 4096  # a pipe that can be written to takes so many bytes without waiting (pipe(7))
_READ_MAX = PACKET_BYTES // 2 - 64
_WATCHES = tuple(Watch)
_LAST = (1 << 64) - 1  # no mapping ends behind it: lldb adds start and size in 64 bits
_NO_MEMORY, _BAD_PACKET, _NO_SUCH = b"E14", b"E16", b"E02"  # EFAULT, EINVAL, ENOENT in hexadecimal
# gdb's numbers of signals are Linux's where they are the same, up to 15. Source: gdb's include/gdb/signals.def.
_TO_GDB = {7: 10, 10: 30, 12: 31, 17: 20, 18: 19, 19: 17, 20: 18, 23: 16, 29: 23, 31: 12}
_FROM_GDB = {theirs: ours for ours, theirs in _TO_GDB.items()}
_TRIPLE = b"x86_64-pc-none-elf".hex().encode()
_EXPEDITED = ("rbp", "rsp", "rip")


class End(StrEnum):
    """How a session ended."""

    DETACHED = "detached"
    """gdb let the guest go on."""
    KILLED = "killed"
    """gdb had the guest killed."""
    ENDED = "ended"
    """The guest's process has ended, and gdb was told."""
    LOST = "lost"
    """gdb has gone without a word, or a signal ended the session. The guest goes on."""


class _Leave(Exception):
    """The connection is over."""


class GdbServer:
    """One session of a client.

    Args:
        target: The guest. It stands still.
        reader: The descriptor that packets come from.
        writer: The descriptor that answers go to. It may be the same.
        image: The name of the guest's ELF file, for clients that were started without one.
        image_fd: That file, open for reading; -1: it is not given out.
        attached: Whether the guest ran before the debugger came: then gdb lets it go on when it quits.
        first: Why the guest stands still.
    """

    def __init__(
        self,
        target: Target,
        reader: int,
        writer: int,
        *,
        image: str = "",
        image_fd: int = -1,
        attached: bool = True,
        first: Stop | Ended | None = None,
    ) -> None:
        self._target, self._reader, self._writer = target, reader, writer
        self._image, self._attached = image, attached
        self._files = ImageFile(image, image_fd)
        self._framing = Framing()
        self._last: Stop | Ended = first or Stop(signal.SIGINT if attached else signal.SIGTRAP)
        self._layout = Layout(b"")
        self._sent = b""
        self._end: End | None = None
        self._leaving = self._gone = False
        self._is_stepping = self._runs = False
        self._tells_breakpoints = self._suffixes = self._lists_threads = self._hex_errors = False
        self._wake = -1

    def leave(self) -> None:
        """Ends the session soon. It may be called from a signal handler."""
        self._leaving = True
        if self._is_stepping:
            self._target.interrupt()

    def serve(self) -> End:
        """Serves until gdb or the guest has gone. At the end the target is detached, unless its process has ended.

        Call it from the main thread: it needs SIGCHLD and SIGALRM.
        """
        self._wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        former_fd = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        former = {
            signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None),
            signal.SIGALRM: signal.signal(signal.SIGALRM, self._look),
        }
        try:
            with contextlib.suppress(DebugError):
                self._layout = Layout(self._target.registers().xsave)
            with contextlib.suppress(_Leave):
                while self._end is None:
                    self._serve_one()
            return self._finish()
        finally:
            signal.set_wakeup_fd(former_fd)
            for signum, handler in former.items():
                signal.signal(signum, handler)
            os.close(self._wake)
            os.close(waker)

    def _finish(self) -> End:
        if self._end is None:
            self._end = End.ENDED if isinstance(self._last, Ended) else End.LOST
        if self._end is End.LOST:
            if not self._attached:  # as gdb does with a program that it has started
                self._target.kill()
            self._stand_still()
            self._target.detach()
        return self._end

    def _stand_still(self) -> None:
        """Stops a guest that runs: a target is detached while it stands still."""
        limit = time.monotonic() + _STOP_S
        if self._runs:
            self._target.interrupt()
        while self._runs and time.monotonic() < limit:
            if (what := self._target.poll()) is not None:
                self._runs = False
                self._last = what
            else:
                select.select([self._wake], [], [], _LOOK_S)
                self._drain()

    # The connection

    def _serve_one(self) -> None:
        found = self._framing.next()
        if found is None:
            self._wait_for_bytes()
            return
        packet, reply = found
        if reply:
            self._write(reply)
        if packet == RESEND:
            self._write(self._sent)
        elif packet is not None and packet != INTERRUPT:
            self._serve(packet)

    def _serve(self, packet: bytes) -> None:
        try:
            answer = self._answer(packet)
        except DebugError as error:
            answer = self._error(error)
        except (ValueError, IndexError, OverflowError):
            answer = _BAD_PACKET
        if answer is not None:
            self._send(answer)

    def _wait_for_bytes(self) -> None:
        ready, _, _ = select.select([self._reader, self._wake], [], [])
        self._drain()
        if self._leaving:
            raise _Leave
        if self._reader in ready:
            self._take()
        if self._gone:
            raise _Leave

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)

    def _take(self) -> None:
        """Reads what has come."""
        try:
            data = os.read(self._reader, PACKET_BYTES)
        except ConnectionError:
            data = b""
        except OSError as error:
            if error.errno == EINTR:
                return
            data = b""
        self._gone = not data
        self._framing.take(data)

    def _send(self, data: bytes) -> None:
        self._sent = framed(data)
        self._write(self._sent)

    def _write(self, data: bytes) -> None:
        while data:
            _, ready, _ = select.select([self._wake], [self._writer], [])
            self._drain()
            if self._leaving:
                raise _Leave
            if not ready:
                continue
            try:
                data = data[os.write(self._writer, data[:_PIECE]) :]
            except OSError:
                self._gone = True
                raise _Leave from None

    def _look(self, *_: object) -> None:
        """Looks at the connection during a step: the handler of a timer."""
        if not self._is_stepping:
            return
        if not self._gone and select.select([self._reader], [], [], 0)[0]:
            self._take()
        if self._gone or self._leaving or self._framing.has_interrupt():
            self._target.interrupt()

    # Answers

    def _answer(self, packet: bytes) -> bytes | None:
        """Returns the answer to a packet; None: it has been sent already, or there is none."""
        if packet.startswith(b"v"):
            return self._v_packet(packet)
        if packet[:1] in (b"q", b"Q"):
            return self._query(packet)
        serve = self._letters().get(packet[:1])
        return serve(packet[1:]) if serve else b""

    def _letters(self) -> dict[bytes, Callable[[bytes], bytes | None]]:
        return {
            b"?": lambda _: self._stop_reply(self._last),
            b"g": self._read_registers,
            b"G": self._write_registers,
            b"p": self._read_register,
            b"P": self._write_register,
            b"m": self._read_memory,
            b"M": lambda rest: self._write_memory(rest, from_hex),
            b"X": lambda rest: self._write_memory(rest, bytes),
            b"Z": lambda rest: self._breakpoint(rest, self._target.insert),
            b"z": lambda rest: self._breakpoint(rest, self._target.remove),
            b"H": lambda _: b"OK",
            b"T": lambda _: b"OK",
            b"c": self._continue_at,
            b"s": self._continue_at_stepping,
            b"C": lambda rest: self._continue_with(rest, step=False),
            b"S": lambda rest: self._continue_with(rest, step=True),
            b"D": lambda _: self._detach(),
            b"k": lambda _: self._kill(),
        }

    def _v_packet(self, packet: bytes) -> bytes | None:
        if packet == b"vCont?":
            return b"vCont;c;C;s;S"
        if packet.startswith(b"vCont;"):
            return self._continue_by(packet[6:])
        if packet.startswith(b"vKill"):
            return self._kill()
        if packet.startswith(b"vFile:"):
            return self._files.answer(packet[6:]) or b""
        return b""

    def _query(self, packet: bytes) -> bytes | None:
        if packet == b"QStartNoAckMode":
            self._send(b"OK")
            self._framing.acknowledges = False
            return None
        if (told := self._fixed(packet)) is not None:
            return told
        name, _, rest = packet.partition(b":")
        serve = {
            b"qSupported": self._supported,
            b"qXfer": self._transfer,
            b"qMemoryRegionInfo": self._region,
        }.get(name)
        if serve:
            return serve(rest)
        if packet.startswith(b"qRcmd,"):
            return self._monitor(from_hex(packet[6:]))
        if name == b"qAttached":
            return b"1" if self._attached else b"0"
        if packet.startswith(b"qThreadExtraInfo,"):
            return self._thread_words().encode().hex().encode()
        return b""

    def _fixed(self, packet: bytes) -> bytes | None:
        """Answers the queries whose answer is the same each time, and those that set something."""
        if packet == b"QThreadSuffixSupported":
            self._suffixes = True
            return b"OK"
        if packet == b"QListThreadsInStopReply":
            self._lists_threads = True
            return b"OK"
        if packet == b"QEnableErrorStrings":
            self._hex_errors = True
            return b"OK"
        return {
            b"qC": b"QC1",
            b"qfThreadInfo": b"m1",
            b"qsThreadInfo": b"l",
            b"qHostInfo": b"triple:%s;endian:little;ptrsize:8;vm-page-size:4096;" % _TRIPLE,
            b"qProcessInfo": b"pid:%x;triple:%s;endian:little;ptrsize:8;" % (self._target.pid, _TRIPLE),
        }.get(packet)

    def _supported(self, rest: bytes) -> bytes:
        self._tells_breakpoints = b"swbreak+" in rest.split(b";")
        files = (
            ("qXfer:features:read+", "qXfer:exec-file:read+") if self._image else ("qXfer:features:read+",)
        )
        words = (
            f"PacketSize={PACKET_BYTES:x}",
            "QStartNoAckMode+",
            *files,
            "swbreak+",
            "hwbreak+",
            "vContSupported+",
        )
        return ";".join(words).encode()

    def _transfer(self, rest: bytes) -> bytes:
        kind, operation, annex, place = rest.split(b":")
        offset, length = numbers(place)
        data = {
            (b"features", b"target.xml"): self._layout.xml.encode(),
            (b"exec-file", annex): os.fsencode(self._image),
        }.get((kind, annex))
        if operation != b"read" or not data:
            return b"" if kind not in (b"features", b"exec-file") else b"E00"
        part = data[offset : offset + min(length, _READ_MAX)]
        return (b"m" if offset + len(part) < len(data) else b"l") + part

    def _region(self, rest: bytes) -> bytes:
        """Describes the mapping around an address, or the gap, for lldb."""
        address, gap_start = number(rest), 0
        for it in self._target.mappings():
            if address < it.start:
                return b"start:%x;size:%x;" % (gap_start, it.start - gap_start)
            if address < it.end:
                rights = b"".join(word for word, bit in ((b"r", 4), (b"w", 2), (b"x", 1)) if it.flags & bit)
                return b"start:%x;size:%x;permissions:%s;" % (it.start, it.end - it.start, rights)
            gap_start = it.end
        return b"start:%x;size:%x;" % (gap_start, _LAST - gap_start)

    def _thread_words(self) -> str:
        where = {Where.GUEST: "", Where.HYPERCALL: ", in a hypercall", Where.ENDED: ", its run has ended"}
        return f"vCPU 0{where[self._target.where()]}"

    def _monitor(self, command: bytes) -> bytes:
        text = monitor(self._target, command.decode("utf-8", "replace"))
        for at in range(0, len(text), 8192):
            self._send(b"O" + text[at : at + 8192].encode().hex().encode())
        return b"OK"

    # Registers and memory

    def _without_suffix(self, rest: bytes) -> bytes:
        return rest.partition(b";")[0] if self._suffixes else rest

    def _read_registers(self, rest: bytes) -> bytes:
        return self._layout.pack(self._target.registers()).encode()

    def _write_registers(self, rest: bytes) -> bytes:
        data = from_hex(self._without_suffix(rest).replace(b"x", b"0"))
        return self._change(lambda registers: self._layout.unpack(registers, data))

    def _read_register(self, rest: bytes) -> bytes:
        which = number(self._without_suffix(rest))
        if which >= len(self._layout.registers):
            return _NO_SUCH
        return self._layout.shown(self._target.registers(), which).encode()

    def _write_register(self, rest: bytes) -> bytes:
        which, value = self._without_suffix(rest).split(b"=")
        return self._change(
            lambda registers: self._layout.change(registers, number(which), from_hex(value)),
        )

    def _change(self, change: Callable[[Registers], Registers]) -> bytes:
        self._at_an_instruction()
        before = self._target.registers()
        after = change(before)
        if after != before:
            self._target.set_registers(after)
        return b"OK"

    def _at_an_instruction(self) -> None:
        """Refuses a change of what the handlers of Tender still work with."""
        where = self._target.where()
        if where is Where.HYPERCALL:
            raise DebugError("the guest is inside a hypercall")
        if where is Where.ENDED:
            raise DebugError("the guest's run has ended")

    def _read_memory(self, rest: bytes) -> bytes:
        gpa, length = numbers(rest)
        data = self._target.read(gpa, min(length, _READ_MAX))
        return data.hex().encode() if data or not length else _NO_MEMORY

    def _write_memory(self, rest: bytes, decode: Callable[[bytes], bytes]) -> bytes:
        place, separator, text = rest.partition(b":")
        gpa, length = numbers(place)
        data = decode(text)
        if not separator or len(data) != length:
            return _BAD_PACKET
        if data:
            self._target.write(gpa, data)
        return b"OK"

    def _breakpoint(self, rest: bytes, change: Callable[[Watch, int, int], None]) -> bytes:
        kind, gpa, length = numbers(rest.partition(b";")[0])
        if kind >= len(_WATCHES):
            return b""
        change(_WATCHES[kind], gpa, length)
        return b"OK"

    # Running

    def _continue_at(self, rest: bytes, *, step: bool = False) -> bytes:
        if rest:
            rip = number(rest)
            self._change(lambda registers: registers._with(rip=rip))
        return self._go(step=step)

    def _continue_at_stepping(self, rest: bytes) -> bytes:
        return self._continue_at(rest, step=True)

    def _continue_with(self, rest: bytes, *, step: bool) -> bytes:
        signum, _, place = rest.partition(b";")
        theirs = number(signum)
        if place:
            rip = number(place)
            self._change(lambda registers: registers._with(rip=rip))
        return self._go(step=step, signum=_FROM_GDB.get(theirs, theirs) if theirs < 65 else 0)

    def _continue_by(self, actions: bytes) -> bytes:
        """vCont: the first action counts, since there is one thread."""
        action = actions.partition(b";")[0].partition(b":")[0]
        letter, rest = action[:1], action[1:]
        if letter in (b"c", b"s") and not rest:
            return self._go(step=letter == b"s")
        if letter in (b"C", b"S"):
            return self._continue_with(rest, step=letter == b"S")
        return _BAD_PACKET

    def _go(self, *, step: bool, signum: int = 0) -> bytes:
        if not isinstance(self._last, Ended):
            try:
                self._last = self._stepped(signum) if step else self._run(signum)
            except DebugError:
                if not isinstance(what := self._target.poll(), Ended):
                    raise
                self._last, self._runs = what, False
        if self._leaving:
            raise _Leave
        return self._stop_reply(self._last)

    def _stepped(self, signum: int) -> Stop | Ended:
        self._is_stepping = True
        signal.setitimer(signal.ITIMER_REAL, _LOOK_S, _LOOK_S)
        try:
            return self._target.step(signum)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._is_stepping = False

    def _run(self, signum: int) -> Stop | Ended:
        self._target.resume(signum)
        self._runs, asked = True, False
        while (what := self._target.poll()) is None:
            ready, _, _ = select.select(
                [self._wake, *([] if self._gone else [self._reader])], [], [], _POLL_S
            )
            self._drain()
            if self._reader in ready:
                self._take()
            if self._framing.has_interrupt():
                self._target.interrupt()
                asked = True
            if self._leaving or (self._gone and not asked):
                raise _Leave
        self._runs = False
        return what

    def _stop_reply(self, what: Stop | Ended) -> bytes:
        if isinstance(what, Ended):
            if what.status is not None:
                return b"W%02x" % (what.status & 0xFF)
            return b"X%02x" % _TO_GDB.get(what.signal, what.signal)
        words = [f"T{_TO_GDB.get(what.signal, what.signal):02x}", *self._expedited(), "thread:1;"]
        if self._lists_threads:
            words.append("threads:1;")
        if what.watch in (Watch.WRITE, Watch.READ, Watch.ACCESS):
            words.append(f"{what.watch}:{what.address:x};")
        elif what.watch is not None and self._tells_breakpoints:
            words.append(f"{what.watch}:;")
        return "".join(words).encode()

    def _expedited(self) -> list[str]:
        """The registers that gdb wants at every stop, which saves it a packet."""
        try:
            registers = self._target.registers()
        except DebugError:
            return []
        return [
            f"{n:02x}:{self._layout.shown(registers, n)};"
            for n in (self._layout.number(it) for it in _EXPEDITED)
        ]

    def _detach(self) -> bytes:
        self._target.detach()
        self._end = End.DETACHED
        return b"OK"

    def _kill(self) -> bytes:
        if self._attached and self._lists_threads:  # lldb kills also when it quits
            return self._detach()
        if not isinstance(self._last, Ended):
            self._target.kill()
        self._end = End.KILLED
        return b"OK"

    def _error(self, error: DebugError) -> bytes:
        text = error.message.split("\n")[0].encode("ascii", "replace")[:500]
        return b"E01;" + text.hex().encode() if self._hex_errors else b"E." + text
