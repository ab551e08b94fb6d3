"""`python bench compare REV_A REV_B`: builds two revisions, counts both in turns, and fails if a count got worse.

    git worktree + an environment of its own, below build/revisions         for each revision
    `python bench count` of this tree, on each installation, ABBA           rounds; medians
    a table; status 1 if a count of B is worse than A's

This tree's counts.py counts each revision's library, command and guest kernel. So a revision does not need to have the
benchmark, only the worker of `python bench boot`. With --through, the counting (not the building) runs elsewhere:
'tools/with_kvm --' for KVM, 'tools/kvmbox/kvmbox run --icount --' to count instructions too.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import tender
from harness import CHECKOUT, compare, counts, picture
from tender.bench import facts, regimes
from tender.bench.progress import Bar
from tender.bench.regimes import rounds
from tender.bench.subjects import BenchError
from tender.errors import TenderError

Rows = dict[str, float]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python bench compare",
        description="Build two revisions, count both in turns, and say what got worse.",
    )
    p.add_argument("a", metavar="REV_A", help="before: a commit, a branch, HEAD~1")
    p.add_argument("b", metavar="REV_B", nargs="?", default="HEAD", help="after (default: HEAD)")
    p.add_argument("--backend", choices=("sandbox", "kvm"), default="sandbox", help="(default: sandbox)")
    p.add_argument(
        "--through",
        default="",
        metavar="WORDS",
        help="run the counting with these words: 'tools/with_kvm --'",
    )
    p.add_argument(
        "--only", choices=counts.PARTS, action="append", default=[], help="may be repeated (default: each)"
    )
    p.add_argument("--rounds", type=regimes.positive, default=2, metavar="N", help="rounds (2)")
    p.add_argument(
        "--tolerance", type=float, default=3.0, metavar="PERCENT", help="allowed for rows with a ~ (3)"
    )
    p.add_argument("--json", metavar="FILE", help="write all counts of all rounds")
    p.add_argument("--plot", metavar="FILE.png", help="draw the changes as a picture (needs matplotlib)")
    p.add_argument("--keep", action="store_true", help="keep the worktrees for the next time")
    return p


def main(argv: "list[str]") -> int:
    """Run the benchmark. Status 1 if something got worse, or could not be counted."""
    options = parser().parse_args(argv)
    try:
        if options.plot:
            picture.check()  # before the minutes of building
        names, counted = run(options)
    except (TenderError, OSError) as error:
        return compare.complain(error)
    a, b = ({row: median(values) for row, values in counted[name].items()} for name in names)
    text, worse = judge(a, b, names=names, tolerance=options.tolerance)
    sys.stdout.write(text)
    if options.json:
        Path(options.json).write_text(json.dumps({"schema": 1, "counts": counted}, indent=1) + "\n")
    if options.plot:
        failed = {row: any(line.startswith(f"{row}: ") for line in worse) for row in a}
        host = facts.host_facts(CHECKOUT)
        try:
            picture.revisions(a, b, failed, options.plot, names=names, host=host)
        except (TenderError, OSError) as error:
            return compare.complain(error)
    sys.stderr.writelines(f"gate: {line}\n" for line in worse)
    return 1 if worse else 0


def run(options: argparse.Namespace) -> "tuple[tuple[str, str], dict[str, dict[str, list[float]]]]":
    """The names of the revisions, and for each the counts of each row, one per round. Raises TenderError."""
    checkout = CHECKOUT
    names = (_commit(checkout, options.a), _commit(checkout, options.b))
    if names[0] == names[1]:
        raise BenchError(f"compare: {options.a} and {options.b} are the same commit, {names[0]}")
    counted: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    with ExitStack() as stack:
        with Bar(2 + 2 * options.rounds) as bar:
            for name in names:
                bar.step(f"building {name}")
                if not options.keep:
                    stack.callback(remove, checkout, name)
                build(checkout, name)
            for order in rounds(options.rounds, list(names)):
                for name in order:
                    bar.step(f"counting {name}")
                    found = _count(checkout, name, options)
                    for row, value in found.items():
                        counted[name].setdefault(row, []).append(value)
    return names, counted


def judge(a: Rows, b: Rows, *, names: "tuple[str, str]", tolerance: float) -> "tuple[str, list[str]]":
    """The table, and a line for each row that got worse: exact rows have no tolerance, and a missing row is worse."""
    lines = [f"{'':46} {names[0]:>14} {names[1]:>14}   change"]
    worse = []
    for row, before in a.items():
        if row not in b:
            lines.append(f"  {row:44} {before:14,.3f} {'-':>14}")
            worse.append(f"{row}: {before:g} in {names[0]}, not counted in {names[1]}")
            continue
        after = b[row]
        percent = (after - before) / before * 100 if before else (0.0 if after == before else float("inf"))
        allowed = tolerance if row.startswith("~") else 0.0
        mark = "worse" if percent > allowed + 1e-9 else "better" if percent < -allowed - 1e-9 else ""
        lines.append(f"  {row:44} {before:14,.3f} {after:14,.3f} {percent:+7.1f} %  {mark}".rstrip())
        if mark == "worse":
            worse.append(f"{row}: {before:g} became {after:g} ({percent:+.1f} %, allowed {allowed:g} %)")
    lines += [f"  {row:44} {'-':>14} {b[row]:14,.3f}" for row in b if row not in a]
    return "\n".join(lines) + "\n", worse


# ---- a revision, built


def _git(checkout: Path, *words: str) -> str:
    git = ["git", "-c", f"safe.directory={checkout}", "-C", str(checkout), *words]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def _commit(checkout: Path, name: str) -> str:
    return _git(checkout, "rev-parse", "--verify", "--short=12", f"{name}^{{commit}}")


def place_of(checkout: Path, name: str) -> Path:
    """The directory for a revision. It is below the checkout, so that the test VM sees it too."""
    return checkout / "build" / "revisions" / name


def build(checkout: Path, name: str) -> None:
    """Make a worktree of the revision, and an environment in which it is installed, if they do not exist yet.

    The environment has links to the packages of this one, so nothing is downloaded. Raises BenchError.
    """
    place = place_of(checkout, name)
    if (place / "built").exists():
        return
    remove(checkout, name)
    place.mkdir(parents=True)
    tree, environment = place / "tree", place / "environment"
    _git(checkout, "worktree", "add", "--detach", "--force", str(tree), name)
    _run([sys.executable, "-m", "venv", "--without-pip", str(environment)], place)
    # Where this Tender is installed. sysconfig is no use here: the command runs without `site`.
    ours = Path(tender.__file__).resolve().parents[1]
    own = environment / ours.relative_to(ours.parents[2])
    for package in ours.iterdir():
        if not package.name.startswith(("tender", "__pycache__")):
            (own / package.name).symlink_to(package)
    pip = environment / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nexec {shlex.quote(str(environment / "bin" / "python"))} -m pip "$@"\n')
    pip.chmod(0o755)
    _run([str(tree / "tools" / "build")], place, cwd=tree, first=environment / "bin")
    (place / "built").touch()


def remove(checkout: Path, name: str) -> None:
    """Remove the worktree and the environment."""
    place = place_of(checkout, name)
    if (place / "tree").exists():
        _git(checkout, "worktree", "remove", "--force", str(place / "tree"))
    shutil.rmtree(place, ignore_errors=True)
    _git(checkout, "worktree", "prune")


def _run(
    words: Sequence[str], place: Path, *, cwd: "Path | None" = None, first: "Path | None" = None
) -> None:
    path = os.environ.get("PATH", "")
    beside = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": ":".join([*([str(first)] if first else []), beside, path])}
    environment.pop("PYTHONPATH", None)
    with (place / "log").open("ab") as log:
        done = subprocess.run(words, cwd=cwd, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode:
        last = (place / "log").read_text(errors="replace").strip().splitlines()[-1:]
        raise BenchError(
            f"building {place.name}: {words[0]}: ended with {done.returncode}: {' '.join(last)}",
            hint=f"--keep leaves {place / 'log'}",
        )


def _count(checkout: Path, name: str, options: argparse.Namespace) -> Rows:
    place = place_of(checkout, name)
    python, result = place / "environment" / "bin" / "python", place / "counts.json"
    result.unlink(missing_ok=True)
    own = [sys.executable, str(checkout / "bench"), "count", "--backend", options.backend]
    own += [f"--only={part}" for part in options.only]
    words = [
        *shlex.split(options.through),
        *own,
        "--python",
        str(python),
        "--out",
        str(place),
        "--json",
        str(result),
    ]
    done = subprocess.run(words, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode or not result.exists():
        last = done.stderr.strip().splitlines()[-2:]
        raise BenchError(f"counting {name}: ended with {done.returncode}: {' '.join(last)}")
    rows: Rows = json.loads(result.read_text())["rows"]
    return rows
