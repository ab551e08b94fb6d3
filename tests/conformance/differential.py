"""Runs solo5-hvt and `tender solo5-hvt` on the same words and the same files, and compares what the user
sees of each.

    TENDER_SOLO5_HVT=/path/to/solo5-hvt tools/with_kvm -- python tests/conformance/differential.py [-v] [ELF...]

This is a script, not a test, because it needs a solo5-hvt, which this project does not build. It compares
the exit status, stdout and stderr after it has removed what must differ (see `normal`). A row of TABLE
whose output may differ gives the reason. The script ends with 0 if every such row differs and every other
row is the same. ELF arguments are further unikernels; they run without devices and arguments.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUESTS = [ROOT / "build" / "tests" / "guests", ROOT / "build" / "guest_kernel"]


@dataclass(frozen=True)
class Row:
    """One command line. A word of the form `%name` stands for the path of one of our guests."""

    words: tuple[str, ...]
    differs: str = ""


@dataclass(frozen=True)
class Seen:
    """What a launcher sees of a run."""

    status: int
    stdout: str
    stderr: str


ALL = (
    "--net:service0=tapd0",
    "--net:service1=tapd1",
    "--block:storage0=disk.img",
    "--block:storage1=more.img",
)
FOUR = "%nets_and_blocks"


def row(*words: str, differs: str = "") -> Row:
    return Row(words, differs)


WRAPS = "a sector size above 65535 wraps in solo5-hvt: 66048 counts as 512"
CUT = "a path is cut at its first blank by solo5-hvt"
NO_FD = "solo5-hvt's @FD never works"
TWICE = "solo5-hvt tries what follows --mem=N twice"
TABLE = (
    # the grammar
    row(),
    row("--"),
    row("--mem=8"),
    row("--help"),
    row("--frob", "--help"),
    row("--version"),
    row("--frob", "--version"),
    row("--", "--version"),
    row("%exit_status", "--version"),
    row("%exit_status", "3"),
    row("--", "%exit_status", "3"),
    row("%args", "--", "", "a  b", "--mem=1", "-x", "ünï", ""),
    row("%args", "x" * 8191),
    row("%args", "x" * 8192),
    row("", differs="a kernel without a name: solo5-hvt's message has no name before the colon"),
    row("-", "%args"),
    row("--frob", "%args"),
    row("--frob=1", "%args"),
    row("--help=1", "%args"),
    row("-h", "%args"),
    row("--mem", "8", "%args"),
    row("--gdb", "%args"),
    row("--no-net-ring", "%args", differs="solo5-hvt has this option only in versions after 0.12.1"),
    row("absent.elf", "--frob"),
    row("--frob", "absent.elf"),
    row("--frob", "text"),
    row("--frob", "empty"),
    row("folder", differs="reading a folder fails; solo5-hvt's message names the note that it wanted to read"),
    # memory
    row("%hello"),
    *(row(f"--mem={text}", "%hello") for text in ("2", "3", "1", "8", "9", "32M", " 8", "+8", "8.9", "0x10")),
    *(row(f"--mem={text}", "%hello") for text in ("", "x", "0", "00", "-0", "M", "17592186044416")),
    *(row(f"--mem={text}", "%hello") for text in ("4098", "4099", "-1", "-8", "99999999999999999999")),
    row("--mem=8", "--mem=16", "%hello"),
    row("--mem=0", "--mem=16", "%hello"),
    row("--mem=8", "--", "%hello"),
    row("--mem=0", "--frob", "%hello"),
    row("--frob", "--mem=0", "%hello"),
    row("--mem=9999", *ALL[:2], FOUR),
    row("--mem=8", "%bss_big", differs="here too little memory is reported before the start"),
    # names
    row("--net:=tapd0", FOUR),
    row("--net:a-b=tapd0", FOUR),
    row(f"--net:{'n' * 67}=tapd0", FOUR),
    row(f"--net:{'n' * 68}=tapd0", FOUR),
    row("--net=tapd0", FOUR),
    row("--net:service0", FOUR),
    row("--net:service0=", FOUR),
    row("--net:storage0=tapd0", FOUR),
    row("--block:service0=disk.img", FOUR),
    row("--net-mac:storage0=02:00:00:00:00:01", FOUR),
    row("--block-sector-size:service0=512", FOUR),
    row("--net:nosuch=nosuchtap", FOUR),
    # network
    row(FOUR),
    row(*ALL, "--net-mac:service0=2:0:0:0:0:8", "--net-mac:service1=02:00:00:00:00:07", FOUR),
    row("--net-mac:service0=2:0:0:0:0:8", "--net-mac:service1=aA:00:00:00:00:07x", *ALL, FOUR),
    row("--net:service0=nosuchtap", FOUR),
    row("--net:service0=tapd2", FOUR),
    row("--net:service0=lo", FOUR),
    row("--net:service0=tapd%d", FOUR),
    row("--net:service0=abcdefghijklmno", FOUR),
    row("--net:service0=abcdefghijklmnop", FOUR),
    row("--net:service0=abcdefghijklmnopqrstuvwxyz", FOUR),
    row("--net:service0=nosuch tap", FOUR),
    row("--net:service0=@", FOUR),
    row("--net:service0=@x", FOUR),
    row("--net:service0=@-1", FOUR),
    row("--net:service0=@4294967296", FOUR),
    row("--net:service0=@77", FOUR),
    row("--net:service0=@0", FOUR, differs=NO_FD),
    row("--mem=8", "--net:service0=nosuchtap", FOUR, differs=TWICE),
    row("--net:service0=tapd0", "--net:service0=tapd0", FOUR),
    row(*ALL, "--net:service0=tapd3", *("--net-mac:service0=2:0:0:0:0:8", "--net-mac:service1=2:0:0:0:0:9"), FOUR),
    *(
        row(f"--net-mac:service0={mac}", FOUR)
        for mac in ("", "1:2:3:4:5", "1:2:3:4:5:", "1:2:3:4:5:6", "01:02:03:04:05:067", "001:2:3:4:5:6", "g:2:3:4:5:6")
    ),
    # disks
    row("--block:storage=disk.img", "%disk"),
    row("--block:storage=more.img", "--block:storage=disk.img", "%disk"),
    row("--block:storage=absent.img", "%disk"),
    row("--block:storage=", "%disk"),
    row("--block:storage=folder", "%disk"),
    row("--block:storage=/dev/null", "%disk", differs="here the message says that it is neither a file nor a disk"),
    row("--block:storage=a disk.img", "%disk", differs=CUT),
    row("--block:storage=odd.img", "%disk"),
    row("--block:storage=small.img", "%disk"),
    row("--block:storage=empty.img", "%disk"),
    row("--block:storage=page.img", "--block-sector-size:storage=8192", "%disk"),
    row("--block:storage0=odd.img", FOUR),
    row("--block:storage0=odd.img", "--mem=9", FOUR),
    row("--block:storage=@77", "%disk", differs="@FD is a descriptor here, and a file name for solo5-hvt"),
    row(*ALL, "--block-sector-size:storage1=4096", "--block-sector-size:storage0=32768", FOUR),
    *(
        row(f"--block-sector-size:storage={size}", "--block:storage=disk.img", "%disk")
        for size in ("", "x", "0", "256", "511", "700", "-1", "512", "512x", " 512", "32768", "65535", "65536")
    ),
    row("--block-sector-size:storage=66048", "--block:storage=disk.img", "%disk", differs=WRAPS),
    row("--block-sector-size:nosuch=700", "%disk"),
    row("--block-sector-size:nosuch=512", "%disk"),
    row("--block:storage=absent.img", "--frob", "%disk"),
    row("--frob", "--block:storage=absent.img", "%disk"),
    row("--block:storage0=disk.img", "--net:service0=nosuchtap", FOUR),
    row("--net:service0=tapd0", FOUR, "x" * 8192),
    # ends
    *(row("%exit_status", status) for status in ("0", "1", "2", "60", "64", "254", "255", "256", "-1")),
    row("%panic"),
    row("%write_text"),
    row("%write_rodata"),
    row("%null_write"),
    row("%far_write"),
    row("%exec_data"),
    row("%hlt"),
    row("%triple"),
    row("%bad_port"),
    row("%bad_hypercall"),
    row("%globals"),
    row("%fpu"),
    row("%big_puts"),
)  # fmt: skip

NORMAL = (
    (r"(?m)^\S*: WARNING: .*\n", ""),  # printed by a solo5-hvt that was built without its filter
    (r"(?m)^usage: [^\n]*\n(?s:.*)", "USAGE"),
    (r"(tender, version) \S+", r"\1 V"),
    (r"rip=0x[0-9a-f]+", "rip=R"),
    (
        r"(?m)^(?:\S+: )?\S+\.c:\d+: (Invalid guest access: .*)",
        r"solo5-hvt: \1",
    ),  # solo5-hvt prints its source line
    (r" \(hypercall [^)]*\)", ""),
    (r" \(it is for \w+\)", ""),
    (r"(does not fall within valid size) \(.*\)", r"\1"),  # the values: solo5-hvt prints wrapped ones
)
CLOCKS = ((r"(?m)^clock: .*", "clock"), (r"(?m)\b\d+ ns$|(?<=Slept for )\d+", "T"))
MACS = ((r"(?m)^(service\d handle \d net mac) \S+", r"\1 M"),)


def normal(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    """Removes from the text what differs between two runs of one program, or depends on its version or its
    place."""
    for pattern, instead in rules:
        text = re.sub(pattern, instead, text)
    return text


def seen(program: list[str], words: list[str], macs_given: bool) -> Seen:
    done = subprocess.run(
        [*program, *words], capture_output=True, stdin=subprocess.DEVNULL, timeout=120, check=False
    )
    stdout = normal(done.stdout.decode("utf-8", "replace"), CLOCKS if macs_given else CLOCKS + MACS)
    return Seen(done.returncode, stdout, normal(done.stderr.decode("utf-8", "replace"), NORMAL))


def guest(word: str) -> str:
    """Returns the word itself, or the path of the guest that it names."""
    if not word.startswith("%"):
        return word
    return next(str(found) for place in GUESTS if (found := place / f"{word[1:]}.elf").exists())


def make_files(folder: Path) -> None:
    sizes = {"disk.img": 1 << 16, "more.img": 1 << 17, "a disk.img": 1 << 16, "page.img": 4096}
    for name, size in {**sizes, "odd.img": 1000, "small.img": 100, "empty.img": 0, "empty": 0}.items():
        with open(folder / name, "wb") as file:
            file.truncate(size)
    (folder / "text").write_text("not a unikernel, and longer than the header of an ELF file is: 64 bytes\n")
    (folder / "folder").mkdir()


def make_taps() -> None:
    for number in range(4):
        subprocess.run(["ip", "tuntap", "add", f"tapd{number}", "mode", "tap"], check=True)
        if number != 2:
            subprocess.run(["ip", "link", "set", f"tapd{number}", "up"], check=True)


def shown(one: Seen) -> str:
    lines = [f"status {one.status}", *one.stdout.splitlines(), "--", *one.stderr.splitlines()]
    return "\n".join(f"      {line}" for line in lines)


def main(argv: list[str]) -> int:
    solo5 = os.environ.get("TENDER_SOLO5_HVT", "")
    if not solo5:
        print("differential: TENDER_SOLO5_HVT must name a solo5-hvt", file=sys.stderr)
        return 2
    verbose = argv[:1] == ["-v"]
    rows = [*TABLE, *(row(str(Path(path).resolve())) for path in argv[verbose:])]
    program = [str(Path(sys.executable).parent / "tender"), "solo5-hvt"]
    os.environ["TENDER_BACKEND"] = "kvm"  # the only backend of solo5-hvt
    wrong = 0
    make_taps()
    for one in rows:
        words = [guest(word) for word in one.words]
        macs_given = sum(word.startswith("--net-mac") for word in words) == 2
        ends = []
        for command in ([solo5], program):
            with tempfile.TemporaryDirectory() as folder:
                make_files(Path(folder))
                os.chdir(folder)
                ends.append(seen(command, words, macs_given))
                os.chdir("/")
        same = ends[0] == ends[1]
        verdict = "same" if same else f"differs: {one.differs}" if one.differs else "DIFFERS"
        if same and one.differs:
            verdict = f"SAME, although: {one.differs}"
        wrong += same == bool(one.differs)
        print(f"{verdict:8} {' '.join(word[:40] or repr('') for word in one.words)}", flush=True)
        if verbose or (not same and not one.differs):
            print(f"    solo5-hvt\n{shown(ends[0])}\n    tender solo5-hvt\n{shown(ends[1])}")
    print(f"{len(rows)} rows, {wrong} not as the table says")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
