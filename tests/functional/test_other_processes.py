"""Workers of multiprocessing, with each start method: configurations go to them, results and errors
come back.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import other_process
import pytest
from support import Guest

from tender import DISCARD, GuestFailed, Image, ImageError, Vm, VmConfig

pytestmark = pytest.mark.backends
SMALL = VmConfig(mem=4, args=("3",))
LIMIT_S = 200


@pytest.fixture(params=["spawn", "forkserver", "fork"])
def workers(request: pytest.FixtureRequest) -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(request.param)) as executor:
        yield executor


def test_a_worker_runs_guests_and_gives_back_results_and_errors(
    guest: Guest, backend: str, workers: ProcessPoolExecutor
) -> None:
    path = guest("exit_status")
    running = [workers.submit(other_process.runs, path, SMALL, backend) for _ in range(3)]
    for each in running:
        result = each.result(LIMIT_S)
        assert (result.reason, result.status, result.backend) == ("exit", 3, backend)
    with pytest.raises(GuestFailed, match="guest ended: exit, status 3") as failed:
        workers.submit(other_process.checks, path, SMALL, backend).result(LIMIT_S)
    assert failed.value.result.status == 3
    with pytest.raises(ImageError, match="No such file") as refused:
        workers.submit(other_process.opens, path.with_name("missing.elf")).result(LIMIT_S)
    assert refused.value.code == "image-open"


def test_a_vm_is_not_sent_to_a_worker(guest: Guest, workers: ProcessPoolExecutor) -> None:
    with Image.open(guest("exit_status")) as image, Vm(image, SMALL, console=DISCARD) as vm:
        for it in (vm, image):
            with pytest.raises(TypeError, match="cannot be copied or pickled: it owns"):
                workers.submit(other_process.takes, it).result(LIMIT_S)
        assert vm.run(LIMIT_S).status == 3
