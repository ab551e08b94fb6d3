"""Time limits, stop() and wait() hold where Python's threads and locks are replaced, as gevent and
eventlet do.

The replacements here are stricter than theirs: a thread that Python starts never runs, and the
library cannot have a lock.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import Guest

pytestmark = pytest.mark.backends

REPLACE = textwrap.dedent("""
    import _thread, select, sys, threading
    polls = []

    def replace():
        lock = _thread.allocate_lock
        def never(*_, **__):
            if "/tender/" in sys._getframe(1).f_code.co_filename:
                raise AssertionError("a lock of Python's")
            return lock()
        _thread.start_new_thread = _thread.start_new = threading._start_new_thread = lambda *_: 0
        _thread.allocate_lock = _thread.RLock = threading.Lock = never
        real = select.poll
        select.poll = lambda: polls.append(1) or real()
""")
USE = textwrap.dedent("""
    config = tender.VmConfig(mem=4)
    with tender.Image.open(sys.argv[1]) as image:
        with tender.Vm(image, config, console=tender.DISCARD) as vm:
            assert vm.run(timeout=0.2).reason == "timeout"
        with tender.Vm(image, config, console=tender.DISCARD) as vm:
            vm.start(timeout=0.2)
            assert vm.wait(60).reason == "timeout" and polls
        with tender.Vm(image, config, console=tender.DISCARD) as vm:
            vm.start()
            try:
                vm.wait(0.01)
            except TimeoutError:
                waited = True
            assert waited
            vm.stop()
            assert vm.wait(60).reason == "stopped"
        with tender.Vm(image, config, console=tender.DISCARD) as vm:
            vm.start()
        with tender.VmPool(image, config, console=tender.DISCARD) as pool:
            assert pool.run(timeout=0.2).reason == "timeout"
            assert pool.idle == 1
    print("held")
""")


@pytest.mark.parametrize("first", ["the library", "the replacement"])
def test_limits_stops_and_waits_hold_where_python_threads_are_replaced(
    guest: Guest, backend: str, first: str
) -> None:
    load = f"import support, tender, tender.vm, tender.pool; support.take_backend({backend!r})\n"
    order = [load, "replace()\n"] if first == "the library" else ["replace()\n", load]
    done = subprocess.run(
        [sys.executable, "-P", "-c", REPLACE + "".join(order) + USE, guest("spin")],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "held\n", "")
