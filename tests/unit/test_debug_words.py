"""The words of `tender debug`: options of its own and of `tender run`, in any order before the image."""

import pytest

from tender.cli import debug
from tender.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "run_words", "gdb_words"),
    [
        (["app.elf"], ["app.elf"], []),
        (["--batch", "--mem=16", "app.elf", "--batch"], ["--mem=16", "app.elf", "--batch"], ["-batch"]),
        (["--mem", "16", "--ex", "bt", "app.elf"], ["--mem", "16", "app.elf"], ["-ex", "bt"]),
        (["--net", "tap0", "--batch", "app.elf"], ["--net", "tap0", "app.elf"], ["-batch"]),
        (["--net:service=tap0", "-x", "file", "app.elf"], ["--net:service=tap0", "app.elf"], ["-x", "file"]),
        (["--json", "--batch", "app.elf"], ["--json", "app.elf"], ["-batch"]),
        (["--example=hello", "--batch"], ["--example=hello"], ["-batch"]),
        (["--mem=16", "--", "app.elf", "--ex"], ["--mem=16", "--", "app.elf", "--ex"], []),
        (["--mem=16", "4711"], ["--mem=16", "4711"], []),
    ],
)
def test_options_of_both_commands_may_be_mixed(
    words: list[str], run_words: list[str], gdb_words: list[str]
) -> None:
    request = debug._read(words)
    assert (request.run_words, request.gdb_words, request.pid) == (run_words, gdb_words, 0)


@pytest.mark.parametrize(
    ("words", "gdb_words"),
    [(["4711"], []), (["--batch", "4711", "--", "-ex", "bt"], ["-batch", "-ex", "bt"])],
)
def test_words_after_a_process_are_gdbs(words: list[str], gdb_words: list[str]) -> None:
    request = debug._read(words)
    assert (request.pid, request.gdb_words, request.run_words) == (4711, gdb_words, [])


@pytest.mark.parametrize(
    "words",
    [
        ["--stdio"],
        ["--ex"],
        ["4711", "--mem=16"],
        ["--stdio", "--listen=x", "1"],
        ["0"],
        ["99999999999"],
        ["--vm=x", "1"],
    ],
)
def test_wrong_words_are_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError):
        debug._read(words)
