"""Writes what the build generates from the table of options, tender/cli/option_table.py: each OUTPUT by its name.

    options.h    rows and fields for the native parser (request.c), names of subcommands (main.c)
    tender.1     the manual page
    tender.bash, _tender, tender.fish    completions

usage: gen_options.py OPTION_TABLE.PY MAIN.PY OUTPUT...
"""

import re
import runpy
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NOTE = "Written by the build (gen_options.py) from tender/cli/option_table.py."
STATUS_NOTE = (
    "A guest may itself exit with each of these. The reason in the report of --json tells the cases apart."
)
FILES = (
    ("/dev/kvm", "the device of KVM; without it the guest runs in the sandbox"),
    ("/dev/net/tun", "the device through which TAP interfaces are attached"),
)
SEE_ALSO = """\
The pages README.md, docs/cli.md, docs/library.md, docs/sandbox.md and docs/threat-model.md are in the
directory share/doc/tender of the installation. This command prints that directory, in the environment
of tender: python -c "import sys; print(sys.prefix + '/share/doc/tender')"."""
# By kind of option: the type of its field in `struct request`, and the suffix after the option's name.
FIELDS = {
    **{"flag": ("bool", ""), "memory": ("uint64_t", "_bytes"), "backend": ("const struct machine_ops *", "")},
    **{"seconds": ("double", "_s"), "wait": ("double", "_s"), "layers": ("uint32_t", "")},
    **{"directory": ("const char *", ""), "count": ("uint32_t", "")},
    **{"output": ("const char *", ""), "report": ("const char *", ""), "example": ("const char *", "")},
}
Option = Any  # of option_table.py
Module = SimpleNamespace


def load(path: str) -> Module:
    """Returns the module in the file `path`, which imports nothing of the package."""
    return SimpleNamespace(**runpy.run_path(path))


def pythons(main: Module) -> list[str]:
    """Returns the subcommands that run no guest."""
    return [name for name in (*main.COMMANDS, "help") if name not in ("run", *main.FRONTS)]


# ---- C


def quoted(words: Iterable[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)


def c_header(table: Module, main: Module) -> str:
    native = sorted((o for o in table.OPTIONS if o.native), key=lambda o: not o.variable)
    rows, fields = "", ""
    examples = [name for o in native if o.kind == "example" for name in o.choices]
    for option in native:
        kind, place = f"OPTION_{option.kind.upper()}", "0"
        if option.device:
            kind, place = "OPTION_DEVICE", f"DEVICE_TYPE_{option.device}"
        else:
            c_type, suffix = FIELDS[option.kind]
            field = option.name[2:].replace("-", "_") + suffix
            fields += f" \\\n    {c_type} {field};"
            place = f"offsetof(struct request, {field})"
        solo5 = "false" if option.solo5 is None else "true"
        for name in filter(None, (option.name, option.short)):
            rows += f' \\\n    ROW("{name}", {solo5}, {kind}, {place}, "{option.variable}")'
    return (
        f"/* {NOTE} */\n"
        f"#define OPTION_FIELDS{fields}\n"
        f"#define OPTION_ROWS(ROW){rows}\n"
        f"#define OPTIONS_WITH_VARIABLE {sum(1 for o in native if o.variable)} /* the first rows */\n"
        f"#define OPTION_NAME_BYTES {max(len(o.name) for o in native) + 1}\n"
        f"#define OPTION_VARIABLE_BYTES {max(len(o.variable) for o in native) + 1}\n"
        f"#define EXAMPLE_NAMES         {quoted(examples)}\n"
        f"#define PYTHON_COMMANDS       {quoted(pythons(main))}\n"
        f"#define FRONTS                {quoted(main.FRONTS)}\n"
        f"#define STATUS_PIPE           {main.STATUS_PIPE} /* what a shell shows for death by SIGPIPE */\n"
    )


# ---- the manual page


def roff(text: str) -> str:
    return re.sub(r"(?m)^[.']", r"\\&\g<0>", text.replace("\\", r"\e").replace("-", r"\-"))


def plain(text: str) -> str:
    return text.replace("`", "")


def man_option(option: Option) -> str:
    short = f"\\fB{roff(option.short)}\\fR, " if option.short else ""
    rows = ""
    for value, text in option.lines:
        shown = re.sub(r"[A-Z][A-Z:]*", r"\\fI\g<0>\\fR", roff(value))
        rows += f".TP\n{short}\\fB{roff(option.name)}\\fR{shown}\n{roff(text)}\n"
    return rows


def man_page(table: Module, main: Module) -> str:
    groups = "".join(
        f".SS {roff(heading.rstrip(':') or 'Other')}\n{''.join(map(man_option, options))}"
        + f".PP\n{roff(note)}\n" * bool(note)
        for heading, options, note in table.GROUPS
    )
    commands = "".join(
        f".TP\n\\fB{roff(name)}\\fR\n{roff(text)}\n" for name, (_, text) in main.COMMANDS.items()
    )
    variables = "".join(
        f".TP\n.B {option.variable}\nused for \\fB{roff(option.name)}\\fR if the option is not given\n"
        for option in table.OPTIONS
        if option.variable
    )
    others = "".join(
        f".SS tender {roff(command)}\n"
        + "".join(f".TP\n\\fB{roff(name)}\\fR\n{roff(text)}\n" for name, text in rows)
        for command, rows in table.COMMAND_OPTIONS.items()
    )
    statuses = "".join(f".TP\n.B {roff(status)}\n{roff(plain(text))}\n" for status, text in table.STATUSES)
    files = "".join(f".TP\n.B {roff(path)}\n{roff(text)}\n" for path, text in FILES)
    return rf""".\" {NOTE}
.TH TENDER 1
.SH NAME
tender \- run a unikernel on KVM or in a sandbox
.SH SYNOPSIS
\fBtender\fR [\fBrun\fR] [\fIOPTIONS\fR] [\fB\-\-\fR] \fIIMAGE\fR [\fIARGS\fR...]
.br
\fBtender\fR \fICOMMAND\fR [...]
.SH DESCRIPTION
{roff(table.ABOUT)}
.SH COMMANDS
{commands}.SH OPTIONS
{roff(table.GRAMMAR)}
{groups}.SH OPTIONS OF THE OTHER COMMANDS
{others}.SH EXIT STATUS
{statuses}.PP
{roff(STATUS_NOTE)}
.SH ENVIRONMENT
{variables}.SH FILES
{files}.SH EXAMPLES
.nf
{roff(table.EXAMPLES)}
.fi
.SH SEE ALSO
{roff(SEE_ALSO)}
"""


# ---- completions


def sentence(text: str) -> str:
    return text.replace("\n", " ")


def values(option: Option) -> str:
    """Returns what follows an option: words, or one of "FILE", "IFACE", "TEXT", or nothing."""
    if option.choices:
        return " ".join(option.choices)
    kind = re.search(r"PATH|FILE|IFACE", option.value)
    return kind[0].replace("PATH", "FILE") if kind else "TEXT" if option.value else ""


def names(table: Module, command: str) -> str:
    """Returns the options of a command that runs no guest, as words to complete."""
    return " ".join(re.sub("=.*", "=", name) for name, _ in table.COMMAND_OPTIONS[command])


def bash(table: Module, main: Module) -> str:
    cases, others = "", f'        help) [ "$COMP_CWORD" = 2 ] && words="{" ".join(main.COMMANDS)}" ;;\n'
    for command in table.COMMAND_OPTIONS:
        others += f'        {command}) [[ $word = -* ]] && words="{names(table, command)}" ;;\n'
    for option in table.OPTIONS:
        found = values(option)
        if option.words:
            cases += f'    {option.name}) list=1 words="{" ".join(option.words)}" ;;\n'
        elif found and found not in ("FILE", "TEXT"):
            words = "$(cd /sys/class/net && echo *)" if found == "IFACE" else found
            cases += f'    {option.name}) words="{words}" ;;\n'
    plain = "|".join(
        o.name for o in table.OPTIONS if values(o) in ("FILE", "TEXT") and o.kind != "report" and not o.words
    )
    options = " ".join(name for o in table.OPTIONS for name in (o.short, o.name) if name)
    return rf"""# {NOTE}
# A value follows `=` or is the next word. If nothing is offered, bash offers files.
_tender() {{
    local line=${{COMP_LINE:0:COMP_POINT}} before option words= list= stem= others=
    local word=${{line##* }}
    before=${{line%"$word"}}
    before=${{before% }}
    option=${{before##* }}
    case $word in
    -*=*) option=${{word%%[:=]*}} word=${{word#*=}} ;;
    esac
    case ${{COMP_WORDS[1]}} in
    {"|".join(pythons(main))}) [ "$COMP_CWORD" = 1 ] || others=${{COMP_WORDS[1]}} option=others ;;
    esac
    case $option in
    others)
        case $others in
{others}        esac
        ;;
{cases}    {plain}) ;;
    *)
        case $word in
        -*) words="{options}" ;;
        *) [ "$COMP_CWORD" = 1 ] && words="{" ".join((*main.COMMANDS, "help"))}" ;;
        esac
        ;;
    esac
    [ "$list" ] && stem=${{word%"${{word##*,}}"}}
    # shellcheck disable=SC2207  # words without blanks
    COMPREPLY=($(compgen -P "$stem" -W "$words" -- "${{word#"$stem"}}"))
    [[ ${{COMPREPLY-}} = *= ]] && compopt -o nospace 2>/dev/null
}}
complete -o default -F _tender tender
"""


def zsh_text(text: str) -> str:
    return re.sub(r"[\[\]:]", r"\\\g<0>", sentence(text)).replace("'", "'\\''")


def zsh(table: Module, main: Module) -> str:
    actions = {"FILE": "_files", "IFACE": "_net_interfaces", "TEXT": " "}
    specs = ""
    for option in table.OPTIONS:
        found = values(option)
        text = zsh_text(option.lines[0][1])
        offer = f"_values -s , layer {' '.join(option.words)}" if option.words else f"({found})"
        action = (
            f"{'::' if option.kind == 'report' else ':'}value:{actions.get(found * (not option.words), offer)}"
            if found
            else ""
        )
        equals = "=-" * (option.kind == "report") or "=" * bool(found)
        for name in filter(None, (option.short, option.name)):
            specs += f"    '*{name}{equals}[{text}]{action}' \\\n"
    others = ""
    for command, rows in table.COMMAND_OPTIONS.items():
        own = "".join(
            f" \\\n        '{name.partition('=')[0]}{'=-' * ('=' in name)}[{zsh_text(said)}]{':value: ' * ('=' in name)}'"
            for name, said in rows
        )
        others += (
            f"    {command})\n        shift words\n        (( CURRENT-- ))\n"
            f"        _arguments{own} \\\n        '*:file:_files'\n        return\n        ;;\n"
        )
    return f"""#compdef tender
# {NOTE}
if (( CURRENT > 2 )); then
    case $words[2] in
    help)
        compadd {" ".join(main.COMMANDS)}
        return
        ;;
{others}    esac
fi
_arguments -S \\
{specs}    '1:image or command:{{ _files; compadd {" ".join((*main.COMMANDS, "help"))} }}' \\
    '*:argument:_files'
"""


def fish(table: Module, main: Module) -> str:
    lines = f"# {NOTE}\n"
    guest = f"-n 'not __fish_seen_subcommand_from {' '.join(pythons(main))}'"
    for option in table.OPTIONS:
        found = values(option)
        text = sentence(option.lines[0][1]).replace("'", "\\'")
        words = "(command ls /sys/class/net)" if found == "IFACE" else found
        if option.words:
            words = f'(__fish_complete_list , "printf %s\\\\n {" ".join(option.words)}")'
            found = words
        takes = {"": "", "FILE": " -r", "TEXT": " -x"}.get(found, f" -x -a '{words}'")
        short = f" -s {option.short[1]}" if option.short else ""
        lines += f"complete -c tender {guest} -l {option.name[2:]}{short}{takes * (option.kind != 'report')} -d '{text}'\n"
    for name, (_, text) in main.COMMANDS.items():
        quoted_text = text.replace("'", "\\'")
        lines += f"complete -c tender -n __fish_use_subcommand -a {name} -d '{quoted_text}'\n"
    lines += f"complete -c tender -n '__fish_seen_subcommand_from help' -f -a '{' '.join(main.COMMANDS)}'\n"
    for command, rows in table.COMMAND_OPTIONS.items():
        for name, text in rows:
            option, equals, _ = name.partition("=")
            said = text.replace("'", "\\'")
            lines += (
                f"complete -c tender -n '__fish_seen_subcommand_from {command}' -l {option[2:]}{' -x' * bool(equals)}"
                f" -d '{said}'\n"
            )
    return lines


WRITERS: dict[str, Callable[[Module, Module], str]] = {
    **{"options.h": c_header, "tender.1": man_page},
    **{"tender.bash": bash, "_tender": zsh, "tender.fish": fish},
}


def main() -> None:
    sys.dont_write_bytecode = True
    table, command = load(sys.argv[1]), load(sys.argv[2])
    for output in map(Path, sys.argv[3:]):
        output.write_text(WRITERS[output.name](table, command))


if __name__ == "__main__":
    main()
