"""Hints for errors: the command line that would work, and what a refused file really is."""

import os

from tender.cli.aside import asked
from tender.cli.main import COMMANDS
from tender.cli.nearest import nearest
from tender.cli.option_table import OPTIONS
from tender.cli.options import RunOptions
from tender.native import says
from tender.printable import printable, quoted
from tender.result import GuestFault


def missing_hint(
    missing: tuple[tuple[str, str], ...], options: RunOptions, *, taps: list[str] | None = None
) -> str:
    """Returns the command as typed with the missing devices added, and how to make what it names."""
    forms = {option.name[2:]: option.lines[0][0] for option in OPTIONS if option.device}
    unknown = [name for name, kind in missing if kind not in forms]
    if unknown:
        names = ", ".join(map(printable, unknown))
        return f"no device can be attached as {names}: hvt has no device of its type"
    taps = list(tap_interfaces() if taps is None else taps)
    words, advice, made = list(options.words), [], 0
    for name, kind in missing:
        if kind == "net":
            tap = taps.pop(0) if taps else ""
            if not tap:
                tap, made = f"tap{made}", made + 1
                advice.append(f"sudo ip tuntap add {tap} mode tap user $USER && sudo ip link set {tap} up")
            words.append(f"--net:{name}={tap}")
        elif kind == "block":
            path = f"{name}.img"
            if not os.path.exists(path):
                advice.append(f"truncate -s 16M {quoted(path)}")
            words.append(f"--block:{name}={path}")
        else:
            words.append(f"--{kind}{forms[kind].replace('NAME', name)}")
    image = [] if options.example else [options.image]  # --example names it
    operands = [*image, *options.args]
    separator = ["--"] if operands and operands[0].startswith("-") else []
    command = ["tender", *words, *separator, *operands]
    return "\n".join([" ".join(quoted(word) for word in command), *(f"first: {line}" for line in advice)])


def tap_interfaces(sys_class_net: str = "/sys/class/net") -> list[str]:
    """Returns the names of the TAP interfaces of this network namespace."""
    try:
        names = sorted(os.listdir(sys_class_net))
    except OSError:
        return []
    return [name for name in names if _is_tap(f"{sys_class_net}/{name}/tun_flags")]


def _is_tap(path: str) -> bool:
    try:
        with open(path) as file:
            return int(file.read(), 16) & 0x000F == 0x0002  # IFF_TAP of <linux/if_tun.h>
    except (OSError, ValueError):
        return False


def image_hint(path: str, before: tuple[str, ...] = ()) -> str:
    """Returns what a command line may mean by a name that is not a file's; empty if that does not help.

    `before` is the words before it. What a file is that is not a unikernel, the error of Image.open says.
    """
    return asked(lambda: _image_hint(path, before))


def _image_hint(path: str, before: tuple[str, ...]) -> str:
    if not os.path.exists(path):
        if before[-1:] == ("--json",) and not os.path.lexists(path):
            return f"--json takes its file after =: --json={quoted(path)}"
        if path == "run":  # `tender run run`
            return "the image's name is missing: tender run IMAGE"
        if path in COMMANDS:
            return f"for the subcommand, write it first: tender {path} ..."
        near = nearest(path, COMMANDS) if "/" not in path else ""
        return f"did you mean the command {near}?" if near else ""
    if os.path.isdir(path):
        return "a directory; give the unikernel's ELF file"
    return ""


def fault_hint(fault: GuestFault) -> str:
    """Returns where a guest stood: instruction bytes and registers, in a few lines."""
    lines = [says("fault_place", fault.rip, fault.instruction or "none", fault.rip)]
    values = [f"{name} {value:#x}" for name, value in fault.registers.items()]
    lines += ["  ".join(values[i : i + 6]) for i in range(0, len(values), 6)]
    return "\n".join(lines)
