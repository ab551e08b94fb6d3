"""What the ends say that only the sandbox has: imported when there is one to explain."""

from tender.native import CData, lib
from tender.result import STATUS_ENDED, STATUS_HOST_FAILED, ExitReason

_AUDIT_ARCH_I386 = 0x40000003
_SIGNALS = {4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV"}
_SIGKILL, _SIGSYS = 9, 31


def explain(event: CData) -> tuple[str, int, str]:
    """(reason, status, message) of an EVENT_UNSUPPORTED_INSTRUCTION and what follows it in the enum."""
    kind = event.kind
    at = f"rip={event.rip:#x}"
    if kind == lib.EVENT_UNSUPPORTED_INSTRUCTION:
        code = bytes(event.instruction[i] for i in range(event.instruction_bytes)).hex(" ")
        text = f"sandbox: a privileged instruction that is not emulated: {at}, bytes {code}; KVM may run it: --backend kvm"
        return ExitReason.UNSUPPORTED_INSTRUCTION, STATUS_ENDED, text
    if kind == lib.EVENT_FORBIDDEN_SYSCALL:
        text = (
            f"sandbox: the guest asked the host's kernel for {system_call(event.number, event.detail)}: {at}"
        )
        return ExitReason.FORBIDDEN_SYSCALL, STATUS_ENDED, text
    if kind == lib.EVENT_HANDLER_FAULT:
        cause = (
            f"{_SIGNALS.get(event.detail, f'signal {event.detail}')} at {at}"
            if event.detail
            else "a false report"
        )
        text = f"sandbox: {cause} in the handlers: the guest jumped into them or wrote over their memory"
        return ExitReason.SANDBOX_FAULT, STATUS_ENDED, text
    status = STATUS_HOST_FAILED if _is_the_hosts(event) else STATUS_ENDED
    return ExitReason.SANDBOX_DIED, status, f"sandbox: {_death(event)}"


def _is_the_hosts(event: CData) -> bool:
    """Whether somebody else ended the process, as far as can be told: a guest that took it over can make it exit,
    fault, or ask for a forbidden call, but not be sent SIGKILL.
    """
    return bool(event.os_error) or event.detail == _SIGKILL


def _death(event: CData) -> str:
    if event.os_error:
        return "the process ended, and something else in this program took its exit status"
    if event.detail == _SIGSYS:
        return "the process was killed by its filter: the guest made the handlers ask for a forbidden system call"
    if event.detail == _SIGKILL:
        return "the process was killed from outside (SIGKILL): by someone, or for want of memory"
    if event.detail:
        return f"the process died of {_SIGNALS.get(event.detail, f'signal {event.detail}')} in its handlers"
    return f"the process exited with status {event.status} instead of reporting an end"


def system_call(number: int, arch: int) -> str:
    """`system call 1 (write)`, by the numbers of the entry that was used."""
    from tender.backend.syscall_names import I386, X86_64

    signed = number - (1 << 32) if number >= 1 << 31 else number
    names = I386 if arch == _AUDIT_ARCH_I386 else X86_64
    name = names.get(signed, "no such call")
    return f"system call {signed} ({name}{', by the 32-bit entry' if arch == _AUDIT_ARCH_I386 else ''})"
