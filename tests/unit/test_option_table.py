"""The table of options, and what is generated from it: values, documentation, the manual page, completions."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tender.annotations import IsolationLayer
from tender.cli import (
    capture,
    core,
    crash_report,
    debug,
    doctor,
    inspect,
    main,
    metrics,
    option_table,
    options,
    profile,
    ps,
    sdk,
    stats,
    top,
    trace,
    usage,
)
from tender.cli.audit import command as audit
from tender.cli.option_table import ACTION, OPTIONS, Fields, Option
from tender.config import BACKENDS, MEM_DEFAULT

ROOT = Path(__file__).resolve().parents[2]
EACH = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
SHELLS = ("tender.bash", "_tender", "tender.fish")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the files that the build generates for users."""
    directory = tmp_path_factory.mktemp("made")
    cli = ROOT / "tender" / "cli"
    write: list[str | Path] = [sys.executable, ROOT / "bindings" / "command" / "gen_options.py"]
    outputs = [directory / name for name in ("tender.1", *SHELLS)]
    subprocess.run([*write, cli / "option_table.py", cli / "main.py", *outputs], check=True, timeout=60)
    return directory


def test_each_option_name_is_in_one_row() -> None:
    names = [name for option in OPTIONS for name in (option.name, option.short) if name]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"--[a-z][a-z-]+|-[a-zA-Z]", name) for name in names)


def test_each_field_has_a_type_and_a_default() -> None:
    fields = {o.field for o in OPTIONS if o.kind != ACTION and not o.device}
    assert set(Fields.__annotations__) == fields
    plain = options.RunOptions()  # a field without a default would be missing
    assert fields == {field for field in fields if hasattr(plain, field)}
    assert plain.mem_bytes == MEM_DEFAULT


def test_the_row_of_backend_offers_each_backend() -> None:
    (option,) = [option for option in OPTIONS if option.name == "--backend"]
    assert option.value == "=" + "|".join(BACKENDS)
    assert re.findall(r"--backend=(\w+)", option.form) == list(BACKENDS)


@EACH
def test_pythons_parser_accepts_each_option(option: Option) -> None:
    """A value is read, or refused with a message about that option. No option is unknown."""
    try:
        options.parse_args([option.name, "app.elf"])
    except options.UsageError as error:
        assert not error.message.startswith(f"Invalid option: `{option.name}'"), error.message


def document() -> list[list[str]]:
    """Returns the rows of the list in docs/cli.md."""
    text = (ROOT / "docs" / "cli.md").read_text()
    table = text.split("| Option | Meaning |\n|---|---|\n")[1].split("\n\n")[0]
    return [re.split(r" \| ", row.strip("| "), maxsplit=1) for row in table.split("\n")]


def heads() -> list[str]:
    """Returns the document's text for each option before its explanation: every form, with each word of a
    value as a separate form."""
    found = []
    for option in OPTIONS:
        for value, _ in option.lines:
            form = option.name + value
            if form.endswith("]") and "[=" in form:
                form = f"{option.name}|{form.replace('[', '').rstrip(']')}"
            words = form.split("|")
            found.append(", ".join(f"`{word}`" for word in ([option.short] if option.short else []) + words))
    return found


def test_the_document_lists_the_tables_options() -> None:
    assert [row[0] for row in document()] == heads()


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.variable], ids=lambda option: option.name)
def test_help_and_document_name_the_variable(option: Option) -> None:
    (row,) = [row for row in document() if row[0].startswith(f"`{option.name}=")]
    assert f"`{option.variable}`" in row[1]
    assert option.variable in option.lines[0][1]


def statuses(page: str) -> list[tuple[str, ...]]:
    """Returns the rows of the page's table of exit statuses."""
    table = re.search(
        r"^\| (?:Exit s|S)tatus \| Meaning \|\n\|---\|---\|\n((?:\|.*\n)+)", (ROOT / page).read_text(), re.M
    )
    assert table
    return [tuple(row.strip("| ").split(" | ")) for row in table[1].splitlines()]


def test_the_pages_and_the_help_give_the_tables_exit_statuses() -> None:
    assert statuses("docs/cli.md") == list(option_table.STATUSES)
    ours = [row for row in option_table.STATUSES if row in statuses("README.md")]
    assert [status for status, _ in ours] == ["0 to 254", "255", "1", "2", "70"]
    assert statuses("README.md") == ours
    (said,) = re.findall(r"The exit status is.*?\.", usage.run_help(), re.DOTALL)
    assert re.findall(r"\d+", said) == ["255", "1", "2", "70"]


def test_the_list_of_layers_is_the_librarys() -> None:
    (option,) = [option for option in OPTIONS if option.name == "--require"]
    assert option.words == tuple(IsolationLayer)


OTHERS = {
    "inspect": inspect.USAGE,
    "audit": audit.USAGE,
    "doctor": doctor.USAGE,
    "debug": debug.USAGE,
    "core": core.USAGE,
    "trace": trace.USAGE,
    "capture": capture.USAGE,
    "report": crash_report.USAGE,
    "ps": ps.USAGE,
    "stats": stats.USAGE,
    "metrics": metrics.USAGE,
    "top": top.USAGE,
    "profile": profile.USAGE,
    "sdk": sdk.USAGE,
}


def test_each_command_without_a_guest_has_its_options_in_the_table() -> None:
    assert set(option_table.COMMAND_OPTIONS) == set(OTHERS)
    for command, rows in option_table.COMMAND_OPTIONS.items():
        head = OTHERS[command].partition("\n")[0]
        named = [] if "[OPTIONS]" in head else sorted(name.partition("=")[0] for name, _ in rows)
        assert sorted(re.findall(r"--[a-z]+", head)) == named
        for name, text in rows:
            assert re.search(rf"^  {name} +{re.escape(text)}$", OTHERS[command], re.M), name


@pytest.mark.parametrize("command", OTHERS)
def test_the_document_names_the_options_of_the_other_commands(command: str) -> None:
    page = (ROOT / "docs" / "cli.md").read_text().split("## The other commands")[1].split("\n## ")[0]
    (part,) = [part for part in page.split("\n\n**`tender ")[1:] if part.startswith(command)]
    for name, _ in option_table.COMMAND_OPTIONS[command]:
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", part), name


def test_solo5s_usage_has_exactly_its_options() -> None:
    text = usage.solo5("solo5-hvt")
    found = set(re.findall(r"^  (--[a-z-]+)(?:, (--[a-z-]+))?", text, re.MULTILINE))
    assert {name for pair in found for name in pair if name} == {
        o.name for o in OPTIONS if o.solo5 is not None
    }


def test_the_manual_page_has_every_form_command_and_variable(made: Path) -> None:
    text = re.sub(r"\\f[BIR]|\\&", "", (made / "tender.1").read_text()).replace("\\-", "-")
    for option in OPTIONS:
        for value, words in option.lines:
            short = f"{option.short}, " if option.short else ""
            assert f"\n.TP\n{short}{option.name}{value}\n{words}\n" in text
        assert not option.variable or f"\n.B {option.variable}\n" in text
    for name, (_, words) in main.COMMANDS.items():
        assert f"\n.TP\n{name}\n{words}\n" in text
    for status, words in option_table.STATUSES:
        assert f"\n.TP\n.B {status}\n{words.replace('`', '')}\n" in text
    for command, rows in option_table.COMMAND_OPTIONS.items():
        own = text.split(f"\n.SS tender {command}\n")[1].partition("\n.S")[0] + "\n"
        assert all(f".TP\n{name}\n{words}\n" in own for name, words in rows)
    headings = ["EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"]
    assert [name for name in re.findall(r"^\.SH (.*)", text, re.M) if name in headings] == headings
    assert option_table.ABOUT in text and option_table.EXAMPLES in text
    for line in text.split("\n"):  # otherwise a formatter would read a sentence as a request
        assert not line.startswith("'") and (
            line[:1] != "." or re.match(r"\.(TH|SH|SS|TP|B|PP|br|nf|fi|\.\.|\\)", line)
        )


@pytest.mark.parametrize("shell", SHELLS)
@EACH
def test_completions_have_every_option(made: Path, shell: str, option: Option) -> None:
    text = (made / shell).read_text()
    dashes = "-l " if shell == "tender.fish" else "--"
    assert re.search(rf"(?<![\w-]){dashes}{option.name[2:]}(?![\w-])", text)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("command", option_table.COMMAND_OPTIONS)
def test_completions_have_the_options_of_the_other_commands(made: Path, shell: str, command: str) -> None:
    text = (made / shell).read_text()
    start = f"__fish_seen_subcommand_from {command}'" if shell == "tender.fish" else f"    {command})"
    part = text.split(start, 1)[1]
    part = part if shell == "tender.fish" else part.partition(";;")[0]
    dashes = "-l " if shell == "tender.fish" else "--"
    for name, _ in option_table.COMMAND_OPTIONS[command]:
        assert re.search(rf"(?<![\w-]){dashes}{name.partition('=')[0][2:]}(?![\w-])", part), name


@pytest.mark.parametrize("shell", SHELLS)
def test_completions_have_every_layer(made: Path, shell: str) -> None:
    assert " ".join(IsolationLayer) in (made / shell).read_text()


def offered(made: Path, line: str) -> list[str]:
    """Returns what bash offers after `line`. Bash divides words at `=` and `:` too."""
    words = re.findall(r"[^\s=:]+|[=:]+", line) + ([""] if line[-1] in " =:" else [])
    script = (
        f'. "{made}/tender.bash"; COMP_LINE=$1 COMP_POINT=${{#1}}; shift; COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); '
        'COMPREPLY=(); _tender tender "" ""; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-uc", script, "bash", line, *words], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tender --back", ["--backend"]),
        ("tender --backend=", ["auto", "kvm", "sandbox"]),
        ("tender --backend=s", ["sandbox"]),
        ("tender --mem=8 --backend k", ["kvm"]),
        ("tender --net-r", ["--net-reattach"]),
        ("tender --mem 8 --no-net", ["--no-net-ring"]),
        ("tender --net:service0=l", ["lo"]),
        ("tender ins", ["inspect"]),
        ("tender run --ver", ["--verbose", "--version"]),
        ("tender --mem ", []),
        ("tender --block=", []),
        ("tender inspect --m", []),
        ("tender inspect --", ["--json", "--symbols", "--at="]),
        ("tender inspect ", []),
        ("tender inspect --at=0", []),
        ("tender doctor --", ["--json", "--kvm", "--sandbox", "--filter"]),
        ("tender sdk --g", ["--guests"]),
        ("tender bench --", []),
        ("tender help ", list(main.COMMANDS)),
        ("tender help ins", ["inspect"]),
        ("tender help run ", []),
        ("tender --require=", list(IsolationLayer)),
        ("tender --require land", ["landlock"]),
        ("tender --require=uid,k", ["uid,kvm"]),
        ("tender --require uid,landlock,p", ["uid,landlock,pid-namespace"]),
        ("tender --mem=8 ", []),
    ],
)
def test_bash_completion_offers_these_words(made: Path, line: str, words: list[str]) -> None:
    """Where the list is empty, bash itself offers files."""
    assert offered(made, line) == words


def test_bash_completion_offers_all_options_after_a_dash(made: Path) -> None:
    assert set(offered(made, "tender -")) == {*options.OPTIONS, *options.SHORT}
