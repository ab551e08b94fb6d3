"""`tender doctor`: says what this machine offers to a unikernel, and the command that repairs what is missing.

`tender.cli.host_facts` looks, `checks` judges what was found without looking again, and `main` prints. The status is 0 if
a unikernel can run here on KVM or in the sandbox.
"""

from dataclasses import asdict, dataclass, replace
from importlib.resources import files

from tender.cli import say
from tender.cli.host_facts import INSTALL, DeviceNode, Facts, SandboxFacts, TapFacts, collect, user_word
from tender.cli.option_table import COMMAND_OPTIONS, listed
from tender.cli.report import to_json
from tender.native import lib
from tender.printable import printable, quoted

USAGE = f"""\
usage: tender doctor [--json | --kvm | --sandbox | --filter]

Check what this machine offers to a unikernel: KVM, and the sandbox, which runs it without KVM. Each line is
ok, warn or FAIL. A line that is not ok comes with a cure, if there is one. Status 0 if a unikernel can run here, else 1.

{listed("doctor")}"""

OPTIONS = tuple(name for name, _ in COMMAND_OPTIONS["doctor"])
OK, WARN, FAIL = "ok", "warn", "FAIL"
# The capabilities of /dev/kvm that each run needs.
CAPABILITIES = {name: getattr(lib, name) for name in ("KVM_CAP_USER_MEMORY", "KVM_CAP_GET_TSC_KHZ")}
# Capabilities that a run can do without.
MSR_FILTER = "KVM_CAP_X86_MSR_FILTER"
SHOWN_FEATURES = "KVM_CAP_ENFORCE_PV_FEATURE_CPUID"
OPTIONAL_CAPABILITIES = {name: getattr(lib, name) for name in (MSR_FILTER, SHOWN_FEATURES)}

TEST_VM = (
    "for tests that need KVM, the test VM has a real one in software: tools/kvmbox/kvmbox run -- COMMAND"
)

# What it means that an isolation layer of the sandbox is missing (tender.backend.sandbox.ISOLATION). The filter stands in
# each case, and allows the process to open no file and no socket.
LAYER_MEANINGS = {
    "user-namespace": "a process that broke out of the filter would have your user's rights",
    "network-namespace": "a process that broke out of the filter would reach this machine's network interfaces",
    "mount-namespace": "a process that broke out of the filter would reach this machine's file systems",
    "pid-namespace": "a process that broke out of the filter would reach this machine's processes",
    "ipc-namespace": "a process that broke out of the filter would reach this machine's shared memory",
    "empty-root": "a process that broke out of the filter would reach this machine's root directory",
    "landlock": "after the filter there is no second check of files, TCP and signals",
    "seccomp-filter": "the guest's process can make any system call",
    "uid": "a process that broke out of all other layers would be root",
    "capabilities": "a process that broke out of the filter would have rights of root",
}
SECCOMP_NEEDED = ("kill_process", "trap", "allow")


@dataclass(frozen=True)
class Check:
    """One line of the doctor: its level, what it is about, what was found, and what to do."""

    level: str
    what: str
    value: str
    cure: str = ""

    def text(self) -> str:
        """Returns the line, and below it the cure with one command on each line."""
        lines = [f"{self.level:<4}  {printable(self.what):<16}  {printable(self.value)}"]
        lines += [f"      cure: {printable(line)}" for line in self.cure.split("\n") if line]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, str]:
        """Returns the same for JSON."""
        return asdict(self)


def main(argv: list[str]) -> int:
    """Prints the checks, and returns 0 if a unikernel can run; with --kvm or --sandbox, if it can run there."""
    if argv in (["--help"], ["-h"]):
        say.out(USAGE)
        return 0
    if len(argv) > 1 or (argv and argv[0] not in OPTIONS):
        say.error(f"doctor: Invalid option: `{printable(' '.join(argv))}'")
        if not any(word.startswith("-") for word in argv):
            say.hint("doctor takes no words")
        say.plain(USAGE)
        return 1
    if argv == ["--filter"]:
        return _print_filter()
    facts = collect(CAPABILITIES | OPTIONAL_CAPABILITIES)
    kvm, sandbox = kvm_unusable(facts), sandbox_unusable(facts)
    if argv in (["--kvm"], ["--sandbox"]):
        reason = kvm if argv == ["--kvm"] else sandbox
        say.out(printable(f"unusable: {reason}") if reason else "usable")
        return 1 if reason else 0
    found = checks(facts)
    reason = unusable(found)
    if argv == ["--json"]:
        say.out(to_json(as_json(facts, found)))
    else:
        for each in found:
            say.out(each.text())
        say.out("")
        say.out(printable(last_line(facts)))
    return 1 if reason else 0


def _print_filter() -> int:
    try:
        say.out((files("tender") / "data" / "filter_rules.txt").read_text(encoding="utf-8").rstrip())
    except OSError as error:
        say.error(f"doctor: the filter's rules: {error.strerror}")
        say.hint(INSTALL)
        return 1
    return 0


def as_json(facts: Facts, found: list[Check]) -> dict[str, object]:
    """Returns the object of --json."""
    kvm, sandbox, reason = kvm_unusable(facts), sandbox_unusable(facts), unusable(found)
    return {
        "schema": 1,
        "usable": not reason,
        "reason": reason,
        "kvm": {"usable": not kvm, "reason": kvm},
        "sandbox": {
            "usable": not sandbox,
            "reason": sandbox,
            "isolation": list(facts.sandbox.trial.isolation),
        },
        "auto": {"backend": facts.auto_backend or None, "reason": facts.auto_reason},
        "checks": [each.to_dict() for each in found],
    }


def last_line(facts: Facts) -> str:
    """Returns whether a unikernel can run, and on which backend it runs if no option says so."""
    reason = unusable(checks(facts))
    if reason:
        return f"No unikernel can run here: {reason}"
    backends = {"kvm": ("KVM", kvm_unusable(facts)), "sandbox": ("the sandbox", sandbox_unusable(facts))}
    if facts.auto_backend not in backends:
        return f"A unikernel can run here, but `--backend auto` finds no backend: {facts.auto_reason}"
    name, unfit = backends[facts.auto_backend]
    if unfit:
        other = "sandbox" if facts.auto_backend == "kvm" else "kvm"
        return f"A unikernel can run here with `--backend {other}`; `--backend auto` takes {name}, which is unfit: {unfit}"
    because = f": {facts.auto_reason}" if facts.auto_reason else ""
    return f"A unikernel can run here. `--backend auto` takes {name}{because}."


def checks(facts: Facts) -> list[Check]:
    """Returns each check, in the order in which a start meets them.

    A backend that this host lacks is no failure if the other one works.
    """
    kvm, sandbox = _kvm(facts), _sandbox(facts)
    if _first_failure(kvm) and not _first_failure(sandbox):
        kvm = [_softened(check) for check in kvm]
    elif _first_failure(sandbox) and not _first_failure(kvm):
        sandbox = [_softened(check) for check in sandbox]
    return [
        Check(OK, "kernel", f"{facts.system} {facts.release}"),
        _cpu(facts),
        *kvm,
        *sandbox,
        _tsc(facts.sandbox),
        _clocksource(facts.sandbox),
        _tun(facts),
        *(_tap(tap, facts) for tap in facts.taps),
        *([] if facts.taps else [_no_tap()]),
        _memory(facts),
        _descriptors(facts),
        _debugger(facts),
    ]


def _softened(check: Check) -> Check:
    return replace(check, level=WARN) if check.level == FAIL else check


def _first_failure(found: list[Check]) -> str:
    return next((f"{check.what}: {check.value}" for check in found if check.level == FAIL), "")


def unusable(found: list[Check]) -> str:
    """Returns the first reason why no unikernel can run; empty if one can."""
    return _first_failure(found)


def kvm_unusable(facts: Facts) -> str:
    """Returns why none can run on KVM; empty if one can."""
    return _first_failure([_cpu(facts), *_kvm(facts)])


def sandbox_unusable(facts: Facts) -> str:
    """Returns why none can run in the sandbox; empty if one can."""
    return _first_failure([_cpu(facts), *_sandbox(facts)])


def _cpu(facts: Facts) -> Check:
    if facts.machine != "x86_64":
        return Check(FAIL, "processor", f"{facts.machine}: only x86_64 is supported")
    flag = next((flag for flag in ("vmx", "svm") if flag in facts.cpu_flags), "")
    inside = "in a virtual machine" if "hypervisor" in facts.cpu_flags else "not in a virtual machine"
    if flag:
        return Check(OK, "processor", f"{facts.cpu_model}: {flag}, {inside}")
    if facts.kvm.exists:  # some clouds offer KVM without the processor's own extension
        return Check(WARN, "processor", f"{facts.cpu_model}: neither vmx nor svm, {inside}")
    if "hypervisor" in facts.cpu_flags:
        cure = "switch on nested virtualisation for this virtual machine, at its host or provider\n" + TEST_VM
    else:
        cure = "switch on Intel VT-x or AMD-V in the firmware\n" + TEST_VM
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
    if facts.kvm_api != lib.KVM_API_VERSION:
        value = f"version {facts.kvm_api}, needed is {lib.KVM_API_VERSION}"
        return [*found, Check(FAIL, "KVM API", value, "boot a kernel of 2.6.22 or later")]
    found.append(Check(OK, "KVM API", f"version {facts.kvm_api}"))
    absent = [name for name in CAPABILITIES if facts.kvm_capabilities.get(name, 0) <= 0]
    if absent:
        cure = f"boot a newer kernel than {facts.release}; all since 3.0 have them on x86_64"
        return [*found, Check(FAIL, "KVM capabilities", f"missing: {', '.join(absent)}", cure)]
    found.append(Check(OK, "KVM capabilities", ", ".join(CAPABILITIES)))
    found += [_msr_filter(facts), _shown_features(facts)]
    found.append(_trial(facts))
    return found


def _trial(facts: Facts) -> Check:
    if facts.trial.error:
        return Check(FAIL, "trial VM", facts.trial.error, facts.trial.cure or TEST_VM)
    return Check(OK, "trial VM", facts.trial.value)


def _msr_filter(facts: Facts) -> Check:
    if facts.kvm_capabilities.get(MSR_FILTER, 0) > 0:
        return Check(OK, "MSR filter", "a guest on KVM reaches only the registers that it needs")
    value = "missing: a guest on KVM reaches all model-specific registers that KVM emulates"
    return Check(WARN, "MSR filter", value, f"boot a newer kernel than {facts.release}: 5.10 or later")


def _shown_features(facts: Facts) -> Check:
    if facts.kvm_capabilities.get(SHOWN_FEATURES, 0) > 0:
        return Check(OK, "KVM features", "a guest on KVM cannot use features that CPUID hides")
    value = "a guest can use features that CPUID hides: vmcall and vmmcall that wake or interrupt a vCPU"
    return Check(WARN, "KVM features", value, f"boot a newer kernel than {facts.release}: 5.10 or later")


def _sandbox(facts: Facts) -> list[Check]:
    sandbox, trial = facts.sandbox, facts.sandbox.trial
    if trial.error:
        return [*_sandbox_lacks(sandbox), Check(FAIL, "sandbox", trial.error, trial.cure)]
    found = [Check(OK, "sandbox", trial.value)]
    if len(trial.isolation) == len(LAYER_MEANINGS):
        return [*found, Check(OK, "isolation", ", ".join(trial.isolation))]
    given = ""
    for layer, meaning in LAYER_MEANINGS.items():
        if layer not in trial.isolation:
            cure = _layer_cure(layer, facts)
            found.append(Check(WARN, layer, f"refused: {meaning}", "" if cure == given else cure))
            given = cure
    return found


def _sandbox_lacks(sandbox: SandboxFacts) -> list[Check]:
    """Returns what may be the cause if the sandbox does not work. The trial's own message follows."""
    found = []
    if not sandbox.program_there:
        found.append(Check(FAIL, "tender-sandbox", f"{sandbox.program}: does not exist", INSTALL))
    elif sandbox.noexec:
        cure = "install tender on a file system that is mounted without noexec"
        found.append(Check(FAIL, "tender-sandbox", f"{sandbox.program}: on a noexec file system", cure))
    if sandbox.mmap_min_addr > 65536:
        value = f"{sandbox.mmap_min_addr}: guest memory begins at 65536"
        found.append(Check(FAIL, "vm.mmap_min_addr", value, "sudo sysctl vm.mmap_min_addr=65536"))
    absent = [name for name in SECCOMP_NEEDED if name not in (sandbox.seccomp_actions or ())]
    if absent:
        value = "missing" if sandbox.seccomp_actions is None else f"cannot {', '.join(absent)}"
        cure = "boot a kernel of 5.9 or later with CONFIG_SECCOMP_FILTER"
        found.append(Check(FAIL, "seccomp filter", value, cure))
    return found


def _layer_cure(layer: str, facts: Facts) -> str:
    sandbox, had = facts.sandbox, facts.sandbox.trial.isolation
    if layer == "landlock":
        return "boot a kernel of 5.13 or later with `landlock` in CONFIG_LSM or on its command line: lsm=landlock,..."
    if layer == "uid":
        return "start tender as another user, or with CAP_SETUID, CAP_SETGID and CAP_KILL"
    if layer == "empty-root" and "mount-namespace" in had:
        return "sudo mount -t proc proc /proc   # the empty directory is a directory of /proc"
    if sandbox.max_user_namespaces == 0:
        return "sudo sysctl user.max_user_namespaces=10000"
    if sandbox.userns_clone == 0:
        return "sudo sysctl kernel.unprivileged_userns_clone=1"
    if sandbox.apparmor_userns:
        return (
            "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0   # or a profile that has `userns,`"
        )
    if facts.container:
        return "start the container with a seccomp profile that allows clone() of new namespaces"
    return (
        "start tender outside of a chroot, and of a seccomp filter or security module that forbids namespaces"
    )


def _tsc(sandbox: SandboxFacts) -> Check:
    if not sandbox.tsc_hz:
        cure = "the sandbox needs a processor with a time stamp counter that runs at one rate; use KVM"
        return Check(WARN, "TSC", "its frequency cannot be measured", cure)
    return Check(
        OK,
        "TSC",
        f"{sandbox.tsc_hz / 1e6:.3f} MHz, measured against the monotonic clock, exact to some millionths",
    )


def _clocksource(sandbox: SandboxFacts) -> Check:
    if sandbox.clocksource in ("tsc", ""):
        return Check(OK, "clock source", sandbox.clocksource or "not told")
    value = f"{sandbox.clocksource}, not tsc: the clocks of guests may drift from this machine's"
    sysfs = "/sys/devices/system/clocksource/clocksource0"
    cure = f"echo tsc | sudo tee {sysfs}/current_clocksource   # if available_clocksource there lists it"
    return Check(WARN, "clock source", value, cure)


def _absent_cure(facts: Facts) -> str:
    module = "kvm_intel" if "vmx" in facts.cpu_flags else "kvm_amd" if "svm" in facts.cpu_flags else ""
    if module:
        first = f"sudo modprobe {module}"
        return first + ("\nin a container: start it with --device /dev/kvm" if facts.container else "")
    if facts.container:
        return "start the container with --device /dev/kvm, if its host has one\n" + TEST_VM
    return TEST_VM


def _denied_cure(node: DeviceNode, facts: Facts) -> str:
    if node.permitted:  # the mode allows it, so something else refuses
        if facts.container:
            return "start the container with --device /dev/kvm"
        return "sudo modprobe kvm_intel (or kvm_amd)" if "No such device" in node.open_error else ""
    user = user_word(facts.user)
    if node.group not in ("root", "") and node.mode & 0o060 == 0o060:
        if node.group in facts.database_groups:
            return f"you are in the group {node.group}, but this session began before that: log in again"
        join = f"sudo usermod -aG {node.group} {user}   # then log in again"
        return f"{join}\nsudo setfacl -m u:{user}:rw {node.path}   # or this, until the next boot"
    return f"sudo setfacl -m u:{user}:rw {node.path}"


def _tun(facts: Facts) -> Check:
    node = facts.tun
    if not node.exists:
        cure = "start the container with --device /dev/net/tun" if facts.container else "sudo modprobe tun"
        return Check(WARN, "/dev/net/tun", "does not exist: no TAP interface can be used", cure)
    if node.open_error:
        cure = f"sudo chmod 0666 {node.path}   # the owner of a TAP is checked separately"
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
    name = quoted(tap.name)
    up = f"sudo ip link set {name} up"
    if facts.user != "root" and tap.owner and tap.owner != facts.user:
        taken = {other.name for other in facts.taps}
        own = next(free for free in (f"tap{i}" for i in range(len(taken) + 1)) if free not in taken)
        make = f"sudo ip tuntap add {own} mode tap user {user} && sudo ip link set {own} up"
        return Check(WARN, what, value, make)
    if tap.multi_queue:
        again = f"sudo ip link delete {name} && sudo ip tuntap add {name} mode tap user {user} && {up}"
        return Check(WARN, what, value, again)
    if not tap.up:
        return Check(WARN, what, value, up)
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
        return Check(WARN, "memory", value, "free some memory, or give guests less: --mem=16")
    return Check(OK, "memory", value)


def _descriptors(facts: Facts) -> Check:
    value = f"{facts.nofile_soft} open files (RLIMIT_NOFILE), at most {facts.nofile_hard}"
    if facts.nofile_soft < 256:  # a VM takes about ten
        return Check(WARN, "descriptors", value, "ulimit -n 1024")
    return Check(OK, "descriptors", value)


def _debugger(facts: Facts) -> Check:
    why, cure = facts.debugger
    if why:
        return Check(WARN, "debugger", why, cure)
    return Check(OK, "debugger", "a guest of yours can be debugged: tender debug PID")
