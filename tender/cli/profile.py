"""`tender profile`: shows where a running guest spends its time, by samples taken from outside.

Status 0 if the guest was sampled, also if it ended or ^C came before the time; 1 if not.
"""

import os
import pickle
from collections import Counter

from tender.cli import columns, say
from tender.cli.looking import STATUS_FAILED, failed, only_guest
from tender.cli.main import last_resort
from tender.cli.option_table import listed
from tender.cli.words import Words
from tender.debug.attach import attach, prepare
from tender.debug.find import Guest
from tender.debug.guard import Journal, guarded
from tender.debug.image_check import first_difference
from tender.debug.symbols import Symbols
from tender.debug.target import Target
from tender.errors import ConfigError, ImageError, TenderError
from tender.printable import printable
from tender.watch.profile import Place, Profile, Sampler, hold_signals
from tender.watch.profile_formats import FORMATS

SECONDS, RATE_HZ = 10.0, 99.0
_ROWS = 20

USAGE = f"""\
usage: tender profile [--seconds=N] [--rate=HZ] [--output=FILE] [--format=FORMAT] [--waits] [--image=FILE] PID

Show in which functions the guest of process PID spends its time: its stack is looked at {RATE_HZ:g} times a second
while it runs. Without --output a table of functions is printed. ^C ends it early. Nothing needs to be prepared
in the guest.

{listed("profile")}

Status 0; 1 if there is no such guest, it may not be looked into, or FILE cannot be written."""


def main(argv: list[str]) -> int:
    """Serves one command line, and returns the exit status."""
    words = Words(
        "profile",
        argv,
        flags=("--waits",),
        valued=("--seconds", "--rate", "--output", "-o", "--format", "--image"),
        usage=USAGE,
    )
    seconds = words.seconds("--seconds", SECONDS, least=0.01, most=86400)
    rate_hz = words.number("--rate", RATE_HZ, least=0.1, most=2000, unit="samples a second")
    output = words.values.get("--output", words.values.get("-o", ""))
    form = words.values.get("--format", "")
    if form and form not in FORMATS:
        words.refuse(f"--format={printable(form)}: the formats are {', '.join(FORMATS)}")
    elif output and not form:
        form = next((name for name, (ending, _) in FORMATS.items() if output.endswith(ending)), "")
        if not form:
            words.refuse(f"{printable(output)}: name the format: --format={'|'.join(FORMATS)}")
    if words.rest and not (words.rest[0].isascii() and words.rest[0].isdigit() and len(words.rest[0]) < 11):
        words.refuse(f"`{printable(words.rest[0])}' is not the number of a process")
    status = words.answered(least=1, most=1, needed="one PID is needed")
    if status is not None:
        return status
    try:
        guest = only_guest(int(words.rest[0]))
        made = _sampled(
            argv, guest, words.values.get("--image", ""), seconds, rate_hz, waits="--waits" in words.flags
        )
        if made is None:
            return STATUS_FAILED
        if output:
            _write(output, FORMATS[form][1](made))
    except TenderError as error:
        return failed("profile", argv, error)
    _show(made, output)
    return 0


def _sampled(
    argv: list[str], guest: Guest, image: str, seconds: float, rate_hz: float, *, waits: bool
) -> Profile | None:
    """Returns the profile, which a child of a guard makes; None: it has said why there is none."""
    symbols = _symbols(guest, image)
    prepare(guest)
    answer = os.memfd_create("profile", os.MFD_CLOEXEC)
    with os.fdopen(answer, "w+b") as file:

        def session(journal: Journal) -> int:
            hold_signals()
            try:
                target = attach(guest, journal)
                try:
                    if symbols is not None and image:
                        _check_image(image, symbols, target)
                    made = Sampler(guest, target, symbols).run(seconds, rate_hz, waits=waits)
                finally:
                    target.detach()
                    journal.guest = None
                pickle.dump(made, file)
                file.flush()
            except TenderError as error:
                return failed("profile", argv, error)
            except Exception as error:
                return last_resort(error)
            return 0

        status = guarded(session)
        if status:
            if status > 128:
                say.error(f"profile: the sampler was killed by signal {status - 128}; the guest goes on")
            return None
        file.seek(0)
        made: Profile = pickle.load(file)
        return made


def _symbols(guest: Guest, image: str) -> Symbols | None:
    """Returns the symbols of the file that the user gave, or of the one that the guest was started from, if it is there."""
    path = image or guest.image
    if not path:
        say.notice("the image of this guest is not found: addresses have no names")
        say.hint("name it: --image FILE")
        return None
    try:
        return Symbols.open(path)
    except ImageError as error:
        if image:
            raise
        say.notice(f"{error.message}: addresses have no names")
        say.hint("name the image: --image FILE")
        return None


def _check_image(image: str, symbols: Symbols, target: Target) -> None:
    at = first_difference(symbols.elf, target)
    if at is not None:
        raise ImageError(f"it is not the image of this guest: the code at {at:#x} differs", file=image)


def _write(path: str, data: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(data)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no name of a file"
        raise ConfigError(f"{printable(path)}: {why}") from None


def _show(made: Profile, output: str) -> None:
    name = printable(os.path.basename(made.image) or f"process {made.pid}")
    looks = made.samples + made.waited
    waited = f", it waited at {made.waited} more" if made.waited else ""
    say.out(
        f"{name}, process {made.pid}, {made.backend}: {made.samples} samples in {made.duration_s:.1f} s{waited}"
        + (f"; {made.missed} left out" if made.missed else "")
    )
    if made.has_ended:
        say.out(f"the guest has ended after {made.duration_s:.1f} s")
    if output:
        say.out(f"{printable(output)}: written")
    if not made.samples:
        say.flush()
        if looks:
            say.hint("the guest waits; to see where, add --waits")
        return
    if not output:
        say.out("\n".join(["", *_table(made)]))


def _table(made: Profile) -> list[str]:
    """Returns the lines of the functions in which the most samples lie."""
    alone: Counter[str] = Counter()
    within: Counter[str] = Counter()
    files: dict[str, str] = {}
    for stack, count in made.stacks.items():
        for place in stack:
            files.setdefault(place.function, _file(place))
        for name in {it.function for it in stack}:
            within[name] += count
        if stack:
            alone[stack[-1].function] += count
    rows = [("SELF", "TOTAL", "FUNCTION", "FILE")]
    ranked = sorted(within, key=lambda it: (-alone[it], -within[it], it))
    rows += [
        (
            f"{alone[it] / made.samples:.1%}",
            f"{within[it] / made.samples:.1%}",
            printable(it),
            printable(files[it]),
        )
        for it in ranked[:_ROWS]
    ]
    left = len(ranked) - _ROWS
    return [*columns.table(rows, (0, 1)), *([f"and {left} more functions"] if left > 0 else [])]


def _file(place: Place) -> str:
    return os.path.basename(place.file)
