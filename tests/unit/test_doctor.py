"""The doctor's judgement of made-up machines: each sign gets its line and its cure."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tender.backend import kvm_requests
from tender.cli import doctor, host_facts
from tender.cli.doctor import CAPABILITIES, FAIL, OK, WARN, Check, checks, unusable
from tender.cli.host_facts import DeviceNode, Facts, TapFacts
from tender.native import lib

KVM = DeviceNode(path="/dev/kvm", exists=True, owner="root", group="kvm", mode=0o660, permitted=True)
TUN = DeviceNode(path="/dev/net/tun", exists=True, owner="root", group="root", mode=0o666, permitted=True)
HEALTHY = Facts(
    release="6.12.1",
    cpu_model="Some CPU",
    cpu_flags=frozenset({"svm", "sse2"}),
    user="ann",
    kvm=KVM,
    kvm_api=12,
    kvm_capabilities=dict.fromkeys(CAPABILITIES, 1),
    trial_value="every step right",
    tun=TUN,
    taps=(TapFacts(name="tap0", up=True, owner="ann"),),
    mem_available=1 << 33,
    nofile_soft=1024,
    nofile_hard=4096,
)
DENIED = replace(KVM, permitted=False, open_error="Permission denied")


def found(what: str, **changes: object) -> Check:
    (check,) = [each for each in checks(replace(HEALTHY, **changes)) if each.what == what]  # type: ignore[arg-type]
    return check


def test_a_healthy_machine_is_ok_throughout() -> None:
    everything = checks(HEALTHY)
    assert {check.level for check in everything} == {OK}
    assert unusable(everything) == ""
    assert [check.what for check in everything] == [
        *("kernel", "processor", "/dev/kvm", "KVM API", "KVM capabilities", "trial VM"),
        *("/dev/net/tun", "TAP tap0", "memory", "descriptors"),
    ]


def test_a_line_has_level_subject_value_and_cures_below() -> None:
    check = Check(FAIL, "/dev/kvm", "does not exist", "one\ntwo")
    assert check.text() == ("FAIL  /dev/kvm          does not exist\n      cure: one\n      cure: two")


@pytest.mark.parametrize(("flag", "module"), [("vmx", "kvm_intel"), ("svm", "kvm_amd")])
def test_no_device_but_an_able_processor_wants_its_module(flag: str, module: str) -> None:
    changes = {"kvm": DeviceNode(path="/dev/kvm"), "cpu_flags": frozenset({flag})}
    check = found("/dev/kvm", **changes)
    assert (check.level, check.cure) == (FAIL, f"sudo modprobe {module}")
    assert "--device /dev/kvm" in found("/dev/kvm", **changes, container=True).cure


def test_no_device_in_a_virtual_machine_names_nesting_and_the_box() -> None:
    changes = {"kvm": DeviceNode(path="/dev/kvm"), "cpu_flags": frozenset({"hypervisor"})}
    assert "nested virtualisation" in found("processor", **changes).cure
    assert "kvmbox" in found("/dev/kvm", **changes).cure


def test_without_the_processors_extension_the_firmware_is_named() -> None:
    check = found("processor", kvm=DeviceNode(path="/dev/kvm"), cpu_flags=frozenset())
    assert (check.level, check.cure.split("\n")[0]) == (WARN, "switch on Intel VT-x or AMD-V in the firmware")


def test_a_denied_device_names_its_group_and_the_new_login() -> None:
    check = found("/dev/kvm", kvm=DENIED, groups=("ann", "sudo"))
    assert check.level == FAIL
    assert check.value == "root:kvm 0660: Permission denied (you are ann, in the groups ann, sudo)"
    assert check.cure.startswith("sudo usermod -aG kvm ann   # then log in again\n")


def test_a_group_that_this_session_does_not_have_yet_wants_a_login() -> None:
    assert found("/dev/kvm", kvm=DENIED, database_groups=("kvm",)).cure.endswith("log in again")


def test_a_device_without_a_useful_group_wants_an_acl() -> None:
    node = replace(DENIED, group="root", mode=0o600)
    assert found("/dev/kvm", kvm=node).cure == "sudo setfacl -m u:ann:rw /dev/kvm"


def test_a_device_that_the_container_refuses_wants_to_be_passed_in() -> None:
    node = replace(KVM, open_error="Operation not permitted")
    assert found("/dev/kvm", kvm=node, container=True).cure == "start the container with --device /dev/kvm"


def test_another_api_version_is_a_failure() -> None:
    check = found("KVM API", kvm_api=11)
    assert (check.level, check.value) == (FAIL, "version 11, needed is 12")


def test_a_missing_capability_is_named() -> None:
    check = found("KVM capabilities", kvm_capabilities={"KVM_CAP_USER_MEMORY": 1})
    assert (check.level, check.value) == (FAIL, "missing: KVM_CAP_GET_TSC_KHZ")


def test_an_unfit_kvm_makes_the_machine_unusable() -> None:
    facts = replace(HEALTHY, trial_error="this KVM is unfit: slow", trial_value="")
    assert unusable(checks(facts)) == "trial VM: this KVM is unfit: slow"
    assert "kvmbox" in found("trial VM", trial_error="x").cure


@pytest.mark.parametrize(
    ("tap", "level", "cure"),
    [
        (TapFacts(name="tap0", up=True, owner=""), OK, ""),
        (TapFacts(name="tap0", up=False, owner="ann"), WARN, "sudo ip link set tap0 up"),
        (TapFacts(name="tap0", up=True, owner="bob"), WARN, "sudo ip link delete tap0"),
        (TapFacts(name="tap0", up=True, owner="ann", multi_queue=True), WARN, "sudo ip link delete tap0"),
    ],
)
def test_a_tap_must_be_up_and_ours(tap: TapFacts, level: str, cure: str) -> None:
    check = found("TAP tap0", taps=(tap,))
    assert check.level == level
    assert check.cure.startswith(cure)


def test_a_tun_device_that_is_missing_or_denied_is_only_a_warning() -> None:
    missing = found("/dev/net/tun", tun=DeviceNode(path="/dev/net/tun"))
    assert (missing.level, missing.cure) == (WARN, "sudo modprobe tun")
    denied = found("/dev/net/tun", tun=replace(TUN, permitted=False, open_error="Permission denied"))
    assert (denied.level, denied.cure.partition("   ")[0]) == (WARN, "sudo chmod 0666 /dev/net/tun")


def test_strict_overcommit_little_memory_and_few_descriptors_are_warnings() -> None:
    assert found("memory", overcommit=2).level == WARN
    assert found("memory", mem_available=1 << 20).level == WARN
    assert found("descriptors", nofile_soft=64).level == WARN


def test_another_processor_architecture_is_a_failure() -> None:
    assert found("processor", machine="aarch64").level == FAIL


@pytest.mark.parametrize(
    ("facts", "line", "status"),
    [
        (HEALTHY, "usable\n", 0),
        (replace(HEALTHY, kvm=DeviceNode(path="/dev/kvm")), "unusable: /dev/kvm: does not exist\n", 1),
    ],
)
def test_one_line_for_scripts(
    facts: Facts, line: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "collect", lambda capabilities: facts)
    assert doctor.main(["--kvm"]) == status
    assert capsys.readouterr().out == line


def test_json_has_every_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "collect", lambda capabilities: HEALTHY)
    assert doctor.main(["--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["schema"], result["usable"], result["reason"]) == (1, True, "")
    assert result["checks"][0] == {"level": "ok", "what": "kernel", "value": "Linux 6.12.1", "cure": ""}


def test_a_wrong_option_prints_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--frob"]) == 1
    assert "Invalid option: `--frob'" in capsys.readouterr().err


# ---- looking


def test_processor_facts_are_those_of_the_first_processor() -> None:
    text = "processor : 0\nmodel name : A  B\nflags : fpu svm\n\nprocessor : 1\nmodel name : C\nflags : vmx\n"
    assert host_facts.cpu_facts(text) == ("A  B", frozenset({"fpu", "svm"}))
    assert host_facts.cpu_facts("") == ("unknown processor", frozenset())


def test_available_memory_is_read_in_bytes() -> None:
    assert host_facts.mem_available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n") == 2 << 20
    assert host_facts.mem_available("") == 0


def test_a_device_node_that_is_absent_or_open_to_us(tmp_path: Path) -> None:
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


def test_the_request_numbers_and_the_api_version_are_the_kernels() -> None:
    assert host_facts.KVM_GET_API_VERSION == kvm_requests.KVM_GET_API_VERSION
    assert host_facts.KVM_CHECK_EXTENSION == kvm_requests.KVM_CHECK_EXTENSION
    assert doctor.API_VERSION == lib.KVM_API_VERSION


def test_the_capability_numbers_are_the_kernels() -> None:
    defined = {}
    for line in Path("/usr/include/linux/kvm.h").read_text().splitlines():
        words = line.split()
        if words[:1] == ["#define"] and len(words) > 2 and words[1] in CAPABILITIES:
            defined[words[1]] = int(words[2])
    assert defined == CAPABILITIES
