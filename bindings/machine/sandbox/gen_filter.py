"""Compiles rules to the BPF of a seccomp filter, as C that the program includes.

usage: gen_filter.py RULES.TXT FILTER.INC FILTER_SHAPE.H [--text WHOLE_RULES.TXT]
       gen_filter.py RULES.TXT... FILTER.INC FILTER_SHAPE.H --by-number COMPILER...

FILTER.INC has an array for each file of rules, named after the file. It also contains the rules of the files before it.
FILTER_SHAPE.H has the length of the last array, and its holes: the two instructions that compare with the address of the
sandbox program's syscall instruction, which is known only when the program is loaded. Numbers of system calls,
descriptors and the kernel's constants are written as names: the compiler fills them in from the kernel's headers and
fds.h. The rules of each kind of device (abi/devices.def) are in its folder, and replace the line `devices:` of the rules.
Otherwise the rules of one call keep their order: the first rule that matches decides, here and in the filter.

Without --by-number the filter is a list in the order of the rules. The kernel runs a new filter once for each possible
number of a system call, so the instructions that every number passes are the cost of an installation. With --by-number
the numbers are divided so that these runs are short together: few steps for the many numbers that no rule names. This
pays if the kernel can decide by the number alone. The filter of the sandbox checks addresses first, which ends the
kernel's run immediately.
"""

import argparse
import bisect
import copy
import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vm.gen_syscall_names import names

INSTRUCTION_COST = 100
"""The price of one more instruction, which the kernel checks and translates, in steps of its runs."""

VERDICTS = {
    "allow": "SECCOMP_RET_ALLOW",
    "trap": "SECCOMP_RET_TRAP",
    "kill": "SECCOMP_RET_KILL_PROCESS",
    "guard": "GUARDED",  # only in the command's filter: rights.c puts the deciding code in its place
}
# The same for guests with certain kinds of devices: `allow for net+block`.
_FOR = re.compile(r"(allow|guard) for (\w+(?:\+\w+)*)")

BINDINGS = Path(__file__).resolve().parents[2]
DEVICES = {
    name: type
    for type, name in re.findall(
        r"^DEVICE\((\w+), (\w+)", (BINDINGS.parent / "abi" / "devices.def").read_text(), re.MULTILINE
    )
}

# The first descriptor of a kind, and one past its last.
FD_KINDS = {
    "control": ("SANDBOX_FD_CONTROL", "SANDBOX_FD_CONTROL + 1"),
    "console": ("SANDBOX_FD_CONSOLE", "SANDBOX_FD_CONSOLE + 1"),
    "outputs": ("SANDBOX_FD_STDERR", "SANDBOX_FD_REPORT + 1"),
} | {f"{name}s": (f"SANDBOX_FDS_{name}", f"SANDBOX_FDS_LAST_{name} + 1") for name in DEVICES}

_DEVICES = re.compile(
    r"^devices: (\w+)(; each for its kind)?(?:; first ([\w ]+))?\n((?:[^\n]+\n)*)", re.MULTILINE
)

_CONDITION = re.compile(
    r"(?P<ip>ip in guest|ip not syscall-instruction)"
    r"|(?P<arch>arch not x86_64)"
    r"|call past (?P<past>[a-z]\w*)"
    r"|fd in (?P<kinds>[a-z]+(, [a-z]+)*)"
    r"|arg(?P<among>[0-5]) in (?P<names>[A-Z]\w*([+][A-Z]\w*)*(, [A-Z]\w*([+][A-Z]\w*)*)*)"
    r"|arg(?P<whole>[0-5]) (?P<word>null|minus one)"
)


class RulesError(ValueError):
    """A rule that cannot be compiled."""


@dataclass(frozen=True)
class Rule:
    """One line: `call` is a name or "any"; all `conditions` must hold; no conditions mean "always"."""

    call: str
    conditions: tuple[str, ...]
    verdict: str
    reason: str


def _rule(line: str) -> Rule:
    columns = [column.strip() for column in line.split("|")]
    if len(columns) != 4 or not all(columns):
        raise RulesError(f"not `call | condition | verdict | reason`: {line}")
    call, condition, verdict, reason = columns
    if not re.fullmatch(r"[a-z]\w*", call):
        raise RulesError(f"{call}: not a call's name")
    of_kinds = _FOR.fullmatch(verdict)
    if verdict not in VERDICTS and not (of_kinds and set(of_kinds[2].split("+")) <= DEVICES.keys()):
        raise RulesError(f"{call}: {verdict}: not one of {', '.join(VERDICTS)}")
    conditions = () if condition == "always" else tuple(re.split(r"\s+and\s+", condition))
    for one in conditions:
        found = _CONDITION.fullmatch(one)
        if not found:
            raise RulesError(f"{call}: {one}: not a condition")
        for kind in (found["kinds"] or "").split(", "):
            if kind and kind not in FD_KINDS:
                raise RulesError(f"{call}: {kind}: no such kind of descriptor")
    return Rule(call, conditions, verdict, reason)


def assemble(text: str) -> str:
    """Returns the rules with those of all kinds of devices."""

    def lines_of(found: re.Match[str]) -> str:
        section, each, first, behind = found.groups()
        order = (first or "").split()
        lines = (
            _for_kinds(section) if each else [line for name in DEVICES for line in _section(name, section)]
        )
        lines += behind.splitlines()
        if order:
            calls = [line.partition("|")[0].strip() for line in lines]
            places = [order.index(call) if call in order else len(order) for call in calls]
            lines = [lines[at] for _, at in sorted((place, at) for at, place in enumerate(places))]
        return "".join(f"{line}\n" for line in lines)

    return _DEVICES.sub(lines_of, text)


def _for_kinds(section: str) -> list[str]:
    """Returns the rules of all kinds of devices, each once, with the kinds that have it."""
    kinds: dict[tuple[str, str, str], list[str]] = {}
    reasons: dict[tuple[str, str, str], str] = {}
    for name in DEVICES:
        for line in _section(name, section):
            call, condition, verdict, reason = (column.strip() for column in line.split("|"))
            kinds.setdefault((call, condition, verdict), []).append(name)
            reasons.setdefault((call, condition, verdict), reason)
    return [
        f"{call} | {condition} | {verdict} for {'+'.join(names)} | {reasons[call, condition, verdict]}"
        for (call, condition, verdict), names in kinds.items()
    ]


def _section(device: str, section: str) -> list[str]:
    text = (BINDINGS / "devices" / device / "filter_rules.txt").read_text()
    found = re.search(rf"^\[{section}\]\n((?:[^\n]+\n)*)", text, re.MULTILINE)
    if not found:
        raise RulesError(f"{device}: no [{section}]")
    return found[1].splitlines()


def parse(text: str) -> list[Rule]:
    """Returns the rules in order, with those of devices.

    RulesError: a rule is not understood, or the list has no end.
    """
    lines = (line.strip() for line in assemble(text).splitlines())
    rules = [_rule(line) for line in lines if line and not line.startswith("#")]
    if not rules or (rules[-1].call, rules[-1].conditions, rules[-1].verdict) != ("any", (), "kill"):
        raise RulesError("the last rule must be `any | always | kill`")
    return rules


def _types(names: str) -> str:
    return " | ".join(f"1u << {DEVICES[name]}" for name in names.split("+"))


class Label:
    """A position in the filter that earlier instructions jump to; `held` is what A holds on each path there."""

    def __init__(self) -> None:
        self.index = -1
        self.held: set[str | None] = set()


@dataclass
class _Jump:
    test: str  # BPF_JEQ, BPF_JGE
    value: str
    if_true: Label
    if_false: Label
    hole: str = ""


@dataclass
class Assembler:
    """The instructions in their order; A is not loaded again with a word that it already holds."""

    code: list[str | _Jump] = field(default_factory=list)
    held: str | None = None  # the word of struct seccomp_data in A
    reachable: bool = True

    def place(self, label: Label) -> None:
        """Makes `label` the next instruction. What A holds there is known if it is the same on every path."""
        if not label.held:
            raise AssertionError("nothing jumps here")
        label.index = len(self.code)
        ways = label.held | ({self.held} if self.reachable else set())
        self.held = next(iter(ways)) if len(ways) == 1 else None
        self.reachable = True

    def jump(
        self,
        word: str,
        test: str,
        value: str,
        *,
        if_true: Label | None,
        if_false: Label | None,
        hole: str = "",
    ) -> None:
        """Compares `word` with `value`; None means the next instruction."""
        if word != self.held:
            self.code.append(f"BPF_STMT(BPF_LD | BPF_W | BPF_ABS, {word})")
            self.held = word
        on = Label()
        for label in (if_true, if_false):
            (label or on).held.add(word)
        self.code.append(_Jump(test, value, if_true or on, if_false or on, hole))
        self.reachable = False
        if on.held:
            self.place(on)

    def answer(self, verdict: str) -> None:
        found = _FOR.fullmatch(verdict)
        code = VERDICTS[verdict] if not found else f"{found[1].upper()}_FOR({_types(found[2])})"
        self.code.append(f"BPF_STMT(BPF_RET | BPF_K, {code})")
        self.reachable = False

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yields each instruction as C, with the name of its hole, or ""."""
        for at, one in enumerate(self.code):
            if isinstance(one, str):
                yield one, ""
                continue
            over = [label.index - at - 1 for label in (one.if_true, one.if_false)]
            if not all(0 <= distance <= 255 for distance in over):
                raise RulesError("too many rules: a jump does not reach its end")
            yield f"BPF_JUMP(BPF_JMP | {one.test} | BPF_K, {one.value}, {over[0]}, {over[1]})", one.hole


def _low(name: str) -> str:
    return f"offsetof(struct seccomp_data, {name})"


def _high(name: str) -> str:
    return f"offsetof(struct seccomp_data, {name}) + 4"


def _test_among(
    a: Assembler, word: str, ranges: list[tuple[str, str]], otherwise: Label, then: Label | None
) -> None:
    """Goes to `then`, or continues, if `word` is in one of the ranges (first, end), else jumps to `otherwise`."""
    found = then or Label()
    for i, (first, end) in enumerate(ranges):
        last = i == len(ranges) - 1
        following = otherwise if last else Label()
        if end == f"{first} + 1":
            a.jump(
                word, "BPF_JEQ", first, if_true=then if last else found, if_false=following if last else None
            )
            continue
        a.jump(word, "BPF_JGE", first, if_true=None, if_false=following)
        a.jump(word, "BPF_JGE", end, if_true=following, if_false=then if last else found)
        if not last:
            a.place(following)
    if found.held and not then:
        a.place(found)


def _test(a: Assembler, condition: str, otherwise: Label, then: Label | None = None) -> None:
    """Goes to `then`, or continues, if `condition` holds, else jumps to `otherwise`. Conditions on addresses continue."""
    ip, arch = "instruction_pointer", "arch"
    found = _CONDITION.fullmatch(condition)
    assert found
    if condition == "ip in guest":
        within, above = Label(), Label()
        a.jump(_high(ip), "BPF_JEQ", "0", if_true=within, if_false=above)
        a.place(above)  # a `syscall` in the last bytes below 4 GiB returns to 4 GiB
        a.jump(_high(ip), "BPF_JEQ", "1", if_true=None, if_false=otherwise)
        a.jump(_low(ip), "BPF_JEQ", "0", if_true=None, if_false=otherwise)
        a.place(within)
    elif condition == "ip not syscall-instruction":
        elsewhere = Label()
        a.jump(_high(ip), "BPF_JEQ", "0", if_true=None, if_false=elsewhere, hole="SYSCALL_HIGH")
        a.jump(_low(ip), "BPF_JEQ", "0", if_true=otherwise, if_false=None, hole="SYSCALL_LOW")
        a.place(elsewhere)
    elif condition == "arch not x86_64":
        a.jump(_low(arch), "BPF_JEQ", "AUDIT_ARCH_X86_64", if_true=otherwise, if_false=None)
    elif found["past"]:
        a.jump(_low("nr"), "BPF_JGE", f"__NR_{found['past']} + 1", if_true=None, if_false=otherwise)
    elif found["kinds"]:
        _test_among(
            a, _low("args[0]"), [FD_KINDS[kind] for kind in found["kinds"].split(", ")], otherwise, then
        )
    elif found["names"]:
        values = [name.replace("+", " | ") for name in found["names"].split(", ")]
        _test_among(
            a, _low(f"args[{found['among']}]"), [(value, f"{value} + 1") for value in values], otherwise, then
        )
    else:
        value = "0" if found["word"] == "null" else "0xffffffff"
        for half, on in ((_low, None), (_high, then)):
            a.jump(half(f"args[{found['whole']}]"), "BPF_JEQ", value, if_true=on, if_false=otherwise)


def compile_rules(rules: list[Rule]) -> Assembler:
    """Returns the filter. Neighbouring rules that begin with the same condition on the call's address share its test."""
    a = Assembler()

    def place_of(rule: Rule) -> str:
        return rule.conditions[0] if rule.conditions[:1] == ("ip not syscall-instruction",) else ""

    for place, run in itertools.groupby(rules, place_of):
        if not place:
            _compile_list(a, list(run))
            continue
        elsewhere = Label()
        if not a.reachable:
            raise RulesError(f"{place}: a rule above it always holds")
        _test(a, place, elsewhere)
        _compile_list(a, [Rule(one.call, one.conditions[1:], one.verdict, one.reason) for one in run])
        a.place(elsewhere)
    return a


def _compile_list(a: Assembler, rules: list[Rule]) -> None:
    """Compiles rules in their order. Neighbours with the same call share one comparison of its number."""
    seen: set[str] = set()
    to_next_any = Label()  # the target for a call that matched a rule's name and none of its conditions
    for at, rule in enumerate(rules):
        first_of_call = at == 0 or rules[at - 1].call != rule.call or rule.call == "any"
        last_of_call = at + 1 == len(rules) or rules[at + 1].call != rule.call or rule.call == "any"
        if rule.call == "any":
            seen.clear()
            if to_next_any.held:
                a.place(to_next_any)
                to_next_any = Label()
        if not a.reachable:
            raise RulesError(f"{rule.call}: a rule above it always holds")
        if rule.call != "any" and first_of_call:
            if rule.call in seen:
                raise RulesError(f"{rule.call}: its rules must follow one another")
            seen.add(rule.call)
            other_call = Label()
            a.jump(_low("nr"), "BPF_JEQ", f"__NR_{rule.call}", if_true=None, if_false=other_call)
        following = to_next_any if rule.call != "any" and last_of_call else Label()
        for condition in rule.conditions:
            _test(a, condition, following)
        a.answer(rule.verdict)
        if following is not to_next_any and following.held:
            a.place(following)
        if rule.call != "any" and last_of_call:
            a.place(other_call)
    if to_next_any.held:
        a.place(to_next_any)


def compile_by_number(rules: list[Rule], numbers: dict[str, int]) -> Assembler:
    """Returns the filter. All rules except the first and the last must each name one call."""
    head, *named, _ = rules
    for rule in named:
        if rule.call not in numbers:
            raise RulesError(f"{rule.call}: not a call, between the first rule and the last")
    a = Assembler()
    ends = {
        verdict: Label()
        for verdict in (*VERDICTS, *sorted({rule.verdict for rule in named} - VERDICTS.keys()))
    }
    _compile_list(a, [head])
    named.sort(key=lambda rule: numbers[rule.call])
    calls = [list(run) for _, run in itertools.groupby(named, lambda rule: rule.call)]
    _compile_part(
        a, calls, Division([numbers[rules[0].call] for rules in calls], 1 + max(numbers.values())), ends
    )
    for verdict, label in ends.items():
        if label.held:
            a.place(label)
            a.answer(verdict)
    return a


class Division:
    """How the numbers of calls, from `low` up to `end`, are told apart at the lowest cost. `calls` are those with rules."""

    def __init__(self, calls: list[int], end: int) -> None:
        self._calls, self._found = calls, dict[tuple[int, int], tuple[int, int]]()
        self.low, self.end = 0, end
        self.first, self.last = 0, len(calls)

    def _best(self, low: int, end: int) -> tuple[int, int]:
        """Returns the cost, and the number to divide at; 0: the calls between are compared one after the other."""
        if (low, end) not in self._found:
            calls = [call for call in self._calls if low <= call < end]
            one = end - low + INSTRUCTION_COST
            best = (one * len(calls), 0)
            for at in sorted(
                {it for call in calls for it in (call, call + 1) if low < it < end} if calls else ()
            ):
                best = min(best, (one + self._best(low, at)[0] + self._best(at, end)[0], at))
            self._found[low, end] = best
        return self._found[low, end]

    def parts(self) -> tuple[int, "Division", "Division"] | None:
        """Returns the number at which it is divided, and both parts, or None."""
        _, at = self._best(self.low, self.end)
        if not at:
            return None
        below, above = copy.copy(self), copy.copy(self)
        below.end = above.low = at
        below.last = above.first = bisect.bisect_left(self._calls, at)
        return at, below, above

    def is_call(self, number: int) -> bool:
        return number in self._calls

    @property
    def is_empty(self) -> bool:
        return self.first == self.last


def _compile_part(a: Assembler, calls: list[list[Rule]], part: Division, ends: dict[str, Label]) -> None:
    """Compiles the rules of the calls of a part. Other calls, and those that match no rule, are killed."""
    if divided := part.parts():
        at, below, above = divided
        call = calls[above.first] if part.is_call(at) else calls[above.first - 1]
        number = f"__NR_{call[0].call}" + ("" if part.is_call(at) else " + 1")
        upper = ends["kill"] if above.is_empty else Label()
        lower = ends["kill"] if below.is_empty else None
        to_upper = None if below.is_empty else upper
        a.jump(_low("nr"), "BPF_JGE", number, if_true=to_upper, if_false=lower)
        if not below.is_empty:
            _compile_part(a, calls, below, ends)
        if not above.is_empty:
            if not below.is_empty:
                a.place(upper)
            _compile_part(a, calls, above, ends)
        return
    listed = calls[part.first : part.last]
    for rules in listed:
        other_call = ends["kill"] if rules is listed[-1] else Label()
        found = ends[rules[0].verdict] if len(rules) == 1 and not rules[0].conditions else None
        a.jump(_low("nr"), "BPF_JEQ", f"__NR_{rules[0].call}", if_true=found, if_false=other_call)
        for rule in rules if not found else ():
            following = ends["kill"] if rule is rules[-1] else Label()
            for condition in rule.conditions[:-1]:
                _test(a, condition, following)
            if rule.conditions:
                _test(a, rule.conditions[-1], following, ends[rule.verdict])
            else:
                a.answer(rule.verdict)
            if following is not ends["kill"]:
                a.place(following)
        if other_call is not ends["kill"]:
            a.place(other_call)


def symbols(rules: list[Rule]) -> list[str]:
    """Returns the names in the filter whose values the compiler fills in."""
    names = {f"__NR_{rule.call}" for rule in rules if rule.call != "any"}
    for rule in rules:
        for condition in rule.conditions:
            found = _CONDITION.fullmatch(condition)
            assert found
            names |= set(re.split(r", |\+", found["names"] or "")) - {""}
            names |= {f"__NR_{found['past']}"} if found["past"] else set()
    return sorted(names)


def write(rules_texts: list[Path], code: Path, shape: Path, compiler: list[str] | None) -> None:
    """Writes the two files. With a compiler, whose headers have the calls' numbers, the filter goes by number."""
    found = names(compiler, "asm/unistd_64.h") if compiler else {}
    numbers = {name: number for number, name in found.items()}
    origin = f"/* Written by gen_filter.py from {', '.join(text.name for text in rules_texts)}. */\n"
    written, rules, lines = [origin], list[Rule](), list[tuple[str, str]]()
    for text in rules_texts:
        rules = [*rules[:-1], *parse(text.read_text())]
        lines = list((compile_by_number(rules, numbers) if numbers else compile_rules(rules)).lines())
        written += [f"static const struct sock_filter {text.stem}[] = {{\n"]
        written += [f"    /* {at:3} */ {line},\n" for at, (line, _) in enumerate(lines)]
        written += ["};\n"]
    code.write_text("".join(written))
    holes = [f"#define FILTER_{hole} {at}\n" for at, (_, hole) in enumerate(lines) if hole]
    shape.write_text(f"{origin}#define FILTER_LENGTH {len(lines)}\n{''.join(holes)}")


if __name__ == "__main__":
    words = argparse.ArgumentParser()
    words.add_argument("rules", type=Path, nargs="+")
    words.add_argument("code", type=Path)
    words.add_argument("shape", type=Path)
    words.add_argument("--text", type=Path, help="where to write the rules together with those of devices")
    words.add_argument("--by-number", metavar="COMPILER", nargs=argparse.REMAINDER)
    given = words.parse_args()
    try:
        write(given.rules, given.code, given.shape, given.by_number)
        if given.text:
            given.text.write_text("".join(assemble(text.read_text()) for text in given.rules))
    except RulesError as error:
        sys.exit(f"{', '.join(map(str, given.rules))}: {error}")
