"""Writes tender/backend/kvm_requests.py: the table of kvm_ioctls.py as plain numbers.

usage: gen_kvm_requests.py KVM_IOCTLS.PY NATIVE_MODULE OUTPUT
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load(name: str, path: str) -> ModuleType:
    """The module in the file `path`, under the name `name`."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path}: not a module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    table, native, output = sys.argv[1:]
    sizeof = load("tender._native", native).ffi.sizeof
    lines = ['"""KVM request numbers; written by the build from kvm_ioctls.py."""\n']
    lines += [f"{name} = 0x{value:08X}" for name, value in load("kvm_ioctls", table).requests(sizeof).items()]
    Path(output).write_text("\n".join(lines) + "\n")


main()
