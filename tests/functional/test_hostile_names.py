"""Names of any bytes, from files and from the command line: none moves a cursor, forges a line, or
runs when a hint is pasted.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from elf_builder import good_elf
from fake_guest import guest_of_elf
from support import Guest

from tender.debug.core import save_core

NAMES = {
    "escape": "a\x1b[2K\x1b]0;FORGED\x07",
    "newline": "a\nFORGED: hint: run this",
    "return": "a\rFORGED",
    "C1": "a\x9b31mb",
    "a byte of C1": os.fsdecode(b"a\x9b31mb"),
    "no UTF-8": os.fsdecode(b"a\xff\xfeb"),
    "delete": "a\x7f\x7fb",
    "bidi": "a\u202eb\u2066c",
    "line separator": "a\u2028FORGED",
    "quotes": "a'b\"c`touch hit`",
    "substitution": "a$(touch hit);touch hit",
    "spaces": "a  b",
}
# {}: the name, {/}: a path that contains it; {disk}: a guest that declares a disk
PLACES: dict[str, list[str]] = {
    "image": ["{}"],
    "image, solo5": ["solo5-hvt", "{}"],
    "image, by path": ["{/}"],
    "file that is not an image": ["{file}"],
    "subcommand": ["help", "{}"],
    "option": ["--frob{}"],
    "option, solo5": ["solo5-hvt", "--frob={}", "{disk}"],
    "value": ["--mem={}", "{disk}"],
    "time": ["--timeout={}", "{disk}"],
    "layer": ["--require={}", "{disk}"],
    "disk": ["--block=storage={/}", "{disk}"],
    "disk, solo5": ["solo5-hvt", "--block:storage={/}", "{disk}"],
    "disk's name": ["--block:{}=x", "{disk}"],
    "interface": ["--net={}", "{net}"],
    "interface, solo5": ["solo5-hvt", "--net:service0={}", "{net}"],
    "console": ["--console={/}/x", "{disk}"],
    "report": ["--json={/}/x", "{disk}"],
    "inspected": ["inspect", "{/}"],
    "inspected, none": ["inspect", "{file}"],
    "inspect's option": ["inspect", "--{}"],
    "audited": ["audit", "{/}"],
    "audited, none": ["audit", "{file}"],
    "audit's option": ["audit", "--{}"],
    "audit's requirement": ["audit", "--require={}>=1", "{disk}"],
    "debug's option": ["debug", "--{}"],
    "debugged": ["debug", "{/}"],
    "debug's place": ["debug", "--listen={/}/x", "1"],
    "debug's process": ["debug", "--stdio", "{}"],
    "core's option": ["core", "--{}"],
    "core's file": ["core", "--output={/}/x", "{}"],
    "core that is opened": ["core", "open", "{file}"],
    "core that is not there": ["core", "open", "{/}"],
    "directory of a core": ["--core={/}", "{disk}"],
    "report's option": ["report", "--{}"],
    "report's page": ["report", "--html={/}/x", "{core}"],
    "report's image": ["report", "--image={/}", "{core}"],
    "reported": ["report", "{/}"],
    "reported, none": ["report", "{file}"],
    "doctor's option": ["doctor", "--{}"],
    "sdk's option": ["sdk", "--{}"],
    "queried": ["solo5-elftool", "query-abi", "{/}"],
    "manifest": ["solo5-elftool", "gen-manifest", "{file}", "out.c"],
    "device": ["{devices}"],
    "device, solo5": ["solo5-hvt", "{devices}"],
    "device, another": ["--block:other=x", "{devices}"],
    "device, one of two": ["--block=x", "{devices}"],
}


WRONG_WORDS_ARE_2 = ("audit's option", "audit's requirement")


def run(launcher: str, words: list[str], directory: Path) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [os.fsencode(word) for word in words], capture_output=True, timeout=60, check=False, cwd=directory,
        stdin=subprocess.DEVNULL, env={**os.environ, "TENDER_LAUNCHER": launcher, "TENDER_BACKEND": "sandbox"},
    )  # fmt: skip


def filled(words: list[str], name: str, directory: Path, guest: Guest) -> list[str]:
    raw = os.fsencode(name)
    (directory / "dir").mkdir(exist_ok=True)
    file = os.fsencode(directory) + b"/dir/file " + raw
    Path(os.fsdecode(file)).write_bytes(b"{ no elf")
    if "{core}" in words and not (directory / "core").exists():
        save_core(guest_of_elf(guest("hello"), "main"), path=str(directory / "core"))
    devices = directory / "devices.elf"
    devices.write_bytes(good_elf(devices=[(raw[:60], "block"), (b"second" + raw[:40], "block")]))
    return [
        word.format(
            name, **{"/": f"{directory}/dir/{name}", "file": os.fsdecode(file), "devices": str(devices),
                     "core": str(directory / "core"), "disk": str(guest("disk")), "net": str(guest("echo"))}
        ) for word in words
    ]  # fmt: skip


def check_lines(text: bytes, program: str) -> list[str]:
    lines = text.decode("utf-8").split("\n")  # it is UTF-8, whatever the name is
    assert lines.pop() == ""
    for line in lines:
        assert line.isprintable(), line
        assert not line.removeprefix(f"{program}: ").removeprefix("hint: ").startswith("FORGED"), line
    return lines


@pytest.mark.parametrize("launcher", ["", "native"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", PLACES)
def test_a_message_about_any_name_is_whole_lines(
    place: str, name: str, launcher: str, tender_cmd: list[str], guest: Guest, tmp_path: Path
) -> None:
    words = filled(PLACES[place], NAMES[name], tmp_path, guest)
    done = run(launcher, [*tender_cmd, *words], tmp_path)
    program = words[0] if words[0] in ("solo5-hvt", "solo5-elftool") else "tender"
    if launcher == "native" and program == "solo5-elftool":
        program = "tender"  # the launcher answers that the command needs Python
    assert (
        done.returncode == (2 if place in WRONG_WORDS_ARE_2 and launcher != "native" else 1)
        and done.stdout == b""
    )
    lines = check_lines(done.stderr, program)
    assert lines[0].startswith(f"{program}: ") and "internal error" not in lines[0]
    assert "\\udc" not in done.stderr.decode() or "got '" in done.stderr.decode()


PASTED: dict[str, tuple[list[str], str, str, int]] = {
    # place: the words, how the hint's line begins, the command in it, the index of the name among its words
    "a disk to be made": (["--block=storage={/}", "{disk}"], "make it: ", "truncate", 3),
    "an interface to be made": (["--net={}", "{net}"], "make it: ", "ip", 3),
    "the same with devices": (["{devices}"], "", "tender", -1),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", PASTED)
def test_a_hint_can_be_pasted(
    place: str, name: str, tender_cmd: list[str], guest: Guest, tmp_path: Path
) -> None:
    """A shell reads the intended words from the hint, and runs nothing else."""
    words, begins, command, at = PASTED[place]
    given = NAMES[name][:15] if place == "an interface to be made" else NAMES[name]
    if place == "an interface to be made" and (" " in given or "\n" in given):
        given = given.replace(" ", "_").replace("\n", "_")
    words = filled(words, given, tmp_path, guest)
    done = run("", [*tender_cmd, *words], tmp_path)
    lines = check_lines(done.stderr, "tender")
    hints = [line.removeprefix("tender: hint: ") for line in lines if line.startswith("tender: hint: ")]
    pasted = next(line for line in hints if line.startswith(begins + command))
    hint = pasted.removeprefix(begins).split(" && ")[0]
    script = f"{command}() {{ printf '%s\\0' \"$@\"; }}; {hint}"
    shell = subprocess.run(
        ["bash", "-c", os.fsencode(script)], capture_output=True, timeout=60, check=True, cwd=tmp_path
    )  # fmt: skip
    seen = shell.stdout.split(b"\0")[:-1]
    if at >= 0:
        assert seen[at - 1] == os.fsencode(words[0].partition("=")[2].removeprefix("storage="))
    else:
        assert seen[-1] == os.fsencode(words[0])
    assert not list(tmp_path.rglob("hit"))


@pytest.mark.parametrize("name", NAMES)
def test_json_is_text_for_any_reader(name: str, tender_cmd: list[str], guest: Guest, tmp_path: Path) -> None:
    directory = os.fsencode(tmp_path) + b"/" + os.fsencode(NAMES[name])
    image = directory + b".elf"
    with open(image, "wb") as file:
        file.write(guest("exit_status").read_bytes())
    shown = os.fsencode(os.fsdecode(image)).decode("utf-8", "backslashreplace")
    done = run("", [*tender_cmd, "--json=-", os.fsdecode(image), "3"], tmp_path)
    assert done.returncode == 3
    assert json.loads(done.stdout.decode("ascii"))["image"] == shown
    done = run("", [*tender_cmd, "inspect", "--json", os.fsdecode(image)], tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout.decode("ascii"))["file"] == shown
    for command in ("inspect", "query-manifest"):
        words = ["inspect"] if command == "inspect" else ["solo5-elftool", command]
        done = run("", [*tender_cmd, *words, os.fsdecode(image)], tmp_path)
        assert done.returncode == 0
        check_lines(done.stdout, "tender")
