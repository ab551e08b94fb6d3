"""The sandbox's seccomp filter: a small BPF machine runs the instructions that ship, and the result is
compared with the rules.

The filter is compiled with this system's compiler and printed by a program of three lines. The expected
verdict comes from two sources: the readable rules, applied one by one as filter_rules.txt explains them,
and a list of everything that is allowed, which is in this file.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bpf_machine import SITE, X86_64, Call, Filter, run
from hypothesis import assume, given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = ROOT / "bindings" / "machine" / "sandbox"
sys.path.insert(0, str(SANDBOX.parents[1]))
from machine.sandbox import gen_filter  # noqa: E402

from tender.native import lib  # noqa: E402

RULES = gen_filter.parse((SANDBOX / "filter_rules.txt").read_text())

I386, AARCH64 = 0x40000003, 0xC00000B7  # linux/audit.h
ALLOW, TRAP, KILL = 0x7FFF0000, 0x00030000, 0x80000000  # linux/seccomp.h
VERDICT = {"allow": ALLOW, "trap": TRAP, "kill": KILL}
GUEST_IPS = (0, 0x100002, 0xFFFFFFFF, SITE & 0xFFFFFFFF, 1 << 32)
OTHER_IPS = (
    SITE - 1,
    SITE + 2,
    SITE ^ (1 << 32),
    (1 << 32) + 1,
    (1 << 32) + 2,
    2 << 32,
    0xFFFFFFFFFF600009,
    (1 << 64) - 1,
)
X32 = 0x40000000

CONTROL, STOP, CONSOLE, VM, TEMPLATE, STDERR, REPORT = 120, 121, 122, 123, 124, 125, 126
NETS, BLOCKS = range(128, 192), range(192, 256)
FDS = (
    0,
    1,
    2,
    3,
    119,
    *range(120, 130),
    190,
    191,
    192,
    193,
    254,
    255,
    256,
    257,
    1023,
    1 << 31,
    (1 << 32) - 1,
)


@dataclass(frozen=True)
class Among:
    """An argument that the kernel reads as a number of `bits` bits: only these values of it are allowed."""

    values: tuple[int, ...]
    bits: int = 32


ANY = None
"""An address, a length or an offset: the kernel checks it, and no value has an effect that others do not
have."""
DONTWAIT_NOSIGNAL = 0x40 | 0x4000  # linux/socket.h
ZERO, MINUS_ONE = Among((0,), 64), Among(((1 << 64) - 1,), 64)
TIME = Among((0, 1))  # CLOCK_REALTIME, CLOCK_MONOTONIC: linux/time.h

# Everything that the program may do at its `syscall`: the values of each argument, as in the manual page.
MAY: dict[str, tuple["Among | None", ...]] = {
    "read": (Among((*NETS, CONTROL)), ANY, ANY),  # int fd, void *buf, size_t count
    "write": (
        Among((*NETS, CONSOLE, CONTROL, STDERR, REPORT)),
        ANY,
        ANY,
    ),  # int fd, const void *buf, size_t count
    "readv": (Among((*NETS,)), ANY, ANY),  # int fd, const struct iovec *iov, int iovcnt
    "writev": (Among((*NETS,)), ANY, ANY),  # the same
    "ppoll": (
        ANY,
        ANY,
        ANY,
        ZERO,
        ANY,
    ),  # fds, nfds_t, const timespec *, const sigset_t *, size_t: it has no flags
    "pread64": (Among((*BLOCKS,)), ANY, ANY, ANY),  # int fd, void *buf, size_t count, off_t
    "pwrite64": (
        Among((*BLOCKS,)),
        ANY,
        ANY,
        ANY,
    ),  # the same; disk_guard.c or RLIMIT_FSIZE checks the offset
    "fdatasync": (Among((*BLOCKS,)),),  # int fd
    "readahead": (Among((*BLOCKS,)), ANY, ANY),  # int fd, off_t offset, size_t count
    # int fd, const void *buf, size_t len, int flags, const struct sockaddr *, socklen_t of the address
    "sendto": (Among((*NETS, CONSOLE, STDERR, REPORT)), ANY, ANY, Among((DONTWAIT_NOSIGNAL,)), ZERO, ANY),
    # int fd, const struct iovec *, int iovcnt, off_t low, off_t high, which 64-bit kernels ignore, int flags
    "pwritev2": (
        Among((CONSOLE, STDERR, REPORT)),
        ANY,
        ANY,
        MINUS_ONE,
        ANY,
        Among((8,)),
    ),  # RWF_NOWAIT: linux/fs.h
    "ioctl": (Among((*NETS,)), Among((0x400454D0,)), ZERO),  # TUNSETOFFLOAD: linux/if_tun.h; no offload
    "exit_group": (ANY,),  # int status
    "clock_gettime": (TIME, ANY),  # clockid_t, struct timespec *
    "arch_prctl": (
        Among((0x1001, 0x1002, 0x1003, 0x1004)),
        ANY,
    ),  # int code, unsigned long address: asm/prctl.h
}

PRINTER = r"""
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <asm/unistd.h>
#include <linux/if_tun.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include "filter.h"
int main(void)
{
    struct sock_filter code[FILTER_LENGTH];
    filter_build(code, SITE);
    for (int i = 0; i < FILTER_LENGTH; i++)
        printf("%u %u %u %u\n", code[i].code, code[i].jt, code[i].jf, code[i].k);
    SYMBOLS
}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Filter:
    place = tmp_path_factory.mktemp("filter")
    subprocess.run(
        [sys.executable, SANDBOX / "gen_filter.py", SANDBOX / "filter_rules.txt",
         place / "filter.inc", place / "filter_shape.h"],
        check=True,
    )  # fmt: skip
    prints = "".join(f'printf("{name} %ld\\n", (long)({name}));' for name in gen_filter.symbols(RULES))
    (place / "print.c").write_text(PRINTER.replace("SITE", hex(SITE)).replace("SYMBOLS", prints))
    program = SANDBOX / "program"
    subprocess.run(
        ["cc", "-Wall", "-Wextra", "-Werror", f"-I{place}", f"-I{program}", f"-I{ROOT / 'abi'}",
         place / "print.c", program / "filter.c",
         "-o", place / "print"],
        check=True,
    )  # fmt: skip
    lines = subprocess.run([place / "print"], check=True, capture_output=True, text=True).stdout.splitlines()
    words = [line.split() for line in lines]
    return Filter(
        [(int(a), int(b), int(c), int(d)) for a, b, c, d in (w for w in words if len(w) == 4)],
        {w[0]: int(w[1]) for w in words if len(w) == 2},
    )


def holds(condition: str, call: Call, numbers: dict[str, int]) -> bool:
    """Returns whether a condition holds, as the head of filter_rules.txt explains it."""
    subject, relation, *rest = condition.replace(",", "").split()
    match subject, relation, rest:
        case "ip", "in", ["guest"]:
            return call.ip <= 1 << 32
        case "ip", "not", ["syscall-instruction"]:
            return call.ip != SITE
        case "arch", "not", ["x86_64"]:
            return call.arch != X86_64
        case "call", "past", [name]:
            return call.nr > numbers[f"__NR_{name}"]
        case "fd", "in", kinds:
            members = {"nets": NETS, "blocks": BLOCKS, "console": (CONSOLE,), "control": (CONTROL,)}
            members["outputs"] = (STDERR, REPORT)
            return any(call.args[0] & 0xFFFFFFFF in members[kind] for kind in kinds)
        case _, "in", names:
            values = [sum(numbers[one] for one in name.split("+")) for name in names]
            return call.args[int(subject[3:])] & 0xFFFFFFFF in values
        case _, "null", []:
            return call.args[int(subject[3:])] == 0
        case _, "minus", ["one"]:
            return call.args[int(subject[3:])] == (1 << 64) - 1
    raise AssertionError(condition)


def by_the_rules(call: Call, numbers: dict[str, int], rules: list[gen_filter.Rule] = RULES) -> int:
    for rule in rules:
        called = rule.call == "any" or numbers[f"__NR_{rule.call}"] == call.nr
        if called and all(holds(condition, call, numbers) for condition in rule.conditions):
            return VERDICT[rule.verdict]
    raise AssertionError("no rule holds")


def by_the_list(call: Call, numbers: dict[str, int]) -> int:
    names = {
        number: name.removeprefix("__NR_") for name, number in numbers.items() if name.startswith("__NR_")
    }
    name = names.get(call.nr, "")
    if call.ip != SITE and call.ip <= 1 << 32:
        return TRAP
    if call.arch != X86_64 or name not in MAY or (call.ip != SITE and name != "clock_gettime"):
        return KILL
    allowed = all(
        may is None or value & (1 << may.bits) - 1 in may.values
        for may, value in zip(MAY[name], call.args, strict=False)
    )
    return ALLOW if allowed else KILL


def allowed_calls(numbers: dict[str, int]) -> Iterator[Call]:
    """Yields each allowed call with each value that an argument may have; the other arguments have their
    first allowed value."""
    for name, arguments in MAY.items():
        first = [may.values[0] if may else 0x200000 for may in arguments] + [0] * (6 - len(arguments))
        yield Call(numbers[f"__NR_{name}"], args=tuple(first))  # type: ignore[arg-type]
        for at, may in enumerate(arguments):
            for value in may.values if may else ():
                yield Call(numbers[f"__NR_{name}"], args=(*first[:at], value, *first[at + 1 :]))  # type: ignore[arg-type]


def with_each_bit_changed(call: Call) -> Iterator[Call]:
    for at in range(6):
        for bit in range(64):
            args = (*call.args[:at], call.args[at] ^ 1 << bit, *call.args[at + 1 :])
            yield call._replace(args=args)  # type: ignore[arg-type]


def calls_at_the_site() -> Iterator[Call]:
    for nr in range(601):
        for fd in FDS:
            yield Call(nr, args=(fd, 1, 2, 3, 0, 5))
        yield Call(nr | X32, args=(NETS[0], 1, 2, 3, 0, 5))
        yield Call(nr | X32, args=(CONSOLE, 1, 2, 3, 0, 5))


def calls_from_elsewhere() -> Iterator[Call]:
    for nr in range(601):
        for ip in (*GUEST_IPS, *OTHER_IPS, SITE):
            for arch in (X86_64, I386, AARCH64):
                yield Call(nr, arch, ip, (NETS[0], 0, 0, 0, 0, 0))
                yield Call(nr | X32, arch, ip, (CONSOLE, 0, 0, 0, 0, 0))


def calls_with_other_arguments() -> Iterator[Call]:
    """Yields values with high halves, which the kernel ignores in an int and uses in a pointer, and
    arch_prctl's codes with their neighbours."""
    for nr in range(601):
        for fd in (NETS[0], BLOCKS[0], CONSOLE, CONTROL, STOP, STDERR, REPORT):
            yield Call(nr, args=(fd | 1 << 32, 0, 0, 0, 0, 0))
            yield Call(nr, args=(fd | (1 << 64) - (1 << 32), 0, 0, 0, 0, 0))
            for address in (1, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1):
                yield Call(nr, args=(fd, 0, 0, 0, address, 0))
            yield Call(nr, args=(fd, *((1 << 64) - 1,) * 3, 0, (1 << 64) - 1))
            for offset in ((1 << 32) - 1, (1 << 64) - (1 << 32), (1 << 64) - 2):
                yield Call(nr, args=(fd, 1, 1, offset, 0, 0))
        for clock in (*range(18), *(~pid << 3 | kind for pid in (0, 1, 4242) for kind in range(8))):
            yield Call(nr, args=(clock & (1 << 64) - 1, 0, 0, 0, 0, 0))
            yield Call(nr, ip=SITE + 2, args=(clock & (1 << 32) - 1, 0, 0, 0, 0, 0))
        for flags in (
            0,
            1,
            8,
            0x10,
            0x20,
            0x28,
            0x40,
            0x4000,
            DONTWAIT_NOSIGNAL,
            DONTWAIT_NOSIGNAL | 1,
            1 << 32 | 8,
        ):
            for fd in (NETS[0], CONSOLE):
                yield Call(nr, args=(fd, 1, 1, flags, 0, 0))
                yield Call(nr, args=(fd, 1, 1, (1 << 64) - 1, 0, flags))
        for code in (*range(0x0FFF, 0x1020), 0x2001, 0x3001, 0x4001, 0x5001, 1 << 32 | 0x1002):
            yield Call(nr, args=(code, 0, 0, 0, 0, 0))


def test_the_verdict_for_each_bit_of_each_argument_follows_the_list(built: Filter) -> None:
    """Tries all allowed calls with all allowed values, and each of them with one bit changed."""
    answers = {ALLOW: 0, KILL: 0}
    for allowed in allowed_calls(built.numbers):
        assert run(built, allowed).verdict == ALLOW, allowed
        for call in with_each_bit_changed(allowed):
            answer = run(built, call).verdict
            assert answer == by_the_list(call, built.numbers) == by_the_rules(call, built.numbers), call
            answers[answer] += 1
    assert min(answers.values()) > 1000


def test_the_list_contains_every_call_that_a_rule_allows() -> None:
    assert set(MAY) == {rule.call for rule in RULES if rule.verdict == "allow"}


@pytest.mark.parametrize("calls", [calls_at_the_site, calls_from_elsewhere, calls_with_other_arguments])
def test_the_filter_agrees_with_the_rules_and_the_list(built: Filter, calls: type[Iterator[Call]]) -> None:
    answers = set()
    for call in calls():
        answer = run(built, call).verdict
        answers.add(answer)
        assert answer == by_the_rules(call, built.numbers) == by_the_list(call, built.numbers), call
    assert {ALLOW, KILL} <= answers


def test_a_call_without_a_rule_kills_the_process_not_only_the_thread(built: Filter) -> None:
    """If only a thread died, its process might stay forever. No verdict answers a call with an error."""
    assert {k for code, _, _, k in built.code if code == 0x06} == {ALLOW, TRAP, KILL}
    named = {number for name, number in built.numbers.items() if name.startswith("__NR_")}
    for number in (*range(600), X32, X32 + 1, (1 << 31) - 1, -1):
        if number not in named:
            for fd in FDS:
                assert run(built, Call(number, args=(fd, 0, 0, 0, 0, 0))).verdict == KILL, (number, fd)


def test_every_instruction_of_the_filter_is_used(built: Filter) -> None:
    """An instruction that no call reaches would not be tested by these tests."""
    reached: set[int] = set()
    for calls in (calls_at_the_site, calls_from_elsewhere, calls_with_other_arguments):
        for call in calls():
            reached.update(run(built, call).path)
    for call in allowed_calls(built.numbers):
        reached.update(run(built, call).path)
    assert reached == set(range(len(built.code)))


@pytest.mark.parametrize(("name", "steps"), [("read", 12), ("write", 13)])
def test_a_frame_costs_few_instructions(built: Filter, name: str, steps: int) -> None:
    answer = run(built, Call(built.numbers[f"__NR_{name}"], args=(NETS[5], 0, 0, 0, 0, 0)))
    assert (answer.verdict, len(answer.path)) == (ALLOW, steps)


def test_the_threat_model_describes_the_filter(built: Filter) -> None:
    text = " ".join((ROOT / "docs" / "threat-model.md").read_text().split())
    start = text.index("**The filter**")
    section = text[start : text.index("**Why hijacked handlers", start)]
    assert f"These are {len(MAY)} system calls." in section
    assert f"*The host's kernel.* {len(MAY)} system calls" in text
    for name in MAY:
        assert f"`{name}`" in section, name
    stack = re.search(r"#define STACK_BYTES +\((\d+)u << 10\)", (SANDBOX / "child.c").read_text())
    assert stack and f"the process's own stack ({stack[1]} KiB)" in text
    assert f"a stack of at most {stack[1]} KiB" in text
    shared = 0x8000 + int(str(lib.CONSOLE_PIECE_MAX))
    assert f"shares with the monitor ({shared >> 10} KiB)" in text
    steps = [
        len(run(built, Call(built.numbers[f"__NR_{name}"], args=(NETS[0], 0, 0, 0, 0, 0))).path)
        for name in ("read", "write")
    ]
    assert f"`read` is {steps[0]} BPF instructions, of its `write` {steps[1]}" in section


def test_every_rule_has_a_reason() -> None:
    assert all(len(rule.reason.split()) >= 2 for rule in RULES)


LAST = "any | always | kill | the rest"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the last rule must be"),
        ("read | always | allow | why", "the last rule must be"),
        ("any | always | allow | why", "the last rule must be"),
        (f"read | always | allow\n{LAST}", "not `call"),
        (f"read | always | allow | \n{LAST}", "not `call"),
        (f"read | always | log | why\n{LAST}", "log: not one of allow, trap, kill"),
        (f"read | fd in taps | allow | why\n{LAST}", "taps: no such kind"),
        (f"read | fd in nets and sometimes | allow | why\n{LAST}", "sometimes: not a condition"),
        (f"read | arg6 null | allow | why\n{LAST}", "arg6 null: not a condition"),
        (f"Read | always | allow | why\n{LAST}", "Read: not a call's name"),
    ],
)
def test_an_invalid_rule_is_refused(text: str, words: str) -> None:
    with pytest.raises(gen_filter.RulesError, match=words):
        gen_filter.parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{LAST}\n{LAST}", "a rule above it always holds"),
        (f"{LAST}\nread | always | allow | why\n{LAST}", "read: a rule above it always holds"),
        (f"read | always | allow | a\nread | fd in nets | kill | b\n{LAST}", "read: a rule above it always holds"),
        (f"read | fd in nets | allow | a\nwrite | always | allow | b\nread | always | kill | c\n{LAST}",
         "read: its rules must follow one another"),
    ],
)  # fmt: skip
def test_rules_that_would_not_be_applied_in_their_order_are_refused(text: str, words: str) -> None:
    with pytest.raises(gen_filter.RulesError, match=words):
        gen_filter.compile_rules(gen_filter.parse(text))


@pytest.mark.parametrize("call", ["any", "raed"])
def test_by_number_a_rule_between_the_first_and_the_last_must_name_a_call(call: str) -> None:
    text = f"any | arch not x86_64 | kill | why\n{call} | arg0 null | allow | why\n{LAST}"
    with pytest.raises(gen_filter.RulesError, match=f"{call}: not a call"):
        gen_filter.compile_by_number(gen_filter.parse(text), {"read": 0})


def test_a_filter_whose_jumps_are_too_long_is_refused() -> None:
    many = "".join(f"read | arg0 in N{i} | kill | why\n" for i in range(150))
    with pytest.raises(gen_filter.RulesError, match="too many rules"):
        list(gen_filter.compile_rules(gen_filter.parse(many + LAST)).lines())


# ---- the compiler alone, on random rules ----

NUMBERS = {
    "__NR_read": 0, "__NR_write": 1, "__NR_ppoll": 271, "ONE": 1, "TWO": 2, "FAR": 0xFFFFFFFF,
    "SANDBOX_FD_CONTROL": CONTROL, "SANDBOX_FD_CONSOLE": CONSOLE, "SANDBOX_FD_STDERR": STDERR, "SANDBOX_FD_REPORT": REPORT,
    "SANDBOX_FDS_net": NETS.start,
    "SANDBOX_FDS_LAST_net": NETS.stop - 1, "SANDBOX_FDS_block": BLOCKS.start, "SANDBOX_FDS_LAST_block": BLOCKS.stop - 1,
    "BPF_LD": 0, "BPF_W": 0, "BPF_ABS": 0x20, "BPF_JMP": 5, "BPF_JEQ": 0x10, "BPF_JGE": 0x30, "BPF_RET": 6, "BPF_K": 0,
    "AUDIT_ARCH_X86_64": X86_64, "SECCOMP_RET_ALLOW": ALLOW, "SECCOMP_RET_TRAP": TRAP,
    "SECCOMP_RET_KILL_PROCESS": KILL,
}  # fmt: skip
OFFSETS = {"nr": 0, "arch": 4, "instruction_pointer": 8, **{f"args[{i}]": 16 + 8 * i for i in range(6)}}
HOLES = {"": None, "SYSCALL_HIGH": SITE >> 32, "SYSCALL_LOW": SITE & 0xFFFFFFFF}


def computed(rules: list[gen_filter.Rule]) -> Filter:
    """Returns the filter as the C compiler would build it with NUMBERS."""
    macros = {"BPF_STMT": lambda code, k: (code, 0, 0, k), "BPF_JUMP": lambda code, k, t, f: (code, t, f, k)}
    code = []
    for line, hole in gen_filter.compile_rules(rules).lines():
        python = re.sub(r"offsetof\(struct seccomp_data, ([^)]+)\)", lambda m: str(OFFSETS[m[1]]), line)
        one = eval(python, {**NUMBERS, **macros})
        code.append(one if HOLES[hole] is None else (*one[:3], HOLES[hole]))
    return Filter(code, NUMBERS)


KINDS = st.lists(st.sampled_from(sorted(gen_filter.FD_KINDS)), min_size=1, max_size=4, unique=True)
CONDITIONS = st.one_of(
    st.sampled_from(
        [
            "ip in guest",
            "ip not syscall-instruction",
            "arch not x86_64",
            "arg4 null",
            "arg3 minus one",
            "arg1 in ONE",
            "arg1 in ONE, FAR",
            "arg1 in ONE+TWO",
            "call past read",
            "call past write",
        ]
    ),
    KINDS.map(lambda kinds: f"fd in {', '.join(kinds)}"),
)
RANDOM_RULES = st.builds(
    gen_filter.Rule,
    st.sampled_from(["any", "read", "write", "ppoll"]),
    st.lists(CONDITIONS, max_size=3).map(tuple),
    st.sampled_from(sorted(VERDICT)),
    st.just("why"),
)
RANDOM_CALLS = st.builds(
    Call,
    st.sampled_from([0, 1, 271, 2]),
    st.sampled_from([X86_64, I386]),
    st.sampled_from([SITE, 1, SITE + 1, 1 << 32, (1 << 32) + 1]),
    st.tuples(
        st.sampled_from([*FDS, CONSOLE | 1 << 32]), st.sampled_from([0, 1, 2, 3, 0xFFFFFFFF, 1 << 32 | 1]),
        st.just(0), st.sampled_from([0, 0xFFFFFFFF, (1 << 64) - 1]), st.sampled_from([0, 1, 1 << 32]), st.just(0),
    ),
)  # fmt: skip


@given(st.lists(RANDOM_RULES, max_size=8), st.lists(RANDOM_CALLS, min_size=20, max_size=40))
def test_random_rules_mean_the_same_after_compilation(some: list[gen_filter.Rule], calls: list[Call]) -> None:
    rules = [*some, gen_filter.Rule("any", (), "kill", "the rest")]
    lines = "\n".join(
        f"{r.call} | {' and '.join(r.conditions) or 'always'} | {r.verdict} | why" for r in rules
    )
    assert [r.conditions for r in gen_filter.parse(lines)] == [r.conditions for r in rules]
    try:
        built = computed(rules)
    except gen_filter.RulesError:
        assume(False)
        raise
    for call in calls:
        assert run(built, call).verdict == by_the_rules(call, NUMBERS, rules), call
