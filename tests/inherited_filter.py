"""Executes a command under the system-call filter that urunc 0.5 to 0.7 installs before it executes solo5-hvt.

    inherited_filter.py [+CALL...] COMMAND [WORDS...]
    inherited_filter.py -CALL... COMMAND [WORDS...]

The list of calls is urunc's: 43 calls are allowed, and any other raises SIGSYS. +CALL allows one more call. With -CALL a
different filter is installed: it allows all calls except those. -CALL:ERRNO answers with that error and raises no signal.
-CALL:ERRNO@N does so where the first argument is N, and -CALL:ERRNO@K=N where argument K is N (K counts from 0).
-CALL:kill ends the process, as systemd's SystemCallFilter= does.
"""

import ctypes
import os
import struct
import sys

ALLOWED = """
    rt_sigaction ioctl pread64 mmap recvmsg openat sendto mprotect write epoll_ctl epoll_create1 read open close
    fstat stat munmap brk access execve timerfd_create arch_prctl lseek personality socket bind getsockname exit
    exit_group getpid tgkill nanosleep futex epoll_pwait rt_sigreturn timerfd_settime pwrite64 newfstatat
    set_tid_address set_robust_list rseq prlimit64 getrandom
"""
KILL, TRAP, ERRNO, ALLOW = 0x80000000, 0x00030000, 0x00050000, 0x7FFF0000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2


def numbers(names: list[str]) -> list[int]:
    """Returns the numbers of the calls."""
    from tender.native import ffi, lib

    known = {ffi.string(lib.tn_system_call_name(n, 0)).decode(): n for n in range(512)}
    return [known[name] for name in names]


def install(named: list[int], verdict: int, otherwise: int, argument: tuple[int, int] | None = None) -> None:
    """Installs a filter for this process and the program that it executes: `verdict` for the calls named, `otherwise`
    for all others. `argument` is a place, counted from 0, and a value: the verdict then holds only where that argument
    has the value."""
    code = [(0x20, 0, 0, 0)]  # the call's number
    for at, number in enumerate(named):
        code.append((0x15, len(named) - at, 0, number))
    code.append((0x06, 0, 0, otherwise))
    if argument:
        place, value = argument
        code += [(0x20, 0, 0, 16 + 8 * place), (0x15, 1, 0, value), (0x06, 0, 0, otherwise)]
    code.append((0x06, 0, 0, verdict))
    filter_code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *one) for one in code))
    program = ctypes.create_string_buffer(struct.pack("<H6xQ", len(code), ctypes.addressof(filter_code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0
    ):
        raise OSError(ctypes.get_errno(), "the filter")


if __name__ == "__main__":
    command = sys.argv[1:]
    more: list[str] = []
    refused: list[str] = []
    while command[0][0] in "+-":
        word = command.pop(0)
        (more if word[0] == "+" else refused).append(word[1:])
    if refused:
        error, _, where = refused[0].partition(":")[2].partition("@")
        place, _, value = where.rpartition("=")
        names = [word.partition(":")[0] for word in refused]
        verdict = KILL if error == "kill" else ERRNO | int(error) if error else TRAP
        install(numbers(names), verdict, ALLOW, (int(place or 0), int(value)) if where else None)
    else:
        install(numbers([*ALLOWED.split(), *more]), ALLOW, TRAP)
    os.execv(command[0], command)
