"""The command as launchers know it: under the name `solo5-hvt`, with a test's own files and interfaces."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Done = subprocess.CompletedProcess[str]
Solo5 = Callable[..., Done]


@pytest.fixture
def front(tender_cmd: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A function: front(NAME) is the path of a link to `tender` with that name."""
    folder = tmp_path_factory.mktemp("front")

    def link(name: str) -> str:
        path = folder / name
        if not path.is_symlink():
            path.symlink_to(tender_cmd[0])
        return str(path)

    return link


@pytest.fixture
def solo5(front: Callable[[str], str], tmp_path: Path) -> Solo5:
    """A function: solo5(WORDS...) runs the command as `solo5-hvt` to its end, in the test's folder."""
    program = front("solo5-hvt")

    def run(*words: str | Path, pass_fds: Sequence[int] = (), **options: object) -> Done:
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            [program, *map(str, words)],
            **{
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "stdin": subprocess.DEVNULL,
                "text": True,
                "errors": "surrogateescape",
                "timeout": 60,
                "check": False,
                "cwd": tmp_path,
                "pass_fds": pass_fds,
                **options,
            },
        )

    return run


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """disk.img of 64 KiB in the test's folder. Next to it is disk1.img, for a guest with two disks."""
    for name in ("disk.img", "disk1.img"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(1 << 16)
    return tmp_path / "disk.img"
