"""Where fetched and built things lie, and who may touch them when.

    CACHE/lock                   flock: exclusive to make or remove, shared to use
    CACHE/kernel-RELEASE/        an unpacked kernel package
    CACHE/boot-KEY/              vmlinux, initrd
    CACHE/warm-KEY/              ram, state: a booted VM

Rule: an entry is a directory that appears complete, by one rename under the exclusive lock. A KEY
covers all that the entry was made from, so an entry is never updated, only no longer used.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

KEPT = {"boot": 4, "warm": 4}  # a warm entry is some 85 MB, a boot entry 65 MB


class Cache:
    """The cache directory; it is made at first use."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    @classmethod
    def default(cls) -> "Cache":
        """The cache that the environment names."""
        if own := os.environ.get("KVMBOX_CACHE"):
            return cls(Path(own).absolute())
        base = os.environ.get("XDG_CACHE_HOME")
        return cls((Path(base).absolute() if base else Path.home() / ".cache") / "kvmbox")

    def entry(self, name: str, make: Callable[[Path], None]) -> Path:
        """The entry, made by `make` in an empty directory if it is not there; one maker at a time."""
        path = self.root / name
        if not path.exists():
            with self._locked(fcntl.LOCK_EX):
                if not path.exists():
                    self._make(path, make)
                self._prune()
        os.utime(path)
        return path

    def remove(self, name: str) -> None:
        """Remove the entry, once nobody uses it."""
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
        shutil.rmtree(unfinished, ignore_errors=True)  # of a maker that was killed
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
