"""The library in subinterpreters: with a shared GIL all works except start(); without one the import
reports why it fails.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from support import Guest

pytestmark = pytest.mark.backends
PROGRAM = """
import sys
try:
    import _interpreters as them
    made = them.create("legacy" if {shares} else "isolated")
except ImportError:
    import _xxsubinterpreters as them
    made = them.create(isolated=not {shares})
failed = them.run_string(made, {code!r})
assert failed is None, failed
them.destroy(made)
"""
RUNS = """
import sys
sys.path.insert(0, {tests!r})
import support
support.take_backend({backend!r})
import tender
from tender import CAPTURE, Image, Vm, VmConfig, VmStateError
with Image.open({path!r}) as image:
    for _ in range(2):
        heard = []
        with Vm(image, VmConfig(mem=4), console=heard.append) as vm:
            assert vm.run(100).ok and heard
    with Vm(image, VmConfig(mem=4), console=CAPTURE) as vm:
        try:
            vm.start()
        except VmStateError as error:
            print(error)
        assert vm.run(100).ok
"""
REFUSED = """
import tender
try:
    tender.Vm
except ImportError as error:
    print(error)
"""
OWN_GIL = (
    "tender cannot be used in a subinterpreter with a GIL of its own, because its core (a cffi module) does not allow "
    "that: use a thread, a process, or a subinterpreter that shares the GIL\n"
)


def python(program: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-W", "ignore", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize("first", ["", "the main interpreter first"])
def test_a_guest_runs_where_the_gil_is_shared_and_start_is_refused(
    guest: Guest, backend: str, first: str
) -> None:
    code = RUNS.format(
        tests=str(Path(__file__).resolve().parents[1]), backend=backend, path=str(guest("hello"))
    )
    started = code.replace("vm.start()", "vm.start(100)").replace(
        "assert vm.run(100).ok\n", "assert vm.wait().ok\n"
    )
    done = python((started if first else "") + PROGRAM.format(shares=True, code=code))
    refused = "start() is for the main interpreter: in a subinterpreter call run() on a thread\n"
    said = [
        line for line in done.stderr.splitlines() if line and "libmpdec" not in line
    ]  # libmpdec warns under Python 3.11
    assert (done.returncode, said, done.stdout) == (0, [], refused)


def test_an_import_that_python_refuses_names_the_cause_and_the_way_out() -> None:
    """Python 3.12 and later refuse it in this way."""
    words = "module tender._native does not support loading in subinterpreters"
    blocked = f"""
import sys
class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name == "tender._native":
            raise ImportError({words!r})
sys.meta_path.insert(0, Refuses())
"""
    done = python(blocked + REFUSED)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", OWN_GIL)


if sys.version_info >= (3, 12):

    def test_a_subinterpreter_with_a_gil_of_its_own_is_refused() -> None:
        done = python(PROGRAM.format(shares=False, code=REFUSED))
        assert (done.returncode, done.stderr, done.stdout) == (0, "", OWN_GIL)
