"""Compiles the rules of the command's filter on KVM to BPF, as C that rights.c includes: two arrays.

usage: gen_kvm_filter.py KVM_FILTER_RULES.TXT KVM_FILTER_DEVICE_RULES.TXT KVM_FILTER_STRANGER_RULES.TXT
                         KVM_FILTER.INC COMPILER...

`filter_plain` has the first file's rules, for a guest without devices, `filter_devices` the first two files',
`filter_stranger` all.

Rules, conditions and instructions are those of sandbox/gen_filter.py. What differs is the way to a call's rules: no list
that is gone through, but a tree of comparisons. The kernel runs a new filter once for each number that there is, so the
sum of all ways is what an installation costs; the tree with the least is taken. Its shape comes from the numbers that
the compiler's headers have; the instructions name them.
"""

import functools
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from machine.sandbox.gen_filter import VERDICTS, Assembler, Label, Rule, RulesError, _low, _test, parse

NUMBERS_END = 470  # about as many as the kernel has; beyond, nothing is asked often
HOT = {"ioctl": 80}  # KVM_RUN runs the filter too: worth as much as so many numbers


@dataclass(frozen=True)
class Piece:
    """Neighbouring numbers with one answer: a verdict, or the call whose rules decide."""

    first: str  # the number, in C
    weight: int
    single: bool  # one number
    verdict: str = ""
    call: str = ""


def call_numbers(compiler: list[str]) -> dict[str, int]:
    """Name to number, from the kernel's header."""
    done = subprocess.run(
        [*compiler, "-E", "-dM", "-"],
        input="#include <asm/unistd_64.h>\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)$", done.stdout, re.M)}


def pieces_of(rules: dict[str, list[Rule]], numbers: dict[str, int]) -> list[Piece]:
    """All numbers from 0 on, in order."""
    made: list[Piece] = []

    def add(first: str, count: int, verdict: str, call: str = "") -> None:
        weight = HOT.get(call, count)
        if count and made and verdict and made[-1].verdict == verdict:
            made[-1] = Piece(made[-1].first, made[-1].weight + count, False, verdict)
        elif count:
            made.append(Piece(first, weight, count == 1, verdict, call))

    next_number, next_in_c = 0, "0"
    for call in sorted(rules, key=numbers.__getitem__):
        add(next_in_c, numbers[call] - next_number, "kill")
        plain = rules[call][0].verdict if not rules[call][0].conditions else ""
        add(f"__NR_{call}", 1, plain, "" if plain else call)
        next_number, next_in_c = numbers[call] + 1, f"__NR_{call} + 1"
    add(next_in_c, NUMBERS_END - next_number, "kill")
    return made


@functools.cache
def best(pieces: tuple[Piece, ...]) -> tuple[int, int, bool]:
    """The least cost to tell them apart, the piece to compare with first, and whether it alone (else: from it on)."""
    if len(pieces) == 1:
        return 0, 0, False
    here = sum(piece.weight for piece in pieces)
    ways = [(here + best(pieces[:at])[0] + best(pieces[at:])[0], at, False) for at in range(1, len(pieces))]
    if len(pieces) == 3 and pieces[0].verdict and pieces[0].verdict == pieces[2].verdict and pieces[1].single:
        ways.append((here, 1, True))
    return min(ways)


def compile_rules(every: list[Rule], numbers: dict[str, int]) -> Assembler:
    """The filter; RulesError where a rule is not for one call, but for the first and the last."""
    head, *named, _ = every
    if head.call != "any" or any(rule.call == "any" for rule in named):
        raise RulesError("any: only the architecture, at the top, and the end are for all calls")
    rules: dict[str, list[Rule]] = {}
    for rule in named:
        if rule.call not in numbers:
            raise RulesError(f"{rule.call}: no such call")
        rules.setdefault(rule.call, []).append(rule)
    a = Assembler()
    ends = {verdict: Label() for verdict in VERDICTS if any(rule.verdict == verdict for rule in every)}
    other_arch = Label()
    for condition in head.conditions:
        _test(a, condition, other_arch)
    a.answer(head.verdict)
    a.place(other_arch)

    def decide(call: str) -> None:
        for at, rule in enumerate(rules[call]):
            following = ends["kill"] if at + 1 == len(rules[call]) else Label()
            for condition in rule.conditions:
                _test(a, condition, following)
            a.answer(rule.verdict)
            if following is not ends["kill"]:
                a.place(following)

    def branch(pieces: tuple[Piece, ...]) -> None:
        if len(pieces) == 1:
            decide(pieces[0].call)
            return
        _, at, alone = best(pieces)
        to_true, to_false = (pieces[at : at + 1] if alone else pieces[at:]), pieces[:at]
        if_true = ends[to_true[0].verdict] if len(to_true) == 1 and to_true[0].verdict else Label()
        if_false = ends[to_false[0].verdict] if len(to_false) == 1 and to_false[0].verdict else None
        test = "BPF_JEQ" if alone else "BPF_JGE"
        a.jump(_low("nr"), test, pieces[at].first, if_true=if_true, if_false=if_false)
        if not if_false:
            branch(to_false)
        if if_true not in ends.values():
            a.place(if_true)
            branch(to_true)

    branch(tuple(pieces_of(rules, numbers)))
    for verdict, label in ends.items():
        if label.held:
            a.place(label)
            a.answer(verdict)
    return a


def main(rules_txt: str, device_rules_txt: str, stranger_rules_txt: str, target: str, *compiler: str) -> None:
    """Writes the C file `target`."""
    numbers = call_numbers(list(compiler))
    plain = parse(Path(rules_txt).read_text())
    more, strangers = (
        parse(f"{Path(text).read_text()}\nany | always | kill | the end of a list\n")[:-1]
        for text in (device_rules_txt, stranger_rules_txt)
    )
    written = [
        "/* Written by gen_kvm_filter.py from kvm_filter_rules.txt and the files of rules beside it. */"
    ]
    filters = {
        "filter_plain": plain,
        "filter_devices": [*plain[:-1], *more, plain[-1]],
        "filter_stranger": [*plain[:-1], *more, *strangers, plain[-1]],
    }
    for name, rules in filters.items():
        lines = enumerate(compile_rules(rules, numbers).lines())
        written += [f"static const struct sock_filter {name}[] = {{"]
        written += [f"    /* {at:3} */ {line}," for at, (line, _) in lines]
        written += ["};"]
    Path(target).write_text("\n".join(written) + "\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except RulesError as error:
        sys.exit(f"{', '.join(sys.argv[1:4])}: {error}")
