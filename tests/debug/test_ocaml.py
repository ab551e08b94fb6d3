"""Unikernels of OCaml, MirageOS's for example: gdb, the crash report and cores show OCaml's functions and lines.

    TENDER_HVT_DIR=/path/to/images tools/with_net -- pytest -m "not kvm" tests/debug/test_ocaml.py

Every image below that directory which has OCaml's runtime and needs no device is tried. The tests need nothing of its
program: OCaml's standard library opens stdout before it begins. Without the variable, or without such an image, these tests
are not collected (../conftest.py).
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from support import ocaml_images

pytestmark = pytest.mark.backends

LIMIT_S = 120
OPENS = "caml_ml_open_descriptor_out"  # in C; the standard library calls it three times
IN_C = rf"#0 +{OPENS} \(.*\) at .*io\.c:\d+"
IN_OCAML = r"camlStdlib(\.|__|\$)entry \(\) at .*stdlib\.ml:\d+"
LINE = r"Stdlib\.entry\+0x[0-9a-f]+ at .*stdlib\.ml:\d+"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("ocaml_image", ocaml_images(), ids=lambda path: path.name)


def crashed(image: Path, tender_cmd: list[str], home: Path) -> "subprocess.CompletedProcess[str]":
    """Runs the image by gdb to where it opens stdout, prints the stack, and lets it go on at address 0.

    The output of the image comes too, and that of its end: gdb has left then.
    """
    commands = ("set width 0", f"break {OPENS}", "continue", "bt", "set var $pc = 0", "detach")
    return subprocess.run(
        [
            *(*tender_cmd, "debug", "--batch", *(f"--ex={it}" for it in commands)),
            *("--mem=64", "--crash-report", f"--core={home}", str(image)),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, "HOME": str(home), "DEBUGINFOD_URLS": "", "TERM": "dumb"},
    )


def test_gdb_the_report_and_a_core_show_the_line_of_ocaml_that_called_c(
    ocaml_image: Path, tender_cmd: list[str], tmp_path: Path
) -> None:
    done = crashed(ocaml_image, tender_cmd, tmp_path)

    assert done.returncode == 0, done.stderr
    for shown in (IN_C, IN_OCAML, r"^#\d+ .* in _start \("):
        assert re.search(shown, done.stdout, re.MULTILINE), done.stdout

    frames = re.findall(r"^  #(\d+) +0x[0-9a-f]+ (.*)$", done.stderr.partition("\nstack:\n")[2], re.MULTILINE)
    assert frames[0] == ("0", "?"), done.stderr
    assert any(re.match(LINE, frame) for _, frame in frames), done.stderr
    assert any(frame.startswith("_start+") for _, frame in frames), done.stderr
    assert re.search(
        r"^memory: .*; heap \d+ KiB used of \d+ MiB, \d+ KiB taken$", done.stderr, re.MULTILINE
    ), done.stderr

    (core,) = tmp_path.glob("core.*")
    told = subprocess.run(
        [*tender_cmd, "report", "--json", str(core)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert ("Stdlib.entry", "stdlib.ml") in [
        (it["function"], Path(it["file"]).name) for it in report["stack"]
    ]
