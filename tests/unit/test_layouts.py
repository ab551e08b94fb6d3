"""Where `tender` and the files that it needs may be: each layout works, or the error says what was
searched, where, and the way out."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import Guest

import tender

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).parent / "tender"
PACKAGE = Path(tender.__file__).parent
BASE_PYTHON = Path(sys._base_executable)  # type: ignore[attr-defined]
LIB = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


def put_package(place: Path) -> None:
    shutil.copytree(PACKAGE, place / "tender")


def put_cffi(place: Path) -> None:
    import _cffi_backend

    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(_cffi_backend.__file__, place)


def put_program(prefix: Path) -> None:
    (prefix / "bin").mkdir(parents=True)
    shutil.copy(PROGRAM, prefix / "bin")


def make_venv(prefix: Path) -> None:
    """Makes an environment as `python -m venv` does, with the package and without cffi."""
    put_program(prefix)
    put_package(prefix / LIB)
    put_python(prefix / "bin")


def put_python(bin_directory: Path) -> None:
    """Makes the python3 of a virtual environment, which does not see packages of the system."""
    bin_directory.parent.joinpath("pyvenv.cfg").write_text(
        f"home = {BASE_PYTHON.parent}\ninclude-system-site-packages = false\n"
    )
    (bin_directory / "python3").symlink_to(BASE_PYTHON)


@dataclass
class Layout:
    """A directory `tmp` with some layout in it, and the environment of the commands."""

    tmp: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.tmp / "path").mkdir()
        (self.tmp / "path/python3").symlink_to(BASE_PYTHON)
        self.environment = {"PATH": f"{self.tmp}/path:/usr/bin:/bin", "HOME": f"{self.tmp}/home"}

    def run(self, *words: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            words, cwd=self.tmp, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def in_one_venv(at: Layout) -> Path:
    make_venv(at.tmp / "venv")
    put_cffi(at.tmp / "venv" / LIB)
    return at.tmp / "venv"


def cffi_by_a_path_file(at: Layout) -> Path:
    """A virtual environment that includes another directory by a .pth file: only `site` reads those."""
    make_venv(at.tmp / "venv")
    put_cffi(at.tmp / "others")
    (at.tmp / "venv" / LIB / "others.pth").write_text(f"{at.tmp}/others\n")
    return at.tmp / "venv"


def cffi_of_the_user(at: Layout) -> Path:
    """`pip install --user cffi`, with a `tender` that an administrator installed."""
    put_program(at.tmp / "usr")
    put_package(at.tmp / "usr" / LIB)
    put_cffi(at.tmp / "home/.local" / LIB)
    return at.tmp / "usr"


def all_of_the_user(at: Layout) -> Path:
    put_program(at.tmp / "home/.local")
    put_package(at.tmp / "home/.local" / LIB)
    put_cffi(at.tmp / "home/.local" / LIB)
    return at.tmp / "home/.local"


def cffi_by_pythonpath(at: Layout) -> Path:
    make_venv(at.tmp / "venv")
    put_cffi(at.tmp / "others")
    at.environment["PYTHONPATH"] = f"{at.tmp}/others"
    return at.tmp / "venv"


def target_with_pythonpath(at: Layout) -> Path:
    """`pip install --target DIRECTORY`, and PYTHONPATH as pip's manual recommends."""
    put_program(at.tmp / "target")
    put_package(at.tmp / "target")
    put_cffi(at.tmp / "target")
    at.environment["PYTHONPATH"] = f"{at.tmp}/target"
    return at.tmp / "target"


def target(at: Layout) -> Path:
    """`pip install --target DIRECTORY` without PYTHONPATH."""
    place = target_with_pythonpath(at)
    del at.environment["PYTHONPATH"]
    return place


def moved_venv(at: Layout) -> Path:
    return in_one_venv(at).rename(at.tmp / "moved")


def venv_without_python(at: Layout) -> Path:
    place = in_one_venv(at)
    (place / "bin/python3").unlink()
    (place / "bin/python3").symlink_to(at.tmp / "gone")
    return place


WORKING = (
    *(in_one_venv, cffi_by_a_path_file, cffi_of_the_user, all_of_the_user, cffi_by_pythonpath),
    *(target_with_pythonpath, target, moved_venv, venv_without_python),
)


@pytest.mark.parametrize("make", WORKING)
def test_commands_in_python_work_wherever_cffi_is_installed(
    layout: Layout, guest: Guest, make: Callable[[Layout], Path]
) -> None:
    program = make(layout) / "bin/tender"
    done = layout.run(program, "inspect", guest("hello"))
    assert (done.returncode, done.stderr) == (0, "") and "hvt" in done.stdout
    done = layout.run(program, "sdk", "--include")
    assert (done.returncode, done.stderr) == (0, "")


def no_cffi(at: Layout) -> Path:
    make_venv(at.tmp / "venv")
    return at.tmp / "venv"


def no_cffi_and_no_python(at: Layout) -> Path:
    make_venv(at.tmp / "venv")
    (at.tmp / "venv/bin/python3").unlink()
    (at.tmp / "path/python3").unlink()
    put_python(at.tmp / "path")
    return at.tmp / "venv"


def broken_cffi(at: Layout) -> Path:
    place = in_one_venv(at)
    (library,) = (place / LIB).glob("_cffi_backend*")
    library.write_bytes(b"")
    return place


def broken_native(at: Layout) -> Path:
    place = in_one_venv(at)
    (place / LIB / "tender/_native.abi3.so").write_bytes(b"")
    return place


def no_native(at: Layout) -> Path:
    place = in_one_venv(at)
    (place / LIB / "tender/_native.abi3.so").unlink()
    return place


MISSING: dict[Callable[[Layout], Path], str] = {
    **dict.fromkeys((no_cffi, no_cffi_and_no_python, broken_cffi), "cffi"),
    **dict.fromkeys((broken_native, no_native), "tender"),
}


@pytest.mark.parametrize("module", [False, True], ids=["command", "python -m"])
@pytest.mark.parametrize("make", MISSING)
def test_a_missing_package_is_named_with_the_places_and_the_way_out(
    layout: Layout, guest: Guest, make: Callable[[Layout], Path], module: bool
) -> None:
    place = make(layout)
    python = place / "bin/python3" if (place / "bin/python3").exists() else layout.tmp / "path/python3"
    layout.environment |= {"PYTHONPATH": f"{place}/{LIB}"} if module else {}
    front = [python, "-P", "-m", "tender"] if module else [place / "bin/tender"]
    done = layout.run(*front, "inspect", guest("hello"))
    assert (done.returncode, done.stdout) == (1, "")
    first, second, hint = done.stderr.splitlines()
    assert first.startswith(
        f"tender: the Python package {MISSING[make]}, which is needed, cannot be imported: "
    )
    assert str(python) in second and LIB in second
    assert hint.startswith("tender: hint: ") and "install tender again" in hint
    done = layout.run(*front, "--help")
    assert (done.returncode, done.stderr) == (0, ""), "a command that does not need the package fails"


@pytest.mark.parametrize("words", [("-c", "from tender import Vm"), ("-m", "tender", "inspect", "app.elf")])
def test_a_core_for_another_machine_is_recognised(layout: Layout, words: tuple[str, ...]) -> None:
    place = in_one_venv(layout)
    core = place / LIB / "tender/_native.abi3.so"
    with open(core, "r+b") as file:
        file.seek(18)
        file.write((183).to_bytes(2, "little"))  # EM_AARCH64
    done = layout.run(place / "bin/python3", "-P", *words)
    assert (done.returncode, done.stdout) == (1, "")
    said = f"tender runs on Linux on x86_64 only, and its core {core} is for aarch64"
    lines = done.stderr.splitlines()
    assert lines[-1 if words[0] == "-c" else 0].endswith(f": {said}")


def copied(at: Layout) -> list[str | Path]:
    put_program(at.tmp / "copy")
    return [at.tmp / "copy/bin/tender"]


def linked_hard(at: Layout) -> list[str | Path]:
    place = in_one_venv(at)
    (at.tmp / "other/bin").mkdir(parents=True)
    (at.tmp / "other/bin/tender").hardlink_to(place / "bin/tender")
    return [at.tmp / "other/bin/tender"]


def package_removed(at: Layout) -> list[str | Path]:
    place = in_one_venv(at)
    shutil.rmtree(place / LIB / "tender")
    return [place / "bin/tender"]


WITHOUT_PACKAGE = (copied, linked_hard, package_removed)


@pytest.mark.parametrize("words", [("--backend=sandbox",), ("inspect",), ("--stats",), ("solo5-hvt",)])
@pytest.mark.parametrize("python", ["python", "no python"])
@pytest.mark.parametrize("make", WITHOUT_PACKAGE)
def test_the_program_without_its_package_names_where_it_searched(
    layout: Layout,
    guest: Guest,
    make: Callable[[Layout], list[str | Path]],
    python: str,
    words: tuple[str, ...],
) -> None:
    command = make(layout)
    layout.environment["TENDER_BACKEND"] = "sandbox"
    if python == "no python":
        layout.environment["PATH"] = ""
        Path(command[0]).parent.joinpath("python3").unlink(missing_ok=True)
    done = layout.run(*command, *words, guest("hello"))
    assert (done.returncode, done.stdout) == (1, "")
    name = words[0] if words == ("solo5-hvt",) else "tender"
    lines = done.stderr.splitlines()
    assert lines and all(line.startswith(f"{name}: ") for line in lines)
    here = Path(command[0]).parent
    if python == "no python" and words[0] in ("inspect", "--stats"):
        assert f"there is no python3 in {here} or in PATH" in done.stderr
        return
    assert f"{here}/../lib/python3*/{{site,dist}}-packages/tender" in done.stderr
    assert "symbolic link" in done.stderr or name == "solo5-hvt"


@pytest.mark.parametrize("launcher", ["native", "python"])
@pytest.mark.parametrize("moved", [False, True])
def test_a_symbolic_link_runs_guests_wherever_the_environment_is(
    layout: Layout, guest: Guest, moved: bool, launcher: str
) -> None:
    place = moved_venv(layout) if moved else in_one_venv(layout)
    (layout.tmp / "link").symlink_to(place / "bin/tender")
    layout.environment["TENDER_LAUNCHER"] = launcher
    done = layout.run(layout.tmp / "link", "--backend=sandbox", guest("hello"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [["inspect", "app.elf"], ["--backend=sandbox", "app.elf"], ["--version"]])
@pytest.mark.parametrize("what", ["tender", "tender/cli"])
def test_a_package_that_the_user_may_not_read_is_recognised(words: list[str], what: str) -> None:
    """Root installs a package like this under umask 077. Another user may not enter pytest's own
    directories."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        at = Layout(place)
        in_one_venv(at)
        place.chmod(0o755)
        shutil.copy(PACKAGE / "guests/hello.elf", place / "app.elf")
        (place / "venv" / LIB / what).chmod(0)
        command = [place / "venv/bin/tender", *words]
        user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        done = subprocess.run(
            command,
            cwd=place,
            env=at.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **user,
        )  # type: ignore[call-overload]
        (place / "venv" / LIB / what).chmod(0o755)
        if words == ["--version"] or (what != "tender" and words[0] != "inspect"):
            assert (done.returncode, done.stderr) == (0, "")
            return
        assert (done.returncode, done.stdout) == (1, "")
        assert f"{LIB}/tender/" in done.stderr and "which you may not read (Permission denied)" in done.stderr
        assert "chmod -R a+rX" in done.stderr and "a copy of the program" not in done.stderr
        assert all(line.startswith("tender: ") for line in done.stderr.splitlines())


def test_options_that_need_python_name_the_variable_that_forbids_it(layout: Layout, guest: Guest) -> None:
    place = in_one_venv(layout)
    layout.environment["TENDER_LAUNCHER"] = "native"
    for words, what in ((["inspect"], "this needs Python"), (["--stats"], "these arguments need Python")):
        done = layout.run(place / "bin/tender", *words, guest("hello"))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"tender: {what}, which TENDER_LAUNCHER=native forbids\n"


@pytest.mark.parametrize("front", [[], ["solo5-hvt"], ["--json=-"]])
def test_an_unknown_launcher_is_an_error(layout: Layout, guest: Guest, front: list[str]) -> None:
    place = in_one_venv(layout)
    layout.environment |= {"TENDER_LAUNCHER": "foo", "TENDER_BACKEND": "sandbox"}
    done = layout.run(place / "bin/tender", *front, guest("hello"))
    name = front[0] if front == ["solo5-hvt"] else "tender"
    assert done.returncode == 1
    assert done.stderr.startswith(f"{name}: Malformed value of TENDER_LAUNCHER\n")
    if front == ["--json=-"]:
        assert json.loads(done.stdout)["reason"] == "not-started"
    if name == "tender":
        assert done.stderr.splitlines()[1] == (
            "tender: hint: got 'foo': write TENDER_LAUNCHER=python or TENDER_LAUNCHER=native, or unset it"
        )
    layout.environment["TENDER_LAUNCHER"] = ""
    done = layout.run(place / "bin/tender", *front, guest("hello"))
    assert done.returncode == 0, "an empty variable does not count as unset"


def test_a_deleted_program_is_reported(layout: Layout, guest: Guest) -> None:
    """fexecve(3) of a deleted file starts a program like this: it cannot find its own directory."""
    (program,) = copied(layout)
    fd = os.open(program, os.O_RDONLY)
    os.unlink(program)
    done = subprocess.run(
        [f"/proc/self/fd/{fd}", "--backend=sandbox", guest("hello")],
        pass_fds=[fd],
        env=layout.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(fd)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the directory of this program" in done.stderr and "symbolic link" in done.stderr


@pytest.mark.parametrize(
    ("doctor", "said"),
    [
        (None, "`tender` is not in PATH"),
        ("echo broken >&2; exit 1", "`tender doctor --kvm` failed: broken"),
        ("exit 127", "`tender doctor --kvm` failed: "),
    ],
)
def test_with_kvm_does_not_blame_the_hosts_kvm_for_a_failure_of_the_command(
    layout: Layout, doctor: str | None, said: str
) -> None:
    """The test uses a copy of tools/, as in a tree where nothing was built."""
    shutil.copytree(ROOT / "tools", layout.tmp / "tree/tools", ignore=shutil.ignore_patterns("__pycache__"))
    if doctor is not None:
        (layout.tmp / "path/tender").write_text(f"#!/bin/sh\n{doctor}\n")
        (layout.tmp / "path/tender").chmod(0o755)
    done = layout.run(layout.tmp / "tree/tools/with_kvm", "--or-sandbox", "--", "true")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"with_kvm: {said}") and "this host's KVM" not in done.stderr


def in_the_source_tree(at: Layout) -> Path:
    """The state after `make build`: the sources are here, and an environment has the package."""
    tree = at.tmp / "tree"
    shutil.copytree(ROOT / "tender", tree / "tender")
    (tree / "bindings/python").mkdir(parents=True)
    shutil.copy(ROOT / "bindings/python/native.c", tree / "bindings/python")
    make_venv(tree / ".venv")
    put_cffi(tree / ".venv" / LIB)
    return tree


USES = {
    "import tender": ("-c", "import tender"),
    "a name": ("-c", "from tender import Vm"),
    "a module": ("-c", "import tender.config"),
    "-m tender": ("-m", "tender", "--version"),
    "-m tender.cli.main": ("-m", "tender.cli.main"),
}


@pytest.mark.parametrize("use", USES)
def test_in_the_source_tree_a_failed_import_names_the_cause(layout: Layout, use: str) -> None:
    """Python searches the working directory, or the script's, before the installed packages."""
    tree = in_the_source_tree(layout)
    layout.tmp = tree
    python = tree / ".venv/bin/python3"
    done = layout.run(python, *USES[use])
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout) == (1, "")
    assert f"ImportError: {tree}/tender holds the sources of the package" in last and "`python -P`" in last
    if use.startswith("-m"):
        assert done.stderr.splitlines() == [last], "there is a traceback"
    way_out = {"-m tender": (0, f"tender {tender.__version__}")}.get(use, (0, ""))
    done = layout.run(python, "-P", *USES[use])
    assert (done.returncode, done.stdout.partition("\n")[0], done.stderr) == (*way_out, "")


def test_in_the_source_tree_a_script_gets_the_same_error(layout: Layout) -> None:
    tree = in_the_source_tree(layout)
    (tree / "example.py").write_text("import tender\nprint(tender.Vm.__name__)\n")
    done = layout.run(tree / ".venv/bin/python3", tree / "example.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert "holds the sources of the package" in done.stderr.splitlines()[-1]
    done = layout.run(tree / ".venv/bin/python3", "-P", tree / "example.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Vm\n", "")
