"""Writes tender/backend/kvm_requests.py: the table of kvm_ioctls.py as plain numbers.

usage: gen_kvm_requests.py KVM_IOCTLS.PY OUTPUT
"""

import runpy
import sys
from pathlib import Path

table, output = sys.argv[1:]
lines = ['"""KVM request numbers; written by the build from kvm_ioctls.py."""\n']
lines += [
    f"{name} = 0x{value:08X}" for name, value in runpy.run_path(table).items() if name.startswith("KVM_")
]
Path(output).write_text("\n".join(lines) + "\n")
