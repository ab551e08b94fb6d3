"""gdb's protocol in front of a guest that is no process: the answer to each packet, and that any bytes are accepted."""

import os
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_target import FakeTarget
from hypothesis import given, settings
from hypothesis import strategies as st

from tender.debug.gdb_packets import PACKET_BYTES, Framing, framed
from tender.debug.gdb_server import End, GdbServer
from tender.debug.target import DebugError, Stop, Watch, Where

LIMIT_S = 60


def session(target: Any, data: bytes, **more: Any) -> tuple[End, bytes]:
    """Serves a client that sends `data` and closes its side. Returns how it ended, and all answers."""
    ours, theirs = socket.socketpair()
    answers = bytearray()

    def client() -> None:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        while more := theirs.recv(65536):
            answers.extend(more)

    thread = threading.Thread(target=client, daemon=True)
    thread.start()
    with ours:
        end = GdbServer(target, ours.fileno(), ours.fileno(), **more).serve()
    thread.join(LIMIT_S)
    theirs.close()
    return end, bytes(answers)


def answers_to(target: Any, *packets: bytes, **more: Any) -> list[bytes]:
    """Returns the answers to these packets, in no-ack mode."""
    data = b"+" + framed(b"QStartNoAckMode") + b"".join(framed(it) for it in packets)
    _, answers = session(target, data, **more)
    framing, found = Framing(), []
    framing.take(answers)
    while (it := framing.next()) is not None:
        found.append(it[0] or b"")
        if len(found) == 1:
            framing.acknowledges = False
    assert found[0] == b"OK"
    return found[1:]


def answer_to(target: Any, packet: bytes, **more: Any) -> bytes:
    return answers_to(target, packet, **more)[0]


FIXED = [
    (b"?", b"T02"),
    (b"vCont?", b"vCont;c;C;s;S"),
    (b"vMustReplyEmpty", b""),
    (b"qfThreadInfo", b"m1"),
    (b"qsThreadInfo", b"l"),
    (b"qC", b"QC1"),
    (b"qAttached", b"1"),
    (b"qAttached:1", b"1"),
    (b"Hg0", b"OK"),
    (b"Hc-1", b"OK"),
    (b"T1", b"OK"),
    (b"qTStatus", b""),
    (b"qOffsets", b""),
    (b"qSymbol::", b""),
    (b"qXfer:auxv:read::0,1000", b""),
    (b"qXfer:memory-map:read::0,1000", b""),
    (b"qXfer:features:read:other.xml:0,fff", b"E00"),
    (b"m100000,4", b"55 48 89 e5"),
    (b"m200000,4", b"E14"),
    (b"m1fffff,4", b"00"),
    (b"M100000,2:9090", b"OK"),
    (b"M100000,3:9090", b"E16"),
    (b"X100000,0:", b"OK"),
    (b"X100000,2:\x00\x7d", b"OK"),
    (b"M1fffff,2:9090", b"E.0x1fffff: not guest memory"),
    (b"p10", b"00 00 10 00 00 00 00 00"),
    (b"p3f0", b"E02"),
    (b"P0=0100000000000000", b"OK"),
    (b"P12=10000000", b"E16"),
    (b"Z0,100004,1", b"OK"),
    (b"Z4,100004,8", b"OK"),
    (b"Z5,100004,8", b""),
    (b"z1,100004,1", b"OK"),
    (b"vFile:setfs:0", b"F0"),
    (b"vFile:open:612e656c66,0,1c0", b"F-1,2"),
    (b"vFile:pread:5,10,0", b"F-1,9"),
    (b"vFile:unlink:612e656c66", b""),
    (b"vCont;r1,2", b"E16"),
    (b"qMemoryRegionInfo:0", b"start:0;size:100000;"),
    (b"qMemoryRegionInfo:100010", b"start:100000;size:10000;permissions:rx;"),
    (b"qMemoryRegionInfo:ffffffffffffffff", b"start:200000;size:ffffffffffdfffff;"),  # 64 bits hold its end
    (b"", b""),
    (b"\xff\xfe", b""),
    (b"m", b"E16"),
    (b"m-1,0x10", b"E16"),
    (b"G0", b"E16"),
]


@pytest.mark.parametrize(("packet", "expected"), FIXED, ids=[repr(packet) for packet, _ in FIXED])
def test_packet_is_answered(packet: bytes, expected: bytes) -> None:
    target = FakeTarget(bytes(0x100000) + b"\x55\x48\x89\xe5")
    got = answer_to(target, packet)
    assert (got[:3] if expected == b"T02" else got) == (
        expected.replace(b" ", b"") if packet[:1] in b"mp" else expected
    )


def test_features_that_are_served_are_told() -> None:
    told = answer_to(FakeTarget(), b"qSupported:multiprocess+;swbreak+;hwbreak+", image="app.elf").split(b";")
    assert set(told) == {
        *(b"PacketSize=20000", b"QStartNoAckMode+", b"qXfer:features:read+", b"qXfer:exec-file:read+"),
        *(b"swbreak+", b"hwbreak+", b"vContSupported+"),
    }


@pytest.mark.parametrize(
    ("stop", "said", "shown"),
    [
        (Stop(5, Watch.SOFTWARE), True, b"thread:1;swbreak:;"),
        (Stop(5, Watch.SOFTWARE), False, b"thread:1;"),
        (Stop(5, Watch.HARDWARE), True, b"thread:1;hwbreak:;"),
        (Stop(5, Watch.WRITE, 0x1234), False, b"thread:1;watch:1234;"),
        (Stop(5, Watch.READ, 0x1234), True, b"thread:1;rwatch:1234;"),
        (Stop(5, Watch.ACCESS, 0x1234), True, b"thread:1;awatch:1234;"),
    ],
)
def test_stop_names_its_breakpoint(stop: Stop, said: bool, shown: bytes) -> None:
    supported = b"qSupported:swbreak+;hwbreak+" if said else b"qSupported"
    answers = answers_to(FakeTarget(), supported, b"?", first=stop)
    assert answers[1].startswith(b"T05")
    assert answers[1].endswith(shown)


@pytest.mark.parametrize(("linux", "gdb"), [(2, 2), (4, 4), (5, 5), (6, 6), (7, 10), (8, 8), (11, 11)])
def test_signal_is_told_by_gdbs_number(linux: int, gdb: int) -> None:
    target = FakeTarget()
    answers = answers_to(target, b"?", b"vCont;S%02x:1" % gdb, first=Stop(linux))
    assert answers[0].startswith(b"T%02x" % gdb)
    assert target.done[0] == f"step {linux}"


@pytest.mark.parametrize("packet", [b"s", b"vCont;s:1;c", b"vCont;s", b"S05"])
def test_step_goes_on_by_one_instruction(packet: bytes) -> None:
    target = FakeTarget()
    assert answer_to(target, packet).startswith(b"T05")
    assert target.state.rip == 0x100001


@pytest.mark.parametrize("packet", [b"c", b"vCont;c", b"vCont;c:p1.-1", b"C05"])
def test_continue_runs_to_a_breakpoint(packet: bytes) -> None:
    target = FakeTarget()
    assert answers_to(target, b"Z0,100020,1", packet)[1].startswith(b"T05")
    assert target.state.rip == 0x100020


def test_continue_at_an_address_goes_on_there() -> None:
    target = FakeTarget()
    assert answers_to(target, b"Z0,180000,1", b"c170000")[1].startswith(b"T05")
    assert target.state.rip == 0x180000


def test_byte_3_stops_a_running_guest() -> None:
    target = FakeTarget()
    data = framed(b"QStartNoAckMode") + framed(b"c") + b"\x03" + framed(b"D")
    end, answers = session(target, data)
    assert end is End.DETACHED
    assert b"$T02" in answers
    assert target.done == ["resume 0", "detach"]


class SlowStep(FakeTarget):
    """A guest whose step is a hypercall that takes until interrupt()."""

    def step(self, signal: int = 0) -> Stop:
        while not self.asked:
            threading.Event().wait(0.01)
        self.asked = False
        return Stop(2)


@pytest.mark.parametrize(("attached", "done"), [(True, ["detach"]), (False, ["kill", "detach"])])
def test_a_guest_that_was_started_ends_with_a_client_that_is_lost(attached: bool, done: list[str]) -> None:
    target = FakeTarget()
    assert session(target, framed(b"?"), attached=attached)[0] is End.LOST
    assert target.done == done


@pytest.mark.parametrize(("word", "end"), [(b"\x03$D#44", End.DETACHED), (b"", End.LOST)])
def test_step_over_a_long_hypercall_ends_when_gdb_asks_or_goes(word: bytes, end: End) -> None:
    target = SlowStep()
    assert session(target, framed(b"QStartNoAckMode") + framed(b"s") + word)[0] is end
    assert target.done == ["detach"]


@pytest.mark.parametrize(
    ("status", "signum", "told"), [(0, 0, b"W00"), (255, 0, b"Wff"), (None, 9, b"X09"), (None, 7, b"X0a")]
)
def test_end_of_the_process_is_told(status: int | None, signum: int, told: bytes) -> None:
    from tender.debug.target import Ended

    target = FakeTarget()
    target.poll = lambda: Ended(status, signum)  # type: ignore[method-assign]
    assert answers_to(target, b"c", b"c", b"?") == [told] * 3
    assert target.done == ["resume 0"]


def test_state_is_readable_at_the_end_of_the_run() -> None:
    target = FakeTarget()
    target.place = Where.ENDED
    answers = answers_to(target, b"g", b"m100000,1", b"P0=0100000000000000", first=Stop(6))
    assert len(answers[0]) > 1000
    assert answers[1:] == [b"00", b"E.the guest's run has ended"]


@pytest.mark.parametrize("packet", [b"P0=0100000000000000", b"G" + b"00" * 560, b"c100000"])
def test_registers_are_not_written_inside_a_hypercall(packet: bytes) -> None:
    target = FakeTarget()
    target.place = Where.HYPERCALL
    assert answer_to(target, packet) == b"E.the guest is inside a hypercall"
    assert target.done == ["detach"]


def test_error_of_the_target_is_told_in_its_words() -> None:
    target = FakeTarget()
    packets = [b"Z2,%x,8" % (0x100000 + 8 * i) for i in range(5)]
    assert answers_to(target, *packets) == [b"OK"] * 4 + [b"E.the processor has no free debug register"]


def test_lldb_is_told_errors_in_the_form_that_it_asks_for() -> None:
    packets = (b"QEnableErrorStrings", b"M1fffff,2:9090")
    assert answers_to(FakeTarget(), *packets) == [
        b"OK",
        b"E01;" + b"0x1fffff: not guest memory".hex().encode(),
    ]


@pytest.mark.parametrize(("attached", "done"), [(True, "detach"), (False, "kill")])
def test_a_guest_that_ran_before_survives_lldb_which_kills_what_it_leaves(attached: bool, done: str) -> None:
    target = FakeTarget()
    session(target, framed(b"QListThreadsInStopReply") + framed(b"k"), attached=attached)
    assert target.done == [done]


def test_registers_come_as_they_were_written() -> None:
    target = FakeTarget()
    before = answer_to(target, b"g")
    changed = b"11" * 8 + before[16:]
    assert answers_to(target, b"G" + changed, b"g") == [b"OK", changed]
    assert target.state.rax == 0x1111111111111111


def test_kill_and_detach_end_the_session() -> None:
    for packet, end, done in [
        (b"k", End.KILLED, "kill"),
        (b"vKill;1", End.KILLED, "kill"),
        (b"D", End.DETACHED, "detach"),
        (b"D;1", End.DETACHED, "detach"),
    ]:
        target = FakeTarget()
        assert session(target, framed(packet))[0] is end
        assert target.done == [done]


def test_guest_that_was_started_is_told_as_such() -> None:
    assert answers_to(FakeTarget(), b"qAttached", b"?", attached=False)[0] == b"0"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("help", "monitor where"),
        ("", "monitor where"),
        ("info", "app.elf"),
        ("where", "rip 0x100000"),
        ("calls", "poll 3"),
        ("mem", "touched: 16 KiB"),
        ("nonsense\n", "unknown: nonsense"),
    ],
)
def test_monitor_command_prints(command: str, words: str) -> None:
    *text, end = answers_to(FakeTarget(), b"qRcmd," + command.encode().hex().encode())
    assert end == b"OK"
    assert words in b"".join(bytes.fromhex(it[1:].decode()) for it in text).decode()


def test_only_the_image_is_given_out(tmp_path: Path) -> None:
    image = tmp_path / "app.elf"
    image.write_bytes(b"\x7fELF" + b"}#$*" * 100)
    name = str(image).encode().hex().encode()
    with image.open("rb") as file:
        answers = answers_to(
            FakeTarget(),
            b"qXfer:exec-file:read:1:0,fff",
            b"vFile:open:%s,0,0" % name,
            b"vFile:open:%s,1,0" % name,
            b"vFile:open:%s,0,0" % b"/etc/passwd".hex().encode(),
            b"vFile:fstat:3",
            b"vFile:pread:3,100,2",
            b"vFile:pread:4,100,2",
            b"vFile:close:3",
            b"vFile:pread:3,100,2",
            image=str(image),
            image_fd=file.fileno(),
        )
    assert answers[0] == b"l" + os.fsencode(image)
    assert answers[1:4] == [b"F3", b"F-1,1e", b"F-1,2"]
    assert answers[4].startswith(b"F40;")
    assert int.from_bytes(answers[4][4 + 28 : 4 + 36], "big") == 404
    assert answers[5] == b"F100;" + image.read_bytes()[2:258]
    assert answers[6:] == [b"F-1,9", b"F0", b"F-1,9"]


def test_each_open_of_the_image_is_closed_on_its_own(tmp_path: Path) -> None:
    image = tmp_path / "app.elf"
    image.write_bytes(b"\x7fELF")
    open_it = b"vFile:open:%s,0,0" % str(image).encode().hex().encode()
    with image.open("rb") as file:
        words = (
            open_it,
            open_it,
            b"vFile:close:4",
            b"vFile:pread:3,4,0",
            b"vFile:pread:4,4,0",
            *[open_it] * 64,
        )
        answers = answers_to(FakeTarget(), *words, image=str(image), image_fd=file.fileno())
    assert answers[:5] == [b"F3", b"F4", b"F0", b"F4;\x7fELF", b"F-1,9"]
    assert answers[-2:] == [b"F42", b"F-1,18"]  # the 64th handle, and EMFILE


def test_broken_packet_is_asked_for_again_and_answer_is_sent_again() -> None:
    _, answers = session(FakeTarget(), b"$qC#00" + framed(b"qC") + b"-" + b"+")
    assert answers == b"-+" + framed(b"QC1") * 2


def test_packet_without_an_end_is_dropped() -> None:
    _, answers = session(FakeTarget(), b"$" + b"a" * (2 * PACKET_BYTES) + framed(b"qC"))
    assert answers.endswith(framed(b"QC1"))


PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([framed(packet) for packet, _ in FIXED] + [b"\x03", b"+", b"-", framed(b"c") + b"\x03"]),
    st.builds(
        lambda head, tail: framed(head + tail),
        st.sampled_from(
            b"m M X G P p Z0, z vCont; vFile:open: vFile:pread: qXfer:features:read:target.xml: qRcmd, S".split()
        ),
        st.one_of(
            st.binary(max_size=30), st.from_regex(rb"[0-9a-f]{1,18}[,;:=][0-9a-f]{1,18}", fullmatch=True)
        ),
    ),
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=12), st.booleans())
def test_any_bytes_are_accepted(pieces: Sequence[bytes], no_ack: bool) -> None:
    data = (framed(b"QStartNoAckMode") if no_ack else b"") + b"".join(pieces)
    end, _ = session(FakeTarget(), data)
    assert end in End


class Gone(FakeTarget):
    """A guest whose process was killed from elsewhere: every call fails until poll() tells of the end."""

    def registers(self, *_: Any) -> Any:
        raise DebugError("the process is gone")

    read = where = step = resume = facts = registers  # type: ignore[assignment]


@pytest.mark.parametrize("packet", [b"g", b"p0", b"m100000,4", b"s", b"c", b"qRcmd,696e666f"])
def test_guest_that_is_gone_is_an_error_and_no_traceback(packet: bytes) -> None:
    target = Gone()
    target.ends = True
    answer = answer_to(target, packet)
    assert answer in (b"E.the process is gone", b"W00")


def test_signal_that_ends_the_session_detaches() -> None:
    target = FakeTarget()
    ours, theirs = socket.socketpair()
    server = GdbServer(target, ours.fileno(), ours.fileno())
    before = signal.signal(signal.SIGTERM, lambda *_: server.leave())
    try:
        theirs.sendall(framed(b"c"))
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert server.serve() is End.LOST
    finally:
        signal.signal(signal.SIGTERM, before)
        ours.close()
        theirs.close()
    assert target.done == ["resume 0", "detach"]
