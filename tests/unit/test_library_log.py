"""What the library logs: under the name `tender`, silent by default, and without the cost of importing
`logging`."""

import logging
import subprocess
import sys
from typing import Any

import pytest

import tender
import tender.assemble
from tender import log
from tender.backend import trial

SMALL = tender.VmConfig(mem=4)
NOTICE = "no usable KVM (it is too old): the guest runs in the sandbox"

PROGRAM = """
import sys
{before}
import tender
from tender import log
from tender.backend import trial

with tender.Image.from_bytes(trial.elf()) as image:
    result = tender.run(image, tender.VmConfig(mem=4), console=tender.CAPTURE, backend="sandbox")
log.tell("vm", "WARNING", "an interface was deleted")
{after}
"""


def said(before: str, after: str) -> tuple[str, str]:
    """Runs a program that runs a guest and makes the library log a warning; returns its stdout and stderr."""
    program = PROGRAM.format(before=before, after=after)
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_program_without_logging_does_not_import_it_and_prints_nothing() -> None:
    assert said("", "print('logging' in sys.modules)") == ("False\n", "")


def test_a_program_that_does_not_configure_logging_prints_nothing() -> None:
    assert said("import logging", "print(logging.getLogger('tender').handlers)") == (
        "[<NullHandler (NOTSET)>]\n",
        "",
    )


def test_a_program_that_configures_logging_prints_the_warning() -> None:
    configure = "import logging; logging.basicConfig(format='%(name)s %(levelname)s %(message)s')"
    assert said(configure, "") == ("", "tender.vm WARNING an interface was deleted\n")


def test_a_programs_own_handler_stays_the_only_one(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tender")
    old, own = logger.handlers[:], logging.NullHandler()
    logger.handlers[:] = [own]
    try:
        log.tell("vm", "WARNING", "100 % of it")
        assert logger.handlers == [own]
    finally:
        logger.handlers[:] = old
    assert [(it.name, it.levelno, it.getMessage()) for it in caplog.records] == [
        ("tender.vm", logging.WARNING, "100 % of it")
    ]


@pytest.mark.parametrize(("kind", "name"), [(tender.Vm, "tender.vm"), (tender.VmPool, "tender.pool")])
def test_the_reason_for_the_fallback_is_logged_once(
    kind: Any, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assembly: Any = tender.assemble
    create = assembly.create

    def fallen_back(_: object, *args: Any, **kwargs: Any) -> Any:
        machine = create("sandbox", *args, **kwargs)
        machine.fallback, machine.notice = "it is too old", NOTICE
        return machine

    monkeypatch.setattr(assembly, "create", fallen_back)
    caplog.set_level(logging.DEBUG, "tender")
    with tender.Image.from_bytes(trial.elf()) as image, kind(image, SMALL, console=tender.DISCARD) as made:
        for _ in range(2):
            if isinstance(made, tender.VmPool):
                made.run(timeout=60)
    assert [(it.name, it.levelname, it.getMessage()) for it in caplog.records] == [(name, "INFO", NOTICE)]


def test_a_requested_backend_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tender")
    with tender.Image.from_bytes(trial.elf()) as image:
        tender.run(image, SMALL, console=tender.DISCARD, backend="sandbox")
    assert caplog.records == []
