"""Compiles the C programs and the guests of bench/ on demand, into bench/out."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import CHECKOUT
from tender.bench.subjects import BenchError


def program(name: str, *more: Path, flags: Sequence[str] = ()) -> Path:
    """Compile bench/NAME.c and the sources `more` to a program of the host. Raises BenchError."""
    words = ["-O2", "-Wall", "-I", str(CHECKOUT / "abi"), *flags]
    return _built(name, [CHECKOUT / "bench" / f"{name}.c", *more], CHECKOUT / "bench" / "out" / name, words)


def guest(
    name: str,
    *,
    python: str = sys.executable,
    out: "Path | None" = None,
    define: str = "",
) -> Path:
    """Compile bench/NAME.c to a unikernel, with the SDK of the installation of `python`. Raises BenchError.

    define  MACRO=VALUE for its source; the file is then NAME-VALUE.elf
    """
    cflags, ldflags = (shlex.split(_sdk(python, option)) for option in ("--cflags", "--ldflags"))
    if define:
        cflags.append(f"-D{define}")
    made = (out or CHECKOUT / "bench" / "out") / "-".join((name, *define.split("=")[1:]))
    return _built(
        name, [CHECKOUT / "bench" / f"{name}.c"], made.with_suffix(".elf"), ["-Wall", *cflags], ldflags
    )


def image(named: "str | None", name: str) -> str:
    """The image `named`, or bench/NAME.c, compiled. Raises BenchError."""
    if named:
        return os.path.abspath(named)
    return str(guest(name))


def filtered(name: str) -> Path:
    """Compile bench/NAME.c with the sandbox's seccomp filter, from the filter's rules. Raises BenchError."""
    sandbox = CHECKOUT / "bindings" / "machine" / "sandbox"
    out = CHECKOUT / "bench" / "out"
    out.mkdir(exist_ok=True)
    sources = [sandbox / "gen_filter.py", sandbox / "filter_rules.txt"]
    made = {out / part: out / f"{part}.{os.getpid()}" for part in ("filter.inc", "filter_shape.h")}
    _run(name, [sys.executable, *map(str, sources), *map(str, made.values())])
    for path, new in made.items():
        new.replace(path)  # atomically, because another benchmark may compile at the same time
    includes = (sandbox, CHECKOUT / "abi", CHECKOUT / "bindings" / "core", out)
    flags = [f"-I{directory}" for directory in includes]
    return program(name, sandbox / "program" / "filter.c", flags=["-fPIE", "-pie", *flags])


def _sdk(python: str, option: str) -> str:
    done = subprocess.run(
        [python, "-P", "-m", "tender", "sdk", option], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchError(f"the guest: {done.stderr.strip()}")
    return done.stdout


def _built(
    name: str, sources: "list[Path]", out: Path, before: Sequence[str], after: Sequence[str] = ()
) -> Path:
    read = [*sources, *sources[0].parent.glob("*.h")]
    if out.exists() and all(out.stat().st_mtime > source.stat().st_mtime for source in read):
        return out
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise BenchError(f"{name}: no C compiler here", hint="install gcc, or set CC")
    out.parent.mkdir(parents=True, exist_ok=True)
    made = out.with_suffix(f".{os.getpid()}")
    _run(name, [compiler, *before, "-o", str(made), *map(str, sources), *after])
    made.replace(out)
    return out


def _run(name: str, words: "list[str]") -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{name}: {done.stderr.strip()}")
