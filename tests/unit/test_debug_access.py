"""The rule that keeps a debugger from a process, from faked facts and from a faked /proc."""

import os
import re
from pathlib import Path

import pytest

from tender.cli import looking
from tender.debug import access
from tender.debug.access import AccessFacts, access_facts, judge

MINE = {"pid": 7, "uid": 1000, "gid": 1000, "uids": (1000, 1000, 1000), "gids": (1000, 1000, 1000)}
SUDO = "sudo tender debug 7"

CASES = {
    "gone": ({"exists": False}, "there is no such process", ""),
    "own filter": ({"may_call": False}, "the system-call filter of this container", "--cap-add SYS_PTRACE"),
    "traced": ({"tracer": 9, "tracer_name": "strace"}, "process 9 (strace) traces it", "kill 9"),
    "tracer without a name": ({"tracer": 9}, "process 9 traces it", "kill 9"),
    "another user": ({"uids": (0, 0, 0)}, "it belongs to root, and you are the user 1000", SUDO),
    "a saved id of root": ({"uids": (1000, 1000, 0)}, "it belongs to root", SUDO),
    "root's sandbox": (
        {"uids": (0x70000000 | 4711,) * 3},
        "it belongs to the user 1879052903 (of a guest that root runs), and you are the user 1000",
        SUDO,
    ),
    "another user, and root without capabilities": (
        {"uids": (1000, 1000, 1000), "uid": 0},
        "it belongs to the user 1000, and you are root",
        "--cap-add SYS_PTRACE",
    ),
    "yama 2, and root without capabilities": (
        {"uids": (0, 0, 0), "gids": (0, 0, 0), "uid": 0, "gid": 0, "yama": 2},
        "ptrace_scope is 2",
        "--cap-add SYS_PTRACE",
    ),
    "root whom the kernel refuses all the same": (
        {"may_trace_all": True, "uid": 0},
        "the kernel does not let you look into it",
        "from outside of this container",
    ),
    "another group": ({"gids": (1000, 4, 1000)}, "it has the group 4", SUDO),
    "not dumpable": ({"dumpable": False}, "it is not dumpable", SUDO),
    "yama 1": ({"yama": 1}, "ptrace_scope is 1: only its parent", f"{SUDO}; or start it with --debuggable"),
    "yama 2": ({"yama": 2}, "ptrace_scope is 2: only root", SUDO),
    "yama 3": ({"yama": 3, "may_trace_all": True}, "ptrace_scope is 3: nobody", "at the next boot"),
    "the user comes before yama": ({"uids": (0, 0, 0), "yama": 1}, "it belongs to root", SUDO),
    "a parallel user namespace": (
        {"may_trace_all": True, "user_namespace": 1, "own_user_namespace": 2},
        "in a user namespace in which you have no rights",
        "from the host",
    ),
    "a filter": ({"filtered": True}, "a system-call filter is in force here", "--cap-add SYS_PTRACE"),
    "no rule that we know": ({"yama": 0, "dumpable": True}, "the kernel does not let you look into it", SUDO),
    "root of a container": (
        {"may_trace_all": True, "user_namespace": 1, "own_user_namespace": 1},
        "the kernel does not let you look into it",
        SUDO,
    ),
}


@pytest.mark.parametrize(("facts", "why", "hint"), CASES.values(), ids=CASES)
def test_the_rule_that_refuses_is_named_with_the_way_out(
    facts: dict[str, object], why: str, hint: str
) -> None:
    said, to_type = judge(AccessFacts(**(MINE | facts)))  # type: ignore[arg-type]
    assert why in said
    assert hint in to_type if hint else not to_type
    assert not ("sudo" in to_type and facts.get("uid") == 0)


def test_the_users_of_guests_of_root_are_known_by_their_numbers() -> None:
    header = (Path(__file__).parents[2] / "bindings/machine/layers.h").read_text()
    assert f"{access._SANDBOX_USER:#x}u | ((uint32_t)pid & {access._SANDBOX_USER_PID:#010x}u)" in header
    assert access.user_named(1 << 28) == f"the user {1 << 28}"


@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [
        ("core", ["-o", "my core", "7"], "sudo tender core -o 'my core' 7; or start it with --debuggable"),
        ("report", ["--html=x", "7"], "sudo tender report --html=x 7; or start it with --debuggable"),
        ("debug", ["--ex", r"p \1", "7"], r"sudo tender debug --ex 'p \1' 7; or start it with --debuggable"),
    ],
)
def test_a_hint_repeats_what_was_typed(command: str, words: list[str], expected: str) -> None:
    _, hint = judge(AccessFacts(**(MINE | {"yama": 1})))  # type: ignore[arg-type]
    assert looking.retold(hint, command, words).startswith(expected)


def test_the_facts_come_from_proc(tmp_path: Path) -> None:
    for pid, caps in (("7", 0), ("self", 1 << access._CAP_SYS_PTRACE)):
        (tmp_path / pid / "ns").mkdir(parents=True)
        (tmp_path / pid / "ns/user").touch()
        (tmp_path / pid / "status").write_text(
            f"Name:\tx\nUid:\t5\t6\t7\t8\nGid:\t1\t2\t3\t4\nTracerPid:\t9\nCapEff:\t{caps:016x}\nSeccomp:\t2\n"
        )
    (tmp_path / "9").mkdir()
    (tmp_path / "9/comm").write_text("gdb\n")
    (tmp_path / "sys/kernel/yama").mkdir(parents=True)
    (tmp_path / "sys/kernel/yama/ptrace_scope").write_text("1\n")
    facts = access_facts(7, tmp_path)
    assert facts == AccessFacts(
        pid=7,
        uids=(5, 6, 7),
        gids=(1, 2, 3),
        tracer=9,
        tracer_name="gdb",
        dumpable=os.stat(tmp_path / "7/status").st_uid == 6,
        user_namespace=os.stat(tmp_path / "7/ns/user").st_ino,
        uid=os.geteuid(),
        gid=os.getegid(),
        may_trace_all=True,
        own_user_namespace=os.stat(tmp_path / "self/ns/user").st_ino,
        yama=1,
        filtered=True,
        may_call=True,
    )
    assert access_facts(8, tmp_path) == AccessFacts(pid=8, exists=False)


def test_unreadable_files_are_facts_that_are_not_known(tmp_path: Path) -> None:
    for pid in ("7", "self"):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "status").write_bytes(b"Uid:\tx\nTracerPid:\t\xff\nnonsense\n")
    facts = access_facts(7, tmp_path)
    assert (facts.tracer, facts.yama, facts.user_namespace, facts.may_trace_all) == (0, None, None, False)
    assert judge(facts)[0]


def test_the_capability_has_the_kernels_number() -> None:
    header = Path("/usr/include/linux/capability.h").read_text()
    found = re.search(r"#define CAP_SYS_PTRACE\s+(\d+)", header)
    assert found
    assert int(found[1]) == access._CAP_SYS_PTRACE


OBSTACLES = {
    "none": ({}, "", ""),
    "yama 0": ({"yama": 0}, "", ""),
    "yama 1": ({"yama": 1}, "ptrace_scope is 1", "sudo tender debug PID; or start it with --debuggable"),
    "yama 1 for root": ({"yama": 1, "may_trace_all": True}, "", ""),
    "yama 2": ({"yama": 2}, "ptrace_scope is 2", "sudo tender debug PID"),
    "yama 3": ({"yama": 3, "may_trace_all": True}, "ptrace_scope is 3", "at the next boot"),
    "a filter": ({"may_call": False}, "the system-call filter", "--cap-add SYS_PTRACE"),
    "a debugger of our own": ({"tracer": 9}, "", ""),
}


@pytest.mark.parametrize(("facts", "why", "hint"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_keeps_us_from_our_own_guests_is_found_without_one(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, object], why: str, hint: str
) -> None:
    made = AccessFacts(**(MINE | facts))  # type: ignore[arg-type]
    monkeypatch.setattr(access, "access_facts", lambda pid: made)
    said, to_type = access.obstacle()
    assert (why in said, bool(said)) == (True, bool(why))
    assert (hint in to_type, bool(to_type)) == (True, bool(hint))
