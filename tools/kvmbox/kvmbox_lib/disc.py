"""The disc of an Intel test VM: kernel and initramfs to boot from, and copies of the files that the command needs.

Bochs has no virtio, so the host's / cannot be shared. Each file that is named is copied, at its own path, with the
symbolic links that lead to it and the libraries that its programs are linked with. The disc is made for each run, in a
second or two, so it is always up to date.
"""

import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import KvmboxError

BOOT_DIRECTORY = "isolinux"  # where the boot loader isolinux looks for its files
ISOLINUX = (Path("/usr/lib/ISOLINUX/isolinux.bin"), Path("/usr/lib/syslinux/modules/bios/ldlinux.c32"))
# The programs that shell scripts and the tests call in addition to the files that are named.
PROGRAMS = """
cat chmod cp date echo env false grep head ip kill ls mkdir mount ping rm sed sh sleep tail true uname unshare
"""
FILES = ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/ld.so.cache", "/etc/protocols")
LEFT_OUT = (".git", ".mypy_cache", ".ruff_cache", ".hypothesis")
LINKS_MAX = 40  # as in path_resolution(7)


def with_links(path: Path) -> list[Path]:
    """Each symbolic link on the way to the path, and at last the path that it leads to."""
    found: list[Path] = []
    for _ in range(LINKS_MAX):
        path = Path(os.path.normpath(path))
        link = next((p for p in [*reversed(path.parents), path] if p.is_symlink()), None)
        if link is None:
            return [*found, path]
        found.append(link)
        path = link.parent / os.readlink(link) / path.relative_to(link)
    raise KvmboxError(f"{path}: too many symbolic links")


def _files_below(path: Path, without: set[Path]) -> Iterator[Path]:
    if not path.is_dir():
        yield path
    for place, directories, names in os.walk(path):
        here = Path(place)
        directories[:] = [name for name in directories if name not in LEFT_OUT and here / name not in without]
        yield from (here / name for name in names if here / name not in without)


def is_program(path: Path) -> bool:
    """Whether the file may need libraries: an ELF program or a shared library."""
    if not (os.access(path, os.X_OK) or ".so" in path.name) or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def libraries(programs: Iterable[Path]) -> set[Path]:
    """The libraries that the dynamic linker would map for these programs."""
    words = sorted({str(path) for path in programs})
    if not words:
        return set()
    done = subprocess.run(
        ["ldd", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    found = set()
    for line in done.stdout.splitlines():
        for word in line.split():
            if word.startswith("/") and not word.endswith(":"):
                found.add(Path(word))
    return found


def contents(wanted: Iterable[Path], without: Iterable[Path] = ()) -> list[Path]:
    """The wanted files and directories, and everything else that they need on the disc."""
    roots: set[Path] = set()
    programs = []
    left_out = set(without)
    for path in wanted:
        if not path.exists():
            raise KvmboxError(f"{path}: no such file or directory to copy for the test VM")
        roots.update(chain := with_links(path))
        below = list(_files_below(chain[-1], left_out))
        for link in below:
            if link.is_symlink() and link.exists():
                roots.update(with_links(link))
        programs += [file for file in below if is_program(file)]
    for library in libraries(programs):
        roots.update(with_links(library))
    return sorted(
        path
        for path in roots
        if not any(parent in roots and not parent.is_symlink() for parent in path.parents)
    )


def write_disc(
    out: Path, kernel: Path, initrd: Path, arguments: str, files: Iterable[Path], without: Iterable[Path] = ()
) -> None:
    """Write the disc. Raises KvmboxError with xorriso's messages."""
    place = out.parent
    (place / "isolinux.cfg").write_text(
        f"DEFAULT linux\nPROMPT 0\nLABEL linux\n KERNEL vmlinuz\n INITRD initrd\n APPEND {arguments}\n"
    )
    boot = {"vmlinuz": kernel, "initrd": initrd, "isolinux.cfg": place / "isolinux.cfg"}
    boot |= {path.name: path for path in ISOLINUX}
    grafts = [f"/{BOOT_DIRECTORY}/{name}={_escaped(path)}" for name, path in boot.items()]
    grafts += [f"{_escaped(path)}={_escaped(path)}" for path in files]
    (place / "files").write_text("".join(f"{line}\n" for line in grafts))
    command = ["xorriso", "-as", "mkisofs", "-quiet", "-o", str(out), "-R", "-graft-points"]
    command += ["-b", f"{BOOT_DIRECTORY}/isolinux.bin", "-c", f"{BOOT_DIRECTORY}/catalog", "-no-emul-boot"]
    command += [
        "-boot-load-size",
        "4",
        "-boot-info-table",
        "-iso-level",
        "3",
        "-path-list",
        str(place / "files"),
    ]
    for name in (*LEFT_OUT, *map(str, without)):
        command += ["-m", name]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KvmboxError(f"could not write the test VM's disc:\n{done.stderr.strip()[-2000:]}")


def _escaped(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace("=", "\\=")
