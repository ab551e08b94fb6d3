"""The journal of a debugger, and the guard that reads it: without a guest, by a backend whose restore() only writes down."""

import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tender.debug.find import Guest
from tender.debug.guard import ORIGINAL_MAX, Journal, guarded
from tender.debug.target import DebugError


def guest_in(pid: int) -> Guest:
    return Guest(
        backend="notes_down",
        pid=pid,
        tid=pid,
        holder=pid,
        image="app.elf",
        mem_bytes=16 << 20,
        memory_hva=0,
        shared_hva=4096,
        note={"held": 8},
        base=1 << 32,
        values={},
    )


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as it:
        yield it


@pytest.fixture
def restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that tells what restore() was given. It does not exist if the guard did not call it."""
    told = tmp_path / "restored"
    backend = types.ModuleType("tender.debug.notes_down")

    def restore(guest: Guest, journal: Journal) -> None:
        told.write_text(f"{guest.pid} {sorted(journal.changes())} {journal.uses_debug_registers}")

    backend.restore = restore  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    return told


def changing(pid: int, end: Callable[[Journal], int]) -> Callable[[Journal], int]:
    """Returns the work of a debugger that has changed the guest, and then ends by end()."""

    def work(journal: Journal) -> int:
        journal.guest = guest_in(pid)
        journal.note(0x100000, b"\x55")
        journal.debug_registers(True)
        return end(journal)

    return work


@given(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=ORIGINAL_MAX))))
def test_journal_holds_the_last_note_of_each_address_that_was_not_dropped(
    lines: list[tuple[int, bytes]],
) -> None:
    journal, expected = Journal(), {}
    for address, original in lines:
        if original:
            journal.note(address, original)
            expected[address] = original
        else:
            journal.drop(address)
            expected.pop(address, None)
    assert dict(journal.changes()) == expected
    assert len(list(journal.changes())) == len(expected)


def test_a_change_that_the_kernel_refuses_leaves_the_journal_as_it_was() -> None:
    journal = Journal()
    journal.note(0x1000, b"a")
    for address in (0x1000, 0x2000):
        with pytest.raises(DebugError), journal.changing(address, b"b"):
            assert dict(journal.changes())[address] == b"b"
            raise DebugError("refused")
    with journal.changing(0x3000, b"c"):
        pass
    assert dict(journal.changes()) == {0x1000: b"b", 0x3000: b"c"}
    journal.close()


def test_journal_is_full_rather_than_overwritten() -> None:
    journal = Journal()
    with pytest.raises(ValueError, match="full"):
        for address in range(1 << 20):
            journal.note(address, b"x")
    assert len(dict(journal.changes())) == 8192


@pytest.mark.parametrize("original", [b"", bytes(ORIGINAL_MAX + 1)])
def test_journal_refuses_a_line_without_room(original: bytes) -> None:
    with pytest.raises(ValueError, match="1 to 16 bytes"):
        Journal().note(0, original)


def test_journal_holds_lent_registers_until_they_are_given_back() -> None:
    journal = Journal()
    assert journal.lent_registers is None
    journal.registers(17, bytes(range(216)))
    assert journal.lent_registers == (17, bytes(range(216)))
    journal.registers(17, b"")
    assert journal.lent_registers is None


def test_journal_holds_where_rip_was_put_back_to() -> None:
    journal = Journal()
    assert journal.rewound == 0
    journal.rewound = (1 << 47) - 1
    assert (journal.rewound, journal.guest, journal.lent_registers) == ((1 << 47) - 1, None, None)


def test_journal_gives_the_guest_back_as_it_was_noted() -> None:
    journal = Journal()
    assert journal.guest is None
    journal.guest = guest_in(os.getpid())
    assert journal.guest == guest_in(os.getpid())
    assert journal.is_alive()


def test_guest_whose_process_has_ended_is_not_alive(process: subprocess.Popen[bytes]) -> None:
    journal = Journal()
    journal.guest = guest_in(process.pid)
    assert journal.is_alive()
    process.kill()
    process.wait()
    assert not journal.is_alive()


def test_killed_debugger_is_followed_by_a_restore(process: subprocess.Popen[bytes], restored: Path) -> None:
    def end(journal: Journal) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert guarded(changing(process.pid, end)) == 128 + signal.SIGKILL
    assert restored.read_text() == f"{process.pid} [({0x100000}, b'U')] True"


def test_debugger_that_leaves_its_guest_in_the_journal_is_followed_by_a_restore(
    process: subprocess.Popen[bytes], restored: Path
) -> None:
    assert guarded(changing(process.pid, lambda journal: 3)) == 3
    assert restored.exists()


def test_debugger_that_ends_well_is_followed_by_nothing(
    process: subprocess.Popen[bytes], restored: Path
) -> None:
    def end(journal: Journal) -> int:
        journal.guest = None
        return 0

    assert guarded(changing(process.pid, end)) == 0
    assert not restored.exists()


def test_guest_that_ended_with_its_debugger_is_not_restored(
    process: subprocess.Popen[bytes], restored: Path
) -> None:
    def end(journal: Journal) -> int:
        os.kill(process.pid, signal.SIGKILL)
        while journal.is_alive():  # a zombie soon: this is not its parent
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert guarded(changing(process.pid, end)) == 128 + signal.SIGKILL
    assert not restored.exists()


def test_guard_passes_signals_on_to_the_debugger(process: subprocess.Popen[bytes], restored: Path) -> None:
    def end(journal: Journal) -> int:
        os.kill(os.getppid(), signal.SIGHUP)
        assert signal.sigtimedwait({signal.SIGTERM}, 30) is not None
        journal.guest = None
        return 5

    def work(journal: Journal) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        return changing(process.pid, end)(journal)

    assert guarded(work) == 5


def test_debugger_gets_sigterm_when_its_guard_is_killed(tmp_path: Path) -> None:
    """The guard is a process of its own here, which the test kills."""
    reader, writer = os.pipe()

    def work(journal: Journal) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        os.write(writer, b"ready")
        got = signal.sigtimedwait({signal.SIGTERM}, 30)
        os.write(writer, b" told" if got else b" not told")
        return 0

    guard = os.fork()
    if guard == 0:
        os._exit(guarded(work))
    os.close(writer)
    assert os.read(reader, 5) == b"ready"
    os.kill(guard, signal.SIGKILL)
    os.waitpid(guard, 0)
    assert os.read(reader, 100) == b" told"
    os.close(reader)
