"""The texts of --help, --version and `tender help`."""

from tender._version import __version__
from tender.cli import say
from tender.cli.main import COMMANDS, FRONTS, main
from tender.cli.option_table import ABOUT, EXAMPLES, GRAMMAR, GROUPS, OPTIONS
from tender.printable import printable

_COLUMN = 33

SHORT = """\
usage: tender [run] [OPTIONS] [--] IMAGE [ARGS...]
       tender COMMAND --help                         COMMAND: {commands}
'tender --help' lists the options."""

RUN = """\
usage: tender [run] [OPTIONS] [--] IMAGE [ARGS...]
       tender COMMAND [...]

{about}

Commands:
{commands}

{options}
{grammar}

Examples:
{examples}"""


SOLO5 = """\
usage: {program} [ CORE OPTIONS ] [ MODULE OPTIONS ] [ -- ] KERNEL [ ARGS ]
Run the unikernel in the file KERNEL; ARGS are its own. (This is tender; 'tender --help' describes its own command line.)
Core options:
{core}
Module options (modules: core block net); each device that KERNEL declares must be attached:
{modules}"""


def _lines(value: str, text: str) -> str:
    """Returns an option as --help shows it: what to type, and from column 33 on what it means."""
    first = f"  {value:<{_COLUMN - 2}}" if len(value) < _COLUMN - 3 else f"  {value}\n{' ' * _COLUMN}"
    return first + text.replace("\n", "\n" + " " * _COLUMN)


def _options() -> str:
    groups = []
    for heading, options, note in GROUPS:
        lines = [heading] if heading else []
        for option in options:
            short = f"{option.short}, " if option.short else ""
            lines += [_lines(short + option.name + value, text) for value, text in option.lines]
        groups.append("\n".join([*lines, *([f"  {note}"] if note else [])]))
    return "\n\n".join(groups) + "\n"


def short() -> str:
    """Returns two lines that follow an error."""
    return SHORT.format(commands=", ".join(COMMANDS))


def run_help() -> str:
    """Returns the whole text of `tender --help`."""
    commands = "\n".join(f"  {name:<14} {line}" for name, (_, line) in COMMANDS.items())
    return RUN.format(
        about=ABOUT,
        commands=commands,
        options=_options(),
        grammar=GRAMMAR,
        examples="\n".join(f"  {line}" for line in EXAMPLES.split("\n")),
    )


def version() -> str:
    """Returns two lines. Managers of unikernels look for the second."""
    return f"tender {__version__}\nABI version 2"


def solo5(program: str) -> str:
    """Returns the usage of `tender solo5-hvt`, called by the name `program`."""
    core: list[str] = []
    modules: list[str] = []
    for option in OPTIONS:
        if option.solo5:
            line = _lines(option.name + option.solo5_value, option.solo5)
            (modules if option.device else core).append(line)
    return SOLO5.format(program=program, core="\n".join(core), modules="\n".join(modules))


def solo5_version(program: str) -> str:
    """Returns two lines. Managers of unikernels look for the second."""
    return f"{program} tender, version {__version__}\nABI version 2"


def help_command(argv: list[str]) -> int:
    """Runs `tender help [COMMAND]`, and returns the exit status."""
    if argv and argv[0] in FRONTS:
        say.out(solo5(argv[0]))
        return 0
    if argv and argv[0] in COMMANDS:
        return main([argv[0], "--help"])
    if argv:
        say.error(f"help: no such command: {printable(argv[0])}")
        say.hint(f"commands: {', '.join(COMMANDS)}")
        return 1
    say.out(run_help())
    return 0
