"""What the command line may import on its way to a running guest: a list of names, not a clock.

An interpreter's imports cost more than a unikernel's boot, and each came in by somebody's small convenience.
"""

import subprocess
import sys
from pathlib import Path

import tender

# Options only: the parser, the values.
PARSING = {
    *("tender", "tender.cli", "tender.cli.main", "tender.cli.say", "tender.cli.run", "tender.cli.options"),
    "tender.cli.option_table",
    *("tender.backend", "tender.config", "tender.errors", "tender.values"),
    *("_signal", "time", "posix"),
}
# A line on stderr, such as that a guest runs in the sandbox for want of KVM.
SPEAKING = {"select", "tender.printable"}
# The words of a refused option.
EXPLAINING = SPEAKING | {"tender.cli.nearest", "tender.cli.usage"}
# A guest that runs. `os` is not among them: it is frozen into the interpreter, but makes ABCs when imported,
# which costs a tenth of the whole start; `posix` has the same calls.
RUNNING = (
    PARSING
    | SPEAKING
    | {
        *(
            "tender._native",
            "tender._native.lib",
            "tender.native",
            "tender.image",
            "tender.manifest",
            "tender.outcome",
            "tender.result",
        ),
        *(
            "tender.backend.kvm",
            "tender.backend.machine",
            "tender.backend.sandbox",
            "tender.backend.kvm_requests",
        ),
        *("tender.cli.attach", "tender.vm", "_cffi_backend"),
        *("abc", "_abc"),
    }
)
# The same by solo5-hvt's command line.
SOLO5 = RUNNING | {"tender.cli.solo5"}
FORBIDDEN = {
    *(
        "argparse",
        "asyncio",
        "cffi",
        "collections",
        "contextlib",
        "copyreg",
        "ctypes",
        "dataclasses",
        "elftools",
    ),
    *(
        "enum",
        "functools",
        "inspect",
        "ioctl_opt",
        "json",
        "keyword",
        "locale",
        "logging",
        "operator",
        "pathlib",
    ),
    *(
        "re",
        "reprlib",
        "signal",
        "site",
        "socket",
        "string",
        "struct",
        "subprocess",
        "threading",
        "traceback",
    ),
    *("types", "typing", "warnings", "weakref"),
}


def imported_by_command(*words: str) -> set[str]:
    """What `tender WORDS...` had imported at its end, less what a bare interpreter has."""
    return imported_by(f"from tender.cli.main import guarded; guarded({list(words)!r})")


def imported_by(code: str) -> set[str]:
    """What a line of Python imports under -I -S, beside this installation's package."""
    before = f"import sys; sys.path.insert(0, {str(Path(tender.__path__[0]).parent)!r}); "
    return _modules(before + code) - _modules("import sys")


def _modules(code: str) -> set[str]:
    command = [sys.executable, "-I", "-S", "-c", code + "; print(); print(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.splitlines()[-1].split())
