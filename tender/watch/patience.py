"""Looks at many processes, and waits for none of them longer than a limit.

The kernel reads another process's memory under a lock of that process. One that hangs in the kernel, or whose memory is
served by a file system or a userfaultfd(2) of its own, makes its reader wait. So a thread does the reading, and is left
behind where it waits; another thread goes on. A process that has made a thread wait is not looked at again until that
thread has come back. A user who has two such processes has no other one looked at, so nobody can use up our time.
"""

import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

LIMIT_S = 2.0
STUCK_MAX = 2
"""How many processes of one user may make a thread wait at the same time."""


class Patience(Generic[T]):
    """Calls a function for processes, one after the other.

    Args:
        work: Called with the id of a process. It must not wait for this thread.
        limit_s: How long it may take.
    """

    def __init__(self, work: Callable[[int], T], *, limit_s: float = LIMIT_S) -> None:
        self._work, self._limit_s = work, limit_s
        self._lock = threading.Lock()
        self._stuck: dict[int, int] = {}  # process: its user

    def each(self, pids: Iterable[int]) -> tuple[dict[int, T], set[int]]:
        """Returns what `work` returns by process, and the processes that were given up or left out.

        Raises what `work` raises.
        """
        found: dict[int, T] = {}
        given_up: set[int] = set()
        waiting = deque(pids)
        while waiting:
            lane = _Lane(self, waiting)
            threading.Thread(target=lane.run, name="tender-watch", daemon=True).start()
            pid = lane.wait(self._limit_s)
            found |= lane.found
            given_up |= lane.left_out
            if pid is None:
                if lane.error:
                    raise lane.error
                break
            given_up.add(pid)
        return found, given_up

    def _may_look(self, pid: int) -> bool:
        with self._lock:
            if not self._stuck:
                return True
            return pid not in self._stuck and Counter(self._stuck.values())[_user(pid)] < STUCK_MAX


class _Lane(Generic[T]):
    """One thread's part of the work."""

    def __init__(self, of: Patience[T], waiting: "deque[int]") -> None:
        self._of, self._waiting = of, waiting
        self._at: int | None = None
        self._is_left = False
        self._done = threading.Event()
        self.found: dict[int, T] = {}
        self.left_out: set[int] = set()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Works until nothing is waiting, or until this thread is left behind."""
        try:
            while self._next():
                assert self._at is not None
                answer = self._of._work(self._at)
                with self._of._lock:
                    if self._is_left:
                        return
                    self.found[self._at] = answer
        except BaseException as error:
            self.error = error
        finally:
            with self._of._lock:
                if self._is_left and self._at is not None:
                    self._of._stuck.pop(self._at, None)
                self._at = None
            self._done.set()

    def _next(self) -> bool:
        while self._waiting:
            pid = self._waiting.popleft()
            if self._of._may_look(pid):
                self._at = pid
                return True
            self.left_out.add(pid)
        return False

    def wait(self, limit_s: float) -> int | None:
        """Waits for the thread's end. Returns the process for which it has waited too long, else None."""
        before = None
        while not self._done.wait(limit_s):
            with self._of._lock:
                if self._at is not None and self._at == before:
                    self._is_left = True
                    self._of._stuck[self._at] = _user(self._at)
                    return self._at
                before = self._at
        return None


def _user(pid: int) -> int:
    """The directory of a process belongs to its effective user."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1
