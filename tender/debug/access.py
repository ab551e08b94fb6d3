"""Which rule of the kernel keeps a debugger from a process, and what to type then.

The kernel answers EPERM to all of them. `access_facts` looks into /proc, `judge` finds the rule without looking again, in
the order in which the kernel checks (__ptrace_may_access() and ptrace_attach() of kernel/ptrace.c, Linux 6.12).
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from tender.native import ffi, lib
from tender.printable import printable

_CAP_SYS_PTRACE = 19  # <linux/capability.h>; test_debug_access.py compares it
_SECCOMP_MODE_FILTER = 2
_SANDBOX_USER, _SANDBOX_USER_PID = 0x70000000, 0x00FFFFFF  # unprivileged_id() of bindings/machine/layers.h
_MORE_RIGHTS = (
    "root lacks that right here: docker run --cap-add SYS_PTRACE; or look from outside of the container"
)


@dataclass(frozen=True, kw_only=True)
class AccessFacts:
    """What /proc says of a process that a debugger wants, and of the debugger. None: it could not be read.

    Attributes:
        pid: The process.
        exists: Whether it does.
        uids: Its real, effective and saved user id.
        gids: Its group ids.
        tracer: The process that traces it, or 0.
        tracer_name: The name of that process.
        dumpable: Whether its user may look at it. A process that has changed its rights is not, unless it says so.
        user_namespace: The number of its user namespace.
        uid: The debugger's effective user id.
        gid: The debugger's effective group id.
        may_trace_all: Whether the debugger has CAP_SYS_PTRACE.
        own_user_namespace: The number of its user namespace.
        yama: /proc/sys/kernel/yama/ptrace_scope; None: this kernel has no Yama.
        filtered: Whether a system-call filter is in force for the debugger.
        may_call: Whether the filter allows process_vm_readv(2).
    """

    pid: int
    exists: bool = True
    uids: tuple[int, ...] | None = None
    gids: tuple[int, ...] | None = None
    tracer: int = 0
    tracer_name: str = ""
    dumpable: bool | None = None
    user_namespace: int | None = None
    uid: int = 0
    gid: int = 0
    may_trace_all: bool = False
    own_user_namespace: int | None = None
    yama: int | None = None
    filtered: bool = False
    may_call: bool = True


def refusal(pid: int) -> tuple[str, str]:
    """Returns why the kernel refuses to let us trace or read a process or thread, and what to type."""
    return judge(access_facts(pid))


def obstacle() -> tuple[str, str]:
    """Returns what keeps us from any guest of our user's own, and the way out; both empty if nothing does."""
    own = access_facts(os.getpid())
    if not own.may_call or own.yama == 3 or (own.yama in (1, 2) and not own.may_trace_all):
        why, hint = judge(replace(own, tracer=0))
        return why, hint.replace(str(own.pid), "PID")
    return "", ""


def judge(facts: AccessFacts) -> tuple[str, str]:
    """Returns the rule that refuses, and the way out; the way out is empty if there is none."""
    as_root = f"sudo tender debug {facts.pid}" if facts.uid else _MORE_RIGHTS
    if not facts.exists:
        return "there is no such process", ""
    if not facts.may_call:
        return (
            "the system-call filter of this container or service does not allow ptrace",
            "docker run --cap-add SYS_PTRACE; or debug it from outside of the container",
        )
    if facts.tracer:
        name = f" ({printable(facts.tracer_name)})" if facts.tracer_name else ""
        return (
            f"process {facts.tracer}{name} traces it already",
            f"end that debugger first: only one can trace a process; or kill {facts.tracer}",
        )
    if facts.yama == 3:
        return (
            "kernel.yama.ptrace_scope is 3: nobody may attach until this machine is booted again",
            "the setting cannot be changed at run time: set it to 1 at the next boot",
        )
    if not facts.may_trace_all:
        if facts.uids is not None and any(uid != facts.uid for uid in facts.uids):
            owner = next(uid for uid in facts.uids if uid != facts.uid)
            return f"it belongs to {user_named(owner)}, and you are {user_named(facts.uid)}", as_root
        if facts.gids is not None and any(gid != facts.gid for gid in facts.gids):
            owner = next(gid for gid in facts.gids if gid != facts.gid)
            return (
                f"it has the group {owner}, and you have {facts.gid}: newgrp or sg changed one of them",
                as_root,
            )
        if facts.dumpable is False:
            return "it is not dumpable: its rights were changed, so only root may look into it", as_root
        if facts.yama == 2:
            return "kernel.yama.ptrace_scope is 2: only root may attach", as_root
        if facts.yama == 1:
            return (
                "kernel.yama.ptrace_scope is 1: only its parent or root may attach",
                f"{as_root}; or start it with --debuggable (the library: VmConfig(debuggable=True))",
            )
    elif facts.user_namespace and facts.own_user_namespace not in (None, facts.user_namespace):
        return "it is in a user namespace in which you have no rights", "debug it from the host, as root"
    if facts.filtered:
        return (
            "the kernel refuses, and a system-call filter is in force here: that of a container or a service",
            "docker run --cap-add SYS_PTRACE; or debug it from outside of the container",
        )
    return "the kernel does not let you look into it (ptrace: Operation not permitted)", (
        "look from outside of this container, as root of the host"
        if facts.may_trace_all and not facts.uid
        else as_root
    )


def user_named(uid: int) -> str:
    """Returns a user as people know it. A guest of root's runs as a user of its own, whose number says nothing to them."""
    if uid & ~_SANDBOX_USER_PID == _SANDBOX_USER:
        return f"the user {uid} (of a guest that root runs)"
    return f"the user {uid}" if uid else "root"


def access_facts(pid: int, proc: Path = Path("/proc")) -> AccessFacts:
    """Looks at a process or thread, and at ourselves. It goes on if something cannot be read."""
    try:
        status = _status(proc / str(pid) / "status")
    except OSError:
        return AccessFacts(pid=pid, exists=False)
    own = _status(proc / "self/status")
    tracer = _number(status.get("TracerPid", "0"))
    return AccessFacts(
        pid=pid,
        uids=_ids(status.get("Uid")),
        gids=_ids(status.get("Gid")),
        tracer=tracer,
        tracer_name=_text(proc / str(tracer) / "comm") if tracer else "",
        dumpable=_dumpable(proc / str(pid) / "status", _ids(status.get("Uid"))),
        user_namespace=_inode(proc / str(pid) / "ns/user"),
        uid=os.geteuid(),
        gid=os.getegid(),
        may_trace_all=bool(_number(own.get("CapEff", "0"), 16) >> _CAP_SYS_PTRACE & 1),
        own_user_namespace=_inode(proc / "self/ns/user"),
        yama=_optional(_text(proc / "sys/kernel/yama/ptrace_scope")),
        filtered=_number(own.get("Seccomp", "0")) == _SECCOMP_MODE_FILTER,
        may_call=_may_call(),
    )


def _dumpable(file: Path, uids: tuple[int, ...] | None) -> bool | None:
    """The files of a process that is not dumpable belong to root, others to its effective user (proc(5)).

    The directory of the process does not show that: it belongs to the effective user always.
    """
    try:
        owner = file.stat().st_uid
    except OSError:
        return None
    return owner == uids[1] if uids and len(uids) == 3 and uids[1] else None


def _may_call() -> bool:
    """Whether we may read our own memory by the call that reads another's: only a filter can refuse that."""
    source, target = bytearray(b"x"), bytearray(1)
    here, there = ffi.from_buffer(source), ffi.from_buffer(target, require_writable=True)
    return bool(lib.tn_process_read(os.getpid(), int(ffi.cast("uintptr_t", here)), there, 1) == 1)


def _status(path: Path) -> dict[str, str]:
    lines = path.read_text(errors="replace").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _ids(text: str | None) -> tuple[int, ...] | None:
    """The first three: real, effective and saved. The fourth is that of the file system."""
    return tuple(_number(word) for word in text.split()[:3]) if text else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _optional(text: str) -> int | None:
    return _number(text) if text else None


def _number(text: str, base: int = 10) -> int:
    try:
        return int(text, base)
    except ValueError:
        return 0
