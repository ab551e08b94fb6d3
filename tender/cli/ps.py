"""`tender ps`: lists the guests of this host. Nothing is registered anywhere: they are found and read from outside."""

import time

from tender.cli import columns, report, say
from tender.cli.option_table import listed
from tender.cli.words import Words
from tender.printable import printable
from tender.watch.running import GuestRates, RunningGuest, Watch

SCHEMA = "tender.ps/1"
HEAD = ("PID", "BACKEND", "STATE", "UPTIME", "CPU %", "MEMORY", "EXITS/S", "NAME")
RIGHT = (0, 3, 4, 5, 6)

USAGE = f"""\
usage: tender ps [--json] [--interval=SECONDS]

List the guests that run on this host, in containers too, as far as the kernel lets you look. CPU and exits
are averages since each guest's start, or of the interval. Status 0, also if no guest runs.

{listed("ps")}"""


def main(argv: list[str]) -> int:
    """Prints the list, and returns the exit status."""
    words = Words("ps", argv, flags=("--json",), valued=("--interval",), usage=USAGE)
    interval_s = words.seconds("--interval", 0, least=0.05, most=3600)
    status = words.answered()
    if status is not None:
        return status
    watch = Watch()
    before = {guest.id: guest for guest in watch.look()} if interval_s else {}
    if interval_s:
        time.sleep(interval_s)
    pairs = [(guest, guest.since(before[guest.id]) if guest.id in before else None) for guest in watch.look()]
    if "--json" in words.flags:
        say.out(report.to_json(json_of(pairs)))
        return 0
    say.out("\n".join(columns.table([HEAD, *(row(guest, rates) for guest, rates in pairs)], RIGHT)))
    say.flush()  # it stands before what stderr says
    unread = [guest for guest, _ in pairs if guest.why]
    for guest in unread:
        say.error(f"ps: process {guest.pid} cannot be read: {guest.why}")
    if unread and any("belongs to the user" in guest.why or "root" in guest.why for guest in unread):
        say.hint("sudo tender ps")
    return 0


def json_of(pairs: list[tuple[RunningGuest, GuestRates | None]]) -> dict[str, object]:
    """Returns the object of --json: docs/schemas/ps.schema.json."""
    return {
        "schema": SCHEMA,
        "guests": [guest.to_dict() | {"rates": rates and rates.to_dict()} for guest, rates in pairs],
    }


def row(guest: RunningGuest, rates: GuestRates | None) -> tuple[str, ...]:
    """Returns the cells of a guest."""
    cpu = rates.cpu_percent if rates else 100 * guest.cpu_s / guest.uptime_s if guest.uptime_s else 0.0
    exits = "-"
    if rates:
        exits = columns.rate(rates.counters["exits"])
    elif guest.counters and guest.uptime_s:
        exits = columns.rate(guest.counters.exits / guest.uptime_s)
    return (
        str(guest.pid),
        guest.backend or "-",
        str(guest.state),
        columns.duration(guest.uptime_s),
        f"{cpu:.1f}",
        memory(guest),
        exits,
        name(guest),
    )


def memory(guest: RunningGuest) -> str:
    """Returns how much of its memory a guest has touched, of how much."""
    if not guest.mem_bytes:
        return f"{columns.size(guest.resident_bytes)} in all"
    return f"{columns.size(guest.touched_bytes)} of {columns.size(guest.mem_bytes).replace('.0 ', ' ')}"


def name(guest: RunningGuest) -> str:
    """Returns the name of a guest, and its container."""
    shown = printable(guest.name) or "-"
    return f"{shown} ({printable(guest.container[:12])})" if guest.container else shown
