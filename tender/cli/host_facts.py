"""What `tender doctor` looks at. This file judges nothing, and goes on if something is missing."""

import fcntl
import grp
import os
import pwd
import resource
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tender.annotations import DISCARD, BackendLike
from tender.backend import trial
from tender.backend.kvm_requests import KVM_CHECK_EXTENSION, KVM_GET_API_VERSION
from tender.backend.sandbox import PROGRAM
from tender.cli.explain import tap_interfaces
from tender.config import VmConfig
from tender.debug.access import obstacle
from tender.errors import TenderError
from tender.image import Image
from tender.native import lib
from tender.printable import quoted
from tender.vm import Vm

INSTALL = "build and install it: make build"


@dataclass(frozen=True, kw_only=True)
class DeviceNode:
    """A device file: whether it exists, who owns it, and whether it opens for reading and writing."""

    path: str
    exists: bool = False
    owner: str = ""
    group: str = ""
    mode: int = 0
    permitted: bool = False  # the mode (or ACL) allows it
    open_error: str = ""

    def describe(self) -> str:
        """Returns owner and mode, as `root:kvm 0660`."""
        return f"{self.owner}:{self.group} {self.mode:04o}"


@dataclass(frozen=True, kw_only=True)
class TapFacts:
    """One TAP interface. `owner` is empty if anybody with CAP_NET_ADMIN may take it."""

    name: str
    up: bool
    owner: str
    multi_queue: bool = False


@dataclass(frozen=True, kw_only=True)
class TrialFacts:
    """How the trial unikernel ended on one backend: what was measured, or why it failed and the cure."""

    value: str = ""
    error: str = ""
    cure: str = ""
    isolation: tuple[str, ...] = ()  # the sandbox's isolation layers that this host allowed


@dataclass(frozen=True, kw_only=True)
class SandboxFacts:
    """What the sandbox needs of this host. A sysctl that does not exist is None."""

    program: str = ""
    program_there: bool = False
    noexec: bool = False  # its file system does not allow programs
    trial: TrialFacts = TrialFacts()
    mmap_min_addr: int = 65536
    max_user_namespaces: int | None = None
    userns_clone: int | None = None
    apparmor_userns: int | None = None
    seccomp_actions: tuple[str, ...] | None = None  # None: the kernel lists no actions
    tsc_hz: int = 0
    clocksource: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that was found."""

    system: str = "Linux"
    release: str = ""
    machine: str = "x86_64"
    cpu_model: str = "unknown processor"
    cpu_flags: frozenset[str] = frozenset()
    container: bool = False
    user: str = ""
    groups: tuple[str, ...] = ()
    database_groups: tuple[str, ...] = ()  # those that a new login would have
    kvm: DeviceNode = DeviceNode(path="/dev/kvm")
    kvm_api: int = 0
    kvm_capabilities: dict[str, int] = field(default_factory=dict)
    trial: TrialFacts = TrialFacts()
    sandbox: SandboxFacts = SandboxFacts()
    auto_backend: str = ""  # the backend that --backend auto takes; empty: none
    auto_reason: str = ""  # why it is not KVM
    tun: DeviceNode = DeviceNode(path="/dev/net/tun")
    taps: tuple[TapFacts, ...] = ()
    overcommit: int = 0
    mem_available: int = 0
    nofile_soft: int = 0
    nofile_hard: int = 0
    debugger: tuple[str, str] = ("", "")  # why a debugger cannot attach to a guest of ours, and the cure


def user_word(user: str) -> str:
    """Returns the user as a command takes it."""
    return quoted(user) if user else "$USER"


def collect(capabilities: dict[str, int]) -> Facts:
    """Looks at everything, and runs the trial unikernel in the sandbox, and on KVM if /dev/kvm opens."""
    uname = os.uname()
    model, flags = cpu_facts(_read("/proc/cpuinfo"))
    kvm = device_node("/dev/kvm")
    api, found = (0, {}) if not kvm.exists or kvm.open_error else _ask_kvm(capabilities)
    backend, reason = auto_choice()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    user = user_name()
    return Facts(
        system=uname.sysname,
        release=uname.release,
        machine=uname.machine,
        cpu_model=model,
        cpu_flags=flags,
        container=in_container(),
        user=user,
        groups=tuple(group_name(gid) for gid in os.getgroups()),
        database_groups=tuple(entry.gr_name for entry in grp.getgrall() if user in entry.gr_mem),
        kvm=kvm,
        kvm_api=api,
        kvm_capabilities=found,
        trial=run_trial("kvm") if api else TrialFacts(),
        sandbox=sandbox_facts(),
        auto_backend=backend,
        auto_reason=reason,
        tun=device_node("/dev/net/tun"),
        taps=tuple(tap_facts(name) for name in tap_interfaces()),
        overcommit=_number(_read("/proc/sys/vm/overcommit_memory")),
        mem_available=mem_available(_read("/proc/meminfo")),
        nofile_soft=soft,
        nofile_hard=hard,
        debugger=obstacle(),
    )


def cpu_facts(cpuinfo: str) -> tuple[str, frozenset[str]]:
    """Returns the model and the flags of the first processor in the text of /proc/cpuinfo."""
    model, flags = "unknown processor", frozenset[str]()
    for line in cpuinfo.partition("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() == "flags":
            flags = frozenset(value.split())
    return model, flags


def mem_available(meminfo: str) -> int:
    """Returns the available bytes that the text of /proc/meminfo shows."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return _number(line.split()[1]) * 1024
    return 0


def device_node(path: str) -> DeviceNode:
    """Looks at the device file `path`, and opens it for a moment."""
    try:
        found = os.stat(path)
    except OSError:
        return DeviceNode(path=path)
    open_error = ""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        open_error = error.strerror or str(error)
    return DeviceNode(
        path=path,
        exists=True,
        owner=uid_name(found.st_uid),
        group=group_name(found.st_gid),
        mode=stat.S_IMODE(found.st_mode),
        permitted=os.access(path, os.R_OK | os.W_OK),
        open_error=open_error,
    )


def _ask_kvm(capabilities: dict[str, int]) -> tuple[int, dict[str, int]]:
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 0, {}
    try:
        api = fcntl.ioctl(fd, KVM_GET_API_VERSION, 0)
        found = {name: fcntl.ioctl(fd, KVM_CHECK_EXTENSION, number) for name, number in capabilities.items()}
        return api, found
    except OSError:
        return -1, {}
    finally:
        os.close(fd)


def run_trial(backend: BackendLike) -> TrialFacts:
    """Runs the unikernel of tender.backend.trial on this backend."""
    cpu_ns: dict[str, int] = {}

    def note(data: bytes) -> None:
        for digit in data.decode("ascii", "replace"):
            cpu_ns.setdefault(digit, time.process_time_ns())

    try:
        with (
            Image.from_bytes(trial.elf()) as image,
            Vm(image, VmConfig(mem=4), console=note, backend=backend) as vm,
        ):
            result = vm.run(timeout=trial.TIMEOUT_S)
            layers = vm.isolation
    except TenderError as error:
        return TrialFacts(error=error.message, cure=error.command_hint)
    except OSError as error:
        return TrialFacts(error=str(error))
    message = "" if result.reason == "timeout" else result.message
    unfit = trial.verdict(cpu_ns, result.guest_status, message)
    if unfit:
        machine = "this KVM" if backend == "kvm" else "the sandbox"
        return TrialFacts(error=f"{machine} is unfit: {unfit}", isolation=layers)
    loop_ms = (cpu_ns["1"] - cpu_ns["0"]) / 1e6
    boot_ms = result.boot.since_start_ms("first_console") or 0.0
    value = f"all steps right: first output after {boot_ms:.2f} ms, {trial.STEPS['1']} in {loop_ms:.2f} ms"
    if backend == "sandbox":
        all_ms = result.boot.since_start_ms("guest_exit") or 0.0
        value = f"a unikernel ran behind the filter ({all_ms:.0f} ms)"
    return TrialFacts(value=value, isolation=layers)


def auto_choice() -> tuple[str, str]:
    """Makes a VM, and returns the backend that `--backend auto` takes here and why it is not KVM."""
    try:
        with Image.from_bytes(trial.elf()) as image, Vm(image, VmConfig(mem=4), console=DISCARD) as vm:
            return vm.backend, vm.fallback
    except (OSError, TenderError) as error:
        return "", str(error)


def sandbox_facts() -> SandboxFacts:
    """Runs the trial in the sandbox, and looks at what the sandbox may lack."""
    there = os.path.exists(PROGRAM)
    actions = _read("/proc/sys/kernel/seccomp/actions_avail").split()
    return SandboxFacts(
        program=PROGRAM,
        program_there=there,
        noexec=there and bool(os.statvfs(PROGRAM).f_flag & os.ST_NOEXEC),
        trial=run_trial("sandbox"),
        mmap_min_addr=_number(_read("/proc/sys/vm/mmap_min_addr")),
        max_user_namespaces=_sysctl("user/max_user_namespaces"),
        userns_clone=_sysctl("kernel/unprivileged_userns_clone"),
        apparmor_userns=_sysctl("kernel/apparmor_restrict_unprivileged_userns"),
        seccomp_actions=tuple(actions) or None,
        tsc_hz=int(lib.tn_tsc_hz()),
        clocksource=_read("/sys/devices/system/clocksource/clocksource0/current_clocksource").strip(),
    )


def _sysctl(name: str) -> int | None:
    text = _read(f"/proc/sys/{name}")
    return _number(text) if text else None


def tap_facts(name: str, sys_class_net: str = "/sys/class/net") -> TapFacts:
    """Returns what sysfs says of one TAP interface."""
    base = f"{sys_class_net}/{name}"
    owner = _number(_read(f"{base}/owner"), -1)
    flags = _number(_read(f"{base}/flags"), base=16)
    tun_flags = _number(_read(f"{base}/tun_flags"), base=16)
    return TapFacts(
        name=name,
        up=bool(flags & 1),  # IFF_UP of <linux/if.h>
        owner="" if owner < 0 else uid_name(owner),
        multi_queue=bool(tun_flags & 0x0100),  # IFF_MULTI_QUEUE of <linux/if_tun.h>
    )


def in_container() -> bool:
    """Whether this looks like a container, by the marks of docker, podman and systemd."""
    return os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv") or "container" in os.environ


def user_name() -> str:
    """Returns the name of the user whose rights count here."""
    return uid_name(os.geteuid())


def uid_name(uid: int) -> str:
    """Returns the user's name, or the number."""
    return _name(lambda: pwd.getpwuid(uid).pw_name, uid)


def group_name(gid: int) -> str:
    """Returns the group's name, or the number."""
    return _name(lambda: grp.getgrgid(gid).gr_name, gid)


def _name(look_up: Callable[[], str], number: int) -> str:
    try:
        return look_up()
    except KeyError:
        return str(number)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _number(text: str, default: int = 0, *, base: int = 10) -> int:
    try:
        return int(text, base)
    except ValueError:
        return default
