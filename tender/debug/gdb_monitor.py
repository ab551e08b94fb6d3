"""gdb's `monitor` commands: what Tender knows of a guest and gdb has no command for."""

from collections.abc import Callable

from tender.debug.target import Target, Where
from tender.printable import printable

_HELP = """\
monitor help    this text
monitor info    what runs: image, arguments, devices
monitor where   where the guest stands: in its own code, in a hypercall, or at its end
monitor calls   the last hypercalls, if they were recorded, and how many there were
monitor mem     guest memory: its mappings and rights, and how much of it was touched
"""
_WHERE = {
    Where.GUEST: "at an instruction of its own; registers can be changed",
    Where.HYPERCALL: "in a hypercall, which Tender serves; registers can be read and not changed",
    Where.ENDED: "its run has ended; registers and memory can be read, 'continue' ends its process",
}
_LINES_MAX = 1000


def monitor(target: Target, command: str) -> str:
    """Returns what `monitor COMMAND` prints."""
    serve = _COMMANDS.get(command.strip().lower() or "help")
    if serve is None:
        return f"unknown: {printable(command[:100])}\n{_HELP}"
    return serve(target)


def _help(target: Target) -> str:
    return _HELP


def _info(target: Target) -> str:
    facts = target.facts()
    rows = [
        ("tender", facts.version),
        ("backend", facts.backend),
        ("process", str(facts.pid or target.pid)),
        ("image", printable(facts.image)),
        ("build id", printable(facts.build_id)),
        ("arguments", printable(facts.arguments)),
        ("memory", f"{facts.mem_bytes >> 20} MiB" if facts.mem_bytes else ""),
        ("state", facts.reason),
        ("", printable(facts.message)),
        *(
            ("device", printable(" ".join(str(it) for it in device.values())))
            for device in facts.devices[:_LINES_MAX]
        ),
    ]
    return "".join(f"{name:<10} {value}\n" for name, value in rows if value)


def _where(target: Target) -> str:
    where = target.where()
    return f"{where}: {_WHERE[where]}\nrip {target.registers().rip:#x}\n"


def _calls(target: Target) -> str:
    facts = target.facts()
    lines = [_one_line(call) for call in facts.hypercalls[-_LINES_MAX:]]
    counts = [f"{printable(str(name))} {count}" for name, count in facts.counters.items() if count]
    if not lines:
        lines = ["no hypercalls were recorded"]
    return "\n".join([*lines, *(["counters: " + ", ".join(counts)] if counts else [])]) + "\n"


def _one_line(call: dict[str, object]) -> str:
    return printable(" ".join(f"{name}={value}" for name, value in call.items()))


def _mem(target: Target) -> str:
    lines = [
        f"{it.start:#12x} {it.end:#12x} {''.join(w if it.flags & bit else '-' for w, bit in (('r', 4), ('w', 2), ('x', 1)))}"
        for it in target.mappings()[:_LINES_MAX]
    ]
    touched = sum(end - start for start, end in target.touched())
    return "\n".join([*lines, f"touched: {touched >> 10} KiB"]) + "\n"


_COMMANDS: dict[str, Callable[[Target], str]] = {
    "help": _help,
    "info": _info,
    "where": _where,
    "calls": _calls,
    "mem": _mem,
}
