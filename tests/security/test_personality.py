"""READ_IMPLIES_EXEC, a personality in which a process may execute all memory that it may read: never
guest memory.

On x86-64 an exec removes it, so neither a command nor the sandbox's program can have it, whoever
starts them. A process that sets it for itself is refused a VM on KVM, as in solo5-hvt. In the
sandbox it makes no difference.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import Guest, sandbox_of

pytestmark = pytest.mark.backends


def maps(pid: int) -> list[tuple[str, str]]:
    """Returns rights and name of each mapping."""
    fields = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return [(line[1], line[5] if len(line) > 5 else "") for line in fields]


@pytest.mark.parametrize("words", [(), ("solo5-hvt",)], ids=["tender", "solo5-hvt"])
def test_a_command_that_is_started_with_read_implies_exec_does_not_have_it(
    tender_cmd: list[str], guest: Guest, backend: str, words: tuple[str, ...]
) -> None:
    command = ["setarch", "x86_64", "-X", *tender_cmd, *words, "--mem=4", str(guest("spin"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        pids = [process.pid] if backend == "kvm" else [process.pid, sandbox_of(process.pid).pid]
        seen = {pid: (Path(f"/proc/{pid}/personality").read_text(), maps(pid)) for pid in pids}
        process.terminate()
        process.communicate(timeout=60)
    for personality, mappings in seen.values():
        assert personality == "00000000\n"
        assert not [one for one in mappings if "wx" in one[0]]
    if backend == "kvm":
        assert not [one for one in seen[process.pid][1] if "x" in one[0] and "memfd" in one[1]]


IN_THIS_PROCESS = textwrap.dedent("""
    import ctypes, sys
    from pathlib import Path
    import tender
    ctypes.CDLL(None).personality(0x0400000)
    config = tender.VmConfig(mem=4)
    try:
        image = tender.Image.open(sys.argv[1])
        with tender.Vm(image, config, console=tender.DISCARD, backend=sys.argv[2]) as vm:
            print(Path(f"/proc/{vm.pid}/personality").read_text().strip(), vm.run().status)
    except tender.HostError as error:
        print(error)
""")


def test_a_process_that_sets_read_implies_exec_gets_no_vm_with_executable_memory(
    guest: Guest, backend: str
) -> None:
    command = [sys.executable, "-P", "-c", IN_THIS_PROCESS, str(guest("hello")), backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    if backend == "kvm":
        assert done.stdout == (
            "Error allocating guest memory: this process could execute that memory: its personality is READ_IMPLIES_EXEC\n"
        )
    else:
        assert done.stdout == "00000000 0\n"
