"""The cache of fetched and built files, and its locks.

    CACHE/lock                   flock: exclusive to make or remove an entry, shared to use one
    CACHE/kernel-RELEASE/        an unpacked kernel package
    CACHE/boot-KEY/              vmlinux, initrd
    CACHE/warm-KEY/              ram, state: a booted VM

Rule: an entry is a directory that appears complete, by one rename with the exclusive lock held. A KEY
covers everything from which the entry was made. So an entry is never updated: another KEY replaces it.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

KEPT = {"boot": 4, "warm": 4}  # a warm entry takes about 85 MB, a boot entry 65 MB


class Cache:
    """The cache directory. It is made at first use."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    @classmethod
    def default(cls) -> "Cache":
        """The cache that the environment names, or the usual one."""
        if own := os.environ.get("KVMBOX_CACHE"):
            return cls(Path(own).absolute())
        base = os.environ.get("XDG_CACHE_HOME")
        return cls((Path(base).absolute() if base else Path.home() / ".cache") / "kvmbox")

    def entry(self, name: str, make: Callable[[Path], None]) -> Path:
        """The entry. If it does not exist, `make` makes it in an empty directory, one maker at a time."""
        path = self.root / name
        if not path.exists():
            with self._locked(fcntl.LOCK_EX):
                if not path.exists():
                    self._make(path, make)
                self._prune()
        os.utime(path)
        return path

    def remove(self, name: str) -> None:
        """Wait until no kvmbox uses the cache, and remove the entry."""
        with self._locked(fcntl.LOCK_EX):
            shutil.rmtree(self.root / name, ignore_errors=True)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While inside, no entry is removed."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with open(self.root / "lock", "w") as lock:
            fcntl.flock(lock, how)
            yield

    def _make(self, path: Path, make: Callable[[Path], None]) -> None:
        unfinished = self.root / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a maker that was killed
        unfinished.mkdir()
        try:
            make(unfinished)
            unfinished.rename(path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _prune(self) -> None:
        for kind, kept in KEPT.items():
            entries = sorted(self.root.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime)
            for old in entries[:-kept]:
                shutil.rmtree(old, ignore_errors=True)
