"""The doctor's checks of invented machines: each symptom gets its line and its cure."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tender.backend.sandbox import ISOLATION
from tender.cli import doctor, host_facts
from tender.cli.doctor import (
    CAPABILITIES,
    FAIL,
    LAYER_MEANINGS,
    MSR_FILTER,
    OK,
    OPTIONAL_CAPABILITIES,
    WARN,
    Check,
    checks,
    kvm_unusable,
    last_line,
    sandbox_unusable,
    unusable,
)
from tender.cli.host_facts import DeviceNode, Facts, SandboxFacts, TapFacts, TrialFacts

KVM = DeviceNode(path="/dev/kvm", exists=True, owner="root", group="kvm", mode=0o660, permitted=True)
TUN = DeviceNode(path="/dev/net/tun", exists=True, owner="root", group="root", mode=0o666, permitted=True)
SANDBOX = SandboxFacts(
    program="/lib/tender-sandbox",
    program_there=True,
    trial=TrialFacts(value="a unikernel ran behind the filter (3 ms)", isolation=ISOLATION),
    max_user_namespaces=96365,
    seccomp_actions=("kill_process", "kill_thread", "trap", "errno", "allow"),
    tsc_hz=2_400_000_000,
    clocksource="tsc",
)
# A sandbox that fails, for whatever reason.
BROKEN = replace(SANDBOX, trial=TrialFacts(error="sandbox: some step: Operation not permitted", cure="do"))
HEALTHY = Facts(
    release="6.12.1",
    cpu_model="Some CPU",
    cpu_flags=frozenset({"svm", "sse2"}),
    user="ann",
    kvm=KVM,
    kvm_api=12,
    kvm_capabilities=dict.fromkeys(CAPABILITIES | OPTIONAL_CAPABILITIES, 1),
    trial=TrialFacts(value="every step right"),
    sandbox=SANDBOX,
    auto_backend="kvm",
    tun=TUN,
    taps=(TapFacts(name="tap0", up=True, owner="ann"),),
    mem_available=1 << 33,
    nofile_soft=1024,
    nofile_hard=4096,
)
NO_KVM = DeviceNode(path="/dev/kvm")
DENIED = replace(KVM, permitted=False, open_error="Permission denied")


def found(what: str, **changes: object) -> Check:
    (check,) = [each for each in checks(replace(HEALTHY, **changes)) if each.what == what]  # type: ignore[arg-type]
    return check


def test_every_check_of_a_healthy_machine_is_ok() -> None:
    everything = checks(HEALTHY)
    assert {check.level for check in everything} == {OK}
    assert unusable(everything) == ""
    assert [check.what for check in everything] == [
        *(
            "kernel",
            "processor",
            "/dev/kvm",
            "KVM API",
            "KVM capabilities",
            "MSR filter",
            "KVM features",
            "trial VM",
        ),
        *("sandbox", "isolation", "TSC", "clock source"),
        *("/dev/net/tun", "TAP tap0", "memory", "descriptors", "debugger"),
    ]


def test_a_line_has_level_subject_value_and_cures_below() -> None:
    check = Check(FAIL, "/dev/kvm", "does not exist", "one\ntwo")
    assert check.text() == ("FAIL  /dev/kvm          does not exist\n      cure: one\n      cure: two")


@pytest.mark.parametrize(("flag", "module"), [("vmx", "kvm_intel"), ("svm", "kvm_amd")])
def test_a_missing_device_with_a_capable_processor_needs_its_module(flag: str, module: str) -> None:
    changes = {"kvm": NO_KVM, "cpu_flags": frozenset({flag}), "sandbox": BROKEN}
    check = found("/dev/kvm", **changes)
    assert (check.level, check.cure) == (FAIL, f"sudo modprobe {module}")
    assert "--device /dev/kvm" in found("/dev/kvm", **changes, container=True).cure


def test_a_missing_device_in_a_virtual_machine_mentions_nesting_and_the_test_vm() -> None:
    changes = {"kvm": NO_KVM, "cpu_flags": frozenset({"hypervisor"})}
    assert "nested virtualisation" in found("processor", **changes).cure
    assert "kvmbox" in found("/dev/kvm", **changes).cure


def test_without_the_processors_extension_the_firmware_is_named() -> None:
    check = found("processor", kvm=NO_KVM, cpu_flags=frozenset())
    assert (check.level, check.cure.split("\n")[0]) == (WARN, "switch on Intel VT-x or AMD-V in the firmware")


def test_a_denied_device_names_its_group_and_the_new_login() -> None:
    check = found("/dev/kvm", kvm=DENIED, sandbox=BROKEN, groups=("ann", "sudo"))
    assert check.level == FAIL
    assert check.value == "root:kvm 0660: Permission denied (you are ann, in the groups ann, sudo)"
    assert check.cure.startswith("sudo usermod -aG kvm ann   # then log in again\n")


def test_a_group_that_the_session_does_not_have_yet_needs_a_login() -> None:
    assert found("/dev/kvm", kvm=DENIED, database_groups=("kvm",)).cure.endswith("log in again")


def test_a_device_without_a_useful_group_needs_an_acl() -> None:
    node = replace(DENIED, group="root", mode=0o600)
    assert found("/dev/kvm", kvm=node).cure == "sudo setfacl -m u:ann:rw /dev/kvm"


def test_a_device_that_the_container_refuses_must_be_passed_in() -> None:
    node = replace(KVM, open_error="Operation not permitted")
    assert found("/dev/kvm", kvm=node, container=True).cure == "start the container with --device /dev/kvm"


def test_another_api_version_is_a_failure() -> None:
    check = found("KVM API", kvm_api=11, sandbox=BROKEN)
    assert (check.level, check.value) == (FAIL, "version 11, needed is 12")


def test_a_missing_capability_is_named() -> None:
    check = found("KVM capabilities", kvm_capabilities={"KVM_CAP_USER_MEMORY": 1}, sandbox=BROKEN)
    assert (check.level, check.value) == (FAIL, "missing: KVM_CAP_GET_TSC_KHZ")


def test_a_kvm_without_an_msr_filter_is_only_a_warning() -> None:
    check = found("MSR filter", kvm_capabilities=dict.fromkeys(CAPABILITIES, 1), release="5.4.0")
    assert (check.level, check.cure) == (WARN, "boot a newer kernel than 5.4.0: 5.10 or later")
    assert "missing" in check.value
    assert kvm_unusable(replace(HEALTHY, kvm_capabilities=dict.fromkeys(CAPABILITIES, 1))) == ""


def test_a_kvm_that_serves_hidden_features_is_only_a_warning() -> None:
    without = dict.fromkeys(CAPABILITIES | {MSR_FILTER: 189}, 1)
    check = found("KVM features", kvm_capabilities=without, release="5.9.0")
    assert (check.level, check.cure) == (WARN, "boot a newer kernel than 5.9.0: 5.10 or later")
    assert "vmmcall" in check.value
    assert found("MSR filter", kvm_capabilities=without).level == OK
    assert kvm_unusable(replace(HEALTHY, kvm_capabilities=without)) == ""


def test_an_unusable_kvm_is_a_warning_or_with_a_broken_sandbox_a_failure() -> None:
    unfit = TrialFacts(error="this KVM is unfit: slow")
    facts = replace(HEALTHY, trial=unfit)
    assert unusable(checks(facts)) == ""
    assert kvm_unusable(facts) == "trial VM: this KVM is unfit: slow"
    assert unusable(checks(replace(facts, sandbox=BROKEN))) == "trial VM: this KVM is unfit: slow"
    assert (found("trial VM", trial=unfit).level, found("sandbox", trial=unfit).level) == (WARN, OK)
    assert "kvmbox" in found("trial VM", trial=TrialFacts(error="x")).cure


def test_without_kvm_the_sandbox_is_enough() -> None:
    facts = replace(HEALTHY, kvm=NO_KVM, auto_backend="sandbox", auto_reason="no KVM here")
    assert found("/dev/kvm", kvm=NO_KVM).level == WARN
    assert (unusable(checks(facts)), sandbox_unusable(facts)) == ("", "")
    assert kvm_unusable(facts) == "/dev/kvm: does not exist"
    assert last_line(facts) == "A unikernel can run here. `--backend auto` takes the sandbox: no KVM here."


def test_without_the_sandbox_kvm_is_enough() -> None:
    facts = replace(HEALTHY, sandbox=BROKEN)
    check = found("sandbox", sandbox=BROKEN)
    assert (check.level, check.value, check.cure) == (WARN, BROKEN.trial.error, "do")
    assert (unusable(checks(facts)), kvm_unusable(facts)) == ("", "")
    assert sandbox_unusable(facts) == f"sandbox: {BROKEN.trial.error}"
    assert last_line(facts) == "A unikernel can run here. `--backend auto` takes KVM."


def test_without_both_backends_no_unikernel_can_run() -> None:
    facts = replace(HEALTHY, kvm=NO_KVM, sandbox=BROKEN, auto_backend="")
    assert last_line(facts) == "No unikernel can run here: /dev/kvm: does not exist"
    assert {c.what for c in checks(facts) if c.level == FAIL} == {"/dev/kvm", "sandbox"}


def test_the_last_line_warns_of_a_choice_that_would_fail() -> None:
    facts = replace(HEALTHY, trial=TrialFacts(error="this KVM is unfit: slow"))
    assert last_line(facts) == (
        "A unikernel can run here with `--backend sandbox`; `--backend auto` takes KVM, which is unfit:"
        " trial VM: this KVM is unfit: slow"
    )


def layers_without(*missing: str) -> tuple[str, ...]:
    return tuple(layer for layer in ISOLATION if layer not in missing)


def test_every_isolation_layer_of_the_sandbox_has_a_meaning() -> None:
    assert tuple(LAYER_MEANINGS) == ISOLATION


@pytest.mark.parametrize("layer", ISOLATION)
def test_each_missing_isolation_layer_is_a_separate_warning(layer: str) -> None:
    sandbox = replace(SANDBOX, trial=replace(SANDBOX.trial, isolation=layers_without(layer)))
    check = found(layer, sandbox=sandbox)
    assert (check.level, check.value) == (WARN, f"refused: {LAYER_MEANINGS[layer]}")
    assert check.cure
    assert "isolation" not in [each.what for each in checks(replace(HEALTHY, sandbox=sandbox))]
    assert sandbox_unusable(replace(HEALTHY, sandbox=sandbox)) == ""


@pytest.mark.parametrize(
    ("changes", "container", "cure"),
    [
        ({"max_user_namespaces": 0}, False, "sudo sysctl user.max_user_namespaces=10000"),
        ({"userns_clone": 0}, False, "sudo sysctl kernel.unprivileged_userns_clone=1"),
        ({"apparmor_userns": 1}, False, "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
        ({"userns_clone": 1, "apparmor_userns": 0}, True, "start the container with a seccomp profile"),
        ({}, False, "start tender outside of a chroot"),
    ],
)
def test_the_cause_of_refused_namespaces_is_named_once(
    changes: dict[str, int], container: bool, cure: str
) -> None:
    none = replace(SANDBOX, trial=replace(SANDBOX.trial, isolation=ISOLATION[6:]), **changes)  # type: ignore[arg-type]
    facts = replace(HEALTHY, sandbox=none, container=container)
    cures = [each.cure for each in checks(facts) if each.what in LAYER_MEANINGS]
    assert cures[0].startswith(cure)
    assert cures[1:] == [""] * 5


def test_a_refused_empty_root_alone_needs_proc() -> None:
    trial = replace(SANDBOX.trial, isolation=layers_without("empty-root"))
    check = found("empty-root", sandbox=replace(SANDBOX, trial=trial))
    assert check.cure.startswith("sudo mount -t proc proc /proc")


@pytest.mark.parametrize(
    ("what", "changes", "value", "cure"),
    [
        (
            "tender-sandbox",
            {"program_there": False},
            "/lib/tender-sandbox: does not exist",
            "build and install it: make build",
        ),
        (
            "tender-sandbox",
            {"noexec": True},
            "/lib/tender-sandbox: on a noexec file system",
            "install tender on a file system that is mounted without noexec",
        ),
        (
            "vm.mmap_min_addr",
            {"mmap_min_addr": 131072},
            "131072: guest memory begins at 65536",
            "sudo sysctl vm.mmap_min_addr=65536",
        ),
        (
            "seccomp filter",
            {"seccomp_actions": None},
            "missing",
            "boot a kernel of 5.9 or later with CONFIG_SECCOMP_FILTER",
        ),
        (
            "seccomp filter",
            {"seccomp_actions": ("trap", "allow")},
            "cannot kill_process",
            "boot a kernel of 5.9 or later with CONFIG_SECCOMP_FILTER",
        ),
    ],
)
def test_the_cause_of_a_broken_sandbox_is_named(
    what: str, changes: dict[str, object], value: str, cure: str
) -> None:
    broken = replace(BROKEN, **changes)  # type: ignore[arg-type]
    check = found(what, sandbox=broken, kvm=NO_KVM)
    assert (check.level, check.value, check.cure) == (FAIL, value, cure)
    assert sandbox_unusable(replace(HEALTHY, sandbox=broken)) == f"{what}: {value}"
    works = replace(SANDBOX, **changes)  # type: ignore[arg-type]
    assert what not in [each.what for each in checks(replace(HEALTHY, sandbox=works))], (
        "a working sandbox has nothing to report"
    )


@pytest.mark.parametrize("machine", ["aarch64"])
def test_on_another_architecture_neither_backend_is_available(machine: str) -> None:
    facts = replace(HEALTHY, machine=machine)
    assert kvm_unusable(facts) == sandbox_unusable(facts) == f"processor: {machine}: only x86_64 is supported"


def test_the_tscs_frequency_and_its_accuracy_are_shown() -> None:
    check = found("TSC", sandbox=SANDBOX)
    words = "2400.000 MHz, measured against the monotonic clock, exact to some millionths"
    assert (check.level, check.value) == (OK, words)


def test_a_tsc_without_a_frequency_and_another_clock_source_are_warnings() -> None:
    assert found("TSC", sandbox=replace(SANDBOX, tsc_hz=0)).level == WARN
    check = found("clock source", sandbox=replace(SANDBOX, clocksource="hpet"))
    assert (check.level, check.value.partition(":")[0]) == (WARN, "hpet, not tsc")
    assert found("clock source", sandbox=replace(SANDBOX, clocksource="")).level == OK


@pytest.mark.parametrize(
    ("tap", "level", "cure"),
    [
        (TapFacts(name="tap0", up=True, owner=""), OK, ""),
        (TapFacts(name="tap0", up=False, owner="ann"), WARN, "sudo ip link set tap0 up"),
        (TapFacts(name="tap0", up=True, owner="bob"), WARN, "sudo ip tuntap add tap1 mode tap user ann"),
        (
            TapFacts(name="tap7", up=True, owner="bob", multi_queue=True),
            WARN,
            "sudo ip tuntap add tap0 mode tap user ann",
        ),
        (TapFacts(name="tap0", up=True, owner="ann", multi_queue=True), WARN, "sudo ip link delete tap0"),
    ],
)
def test_a_tap_must_be_up_and_usable_by_this_user(tap: TapFacts, level: str, cure: str) -> None:
    check = found(f"TAP {tap.name}", taps=(tap,))
    assert check.level == level
    assert check.cure.startswith(cure)


HOSTILE = "\x1b[31mred\udcff"


@pytest.mark.parametrize(
    "facts",
    [
        {"taps": (TapFacts(name=HOSTILE, up=False, owner=""),)},
        {"taps": (TapFacts(name=HOSTILE, up=True, owner=HOSTILE),)},
        {"taps": (TapFacts(name="tap0", up=True, owner=HOSTILE),), "user": HOSTILE},
        {"cpu_model": HOSTILE},
        {"release": HOSTILE},
        {"auto_backend": "sandbox", "auto_reason": HOSTILE},
        {"auto_backend": "", "auto_reason": HOSTILE},
        {"sandbox": replace(SANDBOX, clocksource=HOSTILE)},
        {"sandbox": replace(SANDBOX, trial=TrialFacts(error=HOSTILE, cure=HOSTILE))},
        {"tun": replace(TUN, permitted=False, open_error=HOSTILE)},
    ],
    ids=lambda facts: "-".join(facts),
)
@pytest.mark.parametrize("option", [[], ["--kvm"], ["--sandbox"], ["--json"]], ids=str)
def test_facts_of_the_host_are_escaped_before_they_are_printed(
    facts: dict[str, Any],
    option: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "collect", lambda _: replace(HEALTHY, **facts))
    assert doctor.main(option) in (0, 1)
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.splitlines()), shown
    if option == ["--json"]:
        assert all(line.isprintable() or "\x1b" in line for line in _strings(json.loads(shown)))
        assert "udcff" not in shown
    elif not option:
        assert "\\x1b[31mred" in shown or "\\033[31mred" in shown


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def test_a_tun_device_that_is_missing_or_denied_is_only_a_warning() -> None:
    missing = found("/dev/net/tun", tun=DeviceNode(path="/dev/net/tun"))
    assert (missing.level, missing.cure) == (WARN, "sudo modprobe tun")
    denied = found("/dev/net/tun", tun=replace(TUN, permitted=False, open_error="Permission denied"))
    assert (denied.level, denied.cure.partition("   ")[0]) == (WARN, "sudo chmod 0666 /dev/net/tun")


def test_a_rule_against_debuggers_is_a_warning_with_its_cure() -> None:
    assert found("debugger").level == OK
    refused = found(
        "debugger", debugger=("kernel.yama.ptrace_scope is 2: only root may attach", "sudo tender debug PID")
    )
    assert (refused.level, refused.cure) == (WARN, "sudo tender debug PID")


def test_strict_overcommit_little_memory_and_few_descriptors_are_warnings() -> None:
    assert found("memory", overcommit=2).level == WARN
    assert found("memory", mem_available=1 << 20).level == WARN
    assert found("descriptors", nofile_soft=64).level == WARN


def test_another_processor_architecture_is_a_failure() -> None:
    assert found("processor", machine="aarch64").level == FAIL


@pytest.mark.parametrize(
    ("option", "facts", "line", "status"),
    [
        ("--kvm", HEALTHY, "usable\n", 0),
        ("--kvm", replace(HEALTHY, sandbox=BROKEN), "usable\n", 0),
        ("--kvm", replace(HEALTHY, kvm=NO_KVM), "unusable: /dev/kvm: does not exist\n", 1),
        ("--sandbox", HEALTHY, "usable\n", 0),
        ("--sandbox", replace(HEALTHY, kvm=NO_KVM), "usable\n", 0),
        ("--sandbox", replace(HEALTHY, sandbox=BROKEN), f"unusable: sandbox: {BROKEN.trial.error}\n", 1),
    ],
)
def test_one_line_for_scripts(
    option: str,
    facts: Facts,
    line: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "collect", lambda capabilities: facts)
    assert doctor.main([option]) == status
    assert capsys.readouterr().out == line


def test_json_has_every_check_and_both_backends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = replace(HEALTHY, kvm=NO_KVM, auto_backend="sandbox", auto_reason="no KVM here")
    monkeypatch.setattr(doctor, "collect", lambda capabilities: facts)
    assert doctor.main(["--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["schema", "usable", "reason", "kvm", "sandbox", "auto", "checks"]
    assert (result["schema"], result["usable"], result["reason"]) == (1, True, "")
    assert result["kvm"] == {"usable": False, "reason": "/dev/kvm: does not exist"}
    assert result["sandbox"] == {"usable": True, "reason": "", "isolation": list(ISOLATION)}
    assert result["auto"] == {"backend": "sandbox", "reason": "no KVM here"}
    assert result["checks"][0] == {"level": "ok", "what": "kernel", "value": "Linux 6.12.1", "cure": ""}


def test_the_filters_rules_are_printed_with_their_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--filter"]) == 0
    bindings = Path(__file__).resolve().parents[2] / "bindings"
    printed = capsys.readouterr().out
    *texts, ours = [
        path.read_text()
        for path in (
            *(bindings / "devices").glob("*/filter_rules.txt"),
            bindings / "machine" / "sandbox" / "filter_rules.txt",
        )
    ]
    of_devices = [
        line for text in texts for line in text.partition("[sandbox]\n")[2].partition("\n\n")[0].splitlines()
    ]
    assert len(of_devices) >= 9
    assert sorted(printed.splitlines()) == sorted(
        of_devices + [line for line in ours.splitlines() if not line.startswith("devices:")]
    )


def test_a_wrong_option_prints_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--frob"]) == 1
    assert "Invalid option: `--frob'" in capsys.readouterr().err


# ---- reading the facts of this host


def test_the_trial_runs_in_the_sandbox_of_this_machine() -> None:
    facts = host_facts.sandbox_facts()
    assert facts.trial.error == ""
    assert facts.trial.value.startswith("a unikernel ran behind the filter (")
    assert set(facts.trial.isolation) <= set(LAYER_MEANINGS)
    assert facts.tsc_hz > 0
    assert (facts.program_there, facts.noexec) == (True, False)


def test_the_automatic_choice_is_the_one_that_a_vm_makes() -> None:
    backend, reason = host_facts.auto_choice()
    assert (backend, bool(reason)) in [("kvm", False), ("sandbox", True)]


def test_a_sysctl_that_does_not_exist_is_not_zero() -> None:
    assert host_facts._sysctl("kernel/no_such_thing") is None
    assert host_facts._sysctl("kernel/pid_max") == int(Path("/proc/sys/kernel/pid_max").read_text())


def test_processor_facts_are_those_of_the_first_processor() -> None:
    text = "processor : 0\nmodel name : A  B\nflags : fpu svm\n\nprocessor : 1\nmodel name : C\nflags : vmx\n"
    assert host_facts.cpu_facts(text) == ("A  B", frozenset({"fpu", "svm"}))
    assert host_facts.cpu_facts("") == ("unknown processor", frozenset())


def test_available_memory_is_read_in_bytes() -> None:
    assert host_facts.mem_available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n") == 2 << 20
    assert host_facts.mem_available("") == 0


def test_a_device_node_is_absent_or_can_be_opened(tmp_path: Path) -> None:
    assert not host_facts.device_node(str(tmp_path / "absent")).exists
    node = host_facts.device_node("/dev/null")
    assert (node.exists, node.open_error, node.mode) == (True, "", 0o666)


def test_tap_facts_from_sysfs(tmp_path: Path) -> None:
    base = tmp_path / "tap0"
    base.mkdir()
    for name, value in (("owner", "0\n"), ("flags", "0x1003\n"), ("tun_flags", "0x5102\n")):
        (base / name).write_text(value)
    assert host_facts.tap_facts("tap0", str(tmp_path)) == TapFacts(
        name="tap0", up=True, owner="root", multi_queue=True
    )
    (base / "owner").write_text("-1\n")
    assert host_facts.tap_facts("tap0", str(tmp_path)).owner == ""


def test_the_capability_numbers_agree_with_the_kernels() -> None:
    defined = {}
    for line in Path("/usr/include/linux/kvm.h").read_text().splitlines():
        words = line.split()
        if words[:1] == ["#define"] and len(words) > 2 and words[1] in CAPABILITIES | OPTIONAL_CAPABILITIES:
            defined[words[1]] = int(words[2])
    assert defined == CAPABILITIES | OPTIONAL_CAPABILITIES
