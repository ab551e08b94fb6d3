"""The run road imports next to nothing (tests/contract/test_cli.py asks the same after a real run)."""

import pytest
from support import Guest

from tender.testing.import_budget import (
    EXPLAINING,
    FORBIDDEN,
    PARSING,
    RUNNING,
    imported_by,
    imported_by_command,
)


def test_a_refused_option_imports_only_what_explains_it() -> None:
    found = imported_by_command("--frob", "app.elf")
    assert found - PARSING - EXPLAINING == set()


def test_the_road_up_to_the_vm_imports_next_to_nothing() -> None:
    found = imported_by("import tender.cli.main, tender.cli.run, tender.cli.attach, tender.image, tender.vm")
    assert found - RUNNING == set()


@pytest.mark.parametrize("backend", ["auto", "sandbox"])
def test_a_run_in_the_sandbox_imports_next_to_nothing(backend: str, guest: Guest) -> None:
    found = imported_by_command(f"--backend={backend}", str(guest("hello")))
    assert found - RUNNING == set()
    if backend == "sandbox":
        assert "tender.backend.sandbox" in found
        assert not [name for name in found if name.startswith("tender.backend.kvm")]


def test_nothing_forbidden_is_on_the_lists() -> None:
    listed = PARSING | RUNNING | EXPLAINING
    assert listed & FORBIDDEN == set()
