"""`tender doctor`: what this machine offers to a unikernel, and the command that repairs what it does not.

`tender.cli.host_facts` looks, `checks` judges what was found without looking again, `main` prints. Status 0
if a unikernel can run here through KVM.
"""

import json

from tender.cli import say
from tender.cli.host_facts import DeviceNode, Facts, TapFacts, collect, user_word

USAGE = """\
usage: tender doctor [--json | --kvm]

Check what this machine offers to a unikernel. Each line is ok, warn or FAIL, and what is wrong comes with
its cure. Status 0 if a unikernel can run here, else 1.

  --json    one JSON object: schema, usable, checks
  --kvm     one line for scripts: usable, or unusable and the reason"""

OK, WARN, FAIL = "ok", "warn", "FAIL"
API_VERSION = 12
# Of /dev/kvm's capabilities, those that every run needs; <linux/kvm.h>.
CAPABILITIES = {"KVM_CAP_USER_MEMORY": 3, "KVM_CAP_GET_TSC_KHZ": 61}

BOX = "use the box, a real KVM under software emulation: tools/kvmbox/kvmbox run -- COMMAND"


class Check:
    """One line of the doctor: how it stands, with what, what was found, and what to do."""

    def __init__(self, level: str, what: str, value: str, cure: str = "") -> None:
        self.level = level
        self.what = what
        self.value = value
        self.cure = cure

    def text(self) -> str:
        """The line, and below it the cure, a line a command."""
        lines = [f"{self.level:<4}  {self.what:<16}  {self.value}"]
        lines += [f"      cure: {line}" for line in self.cure.split("\n") if line]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, str]:
        """The same for JSON."""
        return {"level": self.level, "what": self.what, "value": self.value, "cure": self.cure}


def main(argv: list[str]) -> int:
    """Print the checks; 0 if KVM works."""
    if argv in (["--help"], ["-h"]):
        say.out(USAGE)
        return 0
    if len(argv) > 1 or (argv and argv[0] not in ("--json", "--kvm")):
        say.error(f"doctor: Invalid option: `{' '.join(argv)}'")
        say.plain(USAGE)
        return 1
    facts = collect(CAPABILITIES)
    found = checks(facts)
    reason = unusable(found)
    if argv == ["--kvm"]:
        say.out(f"unusable: {reason}" if reason else "usable")
    elif argv == ["--json"]:
        listed = [each.to_dict() for each in found]
        say.out(json.dumps({"schema": 1, "usable": not reason, "reason": reason, "checks": listed}))
    else:
        for each in found:
            say.out(each.text())
        say.out("")
        say.out(f"No unikernel can run here: {reason}" if reason else "A unikernel can run here through KVM.")
    return 1 if reason else 0


def checks(facts: Facts) -> list[Check]:
    """Every check, in the order in which a start meets them."""
    return [
        Check(OK, "kernel", f"{facts.system} {facts.release}"),
        _cpu(facts),
        *_kvm(facts),
        _tun(facts),
        *(_tap(tap, facts) for tap in facts.taps),
        *([] if facts.taps else [_no_tap()]),
        _memory(facts),
        _descriptors(facts),
    ]


def unusable(found: list[Check]) -> str:
    """The first reason why no unikernel can run, empty if one can."""
    for check in found:
        if check.level == FAIL:
            return f"{check.what}: {check.value}"
    return ""


def _cpu(facts: Facts) -> Check:
    if facts.machine != "x86_64":
        return Check(FAIL, "processor", f"{facts.machine}: only x86_64 is supported")
    flag = next((flag for flag in ("vmx", "svm") if flag in facts.cpu_flags), "")
    inside = "in a virtual machine" if "hypervisor" in facts.cpu_flags else "no hypervisor below"
    if flag:
        return Check(OK, "processor", f"{facts.cpu_model}: {flag}, {inside}")
    if facts.kvm.exists:  # some clouds offer KVM without the processor's own extension
        return Check(WARN, "processor", f"{facts.cpu_model}: neither vmx nor svm, {inside}")
    if "hypervisor" in facts.cpu_flags:
        cure = "switch on nested virtualisation for this virtual machine, at its host or provider\n" + BOX
    else:
        cure = "switch on Intel VT-x or AMD-V in the firmware\n" + BOX
    return Check(WARN, "processor", f"{facts.cpu_model}: neither vmx nor svm, {inside}", cure)


def _kvm(facts: Facts) -> list[Check]:
    node = facts.kvm
    if not node.exists:
        return [Check(FAIL, "/dev/kvm", "does not exist", _absent_cure(facts))]
    if node.open_error:
        you = f"you are {facts.user}, in the groups {', '.join(facts.groups)}"
        value = f"{node.describe()}: {node.open_error} ({you})"
        return [Check(FAIL, "/dev/kvm", value, _denied_cure(node, facts))]
    found = [Check(OK, "/dev/kvm", f"{node.describe()}, opens")]
    if facts.kvm_api != API_VERSION:
        value = f"version {facts.kvm_api}, needed is {API_VERSION}"
        return [*found, Check(FAIL, "KVM API", value, "boot a kernel of 2.6.22 or later")]
    found.append(Check(OK, "KVM API", f"version {facts.kvm_api}"))
    absent = [name for name in CAPABILITIES if facts.kvm_capabilities.get(name, 0) <= 0]
    if absent:
        cure = f"boot a newer kernel than {facts.release}; every one since 3.0 has them on x86_64"
        return [*found, Check(FAIL, "KVM capabilities", f"missing: {', '.join(absent)}", cure)]
    found.append(Check(OK, "KVM capabilities", ", ".join(CAPABILITIES)))
    found.append(_trial(facts))
    return found


def _trial(facts: Facts) -> Check:
    if facts.trial_error:
        cure = facts.trial_cure or BOX
        return Check(FAIL, "trial VM", facts.trial_error, cure)
    return Check(OK, "trial VM", facts.trial_value)


def _absent_cure(facts: Facts) -> str:
    module = "kvm_intel" if "vmx" in facts.cpu_flags else "kvm_amd" if "svm" in facts.cpu_flags else ""
    if module:
        first = f"sudo modprobe {module}"
        return first + ("\nin a container: start it with --device /dev/kvm" if facts.container else "")
    if facts.container:
        return "start the container with --device /dev/kvm, if its host has one\n" + BOX
    return BOX


def _denied_cure(node: DeviceNode, facts: Facts) -> str:
    if node.permitted:  # the mode allows it, so it is not the file that refuses
        if facts.container:
            return "start the container with --device /dev/kvm"
        return "sudo modprobe kvm_intel (or kvm_amd)" if "No such device" in node.open_error else ""
    user = user_word(facts.user)
    if node.group not in ("root", "") and node.mode & 0o060 == 0o060:
        if node.group in facts.database_groups:
            return f"you are in the group {node.group}, but this session began before: log in again"
        join = f"sudo usermod -aG {node.group} {user}   # then log in again"
        return f"{join}\nsudo setfacl -m u:{user}:rw {node.path}   # or this, until the next boot"
    return f"sudo setfacl -m u:{user}:rw {node.path}"


def _tun(facts: Facts) -> Check:
    node = facts.tun
    if not node.exists:
        cure = "start the container with --device /dev/net/tun" if facts.container else "sudo modprobe tun"
        return Check(WARN, "/dev/net/tun", "does not exist: no TAP interface can be used", cure)
    if node.open_error:
        cure = f"sudo chmod 0666 {node.path}   # a TAP's owner is checked apart"
        if node.permitted:
            cure = (
                "start the container with --device /dev/net/tun" if facts.container else "sudo modprobe tun"
            )
        return Check(WARN, "/dev/net/tun", f"{node.describe()}: {node.open_error}", cure)
    return Check(OK, "/dev/net/tun", f"{node.describe()}, opens")


def _tap(tap: TapFacts, facts: Facts) -> Check:
    owner = f"owner {tap.owner}" if tap.owner else "no owner"
    value = f"{'up' if tap.up else 'down'}, {owner}{', multi-queue' if tap.multi_queue else ''}"
    what = f"TAP {tap.name}"
    user = user_word(facts.user)
    again = f"sudo ip link delete {tap.name} && sudo ip tuntap add {tap.name} mode tap user {user}"
    if tap.multi_queue:
        return Check(WARN, what, value, again)
    if facts.user != "root" and tap.owner and tap.owner != facts.user:
        return Check(WARN, what, value, again)
    if not tap.up:
        return Check(WARN, what, value, f"sudo ip link set {tap.name} up")
    return Check(OK, what, value)


def _no_tap() -> Check:
    return Check(
        OK,
        "TAP interfaces",
        "none; only unikernels with a network need one:"
        " sudo ip tuntap add tap0 mode tap user $USER && sudo ip link set tap0 up",
    )


def _memory(facts: Facts) -> Check:
    free_mib = facts.mem_available >> 20
    value = f"{free_mib} MiB free, vm.overcommit_memory={facts.overcommit}"
    if facts.overcommit == 2:
        cure = "sudo sysctl vm.overcommit_memory=0   # 2 counts all memory that a guest might touch"
        return Check(WARN, "memory", value, cure)
    if free_mib < 64:
        return Check(WARN, "memory", value, "free some memory, or give guests little: --mem=16")
    return Check(OK, "memory", value)


def _descriptors(facts: Facts) -> Check:
    value = f"{facts.nofile_soft} open files (RLIMIT_NOFILE), at most {facts.nofile_hard}"
    if facts.nofile_soft < 256:  # a VM takes about ten
        return Check(WARN, "descriptors", value, "ulimit -n 1024")
    return Check(OK, "descriptors", value)
