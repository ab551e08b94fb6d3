"""`tender stats`: shows what one process's guests do: the counters, and what happened between two looks."""

import time
from collections import defaultdict

from tender.cli import columns, report, say
from tender.cli.option_table import listed
from tender.cli.ps import memory
from tender.cli.words import Words
from tender.debug.find import guests_of
from tender.debug.memory_use import HeapUse, heap_of
from tender.debug.target import DebugError
from tender.printable import printable
from tender.watch.running import GuestRates, RunningGuest, Watch
from tender.watch.trend import Growth, Trend

SCHEMA = "tender.stats/1"
STATUS_FAILED = 1
DEFAULT_S = 1.0

USAGE = f"""\
usage: tender stats [--json] [--watch=SECONDS] PID

Show what the guest of a process does: counters, what happened in a second, CPU, memory. A library's process
may have several guests. Status 0, or 1 if there is no such guest or it cannot be read.

{listed("stats")}"""


def main(argv: list[str]) -> int:
    """Shows the guests of one process, and returns the exit status."""
    words = Words("stats", argv, flags=("--json",), valued=("--watch",), usage=USAGE)
    interval_s = words.seconds("--watch", DEFAULT_S, least=0.1, most=3600)
    if words.rest and not (words.rest[0].isascii() and words.rest[0].isdecimal() and len(words.rest[0]) < 10):
        words.refuse(f"`{printable(words.rest[0])}' is no PID")
    status = words.answered(least=1, most=1, needed="a PID is needed: `tender ps` lists them")
    if status is not None:
        return status
    again = "--watch" in words.values
    try:
        return _Stats(int(words.rest[0]), as_json="--json" in words.flags).show(interval_s, again=again)
    except KeyboardInterrupt:
        if again:
            return 0
        raise


class _Stats:
    """The guests of one process, looked at again and again."""

    def __init__(self, pid: int, *, as_json: bool) -> None:
        self._pid, self._as_json = pid, as_json
        self._watch = Watch()
        self._trends: defaultdict[str, Trend] = defaultdict(Trend)

    def show(self, interval_s: float, *, again: bool) -> int:
        """Shows them once, or until they have ended. Returns the exit status."""
        before = {guest.id: guest for guest in self._look()}
        if not before:
            return self._refuse()
        unread = [guest for guest in before.values() if guest.why]
        if unread:
            say.error(f"stats: process {self._pid} cannot be read: {unread[0].why}")
            say.hint(f"sudo tender stats {self._pid}" if "user" in unread[0].why else "")
            return STATUS_FAILED
        while True:
            time.sleep(interval_s)
            guests = self._look()
            if not guests:
                if not again:
                    return self._refuse()
                say.notice(f"stats: process {self._pid}: its guest has ended")
                return 0
            heaps = self._heaps()
            for guest in guests:
                rates = guest.since(before[guest.id]) if guest.id in before else None
                self._say(guest, rates, heaps.get(guest.id.rpartition("-")[2]))
            say.flush()
            before = {guest.id: guest for guest in guests}
            if not again:
                return 0

    def _look(self) -> list[RunningGuest]:
        """Returns the guests that the process executes; if it executes none, those that it holds."""
        own = self._watch.look([self._pid])
        guests = own or [guest for guest in self._watch.look() if guest.holder == self._pid]
        return guests

    def _heaps(self) -> dict[str, HeapUse]:
        """Returns the use of the heaps that are known, by the place of the guest's state, which ends its id."""
        found = {}
        try:
            for guest in guests_of(self._pid):
                heap = heap_of(guest)
                if heap:
                    found[f"{guest.shared_hva:x}"] = heap
        except DebugError:
            pass  # it has just ended
        return found

    def _refuse(self) -> int:
        """Says why there is no guest, as `tender debug` does."""
        try:
            guests_of(self._pid)
            say.error(f"stats: process {self._pid}: its guest has ended")
        except DebugError as error:
            say.error(f"stats: {error.message}")
            say.hint(
                "`tender ps` lists the guests here"
                if error.code != "debug-denied"
                else error.hint.replace("tender debug", "tender stats")
            )
        return STATUS_FAILED

    def _say(self, guest: RunningGuest, rates: GuestRates | None, heap: HeapUse | None) -> None:
        """The heap is what a leak fills. Where it is not known, touched memory stands for it."""
        used, limit = guest.touched_bytes, guest.mem_bytes
        if heap and heap.used_bytes is not None:
            used, limit = heap.used_bytes, heap.total_bytes
        trend = self._trends[guest.id]
        trend.add(guest.looked_ns / 1e9, used)
        growth = trend.growth(limit)
        if self._as_json:
            say.out(report.to_json(json_of(guest, rates, growth, heap)))
        else:
            say.out(text_of(guest, rates, growth, heap))


def json_of(
    guest: RunningGuest, rates: GuestRates | None, growth: Growth | None, heap: HeapUse | None
) -> dict[str, object]:
    """Returns the object of --json: docs/schemas/stats.schema.json."""
    return {
        "schema": SCHEMA,
        "guest": guest.to_dict(),
        "heap": heap and heap.to_dict(),
        "rates": rates and rates.to_dict(),
        "growth": growth and growth.to_dict(),
    }


def text_of(
    guest: RunningGuest, rates: GuestRates | None, growth: Growth | None, heap: HeapUse | None
) -> str:
    """Returns lines for a person."""
    now = f"{rates.cpu_percent:.1f} % now, " if rates else ""
    lines = [
        f"{printable(guest.name) or 'guest'} in process {guest.pid} ({guest.backend}): {guest.state},"
        f" up {columns.duration(guest.uptime_s)}",
        f"cpu        {now}{guest.cpu_s:.2f} s in all: guest {guest.guest_cpu_s:.2f} s,"
        f" monitor {guest.monitor_cpu_s:.2f} s",
        f"memory     {memory(guest)} touched; {columns.size(guest.resident_bytes)} in the whole process",
    ]
    if heap:
        used = heap.used_bytes if heap.used_bytes is not None else heap.taken_bytes
        shown = "not known" if used is None else f"{columns.size(used)} used"
        lines.append(f"heap       {shown} of {columns.size(heap.total_bytes)} ({heap.kind})")
    if growth:
        lines.append(f"growth     {growth_text(growth)}")
    counters = guest.counters
    if counters is None:
        return "\n".join(lines)
    per_s = rates.counters if rates else {}
    lines.append(f"exits      {_count(counters.exits, per_s.get('exits'))}")
    of_calls = rates.hypercalls if rates else {}
    calls = [f"{name} {_count(n, of_calls.get(name))}" for name, n in counters.hypercalls.items() if n]
    lines.append(f"hypercalls {', '.join(calls) or 'none'}")
    if guest.backend == "sandbox":
        lines.append(
            f"sandbox    {counters.trapped_hypercalls} hypercalls by a signal, {counters.emulated} instructions"
            f" emulated, {counters.guest_faults} exceptions delivered"
        )
    lines.append(
        f"console    {_bytes(counters.console_bytes, per_s.get('console_bytes'))}, {counters.console_lost_bytes} lost"
    )
    return "\n".join([*lines, *_devices(guest, per_s)])


def _devices(guest: RunningGuest, per_s: dict[str, float]) -> list[str]:
    lines: list[str] = []
    counted = guest.counters
    assert counted is not None
    for name, kind in _named(guest):
        if kind == "net":
            row = [
                f"{way} {_count(getattr(counted, f'net_{at}_packets'), per_s.get(f'net_{at}_packets'))} frames,"
                f" {_bytes(getattr(counted, f'net_{at}_bytes'), per_s.get(f'net_{at}_bytes'))}"
                for way, at in (("in", "rx"), ("out", "tx"))
            ]
            lost = counted.net_tx_drops + counted.net_rx_drops
            lines.append(
                f"net        {name}: {'; '.join(row)}; {lost} dropped, {counted.net_rx_errors} errors"
            )
        elif kind == "block":
            row = [
                f"{_count(getattr(counted, f'block_{at}s'), per_s.get(f'block_{at}s'))} {at}s,"
                f" {_bytes(getattr(counted, f'block_{at}_bytes'), per_s.get(f'block_{at}_bytes'))}"
                for at in ("read", "write")
            ]
            lines.append(
                f"block      {name}: {'; '.join(row)}; {counted.block_flushes} flushes, {counted.block_errors} errors"
            )
    return lines


def _named(guest: RunningGuest) -> list[tuple[str, str]]:
    """The counters of a kind belong to all devices of it together."""
    kinds: dict[str, list[str]] = {}
    for name, kind in guest.devices.items():
        kinds.setdefault(kind, []).append(printable(name))
    return [(" + ".join(names), kind) for kind, names in kinds.items()]


def _count(number: int, per_s: float | None) -> str:
    return f"{number}" if not per_s else f"{number} ({columns.rate(per_s)}/s)"


def _bytes(number: int, per_s: float | None) -> str:
    return columns.size(number) if not per_s else f"{columns.size(number)} ({columns.size(per_s)}/s)"


def growth_text(growth: Growth) -> str:
    """Returns a growth in words: how fast, and when memory is full, each with its interval."""
    hour = 3600
    return (
        f"+{columns.size(growth.bytes_per_s * hour)}/h ({columns.size(growth.least * hour)} to"
        f" {columns.size(growth.most * hour)}), full in {columns.duration(growth.full_in_s)}"
        f" ({columns.duration(growth.full_in_least_s)} to {columns.duration(growth.full_in_most_s)})"
    )
