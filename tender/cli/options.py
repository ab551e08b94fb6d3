"""The options of `tender run`: words to values, nothing opened, nothing looked up.

The grammar is solo5-hvt's: options in any order, then the image, then words that are the guest's alone,
empty ones kept; `--` is optional. Ours on top: a value may stand in the next word (`--mem 64M`), and the
only device of a kind needs no name (`--net tap0`). Repeated, the last one wins.

    --net:NAME=IFACE     the device NAME, whatever letters it has
    --net NAME=IFACE     NAME is of letters and digits; anything else before the `=` belongs to the value
    --net IFACE          the only device of its kind

Which names exist is the image's to say: `tender.cli.attach` goes on from here.
"""

from tender.backend import check_backend
from tender.config import LAYERS, MEM_DEFAULT, check_layers, parse_mac, parse_mem, round_mem
from tender.errors import ConfigError
from tender.values import Value

TYPE_CHECKING: bool = False
if TYPE_CHECKING:
    from tender.annotations import Backend, IsolationLayer, NetRing

NAME_MAX = 67

VALUED = ("--mem", "--timeout", "--console", "--backend", "--require", "--lock-wait")
NAMED = ("--net", "--net-mac", "--block", "--block-sector-size")
FLAGS = (
    "--json",
    "--stats",
    "--quiet",
    "--verbose",
    "--no-net-ring",
    "--net-reattach",
    "--help",
    "--version",
)
OPTIONS = VALUED + NAMED + FLAGS
SHORT = {"-q": "--quiet", "-v": "--verbose", "-h": "--help", "-V": "--version"}

_FORMS = {
    "--net": "--net:NAME=IFACE, or --net IFACE for the only network device",
    "--net-mac": "--net-mac:NAME=XX:XX:XX:XX:XX:XX",
    "--block": "--block:NAME=PATH, or --block PATH for the only block device",
    "--block-sector-size": "--block-sector-size:NAME=N",
    "--mem": "--mem=MIB, or with a unit: --mem=64M, --mem=1G",
    "--timeout": "--timeout=SECONDS",
    "--console": "--console=FILE, --console=-, --console=fd:N or --console=none",
    "--backend": "--backend=auto, --backend=kvm or --backend=sandbox",
    "--lock-wait": "--lock-wait=SECONDS",
    "--require": f"--require=LAYER,...; the layers are {', '.join(LAYERS)}",
}
# Options of other monitors and of containers.
_MEMORY = f"guest memory: write {_FORMS['--mem']}"
_CPUS = "a guest has one processor; there is no option for more"
_FOREIGN = {
    **dict.fromkeys(("-m", "--memory", "--mem-size", "--ram"), _MEMORY),
    **dict.fromkeys(("-c", "--cpu", "--cpus", "--vcpus", "-smp", "--smp"), _CPUS),
}
_ENVIRONMENT = "TENDER_BACKEND=auto, TENDER_BACKEND=kvm or TENDER_BACKEND=sandbox, or unset it"


class UsageError(ConfigError):
    """The command line is wrong; `show_usage` asks for the usage line after the message."""

    default_code = "usage"

    def __init__(self, message: str, *, hint: str = "", show_usage: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.show_usage = show_usage


class Setting(Value):
    """One word about a device: `what` is the option without its dashes, `option` the word as typed."""

    __slots__ = ("what", "name", "value", "read_only", "raw", "option")
    what: str  # "net", "net-mac", "block", "block-sector-size"
    name: str  # "" stands for the only device of its kind
    value: int | str  # a descriptor (@FD) or sector size is an int
    read_only: bool
    raw: bool
    option: str

    def __init__(
        self,
        what: str,
        name: str,
        value: int | str,
        *,
        option: str,
        read_only: bool = False,
        raw: bool = False,
    ) -> None:
        self._set(what=what, name=name, value=value, read_only=read_only, raw=raw, option=option)


class RunOptions(Value):
    """A command line, understood.

    action   "run", "help" or "version"
    console  a descriptor, a path, or None for no console at all
    backend  one of tender.backend.BACKENDS
    json     where the result goes: a descriptor, a path, or None
    json_fd  the descriptor of that, once it is open (outputs.py)
    words    the options as typed, for hints that repeat the command
    """

    __slots__ = (
        "action",
        "image",
        "args",
        "mem_bytes",
        "mem_adjusted",
        "settings",
        "timeout",
        "console",
        "backend",
        "json",
        "json_fd",
        "stats",
        "verbosity",
        "net_ring",
        "net_reattach",
        "require",
        "lock_wait",
        "words",
    )
    action: str
    image: str
    args: tuple[str, ...]
    mem_bytes: int
    mem_adjusted: bool
    settings: tuple[Setting, ...]
    timeout: float | None
    console: int | str | None
    backend: "Backend"
    json: int | str | None
    json_fd: int
    stats: bool
    verbosity: int
    net_ring: "NetRing"
    net_reattach: bool
    require: "tuple[IsolationLayer, ...]"
    lock_wait: float
    words: tuple[str, ...]

    def __init__(self, **fields: object) -> None:
        self._set(**{**_DEFAULTS, **fields})


_DEFAULTS: dict[str, object] = {
    "action": "run",
    "image": "",
    "args": (),
    "mem_bytes": MEM_DEFAULT,
    "mem_adjusted": False,
    "settings": (),
    "timeout": None,
    "console": 1,
    "backend": "auto",
    "json": None,
    "json_fd": -1,
    "stats": False,
    "verbosity": 0,
    "net_ring": "auto",
    "net_reattach": False,
    "require": (),
    "lock_wait": 0.0,
    "words": (),
}


def parse_args(
    argv: list[str], *, backend: str = "", require: str = "", lock_wait: str = "", launcher: str = ""
) -> RunOptions:
    """The values of a command line; `backend` is what TENDER_BACKEND says, for one without --backend, `require` what
    TENDER_REQUIRE says, for one without --require, and `lock_wait` what TENDER_LOCK_WAIT says, for one without --lock-wait.
    `launcher`, what TENDER_LAUNCHER says, is only judged: the native program has obeyed it.

    Raises UsageError, and ConfigError for memory above 4 GiB.
    """
    found: dict[str, object] = {}
    settings: list[Setting] = []
    at = 0
    while at < len(argv) and argv[at].startswith("-"):
        word = argv[at]
        if word == "-" and argv[at - 1 : at] == ["--json"]:
            raise invalid_option(word, "", "the value of --json stands behind =: --json=-")
        at += 1
        if word == "--":
            break
        head, equals, value = word.partition("=")
        base, colon, name = head.partition(":")
        base = SHORT.get(base, base)
        if base == "-vv":
            base, found["verbosity"] = "--verbose", 1
        if base not in OPTIONS or (colon and base not in NAMED):
            raise _unknown(word)
        if base in ("--help", "--version") and not equals:
            return RunOptions(action=base[2:])
        if base in FLAGS:
            _flag(found, base, equals, value, word)
            continue
        if not equals:
            if colon or at == len(argv) or argv[at].startswith("--"):
                from tender.printable import printable

                raise UsageError(f"Missing argument to {printable(head)}", hint=f"write {_FORMS[base]}")
            value = argv[at]
            at += 1
            word = f"{word} {value}"
        if base in NAMED:
            settings.append(_setting(base, name if colon else None, value, word))
        else:
            found.update(_value(base, value))
    if at >= len(argv) or not argv[at]:
        raise UsageError("Missing KERNEL operand", show_usage=True)
    if "backend" not in found:
        found["backend"] = ambient_backend(backend)
    if "require" not in found:
        found["require"] = ambient_require(require)
    if "lock_wait" not in found:
        found["lock_wait"] = ambient_lock_wait(lock_wait)
    check_launcher(launcher)
    return RunOptions(
        **found,
        settings=tuple(settings),
        image=argv[at],
        args=tuple(argv[at + 1 :]),
        words=tuple(word for word in argv[:at] if word != "--"),
    )


def _unknown(word: str) -> UsageError:
    from tender.cli.nearest import nearest
    from tender.printable import quoted

    head = word.partition("=")[0].partition(":")[0]
    near = nearest(head, OPTIONS)
    if head in _FOREIGN:
        way_out = _FOREIGN[head]
    elif near:
        way_out = f"did you mean {near}?"
    else:
        way_out = f"words for the guest go after the image: tender IMAGE {quoted(word)}"
    return invalid_option(word, "", way_out, show_usage=True)


def invalid_option(word: str, reason: str = "", way_out: str = "", *, show_usage: bool = False) -> UsageError:
    """The error of an option as typed, in the contract's words; `reason` is a line before them."""
    from tender.printable import printable

    message = f"Invalid option: `{printable(word)}'"
    return UsageError(f"{reason}\n{message}" if reason else message, hint=way_out, show_usage=show_usage)


def _flag(found: dict[str, object], base: str, equals: str, value: str, word: str) -> None:
    if base == "--json":
        found["json"] = json_target(value) if equals else 2
    elif equals:
        raise invalid_option(word, "", f"{base} takes no value")
    elif base == "--quiet":
        found["verbosity"] = -1
    elif base == "--verbose":
        found["verbosity"] = 1
    elif base == "--stats":
        found["stats"] = True
    elif base == "--no-net-ring":
        found["net_ring"] = "off"
    elif base == "--net-reattach":
        found["net_reattach"] = True


def _value(base: str, value: str) -> dict[str, object]:
    if base == "--mem":
        try:
            asked = parse_mem(value)
        except ConfigError as error:
            raise UsageError(
                "Malformed argument to --mem", hint=f"got {value!r}: {error.command_hint}"
            ) from None
        mem_bytes = round_mem(asked)
        return {"mem_bytes": mem_bytes, "mem_adjusted": mem_bytes != asked}
    if base == "--timeout":
        return {"timeout": _seconds(value, "Malformed argument to --timeout")}
    if base == "--lock-wait":
        return {"lock_wait": _lock_wait(value, "Malformed argument to --lock-wait")}
    if base == "--backend":
        return {"backend": _checked_backend(value, "Malformed argument to --backend", _FORMS[base])}
    if base == "--require":
        return {"require": _checked_layers(value, "Malformed argument to --require", _FORMS[base])}
    return {"console": None if value == "none" else _file_or_fd("--console", value)}


def _checked_backend(name: str, refusal: str, form: str) -> "Backend":
    try:
        return check_backend(name)
    except ConfigError:
        raise UsageError(refusal, hint=f"got {name!r}: write {form}") from None


def ambient_backend(value: str) -> "Backend":
    """The backend that TENDER_BACKEND's value names; empty counts as unset. Raises UsageError."""
    return _checked_backend(value or "auto", "Malformed value of TENDER_BACKEND", _ENVIRONMENT)


def check_launcher(value: str) -> None:
    """Raises UsageError for a value of TENDER_LAUNCHER that chooses nothing; empty counts as unset."""
    if value not in ("", "native", "python"):
        raise UsageError(
            "Malformed value of TENDER_LAUNCHER",
            hint=f"got {value!r}: write TENDER_LAUNCHER=python or TENDER_LAUNCHER=native, or unset it",
        )


def _checked_layers(text: str, refusal: str, form: str) -> "tuple[IsolationLayer, ...]":
    names = text.split(",")
    for name in names:
        if name not in LAYERS:
            raise UsageError(refusal, hint=f"got {name!r}: write {form}")
    return check_layers(names)


def ambient_require(value: str) -> "tuple[IsolationLayer, ...]":
    """The layers that TENDER_REQUIRE's value names; empty counts as unset. Raises UsageError."""
    form = _FORMS["--require"].replace("--require", "TENDER_REQUIRE")
    return _checked_layers(value, "Malformed value of TENDER_REQUIRE", form) if value else ()


def ambient_lock_wait(value: str) -> float:
    """The seconds that TENDER_LOCK_WAIT's value names; empty counts as unset. Raises UsageError."""
    return _lock_wait(value, "Malformed value of TENDER_LOCK_WAIT") if value else 0.0


def _lock_wait(text: str, refusal: str) -> float:
    return 0.0 if text == "0" else _seconds(text, refusal)


def _seconds(text: str, refusal: str) -> float:
    scale, number = (0.001, text[:-2]) if text.endswith("ms") else (1.0, text.removesuffix("s"))
    try:
        seconds = float(number) * scale
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        hint = f"got {text!r}: write seconds: 5, 0.25, 250ms"
        raise UsageError(refusal, hint=hint)
    return seconds


def json_target(value: str) -> int | str:
    """The descriptor or the file that `--json=VALUE` names. Raises UsageError."""
    return _file_or_fd("--json", value)


def _file_or_fd(option: str, text: str) -> int | str:
    if text.startswith("fd:"):
        if not _is_number(text[3:]):
            hint = f"got {text!r}: write fd:N, N the number of an inherited descriptor; for a file write ./fd:..."
            raise UsageError(f"Malformed argument to {option}", hint=hint)
        return int(text[3:])
    if not text:
        raise UsageError(f"Malformed argument to {option}", hint="the file has no name")
    return 1 if text == "-" else text


def _setting(base: str, name: str | None, value: str, word: str) -> Setting:
    form = f"write {_FORMS[base]}"
    if name is None:
        name, value = _split_name(value)
    elif not 1 <= len(name) <= NAME_MAX:
        raise invalid_option(word, "", f"{form}; a NAME has 1 to {NAME_MAX} letters and digits")
    what, read_only, raw = base[2:], False, False
    if what == "net-mac":
        try:
            parse_mac(value)
        except ConfigError as error:
            raise invalid_option(word, error.message, error.command_hint or form) from None
        return Setting(what, name, value, option=word)
    if what == "block-sector-size":
        if not _is_number(value):
            raise invalid_option(word, f"Malformed argument to {base}", form)
        return Setting(what, name, int(value), option=word)
    if what == "block":
        read_only = value.endswith(":ro")
        value = value.removesuffix(":ro") if read_only else value.removesuffix(":rw")
        raw = value.endswith(":raw")
        value = value.removesuffix(":raw")
    if value.startswith("@"):
        if not _is_number(value[1:]):
            way_out = "after @ stands the number of an inherited descriptor"
            raise invalid_option(word, "", way_out + ("; for a file write ./@..." if what == "block" else ""))
        return Setting(what, name, int(value[1:]), read_only=read_only, raw=raw, option=word)
    if not value:
        raise invalid_option(word, "", form)
    return Setting(what, name, value, read_only=read_only, raw=raw, option=word)


def _split_name(value: str) -> tuple[str, str]:
    """`NAME=REST` taken apart if NAME can be a name; a path such as `/a=b` stays whole."""
    name, equals, rest = value.partition("=")
    if equals and name.isascii() and name.isalnum() and len(name) <= NAME_MAX:
        return name, rest
    return "", value


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9
