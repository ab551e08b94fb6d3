"""A hostile guest in the native command's own process, with no monitor outside of it: the guest can
choose what is reported about its end, and cannot delay the end.
"""

import signal
import subprocess

import pytest
from sandbox_rig import (
    BASE,
    BSS,
    EXIT_GROUP,
    FD_STDERR,
    KILL,
    PPOLL,
    RT_SIGPROCMASK,
    SOON,
    TEXT,
    WRITE,
    Rig,
    at,
    symbols_of,
)

PR_SET_PDEATHSIG, PRCTL, SETITIMER, RT_SIGACTION = 1, 157, 38, 13  # linux/prctl.h, asm/unistd_64.h

OBSTINATE = {
    "computes": ("say=go", "spin"),
    "prints": ("say=go", "flood"),
    "waits in the kernel": ("say=go", f"call={PPOLL},0,0,0,0,0"),
    "claims to be ending": ("say=go", f"poke={at('ending')},01", "spin"),
    "claims to be ending, with a text at an invalid address": (
        "say=go",
        f"poke={at('ending')},{'ff' * 16}",
        f"noise={at('ending')}+4112,16,1",
        "spin",
    ),
    "overwrites the program's data about itself": ("say=go", f"noise={at('self')},200,1", "spin"),
    "replaces the handlers' clock": (
        "say=go",
        f"poke={at('vdso_clock_gettime')},SPIN_HERE",
        "spin",
    ),
    "claims to be reporting": ("say=go", f"poke={at('reporting')},01", "spin"),
    "hides its memory from the handlers": ("say=go", "pkru=0x55555554", "spin"),
    **{
        f"noise, {seed}": ("say=go", f"noise=p+{BSS.start:#x},{len(BSS)},{seed}", "spin") for seed in range(4)
    },
    **{
        f"inside of the program, {step}": ("say=go", f"jump=p+{TEXT.start + step * len(TEXT) // 9:#x},{step}")
        for step in range(9)
    },
}


def started(
    rig: Rig, tender_cmd: list[str], *script: str, options: tuple[str, ...] = ()
) -> "subprocess.Popen[str]":
    fd = rig.theirs.fileno()
    devices = [f"--net:service0=@{fd}", f"--block:small={rig.small}", f"--block:large={rig.large}"]
    return subprocess.Popen(
        [*tender_cmd, "--backend=sandbox", "--mem=16", *devices, *options, rig.path, BASE, *script],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", pass_fds=(fd,),
    )  # fmt: skip


def ended(rig: Rig, tender_cmd: list[str], *script: str) -> tuple[int, str, str]:
    with started(rig, tender_cmd, *script) as process:
        try:
            console, said = process.communicate(timeout=SOON)
        finally:
            process.kill()
    return process.returncode, console, said


@pytest.mark.parametrize("by", ["SIGTERM", "SIGINT", "timeout"])
@pytest.mark.parametrize("what", OBSTINATE)
def test_a_stop_and_a_time_limit_end_any_hostile_guest(
    rig: Rig, tender_cmd: list[str], what: str, by: str
) -> None:
    spin_here = symbols_of(rig.path)["spin_here"].start.to_bytes(8, "little").hex()
    script = [word.replace("SPIN_HERE", spin_here) for word in OBSTINATE[what]]
    options = ("--timeout=300ms",) if by == "timeout" else ()
    with started(rig, tender_cmd, *script, options=options) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            if by != "timeout":
                process.send_signal(getattr(signal, by))
            _, said = process.communicate(timeout=SOON)
        finally:
            process.kill()
    assert process.returncode != -signal.SIGKILL
    if what in ("computes", "waits in the kernel"):
        line = "the guest was stopped: its time limit of 0.3 s is over"
        number = None if by == "timeout" else getattr(signal, by).value
        assert (process.returncode, said) == (
            1,
            f"tender: {f'Exiting on signal {number}' if number else line}\n",
        )


@pytest.mark.parametrize(
    "call",
    [
        f"{RT_SIGPROCMASK},2,b,0,8",
        f"{RT_SIGACTION},15,b,0,8",
        f"{SETITIMER},0,b,0",
        f"{PRCTL},{PR_SET_PDEATHSIG},0",
        f"{KILL},1,9",
    ],
)
def test_no_call_prevents_the_guests_end_or_ends_another_process(
    rig: Rig, tender_cmd: list[str], call: str
) -> None:
    """The command itself prints nothing: only its parent sees the wait status."""
    status, console, said = ended(rig, tender_cmd, f"call={call}", "say=alive")
    assert (status, said) == (-signal.SIGSYS, "") and "alive" not in console


def test_a_system_call_of_the_guest_itself_is_named(rig: Rig, tender_cmd: list[str]) -> None:
    status, _, said = ended(rig, tender_cmd, f"syscall={KILL},1,9")
    first, place, *_ = said.splitlines()
    assert status == 1
    assert first.startswith(
        "tender: sandbox: the guest asked the host's kernel for system call 62 (kill): rip=0x"
    )
    assert place.startswith("tender: hint: rip 0x") and "bytes there: 0f 05 " in place


def test_a_hostile_guest_may_write_to_stderr_and_choose_its_status(rig: Rig, tender_cmd: list[str]) -> None:
    said = ended(rig, tender_cmd, "poke=b,48690a", f"call={WRITE},{FD_STDERR},b,3", f"call={EXIT_GROUP},7")
    assert said == (7, "call = 3\n", "Hi\n")
