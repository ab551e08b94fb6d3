"""A VM's life in a process: many at once, stopped anywhere, closed in every way, and nothing left behind."""

import asyncio
import contextlib
import errno
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Guest, assert_nothing_is_left, footprint

import tender
from tender import CAPTURE, DISCARD, ExitReason, HostError, Image, Vm, VmConfig, VmPool, VmStateError

pytestmark = pytest.mark.backends
SMALL = VmConfig(mem=4)


def test_200_vms_one_after_another_leave_nothing(guest: Guest) -> None:
    with Image.open(guest("hello")) as image:
        for _ in range(5):
            tender.run(image, SMALL, console=DISCARD)
        before = footprint()
        for _ in range(200):
            assert tender.run(image, SMALL, console=DISCARD).ok
        assert_nothing_is_left(before)


def test_32_vms_at_once_each_on_its_own_thread(guest: Guest) -> None:
    def all_at_once() -> None:
        vms = [Vm(image, VmConfig(mem=4, args=(f"vm-{i}",)), console=CAPTURE) for i in range(32)]
        for vm in vms:
            vm.start(timeout=100)
        for i, vm in enumerate(vms):
            result = vm.wait()
            assert result.ok
            assert result.console is not None and f"vm-{i}".encode() in result.console
        for vm in vms:
            vm.close()

    with Image.open(guest("hello")) as image:
        all_at_once()  # the C library keeps arenas and stacks for this many threads
        before = footprint()
        all_at_once()
        assert_nothing_is_left(before)


def test_a_start_without_a_free_descriptor_is_a_host_error(
    guest: Guest, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory of sys.path has changed, so the search for a module would read it, which needs a descriptor."""
    monkeypatch.syspath_prepend(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Image.open(guest("hello")) as image, Vm(image, SMALL, console=DISCARD) as vm:
        os.utime(tmp_path, ns=(0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            with pytest.raises(HostError) as refused:
                vm.start(timeout=100)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert (refused.value.errno, refused.value.__cause__) == (errno.EMFILE, None)
        assert vm.run(timeout=100).ok


def ready(name: str, guest: Guest, **console: object) -> tuple[Vm, threading.Event]:
    """Returns a started VM and the event of its first console write."""
    said = threading.Event()
    with Image.open(guest(name)) as image:
        vm = Vm(image, SMALL, console=lambda _: said.set())
    vm.start()
    return vm, said


@pytest.mark.parametrize("name", ["spin", "sleep"])
def test_a_guest_is_stopped_while_it(guest: Guest, name: str) -> None:
    vm, said = ready(name, guest)
    with vm:
        assert said.wait(60)
        vm.stop()
        result = vm.wait(timeout=120)
        assert (result.reason, result.status) == (ExitReason.STOPPED, 1)


def test_many_stops_of_a_sleeping_guest_never_kill_the_process(guest: Guest) -> None:
    """The kick is a signal without a handler. If ppoll let it in, it would end the process."""
    for _ in range(30):
        vm, said = ready("sleep", guest)
        with vm:
            assert said.wait(60)
            stoppers = [threading.Thread(target=vm.stop) for _ in range(4)]
            for stopper in stoppers:
                stopper.start()
            for stopper in stoppers:
                stopper.join()
            result = vm.wait(timeout=120)
            assert result.reason == ExitReason.STOPPED


def test_a_guest_is_stopped_while_it_writes_to_a_full_pipe(guest: Guest) -> None:
    read_end, write_end = os.pipe()
    try:
        with Image.open(guest("flood")) as image, Vm(image, SMALL, console=write_end) as vm:
            vm.start()
            deadline = time.monotonic() + 60
            seen = -1
            while seen != vm.counters.console_bytes or not seen:  # until it no longer grows: the pipe is full
                seen = vm.counters.console_bytes
                assert time.monotonic() < deadline
                threading.Event().wait(0.3)
            vm.stop()
            result = vm.wait(timeout=120)
            assert result.reason == ExitReason.STOPPED
    finally:
        os.close(read_end)
        os.close(write_end)


def test_a_pipe_without_reader_loses_the_console_and_not_the_guest(guest: Guest) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        result = tender.run(guest("big_puts"), SMALL, console=write_end)
    finally:
        os.close(write_end)
    assert result.ok and result.counters.console_lost_bytes == 1 << 20


def test_a_full_disk_loses_the_console_and_not_the_guest(guest: Guest) -> None:
    result = tender.run(guest("big_puts"), SMALL, console=Path("/dev/full"))
    assert result.ok and result.counters.console_lost_bytes == 1 << 20


def test_a_slow_reader_gets_every_byte_in_order(guest: Guest) -> None:
    read_end, write_end = os.pipe()
    got = bytearray()

    def drain() -> None:
        while piece := os.read(read_end, 777):
            got.extend(piece)

    reader = threading.Thread(target=drain)
    reader.start()
    result = tender.run(guest("big_puts"), SMALL, console=write_end)
    os.close(write_end)
    reader.join()
    os.close(read_end)
    assert (
        result.ok and len(got) == 1 << 20 and got.startswith(b"00000 abc") and got[-64:].startswith(b"16383 ")
    )


def test_a_console_file_gets_the_console(guest: Guest, tmp_path: Path) -> None:
    tender.run(guest("hello"), SMALL, console=tmp_path / "console")
    assert b"Hello, World" in (tmp_path / "console").read_bytes()


def test_a_time_limit_ends_a_spinning_guest(guest: Guest) -> None:
    result = tender.run(guest("spin"), SMALL, console=DISCARD, timeout=1.0)
    assert (result.reason, result.status) == (ExitReason.TIMEOUT, 1)


def test_stop_before_run_ends_it_at_once(guest: Guest) -> None:
    with Image.open(guest("spin")) as image, Vm(image, SMALL, console=DISCARD) as vm:
        vm.stop()
        result = vm.run()
        assert result.reason == ExitReason.STOPPED and result.counters.exits == 0


def test_stop_from_many_threads_at_any_moment_never_kills_the_process(guest: Guest) -> None:
    """The stop may come before, during or after the run. Each ends the run cleanly, and none kills the
    process.
    """
    with Image.open(guest("hello")) as image:
        for i in range(40):
            with Vm(image, SMALL, console=DISCARD) as vm:
                stoppers = [threading.Timer(i * 0.002, vm.stop) for _ in range(3)]
                for stopper in stoppers:
                    stopper.start()
                assert vm.run(timeout=120).reason in (ExitReason.EXIT, ExitReason.STOPPED)
                for stopper in stoppers:
                    stopper.join()


def test_a_python_signal_handler_runs_while_the_guest_spins(guest: Guest) -> None:
    class Alarm(Exception):
        pass

    def on_alarm(*_: object) -> None:
        raise Alarm

    old = signal.signal(signal.SIGALRM, on_alarm)
    try:
        with Image.open(guest("spin")) as image, Vm(image, SMALL, console=DISCARD) as vm:
            with pytest.raises(Alarm):
                signal.setitimer(signal.ITIMER_REAL, 0.5)
                vm.run(timeout=60)
    finally:
        signal.signal(signal.SIGALRM, old)


def test_a_signal_that_raises_nothing_lets_the_guest_go_on(guest: Guest) -> None:
    """This holds too for a signal that interrupts a poll: the poll's remaining time is kept."""
    seen: list[int] = []
    old = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        result = tender.run(
            guest("clock"), VmConfig(mem=4, args=("--slack-ms=20000",)), console=CAPTURE, timeout=60
        )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert result.ok, result.console
    assert seen


def test_what_the_console_callable_raises_ends_the_run(guest: Guest) -> None:
    def fail(_: bytes) -> None:
        raise ZeroDivisionError

    with Image.open(guest("hello")) as image, Vm(image, SMALL, console=fail) as vm:
        with pytest.raises(ZeroDivisionError):
            vm.run()


def close_twice(vm: Vm) -> None:
    vm.close()
    vm.close()


def collect(vm: Vm) -> None:
    del vm


def run_and_forget(vm: Vm) -> None:
    vm.run()


@pytest.mark.parametrize("ending", [close_twice, collect, run_and_forget])
def test_a_vm_leaves_nothing_when_it_is(guest: Guest, ending: Callable[[Vm], None]) -> None:
    with Image.open(guest("hello")) as image:
        tender.run(image, SMALL, console=DISCARD)
        before = footprint()
        for _ in range(20):
            ending(Vm(image, SMALL, console=DISCARD))
        assert_nothing_is_left(before)


def test_a_vm_that_cannot_be_made_leaves_nothing(guest: Guest, tmp_path: Path) -> None:
    with Image.open(guest("disk")) as image:
        (tmp_path / "odd").write_bytes(bytes(700))
        before = footprint()
        for path in ("missing", "odd"):
            config = VmConfig(mem=4, block=tender.BlockFile(str(tmp_path / path)))
            for _ in range(20):
                with pytest.raises(tender.DeviceError):
                    Vm(image, config)
        assert_nothing_is_left(before)


def test_a_vm_runs_once(guest: Guest) -> None:
    with Image.open(guest("hello")) as image, Vm(image, SMALL, console=DISCARD) as vm:
        vm.run()
        with pytest.raises(VmStateError, match="runs once"):
            vm.run()


def test_the_use_of_a_closed_vm_is_an_error(guest: Guest) -> None:
    with Image.open(guest("hello")) as image:
        vm = Vm(image, SMALL)
        vm.close()
        vm.stop()
        for use in (vm.run, lambda: vm.counters, lambda: vm.memory(0, 1)):
            with pytest.raises(VmStateError, match="closed"):
                use()


def test_a_forked_child_cannot_use_its_parents_vm(guest: Guest) -> None:
    with Image.open(guest("hello")) as image, Vm(image, SMALL, console=DISCARD) as vm:
        child = os.fork()
        if child == 0:
            try:
                vm.run()
            except VmStateError:
                os._exit(42)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        assert vm.run().ok


def test_a_forked_child_makes_vms_of_its_own(guest: Guest) -> None:
    with Image.open(guest("hello")) as image:
        assert tender.run(image, SMALL, console=DISCARD).ok
        child = os.fork()
        if child == 0:
            try:
                os._exit(42 if all(tender.run(image, SMALL, console=DISCARD).ok for _ in range(3)) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        assert tender.run(image, SMALL, console=DISCARD).ok


@pytest.mark.parametrize("mebibytes", [(2, 2), (2, 4)], ids=["of one size", "of two"])
def test_an_image_opened_before_forks_serves_each_process(guest: Guest, mebibytes: tuple[int, int]) -> None:
    """The image is opened before its first VM, as in a server that forks its workers."""
    with Image.open(guest("hello")) as image:
        for mem in mebibytes:
            child = os.fork()
            if child == 0:
                try:
                    os._exit(42 if tender.run(image, VmConfig(mem=mem), console=DISCARD).ok else 1)
                finally:
                    os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        assert tender.run(image, VmConfig(mem=mebibytes[0]), console=DISCARD).ok


def test_a_vm_outlives_the_thread_that_made_it(guest: Guest) -> None:
    made: list[Vm] = []
    with Image.open(guest("hello")) as image:
        for _ in range(5):
            maker = threading.Thread(target=lambda: made.append(Vm(image, SMALL, console=CAPTURE)))
            maker.start()
            maker.join()
    for vm in made:
        with vm:
            assert vm.run(timeout=60).ok


def test_an_image_may_be_closed_while_its_vms_run(guest: Guest) -> None:
    image = Image.open(guest("hello"))
    vm = Vm(image, SMALL, console=CAPTURE)
    image.close()
    with vm:
        assert vm.run().ok
    with pytest.raises(tender.ImageError, match="closed"):
        Vm(image, SMALL)


def test_memory_is_there_from_the_start_on(guest: Guest) -> None:
    """This holds immediately after start() too, while the sandbox's program may still be mapping the
    memory.
    """
    with Image.open(guest("spin")) as image:
        for _ in range(60):
            with Vm(image, VmConfig(mem=4), console="discard") as vm:
                vm.start()
                assert vm.memory(0x100000, 16) != bytes(16)


def test_vms_of_one_image_do_not_see_each_others_memory(guest: Guest) -> None:
    with Image.open(guest("globals")) as image:
        for _ in range(3):
            assert tender.run(image, SMALL, console=DISCARD).ok


def test_one_image_serves_several_sizes_of_memory(guest: Guest) -> None:
    with Image.open(guest("hello")) as image:
        for mem in (2, 64, 2, 128):
            assert tender.run(image, VmConfig(mem=mem), console=DISCARD).ok


def test_the_gil_is_free_while_a_guest_spins(guest: Guest) -> None:
    vm, said = ready("spin", guest)
    with vm:
        assert said.wait(60)
        assert sum(range(100_000)) > 0  # this thread makes progress
        vm.stop()
        assert vm.wait(120) is not None


def test_counters_and_timeline_are_in_order(guest: Guest) -> None:
    result = tender.run(guest("hello"), SMALL, console=CAPTURE)
    boot = result.boot
    stamps = [
        boot.start,
        boot.vm_created,
        boot.first_run,
        boot.first_exit,
        boot.first_console,
        boot.guest_exit,
    ]
    assert stamps == sorted(stamps) and 0 not in stamps
    assert result.console is not None and result.counters.console_bytes == len(result.console)
    assert result.counters.hypercalls["halt"] == 1
    calls = sum(result.counters.hypercalls.values())
    assert result.counters.exits == calls + result.counters.emulated  # emulated is 0 on KVM


@pytest.mark.parametrize("seconds", [0, 0.01, 1])
def test_wait_raises_when_its_time_is_over_and_leaves_the_guest_running(guest: Guest, seconds: float) -> None:
    with Image.open(guest("sleep")) as image, VmPool(image, SMALL) as pool:
        for vm in (Vm(image, SMALL, console=DISCARD), pool.take()):
            with vm:
                vm.start()
                for _ in range(2):
                    with pytest.raises(TimeoutError) as over:
                        vm.wait(seconds)
                    assert str(over.value) == (
                        f"the guest still runs after {seconds} seconds of wait(): stop() ends it"
                    )
                assert "ended" not in repr(vm)
                vm.stop()
                assert vm.wait(60).reason == ExitReason.STOPPED
                assert vm.wait(0) is vm.wait()  # an ended guest is not waited for


def test_the_guests_own_time_limit_is_a_result_and_not_a_timeout_of_wait(guest: Guest) -> None:
    with Image.open(guest("sleep")) as image, Vm(image, SMALL, console=DISCARD) as vm:
        vm.start(timeout=0.05)
        result = vm.wait(timeout=60)
        assert (result.reason, result.status) == (ExitReason.TIMEOUT, 1)


def readable(*vms: Vm, limit_s: float = 0) -> list[Vm]:
    return select.select(vms, [], [], limit_s)[0]


def started_and_waited_for(vm: Vm) -> None:
    vm.start(timeout=100)
    assert readable(vm) == []
    vm.stop()
    vm.wait(60)


def run_on_another_thread(vm: Vm) -> None:
    runner = threading.Thread(target=vm.run, args=(100,))
    runner.start()
    deadline = time.monotonic() + 60
    while not vm.counters.hypercalls["poll"]:
        assert time.monotonic() < deadline
    assert readable(vm) == []
    vm.stop()
    runner.join()


def run_to_its_limit(vm: Vm) -> None:
    vm.run(timeout=0.01)


RUNS = [started_and_waited_for, run_on_another_thread, run_to_its_limit]


@pytest.mark.parametrize("asked_before", [True, False])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("run", RUNS)
def test_the_descriptor_of_a_vm_is_readable_from_the_end_of_its_run_on(
    guest: Guest, run: Callable[[Vm], None], pooled: bool, asked_before: bool
) -> None:
    with Image.open(guest("sleep")) as image, VmPool(image, SMALL) as pool:
        for _ in range(2):  # the next VM of a pool starts with a new descriptor state
            with pool.take() if pooled else Vm(image, SMALL, console=DISCARD) as vm:
                if asked_before:
                    number = vm.fileno()
                    assert readable(vm) == []
                    with pytest.raises(VmStateError, match="was not started"):
                        vm.wait(0)
                run(vm)
                assert readable(vm) == [vm] == readable(vm)  # and it stays readable
                if asked_before:
                    assert vm.fileno() == number
                result = vm.wait(0)
                assert result.reason in ("stopped", "timeout")
            assert vm.wait(0) is result  # also once the VM is closed
            with pytest.raises(VmStateError, match="closed"):
                vm.fileno()


@pytest.mark.parametrize("asked_before", [True, False])
def test_the_descriptor_of_a_vm_is_readable_after_a_run_that_raised(guest: Guest, asked_before: bool) -> None:
    def console(_: bytes) -> None:
        raise ZeroDivisionError

    with Image.open(guest("hello")) as image:
        with Vm(image, SMALL, console=console) as vm:
            assert not asked_before or readable(vm) == []
            with pytest.raises(ZeroDivisionError):
                vm.run()
            assert readable(vm) == [vm]
            with pytest.raises(VmStateError, match="no result to wait for"):
                vm.wait(0)
        with Vm(image, SMALL, console=console) as vm:
            assert not asked_before or readable(vm) == []
            vm.start()
            assert readable(vm, limit_s=100) == [vm]
            with pytest.raises(ZeroDivisionError):
                vm.wait(0)


def test_one_wait_is_for_many_vms(guest: Guest) -> None:
    with Image.open(guest("sleep")) as image, contextlib.ExitStack() as stack:
        vms = [stack.enter_context(Vm(image, SMALL, console=DISCARD)) for _ in range(3)]
        for vm in vms:
            vm.start(timeout=100)
        for i, vm in enumerate(vms):
            assert readable(*vms[i:]) == []
            vm.stop()
            assert readable(*vms[i:], limit_s=100) == [vm]


def test_a_refused_second_run_reports_no_end(guest: Guest) -> None:
    with Image.open(guest("sleep")) as image, Vm(image, SMALL, console=DISCARD) as vm:
        vm.start(timeout=100)
        for again in (vm.run, vm.start):
            with pytest.raises(VmStateError, match="runs already"):
                again()
        assert readable(vm) == []
        vm.stop()
        assert readable(vm, limit_s=100) == [vm]


@pytest.mark.parametrize("how", ["start", "run", "started before"])
def test_an_asyncio_loop_is_told_of_each_end(guest: Guest, how: str) -> None:
    """run() is on a thread. The loop is told immediately about a guest that has already ended."""

    async def ended(vm: Vm) -> tender.VmResult:
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        if how == "start":
            vm.start(timeout=100)
        elif how == "run":
            threading.Thread(target=vm.run, args=(100,)).start()
        else:
            vm.start(timeout=100)
            vm.wait()
        loop.add_reader(vm, over.set)
        await asyncio.wait_for(over.wait(), 100)
        loop.remove_reader(vm)
        return vm.wait()

    async def all_of(vms: list[Vm]) -> list[tender.VmResult]:
        return await asyncio.gather(*map(ended, vms))

    with Image.open(guest("hello")) as image:
        vms = [Vm(image, SMALL, console=DISCARD) for _ in range(4)]
        assert [result.reason for result in asyncio.run(all_of(vms))] == ["exit"] * 4
        for vm in vms:
            vm.close()
