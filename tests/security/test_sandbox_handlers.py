"""Hostile guests in the address space of the hypercall handlers: they jump to any instruction,
overwrite any data, and come with any stack and any flags. Each guest is reported, or does no harm,
and never hangs.
"""

import os
import random
import re

import pytest
from sandbox_rig import (
    BSS,
    EXIT_REASONS_OF_A_GUEST,
    FD_CONSOLE,
    FD_LARGE,
    FD_SMALL,
    FD_STOP,
    FD_VM,
    SHARED,
    SYMBOLS,
    TEXT,
    Rig,
    assert_killed_by_filter,
    at,
    text,
)

from tender import ExitReason

# ---- jumps into the hypercall handlers


JUMPS = int(os.environ.get("TENDER_JUMPS", "150"))


@pytest.mark.parametrize("seed", [1, 2])
def test_jumps_into_the_handlers_end_or_are_ended(rig: Rig, seed: int) -> None:
    """Jumps to any offset of the program's text, with all registers chosen by the attacker. A jump may
    reach code where the handlers report an end, such as the guest's own exit.
    """
    draw = random.Random(seed)
    reasons: dict[str, int] = {}
    for _ in range(JUMPS):
        offset = draw.choice(TEXT)
        script = f"jump=p+{offset:#x},{draw.getrandbits(32)}"
        try:
            result = rig.run(script, timeout=1.5)
        except BaseException as error:
            raise AssertionError(script) from error
        assert result.reason in EXIT_REASONS_OF_A_GUEST, (script, result.message)
        reasons[result.reason] = reasons.get(result.reason, 0) + 1
    assert reasons[ExitReason.SANDBOX_FAULT] > JUMPS // 5, reasons


def test_jumps_to_each_function_with_valid_registers_of_a_call(rig: Rig) -> None:
    """Jumps to the start of each function of the program, with registers that may be pointers."""
    functions = sorted(name for name, place in SYMBOLS.items() if place.start in TEXT and name.isidentifier())
    assert len(functions) > 20
    for name in functions:
        for seed in (1, 2):
            result = rig.run(f"jump={at(name)},{seed}", timeout=1.5)
            assert result.reason in EXIT_REASONS_OF_A_GUEST, (name, result.message)


# ---- writes over the handlers' memory


DATA = {
    "everything": BSS,
    "the_vm": SYMBOLS["the_vm"],
    "system registers": SYMBOLS["guest_system_state"],
    "handler stack": range(SYMBOLS["handler_stack"].start, SYMBOLS["handler_stack_top"].start),
    "trap stack": SYMBOLS["trap_stack"],
    "way back": range(SYMBOLS["guest_rsp"].start, SYMBOLS["guest_rsp"].start + 24),
    "shared memory": SYMBOLS["shared_memory"],
    "auxiliary": SYMBOLS["auxiliary"],
    "clock": SYMBOLS["vdso_clock_gettime"],
}


VM_DATA = f"{at('the_vm')},{len(SYMBOLS['the_vm'])}"


@pytest.mark.parametrize("after", ["site", "gate", "out", "interrupt=3", "spin"])
@pytest.mark.parametrize("name", list(DATA))
def test_noise_over_the_handlers_data_is_reported_or_harmless(rig: Rig, name: str, after: str) -> None:
    place = DATA[name]
    for seed in range(4):
        script = (f"noise=p+{place.start:#x},{len(place)},{seed}", after, "say=alive")
        result = rig.run(*script, timeout=0.3)
        assert result.reason in EXIT_REASONS_OF_A_GUEST, (script, result.message)


def test_handlers_whose_console_descriptor_is_replaced_are_killed(rig: Rig) -> None:
    """The console's descriptor in the handlers' data is replaced by another number."""
    read_end, write_end = os.pipe()
    try:
        for fd in (0, 1, FD_STOP, FD_VM, FD_SMALL, rig.victim_fd, rig.open[1]):
            script = f"replace={VM_DATA},{FD_CONSOLE},{fd}"
            assert_killed_by_filter(rig.run(script, "say=out", console=write_end))
    finally:
        os.close(read_end)
        os.close(write_end)


def test_handlers_whose_disks_are_exchanged_use_only_the_guests_own(rig: Rig) -> None:
    """The numbers of the two disks are exchanged. Both disks belong to the guest, and neither grows."""
    result = rig.run(f"replace={VM_DATA},{FD_SMALL},{FD_LARGE}")
    assert "replaced 1" in text(result)


# ---- stacks and flags


ENDS = ("0", "1", "8", "m", "m+8", "0xffffffffffffffff", "0x8000000000000000", "0x100000", "0xfff08")


@pytest.mark.parametrize(
    "rsp",
    [
        *ENDS,
        at("trap_stack"),
        at("trap_stack", 8),
        at("trap_stack", 0x800),
        at("trap_stack", 0x8000),
        at("trap_stack", 0x10000),
        at("handler_stack"),
        at("handler_stack", 0x10000),
    ],
)
@pytest.mark.parametrize("target", ["0", "handlers", "gate"])
def test_a_fault_on_any_stack_is_reported(rig: Rig, rsp: str, target: str) -> None:
    """This includes the stack on which signals are handled, which then overflows. The gate pops its
    return address.
    """
    where = {"0": "0", "handlers": at("syscall_instruction"), "gate": "0xff010"}[target]
    result = rig.run(f"goto={where},{rsp}")
    assert result.reason in EXIT_REASONS_OF_A_GUEST - {ExitReason.EXIT, ExitReason.TIMEOUT}, result.message


CF, PF, AF, ZF, SF, OF = 1, 4, 1 << 4, 1 << 6, 1 << 7, 1 << 11
DF, AC, NT, ID = 1 << 10, 1 << 18, 1 << 14, 1 << 21
RESULT = CF | PF | AF | ZF | SF | OF
KEPT = RESULT | DF | ID


@pytest.mark.parametrize(
    "flags",
    [
        0,
        CF,
        PF,
        AF,
        ZF,
        SF,
        OF,
        RESULT,
        RESULT & ~OF,
        OF | ID,
        DF,
        AC,
        NT,
        DF | AC | NT | CF,
        DF | RESULT,
        ID,
    ],
)
def test_flags_outlive_a_hypercall(rig: Rig, flags: int) -> None:
    """A call site and a trapped `out` keep all flags, except AC and NT where a signal is involved.
    The gate is a function.
    """
    result = rig.run(f"flags={flags | 0x202:#x}")
    assert result.ok, (result.message, text(result))
    found = re.search(r"flags = (\S+) (\S+) (\S+)", text(result))
    assert found
    site, out, gate = (int(word, 16) for word in found.groups())
    assert site & KEPT == flags & KEPT
    assert out & KEPT == flags & KEPT
    assert not gate & DF


def test_alignment_checks_do_not_reach_a_ring_0_program(rig: Rig) -> None:
    """CR0.AM is not set, so the flag has no meaning for the guest. In ring 3 it would affect the guest
    and the handlers.
    """
    result = rig.run("odd")
    assert result.ok, (result.message, text(result))


def test_single_steps_are_the_guests_own_exception(rig: Rig) -> None:
    result = rig.run(f"flags={0x302:#x}")
    assert result.reason == ExitReason.ABORT
    assert "#DB" in text(result)


def test_rights_by_protection_keys_end_the_guest_or_have_no_effect(rig: Rig) -> None:
    """WRPKRU, where the processor has it, removes the handlers' rights to their own memory."""
    result = rig.run("pkru=0xffffffff", "site")
    assert result.reason in EXIT_REASONS_OF_A_GUEST - {ExitReason.TIMEOUT}


# ---- memory


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("0x100000", ExitReason.TRANSLATION_FAULT),  # text
        (
            "0x80000",
            ExitReason.ABORT,
        ),  # trampolines, and all memory below 1 MiB: read-only in the guest's own tables
        ("0xff010", ExitReason.ABORT),
        ("0xfff00", ExitReason.ABORT),
        ("0xfe000", ExitReason.ABORT),
        ("0x10000", ExitReason.ABORT),
        ("0x14000", ExitReason.ABORT),
        ("0x1000", ExitReason.ABORT),
        ("m", ExitReason.ABORT),
        (at("syscall_instruction"), ExitReason.ABORT),  # the handlers' text
        (at("filter_rules"), ExitReason.ABORT),
        ("0xffffffffff600000", ExitReason.ABORT),
        ("0x7ffffffff000", ExitReason.ABORT),  # the last page of user space, never mapped
    ],
)
def test_memory_that_the_guest_may_not_write_is_not_written(rig: Rig, where: str, reason: str) -> None:
    result = rig.run(f"poke={where},90", "say=WRITTEN")
    assert result.reason == reason, (result.message, text(result))
    assert "WRITTEN" not in text(result)


def test_data_is_not_executed(rig: Rig) -> None:
    for where in ("b", "m+0xfffffffffffff000", "0x10000"):
        result = rig.run("poke=b,c3", f"goto={where},b+4096")
        assert result.reason == ExitReason.TRANSLATION_FAULT, (where, result.message)
    for where in (at("the_vm"), at("handler_stack"), SHARED):
        result = rig.run(f"goto={where},b+4096")
        assert result.reason in (ExitReason.SANDBOX_FAULT, ExitReason.ABORT), (where, result.message)


def test_memory_cannot_be_unmapped_moved_or_made_executable(rig: Rig) -> None:
    for call in (
        "11,b,4096",
        "25,b,4096,8192,1",
        "10,b,4096,7",
        "28,b,4096,4",
        "12,0",
        "9,0,4096,7,0x22",
        "329,b,4096,7,0",
    ):
        assert_killed_by_filter(rig.run(f"call={call}"))
