"""The guests that run on this host: RunningGuest, and running(), which finds them.

A guest is looked at from outside, and goes on meanwhile. What its process says of it may be forged, and is taken as text
and numbers for people. The rest is the kernel's word. Watch looks again and again, and remembers what need not be read
twice.
"""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from errno import EACCES, EPERM, ESRCH

from tender.annotations import Word
from tender.debug import ptrace
from tender.debug.access import refusal
from tender.debug.facts import ENDED_KINDS, Shared, boot_info, counters_of
from tender.debug.find import Guest, Program, program_of
from tender.debug.image_file import build_id_of, open_image
from tender.debug.target import DebugError
from tender.native import ffi
from tender.result import Counters
from tender.values import Value, value
from tender.watch import process
from tender.watch.patience import LIMIT_S, Patience
from tender.watch.process import Times

WEDGED_S = 10.0
"""A guest that computes is called wedged after so many seconds of its processor's time without a hypercall."""
GUESTS_MAX = 4096
"""The most guests of one process that are looked at."""
_DELAY_FIRST_S, _DELAY_MAX_S = 1.0, 10.0  # until a process without a guest is looked into again
_SMAPS_SHARE = 0.005  # of a processor, for the memory of a guest on KVM
_OURS = frozenset(("tender", "tender-sandbox"))
_GUESTLESS = frozenset(
    ("inspect", "audit", "doctor", "debug", "core", "report", "ps", "stats", "top", "metrics", "trace")
) | {"capture", "profile", "sdk", "bench", "solo5-elftool", "help"}
"""The subcommands that run no guest: those of tender/cli/main.py, which this module does not import."""
_SLOW = "its memory cannot be read in time"
_ENDINGS = (".elf", ".hvt", ".spt", ".img", ".bin")


class RunState(Word):
    """What a guest does at the moment of a look."""

    COMPUTES = "computes"
    """It executes instructions, or a hypercall is being served."""
    WAITS = "waits"
    """It waits: for time, for a frame, for its console's reader, for a disk."""
    WEDGED = "wedged"
    """It computes, and has done so for 10 s of its processor's time without a hypercall: see `RunningGuest.silent_s`."""
    STOPPED = "stopped"
    """Its process is stopped by SIGSTOP."""
    HELD = "held"
    """A debugger holds it."""
    IDLE = "idle"
    """A VM of the library that no thread runs: it was not started."""
    ENDED = "ended"
    """Its run has ended, and its owner still has it."""
    UNKNOWN = "unknown"
    """It cannot be read: see `RunningGuest.why`."""


@value
class RunningGuest(Value):
    """A guest of this host at the moment of a look.

    Sizes are bytes, times are seconds. What cannot be read is 0, None or empty, and `why` says the reason.

    Attributes:
        id: Tells this guest from all others of this host until the host boots again.
        pid: The process whose thread executes it, as this process sees its number.
        tid: That thread. 0: on KVM, a VM that no thread runs.
        holder: The process that made the VM: `pid` itself for the command and on KVM, the library's process else.
        name: The image's file without directory and ending. It is the process's word, as `image` is.
        image: The path of the image as its process was given it; empty if it has none.
        build_id: The build id of that file, in hexadecimal; empty if it has none or cannot be read.
        backend: `kvm` or `sandbox`; empty if the guest cannot be read.
        user: The user whose process it is. `sandbox` stands for the user that a root's guest is given.
        state: What it does.
        why: Why it cannot be read; empty if it can.
        uptime_s: Since its first instruction, or since its process began if that is not known.
        guest_cpu_s: On KVM, the time that the vCPU ran; in the sandbox, its process's time in user mode.
        monitor_cpu_s: The rest of the time of the process (of a library's VM on KVM: of its thread).
        silent_s: Seconds of `cpu_s` that are known to have passed without a hypercall until now.
        mem_bytes: The size of guest memory.
        touched_bytes: Of this, what the guest has written to, with the data of its image. It never falls.
        resident_bytes: The memory of its whole process.
        counters: What was counted since its start.
        devices: Its devices, name and kind.
        cgroup: The path of its cgroup.
        container: The id or name of the container that the cgroup is named for.
        looked_ns: When this was read, in nanoseconds of CLOCK_MONOTONIC.
    """

    id: str
    pid: int
    tid: int
    holder: int
    name: str
    image: str
    build_id: str
    backend: str
    user: str
    state: RunState
    why: str
    uptime_s: float
    guest_cpu_s: float
    monitor_cpu_s: float
    silent_s: float
    mem_bytes: int
    touched_bytes: int
    resident_bytes: int
    counters: Counters | None
    devices: dict[str, str]
    cgroup: str
    container: str
    looked_ns: int

    @property
    def cpu_s(self) -> float:
        """The processor's time that it has used, in seconds.

        Its resolution is a tick of the kernel, often 10 ms.
        """
        return self.guest_cpu_s + self.monitor_cpu_s

    def since(self, earlier: "RunningGuest") -> "GuestRates | None":
        """Returns what it has done since an earlier look, for each second.

        Args:
            earlier: The same guest, of an earlier call.

        Returns:
            The rates, or None: it is another guest, cannot be read, or no time has passed.
        """
        seconds = (self.looked_ns - earlier.looked_ns) / 1e9
        if earlier.id != self.id or seconds <= 0 or self.counters is None or earlier.counters is None:
            return None
        now, then = self.counters.to_dict(), earlier.counters.to_dict()
        calls, called = self.counters.hypercalls, earlier.counters.hypercalls
        return GuestRates(
            seconds=seconds,
            cpu_percent=100 * _grown(self.cpu_s, earlier.cpu_s) / seconds,
            counters={
                name: _grown(count, then[name]) / seconds
                for name, count in now.items()
                if isinstance(count, int)
            },
            hypercalls={name: _grown(count, called[name]) / seconds for name, count in calls.items()},
        )


@value
class GuestRates(Value):
    """What a guest has done between two looks.

    Attributes:
        seconds: The time between them.
        cpu_percent: The share of one processor that it used.
        counters: The fields of `Counters` that are numbers, for each second.
        hypercalls: Hypercalls by name, for each second.
    """

    seconds: float
    cpu_percent: float
    counters: dict[str, float]
    hypercalls: dict[str, float]


def _grown(now: object, then: object) -> float:
    """Counters begin anew when a VM of a pool is reset."""
    if not isinstance(now, (int, float)) or not isinstance(then, (int, float)):
        return 0.0
    return float(now - then if now >= then else now)


def _calls(counters: Counters) -> int:
    """A guest that is served by the network ring may need no hypercall for it."""
    return sum(counters.hypercalls.values()) + counters.net_ring_kicks + counters.net_ring_packets


def running(*, before: Iterable[RunningGuest] = ()) -> list[RunningGuest]:
    """Returns the guests of this host, and of all containers on it, that this process may see.

    The guests are not stopped. One of another user, that the kernel does not let us read, is there too if its process is
    one of Tender's programs; its `why` says which rule is in the way. One that begins meanwhile may be missing.

    Args:
        before: What an earlier call returned. A guest can be seen to be wedged over several calls, and after its start.

    Returns:
        The guests, by process.
    """
    watch = Watch()
    watch.remember(before)
    return watch.look()


@dataclass(frozen=True)
class _Constant:
    """What does not change while a guest runs."""

    devices: dict[str, str] = field(default_factory=dict)
    cgroup: str = ""
    container: str = ""
    build_id: str = ""


@dataclass(frozen=True)
class _Known:
    """What is remembered of a process.

    Attributes:
        program: What it has of Tender; None: nothing, or it cannot be read.
        key: When it began, and where its program lies: changes with exec(2).
        why: Why it cannot be read.
        ours: Whether it is one of Tender's programs by its name.
        again: When to look into it again, on the monotonic clock.
        delay_s: How long to wait then.
        constant: What does not change, by the place of the guest's state.
        touched: Memory of guests on KVM by the same: until when it need not be read again, and the bytes.
    """

    program: Program | None
    key: tuple[int, int]
    why: str
    ours: bool
    again: float
    delay_s: float
    constant: dict[int, _Constant]
    touched: dict[int, tuple[float, int]]


class Watch:
    """Looks at the guests of this host again and again. It belongs to one thread.

    Args:
        limit_s: How long one process may let us wait.
    """

    def __init__(self, *, limit_s: float = LIMIT_S) -> None:
        self._patience = Patience(self._look_at, limit_s=limit_s)
        self._known: dict[int, _Known] = {}
        self._last: dict[str, RunningGuest] = {}
        self._now = 0.0

    def remember(self, guests: Iterable[RunningGuest]) -> None:
        """Takes guests of an earlier look as those of the last one."""
        self._last |= {guest.id: guest for guest in guests}

    def look(self, only: Sequence[int] | None = None) -> list[RunningGuest]:
        """Returns the guests of all processes, or of these."""
        self._now = time.monotonic()
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()] if only is None else list(only)
        known, now = self._known, self._now
        due = [pid for pid in pids if pid not in known or known[pid].ours or known[pid].again <= now]
        answers, given_up = self._patience.each(due)
        found: list[RunningGuest] = []
        for pid, (state, guests) in answers.items():
            found += guests
            if state:
                known[pid] = state
            else:
                known.pop(pid, None)
        found += [
            _blank(pid, _SLOW)
            for pid in given_up
            if _is_named_ours(pid) or (pid in known and known[pid].ours)
        ]
        if only is None:
            for pid in known.keys() - set(pids):
                del known[pid]
        found = [self._with_silence(guest) for guest in found]
        self._last = {guest.id: guest for guest in found}
        return sorted(found, key=lambda guest: (guest.pid, guest.id))

    def _with_silence(self, guest: RunningGuest) -> RunningGuest:
        """A guest's silence goes on while it makes no hypercall. It begins with its first instruction."""
        if guest.counters is None:
            return guest
        last = self._last.get(guest.id)
        calls, silent_s = _calls(guest.counters), 0.0
        if last and last.counters and _calls(last.counters) == calls:
            silent_s = last.silent_s + _grown(guest.cpu_s, last.cpu_s)
        elif not calls:
            silent_s = guest.guest_cpu_s
        state = guest.state
        if state == RunState.COMPUTES and silent_s >= WEDGED_S:
            state = RunState.WEDGED
        return guest._with(silent_s=silent_s, state=state)

    # ---- on the thread of Patience

    def _look_at(self, pid: int) -> tuple[_Known | None, list[RunningGuest]]:
        """Returns what to remember of a process, None if it is gone, and its guests."""
        known = self._known.get(pid)
        try:
            times = process.times_of(str(pid))
            key = (times.started, times.code)
            if known is None or known.key != key or (known.program is None and known.again <= self._now):
                known = self._known_of(pid, key, known)
            if known.program is None or times.state in "ZX":
                return known, _unread(pid, known.why) if known.ours else []
            return self._guests_of(known.program, known, times)
        except (OSError, DebugError, ValueError, IndexError) as error:
            if isinstance(error, ptrace.Gone) or not os.path.exists(f"/proc/{pid}"):
                return None, []
            why = _why(pid, error)
            ours = _is_ours(pid)
            return self._waiting(known, key=(0, 0), why=why, ours=ours), _unread(pid, why) if ours else []

    def _known_of(self, pid: int, key: tuple[int, int], before: _Known | None) -> _Known:
        program, why = None, ""
        try:
            program = program_of(pid)
        except (OSError, DebugError) as error:
            if isinstance(error, ptrace.Gone):
                raise
            why = _why(pid, error)
        if program is None:
            return self._waiting(before, key=key, why=why, ours=bool(why) and _is_ours(pid))
        return _Known(program, key, "", True, 0.0, _DELAY_FIRST_S, {}, {})

    def _waiting(self, before: _Known | None, *, key: tuple[int, int], why: str, ours: bool) -> _Known:
        delay_s = before.delay_s if before and before.program is None else _DELAY_FIRST_S
        return _Known(None, key, why, ours, self._now + delay_s, min(2 * delay_s, _DELAY_MAX_S), {}, {})

    def _guests_of(
        self, program: Program, known: _Known, times: Times
    ) -> tuple[_Known | None, list[RunningGuest]]:
        found: list[RunningGuest] = []
        begun = True
        constant, touched = dict(known.constant), dict(known.touched)
        for guest in program.guests():
            if len(found) == GUESTS_MAX:
                break
            try:
                shared = Shared(guest).read()
            except DebugError as error:
                if error.errno:
                    raise
                continue  # the VM was closed meanwhile, or there never was one
            words = ffi.new("struct vm_shared *")
            ffi.memmove(words, shared, len(shared))
            first_run = int(words.timeline.first_run)
            begun &= bool(first_run)
            if guest.shared_hva not in constant and first_run:
                constant[guest.shared_hva] = _constant(guest)
            place = f"{guest.pid}/task/{guest.tid}" if guest.tid else f"{guest.pid}"
            memory = process.memory_of(place)
            if guest.tid not in (0, guest.pid):
                times = replace(process.times_of(place), started=times.started)
            looked_ns = time.monotonic_ns()
            same = constant.get(guest.shared_hva) or _Constant()
            found.append(
                RunningGuest(
                    id=f"{guest.pid}-{times.started}-{guest.shared_hva:x}",
                    pid=guest.pid,
                    tid=guest.tid,
                    holder=guest.holder,
                    name=_name(guest.image_name),
                    image=guest.image_name,
                    build_id=same.build_id,
                    backend=guest.backend,
                    user=_user(guest.pid),
                    state=_state(
                        guest, times, int(words.event.kind), held=bool(words.held), first_run=first_run
                    ),
                    why="",
                    uptime_s=_uptime(first_run, times, looked_ns),
                    mem_bytes=guest.mem_bytes,
                    touched_bytes=self._touched(guest, memory.anonymous, touched),
                    resident_bytes=memory.resident,
                    silent_s=0.0,
                    counters=counters_of(shared),
                    devices=same.devices,
                    cgroup=same.cgroup,
                    container=same.container,
                    looked_ns=looked_ns,
                    **_cpu(guest, times),
                )
            )
        known = replace(known, constant=constant, touched=touched)
        # The memory of a sandbox is described there only just before its first instruction.
        return (known if begun or not program.sandboxed else None), found

    def _touched(self, guest: Guest, anonymous: int, touched: dict[int, tuple[float, int]]) -> int:
        """The process of a sandbox has little besides guest memory. Others are walked through, as often as that is cheap."""
        if guest.backend == "sandbox":
            return min(anonymous, guest.mem_bytes)
        again, last = touched.get(guest.shared_hva, (0.0, 0))
        if self._now < again:
            return last
        begin = time.thread_time()
        now = process.touched_in(guest.pid, guest.memory_hva, guest.memory_hva + guest.mem_bytes)
        took_s = time.thread_time() - begin
        touched[guest.shared_hva] = (self._now + took_s / _SMAPS_SHARE, now)
        return now


def _constant(guest: Guest) -> _Constant:
    def read(gpa: int, length: int) -> bytes:
        length = min(length, guest.mem_bytes - gpa)
        return (
            ptrace.read_memory(guest.pid, guest.memory_hva + gpa, length) if gpa >= 0 and length > 0 else b""
        )

    devices, _ = boot_info(read)
    cgroup = process.cgroup_of(guest.pid)
    return _Constant(
        devices={str(it["name"]): str(it["kind"]) for it in devices},
        cgroup=cgroup,
        container=process.container_of(cgroup),
        build_id=_build_id(guest.image),
    )


def _build_id(path: str) -> str:
    with suppress(OSError, ValueError), open_image(path) as file:
        return build_id_of(file.fileno())
    return ""


def _state(guest: Guest, times: Times, kind: int, *, held: bool, first_run: int) -> RunState:
    if held or times.state == "t":
        return RunState.HELD
    if kind in ENDED_KINDS:
        return RunState.ENDED
    if times.state == "T":
        return RunState.STOPPED
    if not first_run or not guest.tid:
        return RunState.IDLE
    return RunState.COMPUTES if times.state == "R" else RunState.WAITS


def _uptime(first_run: int, times: Times, now_ns: int) -> float:
    began = times.started / process.TICKS
    boot_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    process_s = max(boot_s - began, 0.0)
    guest_s = (now_ns - first_run) / 1e9
    return guest_s if first_run and 0 <= guest_s <= process_s + 1 else process_s


def _cpu(guest: Guest, times: Times) -> dict[str, float]:
    of_guest = times.guest if guest.backend == "kvm" else times.user
    of_monitor = max(times.user + times.system - of_guest, 0)
    return {"guest_cpu_s": of_guest / process.TICKS, "monitor_cpu_s": of_monitor / process.TICKS}


def _user(pid: int) -> str:
    try:
        return process.user_name(os.stat(f"/proc/{pid}").st_uid)
    except OSError:
        return ""


def _name(image: str) -> str:
    name = os.path.basename(image)
    return next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)


# ---- a process that cannot be read


def _is_named_ours(pid: int) -> bool:
    """Whether a process has the name of one of Tender's programs. This waits for no process."""
    try:
        return process.text_of(str(pid), "comm").strip() in _OURS
    except OSError:
        return False


def _is_ours(pid: int) -> bool:
    """Whether a process that we may not read says that it is one of Tender's, and runs a guest."""
    return _is_named_ours(pid) and not _GUESTLESS.intersection(process.words_of(pid)[1:2])


def _why(pid: int, error: Exception) -> str:
    if isinstance(error, DebugError):
        return error.message.removeprefix(f"process {pid}: ")
    if isinstance(error, OSError) and error.errno in (EPERM, EACCES):
        return refusal(pid)[0]
    if isinstance(error, OSError) and error.errno == ESRCH:
        return "it is ending"
    return "what /proc says of it is not understood"


def _unread(pid: int, why: str) -> list[RunningGuest]:
    """Returns a process of Tender's that cannot be read, unless it has ended."""
    try:
        times = process.times_of(str(pid))
    except (OSError, ValueError, IndexError):
        return []
    if times.state in "ZX" or not why:
        return []
    try:
        resident = process.memory_of(str(pid)).resident
    except OSError:
        return []
    image = _image_in(process.words_of(pid))
    return [
        _blank(pid, why)._with(
            id=f"{pid}-{times.started}-",
            uptime_s=_uptime(0, times, 0),
            guest_cpu_s=times.user / process.TICKS,
            monitor_cpu_s=times.system / process.TICKS,
            resident_bytes=resident,
            image=image,
            name=_name(image),
        )
    ]


def _image_in(words: list[str]) -> str:
    """Returns the first word of a command line that looks like an image."""
    return next((word for word in words[1:] if word.endswith(_ENDINGS) and not word.startswith("-")), "")


def _blank(pid: int, why: str) -> RunningGuest:
    cgroup = process.cgroup_of(pid)
    return RunningGuest(
        id=f"{pid}-",
        pid=pid,
        tid=0,
        holder=pid,
        name="",
        image="",
        build_id="",
        backend="",
        user=_user(pid),
        state=RunState.UNKNOWN,
        why=why,
        uptime_s=0.0,
        guest_cpu_s=0.0,
        monitor_cpu_s=0.0,
        silent_s=0.0,
        mem_bytes=0,
        touched_bytes=0,
        resident_bytes=0,
        counters=None,
        devices={},
        cgroup=cgroup,
        container=process.container_of(cgroup),
        looked_ns=time.monotonic_ns(),
    )
