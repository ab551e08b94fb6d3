"""`tender run`: Python's path from the command line to a running guest.

argv -> options -> image -> devices by name -> VmConfig -> Vm -> the guest's status.

`launch` does the part from the image on for `tender run` here and for `tender solo5-hvt` in solo5.py. The two differ in
how words become a VmConfig: each passes a function for that.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from signal import SIGALRM, SIGCHLD, SIGCONT, SIGINT, SIGQUIT, SIGSTOP, SIGTERM, SIGTSTP
from typing import TYPE_CHECKING

from tender.annotations import Console
from tender.cli import say, usage
from tender.cli.main import last_resort
from tender.cli.option_table import OPTIONS
from tender.cli.options import RunOptions, UsageError, invalid_option, parse_args
from tender.config import MIB, BlockDevice, NetDevice, OtherDevice, VmConfig
from tender.errors import ConfigError, ImageError, ManifestError, TenderError

if TYPE_CHECKING:  # help and errors of the command line work without the native core
    from tender.debug.core import SavedCore
    from tender.image import Image
    from tender.result import VmResult
    from tender.vm import Vm

STATUS_CANNOT_START = 1


def main(argv: list[str]) -> int:
    """Runs one unikernel, and returns the process's exit status."""
    began_ns = time.monotonic_ns()
    stopper = Stopper()
    try:
        options = parse_args(argv, launcher=variable("TENDER_LAUNCHER"), **option_variables())
    except ConfigError as error:
        return failed(error, _salvaged(argv))
    if options.action != "run":
        stopper.dismiss()
        say.out(usage.run_help() if options.action == "help" else usage.version())
        return 0
    if options.example:
        import tender

        options = options._with(image=os.path.realpath(f"{tender.__path__[0]}/guests/{options.example}.elf"))
    if options.json is not None:
        from tender.cli.outputs import with_report

        try:
            options = with_report(options)
        except UsageError as error:
            return failed(error, options._with(json=None))
    try:
        if options.console != 1:
            from tender.cli.outputs import check_console

            check_console(options)
        return launch(options, lambda image: _configured(options, image), began_ns, stopper)
    except TenderError as error:
        return failed(error, options)
    except MistakeWhileRunning as error:
        assert isinstance(error.__cause__, Exception)
        return _mistake(error.__cause__, "internal-error", options)
    except Exception as error:
        return _mistake(error, "not-started", options)


def _salvaged(argv: list[str]) -> RunOptions:
    if not any(word.startswith("--json") for word in argv):
        return RunOptions()
    from tender.cli.outputs import salvaged

    return salvaged(argv)


def variable(name: str) -> str:
    """Returns the value of an environment variable, or an empty text."""
    return os.environb.get(name.encode(), b"").decode("utf-8", "replace")


def option_variables() -> dict[str, str]:
    """Returns what the environment says in place of options, by their fields."""
    return {option.field: variable(option.variable) for option in OPTIONS if option.variable}


class MistakeWhileRunning(Exception):
    """A mistake in Tender after the guest's start. The exception's cause is the mistake. It is not a "cannot start"."""


class StoppedEarly(TenderError):
    """A signal came before there was a VM."""

    def __init__(self, number: int) -> None:
        from tender.native import says

        super().__init__(says("signal", number), code="signal")
        self.number = number


class Stopper:
    """The handler of SIGINT and SIGTERM: the first one stops the VM, and the second one kills the process.

    It is made before everything else, and lets these signals in. The native command blocks them when it executes Python,
    and an inherited mask may block them too. An inherited SIG_IGN of SIGINT, which a shell sets for a command in the
    background, stays unless `deaf` is False. From let_wait() on, as long as there is no VM, the first signal ends what is
    under way.
    """

    def __init__(self, *, deaf: bool = True) -> None:
        self.signal = 0
        self._may_wait = False
        self.vm: Vm | None = None
        self.guest_began = False
        if not deaf or signal.getsignal(SIGINT) != signal.SIG_IGN:
            signal.signal(SIGINT, self)
        signal.signal(SIGTERM, self)
        signal.signal(
            SIGCHLD, signal.SIG_DFL
        )  # if it is ignored, the kernel does not tell how the sandbox process ended
        let_signals_in()

    def dismiss(self) -> None:
        """No guest will run: from now on signals end the process in the usual way."""
        if signal.getsignal(SIGINT) is self:
            signal.signal(SIGINT, signal.default_int_handler)
        signal.signal(SIGTERM, signal.SIG_DFL)
        if self.signal:
            signal.raise_signal(self.signal)

    def __call__(self, number: int, frame: object) -> None:
        if self.signal:  # the first one does not set SIG_DFL: the second may be pending in Python by then
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = number
        say.hurry()
        if self.vm is not None:
            self.vm.stop()
            self.vm._leave_interfaces()  # the next signal kills, whenever it comes
        elif self._may_wait:
            self._end_wait()

    def let_wait(self) -> None:
        """From now on, as long as there is no VM, the command may wait for a lock or a file system.

        Raises StoppedEarly if a signal came before.
        """
        self._may_wait = True
        if self.signal:
            self._end_wait()

    def _end_wait(self) -> None:
        raise StoppedEarly(self.signal)


def let_signals_in() -> None:
    """Unblocks the signals that the native command blocks while it executes Python, or that an inherited mask blocks."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (SIGINT, SIGALRM, SIGTERM))


class _Suspender:
    """The handler of SIGTSTP, which a terminal sends for ^Z, if the guest is another process: both stop, and both go on.

    The sandbox process is the first of its pid namespace. Such a process only gets a stop from outside that it cannot
    refuse: SIGSTOP.
    """

    def __init__(self, vm: "Vm") -> None:
        self._vm = vm

    def __call__(self, number: int, frame: object) -> None:
        self._tell(SIGSTOP)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # returns when this process goes on
        signal.signal(number, self)
        self._tell(SIGCONT)

    def _tell(self, number: int) -> None:
        pid = self._vm.pid
        if pid > 0:
            os.kill(pid, number)


def _configured(options: RunOptions, image: "Image") -> VmConfig:
    net: dict[str, NetDevice] = {}
    block: dict[str, BlockDevice] = {}
    others: dict[str, OtherDevice] = {}
    if options.settings:
        from tender.cli.attach import resolve

        net, block, others = resolve(options.settings, image.devices, options.image)
        from tender.devices.opening import check_given

        for device in (*net.values(), *block.values()):
            check_given(device)
    if options.net_reattach:
        check_reattach(net)
    if options.mem_adjusted and options.verbosity >= 0:
        from tender.native import says

        say.notice(says("memory_adjusted", options.mem_bytes))
    return vm_config(options, net, block, others)


def vm_config(
    options: RunOptions,
    net: Mapping[str, NetDevice],
    block: Mapping[str, BlockDevice],
    others: Mapping[str, OtherDevice] | None = None,
) -> VmConfig:
    """Returns the configuration of the VM, for `tender run` and for solo5-hvt's command line."""
    return VmConfig(
        mem=options.mem_bytes // MIB,
        args=options.args,
        net=net,
        block=block,
        devices=others,
        net_ring=options.net_ring,
        net_reattach=options.net_reattach,
        require=options.require,
        lock_wait=options.lock_wait,
        debuggable=options.debuggable,
        flight_recorder=options.flight_recorder,
    )


def launch(
    options: RunOptions, configured: "Callable[[Image], VmConfig]", began_ns: int, stopper: Stopper
) -> int:
    """Runs `options.image` as `configured` says, reports how that ended, and returns the exit status.

    Args:
        options: Only image, timeout, console, backend, json, stats, verbosity and words are used.
        configured: Returns the configuration for an image: devices, memory and arguments.
        began_ns: When the command began, on the monotonic clock.
        stopper: The handler of signals.

    Raises:
        TenderError: The guest could not start.
        MistakeWhileRunning: Any other exception after the guest's start.
    """
    if options.timeout is not None and not stopper.signal:
        say.hurry(after_s=options.timeout)
    try:
        return _launch(options, configured, began_ns, stopper)
    except TenderError:
        raise
    except Exception as error:
        if not stopper.guest_began:
            raise
        raise MistakeWhileRunning from error


def _launch(
    options: RunOptions, configured: "Callable[[Image], VmConfig]", began_ns: int, stopper: Stopper
) -> int:
    from tender.image import Image
    from tender.native import lib
    from tender.vm import Vm

    if options.core:
        from tender.debug.core import check_directory

        check_directory(options.core)
    stopper.let_wait()
    with Image.open(options.image) as image:
        _phase(options, f"{options.image}: entry {image.entry:#x}, {len(image.devices)} devices", began_ns)
        config = configured(image)
        try:
            vm = Vm(image, config, console=_console(options.console), backend=options.backend)
        except ManifestError as error:
            raise _unattached(error, options, image) from error
        with vm:
            vm._told = lib.TOLD_COMMAND
            stopper.vm = vm
            vm._on_network = say.notice
            if vm.backend == "sandbox" and signal.getsignal(SIGTSTP) == signal.SIG_DFL:
                signal.signal(SIGTSTP, _Suspender(vm))
            if vm.fallback and options.verbosity >= 0:
                say.notice(vm._notice)
            _phase(options, f"{config.mem_bytes // MIB} MiB, guest starts", began_ns)
            if stopper.signal:
                vm.stop()
            if options.core:
                signal.signal(SIGQUIT, stopper)
            stopper.guest_began = True
            if isinstance(options.json, str):
                from tender.cli import outputs

                outputs.empty(options.json_fd)
            if options.timeout is not None and not stopper.signal:
                say.hurry(after_s=options.timeout)  # again, because the guest's time begins here
            result = vm.run(timeout=options.timeout)
            core = _core(vm, result, options, stopper.signal) if options.core else None
            if options.dumpcore and result.reason == "abort":
                _dump(vm, options.dumpcore)
            written = core.path if core is not None and not isinstance(core, TenderError) else ""
            report = _crash_report(vm, result, options, stopper.signal, written)
        _phase(options, f"guest ended: {result.reason}, status {result.status}", began_ns)
    return _ended(result, options, stopper.signal, core, report)


def _core(vm: "Vm", result: "VmResult", options: RunOptions, signal: int) -> "SavedCore | TenderError | None":
    """Writes the core of an abnormal end, before the VM is closed. The line about it comes after that of the end."""
    if not _is_abnormal(result, signal):
        return None
    from tender.debug.core import save_core

    try:
        if result.reason == "sandbox-died":
            raise TenderError("the guest's process was killed, and the guest's state is gone with it")
        return vm._look_into(lambda state: save_core(state, directory=options.core, keep=options.core_max))
    except TenderError as error:
        return error
    except Exception as error:  # the run has ended: its status does not depend on a core
        return TenderError(f"internal error: {type(error).__name__}: {error}; please report")


def _dump(vm: "Vm", directory: str) -> None:
    """Writes a core by the rules and in the words of solo5-hvt's --dumpcore."""
    path = f"{directory}/core.solo5-hvt.{os.getpid()}"
    say.notice(f"dumpcore: dumping guest core to: {path}")
    try:
        vm.core(path)
    except TenderError as error:
        say.error(error.message)
        say.error("dumpcore: error(s) dumping core, file may be incomplete")


def _crash_report(
    vm: "Vm", result: "VmResult", options: RunOptions, signal: int, core: str
) -> "dict[str, object] | str":
    """Returns the report of an abnormal end, if a person wants one and it can be made; else a text why not."""
    wanted = os.isatty(2) if options.crash_report is None else options.crash_report
    if not wanted or not _is_abnormal(result, signal) or result.reason == "sandbox-died":
        return ""
    from tender.debug.report import capture, report_of

    try:
        return report_of(vm._look_into(capture), core=core)
    except TenderError as error:
        return f"crash report: none: {error.message}" if options.crash_report else ""
    except Exception:  # the run has ended: its status does not depend on a report
        return ""


def _is_abnormal(result: "VmResult", number: int) -> bool:
    """Whether an end is one that a core is wanted of, as exit_is_abnormal() of bindings/vm/exit_report.h."""
    if number and result.guest_status is None:
        return number == SIGQUIT
    return result.reason not in ("exit", "stopped")


def check_reattach(net: dict[str, NetDevice]) -> None:
    """Raises UsageError for --net-reattach if no network is attached by name."""
    if not any(device.named for device in net.values()):
        from tender.native import says

        raise invalid_option(
            "--net-reattach",
            says("nothing_to_reattach"),
            "write --net:NAME=IFACE; the program that gave a descriptor (@FD) attaches it again itself",
        )


class _Path:
    """A file's name as os.PathLike, unchanged: pathlib removes a slash at the end."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __fspath__(self) -> str:
        return self._name

    __str__ = __fspath__


def _console(choice: int | str | None) -> int | _Path | Console:
    if choice is None:
        return Console.DISCARD
    return _Path(choice) if isinstance(choice, str) else choice


def _phase(options: RunOptions, text: str, began_ns: int) -> None:
    if options.verbosity > 0:
        say.notice(f"{(time.monotonic_ns() - began_ns) / 1e6:8.3f} ms  {text}")


def _ended(
    result: "VmResult",
    options: RunOptions,
    signal: int,
    core: "SavedCore | TenderError | None" = None,
    crash_report: "dict[str, object] | str" = "",
) -> int:
    if signal and result.guest_status is None:
        result = _by_signal(result, signal)
    if result.reason == "timeout":
        from tender.native import says

        say.error(says("time_over", options.timeout))
    elif result.message:
        say.error(result.message)
    shares_stderr = options.json == 2
    if not shares_stderr:
        _write_json(result, options, signal, crash_report)
    if result.message and result.reason != "timeout" and result.fault is not None and say.HINTS:
        from tender.cli import explain

        say.hint(explain.fault_hint(result.fault))
    if core is not None:
        from tender.cli.core import say_core

        say_core(core)
    if crash_report:
        say.plain(_text_of(crash_report))
    if options.stats:
        from tender.cli import report

        say.plain(report.stats(result))
    if shares_stderr:  # a reader of stderr finds it in the last line
        _write_json(result, options, signal, crash_report)
    return result.status


def _text_of(crash_report: "dict[str, object] | str") -> str:
    if isinstance(crash_report, str):
        return crash_report
    from tender.debug.report_text import text_of

    return text_of(crash_report, color=say.wants_color(2)).removesuffix("\n")


def _write_json(
    result: "VmResult", options: RunOptions, signal: int, crash_report: "dict[str, object] | str"
) -> None:
    if options.json is not None:
        from tender.cli import report

        made = {} if isinstance(crash_report, str) else {"report": crash_report}
        report.write_json(report.ended(result, options, signal) | made, options)


def _by_signal(result: "VmResult", signal: int) -> "VmResult":
    from tender.native import says
    from tender.result import STATUS_ENDED, ExitReason

    return result._with(reason=ExitReason.SIGNAL, status=STATUS_ENDED, message=says("signal", signal))


def failed(error: TenderError, options: RunOptions) -> int:
    """Says why the guest could not start, with a hint, and returns the exit status."""
    error.hint = error.command_hint
    if error.code == "device-missing":
        from tender.native import says

        error.message += says("see_help")
    if isinstance(error, ImageError) and say.HINTS:
        from tender.cli import explain

        error.hint = explain.image_hint(options.image, options.words) or error.hint
    say.error(error.message)
    say.hint(error.hint)
    if isinstance(error, UsageError) and error.show_usage:
        say.plain(usage.short())
    if options.json is not None:
        from tender.cli import report

        early = error.number if isinstance(error, StoppedEarly) else None
        reason = "not-started" if early is None else "signal"
        report.write_json(report.without_result(error, options, reason=reason, signal=early), options)
    return STATUS_CANNOT_START


def _mistake(error: Exception, reason: str, options: RunOptions) -> int:
    """Reports a mistake in Tender, and returns the exit status."""
    status = last_resort(error)
    if options.json is not None:
        from tender.cli import report

        report.write_json(report.without_result(error, options, reason=reason, status=status), options)
    return status


def _unattached(error: ManifestError, options: RunOptions, image: "Image") -> ManifestError:
    """Returns the same error with a hint: a command line that works."""
    if not error.missing or not say.HINTS:
        return error
    from tender.cli import explain

    return ManifestError(
        error.message,
        missing=error.missing,
        code=error.code,
        hint=explain.missing_hint(error.missing, options),
    )
