"""The options of `tender run`: turns words into values. It opens nothing and looks nothing up.

The grammar is solo5-hvt's: options in any order, then the image, then words for the guest alone, also empty ones. `--` is
optional. Tender adds that a value may be the next word (`--mem 64M`), and that the only device of a kind needs no name
(`--net tap0`). If an option is repeated, the last one wins.

    --net:NAME=IFACE     the device NAME, whatever characters it has
    --net NAME=IFACE     NAME has letters and digits; anything else before the `=` belongs to the value
    --net IFACE          the only device of its kind

The image says which names exist: `tender.cli.attach` goes on from here.
"""

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

from tender.cli import option_table
from tender.cli.nearest import nearest
from tender.cli.option_table import ACTION, DEVICE, FLAG, REPORT, Fields, Option
from tender.config import LAYERS, check_backend, check_layers, parse_mac, parse_mem, round_mem
from tender.errors import ConfigError
from tender.printable import printable, quoted
from tender.values import Value, value

NAME_MAX = 67
Found = dict[str, Any]  # values by the field of RunOptions

OPTIONS = tuple(option.name for option in option_table.OPTIONS)
SHORT = {option.short: option.name for option in option_table.OPTIONS if option.short}
FLAGS = tuple(o.name for o in option_table.OPTIONS if o.kind in (FLAG, ACTION, REPORT))
NAMED = tuple(o.name for o in option_table.OPTIONS if o.device)
VALUED = tuple(name for name in OPTIONS if name not in FLAGS + NAMED)
BY_NAME = {option.name: option for option in option_table.OPTIONS}

# Options of other monitors and of containers.
_MEMORY = f"guest memory: write {BY_NAME['--mem'].form}"
_CPUS = "a guest has one processor; there is no option for more"
_FOREIGN = {
    **dict.fromkeys(("-m", "--memory", "--mem-size", "--ram"), _MEMORY),
    **dict.fromkeys(("-c", "--cpu", "--cpus", "--vcpus", "-smp", "--smp"), _CPUS),
}


class UsageError(ConfigError):
    """The command line is wrong. With `show_usage` the usage follows the message."""

    default_code = "usage"

    def __init__(self, message: str, *, hint: str = "", show_usage: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.show_usage = show_usage


@value
class Setting(Value):
    """One word about a device. `what` is the option without its dashes, and `option` is the word as typed."""

    what: str = field(kw_only=False)  # "net", "net-mac", "block", "block-sector-size"
    name: str = field(kw_only=False)  # empty for the only device of its kind
    value: int | str = field(kw_only=False)  # a descriptor (@FD) or sector size is an int
    read_only: bool = False
    raw: bool = False
    option: str


@value
class RunOptions(Value, Fields):
    """What a command line says: what the rows of option_table.py set, and these.

    Attributes:
        action: "run", or what an option asked for instead: "help" or "version".
        image: The path of the image; empty with `example`, whose file run.py finds.
        settings: The words about devices, in their order.
        dumpcore: The directory for a core by solo5-hvt's rules, or empty.
        json_fd: The descriptor of `json`, once it is open (outputs.py).
        words: The options as typed, for hints that repeat the command.
    """

    action: str = "run"
    image: str = ""
    args: tuple[str, ...] = ()
    mem_adjusted: bool = False
    settings: tuple[Setting, ...] = ()
    json_fd: int = -1
    dumpcore: str = ""
    words: tuple[str, ...] = ()


def parse_args(argv: list[str], *, launcher: str = "", **variables: str) -> RunOptions:
    """Returns the values of a command line.

    Args:
        argv: The words.
        launcher: The value of TENDER_LAUNCHER. It is only checked, because the native program has obeyed it.
        variables: What the environment says of fields that no option sets.

    Raises:
        UsageError: The words are wrong.
        ConfigError: The memory is above 4 GiB.
    """
    found: Found = {}
    settings: list[Setting] = []
    at = 0
    while at < len(argv) and argv[at].startswith("-"):
        word = argv[at]
        if word == "-" and argv[at - 1 : at] == ["--json"]:
            raise invalid_option(word, "", "write the value of --json after =: --json=-")
        at += 1
        if word == "--":
            break
        head, equals, value = word.partition("=")
        base, colon, name = head.partition(":")
        option = BY_NAME.get("--verbose" if base == "-vv" else SHORT.get(base, base))
        if option is None or (colon and option.name not in NAMED):
            raise _unknown(word, found.get("example", ""))
        if option.kind == ACTION and not equals:
            return RunOptions(action=option.name[2:])
        if option.kind == REPORT:
            found[option.field] = json_target(value) if equals else 2
            continue
        if option.name in FLAGS:
            if equals:
                raise invalid_option(word, "", f"{option.name} takes no value")
            found[option.field] = option.sets
            continue
        if not equals:
            if colon or at == len(argv) or argv[at].startswith("--"):
                raise UsageError(f"Missing argument to {printable(head)}", hint=f"write {_form(option)}")
            value = argv[at]
            at += 1
            word = f"{word} {value}"
        if option.name in NAMED:
            settings.append(_setting(option, name if colon else None, value, word))
        else:
            found.update(_READERS[option.kind](option, option.name, value))
    image_words = 0 if "example" in found else 1
    if image_words and (at >= len(argv) or not argv[at]):
        raise UsageError(
            "Missing KERNEL operand",
            hint="give a unikernel's ELF file, or try: tender run --example hello",
            show_usage=True,
        )
    found = {**ambient({field: text for field, text in variables.items() if field not in found}), **found}
    check_launcher(launcher)
    return RunOptions(
        **found,
        settings=tuple(settings),
        image=argv[at] if image_words else "",
        args=tuple(argv[at + image_words :]),
        words=tuple(word for word in argv[:at] if word != "--"),
    )


def ambient(variables: Mapping[str, str]) -> Found:
    """Returns the fields that environment variables set, from their values by field. Empty counts as unset.

    Raises UsageError.
    """
    found: Found = {}
    for option in option_table.OPTIONS:
        if option.variable and variables.get(option.field):
            found.update(_READERS[option.kind](option, option.variable, variables[option.field]))
    return found


def _unknown(word: str, example: str) -> UsageError:
    head = word.partition("=")[0].partition(":")[0]
    near = nearest(head, OPTIONS)
    if head in _FOREIGN:
        way_out = _FOREIGN[head]
    elif near:
        way_out = f"did you mean {near}?"
    elif example:
        way_out = f"words for the guest go after --: tender --example={example} -- {quoted(word)}"
    else:
        way_out = f"words for the guest go after the image: tender IMAGE {quoted(word)}"
    return invalid_option(word, "", way_out, show_usage=True)


def invalid_option(word: str, reason: str = "", way_out: str = "", *, show_usage: bool = False) -> UsageError:
    """Returns the error of an option as typed, in solo5-hvt's words; `reason` is a line before them."""
    message = f"Invalid option: `{printable(word)}'"
    return UsageError(f"{reason}\n{message}" if reason else message, hint=way_out, show_usage=show_usage)


def check_launcher(value: str) -> None:
    """Raises UsageError for an unknown value of TENDER_LAUNCHER. Empty counts as unset."""
    if value not in ("", "native", "python"):
        raise UsageError(
            "Malformed value of TENDER_LAUNCHER",
            hint=f"got '{printable(value)}': write TENDER_LAUNCHER=python or TENDER_LAUNCHER=native, or unset it",
        )


# ---- values by their kind; `source` is the name of the option or of the variable


def _refusal(source: str, hint: str) -> UsageError:
    return UsageError(f"Malformed {'argument to' if source[0] == '-' else 'value of'} {source}", hint=hint)


def _form(option: Option) -> str:
    return option.form.format(layers=", ".join(LAYERS))


def _memory(option: Option, source: str, text: str) -> Found:
    try:
        asked = parse_mem(text)
    except ConfigError as error:
        raise _refusal(source, f"got '{printable(text)}': {error.command_hint}") from None
    mem_bytes = round_mem(asked)
    return {option.field: mem_bytes, "mem_adjusted": mem_bytes != asked}


def _backend(option: Option, source: str, text: str) -> Found:
    try:
        return {option.field: check_backend(text)}
    except ConfigError:
        form = _form(option).replace(option.name, source) + ", or unset it" * (source == option.variable)
        raise _refusal(source, f"got '{printable(text)}': write {form}") from None


def _layers(option: Option, source: str, text: str) -> Found:
    names = text.split(",")
    for name in names:
        if name not in LAYERS:
            raise _refusal(
                source, f"got '{printable(name)}': write {_form(option).replace(option.name, source)}"
            )
    return {option.field: check_layers(names)}


def _wait(option: Option, source: str, text: str) -> Found:
    return {option.field: 0.0} if text == "0" else _seconds(option, source, text)


def _seconds(option: Option, source: str, text: str) -> Found:
    scale, number = (0.001, text[:-2]) if text.endswith("ms") else (1.0, text.removesuffix("s"))
    try:
        seconds = float(number) * scale
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise _refusal(source, f"got '{printable(text)}': write seconds: 5, 0.25, 250ms")
    return {option.field: seconds}


def _output(option: Option, source: str, text: str) -> Found:
    return {option.field: None if text == "none" else _file_or_fd(source, text)}


def _example(option: Option, source: str, text: str) -> Found:
    if text not in option.choices:
        near = nearest(text, option.choices)
        raise _refusal(
            source,
            f"got '{printable(text)}': " + (f"did you mean {near}?" if near else f"write {_form(option)}"),
        )
    return {option.field: text}


def _directory(option: Option, source: str, text: str) -> Found:
    if not text:
        raise _refusal(source, "the directory has no name")
    return {option.field: text}


def _count(option: Option, source: str, text: str) -> Found:
    if not _is_number(text) or not int(text):
        raise _refusal(source, f"got '{printable(text)}': write {_form(option)}")
    return {option.field: int(text)}


_READERS: dict[str, Callable[[Option, str, str], Found]] = {
    option_table.MEMORY: _memory,
    option_table.BACKEND: _backend,
    option_table.LAYERS: _layers,
    option_table.SECONDS: _seconds,
    option_table.WAIT: _wait,
    option_table.OUTPUT: _output,
    option_table.EXAMPLE: _example,
    option_table.DIRECTORY: _directory,
    option_table.COUNT: _count,
}


def json_target(value: str) -> int | str:
    """Returns the descriptor or the file that `--json=VALUE` names. Raises UsageError."""
    return _file_or_fd("--json", value)


def _file_or_fd(option: str, text: str) -> int | str:
    if text.startswith("fd:"):
        if not _is_number(text[3:]):
            hint = (
                f"got '{printable(text)}': write fd:N, N an inherited descriptor; for a file write ./fd:..."
            )
            raise UsageError(f"Malformed argument to {option}", hint=hint)
        return int(text[3:])
    if not text:
        raise UsageError(f"Malformed argument to {option}", hint="the file has no name")
    return 1 if text == "-" else text


def _setting(option: Option, name: str | None, value: str, word: str) -> Setting:
    form = f"write {_form(option)}"
    if name is None:
        name, value = _split_name(value)
    elif not 1 <= len(name) <= NAME_MAX:
        raise invalid_option(word, "", f"{form}; a NAME has 1 to {NAME_MAX} letters and digits")
    what, read_only, raw = option.name[2:], False, False
    if what == "net-mac":
        try:
            parse_mac(value)
        except ConfigError as error:
            raise invalid_option(word, error.message, error.command_hint or form) from None
        return Setting(what, name, value, option=word)
    if what == "block-sector-size":
        if not _is_number(value):
            raise invalid_option(word, f"Malformed argument to {option.name}", form)
        return Setting(what, name, int(value), option=word)
    if option.kind == DEVICE:
        return Setting(what, name, value, option=word)
    if what == "block":
        read_only = value.endswith(":ro")
        value = value.removesuffix(":ro") if read_only else value.removesuffix(":rw")
        raw = value.endswith(":raw")
        value = value.removesuffix(":raw")
    if value.startswith("@"):
        if not _is_number(value[1:]):
            way_out = "write the number of an inherited descriptor after @"
            raise invalid_option(word, "", way_out + ("; for a file write ./@..." if what == "block" else ""))
        return Setting(what, name, int(value[1:]), read_only=read_only, raw=raw, option=word)
    if not value:
        raise invalid_option(word, "", form)
    return Setting(what, name, value, read_only=read_only, raw=raw, option=word)


def _split_name(value: str) -> tuple[str, str]:
    """Splits `NAME=REST` if NAME can be a name. A path such as `/a=b` stays whole."""
    name, equals, rest = value.partition("=")
    if equals and name.isascii() and name.isalnum() and len(name) <= NAME_MAX:
        return name, rest
    return "", value


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9
