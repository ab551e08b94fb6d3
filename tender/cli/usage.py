"""The texts of --help, --version and `tender help`."""

from tender.cli import say
from tender.cli.main import COMMANDS, FRONTS

SHORT = """\
usage: tender [run] [OPTIONS] [--] IMAGE [ARGS...]
       tender COMMAND --help                         COMMAND: {commands}
'tender --help' lists the options."""

RUN = """\
usage: tender [run] [OPTIONS] [--] IMAGE [ARGS...]
       tender COMMAND [...]

Run the unikernel IMAGE, an ELF file of Solo5's hvt ABI. Words after IMAGE are the guest's arguments,
untouched. The guest's console is stdout; all that tender itself says goes to stderr. The exit status is
the guest's, or 1 if it could not start.

Commands:
{commands}

Where, and with what:
  --backend=auto|kvm|sandbox     run it on KVM, or without: as a process behind a system-call filter.
                                 auto (the default) takes KVM if this host has it, else the sandbox;
                                 TENDER_BACKEND in the environment sets another default
  --require=LAYER,...            run no guest where one of these isolation layers is missing: 'tender doctor'
                                 names them; TENDER_REQUIRE in the environment does the same
  --mem=N                        guest memory in MiB, or with a unit: 64M, 1G (default 512)
  --no-net-ring                  offer the guest no network ring: all of --mem is its own
  --net-reattach                 take a new interface of the same name for one that is deleted meanwhile
  --timeout=SECONDS              stop the guest after that time: 5, 0.25, 250ms

Devices (all that IMAGE declares must be attached; 'tender inspect IMAGE' lists them):
  --net:NAME=IFACE               attach the TAP interface IFACE as network device NAME
  --net:NAME=@FD                 ... an inherited descriptor: a TAP, a socketpair
  --net-mac:NAME=XX:XX:XX:XX:XX:XX
                                 its MAC address (default: a random one)
  --block:NAME=PATH[:raw][:ro]   attach a file or block device as block device NAME; :ro for read-only
  --block:NAME=@FD[:ro]          ... an inherited descriptor
  --block-sector-size:NAME=N     its block size in bytes (default 512)
  --lock-wait=SECONDS            wait so long for disks that another VM has locked (default 0);
                                 TENDER_LOCK_WAIT in the environment does the same
  The only device of its kind needs no name: --net tap0, --block disk.img:ro

Output:
  --console=FILE|-|fd:N|none     where the guest's console goes (default: stdout)
  --json[=FILE|-|fd:N]           how the run ended, as one line of JSON (default: last line of stderr)
  --stats                        counters and the times of the boot, on stderr at the end
  -q, --quiet                    errors only
  -v, --verbose                  a line for each phase

  -h, --help                     this text
  -V, --version                  the version and the ABI version

A value may also stand in the next word, --mem 64M, but for --json. Repeated, the last one wins.

Examples:
  tender app.elf
  tender --mem=64M --net:service=tap0 app.elf --ipv4=10.0.0.2/24
  tender --block disk.img:ro --timeout 10 app.elf"""


SOLO5 = """\
usage: {program} [ CORE OPTIONS ] [ MODULE OPTIONS ] [ -- ] KERNEL [ ARGS ]
Run the unikernel in the file KERNEL; ARGS are its own. (This is tender: 'tender --help' tells of its other ways.)
Core options:
  --mem=N                        memory of the guest in MiB (512)
  --no-net-ring                  no network ring: all of --mem is the guest's
  --net-reattach                 for an interface that is deleted, take the next one of its name
  --help, --version              this text; the version and the ABI version
Module options (modules: core block net); every device that KERNEL declares must be attached:
  --net:NAME=IFACE|@FD           a TAP interface, or an open descriptor, as network NAME
  --net-mac:NAME=XX:XX:XX:XX:XX:XX
                                 the MAC address of network NAME (a random one)
  --block:NAME=PATH|@FD          a file or block device, or an open descriptor, as block device NAME
  --block-sector-size:NAME=N     its sector size in bytes, a power of two from 512 to 32768 (512)"""


def short() -> str:
    """Two lines for after an error."""
    return SHORT.format(commands=", ".join(COMMANDS))


def run_help() -> str:
    """The whole of `tender --help`."""
    return RUN.format(commands="\n".join(f"  {name:<14} {line}" for name, (_, line) in COMMANDS.items()))


def version() -> str:
    """Two lines; managers of unikernels look for the second."""
    from tender._version import __version__

    return f"tender {__version__}\nABI version 2"


def solo5(program: str) -> str:
    """The usage of `tender solo5-hvt`, called by the name `program`."""
    return SOLO5.format(program=program)


def solo5_version(program: str) -> str:
    """Two lines; managers of unikernels look for the second."""
    from tender._version import __version__

    return f"{program} tender, version {__version__}\nABI version 2"


def help_command(argv: list[str]) -> int:
    """`tender help [COMMAND]`."""
    if argv and argv[0] in FRONTS:
        say.out(solo5(argv[0]))
        return 0
    if argv and argv[0] in COMMANDS:
        from tender.cli.main import main

        return main([argv[0], "--help"])
    if argv:
        from tender.printable import printable

        say.error(f"help: no such command: {printable(argv[0])}")
        say.hint(f"commands: {', '.join(COMMANDS)}")
        return 1
    say.out(run_help())
    return 0
