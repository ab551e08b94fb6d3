"""tools/chroot: what its command sees, and that it leaves nothing behind. A copy of some programs replaces
a real Debian."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.kvmbox
ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("sh", "env", "umount", "cat", "ls", "git", "unshare", "true", "kill")
Run = Callable[..., "subprocess.CompletedProcess[str]"]

DEBOOTSTRAP = """\
#!/bin/sh
[ -z "$FAIL" ] || exit 3
for tree; do case $tree in *.new) break ;; esac; done
mkdir -p $tree/proc $tree/sys $tree/dev $tree/run $tree/etc/apt/apt.conf.d $tree/etc/ssl/certs $tree/tmp $tree/root
mount -t proc proc $tree/proc # as debootstrap does
echo "deb mirror.example/debian suite main" >$tree/etc/apt/sources.list
cp --parents -L FILES $tree
for link in bin lib lib64; do [ -e $tree/$link ] || ln -s usr/$link $tree/$link; done
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A function: run(WORDS...) runs tools/chroot with its own cache and a fake debootstrap, which makes a
    tree of programs from this machine."""
    programs = [found for name in PROGRAMS if (found := shutil.which(name, path="/usr/bin:/bin"))]
    listed = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    libraries = set(re.findall(r"(/\S+) \(0x", listed))
    fake = tmp_path / "bin" / "debootstrap"
    fake.parent.mkdir()
    fake.write_text(DEBOOTSTRAP.replace("FILES", " ".join([*programs, *libraries])))
    fake.chmod(0o755)

    def run(*arguments: str, root: Path = ROOT, **variables: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), **variables}
        environment.setdefault("PATH", "")
        if "PATH" not in variables:
            environment["PATH"] = f"{fake.parent}:{os.environ['PATH']}"
        command = [str(root / "tools" / "chroot"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    return run


def repository(place: Path) -> Path:
    """Makes a git repository with tools/chroot and one file, committed."""
    (place / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "chroot", place / "tools")
    (place / "old").write_text("before\n")
    git = ("git", "-C", str(place), "-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    return place


def test_the_command_sees_the_sources_and_namespaces_and_leaves_no_mount(run: Run, tmp_path: Path) -> None:
    """The test uses its own repository: tests that run at the same time would see a new file in this tree."""
    sources = repository(tmp_path / "sources")
    (sources / "new").write_text("uncommitted\n")
    script = (
        "cat old new; ls -d /proc/self /dev/null /sys/kernel; git status --porcelain;"
        "unshare --user --map-root-user --net true && echo namespaces; exit 7"
    )
    done = run("bookworm-main", "--", "sh", "-c", script, root=sources)
    assert done.returncode == 7, done.stderr
    said = ["before", "uncommitted", "/dev/null", "/proc/self", "/sys/kernel", "namespaces"]
    assert done.stdout.split() == said
    (sources / "new").unlink()
    done = run("bookworm-main", "ls", "new", root=sources)  # the tree exists already, and is updated
    assert done.returncode != 0 and "making" not in done.stderr
    assert run("bookworm-main", "sh", "-c", "kill -KILL $$").returncode == -9
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert (tmp_path / "cache/tender-chroot/bookworm-main/etc/apt/sources.list").read_text().count(
        "deb "
    ) == 1


def files_below(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Returns each file and directory with its owner, size and inode. Times are left out, because git marks
    an object as used."""
    states = {str(path): path.lstat() for path in directory.rglob("*")}
    return {path: (state.st_uid, state.st_size, state.st_ino) for path, state in states.items()}


@pytest.mark.parametrize("where", ["a repository", "a worktree"])
def test_the_repository_of_another_user_is_not_changed(run: Run, tmp_path: Path, where: str) -> None:
    """The commit of the tool needs objects and an index. Files of root in the user's repository would stop
    the user's own git."""
    main = repository(tmp_path / "a: repository")
    sources = main if where == "a repository" else tmp_path / "worktree"
    if sources != main:
        subprocess.run(["git", "-C", str(main), "worktree", "add", "-q", str(sources)], check=True)
    hook = main / ".git" / "hooks" / "pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    (sources / "old").write_text("after\n")
    (sources / "new").write_text("untracked\n")
    for path in (main, *main.rglob("*"), sources, *sources.rglob("*")):
        os.chown(path, 65534, 65534)
    before = files_below(main / ".git")
    done = run("trixie", "--", "cat", "old", "new", root=sources)
    assert (done.returncode, done.stdout) == (0, "after\nuntracked\n"), done.stderr
    assert files_below(main / ".git") == before
    assert not list((tmp_path / "cache/tender-chroot/trixie").glob("git-*"))


def test_distributions_with_updates_have_them_as_sources(run: Run, tmp_path: Path) -> None:
    assert run("trixie", "true").returncode == 0
    sources = (tmp_path / "cache/tender-chroot/trixie/etc/apt/sources.list").read_text().splitlines()
    assert sources[1] == "deb mirror.example/debian trixie-updates main"
    assert re.fullmatch(r"deb \S+ trixie-security main", sources[2])


def test_the_machines_pip_configuration_and_its_paths_are_available(run: Run, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "one.whl").write_text("")
    done = run("trixie", "sh", "-c", 'ls "$PIP_FIND_LINKS"', PIP_FIND_LINKS=str(wheels))
    assert (done.returncode, done.stdout) == (0, "one.whl\n"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        ([], {}, "no DIST: the distributions are bookworm-main, bookworm, trixie, forky"),
        (["sarge", "true"], {}, "sarge: the distributions are bookworm-main, bookworm, trixie, forky"),
        (["trixie"], {}, "no command: tools/chroot DIST [--] COMMAND..."),
        (["trixie", "--"], {}, "no command: tools/chroot DIST [--] COMMAND..."),
        (["trixie", "true"], {"FAIL": "yes"}, "debootstrap trixie .*: status 3; see .*debootstrap.log"),
        (
            ["trixie", "true"],
            {"PATH": "/usr/bin:/bin"},
            "debootstrap is missing: apt-get install debootstrap",
        ),
    ],
)
def test_an_error_is_reported_with_the_way_out(
    run: Run, tmp_path: Path, arguments: list[str], variables: dict[str, str], message: str
) -> None:
    done = run(*arguments, **variables)
    assert done.returncode == 125
    assert re.fullmatch(
        message.replace("[--]", r"\[--\]"), done.stderr.splitlines()[-1].removeprefix("chroot: ")
    )
    assert not (tmp_path / "cache/tender-chroot/trixie").exists()


def test_root_is_required() -> None:
    command = ["unshare", "--user", str(ROOT / "tools" / "chroot"), "trixie", "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 125
    assert done.stderr == "chroot: only root can make another Debian and its mounts: run it as root\n"
