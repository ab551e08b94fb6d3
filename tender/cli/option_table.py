"""The options of `tender run`, of solo5-hvt and of the other commands: one row for each, with all that is known of it.

Python's parser (options.py, solo5.py) and --help (usage.py) read this table. At build time
bindings/command/gen_options.py reads it too, and writes the native parser's table, the manual page and the shells'
completions. Tests compare the lists in docs/cli.md with it. This file imports nothing of the package, because the build
loads it alone.

A new option is a row, its field in `Fields`, and what serves it. If the native program serves it, `struct request` has
the field too: bindings/command/request.h takes its fields from here.
"""

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tender.annotations import BackendLike, IsolationLayer, NetRingLike

# How a value is read. Each kind has one reader in options.py, and one in request.c if the native program serves it.
FLAG, ACTION, MEMORY, SECONDS, WAIT = "flag", "action", "memory", "seconds", "wait"
BACKEND, LAYERS, OUTPUT, REPORT, EXAMPLE = "backend", "layers", "output", "report", "example"
DIRECTORY, COUNT = "directory", "count"
# Kinds of options about one device: `--OPTION:NAME=VALUE`.
NET, NET_MAC, BLOCK, SECTOR_SIZE = "net", "net_mac", "block", "sector_size"
DEVICE = "device"  # in the form of the kind of device: C reads it for both parsers (devices/device_words.h)


@dataclass
class Option:
    """One option.

    Attributes:
        value: What follows the name, as --help shows it.
        text: What it means; each line is a line of --help.
        also: Other forms of the value, each with its text.
        form: How to write it, for the hint of an error.
        device: The kind of device (abi/devices.def) that `--OPTION:NAME=VALUE` is about.
        native: Whether the native program serves it. It leaves all other options to Python.
        words: The words of a value that is a list of words with commas.
        variable: The environment variable that sets it if no option does, on each command line.
        choices: The words that `value` offers, if it offers nothing else.
        field: The field of RunOptions.
        sets: The value of the field with a flag.
        solo5: The text for solo5-hvt's usage. None: solo5-hvt has no such option. Empty: another text describes it.
    """

    name: str
    kind: str
    value: str
    text: str
    _: KW_ONLY
    also: tuple[tuple[str, str], ...] = ()
    form: str = ""
    short: str = ""
    device: str = ""
    native: bool = False
    words: tuple[str, ...] = ()
    variable: str = ""
    field: str = ""
    sets: object = True
    solo5: str | None = None
    solo5_value: str = ""

    def __post_init__(self) -> None:
        self.lines = ((self.value, self.text), *self.also)
        shown = self.value[1:].split("|")
        self.choices = tuple(shown) if all(word.isalpha() and word.islower() for word in shown) else ()
        self.field = self.field or self.name[2:].replace("-", "_")
        self.solo5_value = self.solo5_value or self.value


@dataclass(kw_only=True)
class Fields:
    """The fields of RunOptions that rows set: their types, and their values without the option."""

    __slots__ = ()
    example: str = ""  # the name of a unikernel that is installed with Tender, in place of an image
    backend: "BackendLike" = "auto"
    require: "tuple[IsolationLayer, ...]" = ()
    mem_bytes: int = 512 << 20
    net_ring: "NetRingLike" = "auto"
    net_reattach: bool = False
    timeout: float | None = None
    lock_wait: float = 0.0
    debuggable: bool = False
    flight_recorder: bool = False
    console: int | str | None = 1  # a descriptor, a path, or None for no console at all
    json: int | str | None = None  # where the result goes: a descriptor, a path, or None
    core: str = ""  # the directory for cores; empty: none is written
    core_max: int = 10
    crash_report: bool | None = None  # None: if stderr is a terminal
    stats: bool = False
    verbosity: int = 0


ABOUT = """\
Run the unikernel IMAGE, an ELF file of Solo5's hvt ABI. Words after IMAGE are the guest's arguments,
unchanged. The guest's console is stdout; messages of tender itself go to stderr. The exit status is the
guest's (255 if it aborted), 1 if it could not start or was stopped, 2 if the host failed, or 70 for an
error in tender."""
STATUSES = (
    ("0 to 254", "the guest's own status, its low 8 bits"),
    ("255", "the guest aborted, or reported a CPU exception on its console"),
    ("1", "the guest could not start, was stopped, or did what no guest may do"),
    ("2", "the host or KVM failed while the guest ran; starting it again may help"),
    ("70", "an error in Tender: `internal error`, please report it"),
    ("134, 137, 139, 159", "the process was killed by a signal (as a shell shows it)"),
    ("141", "stdout of a command that runs no guest has no reader, or is closed"),
)
LAYERS_WORDS = (
    *("user-namespace", "network-namespace", "mount-namespace", "pid-namespace", "ipc-namespace"),
    *("empty-root", "landlock", "seccomp-filter", "uid", "capabilities", "kvm"),
)
"""The members of IsolationLayer, which this file cannot import."""
GRAMMAR = """\
Except for --json, the value may also be the next word: --mem 64M. If an option is repeated, the last
one wins."""
EXAMPLES = """\
tender run --example hello
tender app.elf
tender --mem=64M --net:service=tap0 app.elf --ipv4=10.0.0.2/24
tender --block disk.img:ro --timeout 10 app.elf"""

# fmt: off
# A heading of --help, its options, and a line below them.
GROUPS: tuple[tuple[str, tuple[Option, ...], str], ...] = (
    ("Backend and resources:", (
        Option("--example", EXAMPLE, "=hello|echo|disk",
               "run a unikernel that is installed with Tender; IMAGE is left out then,\n"
               "and all words after the options are the guest's arguments",
               form="--example=hello, --example=echo or --example=disk", native=True),
        Option("--backend", BACKEND, "=auto|kvm|sandbox",
               "run it on KVM, or without: as a process behind a system-call filter.\n"
               "auto (the default) takes KVM if this host has it, else the sandbox;\n"
               "TENDER_BACKEND in the environment sets another default",
               form="--backend=auto, --backend=kvm or --backend=sandbox",
               native=True, variable="TENDER_BACKEND"),
        Option("--require", LAYERS, "=LAYER,...",
               "run no guest if one of these isolation layers is missing; 'tender doctor'\n"
               "lists them; TENDER_REQUIRE in the environment does the same",
               form="--require=LAYER,...; the layers are {layers}",
               native=True, variable="TENDER_REQUIRE", words=LAYERS_WORDS),
        Option("--mem", MEMORY, "=N", "guest memory in MiB, or with a unit: 64M, 1G (default 512)",
               form="--mem=MIB, or with a unit: --mem=64M, --mem=1G",
               native=True, field="mem_bytes", solo5="memory of the guest in MiB (512)"),
        Option("--no-net-ring", FLAG, "", "offer the guest no network ring: it gets all of --mem",
               native=True, field="net_ring", sets="off",
               solo5="no network ring: the guest gets all of --mem"),
        Option("--net-reattach", FLAG, "", "if an interface is deleted, attach the next one of its name",
               native=True, solo5="if an interface is deleted, attach the next one of its name"),
        Option("--debuggable", FLAG, "", "let any process of this user debug it, also where the kernel's Yama\n"
               "allows that to a parent only", native=True),
        Option("--flight-recorder", FLAG, "", "record the guest's last hypercalls from its start, for cores and\n"
               "crash reports", native=True),
        Option("--timeout", SECONDS, "=SECONDS", "stop the guest after that time: 5, 0.25, 250ms",
               form="--timeout=SECONDS", native=True),
    ), ""),
    ("Devices (attach each that IMAGE declares; 'tender inspect IMAGE' lists them):", (
        Option("--net", NET, ":NAME=IFACE", "attach the TAP interface IFACE as network device NAME",
               also=((":NAME=@FD", "... an inherited descriptor: a TAP, a socketpair"),),
               form="--net:NAME=IFACE, or --net IFACE for the only network device", device="net", native=True,
               solo5="a TAP interface, or an open descriptor, as network NAME", solo5_value=":NAME=IFACE|@FD"),
        Option("--net-mac", NET_MAC, ":NAME=XX:XX:XX:XX:XX:XX", "its MAC address (default: a random one)",
               form="--net-mac:NAME=XX:XX:XX:XX:XX:XX", device="net", native=True,
               solo5="the MAC address of network NAME (a random one)"),
        Option("--block", BLOCK, ":NAME=PATH[:raw][:ro]",
               "attach a file or block device as block device NAME; :ro for read-only",
               also=((":NAME=@FD[:ro]", "... an inherited descriptor"),),
               form="--block:NAME=PATH, or --block PATH for the only block device", device="block", native=True,
               solo5="a file or block device, or an open descriptor, as block device NAME",
               solo5_value=":NAME=PATH|@FD"),
        Option("--block-sector-size", SECTOR_SIZE, ":NAME=N", "its block size in bytes (default 512)",
               form="--block-sector-size:NAME=N", device="block", native=True,
               solo5="its sector size in bytes, a power of two from 512 to 32768 (512)"),
        Option("--lock-wait", WAIT, "=SECONDS",
               "how long to wait for disks that another VM has locked (default 0);\n"
               "TENDER_LOCK_WAIT in the environment does the same",
               form="--lock-wait=SECONDS", native=True, variable="TENDER_LOCK_WAIT"),
    ), "The only device of its kind needs no name: --net tap0, --block disk.img:ro"),
    ("Output:", (
        Option("--console", OUTPUT, "=FILE|-|fd:N|none", "where the guest's console goes (default: stdout)",
               form="--console=FILE, --console=-, --console=fd:N or --console=none", native=True),
        Option("--json", REPORT, "[=FILE|-|fd:N]",
               "how the run ended, as one line of JSON (default: last line of stderr)", native=True),
        Option("--core", DIRECTORY, "=DIR",
               "if the guest ends abnormally or at its time limit, or on SIGQUIT,\n"
               "write a core for gdb into the directory DIR", form="--core=DIR", native=True),
        Option("--core-max", COUNT, "=N", "how many cores DIR keeps: the oldest are deleted (default 10)",
               form="--core-max=N, from 1 on", native=True),
        Option("--crash-report", FLAG, "",
               "after an abnormal end show the stack, registers and memory, also if\n"
               "stderr is no terminal", native=True),
        Option("--no-crash-report", FLAG, "", "do not show them on a terminal either",
               native=True, field="crash_report", sets=False),
        Option("--stats", FLAG, "", "counters and the times of the boot, on stderr at the end"),
        Option("--quiet", FLAG, "", "errors only", short="-q", native=True, field="verbosity", sets=-1),
        Option("--verbose", FLAG, "", "a line for each phase", short="-v", field="verbosity", sets=1),
    ), ""),
    ("", (
        Option("--help", ACTION, "", "this text", short="-h",
               solo5="this text; the version and the ABI version", solo5_value=", --version"),
        Option("--version", ACTION, "", "the version and the ABI version", short="-V", solo5=""),
    ), ""),
)
# fmt: on
OPTIONS = tuple(option for _, options, _ in GROUPS for option in options)

# The options of commands that run no guest. bench and solo5-elftool have subcommands, which list their own.
COMMAND_OPTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "inspect": (
        ("--json", "one JSON object"),
        ("--symbols", "list its functions too, by address"),
        (
            "--at=ADDRESS",
            "show only the symbol at that address, as NAME+OFFSET; status 1 if the file has none there",
        ),
    ),
    "audit": (
        ("--json", "one JSON object for each image, on a line of its own"),
        ("--verbose", "name the files of a directory that are skipped"),
        (
            "--require=NAME>=VERSION",
            "status 1 if a component is older or not there; NAME?>=VERSION: if it is older",
        ),
    ),
    "doctor": (
        ("--json", "one JSON object: schema, usable, reason, kvm, sandbox, auto, checks"),
        ("--kvm", "one line for scripts, about KVM alone: usable, or unusable and the reason"),
        ("--sandbox", "the same about the sandbox alone"),
        ("--filter", "the rules of the sandbox's system-call filter, and the reason for each"),
    ),
    "debug": (
        ("--stdio", "serve gdb's remote protocol on stdin and stdout: for gdb's `target remote | ...`"),
        ("--listen=PLACE", "serve one client at PATH (a unix socket) or at HOST:PORT of this host"),
        ("--vm=N", "the guest of a process that has several, from 1 on"),
        ("--image=FILE", "the guest's ELF file, if it was moved"),
        ("--command=FILE", "execute gdb's commands in this file first; also -x FILE"),
        ("--ex=COMMAND", "execute this command of gdb first; also -ex COMMAND"),
        ("--batch", "end gdb after these commands"),
    ),
    "core": (("--output=FILE", "the file to write, which must not exist; also -o FILE"),),
    "trace": (
        (
            "--only=NAME,...",
            "only these hypercalls, or those of these kinds: net, block, console, clock, poll; also -e NAME,...",
        ),
        ("--summary", "at the end, a table of calls, time and errors, and no line for each call; also -c"),
        ("--times", "begin each line with the seconds since the first one; also -t"),
        ("--json", "one JSON object a line, of the schema tender.trace/1; the same as --format=json"),
        ("--format=FORMAT", "text, json, or chrome: trace events, which Perfetto and Chrome open"),
        ("--output=FILE", "write there; also -o FILE"),
        ("--for=SECONDS", "end after that time"),
        ("--count=N", "end after N calls"),
        ("--vm=N", "the N-th guest of a process that holds several"),
    ),
    "capture": (
        (
            "--write=FILE",
            "the file, or - for stdout: `tender capture -w - PID | wireshark -k -i -`; also -w FILE",
        ),
        ("--net=NAME", "only this network of the guest"),
        ("--snaplen=N", "at most N bytes of each frame"),
        ("--for=SECONDS", "end after that time"),
        ("--count=N", "end after N frames"),
        ("--vm=N", "the N-th guest of a process that holds several"),
    ),
    "report": (
        ("--json", "one JSON object of the schema tender.report/1"),
        ("--html=FILE", "write one page for a browser, and print nothing"),
        ("--image=FILE", "the guest's ELF file, if it lies elsewhere now"),
    ),
    "ps": (
        ("--json", "one JSON object of the schema tender.ps/1"),
        ("--interval=SECONDS", "look twice, that far apart, and show what happened in between"),
    ),
    "stats": (
        ("--json", "one JSON object of the schema tender.stats/1 for each guest and look"),
        ("--watch=SECONDS", "look again and again, that far apart, until the guest ends"),
    ),
    "top": (("--interval=SECONDS", "look that often (default 2)"),),
    "metrics": (
        ("--once", "print them, as OpenMetrics"),
        ("--textfile=FILE", "write them to FILE, for node_exporter's textfile collector"),
        ("--interval=SECONDS", "write FILE again and again, that far apart"),
        ("--listen=PLACE", "serve them over HTTP at HOST:PORT, :PORT of this host, or PATH (a unix socket)"),
    ),
    "profile": (
        ("--seconds=N", "how long (default 10)"),
        ("--rate=HZ", "samples a second (default 99)"),
        ("--output=FILE", "write the profile to FILE; also -o FILE"),
        (
            "--format=FORMAT",
            "svg (a flame graph), folded, speedscope, pprof or perf (default: by FILE's name)",
        ),
        ("--waits", "sample the guest also while it waits"),
        ("--image=FILE", "the guest's ELF file, if it lies elsewhere now"),
    ),
    "sdk": (
        ("--cflags", "compiler flags"),
        ("--ldflags", "linker flags"),
        ("--include", "the directory of the headers"),
        ("--lib", "the directory of the library"),
        ("--script", "the linker script"),
        ("--example", "a whole program in C"),
        ("--guests", "the directory of hello.elf, echo.elf and disk.elf"),
    ),
}


def listed(command: str, *names: str) -> str:
    """Returns the options of a command that runs no guest, as its --help lists them: all, or those with these names."""
    rows = COMMAND_OPTIONS[command]
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        f"  {name:<{width}}  {text}" for name, text in rows if not names or name.partition("=")[0] in names
    )
