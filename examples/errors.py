"""Meets each kind of error, and says what a program can do about it.

python examples/errors.py app.elf
"""

import sys
from collections.abc import Callable
from pathlib import Path

from tender import (
    CAPTURE,
    ConfigError,
    DeviceError,
    GuestFailed,
    HostError,
    Image,
    ImageError,
    KvmUnavailable,
    ManifestError,
    Tap,
    TenderError,
    Vm,
    VmConfig,
    VmStateError,
)


def explained(act: Callable[[], object]) -> str:
    """Returns what went wrong, and what this error has beside its message, code and hint."""
    try:
        act()
    except ConfigError as error:  # a ValueError too: a mistake of this program
        return f"wrong argument: {error}"
    except ImageError as error:
        return f"no unikernel: {error} (file {error.file!r}, byte {error.offset})"
    except ManifestError as error:
        missing = ", ".join(f"{kind} {name}" for name, kind in error.missing) or "none"
        return f"other devices are needed: {error} (missing: {missing})"
    except KvmUnavailable as error:  # a HostError too; backend="auto" takes the sandbox instead
        return f"no KVM: {error} (errno {error.errno})"
    except DeviceError as error:  # a HostError too
        return f"a device is not there: {error} (errno {error.errno})"
    except HostError as error:
        return f"the host refuses: {error} (code {error.code})"
    except VmStateError as error:
        return f"not now: {error}"
    except GuestFailed as error:  # only check() raises it
        return f"the guest failed: status {error.result.status}"
    except TenderError as error:  # the root of them all
        return f"something else: {error}: {error.hint}"
    return "nothing went wrong"


def run_twice(image: Image) -> None:
    with Vm(image, VmConfig(mem=16), console=CAPTURE) as vm:
        vm.run(timeout=60)
        vm.run(timeout=60)


def fail(image: Image) -> None:
    with Vm(image, VmConfig(mem=16, args=("--status=3",)), console=CAPTURE) as vm:
        vm.run(timeout=60).check()


def main(path: str) -> None:
    isolated = VmConfig(mem=16, require=("kvm", "seccomp-filter"))  # no backend has both
    with Image.open(path) as image:
        print(explained(lambda: VmConfig(mem="many")))
        print(explained(lambda: Image.open(__file__)))
        print(explained(lambda: Vm(image, VmConfig(mem=16, net=Tap("tap0")))))
        print(explained(lambda: Vm(image, VmConfig(mem=16), console=Path("/nowhere/console"))))
        print(explained(lambda: Vm(image, isolated)))
        print(explained(lambda: run_twice(image)))
        print(explained(lambda: fail(image)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(sys.argv[1])
