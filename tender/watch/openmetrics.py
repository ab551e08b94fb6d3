"""Guests as metrics: OpenMetrics text, and Prometheus's older text for readers that know no other.

The two differ in the names of counters and in the last line. Names of guests, paths and devices are the word of their
processes: they are shortened, and escaped as the format demands.

Source: the OpenMetrics specification 1.0.0; Prometheus, "Exposition formats", text format 0.0.4.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tender._version import __version__
from tender.printable import printable, unicode_text
from tender.result import Counters
from tender.watch.running import RunningGuest, RunState
from tender.watch.trend import Growth

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
CLASSIC = "text/plain; version=0.0.4; charset=utf-8"
_LABEL_MAX = 256
_ALL_DEVICES = "all"

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Family:
    """A metric family.

    Attributes:
        name: Its name, without the suffix of its samples.
        kind: "gauge", "counter" or "info".
        text: What it means, for HELP.
        unit: Its unit, which is the end of its name, or nothing.
        samples: Labels and values.
    """

    name: str
    kind: str
    text: str
    unit: str = ""
    samples: list[tuple[Labels, float]] = field(default_factory=list)


def text_of(families: Iterable[Family], *, classic: bool = False) -> str:
    """Returns the families as text. One without samples is left out."""
    lines: list[str] = []
    for it in families:
        if not it.samples:
            continue
        suffix = {"counter": "_total", "info": "_info"}.get(it.kind, "")
        name, kind = (
            (it.name + suffix, {"info": "gauge"}.get(it.kind, it.kind)) if classic else (it.name, it.kind)
        )
        lines += [f"# HELP {name} {it.text}", f"# TYPE {name} {kind}"]
        if it.unit and not classic:
            lines.append(f"# UNIT {name} {it.unit}")
        lines += [f"{it.name}{suffix}{_labels(labels)} {_number(number)}" for labels, number in it.samples]
    if not classic:
        lines.append("# EOF")
    return "".join(f"{line}\n" for line in lines)


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in labels) + "}"


def _escaped(text: str) -> str:
    """A character that no terminal should see, a newline among them, is shown as an escape."""
    text = printable(unicode_text(text))
    if len(text) > _LABEL_MAX:
        text = text[: _LABEL_MAX - 1] + "…"
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _number(number: float) -> str:
    return str(number) if isinstance(number, int) else repr(round(number, 6))


# ---- the families of guests

_Count = Callable[[Counters], int]
_COUNTED: tuple[tuple[str, str, str, str, _Count], ...] = (
    ("exits", "Exits of the guest to the monitor.", "", "", lambda c: c.exits),
    ("console_bytes", "Bytes that the guest wrote to its console.", "bytes", "", lambda c: c.console_bytes),
    (
        "console_lost_bytes",
        "Of these, the bytes that nobody has got.",
        "bytes",
        "",
        lambda c: c.console_lost_bytes,
    ),
    ("guest_faults", "Sandbox: exceptions delivered to the guest.", "", "", lambda c: c.guest_faults),
    ("emulated_instructions", "Sandbox: instructions that were emulated.", "", "", lambda c: c.emulated),
    ("network_receive_packets", "Frames that the guest read.", "", "net", lambda c: c.net_rx_packets),
    ("network_receive_bytes", "Their bytes.", "bytes", "net", lambda c: c.net_rx_bytes),
    (
        "network_receive_drop",
        "Frames for the guest that were dropped.",
        "",
        "net",
        lambda c: c.net_rx_drops,
    ),
    ("network_receive_errors", "Reads of an interface that failed.", "", "net", lambda c: c.net_rx_errors),
    ("network_transmit_packets", "Frames that the guest sent.", "", "net", lambda c: c.net_tx_packets),
    ("network_transmit_bytes", "Their bytes.", "bytes", "net", lambda c: c.net_tx_bytes),
    (
        "network_transmit_drop",
        "Frames of the guest that the interface did not take.",
        "",
        "net",
        lambda c: c.net_tx_drops,
    ),
    ("block_reads", "Reads of disks.", "", "block", lambda c: c.block_reads),
    ("block_read_bytes", "Their bytes.", "bytes", "block", lambda c: c.block_read_bytes),
    ("block_writes", "Writes of disks.", "", "block", lambda c: c.block_writes),
    ("block_written_bytes", "Their bytes.", "bytes", "block", lambda c: c.block_write_bytes),
    ("block_flushes", "Flushes of disks.", "", "block", lambda c: c.block_flushes),
    (
        "block_errors",
        "Reads, writes and flushes that the host refused.",
        "",
        "block",
        lambda c: c.block_errors,
    ),
)
"""Counters: name, text, unit, the kind of device that it counts for, and where the number is."""


@dataclass(frozen=True)
class Look:
    """What one look has found.

    Attributes:
        guests: The guests.
        growths: How their memory grows, by their id, where that is sure.
        seconds: How long the look took.
        number: How many looks there were.
    """

    guests: Sequence[RunningGuest]
    growths: dict[str, Growth]
    seconds: float
    number: int


def families_of(look: Look) -> list[Family]:
    """Returns all that is told about a host."""
    vm = {it.name: it for it in _of_guests()}
    counted = {
        name: Family(f"tender_vm_{name}", "counter", text, unit) for name, text, unit, _, _ in _COUNTED
    }
    for guest in look.guests:
        own: Labels = (("id", guest.id), ("vm", guest.name))
        _add_guest(vm, guest, own, look.growths.get(guest.id))
        if guest.counters is None:
            continue
        for call, count in guest.counters.hypercalls.items():
            vm["tender_vm_hypercalls"].samples.append(((*own, ("call", call)), count))
        for name, _, _, kind, count_of in _COUNTED:
            device = _device(guest, kind)
            if device is not None:
                labels = (*own, ("device", device)) if kind else own
                counted[name].samples.append((labels, count_of(guest.counters)))
    return [*vm.values(), *counted.values(), *_of_exporter(look)]


def _of_guests() -> tuple[Family, ...]:
    return (
        Family("tender_vm", "info", "What a guest is. Other metrics have the labels id and vm."),
        Family("tender_vm_state", "gauge", "1 for the state that the guest is in, 0 for all others."),
        Family("tender_vm_start_time_seconds", "gauge", "When the guest began, in Unix time.", "seconds"),
        Family(
            "tender_vm_cpu_seconds", "counter", "Processor time of the guest and of its monitor.", "seconds"
        ),
        Family(
            "tender_vm_silent_seconds", "gauge", "Processor time without a hypercall until now.", "seconds"
        ),
        Family("tender_vm_memory_limit_bytes", "gauge", "The size of guest memory.", "bytes"),
        Family("tender_vm_memory_touched_bytes", "gauge", "What the guest has touched of it.", "bytes"),
        Family("tender_vm_memory_resident_bytes", "gauge", "The memory of its whole process.", "bytes"),
        Family(
            "tender_vm_memory_exhaustion_seconds",
            "gauge",
            "Seconds until all memory is touched, if that is sure.",
            "seconds",
        ),
        Family("tender_vm_hypercalls", "counter", "Hypercalls by name."),
    )


def _add_guest(vm: dict[str, Family], guest: RunningGuest, own: Labels, growth: Growth | None) -> None:
    def put(name: str, number: float, *labels: tuple[str, str]) -> None:
        vm[f"tender_vm{name}"].samples.append(((*own, *labels), number))

    about = {
        "pid": str(guest.pid),
        "image": guest.image,
        "backend": guest.backend,
        "build_id": guest.build_id,
        "user": guest.user,
        "cgroup": guest.cgroup,
        "container": guest.container,
    }
    put("", 1, *about.items())
    for state in RunState:
        put("_state", int(guest.state == state), ("state", str(state)))
    put("_start_time_seconds", _start(guest))
    put("_cpu_seconds", guest.guest_cpu_s, ("mode", "guest"))
    put("_cpu_seconds", guest.monitor_cpu_s, ("mode", "monitor"))
    put("_memory_resident_bytes", guest.resident_bytes)
    if guest.counters is None:
        return
    put("_silent_seconds", guest.silent_s)
    put("_memory_limit_bytes", guest.mem_bytes)
    put("_memory_touched_bytes", guest.touched_bytes)
    if growth:
        put("_memory_exhaustion_seconds", growth.full_in_s)


def _start(guest: RunningGuest) -> float:
    """Tenths of a second: the difference between two clocks is known no better, and the number must not change."""
    unix_s = time.time() - time.monotonic()
    return round(unix_s + guest.looked_ns / 1e9 - guest.uptime_s, 1)


def _device(guest: RunningGuest, kind: str) -> str | None:
    """Returns the device that a counter of this kind counts for; None: the guest has none."""
    if not kind:
        return ""
    names = [name for name, its in guest.devices.items() if its == kind]
    return names[0] if len(names) == 1 else _ALL_DEVICES if names else None


def _of_exporter(look: Look) -> tuple[Family, ...]:
    return (
        Family("tender_exporter", "info", "This exporter.", samples=[((("version", __version__),), 1)]),
        Family(
            "tender_exporter_guests", "gauge", "Guests that were found.", samples=[((), len(look.guests))]
        ),
        Family(
            "tender_exporter_unreadable_guests",
            "gauge",
            "Of these, guests that the kernel does not let the exporter read.",
            samples=[((), sum(bool(guest.why) for guest in look.guests))],
        ),
        Family(
            "tender_exporter_look_seconds",
            "gauge",
            "How long the last look took.",
            "seconds",
            samples=[((), look.seconds)],
        ),
        Family("tender_exporter_looks", "counter", "Looks so far.", samples=[((), look.number)]),
    )
