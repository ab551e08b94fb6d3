"""A crash report as text for a terminal. No byte of the guest's or of a file's reaches the terminal as it is."""

import os
from collections.abc import Callable
from typing import Any

from tender.printable import printable

_BOLD, _RED, _DIM, _OFF = "\x1b[1m", "\x1b[31m", "\x1b[2m", "\x1b[0m"


def text_of(report: dict[str, Any], *, color: bool = False) -> str:
    """Returns the report as lines, with a newline at the end."""

    def styled(text: str, style: str) -> str:
        return f"{style}{text}{_OFF}" if color else text

    lines = [styled(_headline(report), _BOLD)]
    fault = report["fault"]
    if fault:
        lines.append(f"  at {fault['rip']:#x}" + _fault_words(fault))
    lines += [f"  in {it}" for it in [own_place(report)] if it]
    lines += ["", styled("stack:", _BOLD), *_stack(report["stack"], styled)]
    source = report["source"]
    if source:
        lines += ["", styled(f"source of #{source['frame']}:", _BOLD)]
        lines += [
            styled(text, _RED) if is_here else styled(text, _DIM) for text, is_here in source_lines(source)
        ]
    if report["vcpu_stack"]:
        lines += [
            "",
            styled("the guest's own handler of this fault, in which the vCPU stands now:", _BOLD),
            *_stack(report["vcpu_stack"], styled),
            "  (it was entered from #0 of the stack above)",
        ]
    lines += ["", styled("registers:", _BOLD), *_registers(report["registers"])]
    if report["code"]:
        lines.append(f"  code at rip: {_safe(_spaced(report['code']))}")
    if report["hypercalls"]:
        lines += ["", styled("last hypercalls, oldest first:", _BOLD)]
        lines += ["  " + hypercall_line(it) for it in report["hypercalls"]]
    lines += ["", *(f"memory: {it}" for it in [memory_line(report["memory"])])]
    if counted := counters_line(report["counters"]):
        lines.append(f"counted: {counted}")
    lines += [f"note: {_safe(note)}" for note in report["notes"]]
    lines += ["", styled("next:", _BOLD), *(f"  {_safe(it)}" for it in report["next"])]
    return "\n".join(lines) + "\n"


def _safe(text: object) -> str:
    return printable(str(text))


def _headline(report: dict[str, Any]) -> str:
    image = os.path.basename(str(report["image"])) or "the guest"
    arguments = f" {report['arguments']}" if report["arguments"] else ""
    said = report["message"] or ("the guest is alive" if report["reason"] == "live" else report["reason"])
    status = f", status {report['status']}" if report["status"] is not None else ""
    where = {"guest": "", "hypercall": ", in a hypercall", "ended": ""}.get(str(report["where"]), "")
    return _safe(f"{image}{arguments}: {said}{status}{where} ({report['backend'] or 'unknown'} backend)")


def _fault_words(fault: dict[str, Any]) -> str:
    if fault["address"] is None:
        return f": {_safe(fault['exception'])}" if fault["exception"] else ""
    words = f" ({_safe(fault['access'])})" if fault.get("access") else ""
    return f", address {fault['address']:#x}{words}: {_safe(fault['what'])}"


def own_place(report: dict[str, Any]) -> str:
    """Returns where the user's own code stands, if that is not the innermost frame: a function and a line."""
    number = report["own_frame"]
    if not number:
        return ""
    frame = report["stack"][number]
    place = f" at {shown_path(frame['file'])}:{frame['line']}" if frame["file"] else ""
    return _safe(f"{frame['function']}{place} (#{number})")


def _stack(frames: list[dict[str, Any]], styled: Callable[[str, str], str]) -> list[str]:
    lines = []
    for number, frame in enumerate(frames):
        line = "  " + frame_line(frame, number)
        lines.append(styled(line, _DIM) if frame["library"] else line)
    return lines or ["  not known"]


def frame_line(frame: dict[str, Any], number: int) -> str:
    """Returns a frame as a line: number (as gdb counts), address, function, place, and whose code it is.

    A frame that is not certain has a question mark.
    """
    name = f"{frame['function']}+{frame['offset']:#x}" if frame["function"] else "?"
    if frame["inlined"]:
        name = f"{frame['function'] or '?'} (inlined)"
    place = f" at {shown_path(frame['file'])}:{frame['line']}" if frame["file"] else ""
    whose = f" [{frame['library']}]" if frame["library"] else ""
    sure = "" if frame["certain"] else "  ? found by searching the stack"
    return f"#{number:<2} {frame['pc']:#010x} {_safe(name)}{_safe(place)}{_safe(whose)}{sure}"


def shown_path(path: str) -> str:
    """Returns the path relative to the working directory, if it lies below it."""
    try:
        here = os.getcwd()
    except OSError:
        return path
    return path[len(here) + 1 :] if here != "/" and path.startswith(here + "/") else path


def source_lines(source: dict[str, Any]) -> list[tuple[str, bool]]:
    """Returns the lines of the source, each with whether it is the one."""
    found = []
    for number, text in source["lines"]:
        is_here = number == source["line"]
        found.append((f"  {'>' if is_here else ' '}{number:>5}  {_safe(text)}".rstrip(), is_here))
    return found


def _registers(registers: dict[str, int]) -> list[str]:
    words = [f"{name:>7} {value:016x}" for name, value in registers.items() if isinstance(value, int)]
    return ["  " + " ".join(words[at : at + 4]) for at in range(0, len(words), 4)]


def _spaced(code: str) -> str:
    return " ".join(code[at : at + 2] for at in range(0, min(len(code), 64), 2))


def hypercall_line(call: dict[str, Any]) -> str:
    """Returns a hypercall as a line: its name first, then what is known of it."""
    name = call.get("name", call.get("call", "hypercall"))
    begin, end = call.get("begin_ns"), call.get("end_ns")
    if isinstance(begin, int) and isinstance(end, int):
        call = {key: value for key, value in call.items() if key not in ("begin_ns", "end_ns")}
        call["took"] = f"{(end - begin) / 1000:.1f} us"
    rest = ", ".join(
        f"{key} {value}"
        for key, value in call.items()
        if key not in ("name", "call") and value not in (None, "")
    )
    return _safe(f"{name}: {rest}" if rest else name)[:200]


def memory_line(memory: dict[str, Any]) -> str:
    """Returns how much of the memory was touched, and the heap's use."""
    text = f"{_size(memory['touched_bytes'])} touched of {_size(memory['total_bytes'])}"
    heap = memory["heap"]
    if heap:
        if heap.get("damaged_at") is not None:
            return f"{text}; the heap is damaged at {heap['damaged_at']:#x}"
        used, taken, total = heap["used_bytes"], heap.get("taken_bytes"), _size(heap["total_bytes"])
        text += f"; heap {_size(used)} used of {total}" if used is not None else f"; heap of {total}"
        if taken is not None:
            text += f", {_size(taken)} taken"
    return text


def counters_line(counters: dict[str, Any]) -> str:
    """Returns the counters that matter: hypercalls, what was written and read."""
    parts = []
    for name, value in counters.items():
        if isinstance(value, int) and value and not isinstance(value, bool):
            parts.append(f"{name.replace('_', ' ')} {value}")
        elif isinstance(value, dict):
            total = sum(it for it in value.values() if isinstance(it, int))
            if total:
                parts.append(f"{name.replace('_', ' ')} {total}")
    return _safe(", ".join(parts[:10]))


def _size(count: object) -> str:
    if not isinstance(count, int):
        return "?"
    if count >= 10 << 20:
        return f"{count >> 20} MiB"
    return f"{-(-count // 1024)} KiB"
