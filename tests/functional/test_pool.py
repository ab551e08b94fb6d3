"""A pool of VMs: a VM from it is as good as new whatever ran on its machine before, and nothing is
left behind.
"""

import os
import socket
import struct
import threading
from pathlib import Path

import pytest
from bare import HEAP, L_NET, L_PUTS, NET_READ, PUTS, Bare
from support import Guest, TapInterface, assert_nothing_is_left, footprint

import tender
from tender import BlockFile, ConfigError, ExitReason, Image, Tap, VmConfig, VmPool, VmStateError

pytestmark = pytest.mark.backends
SMALL = VmConfig(mem=4, args=("from-the-pool",))


def test_one_machine_serves_many_runs_each_with_its_own_arguments(guest: Guest) -> None:
    with Image.open(guest("args")) as image, VmPool(image, SMALL) as pool:
        plain = tender.run(image, SMALL, console=tender.CAPTURE)
        for i in range(20):
            own = pool.run((f"run-{i}", "", "x" * i))
            again = tender.run(image, VmConfig(mem=4, args=(f"run-{i}", "", "x" * i)), console=tender.CAPTURE)
            assert (own.status, own.console) == (again.status, again.console)
        assert pool.run().console == plain.console


def test_a_guest_with_arguments_of_its_own_finds_none_of_the_pools(guest: Guest) -> None:
    boot_info, length = 0x10000, 0x4000  # HVT_BOOT_INFO_GPA
    config = VmConfig(mem=8, args=("--first=" + "secret" * 1000,))
    with Image.open(guest("args")) as image, VmPool(image, config) as pool:
        for own in (["a"], [], ["longer", "than", "nothing"], ["b"]):
            with pool.take(own) as vm:
                line = " ".join(own).encode()
                memory = vm.memory(boot_info, length)
                assert b"secret" not in memory and b"first" not in memory
                assert line + bytes(64) in memory
                assert vm.run().reason == ExitReason.EXIT
        with pool.take() as vm:
            assert b"--first=" + b"secret" * 1000 + bytes(64) in vm.memory(boot_info, length)


def test_counters_and_times_start_afresh_in_each_run(guest: Guest) -> None:
    with Image.open(guest("hello")) as image, VmPool(image, SMALL) as pool:
        first, second = pool.run(), pool.run()
        assert first.counters.to_dict() == second.counters.to_dict()
        assert second.boot.start > first.boot.guest_exit
        assert second.boot.start <= second.boot.vm_created <= second.boot.first_run <= second.boot.guest_exit


@pytest.mark.parametrize(
    "name",
    [
        "exit_status",
        "panic",
        "null_write",
        "triple",
        "hlt",
        "bad_port",
        "write_text",
        "exec_data",
        "fpu",
        "tls_like",
    ],
)
def test_after_any_end_the_next_guest_runs_as_in_a_new_machine(guest: Guest, name: str) -> None:
    with Image.open(guest(name)) as image:
        alone = tender.run(image, SMALL, console=tender.CAPTURE)
        with VmPool(image, SMALL) as pool:
            for _ in range(3):
                pooled = pool.run()
                assert (pooled.reason, pooled.status, pooled.message, pooled.console, pooled.trap) == (
                    alone.reason,
                    alone.status,
                    alone.message,
                    alone.console,
                    alone.trap,
                )


def test_nothing_that_a_guest_wrote_or_set_is_found_by_the_next(guest: Guest, backend: str) -> None:
    """The guest fills memory and registers with marks. At its start it prints which marks it finds."""
    config = VmConfig(mem=8, args=("ring0",) if backend == "kvm" else ())
    with Image.open(guest("leftovers")) as image, VmPool(image, config) as pool:
        clean = tender.run(image, config, console=tender.CAPTURE)
        assert clean.ok and clean.console == b"clean\n"
        for _ in range(5):
            result = pool.run()
            assert (result.console, result.status) == (b"clean\n", 0)


def test_an_unfinished_instruction_does_not_write_to_the_next_guest() -> None:
    """KVM may end a run in the middle of an `ins`, and completes it when the vCPU is entered again."""
    guest = Bare()
    word = guest.place(b"untouched")
    guest.call(PUTS, L_PUTS, word, 9)
    guest.code(
        bytes.fromhex("66ba0205") + b"\xbf" + struct.pack("<I", word) + b"\x6d"
    )  # mov $word, %edi; insl
    with Image.from_bytes(guest.elf()) as image, VmPool(image, VmConfig(mem=2)) as pool:
        for _ in range(3):
            result = pool.run()
            assert (result.reason, result.console) == (ExitReason.BAD_PORT, b"untouched")


def test_a_vm_that_never_ran_or_was_stopped_serves_again(guest: Guest) -> None:
    with Image.open(guest("sleep")) as image, VmPool(image, SMALL) as pool:
        with pool.take():
            pass
        with pool.take() as vm:
            vm.stop()
            assert vm.run().reason == ExitReason.STOPPED
        assert pool.run(timeout=0.05).reason == ExitReason.TIMEOUT
        with pool.take() as vm:
            vm.start()
        assert pool.idle == 1


def test_a_pool_leases_its_machine_to_one_vm_after_another(guest: Guest, backend: str) -> None:
    """On KVM the same machine serves again. In the sandbox the pool makes a fresh one."""
    with Image.open(guest("hello")) as image, VmPool(image, SMALL) as pool:
        machines = []
        for _ in range(3):
            with pool.take() as vm:
                assert isinstance(vm, tender.Vm) and vm.run(timeout=60).ok
                machines.append(vm._machine)
        assert len({id(it) for it in machines}) == (1 if backend == "kvm" else 3)


def test_a_vm_given_back_cannot_be_used_and_does_not_stop_the_next(guest: Guest) -> None:
    with Image.open(guest("hello")) as image, VmPool(image, SMALL) as pool:
        with pool.take() as vm:
            vm.run()
        with pytest.raises(VmStateError):
            vm.run()
        with pytest.raises(VmStateError):
            vm.memory(0x100000, 1)
        with pool.take() as other:
            vm.stop()
            vm.close()
            assert other.run().ok


def test_threads_share_a_pool(guest: Guest) -> None:
    with Image.open(guest("args")) as image, VmPool(image, SMALL, size=2) as pool:
        wrong: list[object] = []

        def work(number: int) -> None:
            for i in range(8):
                word = f"thread-{number}-{i}"
                result = pool.run((word,))
                if result.status != 1 or word.encode() not in (result.console or b""):
                    wrong.append(result)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert pool.idle == 2


def test_a_console_callable_that_raises_costs_that_run_only(guest: Guest) -> None:
    fail = [True]

    def console(data: bytes) -> None:
        if fail.pop() if fail else False:
            raise RuntimeError("no")

    with Image.open(guest("hello")) as image, VmPool(image, SMALL, console=console) as pool:
        with pytest.raises(RuntimeError):
            pool.run()
        assert pool.run().ok


def test_a_disk_stays_with_its_pool(guest: Guest, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    with Image.open(guest("disk")) as image:
        config = VmConfig(mem=4, block=BlockFile(str(disk)))
        with VmPool(image, config) as pool:
            assert [pool.run().status for _ in range(3)] == [0, 0, 0]


@pytest.mark.tap
def test_a_frame_for_one_guest_does_not_reach_the_next(tap: TapInterface) -> None:
    """Each guest reads one frame. More than one has come before the first guest runs."""
    frame = b"\xff" * 6 + b"\x02\x00\x00\x00\x00\x01" + (0x88B5).to_bytes(2, "big") + bytes(50)
    reader = Bare([("service", "net")])
    reader.call(NET_READ, L_NET, 1, HEAP, 1514, 0)
    reader.halt()
    tap.be_quiet()
    with (
        Image.from_bytes(reader.elf()) as image,
        VmPool(image, VmConfig(mem=2, net=Tap(tap.name))) as pool,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender,
    ):
        first = pool.take()
        tap.carries()
        sender.bind((tap.name, 0))
        for _ in range(5):
            sender.send(frame)
        with first as vm:
            assert vm.run().counters.net_rx_packets == 1
        assert pool.run().counters.net_rx_packets == 0


def test_a_closed_pool_gives_no_vm_and_running_ones_may_finish(guest: Guest) -> None:
    with Image.open(guest("hello")) as image:
        pool = VmPool(image, SMALL, size=2)
        vm = pool.take()
        pool.close()
        pool.close()
        assert vm.run().ok
        vm.close()
        assert pool.idle == 0
        with pytest.raises(VmStateError, match="closed"):
            pool.take()


def test_a_pool_leaves_nothing_behind(guest: Guest) -> None:
    with Image.open(guest("hello")) as image:
        with VmPool(image, SMALL, size=2) as pool:
            pool.run()
        before = footprint()
        for _ in range(5):
            with VmPool(image, SMALL, size=3) as pool:
                for _ in range(5):
                    assert pool.run().ok
        del pool
        assert_nothing_is_left(before)


def test_a_forked_child_cannot_take_from_its_parents_pool(guest: Guest) -> None:
    with Image.open(guest("hello")) as image, VmPool(image, SMALL) as pool:
        child = os.fork()
        if child == 0:
            try:
                pool.take()
            except VmStateError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert pool.run().ok


@pytest.mark.parametrize("size", [0, -1, 4097, True, "2"])
def test_an_invalid_size_is_refused(guest: Guest, size: object) -> None:
    with Image.open(guest("hello")) as image, pytest.raises(ConfigError, match="size"):
        VmPool(image, SMALL, size=size)  # type: ignore[arg-type]
